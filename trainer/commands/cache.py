"""``cache``: what encoded pictures and captions take of the disk, and which of it may go."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..runs.control import DONE, list_runs
from .common import Command, print_json, print_lines

KINDS = ("latents", "masks", "targets", "text")
"""Folders of a cache whose entries are named by their content: what is missing is made again."""
DAY, GB = 86400.0, 10**9


@dataclass(frozen=True)
class Entry:
    """A file of a cache."""

    path: Path
    kind: str
    size: int
    used: float
    """When a run last read or wrote it, in seconds since 1970, to within a day."""


def register(command: Command) -> None:
    what = (
        "List what encoded pictures and captions take of the disk, or clear it; a later run makes anew what it needs."
    )
    added = command("cache", _cache, what)
    added.add_argument("folder", nargs="?", type=Path, default="runs/cache", help="data.cache_dir; runs/cache")
    added.add_argument("--older-than", type=float, metavar="DAYS", help="remove what no run has used for so many days")
    added.add_argument("--keep", type=float, metavar="GB", help="remove what was used longest ago, down to this size")
    added.add_argument("--clear", action="store_true", help="remove all of it")
    added.add_argument("--json", action="store_true")


def entries(folder: Path) -> list[Entry]:
    """All entries, those used longest ago first. UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the cache folder of your runs, such as runs/cache")
    found = []
    for kind in KINDS:
        for path in (folder / kind).glob("??/*.safetensors"):
            with suppress(OSError):  # another process has removed it
                facts = path.stat()
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


def _cache(args: argparse.Namespace) -> int:
    folder, now = args.folder, time.time()
    for name, value, least in (("--older-than", args.older_than, 2.0), ("--keep", args.keep, 0.0)):
        if value is not None and not value >= least:
            raise UserError(f"{name}: {value:g} is below {least:g}; give {least:g} or more")
    found = entries(folder)
    gone = chosen(found, args.older_than, args.keep, args.clear, now)
    live = [run.name for run in list_runs(folder.absolute().parent) if run.status.live]
    if live and (args.clear or args.keep is not None):
        raise UserError(
            f"{folder}: run '{live[0]}' trains and may need it; wait for its end, or give only --older-than"
        )
    for entry in gone:
        with suppress(FileNotFoundError):
            try:
                entry.path.unlink()
            except PermissionError as error:
                raise UserError(
                    f"{entry.path}: it cannot be removed: {error.strerror}; check its permissions"
                ) from None
    removed = set(gone)
    rows = [
        {
            "kind": kind,
            "entries": len(mine),
            "bytes": sum(entry.size for entry in mine),
            "unused_days": round((now - mine[0].used) / DAY, 1) if mine else None,
            "removed": sum(entry.kind == kind for entry in gone),
            "removed_bytes": sum(entry.size for entry in gone if entry.kind == kind),
        }
        for kind in KINDS
        for mine in [[entry for entry in found if entry.kind == kind and entry not in removed]]
    ]
    if args.json:
        print_json({"folder": str(folder), "kinds": rows})
        return DONE
    lines = [
        f"{row['kind']:8} {row['entries']:7,} entries  {row['bytes'] / GB:8.3f} GB"
        + (f"  unused for up to {row['unused_days']:g} days" if row["entries"] else "")
        for row in rows
    ]
    if args.clear or args.older_than is not None or args.keep is not None:
        lines.append(f"removed {len(gone):,} entries, {sum(entry.size for entry in gone) / GB:.3f} GB")
    return print_lines([f"{folder}:", *lines])
