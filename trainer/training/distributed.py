"""Several processes, as torchrun or accelerate start them: who is who, sums over all, and what the death of one means.

Everybody holds the whole model and the whole adapter, and takes its share of each effective batch
(``step.micro_batches``). Only the first writes. What is agreed upon travels over gloo, between cards too, so that a
process that has died is met as a closed connection, before the gradients are added up and not as a hang.
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
"""How long one may keep the others waiting: the first draws previews, or fills a cache, while they do."""


class Lost(UserError):
    """Another process of this run is gone."""


def place() -> tuple[int, int]:
    """(rank, world) as the launcher's environment tells them; (0, 1) without one."""
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(world)) if rank.isdigit() and world.isdigit() and int(world) > 1 else (0, 1)


def join(wanted: str) -> tuple[int, int, torch.device]:
    """(rank, world, device): this process among those that were started together, after all have met."""
    device = memory.choose_device(wanted)
    if place()[1] == 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # libraries ask for the current card
        return 0, 1, device
    from accelerate import PartialState

    nccl = device.type == "cuda" and torch.distributed.is_nccl_available()
    backend = {"backend": "cuda:nccl,cpu:gloo" if nccl else "gloo"} if device.type == "cuda" else {}
    with _met():
        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE, **backend)
    assert state.device is not None
    return state.process_index, state.num_processes, state.device


def leave() -> None:
    """This process waits for no other any more."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _met() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's words for it have no class of their own
        raise Lost(
            f"train: another of the run's {place()[1]} processes has ended, or cannot be reached "
            f"({str(error).splitlines()[0][:120]}); its own last line says why"
        ) from error


def gather(value: T) -> list[T]:
    """Everybody's value, by rank, given to everybody. Raises Lost."""
    from accelerate.utils import gather_object

    with _met():
        return gather_object([value])


def total(mine: Tensor) -> Tensor:
    """The sum of everybody's tensor, the same bits for everybody. Raises Lost."""
    from accelerate.utils import reduce

    with _met():
        found = reduce(mine, "sum")
    assert isinstance(found, Tensor)
    return found


def of_the_first(make: Callable[[], T]) -> T:
    """What ``make`` gives the first process; its ValueError is everybody's."""
    rank, world = place()
    if world == 1:
        return make()
    told: list[Any] = [None, None]
    if rank == 0:
        try:
            told[0] = make()
        except ValueError as error:
            told[1] = str(error)
    from accelerate.utils import broadcast_object_list

    with _met():
        broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(told[1])
    return told[0]


def same(facts: dict[str, str]) -> None:
    """Refuse to go on where the processes do not see the same. ValueError names what differs."""
    if place()[1] == 1:
        return
    everybody = gather(facts)
    for name, value in everybody[0].items():
        odd = [rank for rank, one in enumerate(everybody) if one[name] != value]
        if odd:
            raise UserError(
                f"train: process {odd[0]} has another {name} than process 0; "
                "give all machines the same files and the same configuration"
            )
