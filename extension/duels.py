"""What is there to choose between, and what has been decided: pictures of one prompt, and the folder of pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..trainer.data import pairs_file
from . import images, metadata

MOST_PICTURES = 5000


@dataclass(frozen=True)
class Duel:
    """Two pictures for one prompt; which is left is settled by their content, so that nobody learns a side."""

    prompt: str
    left: Path
    right: Path
    left_seed: int | None = None
    right_seed: int | None = None


def grouped(folder: Path) -> dict[str, list[tuple[Path, int | None]]]:
    """Pictures below a folder by the prompt that is written in them; those that do not tell are left out."""
    out: dict[str, list[tuple[Path, int | None]]] = {}
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in images.ENDINGS and not path.name.startswith(".")
    )
    for path in paths[:MOST_PICTURES]:
        made = _made(str(path), path.stat().st_mtime_ns)
        if made is not None:
            out.setdefault(made.prompt, []).append((path, made.seed))
    return out


@lru_cache(maxsize=20_000)
def _made(path: str, _changed: int) -> metadata.Made | None:
    return metadata.read(Path(path))


def duels(groups: dict[str, list[tuple[Path, int | None]]], decided: set[frozenset[str]]) -> list[Duel]:
    """Neighbours of each prompt against each other (an odd last one against the first), without what is decided."""
    out = []
    for prompt, pictures in groups.items():
        couples = list(zip(pictures[::2], pictures[1::2]))
        if len(pictures) > 2 and len(pictures) % 2:
            couples.append((pictures[-1], pictures[0]))
        for one, other in couples:
            names = (stored_name(one[0]), stored_name(other[0]))
            if names[0] == names[1] or frozenset(names) in decided:
                continue
            a, b = (one, other) if hashlib.sha256("".join(sorted(names)).encode()).digest()[0] % 2 else (other, one)
            out.append(Duel(prompt, a[0], b[0], a[1], b[1]))
    return out


def stored_name(path: Path) -> str:
    """The stem under which the folder of pairs keeps this picture: its content's hash."""
    return images.digest(path)[:40]


def decided(folder: Path) -> set[frozenset[str]]:
    """The couples that the folder of pairs has an answer for."""
    return {frozenset((Path(one.chosen).stem, Path(one.rejected).stem)) for one in pairs(folder)}


def pairs(folder: Path) -> list[pairs_file.Pair]:
    path = folder / pairs_file.PAIRS
    return [row for _, row in pairs_file.read(path, pairs_file.Pair)[0]] if path.is_file() else []


def ratings(folder: Path) -> list[pairs_file.Rating]:
    path = folder / pairs_file.RATINGS
    return [row for _, row in pairs_file.read(path, pairs_file.Rating)[0]] if path.is_file() else []


def decide(folder: Path, duel: Duel, won: str) -> None:
    """Write the answer: left, right, or tie. It is on the disk when this returns. What another window has decided
    meanwhile stays as it is."""
    if frozenset((stored_name(duel.left), stored_name(duel.right))) in decided(folder):
        return
    chosen, rejected, seed = (duel.left, duel.right, duel.left_seed)
    if won == "right":
        chosen, rejected, seed = (duel.right, duel.left, duel.right_seed)
    pairs_file.add_pair(folder, duel.prompt, chosen, rejected, tie=won == "tie", seed=seed, source="pixelkiln ui")


def rate(folder: Path, duel: Duel, side: str, liked: bool) -> None:
    picture, seed = (duel.left, duel.left_seed) if side == "left" else (duel.right, duel.right_seed)
    pairs_file.add_rating(folder, duel.prompt, picture, liked, seed=seed, source="pixelkiln ui")


def undo(folder: Path, file: str = pairs_file.PAIRS) -> bool:
    """Take the last line back; the pictures stay. False when there is none."""
    path = folder / file
    if not path.is_file():
        return False
    with pairs_file.locked(path), path.open("r+b") as opened:
        lines = opened.read().splitlines(keepends=True)
        if not lines:
            return False
        opened.truncate(sum(map(len, lines[:-1])))
    return True


def two_seeds(prompts: Iterable[str], first: int) -> list[str]:
    """Each prompt twice, with seeds of its own, as the trainer's prompt flags say it."""
    return [f"{prompt} --d {first + 2 * i + j}" for i, prompt in enumerate(prompts) for j in (0, 1)]
