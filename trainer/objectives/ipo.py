"""IPO (arXiv 2310.12036, eq. 17) on denoising errors: the margin over the reference should reach 1 / (2 tau)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Step
from ..registry import objectives, option
from .common import Data, ObjectiveParts, ReferenceOptions, SftAnchor, against, weighted


class IpoOptions(ReferenceOptions, SftAnchor):
    title: ClassVar[str] = "Pairs (IPO): like DPO, with a bounded margin"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["ipo"] = "ipo"
    """Preference pairs against a reference, with a target margin."""
    tau: float = option(250.0, label="Tau", gt=0)
    """The margin aimed at is 1 / (2 tau), in units of the error. Errors change by about 0.001, so 100 to 500."""


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
