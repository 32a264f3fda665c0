"""What a run reports: ``events.jsonl``, one line per event, and ``status.json``. Standard library only."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .files import NotWritten, write_atomic
from .process import host, start_time

State = Literal["queued", "running", "saving", "done", "stopped", "failed"]
STARTED_AS = "PIXELKILN_JOB"
"""The environment variable by which a host recognises the process that it started."""


class EventLog:
    """The writer of ``events.jsonl``: every line reaches the system at once, in one piece.

    It appends. A line that an earlier writer left torn is ended first, so it costs that one line only.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = self.path.open("ab", buffering=0)
        self._torn = _torn(self.path)

    def write(self, kind: str, step: int, **more: Any) -> None:
        """Append an event. Non-finite numbers become null. Raises NotWritten."""
        event = {"v": 1, "t": round(time.time(), 3), "kind": kind, "step": step, **more}
        line = b"\n" * self._torn + _json(event) + b"\n"
        self._torn = True
        try:
            written = self._file.write(line)
        except OSError as error:
            raise NotWritten(self.path, error.errno) from error
        if written != len(line):
            raise NotWritten(self.path, errno.ENOSPC)
        self._torn = False

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _json(value: Any) -> bytes:
    """One line of JSON. File names that are not valid text lose the bytes that are not."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def plain(value: Any) -> Any:
    """The value as JSON types: numbers of any library as Python's, non-finite ones as None, anything else as text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.item()) if hasattr(value, "item") else str(value)


def read_events(path: str | Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the whole events from a byte offset on; returns them and the offset to continue from.

    A last line without its end is left for next time, a line that is not a JSON object is skipped, and a file that is
    shorter than the offset (written again) is read from its start. No file: no events.
    """
    try:
        with Path(path).open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0
            file.seek(offset)
            whole, newline, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return [], 0
    found = (_object(line) for line in whole.split(b"\n"))
    return [event for event in found if event], offset + len(whole) + len(newline)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_status(
    run_dir: str | Path,
    state: State,
    *,
    step: int = 0,
    total: int = 0,
    eta: float | None = None,
    message: str = "",
    exit_code: int | None = None,
) -> None:
    """Replace ``status.json``, naming this process in it. ``eta`` in seconds. Raises NotWritten.

    Cheap enough for every second; only a power cut can lose it.
    """
    known = {"state": state, "step": step, "total": total, "eta": eta, "message": message, "exit_code": exit_code}
    status = {"v": 1, "t": round(time.time(), 3), **known, **identity(), "job": os.environ.get(STARTED_AS)}
    write_atomic(Path(run_dir) / "status.json", _json(status), durable=False)


def identity(pid: int | None = None) -> dict[str, Any]:
    """What identifies a process: its number, its start and its machine. Without a number, this process."""
    return {"pid": os.getpid(), "start": _own_start(os.getpid()), "host": host()} if pid is None else {
        "pid": pid, "start": start_time(pid), "host": host()
    }  # fmt: skip


@cache
def _own_start(pid: int) -> str | None:
    return start_time(pid)


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty when the file is missing or holds anything else."""
    for wait in (0.02, 0.1, None):
        try:
            return _object(Path(path).read_bytes())
        except PermissionError:  # Windows, while the file is being replaced
            if wait is None:
                return {}
            time.sleep(wait)
        except OSError:
            return {}
    return {}
