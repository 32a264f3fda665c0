"""``study``: which of several recipes is better, on held-out pictures and over seeds."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..runs.control import DONE
from .common import Command, print_json, print_lines, print_note

if TYPE_CHECKING:
    from ..study.hours import Hours
    from ..study.plan import Plan

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def register(command: Command) -> None:
    what = "Compare recipes on held-out pictures, over seeds; continues where it stopped."
    added = command("study", _study, f"{what} Options of the base configuration are flags: --data.path=pictures.")
    added.set_defaults(preset=None)
    added.add_argument("study", type=Path, help="a .toml file, or a name in presets/studies: see docs/study.md")
    added.add_argument("-o", "--output", type=Path, help="folder of the studies, instead of the file's")
    added.add_argument("--budget", help="time for the whole study, such as 8h or 90m: as many seeds as fit")
    added.add_argument("--plan", action="store_true", help="check everything and print what would be done")
    added.add_argument("--report", action="store_true", help="only write the report of what is there")
    added.add_argument("--json", action="store_true")


def seconds(text: str) -> float:
    """``8h``, ``90m``, ``2h30m`` in seconds; UserError for anything else."""
    found = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text.replace(" ", "").lower())
    if not found or "".join(number + unit for number, unit in found) != text.replace(" ", "").lower():
        raise UserError(f"--budget: '{text}' is no time; write 8h, 90m or 2h30m")
    total = sum(float(number) * UNITS[unit] for number, unit in found)
    if not total:
        raise UserError("--budget: there is no time in it; write 8h, 90m or 2h30m")
    return total


def _study(args: argparse.Namespace) -> int:
    from ..study import hours, memory, options, plan, queue, report

    path = _find(args.study)
    budget = seconds(args.budget) if args.budget else None
    out = args.output or (None if path == args.study else Path("studies"))  # never into the presets
    given, config = options.read(path, args.flags, out)
    as_many_as_fit = budget and given.seeds is None and not any(arm.adapters for arm in given.arms)
    many = range(options.MOST_SEEDS) if as_many_as_fit else None
    planned = plan.make(given, config, many, look=args.plan)
    kept = memory.shared(planned, print_note, choose=False)
    if args.plan:
        queue.Queue(kept, print_note, works=False)  # what is there was made by the same
        if not args.json:
            print_lines(_plan_lines(planned))
        expected = hours.left(planned, print_note)
        lines = [expected.line if expected else "time: not known before the first cell"]
        lines += [expected.fitting(budget, len(planned.seeds))] if budget and expected else []
        return print_json(_plan_json(planned, expected, budget)) if args.json else print_lines(lines)
    if args.report and not planned.folder.is_dir():
        raise UserError(f"study: {planned.folder} is not there, so there is nothing to report; start the study first")
    code = DONE if args.report else queue.run(planned, print_note, budget)
    kept = memory.shared(planned, print_note, choose=False)
    outcome = queue.Queue(kept, print_note, budget, works=False).report()
    if args.json:
        print_json({"folder": planned.folder, **report.summary(outcome)})
        return code
    print(report.markdown(outcome), end="")
    print(f"\nreport: {planned.folder / 'report.html'}")
    return code


def _find(path: Path) -> Path:
    """A study's file by path, or by its name in presets/studies/."""
    from ..config import PRESETS
    from ..registry import nearest

    known = {file.stem: file for file in sorted((PRESETS / "studies").glob("*.toml"))}
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    if str(path) not in known:
        raise UserError(f"study: there is no '{path}'; {nearest(str(path), list(known))}")
    return known[str(path)]


def _plan_lines(planned: Plan) -> list[str]:
    return [
        f"{planned.options.name}: {len(planned.arms)} arms x {len(planned.seeds)} seeds = {len(planned.cells)} cells, "
        f"{len(planned.held)} held-out pictures" + (f", {len(planned.prompts)} prompts" if planned.prompts else ""),
        *(f"  {arm.name}: {arm.changes}" for arm in planned.arms),
        *(f"  note: {note}" for note in planned.notes),
        f"folder: {planned.folder}",
    ]


def _plan_json(planned: Plan, expected: Hours | None, budget: float | None) -> dict[str, Any]:
    """What a host shows before it starts the study. Seconds: of what is left, at least and at most; so are the seeds
    that fit into the budget."""
    return {
        "name": planned.options.name, "folder": planned.folder, "cells": len(planned.cells),
        "arms": [{"name": arm.name, "changes": arm.changes} for arm in planned.arms], "seeds": len(planned.seeds),
        "held_out": len(planned.held), "prompts": len(planned.prompts), "notes": list(planned.notes),
        "seconds": [expected.least, expected.most] if expected else None,
        "pace": expected.source if expected else None,
        "seeds_in_budget": expected.seeds(budget, len(planned.seeds)) if expected and budget else None,
    }  # fmt: skip
