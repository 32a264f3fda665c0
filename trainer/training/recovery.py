"""When losses or gradients stay non-finite: back to the last good state, with a lower learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from . import checkpoint, distributed
from .health import Health
from .session import Session


class Diverged(UserError):
    """The run diverged, and going back did not help: what is in memory is not worth saving."""


@dataclass(frozen=True)
class RollBack:
    """What a return to an earlier state did."""

    step: int
    """Where the run continues."""
    failed: int
    """The last step that the run learned from."""
    lr_factor: float
    """1 where the optimizer finds its own rate."""
    message: str


def roll_back(session: Session, health: Health, at: int, states: Path) -> RollBack:
    """Load the last state from which good steps were taken. Diverged when that cannot be.

    ``at``: steps done; ``states``: the folder of the run's states.
    """
    failed, factor = at - health.streak, session.config.recovery.lr_factor
    why = f"train: {health.streak} steps in a row, from {failed + 1} on, had a non-finite loss or gradient"
    remedy = "lower optimizer.learning_rate, or use bf16 or fp32"
    if not health.may_roll_back:
        again = " again, although the run went back" if health.rolled_back else ""
        raise Diverged(f"{why}{again}; {remedy}, then continue with --resume")
    try:
        tensors, facts = distributed.broadcast(lambda: checkpoint.load_state(states, before=failed))
    except UserError:
        raise Diverged(f"{why}, and there is no state from before; {remedy}") from None
    step, optimization = int(facts["step"]), session.optimization
    scale = optimization.scaler.get_scale()
    session.load_state(tensors, facts)
    if optimization.scaler.is_enabled():
        optimization.scaler.update(min(scale, optimization.scaler.get_scale()))
    lowered = optimization.scale_learning_rate(factor)
    rate = f"{factor:g} times the earlier one" if lowered else "the optimizer's own as before"
    health.streak, health.rolled_back = 0, health.rolled_back + 1
    if session.is_main:
        checkpoint.drop_after(states, step)
    message = (
        f"{why}: the run diverged. Back to step {step}, from where the learning rate is {rate}; if this happens again, "
        "the run stops"
    )
    return RollBack(step, failed, factor if lowered else 1.0, message)
