"""Diffusion-DPO (arXiv 2311.12908, eq. 14 with the factor 1/2 of its released code) for epsilon, v and flow.

inside = -beta / 2 ((winner - its reference) - (loser - its reference)); the value is -log sigmoid(inside), per pair and
before any mean. A flow takes a constant beta (arXiv 2501.13918, table 3). Optional: DPOP's penalty (arXiv 2402.13228)
when the winner gets worse than the reference, label smoothing, a supervised anchor, an automatic beta.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Step
from ..registry import objectives, option
from .common import (
    SATURATED,
    Data,
    ObjectiveParts,
    Positive,
    ReferenceOptions,
    SftAnchor,
    against,
    average,
    averaged,
    dimensions,
    log_loss,
    weighted,
)  # fmt: skip

AIM = 0.2
"""Automatic beta: the value that the average pair's sigmoid is brought to."""


class DpoOptions(ReferenceOptions, SftAnchor):
    title: ClassVar[str] = "Pairs (DPO): prefer the chosen picture, stay near the base"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["dpo"] = "dpo"
    """Preference pairs against a reference."""
    beta: Positive | Literal["auto"] | None = option(None, label="Beta")
    """How close training stays to the reference; larger is closer. none: the family's own (SD1.5 2000, SDXL 5000, SD3
    100). auto: follows the running size of the margins."""
    dpop: float = option(0.0, label="DPOP penalty", ge=0)
    """Weight of the penalty on winners that get worse than the reference; try 1 to 5 when winners get worse."""
    label_smoothing: float = option(0.0, label="Label smoothing", ge=0, lt=0.5)
    """Share of pairs that are assumed to be labelled the wrong way round; 0.1 for noisy votes."""


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
