"""Blind votes between two candidates, their tally, and how likely such a tally is by chance."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path

from .store import locked

TIE = "tie"


@dataclass(frozen=True)
class Vote:
    """Which of two candidates drew the better picture for a prompt."""

    left: str
    right: str
    won: str
    """left, right or tie."""
    prompt: int
    t: float = 0.0
    mark: str = ""
    """The showing that it answers; a second answer to the same showing is none."""


def record(path: Path, vote: Vote) -> None:
    """Append a vote, once for each showing; it is on the disk when this returns."""
    line = json.dumps({"v": 1, **asdict(vote), "t": round(time.time(), 3)}) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path), path.open("ab") as file:
        if vote.mark and any(one.mark == vote.mark for one in read(path)):
            return
        end = file.tell()
        try:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def undo(path: Path) -> Vote | None:
    """Take the last line back, and give it; None when there is none."""
    if not path.is_file():
        return None
    with locked(path), path.open("r+b") as file:
        last = next(reversed(read(path)), None)
        lines = file.read().splitlines(keepends=True)
        file.truncate(sum(map(len, lines[:-1])))
    return last


def read(path: Path) -> list[Vote]:
    """All votes; a torn line is left out."""
    if not path.is_file():
        return []
    out = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            out.append(
                Vote(
                    str(row["left"]),
                    str(row["right"]),
                    str(row["won"]),
                    int(row["prompt"]),
                    float(row["t"]),
                    str(row.get("mark", "")),
                )
            )
        except (ValueError, KeyError, TypeError):
            continue
    return out


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: the probability of a result at least so uneven if both are equally good. Ties are
    left out (Dixon and Mood 1946)."""
    n, k = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


@dataclass(frozen=True)
class Row:
    """Two candidates against each other."""

    one: str
    other: str
    wins: int
    losses: int
    ties: int

    @property
    def p(self) -> float:
        return sign_test(self.wins, self.losses)


def tally(votes: Sequence[Vote]) -> list[Row]:
    """Each pair of candidates that was voted on, the most votes first."""
    counted: dict[tuple[str, str], list[int]] = {}
    for vote in votes:
        one, other = sorted((vote.left, vote.right))
        winner = None if vote.won == TIE else vote.left if vote.won == "left" else vote.right
        counted.setdefault((one, other), [0, 0, 0])[2 if winner is None else 0 if winner == one else 1] += 1
    rows = [Row(one, other, *numbers) for (one, other), numbers in counted.items()]
    return sorted(rows, key=lambda row: -(row.wins + row.losses + row.ties))


def scores(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Candidate -> votes won and lost, against all others."""
    out: dict[str, tuple[int, int]] = {}
    for row in rows:
        for name, won, lost in ((row.one, row.wins, row.losses), (row.other, row.losses, row.wins)):
            before = out.get(name, (0, 0))
            out[name] = (before[0] + won, before[1] + lost)
    return out


def progress(drawn: Mapping[str, Mapping[int, Path]], votes: Sequence[Vote]) -> tuple[int, int]:
    """How many of the comparisons that there are were voted on."""
    asked = {(frozenset(one[:2]), one[2]) for one in _options(drawn)}
    return len(asked & {(frozenset((vote.left, vote.right)), vote.prompt) for vote in votes}), len(asked)


def _options(drawn: Mapping[str, Mapping[int, Path]]) -> list[tuple[str, str, int]]:
    """Every two candidates and the prompts that both have drawn."""
    names = sorted(drawn)
    return [
        (a, b, prompt)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        for prompt in sorted(drawn[a].keys() & drawn[b])
    ]


def choose(
    drawn: Mapping[str, Mapping[int, Path]],
    votes: Sequence[Vote],
    rng: random.Random,
    last: tuple[str, str, int] | None = None,
) -> tuple[str, str, int] | None:
    """The next two candidates and the prompt to compare them on, sides by chance; those compared least come first.
    What was shown ``last`` does not come again at once if there is anything else: an answer is seen to be taken."""
    seen: dict[tuple[frozenset[str], int], int] = {}
    for vote in votes:
        key = (frozenset((vote.left, vote.right)), vote.prompt)
        seen[key] = seen.get(key, 0) + 1
    options = _options(drawn)
    if last and len(options) > 1:
        options = [one for one in options if (set(one[:2]), one[2]) != (set(last[:2]), last[2])]
    if not options:
        return None
    least = min(seen.get((frozenset((a, b)), prompt), 0) for a, b, prompt in options)
    fresh = [one for one in options if seen.get((frozenset(one[:2]), one[2]), 0) == least]
    a, b, prompt = rng.choice(fresh)
    return (a, b, prompt) if rng.random() < 0.5 else (b, a, prompt)
