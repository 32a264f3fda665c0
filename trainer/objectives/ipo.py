"""IPO (arXiv 2310.12036, eq. 17) on denoising errors: the margin over the reference should reach 1 / (2 tau)."""

from __future__ import annotations

from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Step
from ..registry import objectives
from .common import ObjectiveParts, against, weighted
from .options import IpoOptions


class Ipo:
    needs_reference = True
    valued = ("winner",)

    def __init__(self, options: IpoOptions):
        self.options = options
        self.state: dict[str, float] = {}

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput:
        winner, loser, error, metrics = against(errors, reference, step)
        aim = 1 / (2 * self.options.tau)
        values = (-(winner - loser) - aim) ** 2 + self.options.sft_weight * error
        metrics["saturated"] = ((loser - winner).detach() > aim).float()
        return weighted(values, step, metrics)

    def update(self, sums: dict[str, float], count: int) -> None:
        """Nothing adapts."""


@objectives.register("ipo", IpoOptions)
def build(options: IpoOptions, parts: ObjectiveParts) -> Ipo:
    return Ipo(options)
