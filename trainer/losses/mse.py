"""Squared error of the network's output: the loss of DDPM (arXiv 2006.11239, eq. 14), v and flow alike."""

from __future__ import annotations

from ..diffusion.types import Loss
from ..registry import losses
from .term import LossParts, TermOptions, mean, residual


class MseOptions(TermOptions):
    pass


@losses.register("mse", MseOptions)
def build(options: MseOptions, parts: LossParts) -> Loss:
    return lambda step: mean(residual(step, parts.in_x0) ** 2, step.batch.mask)
