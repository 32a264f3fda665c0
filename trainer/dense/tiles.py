"""Maps of pictures of any size from a network of one size: the whole picture at once, or in tiles with one scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .header import Task
from .metrics import align

Predict = Callable[[Tensor], Tensor]
"""Picture [3, H, W] in [-1, 1], sides in the network's multiples, to its map: depth [H, W], else [3, H, W]."""
OVERLAP = 0.25
"""Of a tile's side, at least."""


def fitted(size: tuple[int, int], trained: tuple[int, int], multiple: int = 8) -> tuple[int, int]:
    """(height, width) with the shape of ``size`` and the area of ``trained``, in multiples: as pictures are trained."""
    by = math.sqrt(trained[0] * trained[1] / (size[0] * size[1]))
    return tuple(max(1, round(side * by / multiple)) * multiple for side in size)  # type: ignore[return-value]


def resized(values: Tensor, size: tuple[int, int], task: Task | None = None) -> Tensor:
    """[H, W] or [C, H, W] to ``size`` (height, width): smoothly, and by means where it becomes smaller. Normals keep
    their length of 1."""
    flat = values if values.ndim == 3 else values[None]
    if flat.shape[-2:] != size:
        flat = F.interpolate(flat[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    flat = F.normalize(flat, dim=0, eps=1e-6) if task == "normal" else flat
    return flat if values.ndim == 3 else flat[0]


def whole(predict: Predict, picture: Tensor, trained: tuple[int, int], task: Task, multiple: int = 8) -> Tensor:
    """The map of a picture [3, H, W] at its own size, predicted at the size that the network was trained at."""
    size = (picture.shape[-2], picture.shape[-1])
    return resized(predict(resized(picture, fitted(size, trained, multiple)).clamp(-1, 1)), size, task)


def tiled(predict: Predict, picture: Tensor, trained: tuple[int, int], task: Task, multiple: int = 8) -> Tensor:
    """The map of a picture [3, H, W] from tiles of the trained size, for detail that one prediction cannot have.

    Every tile of depth has a scale and a shift of its own: each is aligned with the prediction of the whole picture by
    least squares, so that all have one, and neighbours are blended where they overlap. A picture that is not larger
    than one tile is predicted at once.
    """
    height, width = picture.shape[-2:]
    side = tuple(max(multiple, length // multiple * multiple) for length in trained)
    overview = whole(predict, picture, trained, task, multiple)
    if height <= side[0] and width <= side[1]:
        return overview
    side = (min(side[0], height // multiple * multiple), min(side[1], width // multiple * multiple))
    total, weights = torch.zeros_like(overview), torch.zeros(height, width)
    weight = feather(side)
    for top in places(height, side[0]):
        for left in places(width, side[1]):
            at = slice(top, top + side[0]), slice(left, left + side[1])
            tile = predict(picture[:, at[0], at[1]])
            if task == "depth":
                tile = _like(tile, overview[at])
            total[..., at[0], at[1]] += weight * tile
            weights[at] += weight
    blended = total / weights
    return F.normalize(blended, dim=0, eps=1e-6) if task == "normal" else blended


def _like(tile: Tensor, overview: Tensor) -> Tensor:
    """The tile with the scale and the shift of the overview. A tile that says the opposite or nothing is left out."""
    scale, shift = align(tile[None], overview[None], torch.ones_like(tile[None], dtype=torch.bool))
    return scale * tile + shift if float(scale) > 0 else overview


def places(length: int, side: int, overlap: float = OVERLAP) -> list[int]:
    """Where tiles begin along a length that they cover evenly, each overlapping the next by at least ``overlap``."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side * (1 - overlap))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def feather(size: tuple[int, int], overlap: float = OVERLAP) -> Tensor:
    """[H, W] weights: 1 in the middle of a tile, falling to almost 0 over the overlap at its sides."""

    def ramp(length: int) -> Tensor:
        edge = torch.minimum(torch.arange(length) + 0.5, length - 0.5 - torch.arange(length))
        return (edge / max(1.0, overlap * length)).clamp(max=1)

    return ramp(size[0])[:, None] * ramp(size[1])[None]
