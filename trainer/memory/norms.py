"""Norms of a frozen 16-bit network under a GPU's autocast, with the casts left out that change nothing.

Autocast runs norms in 32 bits, and converts their input, their frozen weights and what they put out each time anew. A
LayerNorm's kernel computes in 32 bits anyway, and rounds once: run on 16 bits it gives what autocast gives to the
layers behind it. A GroupNorm's does not (in 16 bits a GPU's rounds mean and deviation), so it stays in 32 bits, with
its weights converted once. The SiLU between such a norm and a convolution takes its gradient in 16 bits, as it comes,
and nearest-neighbour enlargement copies 16 bits as it copies 32: the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_SILU_BACKWARD = torch.ops.aten.silu_backward.default
BEFORE_CONVOLUTIONS = ("nonlinearity", "conv_act")
"""What diffusers calls the activations that only a convolution or a linear layer follows."""
LOW = (torch.bfloat16, torch.float16)


def spare_casts(model: nn.Module) -> None:
    """For the norms of a frozen model; nothing changes without autocast, and for what is compiled."""
    for module in model.modules():
        if type(module) is nn.LayerNorm and module.weight is not None:
            module.forward = _layer_norm(module, module.forward)
        elif type(module) is nn.GroupNorm and module.affine:
            module.forward = _group_norm(module, module.forward)
        for name in BEFORE_CONVOLUTIONS:
            after = getattr(module, name, None)
            if isinstance(after, nn.SiLU):
                after.forward = _silu(after.forward)
        if type(module).__name__ == "Upsample2D" and _only_enlarges(module):
            module.forward = _upsample(module, module.forward)


def _applies(module: Any, x: Tensor) -> bool:
    return (
        x.dtype in LOW
        and module.weight.dtype == x.dtype
        and torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
    )


def _layer_norm(module: nn.LayerNorm, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(input: Tensor) -> Tensor:
        if not _applies(module, input):
            return inner(input)
        torch.set_autocast_enabled(input.device.type, False)  # a context manager takes ten times as long
        try:
            return inner(input)
        finally:
            torch.set_autocast_enabled(input.device.type, True)

    return forward


def _group_norm(module: nn.GroupNorm, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    kept: list[Tensor] = []

    def forward(input: Tensor) -> Tensor:
        if not _applies(module, input):
            return inner(input)
        if not kept or kept[0].device != input.device:
            kept[:] = [module.weight.detach().float(), module.bias.detach().float()]
        return F.group_norm(input.float(), module.num_groups, kept[0], kept[1], module.eps)

    return forward


class _RoundedSilu(torch.autograd.Function):
    """x float32 -> silu(x) in a 16-bit dtype; its gradient is read in that dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return F.silu(x).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SILU_BACKWARD(grads[0], ctx.saved_tensors[0]), None


def _silu(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(input: Tensor) -> Tensor:
        device = input.device.type
        if input.dtype != torch.float32 or not torch.is_autocast_enabled(device) or torch.compiler.is_compiling():
            return inner(input)
        dtype = torch.get_autocast_dtype(device)
        if dtype not in LOW or device == "mps":
            return inner(input)
        return _RoundedSilu.apply(input, dtype)  # pyright: ignore[reportReturnType]

    return forward


def _only_enlarges(module: Any) -> bool:
    """Twice, and convolves: diffusers' block has other forms too."""
    return module.interpolate and module.use_conv and module.name == "conv" and module.norm is None


def _upsample(module: Any, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        x, device = hidden_states, hidden_states.device.type
        plain = x.dtype in LOW and torch.is_autocast_enabled(device) and not torch.compiler.is_compiling()
        if not plain or args or kwargs or x.shape[0] >= 64 or x.numel() >= 2**30:  # the last two diffusers copies first
            return inner(hidden_states, output_size, *args, **kwargs)
        torch.set_autocast_enabled(device, False)
        try:
            large = F.interpolate(x, size=output_size, scale_factor=None if output_size else 2.0, mode="nearest")
        finally:
            torch.set_autocast_enabled(device, True)
        return module.conv(large)

    return forward
