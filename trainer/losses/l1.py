"""Absolute error of the network's output: less drawn to outliers than the square."""

from __future__ import annotations

from ..diffusion.types import Loss
from ..registry import losses
from .options import L1Options
from .term import LossParts, mean, residual


@losses.register("l1", L1Options)
def build(options: L1Options, parts: LossParts) -> Loss:
    return lambda step: mean(residual(step, parts.in_x0).abs(), step.batch.mask)
