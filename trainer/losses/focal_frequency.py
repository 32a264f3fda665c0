"""Focal frequency loss on the network's output (arXiv 2012.12821): the frequencies that are furthest off count most."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..diffusion.types import Loss, Step
from ..registry import losses
from .distances import Distance, focal_frequency
from .options import FocalFrequencyOptions
from .term import LossParts, mask_at, residual


@losses.register("focal_frequency", FocalFrequencyOptions)
def build(options: FocalFrequencyOptions, parts: LossParts) -> Loss:
    distance = Distance(2, partial(focal_frequency, alpha=options.alpha))

    def loss(step: Step) -> Tensor:
        d = residual(step, parts.in_x0)
        return distance(d, mask_at(step.batch.mask, d.shape[-2:], d))

    return loss
