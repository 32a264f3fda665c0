"""SimPO without a reference: -log sigmoid(-beta (winner - loser) - gamma).

With gamma = 0 it is the preference loss of the pixel-space paper (arXiv 2409.17565, eq. 5 and 6), once per term: the
errors of the output and of the decoded pictures get a log-sigmoid each, and those are added. Gamma: arXiv 2405.14734.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Step
from ..registry import objectives
from .common import ObjectiveParts, log_loss, pair_metrics, weighted
from .options import SimpoOptions

FIRST = 100.0
"""Beta before anything is measured."""
PAIRS = 100
"""Pairs that an automatic beta is measured on."""


class Simpo:
    needs_reference = False
    valued = ("winner",)

    def __init__(self, options: SimpoOptions):
        self.options = options
        self.state: dict[str, float] = {}

    @property
    def beta(self) -> float:
        """Automatic: 1 / the geometric mean of |margin|, which like a median does not mind a few large ones."""
        if self.options.beta != "auto":
            return self.options.beta
        pairs = self.state.get("pairs", 0.0)
        return math.exp(-self.state["log_margin"] / pairs) if pairs else FIRST

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput:
        w, l = (rows.to(errors.device) for rows in step.batch.rows.pairs())  # noqa: E741
        margin = errors[l] - errors[w]
        inside = self.beta * margin
        values = log_loss(inside - self.options.gamma) + self.options.sft_weight * errors[w]
        metrics = pair_metrics(inside, errors[w], errors[l])
        metrics["log_margin"] = margin.detach().abs().clamp(min=1e-8).log()
        return weighted(values, step, metrics)

    def update(self, sums: dict[str, float], count: int) -> None:
        if self.options.beta == "auto" and self.state.get("pairs", 0) < PAIRS and math.isfinite(sums["log_margin"]):
            for name, value in (("log_margin", sums["log_margin"]), ("pairs", float(count))):
                self.state[name] = self.state.get(name, 0.0) + value


@objectives.register("simpo", SimpoOptions)
def build(options: SimpoOptions, parts: ObjectiveParts) -> Simpo:
    return Simpo(options)
