"""MaPO (arXiv 2406.06424, by its released code): the winner's error, and a bounded margin without a reference.

winner - mapo_weight * log sigmoid(T (phi(winner / 2) - phi(loser / 2))) with phi(a) = a / (exp(a) - 1) and T = 1000.
The paper's second version has another knob under the name beta, from 8 to 1024; it is not this weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Step
from ..registry import objectives
from .common import ObjectiveParts, log_loss, pair_metrics, weighted
from .options import MapoOptions

T = 1000


def phi(a: Tensor) -> Tensor:
    """a / (exp(a) - 1), 1 at 0; by its series 1 - a/2 + a^2/12 near 0, where the quotient is 0/0."""
    small = a.abs() < 1e-4
    return torch.where(small, 1 - a / 2 + a**2 / 12, a / torch.expm1(torch.where(small, torch.ones_like(a), a)))


class Mapo:
    needs_reference = False
    valued = ("winner",)

    def __init__(self, options: MapoOptions):
        self.options = options
        self.state: dict[str, float] = {}

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput:
        w, l = (rows.to(errors.device) for rows in step.batch.rows.pairs())  # noqa: E741
        inside = T * (phi(errors[w] / 2) - phi(errors[l] / 2))
        values = errors[w] + self.options.mapo_weight * log_loss(inside)
        return weighted(values, step, pair_metrics(inside, errors[w], errors[l]))

    def update(self, sums: dict[str, float], count: int) -> None:
        """Nothing adapts."""


@objectives.register("mapo", MapoOptions)
def build(options: MapoOptions, parts: ObjectiveParts) -> Mapo:
    return Mapo(options)
