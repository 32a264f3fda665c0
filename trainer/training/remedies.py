"""What makes a run smaller, cheapest first: for ``check`` before it starts, and the same order when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..losses.options import DecodeOptions
from ..losses.pixel import BY_SIZE
from ..optimizers.names import short

if TYPE_CHECKING:
    from ..config import Config


PARTS = ("weights", "adapter", "optimizer", "text encoders", "autoencoder", "activations", "decoder", "workspace")
STEP = "training step"
CACHING = ("encoding captions", "encoding pictures")
WHOLE = ("full", *BY_SIZE)
"""Plans that may decode whole pictures."""
CUT = ("midcrop", "window", *BY_SIZE)
"""Plans that may decode windows."""
WINDOW, SMALLEST_SIDE = 128, 256
"""Pixels: how small windows and pictures are made at most."""


@dataclass(frozen=True)
class Phase:
    """A part of the run, and what is on the card at its peak, in bytes by part."""

    name: str
    parts: dict[str, int]
    t5: bool = False
    """Whether T5 is among the text encoders there."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Remedy:
    """Options to set."""

    label: str
    cost: str
    exact: bool
    """Whether the run trains the same, up to rounding."""
    changes: dict[str, Any]


Offer: TypeAlias = "Callable[[Config, Phase], Remedy | None]"
"""A change for a configuration whose memory is short in a phase; None when there is nothing to gain here (any more)."""


def ladder() -> list[Offer]:
    """All offers, cheapest first. Each is asked again until it gives none."""
    return [
        t5_on_cpu, small_previews, decode_one, checkpointing, micro_batches, one_by_one, offload, eight_bit, fp8_text,
        fp8, streaming, midcrop, window, nf4, resolution,
    ]  # fmt: skip


def t5_on_cpu(config: Config, worst: Phase) -> Remedy | None:
    if not worst.t5 or _trains_t5(config):
        return None
    return Remedy("T5 on the CPU", "captions are encoded slowly, once", True, {"model.t5_on_cpu": True})


def _trains_t5(config: Config) -> bool:
    wanted = config.adapter.text_encoders
    return isinstance(wanted, list) and "t5" in wanted


def small_previews(config: Config, worst: Phase) -> Remedy | None:
    if worst.name != "previews" or (config.sample.width or 1024) <= 512:
        return None
    return Remedy("previews of 512 pixels", "smaller previews", True, {"sample.width": 512, "sample.height": 512})


def decode_one(config: Config, worst: Phase) -> Remedy | None:
    changes = {f"loss.{n}.decode_batch": 1 for n, o in _decoding(config) if o.decode_batch > 1}
    if not changes or not worst.parts["decoder"]:
        return None
    return Remedy("decode one picture at a time", "a little slower", True, changes)


def checkpointing(config: Config, worst: Phase) -> Remedy | None:
    own = config.memory
    if worst.name != STEP or (own.gradient_checkpointing and own.checkpointing_fraction == 1):
        return None
    if own.gradient_checkpointing:
        changes = {"memory.checkpointing_fraction": 1.0}
        return Remedy("gradient checkpointing on all blocks", "steps somewhat slower", True, changes)
    changes = {"memory.gradient_checkpointing": True}
    return Remedy("gradient checkpointing", "steps about a third slower", True, changes)


def micro_batches(config: Config, worst: Phase) -> Remedy | None:
    run = config.run
    if run.batch == 1 or worst.name not in (STEP, "validation"):
        return None
    divisor = next(d for d in range(2, run.batch + 1) if run.batch % d == 0)
    batch, accumulation = run.batch // divisor, run.accumulation * divisor
    label = f"batch {batch} with {accumulation} times accumulation"
    return Remedy(label, "steps a little slower", True, {"run.batch": batch, "run.accumulation": accumulation})


def one_by_one(config: Config, worst: Phase) -> Remedy | None:
    if config.memory.grad_cache or worst.name != STEP or not _pairs(config):
        return None
    return Remedy("pictures of a pair one by one", "one more forward pass", True, {"memory.grad_cache": True})


def offload(config: Config, worst: Phase) -> Remedy | None:
    own = config.memory
    if own.cpu_offload_checkpointing or not own.gradient_checkpointing or worst.name != STEP:
        return None
    changes = {"memory.cpu_offload_checkpointing": True}
    return Remedy("checkpoints in the host's memory", "copies to and fro", True, changes)


def fp8_text(config: Config, worst: Phase) -> Remedy | None:
    if config.memory.text_weights != "full" or not worst.parts["text encoders"]:
        return None
    return Remedy("text encoders in fp8", "text conditioning is rounded", False, {"memory.text_weights": "fp8"})


def fp8(config: Config, worst: Phase) -> Remedy | None:
    if config.memory.base_weights != "full":
        return None
    return Remedy("base weights in fp8", "it learns on a rounded model", False, {"memory.base_weights": "fp8"})


def streaming(config: Config, worst: Phase) -> Remedy | None:
    if config.memory.blocks_on_gpu != "all":
        return None
    changes: dict[str, Any] = {"memory.blocks_on_gpu": "auto"}
    if (kept := {"denoiser": "none", "both": "decoder"}.get(config.memory.compile)) is not None:
        changes["memory.compile"] = kept
    return Remedy("blocks streamed from the host's memory", "slower where copies do not keep up", True, changes)


def nf4(config: Config, worst: Phase) -> Remedy | None:
    if (
        config.memory.base_weights == "nf4"
        or config.memory.int8_products
        or config.adapter.kind not in ("lora", "dora")
    ):
        return None
    return Remedy("base weights in nf4", "it learns on a coarser model", False, {"memory.base_weights": "nf4"})


def eight_bit(config: Config, worst: Phase) -> Remedy | None:
    named = short(config.optimizer.kind)
    small = named and named.eight_bit
    if small is None or not worst.parts["optimizer"]:
        return None
    return Remedy(f"optimizer {small}", "its state is rounded to 8 bits", False, {"optimizer.kind": small})


def midcrop(config: Config, worst: Phase) -> Remedy | None:
    whole = [name for name, o in _decoding(config) if o.decode in WHOLE]
    if not whole or worst.name != STEP:
        return None
    changes = {f"loss.{name}.decode": "midcrop" for name in whole}
    return Remedy("decode a window, its middle seeing all", "a noisier pixel gradient", False, changes)


def window(config: Config, worst: Phase) -> Remedy | None:
    cut = {n: o.window for n, o in _decoding(config) if o.decode in CUT and o.window > WINDOW}
    if not cut or worst.name != STEP:
        return None
    changes = {f"loss.{name}.window": max(WINDOW, size // 2) for name, size in cut.items()}
    return Remedy(f"windows of {min(changes.values())} pixels", "a noisier pixel gradient", False, changes)


def resolution(config: Config, worst: Phase) -> Remedy | None:
    side = config.data.resolution
    if not isinstance(side, int) or side * 3 // 4 < SMALLEST_SIDE or worst.name not in (STEP, *CACHING):
        return None
    less = side * 3 // 4 // 64 * 64
    return Remedy(f"resolution {less}", "less detail is learned", False, {"data.resolution": less})


def _decoding(config: Config) -> list[tuple[str, DecodeOptions]]:
    return [(name, options) for name, (options, _) in config.terms().items() if isinstance(options, DecodeOptions)]


def _pairs(config: Config) -> bool:
    """Whether samples are of two rows, which can go through the network one after the other."""
    if config.dense and config.dense.detail:
        return True
    return any(objective.needs_pairs for _, objective in config.terms().values())
