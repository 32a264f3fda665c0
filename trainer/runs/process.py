"""Processes and file locks on Linux, macOS and Windows. Standard library only, as ComfyUI's Python imports it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError


def start_time(pid: int) -> str | None:
    """When a living process started, in the system's own format; None when there is no such process.

    A number may be given to another process later, or after a restart of the machine; number and start together name
    one process for good, and no change of the clock alters them.
    """
    if pid <= 0:
        return None
    if sys.platform == "win32":
        return _windows_start(pid)
    return _linux_start(pid) if Path("/proc/self/stat").exists() else _ps_start(pid)


def _linux_start(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, ticks = fields[0], fields[19]  # fields 3 and 22 of proc(5); 1 and 2 were cut off with the name
    return None if state in "ZX" else f"{_boot()}:{ticks}"


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _ps_start(pid: int) -> str | None:
    columns = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout.split()
    return None if not columns or columns[0].startswith("Z") else " ".join(columns[1:])


def _windows_start(pid: int) -> str | None:
    assert sys.platform == "win32"
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return None
    handle = ctypes.c_void_p(handle)
    created, other, code = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint32()
    try:
        ok = kernel.GetProcessTimes(handle, *map(ctypes.byref, (created, other, other, other)))
        ok = ok and kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        return str(created.value) if ok and code.value == 259 else None  # STILL_ACTIVE
    finally:
        kernel.CloseHandle(handle)


def host() -> str:
    """The name of this machine."""
    return platform.node()


def kill(pid: int) -> None:
    """End a process and its children at once. Nothing happens when it is gone already."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/PID", str(pid), "/T", "/F"], capture_output=True)
        return
    with suppress(ProcessLookupError):
        leads = os.getpgid(pid) == pid != os.getpgrp()
        (os.killpg if leads else os.kill)(pid, signal.SIGKILL)


def environment(**more: str) -> dict[str, str]:
    """This process's environment variables without those meant for its own Python, for another Python."""
    host_only = ("PYTHON", "VIRTUAL_ENV", "__PYVENV")
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(host_only)}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **more}


def apart() -> dict[str, Any]:
    """Arguments of ``Popen``: a process group of its own, so that a host's Ctrl-C does not reach it, and no window."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def start_detached(
    command: Sequence[str], log: Path | BinaryIO | None, *, cwd: str | Path, env: Mapping[str, str]
) -> subprocess.Popen[Any]:
    """Start a process that outlives this one. Its output is appended to ``log``, or dropped. Raises OSError."""
    if isinstance(log, Path):
        with log.open("ab") as file:
            return start_detached(command, file, cwd=cwd, env=env)
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
        stdout=log or subprocess.DEVNULL, stderr=subprocess.STDOUT, **apart(),
    )  # fmt: skip


@contextmanager
def wait_for_lock(path: str | Path, patience: float = 30.0) -> Iterator[None]:
    """Hold ``<path>.lock``, also against other threads of this process; it ends with the process.

    Raises UserError when somebody else holds it for longer than ``patience`` seconds.
    """
    path = Path(path)
    with path.with_name(path.name + ".lock").open("a+b") as file:
        until = time.monotonic() + patience
        while not _take(file, across_threads=True):
            if time.monotonic() > until:
                raise UserError(f"{path.as_posix()}: another program is writing to it; close it and try again")
            time.sleep(0.02)
        try:
            yield
        finally:
            _release(file)


@contextmanager
def locked(path: str | Path) -> Iterator[bool]:
    """Whether the file could be locked for this process; False when another process holds it.

    The lock ends with the process, however that ends. Where a file system knows no locks, everybody gets one. Two
    holders within one process are not kept apart.
    """
    with Path(path).open("a+b") as file:
        yield _take(file)


def _take(file: BinaryIO, across_threads: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # flock keeps threads apart, but a forked data loader would inherit it and keep it when we are killed.
            (fcntl.flock if across_threads else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _release(file: BinaryIO) -> None:
    with suppress(OSError):  # where a file system knows no locks
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_UN)
