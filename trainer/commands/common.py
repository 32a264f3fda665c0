"""What several commands share: how they are added to the parser and how they print their answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..runs.control import DONE


class Command(Protocol):
    """Add a command with its handler and its help to the parser of the command line."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser: ...


def print_lines(lines: Sequence[str]) -> int:
    print("\n".join(lines))
    return DONE


def print_json(answer: dict[str, Any]) -> int:
    print(json.dumps({"v": 1, **answer}, ensure_ascii=False, default=str))
    return DONE
