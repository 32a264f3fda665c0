"""Targets as three channels in [-1, 1], and maps in colours for people. Nothing here needs torch.

Sources: Lotus (arXiv 2409.18124) ``trunc_disparity``, Marigold (arXiv 2312.02145) ``truncnorm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .header import Space, Task
from .targets import Target, fill_nearest

QUANTILES = (0.02, 0.98)
EPSILON = 1e-5
GREY = 128
"""The colour of invalid pixels."""
# From far to near: dark blue, violet, red, orange, pale yellow. Brightness rises all the way.
COLOURS = np.array(
    [[5, 5, 30], [45, 15, 105], [110, 25, 125], [175, 45, 105], [225, 85, 65], [248, 150, 40], [250, 210, 90],
     [252, 250, 200]], np.float32
)  # fmt: skip


def to_space(depth: np.ndarray, space: Space) -> np.ndarray:
    """Positive depth in the space that is learned: 1 / depth, depth, or log(depth)."""
    return {"disparity": np.reciprocal, "depth": np.asarray, "log": np.log}[space](depth)


def limits(target: Target, space: Space, quantiles: Sequence[float] = QUANTILES) -> tuple[float, float]:
    """The two values of a depth target that become -1 and 1: its quantiles over valid pixels, in ``space``."""
    seen = to_space(target.values[target.valid].astype(np.float64), space)
    low, high = np.quantile(seen, quantiles)
    return float(low), float(high)


def encoded(
    target: Target, task: Task, space: Space = "disparity", quantiles: Sequence[float] = QUANTILES
) -> np.ndarray:
    """The target as float32 [3, H, W] in [-1, 1]; invalid pixels take the value of the nearest valid one.

    Depth: v = 1/d, d or log d; lo, hi = its quantiles over valid pixels; 2 (v - lo) / (hi - lo + e) - 1, clipped,
    three times. e is Lotus' 1e-5, relative to hi, so that the unit of depth does not matter; where hi = lo the map
    is -1. With ``disparity`` 1 is near, with ``depth`` and ``log`` 1 is far. Normals: their x, y, z. Images: 2 v - 1.
    """
    values = fill_nearest(target.values, target.valid)
    if task == "depth":
        low, high = limits(target, space, quantiles)
        spread = high - low + EPSILON * (1.0 if space == "log" else abs(high))
        seen = np.clip(2 * (to_space(values.astype(np.float64), space) - low) / spread - 1, -1, 1)
        channels = np.repeat(seen[None], 3, axis=0)
    else:
        channels = np.moveaxis(values if task == "normal" else 2 * values - 1, 2, 0)
    return np.ascontiguousarray(channels, np.float32)


def colour(values: Any, task: Task, space: Space = "disparity", valid: Any = None) -> np.ndarray:
    """A map as uint8 [H, W, 3] for people. Depth: near is bright (yellow), far is dark (blue), in every space.

    :param values: depth [H, W] in [0, 1] as ``decode`` gives it; normals or image [H, W, 3] or [3, H, W], normals in
        [-1, 1] and images in [0, 1]; arrays or tensors.
    :param valid: bool [H, W]; other pixels become grey.
    """
    given = np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, np.float32)
    known = None if valid is None else np.asarray(valid.cpu() if hasattr(valid, "cpu") else valid, bool)
    if task == "depth":
        near = given if space == "disparity" else 1 - given
        at = np.nan_to_num(np.clip(near, 0, 1)) * (len(COLOURS) - 1)
        low = np.minimum(at.astype(int), len(COLOURS) - 2)
        rgb = COLOURS[low] + (COLOURS[low + 1] - COLOURS[low]) * (at - low)[..., None]
    else:
        given = np.moveaxis(given, 0, 2) if given.shape[0] == 3 and given.shape[2] != 3 else given
        rgb = (np.clip((given + 1) / 2 if task == "normal" else given, 0, 1)) * 255
    rgb = np.round(rgb).astype(np.uint8)
    return rgb if known is None else np.where(known[..., None], rgb, np.uint8(GREY))


def colour_target(
    target: Target, task: Task, space: Space = "disparity", quantiles: Sequence[float] = QUANTILES
) -> np.ndarray:
    """A target as the prediction that would equal it looks: uint8 [H, W, 3], invalid pixels grey."""
    seen = encoded(target, task, space, quantiles)
    if task == "normal":
        return colour(seen / np.maximum(np.linalg.norm(seen, axis=0), 1e-6), task, space, target.valid)
    return colour((seen[0] if task == "depth" else seen) / 2 + 0.5, task, space, target.valid)


def panels(*pictures: np.ndarray, gap: int = 4) -> np.ndarray:
    """Pictures uint8 [H, W, 3] of equal height beside each other on white: picture | prediction | truth."""
    height = pictures[0].shape[0]
    between = np.full((height, gap, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (between, picture)][1:]
    return np.concatenate(row, axis=1)


def grid(rows: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Rows of panels uint8 [H, W, 3] of equal width under each other on white."""
    between = np.full((gap, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (between, row)][1:], axis=0)
