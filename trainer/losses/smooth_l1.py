"""Smooth L1 as kohya has it: Huber's shape divided by c, so that its slope far from zero is 2 whatever c is."""

from __future__ import annotations

from torch import Tensor

from ..diffusion.types import Loss, Step
from ..registry import losses
from .huber import pseudo_huber, threshold
from .options import SmoothL1Options
from .term import LossParts, mean, residual


@losses.register("smooth_l1", SmoothL1Options)
def build(options: SmoothL1Options, parts: LossParts) -> Loss:
    def loss(step: Step) -> Tensor:
        c = threshold(step.draw.level, step.process, options)
        return 2 * mean(pseudo_huber(residual(step, parts.in_x0), c), step.batch.mask)

    return loss
