"""The out-of-memory fallback: the next smaller way to do the same step, in the order of ``remedies``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..memory import apply
from ..memory import device as memory
from . import remedies
from .build import build_terms, compile_cache
from .remedies import Offer, Phase, Remedy
from .session import Session
from .surrogates import attach

if TYPE_CHECKING:
    from ..config import Config

OFFERS: tuple[Offer, ...] = (
    remedies.decode_one, remedies.checkpointing, remedies.offload, remedies.micro_batches, remedies.one_by_one,
    remedies.midcrop, remedies.window,
)  # fmt: skip
"""Those that a run can take between two tries of a step, those that keep the numbers first."""
SHORT = Phase(remedies.STEP, dict.fromkeys(remedies.PARTS, 1))


class OutOfMemoryFallback:
    """The remedies that are left to a running training."""

    def __init__(self, config: Config):
        self.config = config
        """As if the run had been started with what was taken so far."""
        self.split = 1
        """Into how many parts a micro-batch is divided."""

    def take_next(self, session: Session) -> Remedy | None:
        """Apply the next remedy to the session; None when none is left."""
        offers = (remedy for offer in OFFERS if (remedy := offer(self.config, SHORT)))
        remedy = fewer_blocks(session) or next(offers, None)
        if remedy:
            self._apply(remedy, session)
        return remedy

    def _apply(self, remedy: Remedy, session: Session) -> None:
        before, self.config = self.config, self.config.changed(remedy.changes)
        self.split *= before.run.batch // self.config.run.batch
        session.config = session.config.model_copy(update={"memory": self.config.memory, "loss": self.config.loss})
        model, now, was = session.model, self.config.memory, before.memory
        if model.streamer and isinstance(now.blocks_on_gpu, int) and now.blocks_on_gpu != was.blocks_on_gpu:
            model.streamer.keep(now.blocks_on_gpu)
        if _recomputed(now) != _recomputed(was):
            for block in model.family.blocks:
                vars(block).pop("forward", None)
            apply.set_up_blocks(now, model.family.spec, model.family.denoiser, compile_cache(session.config))
        if self.config.loss != before.loss:
            adapted = session.terms.state_dict()
            session.terms = build_terms(session.config, model, None, lambda line: None)
            session.terms.load_state_dict(adapted)
            attach(session)


def _recomputed(own: memory.MemoryOptions) -> tuple[bool, float, bool]:
    return own.gradient_checkpointing, own.checkpointing_fraction, own.cpu_offload_checkpointing


def fewer_blocks(session: Session) -> Remedy | None:
    """Half of the blocks that streaming had left on the GPU."""
    streamer = session.model.streamer
    if streamer is None or not streamer.resident:
        return None
    count = streamer.resident // 2
    label = f"{count} of {len(streamer.blocks)} blocks on the GPU"
    return Remedy(label, "more is copied in every step", True, {"memory.blocks_on_gpu": count})


def fill_with_blocks(session: Session) -> str | None:
    """Once the memory that a step needs is known, move streamed blocks to the GPU as far as they fit; returns a line
    for the log. None where blocks are not streamed by ``auto``."""
    streamer, options = session.model.streamer, session.config.memory
    if not streamer or options.blocks_on_gpu != "auto":
        return None
    count = streamer.fit(memory.spare_bytes(session.model.device, options.limit_gb))
    return f"streaming: {count} of {len(streamer.blocks)} blocks stay on the GPU from now on"
