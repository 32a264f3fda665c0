"""What was computed once is kept by its content, so that it can never be stale: a changed input has another key.

An entry is one safetensors file that holds its key and a checksum; whatever does not match is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..runs.files import NotWritten, write_atomic
from .buckets import Size
from .options import Keep
from .pictures import Header, bounds, header

Entry = dict[str, Tensor]


def digest(text: str) -> str:
    """A short stable name for a text."""
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


class Store:
    """Entries by key: on disk with a small memory before it, in memory only, or nowhere."""

    def __init__(self, folder: Path, keep: Keep, limit: int | None = 256 * 2**20):
        """``limit``: bytes held in memory; None is no limit."""
        self.folder = folder
        self.keep = keep
        self.limit = limit
        self.family = ""
        """Of the model whose entries are put here; written into them for people."""
        self.remade = 0
        """Entries on disk that were damaged."""
        self._memory: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def path(self, key: str) -> Path:
        name = digest(key)
        return self.folder / name[:2] / f"{name}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the entry is there and whole."""
        return key in self._memory or (self.keep == "disk" and self._read(key) is not None)

    def get(self, key: str) -> Entry | None:
        """The entry, or None when it has to be made."""
        with self._lock:
            if (entry := self._memory.get(key)) is not None:
                self._memory.move_to_end(key)
                return entry
        if self.keep == "disk" and (entry := self._read(key)) is not None:
            self._remember(key, entry)
        return entry

    def put(self, key: str, entry: Entry) -> Entry:
        """Keep an entry, and give it back.

        :raises NotWritten: the disk is full or may not be written.
        """
        entry = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.items()}
        if self.keep != "off":
            self._remember(key, entry)
        if self.keep == "disk":
            crc = str(zlib.crc32(_payload(safetensors.torch.save(entry))))
            _write(self.path(key), safetensors.torch.save(entry, {"key": key, "crc": crc, "family": self.family}))
        return entry

    def _remember(self, key: str, entry: Entry) -> None:
        with self._lock:
            self._bytes += _size(entry) - _size(self._memory.pop(key, {}))
            self._memory[key] = entry
            while self.limit is not None and self._bytes > self.limit and len(self._memory) > 1:
                self._bytes -= _size(self._memory.popitem(last=False)[1])

    def _read(self, key: str) -> Entry | None:
        path = self.path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if meta["key"] == key and int(meta["crc"]) == zlib.crc32(_payload(data)):
                _used(path)
                return safetensors.torch.load(data)
        except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError):
            pass
        self.remade += 1
        return None


def _used(path: Path) -> None:
    """Note on a file that it is in use, once a day: ``cache --older-than`` goes by its time of change."""
    with suppress(OSError):  # it is read from a disk that may not be written
        if time.time() - path.stat().st_mtime > 86400:
            os.utime(path)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, durable=False)
    except OSError as error:
        if not (isinstance(error.__cause__, PermissionError) and path.exists()):  # Windows: it is read, so it is there
            raise error if isinstance(error, NotWritten) else NotWritten(path, error.errno) from error


def _payload(data: bytes) -> bytes:
    return data[8 + int.from_bytes(data[:8], "little") :]


def _size(entry: Entry) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in entry.values())


class Index:
    """Facts about files, remembered by size and times of change: header, content hash, whether it decodes.

    One JSON file per folder of pictures. A file that changed within two seconds before it was looked at is not
    remembered, since a further change might keep its times.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._folders: dict[str, dict[str, dict]] = {}
        self._facts: dict[Path, dict] = {}
        self._seen: dict[Path, float] = {}
        self._new = False

    def _file(self, parent: str) -> Path | None:
        return self.folder / f"{digest(parent)}.json" if self.folder else None

    def _remembered(self, path: Path) -> dict | None:
        parent = path.parent.as_posix()
        if parent not in self._folders:
            file = self._file(parent)
            try:
                data = json.loads(file.read_text("utf-8")) if file else {}
                self._folders[parent] = data["files"] if data.get("v") == 1 and data.get("of") == parent else {}
            except (OSError, ValueError, KeyError, AttributeError, RecursionError):
                self._folders[parent] = {}
        entry = self._folders[parent].get(path.name)
        return entry if isinstance(entry, dict) else None

    def _of(self, path: Path) -> dict:
        """What is known of a file. OSError when it is not there."""
        if path not in self._facts:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            known = self._remembered(path)
            self._facts[path] = known if known and known.get("stamp") == stamp else {"stamp": stamp}
            self._seen[path] = time.time()
        return self._facts[path]

    def header(self, path: Path) -> Header:
        """Size and alpha. Unreadable as ``pictures.header``."""
        facts = self._of(path)
        if "size" not in facts:
            found = header(path)
            facts.update(size=list(found.size), alpha=found.alpha)
            self._new = True
        return Header((int(facts["size"][0]), int(facts["size"][1])), bool(facts["alpha"]))

    def sha(self, path: Path) -> str:
        """sha256 of the content."""
        facts = self._of(path)
        if "sha" not in facts:
            facts["sha"] = hashlib.sha256(path.read_bytes()).hexdigest()
            self._new = True
        return str(facts["sha"])

    def mask_box(self, path: Path, alpha: bool) -> tuple[float, float, float, float] | None:
        """Where a mask (or, with ``alpha``, a picture's alpha channel) is not black: left, top, right and bottom as
        fractions of its sides. None when it is black all over. Unreadable as ``pictures.pixels``."""
        facts, name = self._of(path), "alpha_bounds" if alpha else "mask_bounds"
        if name not in facts:
            facts[name] = bounds(path.read_bytes(), alpha)
            self._new = True
        return tuple(facts[name]) if facts[name] else None  # pyright: ignore[reportReturnType]

    def once(self, path: Path, name: str, key: str, make: Callable[[], bool]) -> bool:
        """Whether something holds of the file's content and a ``key``, the last one of which is remembered."""
        facts = self._of(path)
        if facts.get(name, [None])[0] != key:
            facts[name] = [key, make()]
            self._new = True
        return bool(facts[name][1])

    def bytes(self, path: Path) -> int:
        return int(self._of(path)["stamp"][0])

    def sound(self, path: Path, now: bool = False) -> bool:
        """Whether the file was decoded whole before; ``now`` notes that it just was."""
        facts = self._of(path)
        if now:
            facts["sound"] = self._new = True
        return bool(facts.get("sound"))

    def save(self) -> None:
        """Remember for the next run. What cannot be written is looked up again then."""
        if not self._new:
            return
        self._new = False
        by_folder: dict[str, dict[str, dict]] = {}
        for path, facts in self._facts.items():
            if max(facts["stamp"][1:]) / 1e9 + 2 < self._seen[path]:
                by_folder.setdefault(path.parent.as_posix(), {})[path.name] = facts
        for parent, files in by_folder.items():
            file = self._file(parent)
            if file is None:
                continue
            try:
                _write(file, json.dumps({"v": 1, "of": parent, "files": files}).encode())
            except NotWritten:
                return


@dataclass(frozen=True)
class SdScriptsLatents:
    """How sd-scripts caches a family's latents."""

    ending: str
    """Of the file's name: sd, sdxl or sd3."""
    bare: bool
    """Whether its older versions wrote files without an ending."""
    channels: int
    scaled: Callable[[Tensor], Tensor]
    """What scales its latents, which are cached unscaled."""


def find_npz(picture: Path, size: Size, family: SdScriptsLatents) -> Path | None:
    """The latents that sd-scripts keeps beside a picture, unless older than it."""
    stem = picture.with_suffix("").name
    names = [f"{stem}_{size[0]:04d}x{size[1]:04d}_{family.ending}.npz"]
    if family.bare:
        names.insert(0, f"{stem}.npz")
    for name in names:
        path = picture.with_name(name)
        if path.is_file() and path.stat().st_mtime_ns >= picture.stat().st_mtime_ns:
            return path
    return None


def read_npz(path: Path, size: Size, bucket: Size, flipped: bool, channels: int, cell: int = 8) -> Tensor | None:
    """sd-scripts' latents [C, h, w] float32 for a bucket, *unscaled*; None when they are of another size or another
    family's number of channels, or damaged.

    Both spellings are read: keys with the latent size (``latents_64x64``) and without it.
    """
    height, width = bucket[1] // cell, bucket[0] // cell
    name = "latents_flipped" if flipped else "latents"
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            if any(info.file_size > 2**28 for info in archive.infolist()):
                return None
        with np.load(path, allow_pickle=False) as file:
            for suffix in (f"_{height}x{width}", ""):
                if name + suffix not in file or "original_size" + suffix not in file:
                    continue
                latents = np.asarray(file[name + suffix], np.float32)
                original = [int(side) for side in np.ravel(file["original_size" + suffix])]
                if latents.shape == (channels, height, width) and original == list(size):
                    return torch.from_numpy(latents) if np.isfinite(latents).all() else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None
    return None
