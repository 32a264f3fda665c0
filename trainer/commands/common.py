"""What several commands share: how they are added to the parser, read a configuration and print their answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import UserError
from ..runs.control import DONE


class Command(Protocol):
    """Add a command with its handler and its help to the parser of the command line."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser: ...


GROUPS = ("pairs", "dense")
"""First words of commands of two words."""


def joined(words: list[str]) -> list[str]:
    """``pairs import X`` is the command ``pairs-import X``; ``pairs`` alone asks what there is."""
    if words[:1] not in [[group] for group in GROUPS]:
        return words
    name, *rest = words[1:] or ["--help"]
    return ["--help"] if name.startswith("-") else [f"{words[0]}-{name}", *rest]


def configuration(args: argparse.Namespace, read: Callable[..., Any] | None = None) -> Any:
    """The configuration of a command line: file, preset and flags, or kohya's arguments. ``read``: as ``load``."""
    from ..config import load

    if args.kohya:
        return _from_kohya(args)
    if not (args.config or args.preset or args.flags):
        raise UserError("config: neither a configuration nor --preset is given; see `python -m trainer presets`")
    return (read or load)(args.config, args.flags, args.preset)


def _from_kohya(args: argparse.Namespace) -> Any:
    from ..kohya.entrance import load

    other = args.config or args.preset
    if other:
        raise UserError(f"{other}: kohya's flags are given too; give one of them, or import-kohya first")
    config, notes = load(args.kohya)
    for note in notes:
        print_note(f"note: {note}")
    return config


def print_note(line: str) -> None:
    """A line for the person, on standard error; the answer is on standard output."""
    print(line, file=sys.stderr)


def print_lines(lines: Sequence[str]) -> int:
    print("\n".join(lines))
    return DONE


def print_json(answer: dict[str, Any]) -> int:
    print(json.dumps({"v": 1, **answer}, ensure_ascii=False, default=str))
    return DONE
