"""Diffusion-KTO (arXiv 2404.04465, sigmoid utility): thumbs up and down on single pictures, no pairs needed.

With g = reference error - error, a picture's value is weight * (1 - sigmoid(y beta (g - KL))), y = 1 for liked and -1
for disliked. KL = max(0, mean g) is a number: the running mean over past steps and all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.types import ObjectiveOutput, Role, Step
from ..registry import objectives
from .common import SATURATED, ObjectiveParts, average, averaged
from .options import KtoOptions

SIDES: dict[Role, int] = {"liked": 1, "winner": 1, "disliked": -1, "loser": -1}


class Kto:
    needs_reference = True
    valued = tuple(SIDES)

    def __init__(self, options: KtoOptions):
        self.options = options
        self.state: dict[str, float] = {}

    @property
    def kl(self) -> float:
        return max(0.0, averaged(self.state, "reward") or 0.0)

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput:
        assert reference is not None, "this objective needs the reference's errors"
        rows = step.batch.rows
        assert set(rows.role) <= set(SIDES), "this objective learns from ratings or pairs"
        side = torch.tensor([SIDES[role] for role in rows.role]).to(errors)
        o, g, liked = self.options, reference - errors, side > 0
        inside = side * o.beta * (g - self.kl)
        weight = rows.weight.to(errors) * torch.where(liked, o.liked_weight, o.disliked_weight)
        seen = inside.detach()
        return ObjectiveOutput(
            weight * torch.sigmoid(-inside),
            {
                "accuracy": (seen > 0).float() + 0.5 * (seen == 0).float(),
                "margin": seen,
                "saturated": (seen > SATURATED).float(),
                "reward": g.detach(),
                "winner": errors[liked].detach(),
                "winner_change": -g[liked].detach(),
                "loser": errors[~liked].detach(),
                "loser_change": -g[~liked].detach(),
            },
        )

    def update(self, sums: dict[str, float], count: int) -> None:
        if count:
            average(self.state, "reward", sums["reward"] / count, 0.9)


@objectives.register("kto", KtoOptions)
def build(options: KtoOptions, parts: ObjectiveParts) -> Kto:
    return Kto(options)
