"""What every loss term has: a weight (a number, or balanced automatically), a probability per step, a gate of levels.

A term is a loss with an objective. The step applies all three; a loss only measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..dense.header import Task
from ..diffusion.process import Process
from ..diffusion.types import Draw, Loss, Objective, Role, Step
from ..errors import UserError
from .options import TermOptions


@dataclass(frozen=True)
class LossParts:
    """What a loss may be built from."""

    process: Process
    decoder: Any = None
    """A ``decode.Decoder``; needed by terms whose options have ``decodes``."""
    in_x0: bool = False
    """Whether a latent loss measures the clean latents that the output implies, instead of the output itself."""
    task: Task | None = None
    """What a dense run predicts; None of other runs."""
    tiny: str | None = None
    """A tiny autoencoder that was found for the model, where there is one."""


@dataclass(frozen=True)
class Estimate:
    """Errors that stand in for a term's own, which cost more, and a control variate for their bias.

    The objective's value is that of the estimated errors, and for a share of the rows or pairs also the difference
    between its values of the own and of the estimated errors, divided by the share. Its gradient has the mean of the
    own errors' gradient, whatever the objective is.
    """

    errors: Loss
    near: Loss
    """Estimated errors of what the own errors of a draw look at: a window, or the whole picture."""
    share: float
    """Of the rows or pairs that are corrected; 0 leaves the estimate as it is."""


@dataclass(frozen=True)
class Term:
    """A loss, the objective that scores its errors, and when and how much it counts."""

    name: str
    loss: Loss
    objective: Objective
    options: TermOptions
    estimate: Estimate | None = None

    def active(self, draw: Draw, process: Process, roles: Sequence[Role]) -> Tensor:
        """[B] bool, in the host's memory: the rows that this term counts for. A pair shares its draw, so it is never
        split."""
        level, coin = draw.on_host()
        active = counts(self.options, level, process) & (coin < self.options.probability)
        if self.options.roles:
            active = active & torch.tensor([role in self.options.roles for role in roles])
        return active

    def measures(self, draw: Draw, process: Process, roles: Sequence[Role]) -> list[tuple[str, Loss, Tensor]]:
        """What is measured in a step: its key in ``Errors``, the loss, and its rows [B] bool. The term's own name is
        the key of the errors that are reported; those of a correction are ``decoded`` and ``near``."""
        active, estimate = self.active(draw, process, roles), self.estimate
        if estimate is None:
            return [(self.name, self.loss, active)]
        corrected = active & (draw.correction_on_host() < estimate.share)
        return [
            (self.name, estimate.errors, active),
            (self.decoded, self.loss, corrected),
            (self.near, estimate.near, corrected),
        ]

    @property
    def decoded(self) -> str:
        return f"{self.name}/decoded"

    @property
    def near(self) -> str:
        return f"{self.name}/near"


def measures(
    terms: Iterable[Term], draw: Draw, process: Process, roles: Sequence[Role]
) -> list[tuple[str, Loss, Tensor]]:
    """The ``Term.measures`` of all terms."""
    return [one for term in terms for one in term.measures(draw, process, roles)]


def counts(options: TermOptions, level: Tensor, process: Process) -> Tensor:
    """[B] bool: the levels that the gate lets through."""
    place = level / (1 if process.is_flow else process.steps)
    return (place >= options.min_level) & ((place < options.max_level) | (options.max_level == 1))


class Balance:
    """Automatic weights: ratio * mean of the weighted terms with a number / mean of this term, both running means.

    It formalises how the pixel-space paper chose lambda = 8 "to balance magnitudes" (arXiv 2409.17565, section 4),
    which depends on the model. Weights are plain numbers, 0 until both are measured; ``state`` is saved with the run.
    Where the terms with a number have no error at all, as on maps without a whole latent cell, it is the ratio.
    """

    def __init__(self, terms: Iterable[Term], decay: float = 0.99):
        self.options = {term.name: term.options for term in terms}
        self.decay = decay
        self.state: dict[str, float] = {}
        if self.options and all(o.weight == "auto" for o in self.options.values()):
            names = ", ".join(f"loss.{name}.weight" for name in self.options)
            raise UserError(f"{names}: auto balances against a term with a number; give one of them a number")

    def weight(self, name: str) -> float:
        own = self.options[name]
        if own.weight != "auto":
            return own.weight
        size, known = self._mean(name), [(n, o.weight) for n, o in self.options.items() if o.weight != "auto"]
        if size <= 0 or not any(self.state.get(f"{n}.weight") for n, _ in known):
            return 0.0
        others = sum(weight * self._mean(n) for n, weight in known)
        return own.auto_ratio * (others / size if others > 0 else 1.0)

    def update(self, sums: dict[str, float], counts: dict[str, int]) -> None:
        """Once per optimizer step: sum and number of each term's values, over all ranks. Used from the next step on."""
        for name, count in counts.items():
            value = sums[name] / count if count else float("nan")
            if value - value == 0:  # finite
                for key, new in ((f"{name}.sum", value), (f"{name}.weight", 1.0)):
                    self.state[key] = self.decay * self.state.get(key, 0.0) + (1 - self.decay) * new

    def _mean(self, name: str) -> float:
        weight = self.state.get(f"{name}.weight", 0.0)
        return self.state[f"{name}.sum"] / weight if weight else 0.0


@dataclass
class LossTerms:
    """The terms of a run with their automatic weights, and everything of them that adapts."""

    terms: list[Term]
    balance: Balance

    @property
    def needs_reference(self) -> bool:
        return any(term.objective.needs_reference for term in self.terms)

    def exact(self) -> LossTerms:
        """The same terms, measured without estimates."""
        return LossTerms([replace(term, estimate=None) for term in self.terms], self.balance)

    def weight(self, name: str) -> float:
        """The weight of the term of this name in the loss."""
        return self.balance.weight(name)

    def update(self, sums: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Move automatic weights and betas by one step's sums over all processes; used from the next step on."""
        values = {t.name: sums[f"{t.name}/value"] for t in self.terms if f"{t.name}/value" in sums}
        self.balance.update(values, {name: counts[f"{name}/value"] for name in values})
        for term in self.terms:
            if term.name in values:
                own = {k.partition("/")[2]: v for k, v in sums.items() if k.startswith(f"{term.name}/")}
                term.objective.update(own, counts[f"{term.name}/value"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "objectives": {t.name: t.objective.state for t in self.terms},
            "balance": self.balance.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what has adapted; terms that the state does not know begin without."""
        for term in self.terms:
            term.objective.state.update(state["objectives"].get(term.name, {}))
        self.balance.state.update(state["balance"])


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 where it is that already: errors are never computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def residual(step: Step, in_x0: bool = False) -> Tensor:
    """[B, C, h, w] output minus target; ``in_x0``: as far apart as the clean latents that they imply."""
    d = at_least_float32(step.out) - at_least_float32(step.target)
    return d * step.process.gain(step.draw.level, "x0").to(d).reshape(-1, 1, 1, 1) if in_x0 else d


def mask_at(mask: Tensor | None, size: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor | None:
    """[B, 1, H, W] -> [B, 1, *size] by area."""
    if mask is None:
        return None
    return functional.interpolate(mask.to(like), tuple(size), mode="area")


def mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """[B, C, h, w] -> [B]: times the mask, then the mean over all of it (not over the mask's area, as kohya)."""
    small = mask_at(mask, values.shape[-2:], values)
    return (values if small is None else values * small).flatten(1).mean(1)
