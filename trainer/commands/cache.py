"""``cache``: what encoded pictures and captions take of the disk, and which of it may go."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..data.prune import DAY, GB, KINDS, chosen, entries, remove
from ..errors import UserError
from ..runs.control import DONE, list_runs
from .common import Command, print_json, print_lines


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
    remove(gone)
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
        lines.append(f"removed {sum(entry.size for entry in gone) / GB:.3f} GB (entries: {len(gone):,})")
    return print_lines([f"{folder}:", *lines])
