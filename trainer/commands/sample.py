"""Pictures without training: what ``sample``, ``draw`` and ``pairs generate`` draw.

All three load the model with an adapter once, then draw prompts into files; ``draw`` and ``pairs generate`` continue
where an interrupted command ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.inject import Adapter
from ..config import Config
from ..diffusion import sampling
from ..diffusion.sampling import Prompt
from ..errors import UserError
from ..runs.files import decode, make_folder, write_atomic
from ..training.build import build_model, build_previews
from ..training.previews import Previews
from .common import print_note

DEFAULT = Path("samples")
"""The folder of pictures where none is named; in it each adapter has one of its own, to compare two."""
Picture = tuple[Path, Prompt]
"""A file to draw, and its prompt."""


@dataclass(frozen=True)
class Cell:
    """All prompts, with one adapter at one strength."""

    adapter: str | None
    strength: float
    """What the adapter's difference is multiplied by; 1 is as trained."""
    folder: Path

    def pictures(self, prompts: int) -> list[Path]:
        return [sampling.picture_path(self.folder, 0, index) for index in range(prompts)]


def sample(config: Config, adapter: str | None, output: Path | None = None) -> list[Path]:
    """Draw the configuration's prompts with an adapter file, or with the base model alone."""
    _check_prompts(config)
    folder = output or (DEFAULT / Path(adapter).stem if adapter else DEFAULT)
    previews = _load(config, adapter)
    make_folder(folder, "--output")
    pictures = [(sampling.picture_path(folder, 0, index), prompt) for index, prompt in enumerate(previews.prompts)]
    _draw(previews, pictures, {"adapter": adapter or ""})
    return [path for path, _ in pictures]


def draw(config: Config, cells: Sequence[Cell]) -> list[Path]:
    """Draw all cells and return their pictures. Each adapter is loaded once; what is drawn already is kept."""
    count = _check_prompts(config)
    missing = [cell for cell in cells if not all(path.exists() for path in cell.pictures(count))]
    for adapter in dict.fromkeys(cell.adapter for cell in missing):
        _draw_cells(config, adapter, [cell for cell in missing if cell.adapter == adapter])
    return [path for cell in cells for path in cell.pictures(count)]


def generate(config: Config, texts: Sequence[str], n: int, output: Path, adapter: str | None) -> int:
    """Draw ``n`` candidates of each prompt and return their number: ``NNNN_k.png`` for prompt N, ``candidates.jsonl``.

    Candidates of a prompt have seeds of their own. What is drawn already is kept; a UserError names a picture that was
    drawn with another prompt, seed or adapter.
    """
    config = config.changed({"sample.prompts": [text for text in texts for _ in range(n)], "sample.file": None})
    previews = _load(config, adapter)
    make_folder(output, "--output")
    facts = {"adapter": adapter or ""}
    prompts = _different_seeds(previews.prompts, n)
    pictures = [(output / f"{i // n:04d}_{i % n}.png", prompt) for i, prompt in enumerate(prompts)]
    for path, prompt in pictures:
        if path.exists() and not sampling.is_of(path, prompt, facts):
            raise UserError(f"{path}: it has another prompt, seed or adapter; give another folder")
    try:
        _draw(previews, _missing(pictures), facts)
    finally:
        rows = [{"prompt": p.text, "seed": p.seed, "image": path.name} for path, p in pictures if path.exists()]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(output / "candidates.jsonl", lines)
    return len(rows)


def read_cells(path: Path) -> list[Cell]:
    """Read a JSON list ``[{"adapter": FILE or null, "strength": 1.0, "folder": FOLDER}, ...]``; null is the base model.

    :raises UserError: the file is no such list, or an adapter in it does not exist.
    """
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


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one per line; ``#`` begins a comment line."""
    try:
        lines = [line.strip() for line in decode(path.read_bytes()).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); give a UTF-8 text file") from None
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise UserError(f"{path}: it holds no prompt; write one per line")
    return texts


# ------------------------------------------------------------------------------------------------------------ drawing


def _check_prompts(config: Config) -> int:
    """The number of prompts; UserError before anything is loaded where there are none."""
    if config.dense is not None:
        raise UserError("sample: a run with [dense] draws no prompts; `dense predict` gives the maps of pictures")
    count = len(sampling.prompts(config.sample, (512, 512)))
    if not count:
        raise UserError("sample.prompts: there is nothing to draw; give sample.prompts or sample.file")
    return count


def _load(config: Config, adapter: str | None) -> Previews:
    previews = build_previews(config, build_model(config, print_note, adapter)[0])
    assert isinstance(previews, Previews)
    return previews


def _draw(previews: Previews, pictures: Iterable[Picture], facts: dict[str, Any]) -> None:
    for path, prompt in pictures:
        sampling.save_picture(previews.picture(prompt), path, prompt, facts)


def _draw_cells(config: Config, adapter: str | None, cells: Sequence[Cell]) -> None:
    previews = _load(config, adapter)
    for cell in cells:
        make_folder(cell.folder, "folder")
        pictures = list(zip(cell.pictures(len(previews.prompts)), previews.prompts, strict=True))
        with _strength(previews.model.adapter, cell.strength):
            facts = {"adapter": Path(adapter or "").name, "strength": cell.strength}
            _draw(previews, _missing(pictures), facts)


def _missing(pictures: Iterable[Picture]) -> Iterator[Picture]:
    return ((path, prompt) for path, prompt in pictures if not path.exists())


def _different_seeds(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Each ``n`` candidates of a prompt with seeds of their own, also where the prompt names one."""
    first = [prompts[i - i % n].seed for i in range(len(prompts))]
    return [replace(p, seed=p.seed + i % n) if p.seed == first[i] else p for i, p in enumerate(prompts)]


@contextmanager
def _strength(adapter: Adapter, by: float) -> Iterator[None]:
    """Multiply the adapter's difference."""
    layers = {id(layer): layer for one in adapter.mounted for layer in one.layers}
    before = {key: dict(layer.scaling) for key, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.scaling.update({name: scale * by for name, scale in layer.scaling.items()})
        yield
    finally:
        for key, layer in layers.items():
            layer.scaling.update(before[key])
