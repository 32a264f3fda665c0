"""What training will see of a picture: its bucket, and the part that is kept, by the trainer's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..trainer.data import buckets
from ..trainer.data.buckets import Rules, Size
from ..trainer.data.options import PictureOptions

Box = tuple[float, float, float, float]
"""Left, top, width and height, as parts of the picture."""


def of_folder(recipe: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The options of [data] as they hold for one folder."""
    data = recipe.get("data")
    data = data if isinstance(data, Mapping) else {}
    sets = [one for one in data.get("sets") or [] if isinstance(one, Mapping) and one.get("path") == folder]
    return {name: value for table in (data, *sets[:1]) for name, value in table.items()}


def rules(recipe: Mapping[str, Any], folder: str) -> Rules | None:
    """How sizes are chosen in this folder; None while the recipe does not say (no resolution, or a wrong option)."""
    given = of_folder(recipe, folder)
    if given.get("resolution") is None or given.get("random_crop") or given.get("face_crop"):
        return None  # the model decides, or each showing is cropped elsewhere
    try:
        options = PictureOptions.model_validate({k: v for k, v in given.items() if k in PictureOptions.model_fields})
        return buckets.rules(options, 0)
    except ValueError:
        return None


def kept(size: Size, chosen: Rules) -> tuple[Size, Box] | None:
    """The bucket and the part of the picture that fills it, from the middle; None for a picture that has none."""
    fit = buckets.assign(size, chosen)
    if fit is None:
        return None
    width, height = (min(1.0, fit.bucket[i] / fit.resized[i]) for i in (0, 1))
    return fit.bucket, ((1 - width) / 2, (1 - height) / 2, width, height)


def drawn(size: Size, box: Box) -> str:
    """A frame over a square in which the whole picture lies, around the part that is kept; empty if all of it is."""
    left, top, width, height = box
    if min(width, height) > 0.995:
        return ""
    across, down = (side / max(size) for side in size)
    parts = ((1 - across) / 2 + left * across, (1 - down) / 2 + top * down, width * across, height * down)
    style = ";".join(f"{name}:{part:.2%}" for name, part in zip(("left", "top", "width", "height"), parts))
    return f'<span class="crop" style="{style}"></span>'
