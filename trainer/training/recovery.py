"""When a run fails: its steps are saved, it goes back to a good state, or another process saves them for a dead one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..errors import UserError
from ..runs.control import lock
from . import checkpoint, distributed
from .progress_writer import Writer

if TYPE_CHECKING:
    from .loop import Loop

RESCUED = (OSError, RuntimeError, ValueError)
"""Errors after which the steps taken so far are saved."""


class Diverged(UserError):
    """The numbers ran away, and going back did not help: what is in memory is not worth saving."""


@contextmanager
def saving(loop: Loop) -> Iterator[None]:
    """Around the training: an error that ends it does not take the steps with it."""
    try:
        yield
    except Diverged:
        raise
    except RESCUED:
        if loop.parts.is_main:
            save(loop)
        raise


def save(loop: Loop) -> None:
    """Save the steps taken, though the run ends by an error; say where it can go on."""
    if loop.torn:
        return
    try:
        if not checkpoint.state_path(loop.folder.state, loop.at).exists():
            loop.write_state()
        loop.writer.say(f"the state of step {loop.at} is saved; --resume goes on from there")
    except RESCUED as error:
        loop.writer.say(f"the state of step {loop.at} could not be saved: {error}")


def take_over(loop: Loop, error: distributed.Lost) -> bool:
    """As one of the processes that write nothing: save what the first, if it is dead, cannot save any more. Whether it
    is dead, or its folder out of reach; if not, it speaks for all."""
    if not loop.folder.path.is_dir():
        return True
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(loop.folder.path))
        except UserError:
            return False
        loop.writer = stack.enter_context(Writer(loop.folder.path))
        loop.writer.at, loop.writer.total = loop.at, loop.parts.total
        save(loop)
        loop.writer.fail(error)
    return True


def roll_back(loop: Loop) -> None:
    """Back to the last state from which good steps were taken, with a lower rate. Diverged when that cannot be."""
    p, health = loop.parts, loop.health
    failed, factor = loop.at - health.streak, p.config.heal.rate_factor
    why = f"train: {health.streak} steps in a row, from {failed + 1} on, gave no number (a loss or gradient of NaN)"
    remedy = "lower optimizer.learning_rate, or use bf16 or fp32"
    if not health.may_roll_back:
        again = " again, although the run went back" if health.rolled_back else ""
        raise Diverged(f"{why}{again}; {remedy}, then go on with --resume")
    try:
        tensors, facts = distributed.of_the_first(lambda: checkpoint.load_state(loop.folder.state, before=failed))
    except UserError:
        raise Diverged(f"{why}, and there is no state from before; {remedy}") from None
    loop.at = int(facts["step"])
    scale = p.scaler.get_scale()
    p.load_state(tensors, facts)
    if p.scaler.is_enabled():
        p.scaler.update(min(scale, p.scaler.get_scale()))
    lowered = p.lower_rate(factor)
    rate = f"{factor:g} times what it was" if lowered else "the optimizer's own as before"
    health.streak, health.rolled_back = 0, health.rolled_back + 1
    if p.is_main:
        checkpoint.drop_after(loop.folder.state, loop.at)
    loop.writer.warning(
        f"{why}: the weights have run away. Back to step {loop.at}, from where the learning rate is {rate}; if this "
        "comes back, the run stops"
    )
    loop.writer.event("rollback", loop.at, failed=failed + 1, rate_factor=factor if lowered else 1.0)
    loop.writer.rewind(loop.at)
