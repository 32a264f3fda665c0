"""How long a step takes on this machine, remembered from run to run.

Every run of at least ``LEAST`` steps leaves its seconds per step. A run like it is expected to take as long; another
one on the same device is expected to compute as fast, by the operations that a symbolic run counts (``estimate``).
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ..memory import device as memory
from ..runs import user_cache
from ..runs.check_report import counted_noun

if TYPE_CHECKING:
    from ..config import Config

NAME, FLOPS = "step_times", "operations"
LEAST = 20
"""Steps below which a run says too little of how long others take: the first ones warm up."""


@dataclass(frozen=True)
class StepTime:
    seconds: float
    """Of an optimizer step."""
    source: str
    """Where the number comes from."""


def arch(denoiser: Any) -> str:
    """What a denoiser is, whatever its weights are."""
    kept = {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}
    return _digest(kept)


def key(config: Config, arch: str, size: tuple[int, int], device: str, dtype: str) -> str:
    """Of everything that decides how long a step takes. ``size``: width and height of the largest bucket."""
    run = config.run
    terms = {
        name: (options.recorded_dump(), objective.recorded_dump())
        for name, (options, objective) in config.terms().items()
    }
    adapter = config.adapter.recorded_dump(exclude={"init_from", "alpha", "conv_alpha"})
    whole = [arch, size, device, dtype, run.batch, run.accumulation, run.full_bf16, terms, adapter]
    whole += [config.dense.recorded_dump()] if config.dense else []
    memory = config.memory.recorded_dump(exclude={"plan"})
    return _digest([*whole, memory, config.optimizer.kind, config.data.cache_latents])


def remember(
    config: Config, denoiser: Any, size: tuple[int, int], device: torch.device, dtype: torch.dtype, times: list[float],
    least: int = LEAST,
) -> None:  # fmt: skip
    """The steps of a run, for the next one like it; nothing where they are fewer than ``least``."""
    names = (memory.device_name(device), str(dtype).removeprefix("torch."))
    record(key(config, arch(denoiser), size, *names), *names, times, least)


def record(key: str, device: str, dtype: str, times: list[float], least: int = LEAST) -> None:
    """Remember a run's steps without the first, which warms up. Fewer than ``least`` are not remembered, nor fewer than
    ``LEAST`` in the place of as many."""
    steady = times[1:] or times
    known = user_cache.known(NAME).get(key, {}).get("steps", 0)
    if len(times) >= least and steady and not (len(times) < LEAST <= known + 1):
        facts = {"device": device, "dtype": dtype, "seconds": sum(steady) / len(steady), "steps": len(steady)}
        user_cache.remember(NAME, key, {**facts, "t": round(time.time())})


def expect(key: str, device: str, dtype: str, flops: float) -> StepTime | None:
    """The step time of this key, or of other runs on the device by their operations; None where nothing is known."""
    kept, counted = user_cache.known(NAME), user_cache.known(FLOPS)
    if counted.get(key) != flops:
        user_cache.remember(FLOPS, key, flops)
    if key in kept:
        measured = counted_noun(kept[key]["steps"], "step")
        return StepTime(kept[key]["seconds"], f"measured here in {measured} of a run like this")
    rates = [
        counted[other] / facts["seconds"]
        for other, facts in kept.items()
        if facts["device"] == device and facts["dtype"] == dtype and counted.get(other) and facts["seconds"] > 0
    ]
    if not rates:
        return None
    others = counted_noun(len(rates), "other run")
    return StepTime(flops / median(rates), f"scaled from {others} on this device, by operations")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]
