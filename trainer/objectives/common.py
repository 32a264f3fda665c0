"""What preference objectives share: their options, how pairs are read, what is logged, running means."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..diffusion.process import Process
from ..diffusion.types import ObjectiveOutput, Step

SATURATED = 4.0
"""Beyond this argument the log-sigmoid's slope is below 2 %: the pair teaches nothing more."""


@dataclass(frozen=True)
class ObjectiveParts:
    """What an objective may be built from. One objective is built per loss term, so each has its own state."""

    process: Process
    decodes: bool = False
    """Whether the term's errors are of decoded pictures (or features) instead of the network's output."""
    beta: float = 2000.0
    """DPO's default beta for this family at mean reduction: 2000 for SD1.5, 5000 for SDXL, 100 for SD3."""


def dimensions(step: Step, parts: ObjectiveParts) -> int:
    """Numbers per sample that a mean error averages: converts mean reduction into the papers' sums."""
    latent = step.out[0].numel()
    return latent // step.out.shape[1] * 3 * 64 if parts.decodes else latent


def pair_metrics(inside: Tensor, winner: Tensor, loser: Tensor) -> dict[str, Tensor]:
    """Detached [pairs]: ``inside`` is the log-sigmoid's argument, positive where the pair is in the right order."""
    inside = inside.detach()
    return {
        "accuracy": (inside > 0).float() + 0.5 * (inside == 0).float(),
        "margin": inside,
        "saturated": (inside > SATURATED).float(),
        "winner": winner.detach(),
        "loser": loser.detach(),
    }


def against(errors: Tensor, reference: Tensor | None, step: Step) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """(winner's change, loser's change, winner's error, metrics), each [pairs]: change is error minus the reference's.

    winner_rise is the winner's change as a share of its reference error: the guard rail to watch.
    """
    assert reference is not None, "this objective needs the reference's errors"
    w, l = (rows.to(errors.device) for rows in step.batch.rows.pairs())  # noqa: E741
    change = errors - reference
    metrics = pair_metrics(change[l] - change[w], errors[w], errors[l]) | {
        "winner_change": change[w].detach(),
        "loser_change": change[l].detach(),
        "winner_rise": (change[w] / reference[w].clamp(min=1e-12)).detach(),
    }
    return change[w], change[l], errors[w], metrics


def pair_weights(step: Step, errors: Tensor) -> Tensor:
    """[pairs]: the winner's weight counts for its pair."""
    return step.batch.rows.weight[step.batch.rows.pairs()[0].to(step.batch.rows.weight.device)].to(errors)


def weighted(values: Tensor, step: Step, metrics: dict[str, Tensor]) -> ObjectiveOutput:
    return ObjectiveOutput(values * pair_weights(step, values), metrics)


def log_loss(inside: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(inside), with a share ``smoothing`` of the labels taken as swapped."""
    return -(1 - smoothing) * logsigmoid(inside) - smoothing * logsigmoid(-inside)


def average(state: dict[str, float], name: str, value: float, decay: float) -> None:
    """Move the running mean ``name`` by one value; a value that is not finite is left out."""
    if value - value == 0:
        state[name] = decay * state.get(name, 0.0) + (1 - decay) * value
        state[f"{name}.weight"] = decay * state.get(f"{name}.weight", 0.0) + 1 - decay


def averaged(state: dict[str, float], name: str) -> float | None:
    """The running mean, without the pull of its start at 0; None before the first value."""
    weight = state.get(f"{name}.weight", 0.0)
    return state[name] / weight if weight else None
