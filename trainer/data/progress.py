"""Work on many things: several at a time, with progress reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """Hands on what it is given, and tells somebody how far it is."""

    def __call__(self, items: Iterable[T], text: str, total: int | None = None) -> Iterable[T]: ...


def in_parallel(function: Callable[[T], R], jobs: Sequence[T], workers: int = 4) -> Iterator[tuple[T, R]]:
    """Results in order, a few jobs ahead."""
    todo = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        waiting = [(job, pool.submit(function, job)) for job in islice(todo, 2 * workers)]
        while waiting:
            job, future = waiting.pop(0)
            waiting += [(more, pool.submit(function, more)) for more in islice(todo, 1)]
            yield job, future.result()


def silent(items: Iterable[T], text: str, total: int | None = None) -> Iterable[T]:
    return items
