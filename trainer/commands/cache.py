"""``cache``: what encoded pictures and captions take of the disk, and which of it may go."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..data.prune import DAY, GB, KINDS, OTHERS, Entry, chosen, entries, remove
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
    added.add_argument("--family", metavar="NAME", help="look at, and remove, only what models of a family made: sdxl")
    added.add_argument("--json", action="store_true")


def _cache(args: argparse.Namespace) -> int:
    folder, now = args.folder, time.time()
    for name, value, least in (("--older-than", args.older_than, 2.0), ("--keep", args.keep, 0.0)):
        if value is not None and not value >= least:
            raise UserError(f"{name}: {value:g} is below {least:g}; give {least:g} or more")
    if args.clear and (args.older_than is not None or args.keep is not None):
        raise UserError("--clear removes everything; leave it out with --older-than or --keep")
    found = entries(folder)
    rest = entries(folder, OTHERS) if args.family is None else []
    if not found and not rest and any(one.is_dir() and one.name not in (*KINDS, *OTHERS) for one in folder.iterdir()):
        raise UserError(f"{folder}: this is no cache; give the cache folder of your runs, such as runs/cache")
    families = {entry: entry.family for entry in found}
    if args.family is not None:
        found = _of_family(found, families, args.family, folder)
    gone = chosen(found, args.older_than, args.keep, args.clear, now) + (rest if args.clear else [])
    live = [run.name for run in list_runs(folder.absolute().parent) if run.status.live]
    if live and (args.clear or args.keep is not None):
        raise UserError(
            f"{folder}: run '{live[0]}' trains and may need it; wait for its end, or give only --older-than"
        )
    remove(gone)
    removed = set(gone)
    rows = []
    for kind in (*KINDS, *OTHERS) if args.family is None else KINDS:
        mine = [entry for entry in (*found, *rest) if entry.kind == kind and entry not in removed]
        went = [entry for entry in gone if entry.kind == kind]
        made_by = Counter[str]()
        for entry in mine:
            made_by[families.get(entry, "")] += entry.size
        rows.append({
            "kind": kind, "entries": len(mine), "bytes": sum(made_by.values()),
            "families": {name: size for name, size in made_by.most_common() if name},
            "unused_days": round((now - mine[0].used) / DAY, 1) if mine else None,
            "removed": len(went), "removed_bytes": sum(entry.size for entry in went),
        })  # fmt: skip
    if args.json:
        print_json({"folder": str(folder), "kinds": rows})
        return DONE
    lines = [_line(row) for row in rows if row["entries"] or row["kind"] in KINDS]
    if args.clear or args.older_than is not None or args.keep is not None:
        lines.append(f"removed {sum(entry.size for entry in gone) / GB:.3f} GB (entries: {len(gone):,})")
    return print_lines([f"{folder}:", *lines])


def _of_family(found: list[Entry], families: dict[Entry, str], family: str, folder: Path) -> list[Entry]:
    """Those of a family. UserError where there are none of it."""
    there = sorted(set(families.values()) - {""})
    if family not in there:
        named = f"it has those of {', '.join(there)}" if there else "none of its entries says of which family it is"
        raise UserError(f"--family: {folder} has no entries of {family}; {named}")
    return [entry for entry in found if families[entry] == family]


def _line(row: dict[str, Any]) -> str:
    line = f"{row['kind']:10} {row['entries']:7,} entries  {row['bytes'] / GB:8.3f} GB"
    if row["entries"] and row["kind"] in KINDS:
        line += f"  unused for up to {row['unused_days']:g} days"
    made_by = ", ".join(f"{name} {size / GB:.3f} GB" for name, size in row["families"].items())
    return line + (f"  ({made_by})" if made_by else "")
