"""Supervised training: the error itself, weighted by noise level if wished.

The weights are defined for the error of the network's output, so they apply to terms of that kind only; a term that
decodes has its own gate and gain_norm. On pairs and ratings only what is liked is learned from.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.process import Process, widest
from ..diffusion.types import ObjectiveOutput, Step
from ..errors import UserError
from ..registry import objectives
from .common import ObjectiveParts
from .options import SftOptions

Weighting = Callable[[Tensor], Tensor]
"""Levels [B] -> weights [B] in ``widest``."""


def weightings(options: SftOptions, process: Process) -> list[Weighting]:
    """The weights that are switched on, by kohya's formulas. Raises UserError where one does not apply."""
    snr, made = process.snr, list[Weighting]()

    def wanted(name: str, kinds: tuple[str, ...]) -> bool:
        value = getattr(options, name)
        if value in (None, False, "none"):
            return False
        if process.prediction not in kinds:
            raise UserError(
                f"objective.{name}: it is for models that predict {' or '.join(kinds)}, this one predicts "
                f"{process.prediction}; leave it out"
            )
        return True

    def capped(level: Tensor) -> Tensor:
        return snr(level).clamp(max=1000)

    if (gamma := options.min_snr_gamma) is not None:
        # min(SNR, gamma) in x0 space, so times |x0 error|^2 / |output error|^2: 1 / SNR, 1 / (SNR + 1), sigma^2
        made.append(lambda level: snr(level).clamp(max=gamma) * process.gain(level, "x0") ** 2)
    if wanted("debiased_estimation_loss", ("epsilon", "v")):
        v = process.prediction == "v"
        made.append(lambda level: 1 / (capped(level) + 1) if v else capped(level).rsqrt())
    if wanted("scale_v_pred_loss_like_noise_pred", ("v",)):
        made.append(lambda level: capped(level) / (capped(level) + 1))
    if wanted("v_pred_like_loss", ("epsilon",)):
        k = options.v_pred_like_loss or 0.0
        made.append(lambda level: 1 + k * (capped(level) + 1) / capped(level))
    if wanted("flow_weighting", ("flow",)):
        made += {"x0": [], "cosmap": [_cosmap], "sigma_sqrt": [_sigma_sqrt]}[options.flow_weighting]
    return made


def _cosmap(level: Tensor) -> Tensor:
    sigma = level.to(widest(level.device))
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def _sigma_sqrt(level: Tensor) -> Tensor:
    return level.to(widest(level.device)).clamp(min=1e-6) ** -2


RECONSTRUCTION = "reconstruction"
"""Rows of a dense run that belong to a sample which is counted already: they add to the loss, not to the samples."""


def _apart(errors: Tensor, step: Step) -> dict[str, Tensor]:
    """The errors of maps and of reconstructed pictures, each by itself."""
    both = {"map": list[int](), "picture": list[int]()}
    for i, role in enumerate(step.batch.rows.role):
        both["picture" if role == RECONSTRUCTION else "map"].append(i)
    return {name: errors[torch.tensor(rows)].detach() for name, rows in both.items() if rows}


class Sft:
    needs_reference = False
    valued = ("plain", "winner", "liked")

    def __init__(self, weights: list[Weighting]):
        self.weights = weights
        self.state: dict[str, float] = {}

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput:
        values = errors * step.batch.rows.weight.to(errors)
        for weight in self.weights:
            values = values * weight(step.draw.level).to(errors)
        liked = [i for i, role in enumerate(step.batch.rows.role) if role in (*self.valued, RECONSTRUCTION)]
        metrics = _apart(errors, step) if RECONSTRUCTION in step.batch.rows.role else {}
        own = values if len(liked) == len(values) else values[torch.tensor(liked, dtype=torch.long)]
        return ObjectiveOutput(own, metrics)

    def update(self, sums: dict[str, float], count: int) -> None:
        """Nothing adapts."""


@objectives.register("sft", SftOptions)
def build(options: SftOptions, parts: ObjectiveParts) -> Sft:
    made = weightings(options, parts.process)  # also checks them
    return Sft([] if parts.decodes else made)
