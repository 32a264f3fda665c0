"""What makes decoding cheaper without changing it: remembered targets, memory layout, compilation, a plan by room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import steps
import tiny
import torch
import torch._dynamo
from short_runs import config, events, trajectory

from pixelkiln.trainer.config import ConfigError
from pixelkiln.trainer.losses.decode import Decoder
from pixelkiln.trainer.losses.options import PixelOptions
from pixelkiln.trainer.losses.pixel import Targets, plan_for
from pixelkiln.trainer.losses.term import LossParts
from pixelkiln.trainer.memory import apply
from pixelkiln.trainer.memory.options import MemoryOptions
from pixelkiln.trainer.registry import losses
from pixelkiln.trainer.training import remedies

ANCHORED = {"loss.pixel.mode": "anchored", "run.steps": 8}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["data.path", "data.pairs"])
def test_remembered_targets_change_no_step(tmp_path, data, monkeypatch):
    flags = {**ANCHORED, "data.flip": data == "data.path"}
    if data == "data.pairs":
        flags["objective.kind"] = "dpo"
    runs, decodes = [], []
    decode = Decoder.__call__

    def counted(self, z):
        decodes[-1] += len(z)
        return decode(self, z)

    monkeypatch.setattr(Decoder, "__call__", counted)
    for name, size in (("plain", 0.0), ("kept", 0.1)):
        decodes.append(0)
        runs.append(
            trajectory(config(tmp_path, {**flags, "run.name": name, "loss.pixel.target_cache": size}, data=data))
        )
    assert runs[0] == runs[1]
    assert decodes[1] < 0.8 * decodes[0]


@pytest.mark.parametrize("mode", ["anchored", "x0"])
def test_targets_of_preserved_rows_are_not_remembered(mode):
    """They are what the model says without its adapter at this draw's noise, and not the picture."""
    made = steps.step(channels=3)
    preserved = replace(made.batch, preserve=torch.tensor([True, False]))
    decoder = Decoder(steps.Linear(), 1.0, factor=1)

    def built(size: float):
        options = PixelOptions(mode=mode, decode="full", target_cache=size)
        return losses["pixel"].build(options, LossParts(made.process, decoder))

    plain, kept = built(0.0), built(1.0)
    for base_out in torch.randn(2, *made.out.shape, dtype=made.out.dtype):
        drawn = replace(made, batch=preserved, base_out=base_out)
        assert torch.equal(kept(drawn), plain(drawn))


def test_targets_drop_what_was_not_seen_for_longest():
    made = []

    def decode(z):
        made.append(len(z))
        return z.expand(-1, 3, -1, -1)

    targets, z = Targets(limit=2.5 * 3 * 64 * 4), torch.randn(1, 1, 8, 8)
    for key in "abacb":
        assert torch.equal(targets.get([key], z, decode, torch.float32), z.expand(-1, 3, -1, -1))
    assert len(made) == 4 and targets.bytes == 2 * 3 * 64 * 4  # b went when c came


def test_a_decoder_with_its_channels_last_decodes_the_same():
    plain, other = (Decoder(tiny.vae(), 0.18215, dtype=torch.float64) for _ in range(2))
    other.tune(channels_last=True)
    z = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    grads = []
    for decoder in (plain, other):
        leaf = z.clone().requires_grad_()
        out = decoder(leaf)
        (out**2).mean().backward()
        grads.append((out, leaf.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)
    assert other.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_auto_looks_at_the_size_and_at_the_room():
    decoder = Decoder(tiny.vae(), 0.18215)
    auto = PixelOptions()

    def plan(side: int, room: int | None) -> tuple[str, int]:
        decoder.room = room
        made = plan_for(auto, decoder, side, side)
        return made.kind, made.window * decoder.factor

    whole = decoder.need(64 * 64)
    assert plan(64, None) == plan(64, whole) == ("full", 256)
    assert plan(128, None) == ("midcrop", 256)
    assert plan(64, whole - 1) == ("midcrop", 256)  # a window with its halo is smaller than the picture by little
    window = plan(64, whole // 3)[1]
    assert window < 256 and decoder.need((window // 8 + 2 * decoder.halo(after_middle=True)) ** 2) <= whole // 3
    decoder.by_parts = False
    assert plan(64, 0)[0] == "full"


def test_need_grows_with_the_picture_and_the_precision():
    single, half = Decoder(tiny.vae(), 1.0), Decoder(tiny.vae(), 1.0, dtype=torch.bfloat16)
    assert single.need(64) == 2 * half.need(64) == single.need(256) / 4


def test_a_small_probability_is_told(tmp_path):
    lines = PixelOptions(probability=0.05).warnings()
    assert any("20 times" in line and "gradient clipping" in line for line in lines)
    assert not any("probability" in line for line in PixelOptions(probability=0.25).warnings())


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_what_is_compiled_is_kept_in_the_cache_folder(tmp_path, monkeypatch, chosen):
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.delenv(apply.COMPILED, raising=False)
    if chosen:
        monkeypatch.setenv(apply.COMPILED, str(tmp_path / chosen))
    else:
        cache_dir()  # as importing torch._dynamo does
    apply.set_up_decoder(
        MemoryOptions(compile="decoder"), Decoder(tiny.vae(), 1.0), torch.device("cpu"), tmp_path / "kept"
    )
    assert Path(cache_dir()) == tmp_path / (chosen or "kept")


def test_nothing_is_compiled_for_previews():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with apply.uncompiled(MemoryOptions(compile="both")):
        assert double(torch.ones(2)).sum() == 4 and not calls
    assert double(torch.ones(2)).sum() == 4 and calls


def test_streamed_blocks_are_not_compiled(tmp_path):
    flags = {"memory.compile": "both", "memory.blocks_on_gpu": 0}
    with pytest.raises(ConfigError, match=r"memory.*compile: blocks that are streamed cannot be compiled; set"):
        config(tmp_path, flags)
    compiled = config(tmp_path, {"memory.compile": "both"})
    remedy = remedies.streaming(compiled, remedies.Phase(remedies.STEP, {}))
    assert compiled.changed(remedy.changes).memory.compile == "decoder"


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["sd15", "sd3-medium"])
def test_compiled_blocks_take_the_same_steps(tmp_path, name):
    flags = {"run.precision": "fp32", "objective.kind": "dpo", "loss.pixel.mode": "anchored", "run.steps": 3}
    runs = []
    for compiled in ("none", "both"):
        more = {"memory.compile": compiled, "memory.gradient_checkpointing": True, "run.name": compiled}
        done = config(tmp_path, {**flags, **more}, name, data="data.pairs")
        runs.append(trajectory(done))
        assert not [e for e in events(done) if e["kind"] == "warning" and "compile" in str(e)]
    for step, other in zip(*runs, strict=True):
        assert step == pytest.approx(other, rel=1e-3)
    assert any((tmp_path / "runs" / "cache" / "compiled").iterdir())
