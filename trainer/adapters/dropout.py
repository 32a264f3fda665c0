"""Kohya's three dropouts as hooks on PEFT's layers (PEFT has only dropout of a layer's input).

Masks follow from the step's seed, the module and the row alone: a row meets the same ones in whatever company, and in a
forward that is recomputed for its gradient; q, k, v that are tied as one adapter share theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import NAME, Mounted
from .lean import Lean


@dataclass
class Dropout:
    """Chances, the seed of the present step, and its rows."""

    values: float
    """Of each value between an adapter's two matrices, scaled by 1 / (1 - p): network_dropout."""
    ranks: float
    """Of a rank for a sample, scaled by 1 / (1 - p): rank_dropout. LoHa and LoKr drop rows of the difference, LoKr
    without scaling, as PEFT has it."""
    modules: float
    """Of a module for a whole step: module_dropout."""
    seed: int = 0
    rows: tuple[str, ...] = ()
    """The names of the rows that are under way; their places when there are none."""

    def attach(self, mounted: Iterable[Mounted]) -> None:
        for index, one in enumerate(mounted):
            if one.kind in ("lora", "dora") and (self.values or self.ranks):
                self._on_ranks(index, one)
            if one.kind in ("loha", "lokr") and self.ranks:
                for layer in one.layers:
                    self._seeded(index, layer)
            if self.modules:
                for layer in one.layers:
                    self._on_module(index, layer)

    def _number(self, index: int, what: str) -> int:
        text = f"{self.seed} {index} {what}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def _mask(self, shape: tuple[int, ...], like: Tensor, index: int, what: str, chance: float) -> Tensor:
        generator, drawn = torch.Generator(like.device), torch.empty(shape, device=like.device)
        for name, row in zip(self._names(len(drawn)), drawn, strict=True):
            row.uniform_(generator=generator.manual_seed(self._number(index, f"{what} {name}")))
        return (drawn >= chance).to(like.dtype) / (1 - chance)

    def _names(self, count: int) -> list[str]:
        """Of a tensor's rows: several for a sample whose caption is encoded in parts."""
        rows = self.rows or tuple(map(str, range(count)))
        return [f"{row} {part}" for row in rows for part in range(count // len(rows))]

    def _on_ranks(self, index: int, one: Mounted) -> None:
        """On what the down matrix puts out. DoRA also runs it on an identity to see its weight: that passes whole."""
        meant: list[Tensor | None] = [None]

        def masks(shape: tuple[int, ...], like: Tensor) -> Tensor:
            found = None
            if self.ranks:
                convolves = len(one.plan.site.shape) == 4
                ranks, ones = shape[1] if convolves else shape[-1], (1,) * (len(shape) - 2)
                found = self._mask((shape[0], ranks), like, index, "ranks", self.ranks)
                found = found.reshape((shape[0], ranks, *ones) if convolves else (shape[0], *ones, ranks)).expand(shape)
            if self.values:
                each = self._mask(shape, like, index, "values", self.values)
                found = each if found is None else each * found
            assert found is not None
            return found

        def begins(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            meant[0] = inputs[0]

        def drop(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if not module.training or (one.kind == "dora" and inputs[0] is not meant[0]):
                return None
            meant[0] = None
            return out * masks(tuple(out.shape), out)

        if one.kind == "dora":
            for layer in one.layers:
                layer.lora_magnitude_vector[NAME].register_forward_pre_hook(begins)
        one.layers[0].lora_A[NAME].register_forward_hook(drop)
        for layer in one.layers:
            if isinstance(layer.forward, Lean):
                layer.forward.masks = masks

    def _on_module(self, index: int, layer: Any) -> None:
        switched = [False]

        def before(module: Any, inputs: tuple[Tensor, ...]) -> None:
            if _trains(module) and self._number(index, "module") % 2**32 < self.modules * 2**32:
                module._disable_adapters = switched[0] = True  # enable_adapters would touch requires_grad

        def after(module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            if switched[0]:
                module._disable_adapters = switched[0] = False

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after, always_call=True)

    def _seeded(self, index: int, layer: Any) -> None:
        """PEFT's own rank dropout draws from the CPU's global generator: lend it a seeded one."""
        kept: list[Tensor | None] = [None]

        def before(module: Any, inputs: tuple[Tensor, ...]) -> None:
            if _trains(module):
                kept[0] = torch.get_rng_state()
                torch.default_generator.manual_seed(self._number(index, "ranks"))

        def after(module: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            if kept[0] is not None:
                torch.set_rng_state(kept[0])
                kept[0] = None

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after, always_call=True)


def _trains(layer: Any) -> bool:
    return layer.training and not layer.disable_adapters and list(layer.active_adapters) == [NAME]
