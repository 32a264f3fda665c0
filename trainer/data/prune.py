"""What goes from a cache on the disk: what no run has used for long, or most of what is beyond a size."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

KINDS = ("latents", "masks", "targets", "text")
"""Folders of a cache whose entries are named by their content: what is missing is made again."""
OTHERS = ("references", "compiled", "files")
"""The rest of a cache: errors of the reference network, compiled code, facts about files. Their use is not noted, so
they go with all the rest only."""
DAY, GB = 86400.0, 10**9
IN_USE_DAYS = 2.0
"""Entries used so lately may be those of a run that trains now: uses are noted once a day."""


@dataclass(frozen=True)
class Entry:
    """A file of a cache."""

    path: Path
    kind: str
    size: int
    used: float
    """When a run last read or wrote it, in seconds since 1970, to within a day."""

    @property
    def family(self) -> str:
        """Of the model that it was made by; empty where it does not say, as those of earlier versions."""
        try:
            with self.path.open("rb") as file:
                header = file.read(min(int.from_bytes(file.read(8), "little"), 2**20))
            return str(json.loads(header)["__metadata__"].get("family", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ""


def entries(folder: Path, kinds: Collection[str] = KINDS) -> list[Entry]:
    """All entries of these kinds, those used longest ago first, with what killed processes left of some. UserError
    where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the cache folder of your runs, such as runs/cache")
    found = []
    for kind in kinds:
        for path in (folder / kind).glob("**/*" if kind in OTHERS else "??/*"):
            with suppress(OSError):  # another process has removed it
                facts = path.stat()
                if path.is_file():
                    found.append(Entry(path, kind, facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def chosen(all_of_them: list[Entry], older: float | None, keep: float | None, clear: bool, now: float) -> list[Entry]:
    """Those that go: unused for ``older`` days, or more than ``keep`` GB, or all."""
    if clear:
        return all_of_them
    gone = [entry for entry in all_of_them if older is not None and entry.used < now - older * DAY]
    left = all_of_them[len(gone) :]
    size = sum(entry.size for entry in left)
    for entry in left if keep is not None else ():
        if size <= (keep or 0) * GB:
            break
        gone.append(entry)
        size -= entry.size
    return gone


def remove(gone: Collection[Entry]) -> None:
    """UserError for one that may not be removed."""
    for entry in gone:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            reason = (error.strerror or "no reason is given").lower()
            raise UserError(f"{entry.path}: it cannot be removed ({reason}); may you write to its folder?") from None


def prune(root: Path, days: float, most_gb: float | None, now: float) -> list[str]:
    """What a run removes of its cache at its start, by ``data.cache_days`` (0: never) and ``data.cache_gb``, in lines.

    Nothing goes that was used in the last two days, by this run or by another that may still train. A file that cannot
    be removed stays: the cache may be shared and another's.
    """
    if not (days or most_gb) or not root.is_dir():
        return []
    found = entries(root)
    gone = chosen(found, days or None, most_gb, False, now)
    gone = [entry for entry in gone if entry.used < now - IN_USE_DAYS * DAY]
    removed = []
    for entry in gone:
        with suppress(OSError):
            entry.path.unlink()
            removed.append(entry)
    size, left = (sum(entry.size for entry in some) / GB for some in (removed, set(found) - set(removed)))
    lines = []
    if removed:
        lines.append(f"{root}: removed {size:.3f} GB that no run has used lately (entries: {len(removed):,})")
    if most_gb is not None and left > most_gb:
        lines.append(f"{root}: {left:.3f} GB are in use or not to be removed, more than data.cache_gb = {most_gb:g}")
    return lines
