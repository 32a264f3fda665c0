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
ASKED = "stopping soon: what is under way is finished, steps taken are saved; Ctrl-C again ends at once, unsaved"
AT_ONCE = "ending at once: nothing more is saved"
EARLY = "stopped before the first step; what was encoded is kept in the cache"


class Stopped(KeyboardInterrupt):
    """Somebody asked to stop, and no step was taken yet."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; a second one, a second later or more, interrupts at once. Each is told."""
    asked, last = threading.Event(), -math.inf

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal last
        again, last = time.monotonic() - last > SAME_PRESS, time.monotonic()
        if again:
            _acknowledge(AT_ONCE if asked.is_set() else ASKED)
        if again and asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    wanted = (signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else []))
    old = {number: signal.signal(number, ask) for number in wanted}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _acknowledge(line: str) -> None:
    """A line of its own for the person, below a progress bar; safe in a signal's handler, where ``print`` is not."""
    if distributed.place()[0] == 0:
        with suppress(OSError):  # nobody listens any more
            os.write(2, f"\n{line}\n".encode())


def stop_if(asked: bool) -> None:
    if asked:
        raise Stopped(EARLY)


def until(asked: threading.Event, progress: Progress, whole: bool) -> Progress:
    """A progress that hands nothing on once somebody asked to stop.

    ``whole``: half of the work is worth nothing, so the run is stopped there. Of several processes none leaves the
    others alone like that: they agree to stop later.
    """

    def told(items: Iterable[T], text: str, total: int | None = None) -> Iterable[T]:
        for item in progress(items, text, total):
            if asked.is_set() and not (whole and distributed.place()[1] > 1):
                return stop_if(whole)
            yield item

    return told
