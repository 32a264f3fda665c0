"""The folder of pairs and ratings: ``pairs.jsonl``, ``ratings.jsonl`` and ``images/``. Standard library only.

One JSON object a line. Pictures are named relative to the folder, with forward slashes, and stored under the hash of
their content. Lines are only ever appended, under a lock, and are on the disk when the function returns.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..runs.files import decode, make_folder
from ..runs.process import wait_for_lock

PAIRS = "pairs.jsonl"
RATINGS = "ratings.jsonl"
IMAGES = "images"


@dataclass(frozen=True)
class Pair:
    """``chosen`` was liked better than ``rejected`` for this prompt; ``tie`` means neither was."""

    prompt: str
    chosen: str
    rejected: str
    mask: str | None = None
    """Picture that is white where the two are compared."""
    weight: float = 1.0
    tie: bool = False
    seed: int | None = None
    source: str | None = None
    group: str | None = None
    """Common to the rows of one best-of-N choice."""


@dataclass(frozen=True)
class Rating:
    """One picture, liked or not."""

    image: str
    prompt: str
    liked: bool
    seed: int | None = None
    source: str | None = None
    weight: float = 1.0


Row = TypeVar("Row", Pair, Rating)
_KINDS = {
    "prompt": str, "chosen": str, "rejected": str, "image": str, "mask": str, "source": str, "group": str,
    "weight": float, "seed": int, "tie": bool, "liked": bool,
}  # fmt: skip
_WORDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}


def read_pairs(folder: Path | str) -> list[Pair]:
    """All pairs, ties too.

    :raises UserError: no file, or the first line that is wrong.
    """
    return [row for _, row in read_strict(Path(folder) / PAIRS, Pair)]


def read_ratings(folder: Path | str) -> list[Rating]:
    """All ratings. UserError as ``read_pairs``."""
    return [row for _, row in read_strict(Path(folder) / RATINGS, Rating)]


def read_strict(path: Path, kind: type[Row]) -> list[tuple[int, Row]]:
    """Rows with their line numbers. UserError for the first line that is wrong."""
    rows, problems = read(path, kind)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{path.as_posix()} {problems[0]}{more}")
    return rows


def read(path: Path, kind: type[Row]) -> tuple[list[tuple[int, Row]], list[str]]:
    """Rows with their line numbers, and a problem for each line that is not a row, as ``line 3: ...``.

    :raises UserError: the file is not there or is no text.
    """
    try:
        text = decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path.as_posix()}: cannot be read ({error.strerror or error}); give the folder that holds "
                         f"{path.name}") from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise UserError(f"{path.as_posix()}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    rows: list[tuple[int, Row]] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((number, _row(json.loads(line), kind)))
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg} at column {error.colno}); fix or delete the line")
        except RecursionError:
            problems.append(f"line {number}: nested too deeply; fix or delete the line")
        except UserError as error:
            problems.append(f"line {number}: {error}")
        except ValueError as error:  # a number of thousands of digits
            problems.append(f"line {number}: not JSON ({error}); fix or delete the line")
    return rows, problems


def _row(value: Any, kind: type[Row]) -> Row:
    """A checked row. UserError says what is wrong with it."""
    if not isinstance(value, dict):
        raise UserError('not an object; write {"prompt": ..., ...}')
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there is: {', '.join(fields)}"
            raise UserError(f"unknown key '{name}'; {hint}")
    kept = {name: item for name, item in value.items() if item is not None}
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in kept:
            raise UserError(f"'{name}' is missing; write it")
    for name, item in kept.items():
        kind_of = _KINDS[name]
        fits = isinstance(item, (int, float)) if kind_of is float else isinstance(item, kind_of)
        if not fits or (kind_of is not bool and isinstance(item, bool)):
            raise UserError(f"'{name}' is {json.dumps(item)[:40]}; it should be {_WORDS[kind_of]}")
        if name == "weight" and not (math.isfinite(item) and item >= 0):
            raise UserError(f"'weight' is {item}; it should be 0 or more")
        if name in ("chosen", "rejected", "image", "mask"):
            if not item.strip() or "\0" in item:
                raise UserError(f"'{name}' is empty; give the picture's path relative to this file")
            kept[name] = item.replace("\\", "/")
        elif name == "weight":
            kept[name] = float(item)
    return kind(**kept)


def append_pairs(folder: Path | str, rows: Sequence[Pair]) -> None:
    """Append rows whose pictures already lie in the folder. UserError for a row that ``read`` would refuse."""
    _append(Path(folder) / PAIRS, rows)


def append_ratings(folder: Path | str, rows: Sequence[Rating]) -> None:
    """Append rows whose pictures already lie in the folder. UserError for a row that ``read`` would refuse."""
    _append(Path(folder) / RATINGS, rows)


def add_pair(
    folder: Path | str, prompt: str, chosen: Path | bytes, rejected: Path | bytes, *, tie: bool = False,
    mask: Path | bytes | None = None, weight: float = 1.0, seed: int | None = None, source: str | None = None,
) -> Pair:  # fmt: skip
    """Copy both pictures in and append the pair. UserError for an empty prompt or twice the same picture."""
    return add_best(folder, prompt, chosen, [rejected], tie=tie, mask=mask, weight=weight, seed=seed, source=source)[0]


def add_best(
    folder: Path | str, prompt: str, best: Path | bytes, others: Sequence[Path | bytes], *, tie: bool = False,
    mask: Path | bytes | None = None, weight: float = 1.0, seed: int | None = None, source: str | None = None,
) -> list[Pair]:  # fmt: skip
    """Copy the pictures in and append a pair of the best with each other one; several rows share a ``group``."""
    if not prompt.strip():
        raise UserError("prompt: it is empty; a pair needs the prompt that made its pictures")
    folder = Path(folder)
    winner = add_picture(folder, best)
    losers = [add_picture(folder, other) for other in others]
    if winner in losers or len(set(losers)) < len(losers):
        raise UserError("pictures: one of them is given twice; compare different pictures")
    area = None if mask is None else add_picture(folder, mask)
    group = hashlib.sha256("\n".join([prompt, winner, *losers]).encode()).hexdigest()[:12] if len(losers) > 1 else None
    rows = [Pair(prompt, winner, loser, area, weight, tie, seed, source, group) for loser in losers]
    append_pairs(folder, rows)
    return rows


def add_rating(
    folder: Path | str, prompt: str, image: Path | bytes, liked: bool, *, seed: int | None = None,
    source: str | None = None,
) -> Rating:  # fmt: skip
    """Copy the picture in and append its rating. UserError for an empty prompt."""
    if not prompt.strip():
        raise UserError("prompt: it is empty; a rating needs the prompt that made its picture")
    row = Rating(add_picture(Path(folder), image), prompt, liked, seed, source)
    append_ratings(folder, [row])
    return row


def add_picture(folder: Path, picture: Path | bytes) -> str:
    """Copy a picture (a file, or the bytes of one) in under the hash of its content; gives its name in the folder.

    :raises UserError: the file cannot be read, or is no PNG, JPEG, WebP, BMP or AVIF.
    """
    try:
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    except OSError as error:
        raise UserError(f"{picture}: cannot be read ({error.strerror or error}); give a picture") from error
    suffix = _suffix(data)
    if suffix is None:
        name = "the picture" if isinstance(picture, bytes) else picture.as_posix()
        raise UserError(f"{name}: not a PNG, JPEG, WebP, BMP or AVIF file; save it as one of these")
    name = f"{IMAGES}/{hashlib.sha256(data).hexdigest()[:40]}{suffix}"
    target = folder / name
    if not target.is_file() or target.stat().st_size != len(data):
        make_folder(target.parent)
        handle, aside = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(aside).replace(target)
        finally:
            Path(aside).unlink(missing_ok=True)
    return name


def _suffix(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    starts = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp"}
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), None)


def _append(path: Path, rows: Sequence[Row]) -> None:
    lines = []
    for row in rows:
        full = dataclasses.asdict(row)
        _row(full, type(row))
        defaults = {field.name: field.default for field in dataclasses.fields(row)}
        short = {name: value for name, value in full.items() if value != defaults[name]}
        lines.append(json.dumps(short, ensure_ascii=False) + "\n")
    data = "".join(lines).encode()
    make_folder(path.parent)
    with wait_for_lock(path), path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a writer was cut off: its half line stays a line of its own
                data = b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def contradictions(edges: Iterable[tuple[str, Hashable, Hashable]]) -> list[int]:
    """Which of the (prompt, chosen, rejected) contradict each other for their prompt: A over B over ... over A.

    Linear in their number. What leads from one circle to another counts too.
    """
    rows = [((prompt, better), (prompt, worse)) for prompt, better, worse in edges]
    alive = set(range(len(rows)))
    for side in (0, 1):  # peel off what never wins, then what never loses: only circles are left
        degree: dict[tuple, int] = {}
        into: dict[tuple, list[int]] = {}
        for i in alive:
            degree[rows[i][side]] = degree.get(rows[i][side], 0) + 1
            into.setdefault(rows[i][1 - side], []).append(i)
        loose = [node for node in into if not degree.get(node)]
        while loose:
            for i in into.pop(loose.pop(), []):
                alive.discard(i)
                node = rows[i][side]
                degree[node] -= 1
                if not degree[node] and node in into:
                    loose.append(node)
    return sorted(alive)
