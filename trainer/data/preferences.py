"""Scanning pairs and ratings. What would train the opposite of what was meant is an error that names the line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..diffusion.types import Role
from ..errors import UserError
from ..runs.files import is_file
from .buckets import Fit, cover, rules
from .cache import Index
from .items import Item, Scan, place, read_header, with_mask
from .options import DataOptions
from .pairs_file import PAIRS, RATINGS, Pair, Rating, contradictions, read_strict


def scan_pairs(found: Scan, options: DataOptions, folder: Path, native: int, index: Index) -> None:
    """Items of two pictures: the chosen one, and the rejected one fitted to its bucket. Ties are left out.

    :raises UserError: a line is wrong, names a missing picture, has no prompt, compares a picture with itself, or
        contradicts other lines.
    """
    one = options.shared()
    found.sets, found.names = [one], [folder.name]
    shape = rules(one, native)
    where = (folder / PAIRS).as_posix()
    rows = read_strict(folder / PAIRS, Pair)
    for number, row in rows:
        if row.tie:
            found.notes.add("tie", f"line {number}")
    rows = [(number, row) for number, row in rows if not row.tie]
    _refuse_empty(where, rows)
    _refuse_missing(where, folder, [(number, (row.chosen, row.rejected, row.mask)) for number, row in rows])
    content = contents((folder / name for _, row in rows for name in (row.chosen, row.rejected)), index)
    edges = [(row.prompt, content[folder / row.chosen], content[folder / row.rejected]) for _, row in rows]
    same = [number for (number, _), (_, chosen, rejected) in zip(rows, edges, strict=True) if chosen == rejected]
    _refuse(where, same, "it compares a picture with itself; delete the line")
    circles = [rows[i][0] for i in contradictions(edges)]
    _refuse(where, circles, 'A is better than B and B better than A; delete one, or mark it with "tie": true')
    for number, row in rows:
        name = f"{folder.name}/line {number}"
        chosen, rejected = (
            place(found.notes, f"line {number} {file}", folder / file, read_header(folder / file, index), shape)
            for file in (row.chosen, row.rejected)
        )
        if chosen is None or rejected is None:
            continue
        if rejected.fit.bucket != chosen.fit.bucket:
            found.notes.add("fitted", f"line {number}")
            rejected = replace(rejected, fit=Fit(chosen.fit.bucket, cover(rejected.size, chosen.fit.bucket)))
        if row.mask:
            chosen = with_mask(found.notes, name, chosen, folder / row.mask, index)
        group = f"prompt {_normal(row.prompt)}"
        found.items.append(
            Item(name, (chosen, rejected), ("winner", "loser"), row.prompt, 0, one.repeats, row.weight, group)
        )


def scan_ratings(found: Scan, options: DataOptions, folder: Path, native: int, index: Index) -> None:
    """Items of one picture, liked or disliked.

    :raises UserError: a line is wrong, names a missing picture or has no prompt; or all pictures are rated alike.
    """
    one = options.shared()
    found.sets, found.names = [one], [folder.name]
    shape = rules(one, native)
    where = (folder / RATINGS).as_posix()
    rows = read_strict(folder / RATINGS, Rating)
    _refuse_empty(where, rows)
    _refuse_missing(where, folder, [(number, (row.image,)) for number, row in rows])
    if len({row.liked for _, row in rows}) == 1:
        what, other = ("liked", "disliked") if rows[0][1].liked else ("disliked", "liked")
        raise UserError(f"{where}: all {len(rows)} pictures are {what}; rate some as {other}, both are needed")
    content = contents((folder / row.image for _, row in rows), index)
    seen: set[tuple[str, str]] = set()
    for number, row in rows:
        path = folder / row.image
        if (row.prompt, content[path]) in seen:
            found.notes.add("rated twice", f"line {number}")
        seen.add((row.prompt, content[path]))
        picture = place(found.notes, f"line {number} {row.image}", path, read_header(path, index), shape)
        if picture is not None:
            role: Role = "liked" if row.liked else "disliked"
            name, group = f"{folder.name}/line {number}", f"prompt {_normal(row.prompt)}"
            found.items.append(Item(name, (picture,), (role,), row.prompt, 0, one.repeats, row.weight, group))


def contents(paths: Iterable[Path], index: Index) -> dict[Path, str]:
    """A name for the content of each file, equal for equal content. Only files of equal length are read."""
    by_length: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        by_length.setdefault(index.bytes(path), []).append(path)
    return {
        path: f"content {index.sha(path)}" if len(alike) > 1 else f"path {path.as_posix()}"
        for alike in by_length.values()
        for path in alike
    }


def _normal(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def _refuse(where: str, lines: Sequence[int], wrong: str) -> None:
    """:raises UserError: there are such lines; the first is named, the others are counted."""
    if lines:
        more = f" (and {len(lines) - 1} more lines)" if len(lines) > 1 else ""
        raise UserError(f"{where} line {lines[0]}{more}: {wrong}")


def _refuse_empty(where: str, rows: Sequence[tuple[int, Pair]] | Sequence[tuple[int, Rating]]) -> None:
    _refuse(where, [number for number, row in rows if not row.prompt.strip()],
            "the prompt is empty; write the one that the picture was made from")  # fmt: skip


def _refuse_missing(where: str, folder: Path, rows: Sequence[tuple[int, Sequence[str | None]]]) -> None:
    gone = [(number, name) for number, names in rows for name in names if name and not is_file(folder / name)]
    _refuse(where, [number for number, _ in gone],
            f"there is no picture {gone[0][1] if gone else ''}; restore it or delete the line")  # fmt: skip
