"""Targets: the maps that a dense run learns, read from their files, with which of their pixels are valid.

Depth is distance along the view axis (not disparity), normals are in camera space: x right, y up, z towards the camera.
Geometry never interpolates: between a near and a far surface there is no surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .files import EXTENSIONS, LOSSY, read
from .header import Task

Extent = tuple[int, int]
"""(height, width)"""

TOLERANCE = 0.1
"""How far a normal's length may be from 1. 8-bit files err by up to 0.01, resized ones more along edges."""
SHAPE = 0.01
"""How much the aspect ratios of a picture and its target may differ: what rounding of sizes explains."""
TOO_MANY = 0.1
"""The share of normals with another length that makes a file wrong rather than a little rough."""


@dataclass(frozen=True)
class Target:
    """A map and its validity."""

    values: np.ndarray
    """float32: depth [H, W] in the unit asked for; normal [H, W, 3] of length 1; image [H, W, 3] in [0, 1].
    Finite everywhere; where invalid, 0."""
    valid: np.ndarray
    """bool [H, W]"""


def find_target(folder: Path, picture: Path) -> Path | None:
    """The file in ``folder`` that has the picture's name with an extension of a map: ``depth/cat.png`` for ``cat.jpg``.

    :raises UserError: several files have it.
    """
    stems = picture.name, picture.stem  # depth/cat.jpg.npy is another tool's habit
    found = [path for ext in EXTENSIONS for stem in stems if (path := folder / f"{stem}{ext}").is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise UserError(f"{folder}: {names} are both the target of {picture.name}; keep one")
    return found[0] if found else None


def same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether a target of one size, either way round for both, can lie on a picture of the other."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1) <= SHAPE


def check_shape(path: Path, target: Target, picture: tuple[int, int]) -> None:
    """UserError where a target cannot lie on a picture of ``picture`` (width, height) pixels."""
    height, width = target.valid.shape
    if not same_shape((width, height), picture):
        raise UserError(
            f"{path.as_posix()}: its shape, {width}x{height}, is not that of its picture, {picture[0]}x{picture[1]}; "
            "crop both in the same way"
        )


def read_target(
    path: Path, task: Task, unit: float | None = None, valid: tuple[float, float] | list[float] | None = None
) -> Target:
    """Read a target.

    :param unit: for depth: what one step of the file is worth, 0.001 for millimetres in a 16-bit PNG. None: 1.
    :param valid: for depth: smallest and largest valid value, after ``unit``. 0, negative, NaN and infinite values are
        invalid always; normals of (0, 0, 0) or with NaN are; pixels of an image where its alpha is below one half.
    :raises UserError: a file that cannot be read, or cannot be such a map: 8-bit depth, normals of another length,
        colours outside [0, 1], no valid pixel.
    """
    found = {"depth": _depth, "normal": _normal, "image": _image}[task](path, read(path, _names(task)), unit, valid)
    if not found.valid.any():
        raise UserError(f"{path}: no pixel is valid; {_why_invalid(task, unit, valid)}")
    values = found.values.astype(np.float32)
    values[~found.valid] = 0
    return Target(np.ascontiguousarray(values), np.ascontiguousarray(found.valid))


def _names(task: Task) -> tuple[str, ...]:
    return {"depth": ("depth", "Z"), "normal": ("normal", "normals"), "image": ("image",)}[task]


def _why_invalid(task: Task, unit: float | None, valid: tuple[float, float] | list[float] | None) -> str:
    if task != "depth":
        return "all are zero, NaN or transparent"
    between = f" or outside valid = [{valid[0]:g}, {valid[1]:g}] after unit = {unit or 1:g}" if valid else ""
    return f"all are 0, NaN, infinite{between}"


def _depth(path: Path, raw: np.ndarray, unit: float | None, valid: tuple[float, float] | list[float] | None) -> Target:
    if raw.ndim == 3:
        if not _equal_channels(raw):
            raise UserError(f"{path}: a picture in colours {list(raw.shape)}; depth is one channel of numbers")
        raw = raw[..., 0]
    if raw.dtype.itemsize == 1 or path.suffix.lower() in LOSSY:
        raise UserError(
            f"{path}: depth of 8 bits is 256 steps at most; give the 16-bit PNG, NPY, NPZ or EXR file that it came from"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        values = (raw.astype(np.float64) * (unit or 1.0)).astype(np.float32)
        known = np.asarray(np.isfinite(values) & (values > 0))
        if valid is not None:
            known &= (values >= valid[0]) & (values <= valid[1])
    return Target(values, known)


def _equal_channels(raw: np.ndarray) -> bool:
    return all(np.array_equal(raw[..., 0], raw[..., i], equal_nan=raw.dtype.kind == "f") for i in (1, 2))


def _normal(path: Path, raw: np.ndarray, *_: object) -> Target:
    if raw.ndim != 3 or raw.shape[2] < 3:
        raise UserError(f"{path}: an array {list(raw.shape)}; normals have three channels: x, y, z")
    if path.suffix.lower() in LOSSY:
        raise UserError(f"{path}: normals in a lossy file lose their direction; use PNG, NPY, NPZ or EXR")
    values = raw[..., :3].astype(np.float64)
    known = np.ones(raw.shape[:2], bool)
    if raw.dtype.kind in "ui":
        known = np.asarray(raw[..., :3].any(-1))  # black is a hole, not the direction (-1, -1, -1)
        values = values / np.iinfo(raw.dtype).max * 2 - 1
    known &= np.isfinite(values).all(-1)
    length = np.linalg.norm(np.where(known[..., None], values, 0), axis=-1)
    known &= length > (0.02 if raw.dtype.kind in "ui" else 1e-3)  # the middle grey of a PNG is (0, 0, 0)
    off = np.asarray(np.abs(length - 1) > TOLERANCE) & known
    if off.sum() > TOO_MANY * max(1, known.sum()):
        median = float(np.median(length[known]))
        hint = "; values in [0, 1] are to be 2 v - 1" if raw.dtype.kind == "f" and np.nanmin(values) >= 0 else ""
        raise UserError(
            f"{path}: {off.sum() / known.sum():.0%} of its normals are not of length 1 (median {median:.2f}){hint}; "
            "give unit vectors, in a PNG as (n + 1) / 2"
        )
    return Target(values / np.where(known, length, 1)[..., None], known)


def _image(path: Path, raw: np.ndarray, *_: object) -> Target:
    values = raw[..., None].repeat(3, -1) if raw.ndim == 2 else raw
    if values.shape[2] < 3:
        raise UserError(f"{path}: an array {list(raw.shape)}; an image has one, three or four channels")
    top = np.iinfo(raw.dtype).max if raw.dtype.kind in "ui" else 1
    values = values.astype(np.float64) / top
    known = np.asarray(np.isfinite(values).all(-1))
    inside = values[..., :3][known]
    if inside.size and not -1e-3 <= inside.min() <= inside.max() <= 1 + 1e-3:
        raise UserError(f"{path}: values from {inside.min():.3g} to {inside.max():.3g}; colours are in [0, 1]")
    if values.shape[2] == 4:
        known &= values[..., 3] >= 0.5
    return Target(np.clip(values[..., :3], 0, 1), known)


# ----------------------------------------------------------------------------------------------------------- geometry


def flip(target: Target, task: Task) -> Target:
    """Mirror left and right. The x of normals changes its sign: a wall that faces right faces left then."""
    values = target.values[:, ::-1]
    values = values * np.array([-1, 1, 1], np.float32) if task == "normal" else values
    return Target(np.ascontiguousarray(values), np.ascontiguousarray(target.valid[:, ::-1]))


def resize(target: Target, size: Extent, task: Task) -> Target:
    """To ``size`` (height, width) by the nearest pixel, for every task the same: no value is made that was not there.

    An ``image`` is made smaller by the mean of the pixels under each new one instead, if all of it is valid.
    """
    if target.valid.shape == size:
        return target
    if task == "image" and target.valid.all() and all(a >= b for a, b in zip(target.valid.shape, size)):
        return Target(_mean_resize(target.values, size), np.ones(size, bool))
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * (old / n)).astype(int), old - 1) for n, old in zip(size, target.valid.shape)
    )
    at = np.ix_(rows, columns)
    return Target(np.ascontiguousarray(target.values[at]), np.ascontiguousarray(target.valid[at]))


def _mean_resize(values: np.ndarray, size: Extent) -> np.ndarray:
    for axis, new in enumerate(size):
        sums = np.cumsum(np.moveaxis(values, axis, 0).astype(np.float64), axis=0)
        sums = np.concatenate([np.zeros_like(sums[:1]), sums])
        edges = np.linspace(0, len(sums) - 1, new + 1)
        whole = np.minimum(edges.astype(int), len(sums) - 2)
        part = (edges - whole).reshape(-1, 1, 1)
        means = np.diff(sums[whole] * (1 - part) + sums[whole + 1] * part, axis=0) * (new / (len(sums) - 1))
        values = np.moveaxis(means, 0, axis)
    return values.astype(np.float32)


def crop(target: Target, corner: tuple[int, int], size: Extent) -> Target:
    """The part of ``size`` (height, width) from ``corner`` (top, left) on."""
    at = tuple(slice(start, start + length) for start, length in zip(corner, size))
    cut = Target(np.ascontiguousarray(target.values[at]), np.ascontiguousarray(target.valid[at]))
    assert cut.valid.shape == tuple(size), f"{size} from {corner} is not within {target.valid.shape}"
    return cut


def fill_nearest(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """``values`` [H, W] or [H, W, C] with each invalid pixel replaced by the nearest valid one (Euclidean distance).

    An autoencoder sees whole patches: holes of zeros would reach into the valid cells beside them.

    :raises ValueError: no pixel is valid.
    """
    if valid.all():
        return values
    if not valid.any():
        raise ValueError("no pixel is valid")
    height, width = valid.shape
    row = np.arange(height)[:, None]
    above = np.maximum.accumulate(np.where(valid, row, -(10**6)), axis=0)
    below = np.minimum.accumulate(np.where(valid, row, 10**6)[::-1], axis=0)[::-1]
    nearest = np.where(row - above <= below - row, above, below)  # [H, W]: the nearest valid row in each column
    apart = np.square((nearest - row).astype(np.float64))
    across = np.square(np.arange(width)[:, None] - np.arange(width)[None]).astype(np.float64)
    filled = values.copy()
    for y in np.flatnonzero(~valid.all(1)):
        holes = np.flatnonzero(~valid[y])
        column = np.argmin(across[holes] + apart[y], axis=1)
        filled[y, holes] = values[nearest[y, column], column]
    return filled
