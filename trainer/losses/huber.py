"""Pseudo-Huber error: the square near zero, the absolute value far from it, with kohya's scaling and schedules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..diffusion.process import Process, widest
from ..diffusion.types import Loss, Step
from ..registry import losses
from .options import HuberOptions
from .term import LossParts, mean, residual


def threshold(level: Tensor, process: Process, options: HuberOptions) -> Tensor:
    """[B] in ``widest``: the c of each row. For a flow the timestep is 1000 sigma, and SD's sigma is s / a."""
    match options.schedule:
        case "constant":
            return torch.full_like(level, options.c * options.scale, dtype=widest(level.device))
        case "exponential":
            return (
                torch.exp(math.log(options.c) / process.steps * process.time(level).to(widest(level.device)))
                * options.scale
            )
        case "snr":
            a, s = process.scales(level)
            return (1 - options.c) * (a / (a + s)) ** 2 + options.c  # (1 - c) / (1 + s / a)^2 + c


def pseudo_huber(d: Tensor, c: Tensor) -> Tensor:
    """sqrt(d^2 + c^2) - c without its cancellation; c is [B]."""
    c = c.to(d).reshape(-1, *[1] * (d.ndim - 1))
    return d**2 / ((d**2 + c**2).sqrt() + c)


@losses.register("huber", HuberOptions)
def build(options: HuberOptions, parts: LossParts) -> Loss:
    def loss(step: Step) -> Tensor:
        c = threshold(step.draw.level, step.process, options)
        errors = mean(pseudo_huber(residual(step, parts.in_x0), c), step.batch.mask)
        return 2 * c.to(errors) * errors

    return loss
