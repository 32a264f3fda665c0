"""Squared error of the network's output by wavelet bands (one Haar level), each with its own weight.

With equal weights this *is* the mean squared error, because the transform is orthonormal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.types import Loss, Step
from ..registry import losses
from .distances import haar_bands
from .options import HaarOptions
from .term import LossParts, mask_at, residual


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
