"""A step that is estimated and measured."""

from __future__ import annotations

from pathlib import Path

import memory_probe
import short_runs as runs
import torch

from pixelkiln.trainer.config import Config
from pixelkiln.trainer.estimate import memory, report
from pixelkiln.trainer.estimate.fake_tensors import size_of
from pixelkiln.trainer.families.load import identify
from pixelkiln.trainer.training import step
from pixelkiln.trainer.training.build import build_session

SIDE = 128
FULL = {"loss.pixel.mode": "mixed", "loss.pixel.decode": "full"}
WINDOW = {"loss.pixel.decode": "window", "loss.pixel.window": 64, "loss.pixel.halo": 16}
MIDCROP = {"loss.pixel.decode": "midcrop", "loss.pixel.window": 64}
DPO = {"objective.kind": "dpo", "loss.pixel.mode": "anchored", "memory.grad_cache": True}


def wanted(home: Path, name: str, flags: dict, data: str = "data.path") -> Config:
    base = {"run.precision": "fp32", "run.batch": 2, "data.resolution": SIDE}
    return runs.config(home, {**base, **flags}, name, data)


def compare(config: Config, dtype: torch.dtype = torch.float32) -> tuple[int, int, int, memory.Estimate]:
    """Bytes that autograd saves, bytes at the peak of a real step with its inputs, and the estimate of both."""
    p = build_session(config, lambda line: None)
    p.dataset.prepare()
    batch = step.micro_batches(p.dataset.batch(0), config.run.batch)[0]
    known = (p.model.family.denoiser, p.model.family.vae, *p.model.family.text_encoders.values())
    text = batch.conditioning
    found = [batch.latents, text and text.hidden, text and text.pooled]
    if batch.maps is not None:
        found += [batch.target, batch.mask, batch.maps.truth, batch.maps.values, batch.maps.valid]
    inputs = size_of(t for t in found if t is not None)
    p.model.family.predict(batch.latents, torch.zeros(len(batch)), p.model.conditioning(batch))
    with memory_probe.Saved(*known) as saved:
        loss = memory_probe.forward(p, batch)
    del loss

    def run() -> None:
        loss = memory_probe.forward(p, batch)
        if loss.requires_grad:
            loss.backward()

    peak = memory_probe.peak(run)
    at = report.shape(config, identify(config.model), p.dataset)
    estimate = memory.estimate(config, identify(config.model), at, dtype, "cpu")
    return saved.bytes, peak + inputs, inputs, estimate


def estimated_peak(found: memory.Estimate) -> int:
    return sum(found.phases["training step"].values())
