"""Where a picture is cut, and how its colours vary. The ranges are those of sd-scripts (48d368fa)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from .buckets import Fit, Size
from .options import SetOptions

Window = tuple[Size, tuple[int, int]]
"""The size that a picture is resized to, and the corner (left, top) it is cut from."""


def window(path: Path, size: Size, fit: Fit, options: SetOptions, rng: random.Random | None) -> Window:
    """The window of one occurrence. Without ``rng`` nothing is left to chance."""
    face = _face(path) if options.face_crop else None
    if face is not None and options.face_crop is not None:
        return _around(face, size, fit.bucket, options.face_crop, options.random_crop, rng)
    resized = fit.resized
    if options.random_crop and not options.buckets and size[0] >= fit.bucket[0] and size[1] >= fit.bucket[1]:
        resized = size
    room = resized[0] - fit.bucket[0], resized[1] - fit.bucket[1]
    if options.random_crop and rng is not None:
        return resized, (rng.randint(0, room[0]), rng.randint(0, room[1]))
    return resized, (room[0] // 2, room[1] // 2)


def _face(path: Path) -> tuple[int, int, int, int] | None:
    """Centre x and y, width and height, from a name such as ``anna_320_200_90_120``."""
    parts = path.stem.split("_")
    if len(parts) < 5 or not all(part.isascii() and part.isdigit() for part in parts[-4:]):
        return None
    x, y, width, height = map(int, parts[-4:])
    return (x, y, width, height) if x > 0 and max(width, height) > 0 else None


def _around(
    face: tuple[int, int, int, int], size: Size, target: Size, span: list[float], loose: bool,
    rng: random.Random | None,
) -> Window:  # fmt: skip
    """The face in the middle, the shorter side of the crop ``span`` times as long as the face; never enlarged unless
    the picture is smaller than the crop."""
    length, short = max(face[2:]), min(target)
    least = max(target[0] / size[0], target[1] / size[1])
    low = max(least, min(1.0, short / (length * span[1])))
    high = max(low, min(1.0, short / (length * span[0])))
    scale = rng.uniform(low, high) if rng is not None and low < high else low
    resized = max(target[0], int(size[0] * scale + 0.5)), max(target[1], int(size[1] * scale + 0.5))
    corner = []
    for whole, part, middle in zip(resized, target, face[:2], strict=True):
        centre = int(middle * scale + 0.5)
        start = centre - part // 2
        if rng is None:
            pass
        elif loose:
            reach = max(whole - centre, centre, 0)
            start += rng.randint(0, reach) + rng.randint(0, reach) - reach
        elif span[0] != span[1] and length > short // 10 and length >= 40:
            start += rng.randint(-(length // 20), length // 20)
        corner.append(max(0, min(start, whole - part)))
    return resized, (corner[0], corner[1])


def vary_colors(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """uint8 [H, W, 3], in a third of the cases with the hue turned by up to 16 degrees or a gamma of 0.95 to 1.05."""
    if rng.random() > 0.33:
        return image
    if rng.random() > 0.5:
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        hsv[..., 0] += np.uint8(round(rng.uniform(-16, 16) * 256 / 360) % 256)
        return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    return (255 * (image / 255) ** rng.uniform(0.95, 1.05) + 0.5).astype(np.uint8)
