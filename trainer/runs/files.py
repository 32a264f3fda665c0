"""Files that are written whole or not at all. Standard library only."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import secrets
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import UserError

_log = logging.getLogger(__name__)
BROKEN_PICKLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, ImportError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch's reader of pickles, which loads tensors only, raises on damaged ones."""
_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_WINDOWS_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


class NotWritten(OSError, UserError):
    """A file could not be written: one line for people. ``errno`` is the system's."""

    def __init__(self, path: Path, code: int | None):
        reason = os.strerror(code).lower() if code else "the system gave no reason"
        remedy = "free some space there" if code in _FULL else "choose a folder that can be written to"
        super().__init__(f"{path}: it cannot be written ({reason}); {remedy}. What was there before is untouched")
        self.errno = code


def write_atomic(path: str | Path, content: bytes | str | Callable[[Path], object], *, durable: bool = True) -> None:
    """Write beside ``path`` and rename: a reader, a crash or a full disk meets the old file or the new one.

    ``content`` is the bytes, a text (written as UTF-8), or a function that writes the file whose path it is given.
    With ``durable`` the file survives a power cut too; without, only the death of this process. Raises NotWritten
    (an OSError and a UserError); the temporary file is removed whatever happens.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        if callable(content):
            content(aside)
        else:
            aside.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            with aside.open("r+b") as file:
                os.fsync(file.fileno())
        _replace(aside, path)
        _log.debug("wrote %s", path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        # Writers in Rust, such as safetensors, raise their own exceptions for system errors.
        code = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError):
            raise NotWritten(path, error.errno) from error
        if code:
            raise NotWritten(path, int(code[1])) from error
        raise
    if durable and os.name != "nt":
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some network file systems cannot
            os.fsync(folder)
        os.close(folder)


def _replace(aside: Path, path: Path) -> None:
    """Rename, with retries on Windows, where it fails for as long as somebody reads the old file."""
    for wait in _WINDOWS_WAITS if os.name == "nt" else ():
        try:
            aside.replace(path)
            return
        except PermissionError:
            time.sleep(wait)
    aside.replace(path)


def check_target(
    target: str | Path, *sources: str | Path | None, force: bool = False, name: str = "", folder: bool = False
) -> None:
    """The rule for every file that somebody names to be written: what is there stays there without ``force``, and what
    the command reads is never replaced. UserError otherwise.

    :param sources: what is read. Of a folder, every file in it is.
    :param name: the flag that names the target, for the message.
    :param folder: whether a folder is to be written, instead of a file.
    """
    target = Path(target)
    if not os.path.lexists(target):
        return
    where = f"{name}: {target}" if name else str(target)
    for source in filter(None, sources):
        if _same(target, Path(source)):
            raise UserError(f"{where}: it is what is read here, and would be lost; give another name")
    if target.exists() and not (target.is_dir() if folder else target.is_file()):
        kind = "a folder" if target.is_dir() else "a file" if target.is_file() else "a device"
        raise UserError(f"{where}: it is {kind}; give the name of a {'folder' if folder else 'file'}")
    if not force:
        raise UserError(f"{where}: it is there already; give another name, or --force to replace it")


def _same(target: Path, source: Path) -> bool:
    """Whether ``target`` is ``source``, by whatever name, or one of them is a folder that holds the other."""
    try:
        if target.samefile(source):
            return True
        one, other = target.resolve(), source.resolve()
        return (target.is_dir() and one in other.parents) or (source.is_dir() and other in one.parents)
    except (OSError, ValueError):  # a source that is no file is no file to be lost
        return False


def make_folder(folder: str | Path, option: str = "") -> Path:
    """Make a folder where it is missing, and return it.

    :raises UserError: it cannot be made or written to; the message names the ``option`` that names the folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        name = f"{option}: {folder}" if option else f"{folder}:"
        line = f"{name} cannot be written ({error.strerror}); choose a folder that you may write to"
        raise UserError(line) from None
    return folder


def is_file(path: Path) -> bool:
    """``Path.is_file``, and False for what cannot be a file's name here: those of damaged lists can be anything."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a null character
        return False


def decode(data: bytes) -> str:
    """The text of a file that a person wrote: UTF-8, or UTF-16 as Windows' editors write it, with its mark or without.

    :raises UnicodeDecodeError: it is neither.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-32" if data[:4] == b"\xff\xfe\0\0" else "utf-16")
    controls = len(data) % 2 == 0 and any(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in data)
    try:
        if not controls:
            return data.decode("utf-8-sig")
        # Text has no control characters, UTF-16 has them for every space. The half with fewer bytes is the high one.
        first, second = ((len(set(half)), sum(half)) for half in (data[0::2], data[1::2]))
        text = data.decode("utf-16-be" if first < second else "utf-16-le")
        return text if "\0" not in text else data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("utf-8-sig")


def sweep(folder: str | Path) -> int:
    """Remove what a killed ``write_atomic`` left below a folder that nobody writes to now; returns how many files."""
    leftovers = [p for p in Path(folder).rglob(".*.tmp") if _ASIDE.fullmatch(p.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def user_cache() -> Path:
    """The folder for what this machine remembers between runs; PIXELKILN_CACHE names another."""
    if own := os.environ.get("PIXELKILN_CACHE"):
        return Path(own)
    home = Path.home()
    system = {
        "win32": os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"),
        "darwin": home / "Library" / "Caches",
    }
    return Path(system.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "pixelkiln"
