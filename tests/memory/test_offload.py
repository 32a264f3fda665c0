"""Blocks in the host's memory, and blocks that are recomputed: the same gradients, whatever stays on the GPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from fake_device import fake_device
from short_runs import config, trajectory
from torch import Tensor

from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.verify import probe
from pixelkiln.trainer.families.family import FamilySpec
from pixelkiln.trainer.families.sd15 import SD15
from pixelkiln.trainer.memory import activation_checkpointing, quantize
from pixelkiln.trainer.memory.activation_checkpointing import Host, _recomputed, recompute
from pixelkiln.trainer.memory.offload import Streamer
from pixelkiln.trainer.registry import families

NAMES = ["sd15", "sdxl", "sd3.5-medium"]


def gradients(
    name: str, device: str = "cpu", passes: int = 1, kind: str = "lora", **options: Any
) -> tuple[Tensor, list[Tensor], Any]:
    """Output and adapter gradients of the last of several passes; each also looks at the bare model."""
    model = tiny.parts(name).denoiser.requires_grad_(False)
    spec: FamilySpec = families[name].build()
    if options.get("held"):
        quantize.quantize_module(model, options["held"], spec.quantized, torch.device(device))
    resident = options.get("resident")
    streamer = None if resident is None else Streamer(spec.blocks(model, resize=True), torch.device(device), resident)
    model.to(device)
    adapter = inject(model, {}, name, AdapterOptions(kind=kind, rank=2), seed=1)
    for index, parameter in enumerate(adapter.parameters()):
        wave = torch.sin(torch.arange(parameter.numel()) + index).reshape(parameter.shape)
        parameter.data += 0.02 * wave.to(device)
    if options.get("share"):
        recompute(spec.blocks(model), options["share"], options.get("to_host", False))
    out = torch.empty(0)
    for _ in range(passes):
        for parameter in adapter.parameters():
            parameter.grad = None
        with torch.no_grad(), adapter.reference():
            bare = model(**probe(model)).sample
        out = model(**probe(model)).sample
        ((out - bare) ** 2).mean().backward()
    return out.detach(), [p.grad for p in adapter.parameters() if p.grad is not None], streamer


@pytest.fixture(scope="module", params=NAMES)
def plain(request):
    return request.param, gradients(request.param)


@pytest.mark.parametrize("resident", [0, 1, 2])
@pytest.mark.parametrize("share", [0, 1.0], ids=["kept", "recomputed"])
def test_streamed_blocks_give_the_same_gradients(plain, resident, share):
    name, (out, grads, _) = plain
    mine, own, streamer = gradients(name, resident=resident, share=share, passes=2)
    torch.testing.assert_close((mine, own), (out, grads), rtol=1e-5, atol=1e-8)
    assert streamer.resident == min(resident, len(streamer.blocks))
    assert streamer.host_bytes > 0 and len(streamer._slots) == 2


def test_what_comes_next_is_foreseen():
    """After a first pass, only the way from a backward pass to the next forward is a surprise at most."""
    _, _, once = gradients("sdxl", resident=0, share=1.0)
    _, _, thrice = gradients("sdxl", resident=0, share=1.0, passes=3)
    a_pass = 3 * (len(once.blocks) - 1)
    assert once.copies >= a_pass
    assert thrice.missed - once.missed <= 8 < a_pass
    assert thrice.copies - once.copies <= 2 * (a_pass + 8)


def test_more_blocks_ahead_change_no_bit_and_have_room(monkeypatch: pytest.MonkeyPatch):
    """Each block that comes is copied once, though there is room for few; in order, one after the other."""
    wanted = gradients("sdxl", resident=0, share=1.0, passes=2)
    monkeypatch.setattr(Streamer.__init__, "__defaults__", (0, 3))
    out, grads, streamer = gradients("sdxl", resident=0, share=1.0, passes=2)
    assert torch.equal(out, wanted[0]) and all(map(torch.equal, grads, wanted[1]))
    assert len(streamer._slots) == 4
    assert streamer.missed <= wanted[2].missed and streamer.copies <= 1.5 * wanted[2].copies


def test_blocks_ahead_need_blocks_that_are_streamed(tmp_path):
    with pytest.raises(ValueError, match=r'memory: prefetch_blocks: .*set blocks_on_gpu = "auto" or a number'):
        config(tmp_path, {"memory.prefetch_blocks": 2})


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_packed_weights_stream_too(kind):
    out, grads, _ = gradients("sd15", held=kind, kind="dora")
    mine, own, streamer = gradients("sd15", held=kind, resident=1, share=1.0, kind="dora")
    torch.testing.assert_close((mine, own), (out, grads), rtol=1e-5, atol=1e-8)
    assert streamer.copies > 0


def test_blocks_can_be_taken_in_and_given_back_between_steps():
    model = tiny.parts("sd15").denoiser.requires_grad_(False)
    wanted = model(**probe(model)).sample
    streamer = Streamer(SD15.blocks(model, resize=True), torch.device("cpu"), 0)
    sizes = [block.size for block in streamer.blocks]
    size = max(sizes)
    assert min(sizes) < size // 2
    assert streamer.fit(2 * size) == 2  # whichever they are, there is room for them
    for count in (2, streamer.fit(10**9), 1):
        streamer.keep(count)
        assert sum(block.host is None for block in streamer.blocks) == streamer.resident
        torch.testing.assert_close(model(**probe(model)).sample, wanted)
    streamer.keep(len(streamer.blocks))
    assert streamer.host_bytes == 0 and streamer._slots == []


def test_resident_blocks_are_spread_evenly():
    """So that one is copied while the one before computes."""
    model = tiny.parts("sd15").denoiser.requires_grad_(False)
    streamer = Streamer(SD15.blocks(model, resize=True), torch.device("cpu"), 0)
    count = len(streamer.blocks)
    streamer.keep(count // 2)
    resident = [block.host is None for block in streamer.blocks]
    assert sum(resident) == count // 2
    assert not any(one and after for one, after in pairwise(resident))


def test_recomputing_changes_no_bit(plain):
    name, (_, grads, _) = plain
    for options in ({"share": 1.0}, {"share": 0.5}, {"share": 1.0, "to_host": True}):
        for mine, wanted in zip(gradients(name, **options)[1], grads, strict=True):
            assert torch.equal(mine, wanted)


def test_the_outer_blocks_come_first_and_a_share_keeps_less():
    model = tiny.parts("sdxl").denoiser
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(block)] for block in SD15.blocks(model)]
    levels = [name.split(".")[0:2] for name in found]
    first_inner = levels.index(["down_blocks", "1"])
    assert ["up_blocks", "1"] in levels[:first_inner] and ["up_blocks", "0"] not in levels[:first_inner]
    assert levels[-1][0] == "mid_block"

    def kept(share: float) -> int:
        sizes: list[int] = []
        model = tiny.parts("sdxl").denoiser.requires_grad_(False)
        inject(model, {}, "sdxl", AdapterOptions(rank=2), seed=1)
        if share:
            recompute(SD15.blocks(model), share)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(**probe(model))
        return sum(sizes)

    assert kept(1.0) < kept(0.5) < kept(0)
    model = tiny.parts("sdxl").denoiser
    blocks = SD15.blocks(model)
    assert recompute(blocks, 0.5) == round(len(blocks) / 2)
    chosen = ["forward" in vars(block) for block in blocks]  # of the instance, in place of the class's
    assert chosen == sorted(chosen, reverse=True) and sum(chosen) == round(len(blocks) / 2)


def test_what_a_block_begins_from_goes_to_the_host_and_nothing_else():
    host = Host(small=0)
    weight = torch.randn(4, 4, requires_grad=True)
    run = _recomputed(lambda x, scale: torch.tanh(x @ weight * scale), host)
    x = torch.randn(2, 4, requires_grad=True)
    scale = torch.full((2, 1), 2.0) * 1  # no leaf
    run(x * 1, scale=scale).sum().backward()
    assert host.kept == 1 and x.grad is not None
    torch.testing.assert_close(x.grad, torch.autograd.grad(torch.tanh(x @ weight * scale).sum(), x)[0])


def test_what_blocks_begin_from_comes_back_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    """All but the last block's, which nothing follows; each once, and nothing of the step before."""
    with fake_device(monkeypatch) as fake:
        host, weight = Host(small=0), torch.eye(3, device=fake.device).requires_grad_()
        blocks = [_recomputed(lambda x, y, i=i: torch.tanh(x @ weight + y * i), host) for i in range(4)]
        copies: list[int] = []
        copied = host._copied
        monkeypatch.setattr(host, "_copied", lambda kept: copies.append(id(kept)) or copied(kept))
        found = []
        for _ in range(2):
            weight.grad = None
            start = torch.ones(2, 3, device=fake.device).requires_grad_()
            x, y = start * 0.5, start * 0.5  # no leaves, which stay
            for block in blocks:
                x = block(x, y)
            x.sum().backward()
            assert weight.grad is not None
            found.append(weight.grad.cpu())
        assert host.kept == 16 and host.ahead == 12 and len(copies) == 16
    weight = torch.eye(3, requires_grad=True)
    x = y = torch.full((2, 3), 0.5)
    for i in range(4):
        x = torch.tanh(x @ weight + y * i)
    x.sum().backward()
    assert all(torch.equal(one, weight.grad) for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd3-medium"])
def test_a_streamed_run_takes_the_same_steps(tmp_path, name):
    plain = trajectory(config(tmp_path, {"run.name": "plain"}, name))
    flags = {
        "memory.blocks_on_gpu": 2,
        "memory.gradient_checkpointing": True,
        "memory.checkpointing_fraction": 0.7,
        "memory.cpu_offload_checkpointing": True,
        "run.name": "streamed",
    }
    streamed = trajectory(config(tmp_path, flags, name))
    for step, other in zip(plain, streamed, strict=True):
        assert step == pytest.approx(other, rel=1e-9)
    assert "streaming: 2 of " in (tmp_path / "runs" / "streamed" / "log.txt").read_text("utf-8")


def test_how_to_checkpoint_needs_checkpointing(tmp_path):
    with pytest.raises(ValueError, match=r"memory: cpu_offload_checkpointing: .*set gradient_checkpointing = true"):
        config(tmp_path, {"memory.cpu_offload_checkpointing": True})


@pytest.mark.gpu
@pytest.mark.parametrize("held", [None, "nf4"])
@pytest.mark.parametrize("share", [0.5, 1.0], ids=["kept", "recomputed"])
def test_a_card_streams_with_the_same_gradients(held, share, monkeypatch):
    monkeypatch.setattr(activation_checkpointing, "SMALL", 0)
    out, grads, _ = gradients("sdxl", "cuda", held=held)
    mine, own, streamer = gradients("sdxl", "cuda", resident=1, share=share, to_host=True, held=held, passes=3)
    torch.testing.assert_close((mine, own), (out, grads), rtol=1e-4, atol=1e-6)
    assert streamer.copies > 0
