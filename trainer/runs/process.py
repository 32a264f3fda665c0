"""What an operating system says of processes, on Linux, macOS and Windows. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO


def start_time(pid: int) -> str | None:
    """When a living process began, in the system's own words; None when there is no such process.

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
    told = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout.split()
    return None if not told or told[0].startswith("Z") else " ".join(told[1:])


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
        told = kernel.GetProcessTimes(handle, *map(ctypes.byref, (created, other, other, other)))
        told = told and kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        return str(created.value) if told and code.value == 259 else None  # STILL_ACTIVE
    finally:
        kernel.CloseHandle(handle)


def host() -> str:
    return platform.node()


def kill(pid: int) -> None:
    """End a process and its children at once. Nothing happens when it is gone already."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/PID", str(pid), "/T", "/F"], capture_output=True)
        return
    with suppress(ProcessLookupError):
        leads = os.getpgid(pid) == pid != os.getpgrp()
        (os.killpg if leads else os.kill)(pid, signal.SIGKILL)


@contextmanager
def locked(path: str | Path) -> Iterator[bool]:
    """Whether the file could be locked for this process; False when another process holds it.

    The lock ends with the process, however that ends. Where a file system knows no locks, everybody gets one. Two
    holders within one process are not kept apart.
    """
    with Path(path).open("a+b") as file:
        yield _take(file)


def _take(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # Not flock: a forked data loader would inherit it and keep it when we are killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
