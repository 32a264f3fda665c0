"""A LoRA layer as one autograd function over plain tensors; PEFT's own layer is the reference, and computes the rest.

``out = base(x) + s * up(down(x))`` and its gradients are 3 + 5 matrix products here, against 16 kernels of PEFT's
modules: scale and sum are part of the products, and x is kept once. In 16 bits the adapter's weights are 32-bit ones;
their copies in the dtype of the computation are made once for a forward pass, of all layers together, and so are
their gradients in 32 bits (``Copies``). PEFT's own forward computes where something else is asked for: several
adapters at once, dtypes that do not agree, a layer that is compiled, a base layer with hooks or trained weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ..memory.activation_checkpointing import in_backward
from ..memory.quantize import is_quantized, multiplies, product, pulled

_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
_BARE = (nn.Linear, nn.Conv2d)
Masks = Callable[[tuple[int, ...], Tensor], Tensor]
"""(Shape of what the down matrix puts out, a tensor of its device and dtype) -> what it is multiplied by."""


class Copies:
    """The adapter's weights in the dtype of the computation, made for a forward pass and kept for its backward pass."""

    def __init__(self) -> None:
        self._made: dict[bool, dict[nn.Module, Tensor]] = {False: {}, True: {}}
        """By whether they carry a gradient: a pass without one never takes those of one with."""
        self._inside = False

    @contextmanager
    def made(self, holders: Iterable[nn.Module], dtype: torch.dtype) -> Iterator[None]:
        """Inside, and in the backward pass that follows, ``of`` knows the copies of the ``holders``' weights."""
        grad, was = torch.is_grad_enabled(), self._inside
        self._made[grad] = {}
        wide = {holder: weight for holder in holders if (weight := _weight(holder)).dtype != dtype}
        if wide:
            self._made[grad] = dict(zip(wide, _Copied.apply(dtype, *wide.values()), strict=True))  # pyright: ignore
        self._inside = True
        try:
            yield
        finally:
            self._inside = was

    def of(self, holder: nn.Module, dtype: torch.dtype) -> Tensor:
        """Its weight in ``dtype``. Copies are out of date outside of ``made``, but for a forward that is recomputed."""
        weight = _weight(holder)
        if weight.dtype == dtype:
            return weight
        if self._inside or in_backward():
            copy = self._made[torch.is_grad_enabled()].get(holder)
            if copy is not None and copy.dtype == dtype:
                return copy
        return weight.to(dtype)


class _Copied(torch.autograd.Function):
    """Many tensors in another dtype by one kernel, and their gradients back by another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        there = [(i, grad) for i, grad in enumerate(grads) if grad is not None]
        wide = [torch.empty_like(grad, dtype=ctx.dtypes[i]) for i, grad in there]
        if wide:
            torch._foreach_copy_(wide, [grad for _, grad in there])
        found = {i: grad for (i, _), grad in zip(there, wide, strict=True)}
        return None, *(found.get(i) for i in range(len(grads)))


@dataclass(eq=False)
class Lean:
    """Stands as ``forward`` of one of PEFT's LoRA layers; ``del layer.forward`` brings PEFT's own back."""

    layer: Any
    copies: Copies
    masks: Masks | None = None
    """Dropout between the two matrices, in training (``dropout.Dropout``)."""
    _matrices: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pefts = self.layer.forward
        self.convolves = isinstance(self.layer.get_base_layer(), nn.Conv2d)

    def matrices(self, name: str) -> tuple[Any, Any]:
        """The modules that hold the down and up matrix of an adapter."""
        found = self._matrices.get(name)
        if found is None:
            found = self._matrices[name] = (self.layer.lora_A[name], self.layer.lora_B[name])
        return found

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        if args or kwargs or torch.compiler.is_compiling():
            return self.pefts(x, *args, **kwargs)
        modules = layer._modules
        base = modules["base_layer"]
        if layer._disable_adapters:
            return base(x)
        active = layer._active_adapter
        name = active if isinstance(active, str) else active[0] if len(active) == 1 else None
        if name is None or name not in modules["lora_A"]._modules or layer.merged_adapters or not _is_plain(base):
            return self.pefts(x)
        down, up = self.matrices(name)
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        if not autocast and (_weight(down).dtype != dtype or _dtype(base) != dtype):
            return self.pefts(x)
        mask = None
        if self.masks is not None and layer.training and name == "default":
            mask = self.masks(_inner_shape(x, down, self.convolves), x)
            mask = mask.to(dtype)
        function = _Convolution if self.convolves else _Linear
        return function.apply(  # pyright: ignore[reportReturnType]
            _as(x, dtype), self.copies.of(down, dtype), self.copies.of(up, dtype), base, down, layer.scaling[name], mask
        )


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, which takes ten times as long where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def _weight(holder: Any) -> Tensor:
    return holder._parameters["weight"]


def _dtype(base: Any) -> torch.dtype:
    return base.dtype if is_quantized(base) else _weight(base).dtype


def _is_plain(base: Any) -> bool:
    """A frozen layer that nobody watches."""
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks:
        return False
    if type(base) not in _BARE:
        return is_quantized(base)
    bias = base._parameters["bias"]
    return not (base._parameters["weight"].requires_grad or (bias is not None and bias.requires_grad))


def _whole(base: Any, dtype: torch.dtype) -> Tensor:
    return base.whole(dtype) if is_quantized(base) else _as(_weight(base), dtype)


def _in_8_bits(base: Any, rows: Tensor) -> bool:
    return is_quantized(base) and base.products and multiplies(base, len(rows))


def _bias(base: Any, dtype: torch.dtype) -> Tensor | None:
    bias = base._parameters["bias"]
    return None if bias is None else _as(bias, dtype)


def _inner_shape(x: Tensor, down: Any, convolves: bool) -> tuple[int, ...]:
    if not convolves:
        return (*x.shape[:-1], down.out_features)
    sizes = [
        (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for side, pad, dilation, kernel, stride in zip(
            x.shape[2:], down.padding, down.dilation, down.kernel_size, down.stride, strict=True
        )
    ]
    return (x.shape[0], down.out_channels, *sizes)


class _Linear(torch.autograd.Function):
    """x [..., in], down [r, in], up [out, r] -> [..., out]."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, base: Any, holder: Any, scale: float, mask: Tensor | None
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        bias = _bias(base, x.dtype)
        if _in_8_bits(base, rows):
            out = product(base, rows)
            out = out if bias is None else out.add_(bias)
        else:
            out = linear(rows, _whole(base, x.dtype), bias)
        inner = linear(rows, down)
        if mask is not None:
            mask = mask.reshape(-1, mask.shape[-1])
            inner = inner * mask
        out.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(x, inner, down, up, mask)
        ctx.base, ctx.scale = base, scale
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        x, inner, down, up, mask = ctx.saved_tensors
        wants_x, wants_down, wants_up = ctx.needs_input_grad[:3]
        base: Any = ctx.base
        grad, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        of_x = of_down = of_up = None
        if wants_up:  # with beta = 0 the first argument is not read
            of_up = torch.addmm(up, grad.t(), inner, beta=0, alpha=ctx.scale)
        if wants_x or wants_down:
            of_inner = torch.addmm(inner, grad, up, beta=0, alpha=ctx.scale)
            if mask is not None:
                of_inner = of_inner * mask
            if wants_down:
                of_down = torch.mm(of_inner.t(), rows)
            if wants_x:
                bare = pulled(base, grad) if _in_8_bits(base, grad) else torch.mm(grad, _whole(base, grad.dtype))
                of_x = bare.addmm_(of_inner, down).view(x.shape)
        return of_x, of_down, of_up, None, None, None, None


class _Convolution(torch.autograd.Function):
    """x [n, in, h, w], down [r, in, k, k] as the base convolves, up [out, r, 1, 1] -> [n, out, h', w']."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, base: Any, holder: Any, scale: float, mask: Tensor | None
    ) -> Tensor:
        out = base._conv_forward(x, _whole(base, x.dtype), _bias(base, x.dtype))
        inner = holder._conv_forward(x, down, None)
        if mask is not None:
            inner = inner * mask
        out.add_(torch.nn.functional.conv2d(inner, up, groups=base.groups), alpha=scale)
        ctx.save_for_backward(x, inner, down, up, mask)
        ctx.base, ctx.holder, ctx.scale = base, holder, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        x, inner, down, up, mask = ctx.saved_tensors
        wants_x, wants_down, wants_up = ctx.needs_input_grad[:3]
        base: Any = ctx.base
        of_inner, of_up = _pulled(grad, inner, up, None, base.groups, wants_x or wants_down, wants_up)
        if of_up is not None and ctx.scale != 1:
            of_up.mul_(ctx.scale)
        if of_inner is not None:
            of_inner = of_inner * mask if mask is not None else of_inner
            of_inner = of_inner.mul_(ctx.scale) if ctx.scale != 1 else of_inner
        of_x = of_down = None
        if of_inner is not None:
            of_x, of_down = _pulled(of_inner, x, down, ctx.holder, ctx.holder.groups, wants_x, wants_down)
        if of_x is not None:
            bare, _ = _pulled(grad, x, _whole(base, grad.dtype), base, base.groups, True, False)
            of_x = bare if bare is None else of_x.add_(bare)
        return of_x, of_down, of_up, None, None, None, None


def _pulled(
    grad: Tensor, x: Tensor, weight: Tensor, how: Any, groups: int, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution's input and weight, None for those not wanted. ``how``: None is 1x1."""
    stride, padding, dilation = (how.stride, how.padding, how.dilation) if how is not None else ([1, 1], [0, 0], [1, 1])
    if not (wants_x or wants_weight):
        return None, None
    found = _CONVOLUTION_BACKWARD(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [wants_x, wants_weight, False]
    )
    return found[0], found[1]


def install(layers: Iterable[Any], copies: Copies) -> None:
    """Put the lean forward on PEFT's LoRA layers of linear layers and 2D convolutions; others keep PEFT's."""
    from peft.tuners.lora import Conv2d, Linear

    for layer in layers:
        base = layer.get_base_layer()
        linear = type(layer) is Linear and isinstance(base, nn.Linear)
        convolution = type(layer) is Conv2d and isinstance(base, nn.Conv2d)
        if convolution and (base.padding_mode != "zeros" or isinstance(base.padding, str)):
            continue
        if (linear or convolution) and not isinstance(layer.forward, Lean):
            layer.forward = Lean(layer, copies)
