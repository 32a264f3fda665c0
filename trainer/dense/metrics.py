"""How near a predicted map is to the truth. One figure per picture [B]; means are over valid pixels alone.

Depth is predicted up to scale and shift, so it is aligned first, by least squares per picture, in the space that was
learned. Sources: MiDaS (arXiv 1907.01341, appendix), Marigold (arXiv 2312.02145), Lotus (arXiv 2409.18124); boundaries
after Depth Pro (arXiv 2410.02073).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .header import Space, Task
from .maps import wide

SMALLEST = 1e-3
"""Aligned disparity and depth are clipped here from below before disparity is inverted, as published."""
EDGE = 1.25
"""How many times farther a neighbour is, where there is an edge."""


def scores(
    prediction: Tensor,
    truth: Tensor,
    valid: Tensor,
    task: Task,
    space: Space = "disparity",
    limits: tuple[float, float] | None = None,
) -> dict[str, Tensor]:
    """The figures by which maps are compared, each [B].

    :param prediction: depth [B, H, W] in ``space``, up to a scale and a shift; normals or images [B, 3, H, W].
    :param truth: depth [B, H, W], else [B, 3, H, W]; anything where not ``valid`` [B, H, W].
    :param limits: see ``aligned_depth``.
    """
    if task == "depth":
        depth = aligned_depth(prediction, truth, valid, space, limits)
        return {
            name: one(depth, truth, valid)
            for name, one in (("absrel", absrel), ("delta1", delta1), ("edge_f1", edge_f1))
        }
    if task == "normal":
        return {"degrees": angular_error(prediction, truth, valid), "within_11": within(prediction, truth, valid)}
    return {"difference": absolute_error(prediction, truth, valid)}


def mean(values: Tensor, valid: Tensor) -> Tensor:
    """[B, ...] -> [B]: the mean over valid elements; 0 where there is none. Invalid values may be anything."""
    kept = torch.where(valid, values, torch.zeros_like(values)).flatten(1)
    return kept.sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def align(prediction: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift), each [B], that minimise the sum over valid pixels of (scale * prediction + shift - truth)^2.

    [B, H, W] each. The closed form of the 2x2 normal equations, with the means taken off first, which keeps float32
    exact; differentiable in ``prediction``. Where their determinant is not positive (a constant prediction, fewer than
    two valid pixels), scale and shift are 0, as in MiDaS.
    """
    p, t = wide(prediction), wide(truth)
    mean_p, mean_t = mean(p, valid), mean(t, valid)
    p, t = p - mean_p[:, None, None], t - mean_t[:, None, None]
    variance, covariance = mean(p * p, valid), mean(p * t, valid)
    solvable = variance > 1e-12 * (1 + mean_p.square())
    scale = torch.where(solvable, covariance / torch.where(solvable, variance, torch.ones_like(variance)), 0.0)
    return scale, torch.where(solvable, mean_t - scale * mean_p, 0.0)


def aligned(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """``prediction`` [B, H, W] after ``align``."""
    scale, shift = align(prediction, truth, valid)
    return scale[:, None, None] * wide(prediction) + shift[:, None, None]


def aligned_depth(
    prediction: Tensor, truth: Tensor, valid: Tensor, space: Space, limits: tuple[float, float] | None = None
) -> Tensor:
    """The depth [B, H, W] that a prediction in ``space`` means, aligned with the true depth in that space.

    :param truth: depth [B, H, W]; anything where invalid.
    :param limits: the data set's range of depth, to which the answer is clipped. None: depth is at least 1e-3, and at
        most 1000 where it was disparity, as published for metres.
    """
    safe = torch.where(valid, truth.float(), torch.ones_like(truth, dtype=torch.float32))
    if space == "disparity":
        low = 1 / limits[1] if limits else SMALLEST
        depth = 1 / aligned(prediction, 1 / safe, valid).clamp(min=low)
    elif space == "log":
        depth = aligned(prediction, safe.log(), valid).clamp(-20, 20).exp()
    else:
        depth = aligned(prediction, safe, valid).clamp(min=SMALLEST if limits is None else limits[0])
    return depth if limits is None else depth.clamp(*limits)


def absrel(depth: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """[B]: the mean of \\|d - t\\| / t."""
    safe = torch.where(valid, truth.float(), torch.ones_like(truth, dtype=torch.float32))
    return mean((depth.float() - safe).abs() / safe, valid)


def delta1(depth: Tensor, truth: Tensor, valid: Tensor, ratio: float = 1.25) -> Tensor:
    """[B]: the share of pixels where max(d / t, t / d) < ``ratio``."""
    safe = torch.where(valid, truth.float(), torch.ones_like(truth, dtype=torch.float32))
    d = depth.float().clamp(min=1e-12)
    return mean((torch.maximum(d / safe, safe / d) < ratio).float(), valid)


def edges(depth: Tensor, valid: Tensor, ratio: float = EDGE) -> Tensor:
    """Bool [B, H, W]: whether in the 3x3 pixels around a pixel the farthest valid one is over ``ratio`` times as far
    as the nearest. It does not depend on the scale of depth, and an edge that is spread over three pixels counts."""
    logarithm = depth.float().clamp(min=1e-12).log()[:, None]
    known = valid[:, None]
    highest = F.max_pool2d(torch.where(known, logarithm, -torch.inf), 3, 1, 1)
    lowest = -F.max_pool2d(torch.where(known, -logarithm, -torch.inf), 3, 1, 1)
    return (highest - lowest > math.log(ratio))[:, 0]


def edge_f1(depth: Tensor, truth: Tensor, valid: Tensor, ratio: float = EDGE, tolerance: int = 1) -> Tensor:
    """[B]: F1 of the edges of aligned depth against the true ones, each matched within ``tolerance`` pixels.

    Precision is the share of predicted edge pixels near a true one, recall that of true ones near a predicted one.
    NaN where the truth has no edge: such a picture says nothing.
    """

    def near(mask: Tensor) -> Tensor:
        width = 2 * tolerance + 1
        return F.max_pool2d(mask[:, None].float(), width, 1, tolerance)[:, 0] > 0

    found, real = edges(depth, valid, ratio) & valid, edges(truth, valid, ratio) & valid
    count_found, count_real = found.flatten(1).sum(1), real.flatten(1).sum(1)
    precision = (found & near(real)).flatten(1).sum(1) / count_found.clamp(min=1)
    recall = (real & near(found)).flatten(1).sum(1) / count_real.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return torch.where(count_real > 0, f1, torch.nan)


def angles(prediction: Tensor, truth: Tensor) -> Tensor:
    """[B, H, W]: degrees between normals [B, 3, H, W], by atan2 of the cross product's length and the dot product:
    exact near 0, and its slope is finite where that of arccos is not."""
    p, t = prediction.float(), truth.float()
    cross = torch.linalg.vector_norm(torch.linalg.cross(p, t, dim=1), dim=1)
    return torch.rad2deg(torch.atan2(cross, (p * t).sum(1)))


def angular_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """[B]: the mean angle in degrees between normals [B, 3, H, W]."""
    return mean(angles(prediction, truth), valid)


def within(prediction: Tensor, truth: Tensor, valid: Tensor, degrees: float = 11.25) -> Tensor:
    """[B]: the share of pixels whose normals are less than ``degrees`` apart."""
    return mean((angles(prediction, truth) < degrees).float(), valid)


def absolute_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """[B]: the mean absolute difference of images [B, 3, H, W]."""
    return mean((wide(prediction) - wide(truth)).abs().mean(1), valid)
