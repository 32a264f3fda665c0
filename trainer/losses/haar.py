"""Squared error of the network's output by wavelet bands (one Haar level), each with its own weight.

With equal weights this *is* the mean squared error, because the transform is orthonormal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.types import Loss, Step
from ..registry import losses, option
from .distances import haar_bands
from .term import LossParts, TermOptions, mask_at, residual


class HaarOptions(TermOptions):
    low: float = option(0.5, label="Coarse band", ge=0)
    """Weight of the coarse half-resolution picture."""
    edges: float = option(1.0, label="Edge bands", ge=0)
    """Weight of the horizontal and vertical details."""
    diagonal: float = option(1.0, label="Diagonal band", ge=0)
    """Weight of the diagonal details."""


@losses.register("haar", HaarOptions)
def build(options: HaarOptions, parts: LossParts) -> Loss:
    weights = (options.low, options.edges, options.edges, options.diagonal)

    def loss(step: Step) -> Tensor:
        d = residual(step, parts.in_x0)
        mask = mask_at(step.batch.mask, d.shape[-2:], d)
        bands = haar_bands(d if mask is None else d * mask.sqrt())
        energy = torch.stack([w * (band**2).flatten(1).sum(1) for w, band in zip(weights, bands, strict=True)])
        return energy.sum(0) / d[0].numel()

    return loss
