"""Waiting for something that another process does, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return when ``true()`` is truthy; fail after ``seconds`` with ``what`` was waited for."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
