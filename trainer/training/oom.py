"""When memory runs out during a run: the next smaller way to do the same step, in the order of ``remedies``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..memory import apply, device
from . import remedies
from .build import make_terms
from .remedies import Offer, Phase, Remedy
from .score import References
from .session import Parts

if TYPE_CHECKING:
    from ..config import Config
    from .loop import Loop

OFFERS: tuple[Offer, ...] = (
    remedies.decode_one, remedies.checkpointing, remedies.offload, remedies.micro_batches, remedies.one_by_one,
    remedies.midcrop, remedies.window,
)  # fmt: skip
"""Those that a run can take up between two tries of a step, those that keep the numbers first."""
SHORT = Phase(remedies.STEP, dict.fromkeys(remedies.PARTS, 1))


def fewer_blocks(p: Parts) -> Remedy | None:
    """Half of the blocks that streaming had left on the card."""
    if p.streamer is None or not p.streamer.resident:
        return None
    count = p.streamer.resident // 2
    label = f"{count} of {len(p.streamer.blocks)} blocks on the card"
    return Remedy(label, "more is copied in every step", True, {"memory.resident_blocks": count})


class Ladder:
    """The levers that are left to a running training."""

    def __init__(self, config: Config):
        self.config = config
        """As if the run had been started with what was taken so far."""
        self.split = 1
        """Into how many parts a micro-batch is divided."""

    def down(self, p: Parts) -> Remedy | None:
        """Take the next lever; None when there is none left."""
        found = fewer_blocks(p) or next((remedy for offer in OFFERS if (remedy := offer(self.config, SHORT))), None)
        if found:
            self._apply(found, p)
        return found

    def _apply(self, found: Remedy, p: Parts) -> None:
        before, self.config = self.config, self.config.changed(found.changes)
        self.split *= before.run.batch // self.config.run.batch
        p.config = p.config.model_copy(update={"memory": self.config.memory, "loss": self.config.loss})
        own, was = self.config.memory, before.memory
        if p.streamer and isinstance(own.resident_blocks, int) and own.resident_blocks != was.resident_blocks:
            p.streamer.keep(own.resident_blocks)
        if (own.gradient_checkpointing, own.offload_checkpoints) != (
            was.gradient_checkpointing,
            was.offload_checkpoints,
        ):
            for block in p.family.blocks:
                vars(block).pop("forward", None)
            apply.shape(own, p.family.spec, p.family.denoiser, Path(p.config.run.out) / "cache" / "compiled")
        if self.config.loss != before.loss:
            _renew_terms(p)


def _renew_terms(p: Parts) -> None:
    """The terms by the options as they are now, with what has adapted so far."""
    old, balance, watch, p.terms = p.terms, p.balance.state, p.watch, []
    make_terms(p, None, lambda line: None)
    for term, was in zip(p.terms, old, strict=True):
        term.objective.state.update(was.objective.state)
    p.balance.state.update(balance)
    p.watch = watch


def smaller(loop: Loop, said: str) -> None:
    """Memory ran out in a step: take the next lever, and say it. ValueError where none is left."""
    p = loop.parts
    p.optimizer.zero_grad(set_to_none=True)
    device.release(p.device)
    taken = loop.ladder.down(p)
    if taken is None:
        raise UserError(
            f"train: out of memory at step {loop.at + 1}, and nothing smaller is left to try ({said}); lower "
            "data.resolution or adapter.rank, or see what `check --fit` proposes, then go on with --resume"
        )
    same = "the numbers stay the same" if taken.exact else "from here on not the same numbers"
    loop.writer.event("oom", loop.at, did=taken.label, exact=taken.exact, options=taken.changes, message=said)
    loop.writer.warning(
        f"step {loop.at + 1}: out of memory ({said}); repeated with {taken.label} ({taken.cost}; {same})"
    )
    if loop.references and not taken.exact:
        loop.references = References(p)
    loop.pulse.restart()


def settle(loop: Loop) -> None:
    """After two steps of this process the room that it needs is known: what is left takes in streamed blocks."""
    p, options = loop.parts, loop.parts.config.memory
    if p.streamer and options.resident_blocks == "auto" and len(loop.times) == 2:
        count = p.streamer.fit(device.spare_bytes(p.device, options.limit_gb))
        loop.writer.say(f"streaming: {count} of {len(p.streamer.blocks)} blocks stay on the card from now on")
