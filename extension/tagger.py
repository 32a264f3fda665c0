"""Captions by a tagger of the WD14 kind, from files that lie on this machine. Nothing is fetched.

``models/tagger/model.onnx`` takes one square picture (BGR, 0 to 255, channels last) and gives a probability for each
line of ``selected_tags.csv`` (``name``, ``category``: 0 general, 4 character, 9 rating), as SmilingWolf's taggers do.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..trainer.errors import UserError
from . import images, words
from .store import ROOT, Home

FOLDER = ROOT / "models" / "tagger"
GENERAL, CHARACTER = 0, 4
CHARACTER_AT_LEAST = 0.85
"""A character's name is taken only when the tagger is this sure, as its authors advise."""


@dataclass(frozen=True)
class Tagger:
    session: Any
    names: tuple[str, ...]
    categories: tuple[int, ...]
    side: int

    def tags(self, path: Path, at_least: float) -> str:
        """The picture's tags, the surest first, characters before the rest. UserError: it cannot be read."""
        (found,) = self.session.run(None, {self.session.get_inputs()[0].name: squared(path, self.side)})
        rows = sorted(zip(found[0], self.names, self.categories), key=lambda row: (row[2] != CHARACTER, -row[0]))
        wanted = {GENERAL: at_least, CHARACTER: max(at_least, CHARACTER_AT_LEAST)}
        return ", ".join(name for sure, name, category in rows if sure >= wanted.get(category, 2.0))


def folder(home: Home) -> Path:
    """Where a tagger lies: one of one's own first, else the one that the page fetched."""
    return FOLDER if there(FOLDER) else home.models / "tagger"


def there(folder: Path = FOLDER) -> bool:
    return (folder / "model.onnx").is_file() and (folder / "selected_tags.csv").is_file()


def load(folder: Path = FOLDER) -> Tagger:
    """UserError: the files are not there, do not fit each other, or are no tagger."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(words.NO_ONNX) from None
    try:
        with (folder / "selected_tags.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(words.NO_TAG_NAMES.format(folder / "selected_tags.csv")) from None
    try:
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        _, side, _, channels = session.get_inputs()[0].shape
        known = session.get_outputs()[0].shape[-1]
    except Exception as error:  # onnxruntime raises kinds of its own
        raise UserError(words.NOT_A_TAGGER.format(folder / "model.onnx", str(error)[:120])) from None
    if channels != 3 or not isinstance(side, int) or known != len(rows):
        raise UserError(words.OTHER_TAGS.format(folder / "model.onnx", known, len(rows)))
    names = tuple(name if len(name) <= 3 else name.replace("_", " ") for name, _ in rows)  # ^_^ keeps its line
    return Tagger(session, names, tuple(category for _, category in rows), side)


def squared(path: Path, side: int) -> np.ndarray:
    """[1, side, side, 3], BGR from 0 to 255: the picture on white, whole, in the middle. UserError: no picture."""
    picture = images.opened(path, words.NO_CAPTION_KEPT).convert("RGBA")
    width, height = picture.size
    whole = max(width, height)
    square = Image.new("RGBA", (whole, whole), "white")
    square.alpha_composite(picture, ((whole - width) // 2, (whole - height) // 2))
    small = square.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(small, dtype=np.float32)[None, :, :, ::-1])
