"""Norms of a frozen 16-bit network under a GPU's autocast, with the casts left out that change nothing.

Autocast runs norms in 32 bits, and converts their input, their frozen weights and what they put out each time anew. A
LayerNorm's kernel computes in 32 bits anyway, and rounds once: run on 16 bits it gives what autocast gives to the
layers behind it. A GroupNorm's does not (in 16 bits a GPU's rounds mean and deviation), so it stays in 32 bits, with
its weights converted once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOW = (torch.bfloat16, torch.float16)


def spare_casts(model: nn.Module) -> None:
    """For the norms of a frozen model; nothing changes without autocast, and for what is compiled."""
    for module in model.modules():
        if type(module) is nn.LayerNorm and module.weight is not None:
            module.forward = _layer_norm(module, module.forward)
        elif type(module) is nn.GroupNorm and module.affine:
            module.forward = _group_norm(module, module.forward)


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
