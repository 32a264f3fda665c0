"""What is wrong with a folder of pictures and targets, found by looking at every target once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .files import EXTENSIONS
from .header import Task
from .maps import cell_validity
from .options import CELL, WHOLE_CELLS
from .targets import Target, find_target, read_target, resize, same_shape
from .tiles import fitted

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
LEVELS = 256
"""Depth with no more different values was 8-bit once."""
MOSTLY = 0.8
"""The share of targets that must look wrong before the folder is called so."""


@dataclass
class Checked:
    """The state of one folder of targets. Shares are in [0, 1]; ranges are after ``unit``."""

    task: Task
    pictures: int = 0
    targets: int = 0
    readable: int = 0
    without_target: list[str] = field(default_factory=list)
    without_picture: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """One line per target that cannot be used."""
    shapes: list[str] = field(default_factory=list)
    """Pictures whose target has another aspect ratio."""
    sizes: dict[str, int] = field(default_factory=dict)
    """How many targets there are of each size, ``640x480``."""
    invalid: float = 0.0
    most_invalid: tuple[str, float] = ("", 0.0)
    sparse: list[str] = field(default_factory=list)
    """Pictures whose target has fewer than ``WHOLE_CELLS`` latent cells with no invalid pixel."""
    range: dict[str, float] = field(default_factory=dict)
    """Depth: least, median and largest over all valid pixels; medians of the files' quantiles."""
    warnings: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.without_target or self.broken or self.shapes or self.warnings) and self.readable > 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) in the form of the command ``check``."""
        found = [
            ("task", self.task),
            ("pictures", f"{self.pictures}, {self.targets} targets, {self.readable} readable"),
        ]
        found += [("sizes", ", ".join(f"{size}: {n}" for size, n in _first(self.sizes.items(), 6)))] * bool(self.sizes)
        if self.readable:
            worst = f"; most in {self.most_invalid[0]}: {self.most_invalid[1]:.1%}" if self.invalid else ""
            found.append(("invalid", f"{self.invalid:.1%} of the pixels{worst}"))
        if self.sparse:
            cells = f"{len(self.sparse)} with less than {WHOLE_CELLS:.0%} of whole cells of {CELL}x{CELL} pixels"
            found.append(
                ("sparse", f"{cells}: losses on latents leave them out, [loss.dense] learns from valid pixels")
            )
        if self.range:
            found.append(("depth", "{least:.4g} to {largest:.4g}, median {median:.4g}".format(**self.range)))
        lists = {"has no target": self.without_target, "is a target without a picture": self.without_picture,
                 "has a target of another shape": self.shapes}  # fmt: skip
        found += [("warning", line) for line in self.warnings]
        found += [("warning", f"{named(names)} {what}") for what, names in lists.items() if names]
        found += [("warning", line) for line in _first(self.broken, 8)]
        more = len(self.broken) - 8
        return found + ([("warning", f"{more} more targets cannot be used")] if more > 0 else [])


def _first(items: Any, count: int) -> list[Any]:
    return list(items)[:count]


def named(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:4]) + (f" (and {len(names) - 4} more)" if len(names) > 4 else "")


def check_folder(
    pictures: Path,
    targets: Path,
    task: Task,
    unit: float | None = None,
    valid: Sequence[float] | None = None,
    resolution: int | None = None,
) -> Checked:
    """Look at all targets of the pictures in a folder.

    :param resolution: side in pixels of a square picture as it is trained, at which whole cells are counted; None: the
        targets' own sizes.
    :raises UserError: a folder that is missing or holds no pictures.
    """
    for folder in (pictures, targets):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; give --pictures and --targets")
    found = Checked(task)
    names = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not names:
        raise UserError(f"{pictures}: it holds no pictures; give the folder that does")
    used, looks = set(), _Looks()
    for picture in names:
        relative = picture.relative_to(pictures)
        try:
            path = find_target(targets / relative.parent, picture)
            if path is None:
                found.without_target.append(relative.as_posix())
                continue
            used.add(path)
            target = read_target(path, task, unit, list(valid) if valid else None)
        except UserError as error:
            found.broken.append(str(error))
            continue
        _measure(found, relative.as_posix(), picture, target)
        if not _enough_cells(target, task, resolution):
            found.sparse.append(relative.as_posix())
        looks.look(target, task)
    every = {path for path in targets.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()}
    found.pictures, found.targets = len(names), len(every)
    found.without_picture = sorted(path.relative_to(targets).as_posix() for path in every - used)
    found.invalid /= max(1, found.readable)
    if task == "depth":
        found.range = looks.range()
    found.warnings = looks.warnings(task, unit)
    return found


def _measure(found: Checked, name: str, picture: Path, target: Target) -> None:
    found.readable += 1
    height, width = target.valid.shape
    size = f"{width}x{height}"
    found.sizes[size] = found.sizes.get(size, 0) + 1
    share = 1 - float(target.valid.mean())
    found.invalid += share
    if share > found.most_invalid[1]:
        found.most_invalid = (name, share)
    try:
        with Image.open(picture) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            of_picture = (image.height, image.width) if turned else image.size
    except (OSError, ValueError, SyntaxError) as error:
        found.broken.append(f"{picture}: it cannot be read ({error})")
        return
    if not same_shape((width, height), of_picture):
        found.shapes.append(f"{name} ({size})")


def _enough_cells(target: Target, task: Task, resolution: int | None) -> bool:
    height, width = target.valid.shape
    if target.valid.all():
        return True
    if resolution is not None:
        target = resize(target, fitted((height, width), (resolution, resolution)), task)
        height, width = target.valid.shape
    valid = torch.from_numpy(target.valid[: height // CELL * CELL, : width // CELL * CELL])
    return not valid.numel() or float(cell_validity(valid, CELL).float().mean()) >= WHOLE_CELLS


class _Looks:
    """What targets look like, one after the other: counters from which the likely mistakes follow."""

    def __init__(self) -> None:
        self.count = 0
        self.far_below: int = 0
        self.few_levels: int = 0
        self.within_one: int = 0
        self.away: int = 0
        self.floor_down: int = 0
        self.quantiles: list[tuple[float, float, float]] = []

    def look(self, target: Target, task: Task) -> None:
        self.count += 1
        third = max(1, target.valid.shape[0] // 3)
        if task == "depth":
            seen = target.values[target.valid]
            self.quantiles.append((float(seen.min()), float(np.median(seen)), float(seen.max())))
            above, below = (target.values[part][target.valid[part]] for part in (slice(third), slice(-third, None)))
            self.far_below += bool(above.size and below.size and np.median(below) > 1.2 * np.median(above))
            self.few_levels += bool(seen.size > 4 * LEVELS and np.unique(seen).size <= LEVELS and np.ptp(seen) > 0)
            self.within_one += bool(seen.max() <= 1)
        elif task == "normal":
            self.away += bool(target.values[target.valid][:, 2].mean() < 0)
            below = target.values[-third:][target.valid[-third:]]
            self.floor_down += bool(below.size and below[:, 1].mean() < -0.2)

    def range(self) -> dict[str, float]:
        if not self.quantiles:
            return {}
        least, median, largest = np.transpose(self.quantiles)
        return {"least": float(least.min()), "median": float(np.median(median)), "largest": float(largest.max())}

    def warnings(self, task: Task, unit: float | None) -> list[str]:
        if not self.count:
            return []
        often = MOSTLY * self.count
        found = []
        if task == "normal":
            if self.away > often:
                found.append("normals point away from the camera (z < 0); z is to point towards it: negate it")
            if self.floor_down > often:
                found.append("what is below in the pictures faces down (y < 0): OpenCV's axes; negate y and z")
        if task != "depth":
            return found
        median, largest = (self.range()[name] for name in ("median", "largest"))
        if self.far_below > often:
            found.append(
                "what is below in the pictures is farther than what is above: it looks inverted, like disparity; give "
                "depth (1 / disparity)"
            )
        if self.few_levels > often:
            found.append(f"at most {LEVELS} different values in a file: it was of 8 bits once; find the original")
        if unit is not None and not 0.05 < median < 500:
            found.append(f"the median is {median:.4g} metres with the unit {unit:g}: that unit looks wrong")
        elif self.within_one > often:
            found.append("no value is above 1: it looks scaled to [0, 1]; training is relative, but metres are lost")
        elif median > 200 and unit is None:
            step = "0.001 (millimetres)" if largest < 65536 else "the size of a step in metres"
            found.append(f"the median is {median:.4g}: no metres; give --unit {step}")
        return found
