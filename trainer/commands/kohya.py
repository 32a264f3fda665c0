"""Command lines and files of Kohya's sd-scripts: ``import-kohya``, and as the configuration of other commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import Command, print_json, print_lines


def register(command: Command) -> None:
    kohya = command("import-kohya", _import_kohya, "Convert kohya's configuration to a Pixelkiln one, with comments.")
    kohya.add_argument("file", type=Path, nargs="?", help="a .toml of sd-scripts; kohya's flags may follow")
    kohya.add_argument("-o", "--output", type=Path, help="the file to write; printed when not given")
    kohya.add_argument("--force", action="store_true", help="replace what is there already")
    kohya.add_argument("--json", action="store_true")


COMMANDS = ("train", "check", "sample", "draw", "pairs-generate")
"""Commands that take kohya's command line in place of a configuration."""
MARKS = {"--config_file", "--dataset_config", "--pretrained_model_name_or_path", "--train_data_dir"}
"""Flags by which kohya's command line is recognised."""


def take_arguments(words: list[str]) -> tuple[list[str], Any]:
    """Split kohya's arguments off a command line; returns the rest, and those or None."""
    from ..kohya.launcher import begins_line

    taking = (*COMMANDS, "import-kohya")
    if words and words[0] not in taking and begins_line(words):  # a line that was pasted whole, without a command
        words = ["train", *words]
    if not words or words[0] not in taking:
        return words, None
    pasted = begins_line(words[1:])
    if words[0] != "import-kohya" and not pasted and not any(word.partition("=")[0] in MARKS for word in words):
        return words, None
    from ..kohya.entrance import take

    given, left = take(words[1:])
    return [words[0], *left], given


def _import_kohya(args: argparse.Namespace) -> int:
    from ..kohya.entrance import imported, sources
    from ..runs.files import check_target, write_atomic

    toml, notes = imported(args.kohya, args.file)
    if args.output:
        check_target(args.output, *sources(args.kohya, args.file), force=args.force, name="--output")
        write_atomic(args.output, toml)
    if args.json:
        return print_json({"toml": toml, "notes": notes})
    return print_lines([str(args.output), *(f"note: {note}" for note in notes)] if args.output else [toml])
