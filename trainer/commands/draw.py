"""``draw``: one set of prompts with several adapters at several strengths, for comparing and for choosing.

The cells are a JSON list ``[{"adapter": FILE or null, "strength": 1.0, "folder": FOLDER}, ...]``; null is the base
model. What has been drawn already is kept, so a list that was cut short is gone on with by the same command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..diffusion import sampling
from ..errors import UserError
from ..training.build import build
from ..training.session import Parts


@dataclass(frozen=True)
class Cell:
    """All prompts, with one adapter at one strength."""

    adapter: str | None
    strength: float
    """What the adapter's difference is multiplied by; 1 is as trained."""
    folder: Path

    def pictures(self, prompts: int) -> list[Path]:
        return [sampling.picture_path(self.folder, 0, index) for index in range(prompts)]


def read_cells(path: Path) -> list[Cell]:
    """ValueError says what is wrong with the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell(row["adapter"], float(row["strength"]), Path(row["folder"])) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: this is no list of cells ({error}); give objects with adapter, strength, folder"
        ) from None
    missing = [cell.adapter for cell in cells if cell.adapter and not Path(cell.adapter).exists()]
    if missing:
        raise UserError(f"{path}: there is no adapter {missing[0]}; give the path of a file")
    return cells


def draw(config: Config, cells: Sequence[Cell]) -> list[Path]:
    """The pictures of all cells, in their order. Each adapter is loaded once."""
    asked = len(sampling.prompts(config.sample, (512, 512)))
    if not asked:
        raise UserError("sample.prompts: there is nothing to draw; give sample.prompts or sample.file")
    todo = [cell for cell in cells if not all(path.exists() for path in cell.pictures(asked))]
    for adapter in dict.fromkeys(cell.adapter for cell in todo):
        parts = build(config, lambda line: print(line, file=sys.stderr), adapter_file=adapter, data=False)
        parts.adapter.train(False)
        for cell in (cell for cell in todo if cell.adapter == adapter):
            with _strength(parts, cell.strength):
                _draw(parts, cell)
    return [path for cell in cells for path in cell.pictures(asked)]


def _draw(parts: Parts, cell: Cell) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    for prompt, path in zip(parts.prompts, cell.pictures(len(parts.prompts)), strict=True):
        if not path.exists():
            facts = {"adapter": Path(cell.adapter or "").name, "strength": cell.strength}
            sampling.save_picture(parts.picture(prompt), path, prompt, facts)


@contextmanager
def _strength(parts: Parts, by: float) -> Iterator[None]:
    """The adapter's difference, multiplied."""
    layers = {id(layer): layer for one in parts.adapter.mounted for layer in one.layers}
    was = {key: dict(layer.scaling) for key, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.scaling.update({name: scale * by for name, scale in layer.scaling.items()})
        yield
    finally:
        for key, layer in layers.items():
            layer.scaling.update(was[key])
