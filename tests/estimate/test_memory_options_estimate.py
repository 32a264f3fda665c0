"""The estimate against real steps, where something makes a run smaller: streaming, offloading, decode plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import memory_probe
import numpy as np
import pytest
import tiny
import torch
from estimate_checks import FULL, SIDE, compare, estimated_peak, wanted
from torch.utils.flop_counter import FlopCounterMode

from pixelkiln.trainer.commands.check import check
from pixelkiln.trainer.estimate import gpus, memory
from pixelkiln.trainer.estimate.fake_model import Shape
from pixelkiln.trainer.estimate.fake_tensors import count_attention, size_of
from pixelkiln.trainer.families.load import identify
from pixelkiln.trainer.losses.pixel import plan_for
from pixelkiln.trainer.memory import activation_checkpointing as blocks
from pixelkiln.trainer.memory.activation_checkpointing import Host
from pixelkiln.trainer.training.build import build_session

RECOMPUTE = {"memory.gradient_checkpointing": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("options")


@pytest.mark.parametrize("blocks", [0, pytest.param(3, marks=pytest.mark.nightly)])
def test_streamed_weights(home, blocks):
    """On the device: what is no block's, the resident blocks, and the two places for those that come and go."""
    config = wanted(home, "sd15", {**RECOMPUTE, "memory.blocks_on_gpu": blocks})
    p = build_session(config, lambda line: None)
    _, peak, _, found = compare(config)
    assert p.model.streamer is not None and p.model.streamer.resident == blocks
    adapter = {id(t) for t in p.model.adapter.parameters()}
    here = size_of(
        t for t in (*p.model.family.denoiser.parameters(), *p.model.family.denoiser.buffers()) if id(t) not in adapter
    )
    actual = here + size_of(p.model.streamer._slots)
    whole = found.modules["denoiser"]["full"]
    assert memory.weights_bytes(config, found, "cuda") == pytest.approx(actual, rel=0.1) and actual < whole
    assert memory.weights_bytes(config, found, "cpu") == whole + size_of(p.model.streamer._slots)  # there is one memory
    assert estimated_peak(found) == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sd15", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("sdxl", "sd3-medium"))]
)
def test_checkpoints_that_leave_the_device(home, name, monkeypatch):
    """Here they leave for numpy's memory, which torch's profiler does not count, and come back a block ahead. SD3 has
    as many blocks as it takes for what they keep to count beside what one of them computes; the tiny SDXL has few."""
    base = dict[str, Any](RECOMPUTE)
    if name == "sd3-medium":
        base["model.path"] = str(tiny.write(home / "deep", tiny.sd3(layers=12)))
    config, stays = wanted(home, name, {**base, "memory.cpu_offload_checkpointing": True}), wanted(home, name, base)
    monkeypatch.setattr(blocks, "SMALL", 2**14)
    found = memory.estimate(stays, identify(stays.model), Shape(SIDE, SIDE, ("plain",), 2), torch.float32, "cpu")

    monkeypatch.setattr(Host, "_sent", lambda self, tensor: np.array(tensor.detach().numpy()))
    monkeypatch.setattr(Host, "_comes_ahead", lambda self, device: True)
    monkeypatch.setattr(Host, "_copied", lambda self, kept: (torch.tensor(kept.away), None))
    _, peak, _, small = compare(config)
    assert estimated_peak(small) == pytest.approx(peak, rel=0.1)
    assert estimated_peak(small) < (1 if name == "sdxl" else 0.95) * estimated_peak(found)


LARGE = {**RECOMPUTE, "run.batch": 1, "data.resolution": 512, "loss.pixel.mode": "mixed"}


def in_the_middle(monkeypatch):
    """Where a window takes the most: a real draw's place is as it falls."""
    drawn = memory_probe.draw

    def centred(*args):
        chance = drawn(*args)
        return replace(chance, window=torch.full_like(chance.window, 0.5))

    monkeypatch.setattr(memory_probe, "draw", centred)


@pytest.mark.nightly
@pytest.mark.parametrize("window", [128, 256])
@pytest.mark.parametrize("plan", ["midcrop", "window"])
def test_a_window_smaller_than_its_picture(home, plan, window, monkeypatch):
    in_the_middle(monkeypatch)
    config = wanted(home, "sd15", {**LARGE, "loss.pixel.decode": plan, "loss.pixel.window": window})
    _, peak, _, found = compare(config)
    assert estimated_peak(found) == pytest.approx(peak, rel=0.1)


@pytest.mark.nightly
def test_auto_takes_the_plan_that_the_room_allows(home, monkeypatch):
    """The estimate decides with the room that a GPU will have, and holds what a step with that plan holds."""
    in_the_middle(monkeypatch)
    config = wanted(home, "sd15", {**LARGE, "loss.pixel.window": 256})
    p = build_session(config, lambda line: None)
    assert p.model.decoder is not None
    p.dataset.prepare()
    batch = p.dataset.batch(0)
    found, at = identify(config.model), Shape(512, 512, ("plain",), 1)
    p.model.decoder.room = p.model.decoder.need(40**2)  # of 64 x 64 cells
    assert plan_for(config.terms()["pixel"][0], p.model.decoder, 64, 64).window == 16
    peak = memory_probe.peak(lambda: memory_probe.forward(p, batch).backward())
    weights = sum(kinds["full"] for kinds in memory.estimate(config, found, at, torch.float32, "cpu").modules.values())
    small = memory.estimate(config, found, at, torch.float32, "cpu", p.model.decoder.room + weights)
    assert estimated_peak(small) == pytest.approx(peak, rel=0.1)


def test_what_is_not_foreseen_is_said(home, monkeypatch):
    config = wanted(home, "sd15", {"memory.compile": "both"})
    card = gpus.with_memory("8GB")
    assert [line for line in check(config, card)["warnings"] if "compile" in line] == [
        "memory.compile: what compiled code takes, and the compiler itself, is not in the estimate"
    ]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes: the estimate is of each GPU" in " ".join(check(wanted(home, "sd15", {}), card)["warnings"])


def counted(run) -> int:
    count_attention()
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.slow
def test_operations_of_a_step(home):
    """As many as a real one makes; a term that decodes counts by its probability and its gate."""
    q = torch.randn(1, 2, 64, 8)
    assert counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 2 * 64 * 64 * 8
    config = wanted(home, "sd15", {**RECOMPUTE, **FULL, "loss.pixel.probability": 0.25, "loss.pixel.min_level": 0.5})
    found = identify(config.model)
    m = memory.estimate(config, found, Shape(SIDE, SIDE, ("plain",), 2), torch.float32, "cpu")
    p = build_session(wanted(home, "sd15", {**RECOMPUTE, **FULL}), lambda line: None)
    p.dataset.prepare()
    batch = p.dataset.batch(0)
    p.model.conditioning(batch)
    assert m.flops == counted(lambda: memory_probe.forward(p, batch).backward())
    whole, decoding = memory.operations(config, m, found.process)
    assert decoding == pytest.approx(m.decoding["pixel"] / 8, rel=1e-6)
    assert whole == pytest.approx(m.flops - m.decoding["pixel"] * 7 / 8, rel=1e-6)


@pytest.mark.slow
def test_remembered_references_cost_a_step_nothing(home):
    shape, flags = Shape(SIDE, SIDE, ("winner", "loser"), 1), {"loss.pixel.mode": "mixed"}
    made = []
    for more in ({}, {"objective.kind": "dpo"}, {"objective.kind": "dpo", "objective.reference_draws": 1}):
        config = wanted(home, "sd15", {**flags, **more}, "data.pairs")
        made.append(memory.estimate(config, identify(config.model), shape, torch.float32, "cpu"))
    plain, fresh, kept = made
    assert kept.flops == pytest.approx(plain.flops, rel=0.01) and fresh.flops > 1.2 * kept.flops
    assert kept.phases["training step"] == fresh.phases["training step"]
