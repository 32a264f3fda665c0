"""Steps made by hand: a network's output that is chosen, at levels that are chosen."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.process import Prediction, Process, scaled_linear
from pixelkiln.trainer.diffusion.timesteps import draw
from pixelkiln.trainer.diffusion.types import Batch, Rows, Step

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v", "flow", "sample")


def process(prediction: Any) -> Process:
    return Process(prediction, None if prediction == "flow" else scaled_linear())


def step(
    prediction: Any = "epsilon", levels: list[float] | None = None, rows: int = 2, channels: int = 4,
    size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64, roles: Any = None,
    mask: Tensor | None = None, right: bool = False,
) -> Step:  # fmt: skip
    """A step whose ``out`` is a leaf with gradient: random, or the target itself (``right``). Pairs share draws."""
    torch.manual_seed(seed)
    p = process(prediction)
    roles = roles or ["plain"] * rows
    group = torch.arange(len(roles)) // (2 if "loser" in roles else 1)
    clean = torch.randn(len(roles), channels, size, size, dtype=dtype)
    batch = Batch(
        clean, ["a red cat"] * len(roles), torch.zeros(len(roles), 6), Rows(roles, torch.ones(len(roles)), group),
        [f"picture {i}" for i in range(len(roles))], mask=mask,
    )  # fmt: skip
    drawn = draw(batch, seed, 0, p, NoiseOptions())
    if levels is not None:
        drawn = replace(drawn, level=torch.tensor(levels))
    drawn = replace(drawn, noise=drawn.noise.to(dtype), added=drawn.added.to(dtype))
    made = Step(batch, drawn, p.noisy(clean, drawn.added, drawn.level), torch.randn_like(clean), p)
    out = made.target.clone() if right else made.out
    return replace(made, out=out.requires_grad_())


def pairs(*errors: float, weights: list[float] | None = None) -> tuple[Tensor, Step]:
    """Errors winner, loser, winner, loser, ... as a leaf with gradient, and a step with those roles."""
    made = step(rows=len(errors), roles=["winner", "loser"] * (len(errors) // 2), channels=1, size=2)
    if weights is not None:
        made = replace(made, batch=replace(made.batch, rows=replace(made.batch.rows, weight=torch.tensor(weights))))
    return torch.tensor(errors, dtype=torch.float64, requires_grad=True), made


class Linear(nn.Module):
    """A decoder D(z) = A z + b per latent cell, one pixel per cell. ``identity`` leaves 3 channels as they are."""

    def __init__(self, channels: int = 3, gain: float = 1.0, identity: bool = True):
        super().__init__()
        torch.manual_seed(5)
        a = torch.eye(3) if identity else torch.randn(3, channels)
        self.a = nn.Parameter(gain * a.double())
        self.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.einsum("pc,nchw->nphw", self.a, z) + self.b[:, None, None])
