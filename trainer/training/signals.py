"""Ctrl-C and SIGTERM: a request to stop after this step, or before the first one."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from ..data.progress import Progress
from . import distributed

T = TypeVar("T")

SAME_PRESS = 1.0
"""Seconds within which signals are one request: torchrun passes on the Ctrl-C that its processes met already."""
STOPPING = "stopping soon: what is under way is finished, steps taken are saved; Ctrl-C again ends at once, unsaved"
AT_ONCE = "ending at once: nothing more is saved"
EARLY = "stopped before the first step; what was encoded is kept in the cache"


class StoppedEarly(KeyboardInterrupt):
    """A stop was requested before the first step."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; a second one, a second later or more, interrupts at once. Each is reported."""
    requested, last = threading.Event(), -math.inf

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal last
        again, last = time.monotonic() - last > SAME_PRESS, time.monotonic()
        if again:
            _acknowledge(AT_ONCE if requested.is_set() else STOPPING)
        if again and requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    wanted = (signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else []))
    old = {number: signal.signal(number, request) for number in wanted}
    try:
        yield requested
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _acknowledge(line: str) -> None:
    """A line of its own for the person, below a progress bar; safe in a signal's handler, where ``print`` is not."""
    if distributed.rank_and_world()[0] == 0:
        with suppress(OSError):  # standard error is closed
            os.write(2, f"\n{line}\n".encode())


def stop_if(requested: bool) -> None:
    if requested:
        raise StoppedEarly(EARLY)


def stoppable(progress: Progress, requested: threading.Event, whole: bool) -> Progress:
    """A progress that ends once a stop is requested.

    ``whole``: half of the work is useless, so the run stops there. One of several processes never stops alone: they
    agree to stop later.
    """

    def bar(items: Iterable[T], text: str, total: int | None = None) -> Iterable[T]:
        for item in progress(items, text, total):
            if requested.is_set() and not (whole and distributed.rank_and_world()[1] > 1):
                return stop_if(whole)
            yield item

    return bar
