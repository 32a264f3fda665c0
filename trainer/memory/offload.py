"""Blocks of the frozen denoiser that live in the host's memory and are copied to the GPU ahead of use.

The base never changes, so nothing is written back. A block's weights lie in one piece of pinned memory; the GPU has
room for the one in use and for those to come (``ahead``), which are copied on a stream of its own. A layer asks for
its weight in its forward and again in its backward pass (see ``quantize``), so it makes no difference to the numbers
when a piece was given to another block in between. What comes next is what came next the last time, in each direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .activation_checkpointing import in_backward
from .quantize import Parts, is_quantized, quantize_layer

ALIGN = 256


@dataclass(eq=False)
class Block:
    """One block: its layers, and where their parts are."""

    layers: list[Any]
    spans: list[tuple[int, str, int, torch.dtype, torch.Size]]
    """Layer, part, first byte, dtype, shape."""
    size: int
    """Bytes of all parts."""
    host: Tensor | None = None
    slot: int | None = None
    ready: Any = None
    """The event after which the GPU has it."""
    views: list[Parts] = field(default_factory=list)


class Streamer:
    """The blocks of a denoiser, some resident on the GPU, the rest streamed."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, resident: int = 0, ahead: int = 1):
        """Their layers may be quantized already or plain. ``resident``: how many blocks stay on the GPU; ``ahead``: how
        many of the others are copied there before they are used."""
        self.device, self.ahead = device, ahead
        self.blocks = [_block(module) for module in blocks]
        self.blocks = [block for block in self.blocks if block.layers]
        self.resident = len(self.blocks)
        self.copies = 0
        """Blocks copied to the GPU so far."""
        self.missed = 0
        """Those of them that were not prefetched: the GPU waited."""
        self._after: dict[tuple[bool, Block], Block] = {}
        self._now: tuple[bool, Block] | None = None
        self._slots: list[Tensor] = []
        self._of: list[Block | None] = []
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.keep(resident)

    @property
    def host_bytes(self) -> int:
        return sum(block.size for block in self.blocks if block.host is not None)

    def keep(self, count: int) -> None:
        """Let ``count`` blocks be resident, spread evenly, so that others are copied while these compute."""
        total = len(self.blocks)
        self.resident = count = max(0, min(count, total))
        self._forget()
        for i, block in enumerate(self.blocks):
            stays = (i + 1) * count // total > i * count // total
            if stays and block.host is not None:
                self._to_device(block)
            elif not stays and block.host is None:
                self._to_host(block)
        streamed = [block.size for block in self.blocks if block.host is not None]
        room = 1 + self.ahead if streamed else 0
        self._slots = [torch.empty(max(streamed), dtype=torch.uint8, device=self.device) for _ in range(room)]
        self._of = [None] * len(self._slots)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fit(self, spare: int) -> int:
        """Make resident as many more blocks as ``spare`` bytes allow; how many are resident then."""
        most = max(block.size for block in self.blocks)
        self.keep(self.resident + max(0, spare) // most)
        return self.resident

    # --------------------------------------------------------------------------------------------------- moving

    def _to_host(self, block: Block) -> None:
        host = pinned(block.size, self.device)
        for (i, name, *_), view in zip(block.spans, _cut(host, block), strict=True):
            view.copy_(block.layers[i]._buffers[f"packed_{name}"])
        block.host = host
        for i, layer in enumerate(block.layers):
            for name in layer.names:
                layer._buffers[f"packed_{name}"] = None
            layer.fetch = _Fetch(self, block, i)

    def _to_device(self, block: Block) -> None:
        assert block.host is not None
        for (i, name, *_), view in zip(block.spans, _cut(block.host, block), strict=True):
            block.layers[i]._buffers[f"packed_{name}"] = view.to(self.device, copy=True)
        for layer in block.layers:
            layer.fetch = None
        unpin(block.host)
        block.host = None

    # ------------------------------------------------------------------------------------------------ streaming

    def fetch(self, block: Block) -> list[Parts]:
        """The parts of a block's layers, on the GPU."""
        now = (in_backward(), block)
        if now == self._now:
            return block.views
        if self._now is not None and self._now[1] is not block:
            self._after[(now[0], self._now[1])] = block
        self._now = now
        coming = self._coming()
        if block.slot is None:
            self.missed += 1
            self._copy(block, coming)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_event(block.ready)
        for following in coming:
            if following.slot is None:
                self._copy(following, coming)
        return block.views

    def _coming(self) -> list[Block]:
        """What followed the block in use the last time, ``ahead`` blocks at most."""
        assert self._now is not None
        backward, block = self._now
        found: list[Block] = []
        while len(found) < self.ahead and (following := self._after.get((backward, block))) is not None:
            if following is self._now[1] or following in found:
                break
            found.append(following)
            block = following
        return found

    def _copy(self, block: Block, coming: Sequence[Block]) -> None:
        """Into a slot that is not in use and will not be soon; after everything that was computed with what was
        there."""
        assert block.host is not None and self._now is not None
        needed = (self._now[1], *coming)
        slot = next(i for i, block_in in enumerate(self._of) if block_in is None or block_in not in needed)
        if (old := self._of[slot]) is not None:
            old.slot, old.views = None, []
        self._of[slot], block.slot = block, slot
        self.copies += 1
        room = self._slots[slot][: block.size]
        if self._side is None:
            room.copy_(block.host)
        else:
            self._side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._side):
                room.copy_(block.host, non_blocking=True)
                block.ready = self._side.record_event()
        block.views = [{} for _ in block.layers]
        for (i, name, *_), view in zip(block.spans, _cut(room, block), strict=True):
            block.views[i][name] = view

    def _forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for block in self.blocks:
            block.slot, block.views = None, []
        self._after.clear()
        self._now = None


@dataclass(frozen=True)
class _Fetch:
    """What a streamed layer asks for its parts."""

    streamer: Streamer
    block: Block
    index: int

    def __call__(self) -> Parts:
        return self.streamer.fetch(self.block)[self.index]


def pinned(size: int, device: torch.device) -> Tensor:
    """``size`` bytes of the host's memory, pinned for a GPU, exactly (torch's own allocator takes the next power of
    two, and keeps it). Where the system pins no more they are plain memory: slower to copy, not wrong."""
    host = torch.empty(size, dtype=torch.uint8)
    if device.type == "cuda" and size:
        cuda: Any = torch.cuda.cudart()
        if int(cuda.cudaHostRegister(host.data_ptr(), size, 0)):
            with suppress(RuntimeError):
                torch.zeros(1, device=device)  # a launch takes the error back
    return host


def unpin(host: Tensor) -> None:
    """Before it is freed."""
    if host.is_pinned():
        cuda: Any = torch.cuda.cudart()
        cuda.cudaHostUnregister(host.data_ptr())


def _block(module: nn.Module) -> Block:
    """A block with all its layers wrapped, quantized or not."""
    layers = []
    for layer in list(module.modules()):
        if type(layer) in (nn.Linear, nn.Conv2d):
            quantize_layer(layer, "full")
        if is_quantized(layer):
            layers.append(layer)
    spans, at = [], 0
    for i, layer in enumerate(layers):
        for name in layer.names:
            part: Any = layer._buffers[f"packed_{name}"]
            spans.append((i, name, at, part.dtype, part.shape))
            at += -(-part.numel() * part.element_size() // ALIGN) * ALIGN
    return Block(layers, spans, at)


def _cut(flat: Tensor, block: Block) -> list[Tensor]:
    return [
        flat[at : at + shape.numel() * dtype.itemsize].view(dtype).view(shape) for _, _, at, dtype, shape in block.spans
    ]
