"""``pairs import``, ``export``, ``check`` and ``generate``: commands for preference data."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..runs.check_report import counted_noun
from ..runs.control import DONE, USER_ERROR
from .common import Command, configuration, print_json, print_lines


def register(command: Command, configured: Command) -> None:
    """``configured`` adds a command that takes a configuration."""
    imported = command("pairs-import", _import, "Bring pairs of another tool into a folder of pairs.")
    imported.add_argument("source", type=Path)
    imported.add_argument("-o", "--output", type=Path, required=True)
    imported.add_argument("--prompt", help="for pairs that have none")
    imported.add_argument("--json", action="store_true")
    exported = command("pairs-export", _export, "Write a folder of pairs as pick-a-pic parquet.")
    exported.add_argument("folder", type=Path)
    exported.add_argument("target", type=Path)
    exported.add_argument("--force", action="store_true", help="replace what is there already")
    checked = command("pairs-check", _check, "Look for what is wrong with pairs and ratings.")
    checked.add_argument("folder", type=Path)
    checked.add_argument("--json", action="store_true")
    made = configured("pairs-generate", _generate, "Draw candidates to choose from; what is drawn already is kept.")
    made.add_argument("--adapter", dest="adapter_file", help="adapter file; without it the base model draws")
    made.add_argument("--prompts", type=Path, required=True, help="one prompt per line; # for comments")
    made.add_argument("-n", type=int, default=2, help="pictures per prompt")
    made.add_argument("-o", "--output", type=Path, required=True)


def _import(args: argparse.Namespace) -> int:
    from ..data.pairs import import_pairs

    found = import_pairs(args.source, args.output, args.prompt)
    if args.json:
        return print_json(found.as_json())
    return print_lines(
        [f"{found.pairs} pairs from {found.form} into {args.output}", *(f"left out: {r}" for r in found.rejects)]
    )


def _export(args: argparse.Namespace) -> int:
    from ..data.pairs import export_pairs
    from ..runs.files import check_target

    check_target(args.target, args.folder, force=args.force)
    return print_lines([f"{export_pairs(args.folder, args.target)} pairs in {args.target}"])


def _check(args: argparse.Namespace) -> int:
    from ..data.pairs_check import check_pairs

    found = check_pairs(args.folder)
    if args.json:
        return print_json(found.as_json())
    print(f"{found.pairs} pairs, {found.ratings} ratings, {found.prompts} prompts")
    print("\n".join(found.lines() or ["nothing is wrong"]))
    return DONE if found.sound else USER_ERROR


def _generate(args: argparse.Namespace) -> int:
    from .sample import generate, read_prompts

    if args.n < 1:
        raise UserError(f"-n: {args.n} is no number of pictures; give 1 or more")
    texts = read_prompts(args.prompts)
    count = generate(configuration(args), texts, args.n, args.output, args.adapter_file)
    return print_lines([f"{counted_noun(count, 'picture')} of {counted_noun(len(texts), 'prompt')} in {args.output}"])
