"""What is there to choose between, and what has been decided: pictures of one prompt, and the folder of pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..trainer.data import pairs_file
from ..trainer.runs.events import read_object
from ..trainer.runs.process import wait_for_lock
from . import images, metadata
from .store import Home, locked, write, write_json

MOST_PICTURES = 5000
SOURCE = "pixelkiln ui"
KEPT = "pairs.json"
"""In a run's folder: where its pairs are kept, from the folder of the runs or absolute."""


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
        (path for path in folder.rglob("*") if path.suffix.lower() in images.ENDINGS and not path.name.startswith(".")),
        key=lambda path: (str(path.parent), len(path.name), path.name),  # 99 before 100
    )
    for path in paths[:MOST_PICTURES]:
        made = _made(str(path), path.stat().st_mtime_ns)
        if made is not None:
            out.setdefault(made.prompt, []).append((path, made.seed))
    return out


@lru_cache(maxsize=20_000)
def _made(path: str, _changed: int) -> metadata.Made | None:
    return metadata.read(Path(path))


def duels(
    groups: dict[str, list[tuple[Path, int | None]]], decided: set[frozenset[str]], whole: bool = True
) -> list[Duel]:
    """Neighbours of each prompt against each other, without what is decided. An odd last one is laid against the first,
    unless its own partner is still to come (not ``whole``)."""
    out = []
    for prompt, pictures in groups.items():
        couples = list(zip(pictures[::2], pictures[1::2]))
        if whole and len(pictures) > 2 and len(pictures) % 2:
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


@dataclass(frozen=True)
class Act:
    """What was written into a folder, and what it took the place of."""

    folder: Path
    row: pairs_file.Pair | pairs_file.Rating
    instead_of: tuple[pairs_file.Rating, ...] = ()


def decide(folder: Path, duel: Duel, won: str) -> Act | None:
    """Write the answer: left, right, or tie. It is on the disk when this returns. What another window has decided
    meanwhile stays as it is: then None."""
    if frozenset((stored_name(duel.left), stored_name(duel.right))) in decided(folder):
        return None
    chosen, rejected, seed = (duel.left, duel.right, duel.left_seed)
    if won == "right":
        chosen, rejected, seed = (duel.right, duel.left, duel.right_seed)
    tie = won == "tie"
    return Act(folder, pairs_file.add_pair(folder, duel.prompt, chosen, rejected, tie=tie, seed=seed, source=SOURCE))


def rate(folder: Path, duel: Duel, side: str, liked: bool) -> Act:
    """Write a thumb. An earlier one for the same picture and prompt goes: they would contradict each other."""
    picture, seed = (duel.left, duel.left_seed) if side == "left" else (duel.right, duel.right_seed)
    row = pairs_file.add_rating(folder, duel.prompt, picture, liked, seed=seed, source=SOURCE)
    *earlier, _ = (one for one in ratings(folder) if (one.image, one.prompt) == (row.image, row.prompt))
    for one in earlier:
        _remove(folder, one)
    return Act(folder, row, tuple(earlier))


def undo(act: Act) -> bool:
    """Take back what was written; the pictures stay. False when it is not there any more."""
    if not _remove(act.folder, act.row):
        return False
    if act.instead_of:
        pairs_file.append_ratings(act.folder, act.instead_of)
    return True


def _remove(folder: Path, row: pairs_file.Pair | pairs_file.Rating) -> bool:
    """Take out the line that says this, whatever was written after it."""
    pair = isinstance(row, pairs_file.Pair)
    path = folder / (pairs_file.PAIRS if pair else pairs_file.RATINGS)
    if not path.is_file():
        return False
    with wait_for_lock(path):
        known = pairs_file.read(path, pairs_file.Pair) if pair else pairs_file.read(path, pairs_file.Rating)
        found = [number for number, one in known[0] if one == row]
        lines = path.read_bytes().split(b"\n")
        if found:
            write(path, b"\n".join(lines[: found[0] - 1] + lines[found[0] :]))
    return bool(found)


def two_seeds(prompts: Sequence[str], first: int, pairs: int) -> list[str]:
    """Prompts for ``pairs`` pairs of pictures, over the given prompts in turn; each has its own seed, from ``first``
    on, as the prompt flag ``--d``."""
    return [f"{prompts[i % len(prompts)]} --d {first + 2 * i + j}" for i in range(pairs) for j in (0, 1)]


def place(home: Home, run: Path | None) -> Path:
    """Where the pairs of a run's pictures are kept: as ``pairs.json`` in its folder says, which goes with it when it
    is renamed or thrown away. A run without it gets a folder that nobody has, by its name where that is free: choices
    on one character's pictures are never trained on with those on another's. Without a run: of other pictures."""
    known = recorded_place(home, run)
    if known is not None:
        return known
    pairs = home.data / "pairs"
    if run is None:
        return pairs
    names = (run.name, *(f"{run.name}-{number}" for number in range(2, 10_000)))
    return next(folder for name in names if not (folder := pairs / name).exists())


def keep(home: Home, run: Path | None, folder: Path) -> None:
    """From now on the pairs of this run are kept there."""
    inside = folder.is_relative_to(home.runs)
    if recorded_place(home, run) != folder:
        write_json(_note(home, run), {"v": 1, "folder": str(folder.relative_to(home.runs) if inside else folder)})


def claim_place(home: Home, run: Path | None) -> Path:
    """As ``place``, which from now on is this run's and no other's."""
    with locked(home.own / "pairs"):
        folder = place(home, run)
        folder.mkdir(parents=True, exist_ok=True)
        keep(home, run, folder)
    return folder


def recorded_place(home: Home, run: Path | None) -> Path | None:
    """The place that is noted in a run's folder; None as long as nothing was decided on its pictures."""
    folder = read_object(_note(home, run)).get("folder")
    return home.runs / folder if isinstance(folder, str) and folder else None


def _note(home: Home, run: Path | None) -> Path:
    return (home.own if run is None else run) / KEPT
