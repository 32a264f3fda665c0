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

from pixelkiln.trainer.commands.check import planned
from pixelkiln.trainer.config import PLANNED_ANEW, PLANNED_ONCE, Config, load
from pixelkiln.trainer.estimate import gpus
from pixelkiln.trainer.estimate.fake_tensors import count_attention
from pixelkiln.trainer.estimate.memory import CONTEXT
from pixelkiln.trainer.estimate.report import Estimator
from pixelkiln.trainer.families.load import identify
from pixelkiln.trainer.losses.options import PixelOptions
from pixelkiln.trainer.losses.surrogate import Surrogate
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training.build import build_session
from pixelkiln.trainer.training.loop import Loop
from pixelkiln.trainer.training.progress_writer import ProgressWriter
from pixelkiln.trainer.training.reference_cache import ReferenceCache
from pixelkiln.trainer.training.remedies import STEP
from pixelkiln.trainer.training.session import Session
from pixelkiln.trainer.training.surrogates import PLANS, attach

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
        if config.memory.plan == "auto":
            config, _ = planned(config, False, None, lambda line: None)
        folder = RunFolder(Path(out) / "bench")
        folder.make()
        with ProgressWriter(folder.path) as writer:
            session = build_session(config, lambda line: None)
            chosen = {"plan": _chosen(config)} if config.memory.plan == "auto" else {}
            estimate = {} if plain else {"foretold_gb": _estimated_gb(config, session)}
            return chosen | estimate | _timed(config, session, folder, writer, case["steps"], plain)


def _chosen(config: Config) -> dict[str, Any]:
    return {name: config.value(name) for name in (*PLANNED_ANEW, *PLANNED_ONCE)}


def _timed(
    config: Config, session: Session, folder: RunFolder, writer: ProgressWriter, steps: int, plain: bool
) -> dict[str, Any]:
    loop = Loop(session, folder, writer, Event())
    session.prepare()
    session.offload_encoders()
    _give_surrogates(session)
    if session.dataset.fixed_draws:
        loop.references = ReferenceCache(session)
    low = session.model.dtype
    other = Plain(session, config.memory.gradient_checkpointing, low) if plain else None

    def one() -> None:
        # the same step again, so that a cached reference is met from the second on
        other.step(0) if other else loop.step()
        memory.wait(session.model.device)

    before = memory.used_gb(session.model.device)
    one()
    flops = _flops(one)
    if session.model.streamer and config.memory.blocks_on_gpu == "auto":
        session.model.streamer.fit(memory.spare_bytes(session.model.device, config.memory.limit_gb))
    memory.reset_peak(session.model.device)
    seconds, clock = [], clock_of(session.model.device)
    for _ in range(steps):
        start = clock()
        one()
        seconds.append(clock() - start)
    if loop.fallback.config != config:
        return {"failed": "out of memory"}  # it went on with another case than this
    took = statistics.median(seconds)
    return {
        "seconds": took,
        "peak_gb": memory.peak_gb(session.model.device),
        "before_gb": before,
        "flops": flops,
        "of_matmul_peak": flops / took / _matmul_peak(session.model.device, low),
        "attention": session.model.attention,
        "device": str(session.model.device),
    }


def _give_surrogates(session: Session) -> None:
    """Surrogates with random weights, which take as long as fitted ones, for the terms that are estimated by one."""
    for term in session.terms.terms:
        options, decoder = term.options, session.model.decoder
        if isinstance(options, PixelOptions) and options.decode in PLANS and decoder is not None:
            made = Surrogate(decoder.vae.config.latent_channels, decoder.factor)
            session.surrogates[term.name] = made.requires_grad_(False)
    attach(session)


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a CPU the time that its threads computed, all together: what else the machine does is not in it."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def _estimated_gb(config: Config, session: Session) -> float:
    """GiB that ``check`` expects of the steps; without a GPU's context, which torch does not count."""
    fit = Estimator(config, identify(config.model), session.dataset, gpus.here(config.run.device))(config)
    context = CONTEXT["cuda"] if session.model.device.type == "cuda" else 0
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
    best, clock = float("inf"), clock_of(device)
    for _ in range(5):
        memory.wait(device)
        start = clock()
        a @ a
        memory.wait(device)
        best = min(best, clock() - start)
    return 2 * side**3 / best
