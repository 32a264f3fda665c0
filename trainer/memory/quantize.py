"""Frozen weights quantized (8 or 4 bits) or offloaded, and whole only while their layer computes with them.

A quantized layer is still an ``nn.Linear`` or ``nn.Conv2d`` with a ``weight``, so every kind of adapter sits on it as
on any other. Its output's gradient is taken with the weight unpacked a second time; no unpacked weight outlives a
layer's forward or backward pass, with or without checkpointing. The arithmetic of int8 and nf4 is bitsandbytes'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from .options import Weights

Parts = dict[str, Tensor]
"""The tensors that a weight is stored as."""
BLOCK = 64
"""Numbers that share a scale in nf4."""
TEXT = ("encoder",)
"""The part of a text encoder whose layers are quantized; what is before and after stays as it is."""


def kind_for(layer: nn.Module, wanted: Weights) -> Weights:
    """How a layer is quantized: convolutions, few and sensitive, get 8 bits where the rest gets 4."""
    return "int8" if wanted == "nf4" and isinstance(layer, nn.Conv2d) else wanted


def pack(weight: Tensor, kind: Weights) -> Parts:
    """A weight [out, ...] as it is stored. ``full``: as it is."""
    if kind == "full":
        return {"packed": weight.contiguous()}
    rows = weight.flatten(1)
    if kind == "fp8":  # a scale for each row, a power of two: nothing is lost by it, also in bfloat16
        most = rows.float().abs().amax(1, keepdim=True).clamp(min=2.0**-100)
        scale = torch.exp2(torch.ceil(torch.log2(most / 448)))
        return {"packed": (rows.float() / scale).to(torch.float8_e4m3fn), "scale": scale}
    import bitsandbytes.functional as bnb

    if kind == "int8":
        packed, scale, _ = bnb.int8_vectorwise_quant(rows.to(torch.float16))
        return {"packed": packed, "scale": scale.float()[:, None] / 127}
    low = rows if rows.dtype in (torch.float16, torch.bfloat16, torch.float32) else rows.float()
    packed, state = bnb.quantize_4bit(low.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return {"packed": packed, "scale": state.absmax}


def unpack(parts: Parts, kind: Weights, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight again, in ``dtype``."""
    packed = parts["packed"]
    if kind == "full":
        return packed.reshape(shape).to(dtype)
    if kind == "fp8":
        return packed.to(dtype).mul_(parts["scale"].to(dtype)).reshape(shape)
    if kind == "int8":
        out = torch.empty(packed.shape, dtype=dtype, device=packed.device)
        return torch.mul(packed, parts["scale"].to(torch.promote_types(dtype, torch.float32)), out=out).reshape(shape)
    import bitsandbytes.functional as bnb

    known = dtype if dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float32
    rows = torch.Size((shape[0], shape[1:].numel()))
    state = bnb.QuantState(parts["scale"], rows, _levels(packed.device), BLOCK, "nf4", known)
    return bnb.dequantize_4bit(packed, state).reshape(shape).to(dtype)


@cache
def _levels(device: torch.device) -> Tensor:
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device=device)


def quantized_bytes(kind: Weights, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that a weight of ``shape`` takes when it is quantized."""
    numbers = torch.Size(shape).numel()
    if kind == "full":
        return numbers * dtype.itemsize
    if kind == "nf4":
        return -(-numbers // 2) + 4 * -(-numbers // BLOCK)
    return numbers + 4 * shape[0]


# ------------------------------------------------------------------------------------------------------------ layers


class _Through(torch.autograd.Function):
    """A layer's output for its input, both passes with a weight that is unpacked for them alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        with torch.autocast(x.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.to(x.dtype)
            if layer.products and multiplies(layer, x.numel() // x.shape[-1]):
                out = product(layer, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], layer.shape[0])
                return out if bias is None else out.add_(bias)
            return layer.compute(x, layer.whole(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.layer.products and multiplies(ctx.layer, grad.numel() // grad.shape[-1]):
                return pulled(ctx.layer, grad.reshape(-1, grad.shape[-1])).view(ctx.shape), None
            return ctx.layer.pull(grad, ctx.layer.whole(grad.dtype), ctx.shape), None


ROWS, STEP = 17, 8
"""The fewest rows, and what both sides of a weight are multiples of, for which cuBLAS multiplies 8-bit numbers."""
AT_ONCE = 2**24
"""Sums of 32 bits held at a time."""


def multiplies(layer: Any, rows: int) -> bool:
    """Whether the product of so many rows with a linear layer's int8 weight is one of 8-bit numbers."""
    return rows >= ROWS and not any(side % STEP for side in layer.shape)


def product(layer: Any, rows: Tensor) -> Tensor:
    """rows [n, in] times the weight [out, in] transposed, as a product of 8-bit numbers: each row is rounded to 127
    steps of its largest number. [n, out] in the rows' dtype."""
    parts = layer.parts()
    return _multiplied(rows, parts["packed"].t(), parts["scale"].t())


def pulled(layer: Any, grad: Tensor) -> Tensor:
    """grad [n, out] times the weight [out, in] in the same way, as if rounding had the slope 1; the weight's scales,
    one for each row of it, are part of what is rounded. [n, in]."""
    parts = layer.parts()
    return _multiplied(grad.float() * parts["scale"].t(), parts["packed"], None).to(grad.dtype)


def _multiplied(rows: Tensor, packed: Tensor, scale: Tensor | None) -> Tensor:
    out = rows.new_empty(len(rows), packed.shape[1])
    count = -(-out.numel() // AT_ONCE)
    for some, to in zip(rows.tensor_split(count), out.tensor_split(count), strict=True):
        most = some.abs().amax(1, keepdim=True).float().clamp(min=2.0**-100)
        low = torch.round(some * (127 / most)).to(torch.int8)
        sums = torch._int_mm(low, packed).to(torch.float32).mul_(most / 127)  # pyright: ignore[reportPrivateUsage]
        to.copy_(sums if scale is None else sums.mul_(scale))
    return out


_reused: list[tuple[Any, Any]] = []
"""The last layer looked at and its weight, inside ``weights_reused``."""


@contextmanager
def weights_reused() -> Iterator[None]:
    """Inside, many looks at one layer's ``weight`` in a row unpack it once: PEFT looks fifteen times at each."""
    _reused.append((None, None))
    try:
        yield
    finally:
        _reused.pop()


class _Quantized(nn.Module):
    """What quantized layers share. They are made of plain ones by ``quantize_layer``, never constructed."""

    kind: Weights
    shape: torch.Size
    dtype: torch.dtype
    names: tuple[str, ...]
    products: bool
    """Of a linear layer in int8: computes with 8-bit numbers and does not unpack its weight."""
    fetch: Callable[[], Parts] | None
    """Where the parts come from when they are not the layer's own buffers."""
    bias: nn.Parameter | None

    def parts(self) -> Parts:
        if self.fetch is not None:
            return self.fetch()
        return {name: self._buffers[f"packed_{name}"] for name in self.names}  # pyright: ignore[reportReturnType]

    def whole(self, dtype: torch.dtype) -> Tensor:
        return unpack(self.parts(), self.kind, self.shape, dtype)

    @property
    def weight(self) -> Tensor:
        """The weight in the precision of the run, for whoever looks at it (a copy: nothing written to it stays)."""
        if _reused and _reused[-1][0] is self:
            return _reused[-1][1]
        whole = self.whole(self.dtype)
        whole = whole.clone() if self.kind == "full" else whole
        if _reused:
            _reused[-1] = (self, whole)
        return whole

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _Through.apply(x.to(dtype), self)  # pyright: ignore[reportReturnType]


class QuantizedLinear(_Quantized, nn.Linear):  # pyright: ignore
    compute = staticmethod(F.linear)

    @staticmethod
    def pull(grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return grad @ weight


class QuantizedConv2d(_Quantized, nn.Conv2d):  # pyright: ignore
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """PEFT makes the matrices of an adapter by the base layer's class: those are plain."""
        return nn.Conv2d(*args, **kwargs) if args else super().__new__(cls)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def pull(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        how: Any = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d_input(shape, weight, grad, *how)


def quantizable(module: nn.Module, inside: Collection[str]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers that can be quantized, by name: those ``inside`` children of these names."""
    for name, layer in module.named_modules():
        if any(part in inside for part in name.split(".")) and type(layer) in (nn.Linear, nn.Conv2d):
            if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
                continue
            yield name, layer  # pyright: ignore[reportReturnType]


@torch.no_grad()
def quantize_layer(
    layer: nn.Module, kind: Weights, device: torch.device | None = None, keep: torch.device | None = None,
    products: bool = False,
) -> None:  # fmt: skip
    """Turn a plain layer into a quantized one. Its weight is packed on ``device`` (where it is, if not given) and kept
    there or at ``keep``. ``products``: a linear layer multiplies in 8 bits."""
    weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
    parts = pack(weight.detach().to(device or weight.device), kind)
    del layer._parameters["weight"]
    made: Any = layer
    made.__class__ = QuantizedLinear if isinstance(layer, nn.Linear) else QuantizedConv2d
    made.kind, made.shape, made.dtype, made.names, made.fetch = kind, weight.shape, weight.dtype, tuple(parts), None
    made.products = products and kind == "int8" and isinstance(layer, nn.Linear)
    for name, value in parts.items():
        layer.register_buffer(f"packed_{name}", value if keep is None else value.to(keep), persistent=False)


def quantize_module(
    module: nn.Module,
    weights: Weights,
    inside: Collection[str],
    device: torch.device,
    keep: torch.device | None = None,
    products: bool = False,
) -> int:
    """Quantize every layer that can be, packed on ``device`` and kept there or at ``keep``; layer by layer, so that no
    second copy is on the device. How many there are. ``products``: in int8, linear layers multiply in 8 bits."""
    if weights == "full":
        return 0
    layers = [layer for _, layer in quantizable(module, inside)]
    assert layers, f"{type(module).__name__} has no layers in {inside}"
    for layer in layers:
        quantize_layer(layer, kind_for(layer, weights), device, keep, products)
    return len(layers)


def is_quantized(module: nn.Module) -> bool:
    return isinstance(module, _Quantized)


def quantized_as(module: nn.Module) -> str:
    """``full``, or the kinds that a module's layers are quantized as: part of what its output depends on."""
    kinds = {
        f"{layer.kind} products" if layer.products else layer.kind
        for layer in module.modules()
        if isinstance(layer, _Quantized)
    }
    return "+".join(sorted(kinds - {"full"})) or "full"
