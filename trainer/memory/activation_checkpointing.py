"""What a denoiser is made of, block by block; blocks that are recomputed, and what they begin from kept elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALL = 2**20
"""Bytes up to which a tensor is not worth a way to the host and back."""


def blocks_of(denoiser: nn.Module, classes: Collection[str]) -> list[nn.Module]:
    """The modules of these classes, outermost first: a U-Net's highest resolution, on both sides, comes before the
    next; a transformer's blocks follow in order."""
    found = [(name, module) for name, module in denoiser.named_modules() if type(module).__name__ in classes]
    levels = len({name.split(".")[1] for name, _ in found if name.startswith("down_blocks")})

    def depth(entry: tuple[str, nn.Module]) -> int:
        part, _, rest = entry[0].partition(".")
        if part not in ("down_blocks", "up_blocks"):
            return levels
        at = int(rest.partition(".")[0])
        return at if part == "down_blocks" else levels - 1 - at

    return [module for _, module in sorted(found, key=depth)]


def recompute(blocks: Sequence[nn.Module], share: float = 1.0, to_host: bool = False) -> int:
    """Let the first ``share`` of the blocks forget their activations and compute them again in the backward pass.

    ``to_host``: what they begin from is kept in the host's memory until then. Returns how many blocks do it. The same
    numbers as without, bit for bit: nothing in a block is left to chance but what adapters draw from a step's seed.
    """
    chosen = blocks[: round(share * len(blocks))]
    host = Host() if to_host else None
    for block in chosen:
        block.forward = _recomputed(block.forward, host)
    return len(chosen)


def _recomputed(inner: Callable[..., Any], host: Host | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        count, names = len(args), list(kwargs)

        # all by position: only these does torch's checkpoint hand to the hooks; what ``run`` closes over would stay
        def run(*values: Any) -> Any:
            return inner(*values[:count], **dict(zip(names, values[count:])))

        with host.keeping() if host else nullcontext():
            return checkpoint(run, *args, *kwargs.values(), use_reentrant=False, preserve_rng_state=False)

    return forward


@dataclass(eq=False)
class _Group:
    """What one block keeps; nothing here keeps it alive."""

    before: weakref.ref[_Group] | None
    """Of the block that ran before, which is recomputed next."""
    kept: list[weakref.ref[_Kept]] = field(default_factory=list)
    asked_for: bool = False


@dataclass(eq=False)
class _Kept:
    """A tensor in the host's memory."""

    away: Tensor
    device: torch.device
    group: _Group
    here: tuple[Tensor, Any] | None = None
    """On the GPU again, before it is asked for, and the event after which it is."""


class Host:
    """Saved tensors in the host's memory, copied there on a stream of their own. In the backward pass a block's come
    back on it while the block behind computes: one block's more are on the GPU then."""

    def __init__(self, small: int | None = None):
        self.small = SMALL if small is None else small
        self.kept = 0
        """How many tensors went there."""
        self.ahead = 0
        """How many came back before they were asked for."""
        self._stream: Any = None
        self._group = _Group(None)

    def keeping(self) -> AbstractContextManager[Any]:
        self._group = _Group(weakref.ref(self._group))
        return torch.autograd.graph.saved_tensors_hooks(self._away, self._back)

    def _away(self, tensor: Tensor) -> Any:
        if tensor.is_leaf or tensor.numel() * tensor.element_size() < self.small:
            return tensor
        self.kept += 1
        kept = _Kept(self._sent(tensor), tensor.device, self._group)
        self._group.kept.append(weakref.ref(kept))
        return kept

    def _back(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        here, ready = kept.here or self._copied(kept)
        kept.here, kept.group.asked_for = None, True
        if ready is not None:
            now = torch.cuda.current_stream(kept.device)
            now.wait_event(ready)
            here.record_stream(now)
        before = kept.group.before() if kept.group.before and self._comes_ahead(kept.device) else None
        if before is not None and not before.asked_for:
            before.asked_for = True
            for one in (found for reference in before.kept if (found := reference()) is not None):
                one.here = self._copied(one)
                self.ahead += 1
        return here

    # what depends on the device, and what an estimate puts something else in the place of

    def _sent(self, tensor: Tensor) -> Tensor:
        """In the host's memory, or on its way there."""
        if not tensor.is_cuda:
            return tensor.to("cpu")
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            away = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            away.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._stream)
        return away

    def _comes_ahead(self, device: torch.device) -> bool:
        """Only beside a stream of their own would copies save time."""
        return device.type == "cuda"

    def _copied(self, kept: _Kept) -> tuple[Tensor, Any]:
        """On the stream that took it away, so after it has gone; with the event after which it is there."""
        if kept.device.type != "cuda":
            return kept.away.to(kept.device), None
        with torch.cuda.stream(self._stream):
            return kept.away.to(kept.device, non_blocking=True), self._stream.record_event()


def in_backward() -> bool:
    """Whether autograd is running a backward pass, a block's recomputation in it included."""
    return torch._C._current_graph_task_id() != -1
