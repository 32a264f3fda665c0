"""One case of the bench, measured in this process: seconds, peak memory, share of the best matrix product."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import torch

from pixelkiln.trainer.config import Config, load
from pixelkiln.trainer.estimate import gpus
from pixelkiln.trainer.estimate.fake_tensors import count_attention
from pixelkiln.trainer.estimate.memory import CONTEXT
from pixelkiln.trainer.estimate.report import Checker
from pixelkiln.trainer.families.load import identify
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training.build import build
from pixelkiln.trainer.training.loop import Loop
from pixelkiln.trainer.training.progress_writer import Writer
from pixelkiln.trainer.training.remedies import STEP
from pixelkiln.trainer.training.score import References
from pixelkiln.trainer.training.session import Parts

from .models import random_vgg
from .plain import Plain

ROOT = Path(__file__).resolve().parents[1]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """``case``: model, size, batch, steps, precision, limit_gb, cache, flags; ``flags["plain"]``: diffusers + PEFT."""
    flags = dict(case["flags"])
    plain = flags.pop("plain", False)
    with tempfile.TemporaryDirectory() as out:
        base = {
            "run.out": out,
            "run.name": "bench",
            "run.steps": case["steps"] + 2,
            "run.batch": case["batch"],
            "run.precision": case["precision"],
            "model.path": case["model"],
            "data.resolution": case["size"],
            "data.bucket_min": 64,
            "data.cache_dir": case["cache"],
            "adapter.rank": 16,
            "save.state_every": 0,
            **({"memory.limit_gb": case["limit_gb"]} if case["limit_gb"] else {}),
            **({} if "data.pairs" in flags else {"data.path": str(ROOT / "presets" / "pictures" / "style")}),
        }
        if flags.get("loss.lpips.backbone") == "random VGG16":
            flags["loss.lpips.backbone"] = random_vgg(Path(out) / "vgg16.safetensors")
        config = load(flags={**base, **flags})
        folder = RunFolder(Path(out) / "bench")
        folder.make()
        with Writer(folder.path) as writer:
            parts = build(config, lambda line: None)
            foretold = {} if plain else {"foretold_gb": _foretold(config, parts)}
            return foretold | _timed(config, parts, folder, writer, case["steps"], plain)


def _timed(config: Config, parts: Parts, folder: RunFolder, writer: Writer, steps: int, plain: bool) -> dict[str, Any]:
    loop = Loop(parts, folder, writer, Event())
    parts.prepare()
    parts.free_encoders()
    if parts.dataset.fixed_draws:
        loop.references = References(parts)
    low = parts.dtype
    other = Plain(parts, config.memory.gradient_checkpointing, low) if plain else None

    def one() -> None:
        # the same step again, so that a cached reference is met from the second on
        other.step(0) if other else loop.step()
        memory.wait(parts.device)

    before = memory.used_gb(parts.device)
    one()
    flops = _flops(one)
    if parts.streamer and config.memory.resident_blocks == "auto":
        parts.streamer.fit(memory.spare_bytes(parts.device, config.memory.limit_gb))
    memory.reset_peak(parts.device)
    seconds, clock = [], _clock(parts.device)
    for _ in range(steps):
        start = clock()
        one()
        seconds.append(clock() - start)
    if loop.ladder.config != config:
        return {"failed": "out of memory"}  # it went on with another case than this
    took = statistics.median(seconds)
    return {
        "seconds": took,
        "peak_gb": memory.peak_gb(parts.device),
        "before_gb": before,
        "flops": flops,
        "of_matmul_peak": flops / took / _matmul_peak(parts.device, low),
        "attention": parts.attention,
        "device": str(parts.device),
    }


def _clock(device: torch.device) -> Callable[[], float]:
    """On a CPU the time that its threads computed, all together: what else the machine does is not in it."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def _foretold(config: Config, parts: Parts) -> float:
    """GiB that ``check`` expects of the steps; without a card's context, which torch does not count."""
    fit = Checker(config, identify(config.model), parts.dataset, gpus.here(config.run.device))(config)
    context = CONTEXT["cuda"] if parts.device.type == "cuda" else 0
    return (max(phase.total for phase in fit.phases if phase.name in (STEP, "optimizer step")) - context) / gpus.GIB


def _flops(one: Any) -> float:
    """Floating-point operations of a step: matrix products, convolutions, attention (torch's SDPA, not xformers')."""
    from torch.utils.flop_counter import FlopCounterMode

    count_attention()
    with FlopCounterMode(display=False) as counter:
        one()
    return float(counter.get_total_flops())


def _matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product, the best of a few."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best, clock = float("inf"), _clock(device)
    for _ in range(5):
        memory.wait(device)
        start = clock()
        a @ a
        memory.wait(device)
        best = min(best, clock() - start)
    return 2 * side**3 / best
