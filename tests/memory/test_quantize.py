"""Frozen weights in 8 and 4 bits: what is held, what is computed, and what adapters make of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import tiny
import torch
from short_runs import config, events, trajectory
from torch import nn

from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.verify import probe
from pixelkiln.trainer.families.sd15 import SD15
from pixelkiln.trainer.memory import quantize

CPU = torch.device("cpu")
LINEAR = (96, 128)
CONV = (16, 8, 3, 3)


def layer(shape: tuple[int, ...]) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], 3, stride=2, padding=1)
    return made.requires_grad_(False)


def given(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(2, 5, shape[1]) if len(shape) == 2 else torch.randn(2, shape[1], 9, 9)


@pytest.mark.parametrize("shape", [LINEAR, CONV], ids=["linear", "convolution"])
@pytest.mark.parametrize(("kind", "error"), [("full", 0), ("fp8", 0.04), ("int8", 0.02), ("nf4", 0.15)])
def test_a_held_layer_computes_with_the_rounded_weight_in_both_directions(kind, error, shape):
    plain, held = layer(shape), layer(shape)
    quantize.quantize_layer(held, kind)
    assert isinstance(held, type(plain)) and held.weight.shape == plain.weight.shape
    off = float((held.weight - plain.weight).norm() / plain.weight.norm())
    assert off <= error and (off > 0 or kind == "full")
    rounded = deepcopy(plain)
    rounded.weight.data = held.weight
    x = given(shape)
    outs = []
    for one in (held, rounded):
        leaf = x.clone().requires_grad_()
        out = one(leaf)
        (out**2).sum().backward()
        outs.append((out, leaf.grad))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
    stored = sum(b.numel() * b.element_size() for n, b in held.named_buffers() if n.startswith("packed_"))
    assert stored == quantize.quantized_bytes(kind, shape, torch.float32)


def test_nf4_is_bitsandbytes_own():
    """Its Linear4bit, on the CPU, from the same weight: bit for bit the same weight, the same output and gradient."""
    bnb = pytest.importorskip("bitsandbytes")
    plain, held = layer(LINEAR), layer(LINEAR)
    theirs = bnb.nn.Linear4bit(LINEAR[1], LINEAR[0], quant_type="nf4", compute_dtype=torch.float32,
                               compress_statistics=False)  # fmt: skip
    theirs.load_state_dict({"weight": plain.weight, "bias": plain.bias})
    theirs = theirs.to("cpu")
    quantize.quantize_layer(held, "nf4")
    assert torch.equal(bnb.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state), held.weight)
    x = given(LINEAR)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(held(mine), theirs(other))
    held(mine).sum().backward()
    theirs(other).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)


def test_no_unpacked_weight_is_kept_for_the_backward_pass():
    held = layer(LINEAR)
    quantize.quantize_layer(held, "fp8")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        held(given(LINEAR).requires_grad_())
    assert kept == []


@pytest.mark.parametrize(
    ("adapter", "kind"), [("lora", "nf4"), ("dora", "nf4"), ("dora", "fp8"), ("loha", "int8"), ("lokr", "fp8")]
)
def test_adapters_on_a_held_model_equal_those_on_the_rounded_model(adapter, kind):
    """The network with held layers against one with the same rounded weights in plain layers: output and gradients."""
    held, rounded = tiny.parts("sdxl").denoiser, tiny.parts("sdxl").denoiser
    assert quantize.quantize_module(held, kind, SD15.quantized, CPU) > 20
    for name, one in held.named_modules():
        if isinstance(one, (quantize.QuantizedLinear, quantize.QuantizedConv2d)):
            rounded.get_submodule(name).weight.data = one.weight
    options = AdapterOptions(kind=adapter, rank=2, conv_rank=2)
    results = []
    for model in (held.requires_grad_(False), rounded.requires_grad_(False)):
        made = inject(model, {}, "sdxl", options, seed=1)
        for index, parameter in enumerate(made.parameters()):
            parameter.data += 0.02 * torch.sin(torch.arange(parameter.numel()) + index).reshape(parameter.shape)
        out = model(**probe(model)).sample
        (out**2).mean().backward()
        results.append((out.detach(), [p.grad for p in made.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "adapter"),
    [("sd15", "nf4", "lora"), ("sdxl", "fp8", "dora"), ("sd3-medium", "int8", "lora")],
)
def test_a_run_on_held_weights_trains_saves_and_proves_its_file(tmp_path, name, kind, adapter):
    flags = {"run.precision": "fp32", "memory.base_weights": kind, "adapter.kind": adapter, "objective.kind": "dpo"}
    done = config(tmp_path, {**flags, "memory.gradient_checkpointing": True}, name, data="data.pairs")
    losses = trajectory(done)
    assert losses[0][1] > 0 and losses[0][0] == pytest.approx(0.6931, abs=1e-3)  # the reference is the held model too
    log = (tmp_path / "runs" / "t" / "log.txt").read_text("utf-8")
    assert "each has the trained effect" in log and "base weights: " in log
    assert not [e for e in events(done) if e["kind"] == "warning" and "not a number" in str(e)]


def test_text_is_cached_anew_when_encoders_are_held_differently(tmp_path):
    from pixelkiln.trainer.families.load import load
    from pixelkiln.trainer.families.options import ModelOptions

    family = load(ModelOptions(path=str(tiny.tiny_sd15(tmp_path))))
    before = family.fingerprints["text"]
    plain = family.encode_text(["a cat"]).hidden
    del family.__dict__["fingerprints"]
    quantize.quantize_module(family.text_encoders["te"], "nf4", quantize.TEXT, CPU)
    assert family.fingerprints["text"] != before
    off = (family.encode_text(["a cat"]).hidden - plain).norm() / plain.norm()
    assert 0 < off < 0.3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_a_card_unpacks_what_the_processor_does(kind):
    here, there = layer(LINEAR), layer(LINEAR)
    quantize.quantize_layer(here, kind)
    quantize.quantize_layer(there, kind, torch.device("cuda"))
    torch.testing.assert_close(there.weight.cpu(), here.weight, rtol=1e-2, atol=1e-3)


def test_int8_is_unbiased_and_keeps_the_largest_weight_of_each_row():
    """A row's largest weight is 127 of its steps: it comes back as it was (bitsandbytes takes rows in float16)."""
    plain, quantized = layer(LINEAR), layer(LINEAR)
    quantize.quantize_layer(quantized, "int8")
    at = plain.weight.abs().argmax(1, keepdim=True)
    largest, found = plain.weight.gather(1, at), quantized.weight.gather(1, at)
    torch.testing.assert_close(found, largest, rtol=1e-3, atol=0)
    ratio = (plain.weight * quantized.weight).sum() / plain.weight.square().sum()
    assert float(ratio) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------------------------------------- 8-bit products


def test_products_of_8_bit_numbers_by_their_definition() -> None:
    """What is summed are whole numbers, so any order gives the same sum; rounding has the slope 1."""
    held: Any = layer(LINEAR)
    quantize.quantize_layer(held, "int8", products=True)
    weight = held.weight
    torch.manual_seed(1)
    x = torch.randn(40, LINEAR[1]) * torch.logspace(-3, 3, 40)[:, None]
    x[7] = 0

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        step = rows.abs().amax(1, keepdim=True).clamp(min=2.0**-100) / 127
        return torch.round(rows / step) * step

    leaf = x.clone().requires_grad_()
    out = held(leaf)
    torch.testing.assert_close(out, torch.nn.functional.linear(rounded(x), weight, held.bias), rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    scale = held.parts()["scale"].t()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, rounded(grad * scale) @ (weight / scale.t()), rtol=1e-4, atol=1e-5)
    off = (leaf.grad - grad @ weight).norm() / (grad @ weight).norm()
    assert 0 < off < 0.02
    few = torch.randn(quantize.ROWS - 1, LINEAR[1])
    assert torch.equal(held(few), torch.nn.functional.linear(few, weight, held.bias))


def test_large_products_are_made_in_parts_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    held = layer(LINEAR)
    quantize.quantize_layer(held, "int8", products=True)
    x = torch.randn(3, 50, LINEAR[1])
    wanted = held(x)
    monkeypatch.setattr(quantize, "AT_ONCE", 70 * LINEAR[0])
    assert torch.equal(held(x), wanted)


def test_a_network_of_8_bit_products_is_near_one_of_whole_products() -> None:
    found = {}
    for products in (False, True):
        model = tiny.parts("sd15").denoiser.requires_grad_(False)
        quantize.quantize_module(model, "int8", SD15.quantized, CPU, products=products)
        adapter = inject(model, {}, "sd15", AdapterOptions(rank=2), seed=1)
        for parameter in adapter.parameters():
            parameter.data += 0.02 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape)
        out = model(**probe(model)).sample
        out.square().mean().backward()
        grads = torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None])
        found[products] = (out.detach(), grads, quantize.quantized_as(model))
    (out, grads, kind), (near, its, other) = found[False], found[True]
    assert 0 < (near - out).norm() < 0.05 * out.norm()
    assert torch.nn.functional.cosine_similarity(its, grads, dim=0) > 0.99
    assert kind == "int8" and "int8 products" in other  # cached references of one are not those of the other


def test_8_bit_products_need_int8(tmp_path) -> None:
    with pytest.raises(ValueError, match=r'memory: int8_products: .*set base_weights = "int8"'):
        config(tmp_path, {"memory.int8_products": True})
