"""How long a step takes on this machine, remembered from run to run.

Every run leaves its seconds per step. A run like it is expected to take as long; another one on the same device is
expected to compute as fast, by the operations that a symbolic run counts (``forecast``).
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

if TYPE_CHECKING:
    from ..config import Config

NAME, FLOPS = "paces", "operations"


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
    return _digest([*whole, config.memory.recorded_dump(), config.optimizer.kind, config.data.cache_latents])


def remember(
    config: Config, denoiser: Any, size: tuple[int, int], device: torch.device, dtype: torch.dtype, times: list[float]
) -> None:
    """The steps of a run, for the next one like it."""
    names = (memory.device_name(device), str(dtype).removeprefix("torch."))
    record(key(config, arch(denoiser), size, *names), *names, times)


def record(key: str, device: str, dtype: str, times: list[float]) -> None:
    """Remember a run's steps; the first is left out where there are more, as it warms up."""
    steady = times[1:] or times
    if steady:
        facts = {"device": device, "dtype": dtype, "seconds": sum(steady) / len(steady), "steps": len(steady)}
        user_cache.remember(NAME, key, {**facts, "t": round(time.time())})


def expect(key: str, device: str, dtype: str, flops: float) -> StepTime | None:
    """The step time of this key, or of other runs on the device by their operations; None where nothing is known."""
    kept, counted = user_cache.known(NAME), user_cache.known(FLOPS)
    if counted.get(key) != flops:
        user_cache.remember(FLOPS, key, flops)
    if key in kept:
        return StepTime(kept[key]["seconds"], f"measured here in {kept[key]['steps']} steps of a run like this")
    rates = [
        counted[other] / facts["seconds"]
        for other, facts in kept.items()
        if facts["device"] == device and facts["dtype"] == dtype and counted.get(other) and facts["seconds"] > 0
    ]
    if not rates:
        return None
    return StepTime(flops / median(rates), f"scaled from {len(rates)} other runs on this device, by operations")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:24]
