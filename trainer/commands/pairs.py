"""``pairs import``, ``export``, ``check`` and ``generate``: commands for preference data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..runs.control import DONE, MISTAKE
from .common import Command, print_json, print_lines

if TYPE_CHECKING:
    from ..diffusion.sampling import Prompt


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
    made.add_argument("--prompts", type=Path, required=True, help="a prompt a line; # for comments")
    made.add_argument("-n", type=int, default=2, help="pictures a prompt")
    made.add_argument("-o", "--output", type=Path, required=True)


def joined(words: list[str]) -> list[str]:
    """``pairs import X`` is the command ``pairs-import X``; ``pairs`` alone asks what there is."""
    if words[:1] != ["pairs"]:
        return words
    name, *rest = words[1:] or ["--help"]
    return ["--help"] if name.startswith("-") else [f"pairs-{name}", *rest]


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
    return DONE if found.sound else MISTAKE


def _apart(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Each ``n`` candidates of a prompt with seeds of their own, also where the prompt names one."""
    first = [prompts[i - i % n].seed for i in range(len(prompts))]
    return [replace(p, seed=p.seed + i % n) if p.seed == first[i] else p for i, p in enumerate(prompts)]


def _generate(args: argparse.Namespace) -> int:
    """``NNNN_k.png`` for prompt N, and ``candidates.jsonl`` with prompt, seed and picture."""
    from ..config import load
    from ..diffusion.sampling import is_of, save_picture
    from ..runs.files import make_folder, write_atomic
    from ..training.build import build

    if args.n < 1:
        raise UserError(f"-n: {args.n} is no number of pictures; give 1 or more")
    try:
        lines = [line.strip() for line in args.prompts.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.prompts}: it cannot be read ({error}); give a UTF-8 text file") from None
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise UserError(f"{args.prompts}: it holds no prompt; write one a line")
    flags = {**args.flags, "sample.prompts": [text for text in texts for _ in range(args.n)]}
    parts = build(
        load(args.config, flags, args.preset), lambda line: print(line, file=sys.stderr), args.adapter_file, data=False
    )
    parts.adapter.train(False)
    make_folder(args.output, "--output")
    facts = {"adapter": args.adapter_file or ""}
    plan = [
        (args.output / f"{i // args.n:04d}_{i % args.n}.png", prompt)
        for i, prompt in enumerate(_apart(parts.prompts, args.n))
    ]
    for path, prompt in plan:
        if path.exists() and not is_of(path, prompt, facts):
            raise UserError(f"{path}: it has another prompt, seed or adapter; give another folder")
    try:
        for path, prompt in plan:
            if not path.exists():
                save_picture(parts.picture(prompt), path, prompt, facts)
    finally:
        rows = [{"prompt": p.text, "seed": p.seed, "image": path.name} for path, p in plan if path.exists()]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(args.output / "candidates.jsonl", lines)
    return print_lines([f"{len(rows)} pictures of {len(texts)} prompts in {args.output}"])
