"""Diffusion-DPO (arXiv 2311.12908, eq. 14 with the factor 1/2 of its released code) for epsilon, v and flow.

inside = -beta / 2 ((winner - its reference) - (loser - its reference)); the value is -log sigmoid(inside), per pair and
before any mean. A flow takes a constant beta (arXiv 2501.13918, table 3). Optional: DPOP's penalty (arXiv 2402.13228)
when the winner gets worse than the reference, label smoothing, a supervised anchor, an automatic beta.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Step
from ..registry import objectives
from .common import (
    SATURATED,
    ObjectiveParts,
    against,
    average,
    averaged,
    dimensions,
    log_loss,
    weighted,
)  # fmt: skip
from .options import DpoOptions

AIM = 0.2
"""Automatic beta: the value that the average pair's sigmoid is brought to."""


class Dpo:
    needs_reference = True
    valued = ("winner",)

    def __init__(self, options: DpoOptions, parts: ObjectiveParts):
        self.options, self.parts = options, parts
        self.state: dict[str, float] = {}

    def beta(self, step: Step) -> float:
        """Automatic: -2 logit(aim) / running |margin|, within [0.001, 1] for sums: times the dimensions for means."""
        if self.options.beta != "auto":
            return self.options.beta or self.parts.beta
        size = averaged(self.state, "margin_size")
        if not size:
            return self.parts.beta
        count = dimensions(step, self.parts)
        return min(max(-2 * math.log(AIM / (1 - AIM)) / size, 1e-3 * count), 1.0 * count)

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput:
        o, beta = self.options, self.beta(step)
        winner, loser, error, metrics = against(errors, reference, step)
        inside = -0.5 * beta * (winner - loser)
        values = log_loss(inside - 0.5 * beta * o.dpop * winner.clamp(min=0), o.label_smoothing) + o.sft_weight * error
        metrics |= {
            "margin": inside.detach(),
            "saturated": (inside.detach() > SATURATED).float(),
            "margin_size": (winner - loser).detach().abs(),
        }
        return weighted(values, step, metrics)

    def update(self, sums: dict[str, float], count: int) -> None:
        if self.options.beta == "auto" and count and sums["margin_size"] > 0:
            average(self.state, "margin_size", sums["margin_size"] / count, 0.99)


@objectives.register("dpo", DpoOptions)
def build(options: DpoOptions, parts: ObjectiveParts) -> Dpo:
    return Dpo(options, parts)
