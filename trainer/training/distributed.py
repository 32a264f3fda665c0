"""Several processes, as torchrun or accelerate start them: data parallel training over all of them.

Each process holds the whole model and the whole adapter, and takes its share of each effective batch
(``step.micro_batches``). Only the first writes. Objects travel over gloo, between GPUs too, so that a process that has
died shows as a closed connection, before gradients are added up, and not as a hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from ..memory import device as memory

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long one process may keep the others waiting, while it draws previews or fills a cache."""


class ProcessLost(UserError):
    """Another process of this run is gone."""


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) from the launcher's environment; (0, 1) without one."""
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(world)) if rank.isdigit() and world.isdigit() and int(world) > 1 else (0, 1)


def initialize(wanted: str) -> tuple[int, int, torch.device]:
    """Wait for all processes that were started together; returns (rank, world size, device)."""
    device = memory.choose_device(wanted)
    if rank_and_world()[1] == 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # libraries ask for the current GPU
        return 0, 1, device
    from accelerate import PartialState

    nccl = device.type == "cuda" and torch.distributed.is_nccl_available()
    backend = {"backend": "cuda:nccl,cpu:gloo" if nccl else "gloo"} if device.type == "cuda" else {}
    with _peer_errors():
        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE, **backend)
    assert state.device is not None
    return state.process_index, state.num_processes, state.device


def finalize() -> None:
    """Leave the group: this process waits for no other any more."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _peer_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL raise no class of their own
        raise ProcessLost(
            f"train: another of the run's {rank_and_world()[1]} processes has ended, or cannot be reached "
            f"({str(error).splitlines()[0][:120]}); its own last line says why"
        ) from error


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank. Raises ProcessLost."""
    from accelerate.utils import gather_object

    with _peer_errors():
        return gather_object([value])


def all_reduce(mine: Tensor) -> Tensor:
    """The sum of the tensor over all processes, the same bits on each. Raises ProcessLost."""
    from accelerate.utils import reduce

    with _peer_errors():
        found = reduce(mine, "sum")
    assert isinstance(found, Tensor)
    return found


def broadcast(make: Callable[[], T]) -> T:
    """The value that ``make`` returns in the first process, for all; its UserError is raised in all."""
    rank, world = rank_and_world()
    if world == 1:
        return make()
    result: list[Any] = [None, None]
    if rank == 0:
        try:
            result[0] = make()
        except UserError as error:
            result[1] = str(error)
    from accelerate.utils import broadcast_object_list

    with _peer_errors():
        broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


def require_equal(facts: dict[str, str]) -> None:
    """Raise a UserError that names the first fact that differs between processes."""
    if rank_and_world()[1] == 1:
        return
    everybody = all_gather(facts)
    for name, value in everybody[0].items():
        odd = [rank for rank, one in enumerate(everybody) if one[name] != value]
        if odd:
            raise UserError(
                f"train: process {odd[0]} has another {name} than process 0; "
                "give all machines the same files and the same configuration"
            )
