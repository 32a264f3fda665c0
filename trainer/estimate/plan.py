"""``memory.plan = "auto"``: the fastest combination of memory options that fits into a GPU's free memory.

Options that are set are never changed. Of the others, first those that keep the frozen weights whole are tried, the
fastest first: the share of blocks that gradient checkpointing recomputes, and an 8-bit optimizer state, which costs a
synchronization with the GPU for each tensor. Only where none of these fits do pairs run one by one and checkpoints go
to host memory, then the frozen weights into 8 bits, then into nf4, then blocks are streamed. Text encoders are
quantized, or T5 left on the CPU, where captions would not fit otherwise. A combination fits when the peak of every
phase of the run stays ``MARGIN`` below the free memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import PLANNED_ANEW, PLANNED_ONCE, Config, read_toml
from ..losses.options import DecodeOptions
from ..memory.device import device_name
from ..optimizers.names import short
from ..runs.control import gigabytes
from ..runs.folder import RunFolder
from ..training.remedies import CACHING

if TYPE_CHECKING:
    from .report import Estimator, Fit

MARGIN = 0.05
"""Share of the free memory that a plan leaves: the estimate was never compared with a CUDA GPU, and buckets differ."""
SHARES = tuple(eighths / 8 for eighths in range(9))
"""Of the blocks, that are recomputed."""
SYNCHRONIZATION = {"cuda": 5e-5, "cpu": 4e-4}
"""Seconds for each tensor that bitsandbytes' optimizers take longer than torch's fused ones: on a GPU assumed, on a CPU
measured (384 tensors: 148 ms against 4.75)."""
USUAL_RATE = {"cuda": 1.2e13, "cpu": 1e11}
"""Operations a second where nothing is known, to weigh synchronizations against recomputing."""
Choice = dict[str, Any]
"""Options by dotted names."""


@dataclass(frozen=True)
class Trial:
    """A combination, and what it comes to."""

    share: float
    choice: Choice
    fit: Fit
    seconds: float
    """Of a step, to compare with others; not shown to people."""
    room: float
    """GiB that it may take."""

    @property
    def fits(self) -> bool:
        return self.fit.gb <= self.room

    @property
    def label(self) -> str:
        """What it does, in words."""
        config = self.fit.config
        own = config.memory
        parts = ["no gradient checkpointing" if not self.share else "gradient checkpointing"]
        parts[0] += f" on {100 * self.share:g}% of the blocks" if 0 < self.share < 1 else ""
        parts += ["checkpoints in host memory"] if own.cpu_offload_checkpointing else []
        parts += ["one picture at a time"] if own.grad_cache else []
        parts += [config.optimizer.kind, f"base weights {own.base_weights}"]
        parts += ["blocks streamed"] if own.blocks_on_gpu != "all" else []
        parts += [f"text encoders {own.text_weights}"] if own.text_weights != "full" else []
        parts += ["T5 on the CPU"] if self.fit.measured.modules.get("te3") and config.model.t5_on_cpu else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """What was chosen, and the next better one that did not fit."""

    chosen: Trial
    config: Config
    anew: Choice
    once: Choice
    """What the next start may choose otherwise, and what is the run's from here on; see ``Config.planned``."""
    missed: Trial | None
    by_hand: list[str]

    @property
    def choices(self) -> Choice:
        return {**self.anew, **self.once}

    @property
    def lines(self) -> list[str]:
        """For a person: what and why, the next better one, and what was not for the plan to choose."""
        at, gpu = self.chosen, self.chosen.fit.gpu
        free = f"{gigabytes(gpu.free)} free less {MARGIN:.0%}"
        word = "the fastest that fits" if at.fits else "the smallest there is, and it does NOT fit"
        found = [f"{at.label}: {gigabytes(at.fit.gb)} of {gigabytes(at.room)} GB ({free}), {word}"]
        if self.missed:
            ratio = at.seconds / self.missed.seconds
            faster = f" ({ratio:.2f}x as fast)" if ratio >= 1.005 else ""
            short_of = gigabytes(self.missed.fit.gb - at.room)
            found.append(
                f"the next better{faster} takes {gigabytes(self.missed.fit.gb)} GB at {self.missed.fit.worst.name}, "
                f"{short_of} too much: {self.missed.label}"
            )
        elif at.fits:
            found.append("nothing faster is left to choose")
        return [*found, *([f"set by hand: {', '.join(self.by_hand)}"] if self.by_hand else [])]

    def as_json(self) -> dict[str, Any]:
        missed = self.missed
        return {
            "lines": self.lines, "label": self.chosen.label, "choices": self.choices,
            "fits": self.chosen.fits,
            "gb": round(self.chosen.fit.gb, 2), "room_gb": round(self.chosen.room, 2), "margin": MARGIN,
            "next": missed and {"label": missed.label, "gb": round(missed.fit.gb, 2),
                                "speed": round(self.chosen.seconds / missed.seconds, 3)},
        }  # fmt: skip


def choose(config: Config, estimator: Estimator, kept: Choice) -> Plan:
    """The plan of a configuration on the estimator's GPU.

    ``kept``: what a run that is continued chose at its first start (``chosen_once``).
    """
    by_hand = [name for name in (*PLANNED_ANEW, *PLANNED_ONCE) if config.is_set(name)]
    kept = left_open(config, kept)
    config = config.changed(kept)
    search = _Search(config, estimator)
    tried: Trial | None = None
    missed: Trial | None = None
    for tier in search.tiers():
        found, before = search.fastest(tier)
        missed = before or tried
        tried = found
        if found.fits:
            break
    assert tried is not None
    made = tried.fit.config
    anew = {name: made.value(name) for name in PLANNED_ANEW if not config.is_set(name)}
    once = kept | {name: made.value(name) for name in PLANNED_ONCE if not config.is_set(name)}
    for term, (kind, window) in tried.fit.measured.plans.items():
        once |= {f"loss.{term}.decode": kind, **({f"loss.{term}.window": window} if kind == "midcrop" else {})}
    planned = config.planned(anew, once)
    estimator.remember(planned, tried.fit.measured)
    return Plan(tried, planned, anew, once, missed if tried.fits else None, by_hand)


def chosen_once(start: str | Path) -> Choice:
    """What the run of a folder, or of a state in it, began with of what is chosen once; empty without its
    configuration."""
    places = (Path(start), *Path(start).parents[:2])
    found = next((file for one in places if (file := RunFolder(one).config).is_file()), None)
    if found is None:
        return {}
    tables = read_toml(found)
    names = [*PLANNED_ONCE, *(f"loss.{term}.{key}" for term in tables.get("loss", {}) for key in ("decode", "window"))]
    return {name: value for name in names if (value := _at(tables, name)) is not None}


def left_open(config: Config, choices: Mapping[str, Any]) -> Choice:
    """Those of the choices that the configuration leaves to a plan."""
    return {name: value for name, value in choices.items() if not _is_given(config, name)}


def smallest(many: Iterable[Mapping[str, Any]]) -> Choice:
    """Of what several runs choose once, for each option what takes the least memory."""
    found: Choice = {}
    for name, value in (pair for one in many for pair in one.items()):
        if name not in found or _size(value) < _size(found[name]):
            found[name] = value
    return found


def _size(value: Any) -> int:
    """An order of weights, decode plans, windows and optimizers by what they take."""
    order = ("nf4", "int8", "fp8", "midcrop", "full")
    return value if isinstance(value, int) else order.index(value) if value in order else 0 if "8bit" in value else 1


def _at(tables: Any, name: str) -> Any:
    for part in name.split("."):
        tables = tables.get(part) if isinstance(tables, Mapping) else None
    return tables


def _is_given(config: Config, name: str) -> bool:
    """Whether an option is not for the plan to choose: one of a loss term where its decode plan is a certain one."""
    if not name.startswith("loss."):
        return config.is_set(name)
    options = config.loss.terms().get(name.split(".")[1])
    return not isinstance(options, DecodeOptions) or options.decode not in ("auto", "by_size")


@dataclass
class _Search:
    config: Config
    estimator: Estimator
    rate: float = 0.0
    """Operations a second, the same for all trials."""

    def __post_init__(self) -> None:
        gpu, limit = self.estimator.gpu, self.config.memory.limit_gb
        self.room = (gpu.free if limit is None else min(gpu.free, limit)) * (1 - MARGIN)
        self.device = gpu.device
        self.is_apple = gpu.here and gpu.name == device_name(torch.device("mps"))
        self.can_quantize = importlib.util.find_spec("bitsandbytes") is not None and not self.is_apple

    def tiers(self) -> Iterator[list[Choice]]:
        """Groups of combinations, each group worse for what is learned or much slower than the one before."""
        shares, slower, own = self._shares(), self._slower(), self.config.memory
        compiled = own.compile in ("denoiser", "both")
        for weights in self._weights():
            packed = weights or own.base_weights != "full"  # which compiled blocks would keep unpacked
            yield [one | weights for one in (shares[-1:] if compiled and packed else shares)]
            if slower:
                yield [shares[-1] | one | weights for one in slower]
        last = shares[-1] | (slower[-1] if slower else {})
        if not (compiled or self.config.is_set("memory.blocks_on_gpu")) and self.device == "cuda":
            for weights in self._weights()[-2:]:
                yield [last | weights | {"memory.blocks_on_gpu": "auto"}]

    def _shares(self) -> list[Choice]:
        if self.config.is_set("memory.gradient_checkpointing"):
            if not self.config.memory.gradient_checkpointing or self.config.is_set("memory.checkpointing_fraction"):
                return [{}]
            return [{"memory.checkpointing_fraction": share} for share in SHARES if share]
        return [
            {"memory.gradient_checkpointing": share > 0, "memory.checkpointing_fraction": share or 1.0}
            for share in SHARES
        ]

    def _slower(self) -> list[Choice]:
        """Exact as well, for much more time: what is kept for the backward pass away from the GPU, pairs one by one."""
        own, found = self.config.memory, []
        if not self.config.is_set("memory.grad_cache") and any(o.needs_pairs for _, o in self.config.terms().values()):
            found.append({"memory.grad_cache": True})
        recomputes = own.gradient_checkpointing or not self.config.is_set("memory.gradient_checkpointing")
        if not self.config.is_set("memory.cpu_offload_checkpointing") and recomputes and self.device == "cuda":
            found.append({"memory.cpu_offload_checkpointing": True})
            found += [found[0] | found[1]] if len(found) == 2 else []
        return found

    def _weights(self) -> list[Choice]:
        if self.config.is_set("memory.base_weights") or self.is_apple:
            return [{}]
        least = self.config.changed(self._shares()[-1]).memory
        whole = least.gradient_checkpointing and least.checkpointing_fraction == 1
        if least.compile in ("denoiser", "both") and not whole:
            return [{}]
        small = ("int8", "nf4") if self.can_quantize else ("fp8",)
        if self.config.adapter.kind not in ("lora", "dora"):
            small = small[:1]
        return [{}, *({"memory.base_weights": kind} for kind in small)]

    def _optimizers(self) -> list[Choice]:
        named = short(self.config.optimizer.kind)
        if self.config.is_set("optimizer.kind") or not (named and named.eight_bit and self.can_quantize):
            return [{}]
        return [{}, {"optimizer.kind": named.eight_bit}]

    def _texts(self) -> list[Choice]:
        """Ways to encode captions, the best first."""
        found: list[Choice] = [{}]
        if not self.config.is_set("memory.text_weights") and not self.is_apple:
            found.append({"memory.text_weights": "int8" if self.can_quantize else "fp8"})
        if not self.config.is_set("model.t5_on_cpu") and self.estimator.found.spec.encoders.get("te3"):
            found += [one | {"model.t5_on_cpu": True} for one in found[::-1]]
        return found

    def fastest(self, tier: list[Choice]) -> tuple[Trial, Trial | None]:
        """(The fastest of a tier that fits, or its smallest; the next faster one of it, which does not fit.)

        Along a tier time grows and memory shrinks, so that the first that fits is found by bisection.
        """
        optimizers = self._optimizers()
        first = [self.trial(tier[0] | one) for one in optimizers]
        if not first[0].fits and not first[-1].fits and not self.trial(tier[-1] | optimizers[-1]).fits:
            return self.trial(tier[-1] | optimizers[-1]), None
        found, missed = [], []
        for one, whole in zip(optimizers, first):
            low, high = (-1, 0) if whole.fits else (0, len(tier) - 1)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.trial(tier[middle] | one).fits else (middle, high)
            if (last := self.trial(tier[high] | one)).fits:
                found.append(last)
            missed += [self.trial(tier[low] | one)] if low >= 0 else []
        best = min(found, key=lambda one: one.seconds)
        faster = [one for one in missed if not one.fits and one.seconds < best.seconds]
        return best, max(faster, key=lambda one: one.seconds, default=None)

    def trial(self, choice: Choice) -> Trial:
        """With the first way to encode captions that fits; the last where none does."""
        trial = None
        for text in self._texts():
            whole = choice | text
            fit = self.estimator(self.config.changed(whole))
            trial = Trial(self._share(fit.config), whole, fit, self._seconds(fit), self.room)
            if all(one.total / 2**30 <= self.room for one in fit.phases if one.name in CACHING):
                break
        assert trial is not None
        return trial

    def _share(self, config: Config) -> float:
        return config.memory.checkpointing_fraction if config.memory.gradient_checkpointing else 0.0

    def _seconds(self, fit: Fit) -> float:
        if not self.rate:
            found = self.estimator.rates(fit)
            self.rate = (found[0] * found[1]) ** 0.5 if found else USUAL_RATE[self.device]
        slow = fit.config.optimizer.kind.lower().endswith("8bit")
        waits = slow * SYNCHRONIZATION[self.device] * sum(row[3] for row in fit.measured.trained)
        return self.estimator.operations(fit) / self.rate + waits
