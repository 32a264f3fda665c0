"""Measures the memory of a real step: the peak by torch's profiler, and what autograd saves by hooks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixelkiln.trainer.diffusion.types import Batch
from pixelkiln.trainer.training.session import Session
from pixelkiln.trainer.training.step import backward_row_by_row, compute_loss


def peak(run: Callable[[], Any]) -> int:
    """Bytes that the CPU allocator had given out at most during ``run``, beyond what it had before."""
    gc.collect()  # what is freed inside would count against it
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    found = profiler.profiler
    assert found is not None and found.kineto_results is not None
    sizes = [event.nbytes() for event in found.kineto_results.events() if event.name() == "[memory]"]
    assert sizes
    current = highest = 0
    for size in sizes:
        current += size
        highest = max(highest, current)
    return highest


class Saved:
    """Bytes of the storages that autograd saves inside, each once, without parameters and buffers."""

    def __init__(self, *known: torch.nn.Module):
        self._known = {t.untyped_storage().data_ptr() for m in known for t in (*m.parameters(), *m.buffers())}
        self._seen: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._seen[storage.data_ptr()] = storage  # a reference, so that the address is not reused
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._seen.values())

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *what: Any) -> None:
        self._hooks.__exit__(*what)


def forward(session: Session, batch: Batch) -> Tensor:
    """A micro-batch's loss as the engine makes it; with ``grad_cache`` its backward is behind it too."""
    model, terms, roles = session.model, session.terms, batch.rows.role
    model.adapter.train(True)
    random = model.system.draw(batch, 0, 0)
    if session.config.memory.grad_cache:
        return backward_row_by_row(model, terms, batch, random, roles, 0, session.optimization.scaler).loss
    return compute_loss(model, terms, batch, random, roles, 0).loss
