"""Blind votes on a study's pictures: what was voted, and which two pictures to ask about next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .values import Value

FILE = "votes.jsonl"
"""In the study's folder: the lines that Compare writes, with candidates called ``ARM@SEED``."""


def candidate(arm: str, seed: int) -> str:
    return f"{arm}@{seed}"


def values(path: Path, arms: Sequence[str], seeds: Sequence[int], prompts: int) -> list[Value]:
    """Votes between the first arm and another at one seed and prompt, as values: the first has 0, the other the share
    of votes that it won less the share that it lost. Other votes and torn lines count for nothing.

    Arms are paired, so with several arms a prompt's 0 of the first is there for each of them.
    """
    found: dict[tuple[str, int, int], list[int]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            (one, first_seed), (other, second_seed) = (str(row[side]).rsplit("@", 1) for side in ("left", "right"))
            seed, prompt, won = int(first_seed), int(row["prompt"]), str(row["won"])
            known = second_seed == first_seed and seed in seeds and 0 <= prompt < prompts
        except (ValueError, KeyError, TypeError):
            continue
        if not known or arms[0] not in (one, other) or won not in ("left", "right", "tie"):
            continue
        arm = other if one == arms[0] else one
        if arm == arms[0] or arm not in arms:
            continue
        winner = None if won == "tie" else one if won == "left" else other
        found.setdefault((arm, seed, prompt), []).append(0 if winner is None else 1 if winner == arm else -1)
    out = [Value("votes", arm, seed, f"prompt {p}", sum(v) / len(v)) for (arm, seed, p), v in sorted(found.items())]
    shared = sorted({(seed, prompt) for _, seed, prompt in found})
    return out + [Value("votes", arms[0], seed, f"prompt {prompt}", 0.0) for seed, prompt in shared]
