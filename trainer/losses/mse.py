"""Squared error of the network's output: the loss of DDPM (arXiv 2006.11239, eq. 14), v and flow alike."""

from __future__ import annotations

from ..diffusion.types import Loss
from ..registry import losses
from .options import MseOptions
from .term import LossParts, mean, residual


@losses.register("mse", MseOptions)
def build(options: MseOptions, parts: LossParts) -> Loss:
    return lambda step: mean(residual(step, parts.in_x0) ** 2, step.batch.mask)
