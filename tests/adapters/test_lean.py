"""The lean LoRA layer against PEFT's own, which is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelkiln.bench.kernels import KernelCounter, count
from pixelkiln.trainer.adapters.inject import Adapter, inject
from pixelkiln.trainer.adapters.layers import NAME
from pixelkiln.trainer.adapters.lean import Copies, Lean, install
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.adapters.verify import probe
from pixelkiln.trainer.memory.quantize import quantize_layer

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 10), (7, 6)),
    "linear of tokens, no bias": (nn.Linear(6, 10, bias=False), (2, 5, 6)),
    "linear of a transposed input": (nn.Linear(6, 10), (2, 6, 5)),
    "1x1 convolution": (nn.Conv2d(6, 10, 1), (2, 6, 5, 4)),
    "convolution with stride": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 7, 8)),
    "convolution without bias": (nn.Conv2d(6, 10, (3, 1), padding=(1, 0), bias=False), (2, 6, 5, 4)),
}


def wrapped(layer: nn.Module, **options: Any) -> Any:
    """PEFT's layer on one like ``layer``, in float64, with random matrices."""
    torch.manual_seed(3)
    holder = nn.ModuleDict({"it": type(layer)(**given(layer))}).double()
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["it"], **options})
    peft.inject_adapter_in_model(config, holder, NAME)
    for parameter in holder.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    return holder["it"]


def given(layer: Any) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


def inputs(shape: tuple[int, ...], layer: str) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (x.transpose(1, 2) if "transposed" in layer else x).requires_grad_()


def matrices(layer: Any) -> list[Tensor]:
    return [layer.lora_A[NAME].weight, layer.lora_B[NAME].weight]


def pulled(layer: Any, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of the input and of both matrices."""
    out = layer(x)
    pull = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    return [out, *torch.autograd.grad((out.double() * pull).sum(), [x, *matrices(layer)])]


def far(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative error of any of them."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, wanted, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def is_lean(layer: Any, x: Tensor) -> bool:
    """Whether its forward is the one autograd node (and not PEFT's sum)."""
    return type(layer(x).grad_fn).__name__ in ("_LinearBackward", "_ConvolutionBackward")


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_alpha": 3}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_numbers_and_gradients_are_pefts(kind: str, options: dict[str, Any]) -> None:
    base, shape = LAYERS[kind]
    layer, x = wrapped(base, **options), inputs(shape, kind)
    wanted = pulled(layer, x)
    install([layer], Copies())
    assert is_lean(layer, x)
    assert far(pulled(layer, x), wanted) < 1e-12


@pytest.mark.parametrize("weights", ["fp8", "int8", "nf4"])
@pytest.mark.parametrize("kind", ["linear of a transposed input", "convolution with stride"])
def test_a_quantized_base(kind: str, weights: Any) -> None:
    if weights != "fp8":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base, shape = LAYERS[kind]
    base = type(base)(**given(base)).double().requires_grad_(False)
    quantize_layer(base, "int8" if weights == "nf4" and isinstance(base, nn.Conv2d) else weights)
    base.dtype = torch.float64  # pyright: ignore[reportAttributeAccessIssue]
    holder = nn.ModuleDict({"it": base})
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, target_modules=["it"]), holder, NAME)
    layer: Any = holder["it"]
    for matrix in matrices(layer):
        matrix.data = torch.randn(matrix.shape, dtype=torch.float64)
    x = inputs(shape, kind)
    wanted = pulled(layer, x)
    install([layer], Copies())
    assert is_lean(layer, x)
    assert far(pulled(layer, x), wanted) < 1e-12


def test_what_does_not_fit_is_pefts() -> None:
    base, shape = LAYERS["linear"]
    layer, x = wrapped(base), inputs(shape, "linear")
    wanted = pulled(layer, x)
    install([layer], Copies())
    handle = layer.base_layer.register_forward_hook(lambda module, args, out: None)
    assert not is_lean(layer, x)
    handle.remove()
    layer.base_layer.weight.requires_grad_(True)
    assert not is_lean(layer, x)
    layer.base_layer.weight.requires_grad_(False)
    assert is_lean(layer, x)
    for matrix in matrices(layer):  # narrower than the rest, and no autocast: PEFT converts the input
        matrix.data = matrix.data.float()
    assert not is_lean(layer, x)
    assert far(pulled(layer, x), wanted) < 1e-5


def test_compiled_it_is_pefts() -> None:
    base, shape = LAYERS["linear of tokens, no bias"]
    layer, x = wrapped(base), inputs(shape, "linear")
    wanted = pulled(layer, x)
    install([layer], Copies())
    compiled = torch.compile(lambda value: layer(value), backend="eager", fullgraph=True)
    out = compiled(x)
    assert far([out], wanted[:1]) < 1e-12
    pull = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    assert far(torch.autograd.grad((out * pull).sum(), [x, *matrices(layer)]), wanted[1:]) < 1e-12


# ------------------------------------------------------------------------------------------------------- a whole model


def made(dtype: torch.dtype = torch.float64, family: str = "sd15", **options: Any) -> Adapter:
    parts = tiny.parts(family)
    parts.denoiser.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    adapter = inject(parts.denoiser, parts.text_encoders, family, AdapterOptions(rank=4, **options), dtype=wide, seed=1)
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1
    return adapter


def gradients(adapter: Adapter, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    values = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in probe(adapter.modules["unet"]).items()
    }
    out = adapter.modules["unet"](**values).sample
    found = torch.autograd.grad(out.double().square().mean(), adapter.parameters(), allow_unused=True)
    return [out, *(torch.zeros(1) if grad is None else grad for grad in found)]


def as_peft(adapter: Adapter) -> None:
    for layer in adapter.layers:
        assert isinstance(layer.forward, Lean)
        del layer.forward


@pytest.mark.parametrize("family", ["sd15", "sd3.5-medium"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv_rank": 2, "conv_alpha": 1.0, "alpha": 2.0},
        {"dropout": 0.3},
        {"rank_dropout": 0.3, "conv_rank": 2},
        {"dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2},
    ],
    ids=str,
)
def test_a_model_trains_as_with_peft(family: str, options: dict[str, Any]) -> None:
    if family != "sd15" and "conv_rank" in options:
        options = {name: value for name, value in options.items() if not name.startswith("conv")}
    adapter = made(family=family, **options)
    adapter.train(True)
    adapter.new_step(7, ["a"])
    lean = gradients(adapter)
    as_peft(adapter)
    for found, wanted in zip(lean, gradients(adapter), strict=True):
        assert torch.linalg.vector_norm(found - wanted) <= 1e-12 * torch.linalg.vector_norm(wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_it_is_no_further_from_the_truth_than_peft(dtype: torch.dtype) -> None:
    truth = gradients(made())
    whole = torch.cat([grad.flatten() for grad in truth[1:]])

    def error(adapter: Adapter, **how: Any) -> float:
        with torch.autocast("cpu", dtype), adapter.in_dtype(dtype):
            found = gradients(adapter, dtype)
        assert all(grad.dtype == torch.float32 for grad in found[1:])
        return float((torch.cat([grad.flatten().double() for grad in found[1:]]) - whole).norm() / whole.norm())

    adapter = made(dtype)
    lean = error(adapter)
    as_peft(adapter)
    pefts = error(adapter)
    assert 0 < lean < 1.1 * pefts, (lean, pefts)


def test_copies_are_made_once_and_never_out_of_date() -> None:
    adapter = made(torch.bfloat16)
    layer = next(one.layers[0] for one in adapter.mounted if one.plan.site.paths[0].endswith("attn1.to_q"))
    x = torch.randn(2, 3, layer.in_features).bfloat16().requires_grad_()

    def run(recompute: bool = False) -> list[Tensor]:
        out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        assert isinstance(out, Tensor)
        return [out, *torch.autograd.grad(out.float().square().sum(), [x, *matrices(layer)])]

    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            wanted = run()
            with adapter.in_dtype(torch.bfloat16), KernelCounter() as counter:
                out = layer(x)
                assert not counter.casts, "the copies are there"
                assert torch.equal(out, wanted[0])
                assert all(torch.equal(a, b) for a, b in zip(run(recompute=True), wanted, strict=True))
            with torch.no_grad(), adapter.in_dtype(torch.bfloat16):
                assert torch.equal(layer(x), wanted[0])
        for matrix in matrices(layer):  # as some optimizers change it: no version counter tells it
            matrix.data.mul_(2)


def test_a_recomputed_forward_takes_the_copies_of_its_own_pass() -> None:
    """A pass without gradients in between, as of a reference, makes copies of its own."""
    adapter = made(torch.bfloat16)
    layer = adapter.layers[0]
    shape = (2, layer.in_features, 4, 4) if isinstance(layer.base_layer, nn.Conv2d) else (2, 3, layer.in_features)
    x = torch.randn(shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), adapter.in_dtype(torch.bfloat16):
        plain = torch.autograd.grad(layer(x).float().square().sum(), matrices(layer))
        out = checkpoint(layer, x, use_reentrant=False)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), adapter.in_dtype(torch.bfloat16):
        layer(x)
    assert isinstance(out, Tensor)
    again = torch.autograd.grad(out.float().square().sum(), matrices(layer))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


# ------------------------------------------------------------------------------------------------------------- kernels


def test_kernels_of_a_layer() -> None:
    """8 of a linear layer, of which 2 are the base's: PEFT's takes 14."""
    base, shape = LAYERS["linear of tokens, no bias"]
    layer, x = wrapped(base), inputs(shape, "linear")

    def kernels() -> int:
        with KernelCounter() as counter:
            out = layer(x)
            torch.autograd.grad(out, [x, *matrices(layer)], torch.ones_like(out))
        return counter.kernels.total() - counter.kernels["ones_like"]

    pefts = kernels()
    install([layer], Copies())
    assert kernels() == 8 < pefts


@pytest.mark.slow
def test_kernels_of_a_step() -> None:
    """SD 1.5 at 512 px in bfloat16, checkpointed: with PEFT's layers and autocast's norms 6,843, of which 2,491 casts.
    What is left of these are the GroupNorms', which are meant (``memory/norms.py``)."""
    found = count("sd15", {"memory.gradient_checkpointing": True})
    assert found.kernels.total() <= 3_780 and found.casts <= 295, (found.kernels.total(), found.casts)
