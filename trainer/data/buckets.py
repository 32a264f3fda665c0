"""Which size a picture is trained at. The arithmetic is that of sd-scripts (48d368fa): both see the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import UserError
from .options import PictureOptions

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Rules:
    """How sizes are chosen: the resolved bucket options of a set."""

    resolution: Size
    buckets: bool = True
    low: int = 256
    high: int = 1024
    step: int = 64
    no_upscale: bool = False


@dataclass(frozen=True)
class Fit:
    """A picture is resized to ``resized``, then cropped to ``bucket``."""

    bucket: Size
    resized: Size


def rules(options: PictureOptions, native: int, where: str = "data") -> Rules:
    """The rules of a set; ``native`` is the side of the pictures that the model was made for.

    :raises UserError: the resolution lies outside of the buckets' bounds.
    """
    chosen = options.resolution if options.resolution is not None else native
    width, height = (chosen, chosen) if isinstance(chosen, int) else (chosen[0], chosen[1])
    step = options.bucket_step
    low = options.bucket_min if options.bucket_min is not None else min(width, height) // 2
    high = options.bucket_max if options.bucket_max is not None else 2 * max(width, height)
    low, high = max(low - low % step, step), high + -high % step
    if options.buckets and not options.no_upscale and not low <= min(width, height) <= max(width, height) <= high:
        raise UserError(
            f"{where}: resolution {width}x{height} lies outside of the buckets' sides, {low} to {high}; "
            "change bucket_min or bucket_max, or bucket_step"
        )
    return Rules((width, height), options.buckets, low, high, step, options.no_upscale)


@lru_cache(maxsize=64)
def resolutions(resolution: Size, low: int, high: int, step: int) -> list[Size]:
    """All buckets of an area, sorted: sides are multiples of ``step``, the area is at most that of ``resolution``."""
    area = resolution[0] * resolution[1]
    square = int(math.sqrt(area) // step) * step
    sizes = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def cover(size: Size, bucket: Size) -> Size:
    """The smallest size of equal aspect ratio that covers the bucket."""
    wide = size[0] / size[1] > bucket[0] / bucket[1]
    scale = bucket[1] / size[1] if wide else bucket[0] / size[0]
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


@lru_cache(maxsize=65536)
def assign(size: Size, rules: Rules) -> Fit | None:
    """The bucket of a picture; None when it is too small to fill one without being enlarged."""
    if not rules.buckets:
        return Fit(rules.resolution, cover(size, rules.resolution))
    if rules.no_upscale:
        return _shrink(size, rules)
    sizes = resolutions(rules.resolution, rules.low, rules.high, rules.step)
    aspect = size[0] / size[1]
    bucket = size if size in sizes else min(sizes, key=lambda one: abs(one[0] / one[1] - aspect))
    return Fit(bucket, cover(size, bucket))


def _shrink(size: Size, rules: Rules) -> Fit | None:
    """Scaled down to the area when larger, to a multiple of the step on the side where that distorts less."""
    step, area = rules.step, rules.resolution[0] * rules.resolution[1]
    if size[0] * size[1] > area:
        aspect = size[0] / size[1]

        def floor(side: float) -> int:
            return int(side + 0.5) // step * step

        def error(width: int, height: int) -> float:
            return abs(width / height - aspect) if height else math.inf

        ideal = math.sqrt(area * aspect)
        width, height = floor(ideal), floor(area / ideal)
        if error(width, floor(width / aspect)) < error(floor(height * aspect), height):
            size = width, int(width / aspect + 0.5)
        else:
            size = int(height * aspect + 0.5), height
    bucket = size[0] // step * step, size[1] // step * step
    return Fit(bucket, size) if min(bucket) > 0 else None


def conditioning(original: Size, bucket: Size, flipped: bool = False) -> Sequence[int]:
    """SDXL's size conditioning: original h, w; crop top, left; target h, w (arXiv 2307.01952, section 2.2).

    The crop corner is the one that sd-scripts tells the network: the margin of the picture fitted *inside* the bucket.
    """
    aspect = original[0] / original[1]
    if bucket[0] / bucket[1] > aspect:
        width, height = bucket[1] * aspect, float(bucket[1])
    else:
        width, height = float(bucket[0]), bucket[0] / aspect
    left, top = max((bucket[0] - width) // 2, 0.0), max((bucket[1] - height) // 2, 0.0)
    if flipped:
        left = bucket[0] - (left + width)
    return original[1], original[0], int(top), int(left), bucket[1], bucket[0]
