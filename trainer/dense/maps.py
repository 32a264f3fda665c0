"""Maps as a network sees them: three channels in [-1, 1], and back again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .colours import QUANTILES, encoded
from .header import Space, Task
from .targets import Target


def encode(target: Target, task: Task, space: Space = "disparity", quantiles: Sequence[float] = QUANTILES) -> Tensor:
    """``colours.encoded`` as a tensor: float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(encoded(target, task, space, quantiles))


def wide(values: Tensor) -> Tensor:
    """In float32, or in float64 where it is that already: maps are never compared in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def decode(pixels: Tensor, task: Task) -> Tensor:
    """What decoded pixels [B, 3, H, W] say, differentiable and not clipped.

    Depth: [B, H, W], the mean of the channels as (x + 1) / 2, so [0, 1] for values in [-1, 1]; affine in the space that
    was learned. Normals: [B, 3, H, W] of length 1. Image: [B, 3, H, W], (x + 1) / 2.
    """
    if task == "depth":
        return (wide(pixels).mean(1) + 1) / 2
    if task == "normal":
        return torch.nn.functional.normalize(wide(pixels), dim=1, eps=1e-6)
    return (wide(pixels) + 1) / 2


def cell_validity(valid: Tensor, factor: int = 8) -> Tensor:
    """Bool [..., H, W] -> [..., H / factor, W / factor]: a latent cell is valid when all pixels under it are."""
    *front, height, width = valid.shape
    assert height % factor == 0 and width % factor == 0, f"{height}x{width} is not in cells of {factor}"
    cells = valid.reshape(*front, height // factor, factor, width // factor, factor)
    return cells.all(-1).all(-2)
