"""The maps that a dense run learns, beside their pictures: found as the trainer finds them, shown in its colours."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..trainer.dense.colours import colour_target
from ..trainer.dense.options import DenseOptions
from ..trainer.dense.targets import Target, find_target, read_target, resize
from ..trainer.errors import UserError
from . import crops
from .store import write

HATCH, GREY = 128, 96
"""The two greys of invalid pixels, in stripes."""


def of(recipe: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Path] | None:
    """The map of each picture that has one; None where the recipe learns no maps, or does not say where they lie."""
    targets = crops.of_folder(recipe, str(folder)).get("targets")
    if recipe.get("dense") is None or not isinstance(targets, str):
        return None
    found: dict[str, Path] = {}
    for name in names:
        with suppress(UserError):  # two of one name, which the check reports
            if path := find_target(Path(targets), Path(name)):
                found[name] = path
    return found


def wrong(path: Path, recipe: Mapping[str, Any]) -> str:
    """Why a file is no map as the recipe reads it; empty where it is one."""
    try:
        _read(path, recipe)
    except UserError as error:
        return str(error)
    return ""


def _read(path: Path, recipe: Mapping[str, Any]) -> tuple[Target, DenseOptions]:
    """The map and how it is learned. UserError: it is none."""
    dense, given = recipe.get("dense"), _read_as(recipe, path.parent)
    try:
        options = DenseOptions.model_validate(dense if isinstance(dense, Mapping) else {})
        return read_target(path, options.task, given.get("unit"), given.get("valid")), options
    except (ValueError, TypeError) as error:  # an option that the recipe's form reports; a UserError is a ValueError
        raise UserError(str(error).split("\n")[0]) from None


def thumbnail(path: Path, recipe: Mapping[str, Any], side: int, folder: Path) -> Path | None:
    """A WebP of the map in colours, invalid pixels in grey stripes, made once for these options. None: it is none."""
    given = _read_as(recipe, path.parent)
    try:
        stat = path.stat()
        read_as = f"{recipe.get('dense')}|{given.get('unit')}|{given.get('valid')}"
        whole = f"{path}|{stat.st_mtime_ns}|{stat.st_size}|{side}|{read_as}"
        made = folder / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}.webp"
        if made.is_file():
            return made
        target, options = _read(path, recipe)
        part = min(1.0, side / max(target.valid.shape))
        height, width = (max(1, round(length * part)) for length in target.valid.shape)
        target = resize(target, (height, width), options.task)
        if not target.valid.any():
            return None
        rgb = colour_target(target, options.task, options.space, options.quantiles)
        stripes = np.add.outer(np.arange(height), np.arange(width)) // 4 % 2
        rgb = np.where(target.valid[..., None], rgb, np.where(stripes, HATCH, GREY)[..., None]).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(rgb).save(out, "WEBP", quality=88)
        write(made, out.getvalue())
    except (UserError, OSError):  # the card says what is wrong with it
        return None
    return made


def _read_as(recipe: Mapping[str, Any], targets: Path) -> dict[str, Any]:
    """The options of the set whose maps lie in this folder."""
    sets = (recipe.get("data") or {}).get("sets") or []
    mine = next((one for one in sets if isinstance(one, Mapping) and one.get("targets") == str(targets)), {})
    return crops.of_folder(recipe, str(mine.get("path", "")))
