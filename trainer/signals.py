"""Ctrl-C and SIGTERM: a request to stop after this step."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_PRESS = 1.0
"""Seconds within which signals are one request: torchrun passes on the Ctrl-C that its processes met already."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; a second one, a second later or more, interrupts at once."""
    asked, last = threading.Event(), -math.inf

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if asked.is_set() and time.monotonic() - last > SAME_PRESS:
            raise KeyboardInterrupt
        last = time.monotonic()
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
