"""``pairs import``, ``pairs export``, ``pairs check``: preference data from and to the formats in use.

Known: our own folder; pick-a-pic parquet (``jpg_0 jpg_1 label_0 caption``); invoke-training's ``metadata.jsonl``
(``prompt image_0 image_1 prefer_0 prefer_1``); ``prompt chosen rejected`` columns in parquet or JSON Lines; HPD's
``prompt image_left_id image_right_id pref``; folders ``chosen`` + ``rejected`` or ``w`` + ``l`` with equal stems; and
``name_w.png`` + ``name_l.png`` in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..runs.files import decode, is_file, write_atomic
from . import captions, pictures
from .pairs_file import PAIRS, Pair, add_picture, append_pairs, contradictions, read_pairs
from .pictures import EXTENSIONS, Unreadable
from .scan import Files

SIDES = (("chosen", "rejected"), ("w", "l"))


@dataclass(frozen=True)
class Candidate:
    """A pair before it is copied in."""

    where: str
    prompt: str
    chosen: Path | bytes
    rejected: Path | bytes
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    where: str
    why: str


@dataclass
class Imported:
    """What became of a source."""

    form: str
    pairs: int = 0
    rejects: list[str] = field(default_factory=list)
    """One line for each row that was not taken, with the reason."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def import_pairs(source: Path | str, out: Path | str, prompt: str | None = None) -> Imported:
    """Copy the pairs of ``source`` into the folder ``out``, which may hold pairs already.

    :param prompt: for pairs that have none, as in folders without caption files.
    :raises UserError: the source is of no known form, or cannot be read; or ``out`` holds a wrong line.
    """
    source, out = Path(source), Path(out)
    form, found = _open(source, prompt)
    result = Imported(form)
    old = read_pairs(out) if (out / PAIRS).exists() else []
    seen = {(row.prompt, row.chosen, row.rejected) for row in old}
    rows: list[tuple[str, Pair]] = []
    for one in found:
        row = _copied(one, out) if isinstance(one, Candidate) else one
        if isinstance(row, Reject):
            result.rejects.append(f"{row.where}: {row.why}")
        elif (row.prompt, row.chosen, row.rejected) in seen:
            result.rejects.append(f"{one.where}: the same pair is there already")
        else:
            seen.add((row.prompt, row.chosen, row.rejected))
            rows.append((one.where, row))
    edges = [(row.prompt, row.chosen, row.rejected) for row in old if not row.tie]
    circles = {i - len(edges) for i in contradictions([*edges, *((r.prompt, r.chosen, r.rejected) for _, r in rows)])}
    for i in sorted(i for i in circles if i >= 0):
        result.rejects.append(f"{rows[i][0]}: it contradicts other pairs of its prompt")
    kept = [row for i, (_, row) in enumerate(rows) if i not in circles]
    append_pairs(out, kept)
    result.pairs = len(kept)
    return result


def _copied(one: Candidate, out: Path) -> Pair | Reject:
    """The row, with its pictures in the folder; or why there is none."""
    if not one.prompt.strip():
        return Reject(one.where, "it has no prompt; give one for all")
    names = []
    for picture in (one.chosen, one.rejected, one.extra.get("mask")):
        if picture is None:
            continue
        try:
            data = picture if isinstance(picture, bytes) else picture.read_bytes()
            pictures.pixels(data)
            names.append(add_picture(out, data))
        except (Unreadable, OSError) as error:
            what = "a picture" if isinstance(picture, bytes) else picture.name
            return Reject(one.where, f"{what} cannot be read ({error})")
        except UserError as error:
            return Reject(one.where, str(error))
    if names[0] == names[1]:
        return Reject(one.where, "both pictures are the same")
    return Pair(one.prompt, names[0], names[1], **{**one.extra, "mask": names[2] if len(names) > 2 else None})


# -- reading -----------------------------------------------------------------------------------------------------------


def _open(source: Path, prompt: str | None) -> tuple[str, Iterator[Candidate | Reject]]:
    """The form of a source, and its pairs one after the other."""
    if not source.exists():
        raise UserError(f"{source.as_posix()}: there is nothing; give a folder, a .parquet or a .jsonl file")
    if source.is_file():
        if source.suffix.lower() == ".parquet":
            return "parquet", _table([source], prompt)
        if source.suffix.lower() in (".jsonl", ".json"):
            return source.name, _lines(source, prompt)
        raise UserError(f"{source.as_posix()}: not a .parquet or .jsonl file; give one, or a folder")
    for name in (PAIRS, "metadata.jsonl", "train.jsonl"):
        if (source / name).is_file():
            return name, _lines(source / name, prompt)
    tables = sorted(source.rglob("*.parquet"))
    if tables:
        return "parquet", _table(tables, prompt)
    for sides in SIDES:
        folders = [
            folder for folder in (source, *sorted(source.iterdir())) if all((folder / s).is_dir() for s in sides)
        ]
        if folders:
            return f"{sides[0]} + {sides[1]} folders", _sides(folders, sides, prompt)
    if any(path.stem.endswith(("_w", "_l")) and path.suffix.lower() in EXTENSIONS for path in source.iterdir()):
        return "name_w + name_l", _suffixes(source, prompt)
    raise UserError(
        f"{source.as_posix()}: no pairs in a known form; give {PAIRS}, metadata.jsonl, *.parquet, folders chosen + "
        "rejected or w + l, or pictures name_w + name_l"
    )


def pyarrow_parquet() -> Any:
    """The parquet module. UserError when it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet: pyarrow is not installed; pip install pyarrow, or use .jsonl files") from error
    return pyarrow.parquet


def _table(files: list[Path], prompt: str | None) -> Iterator[Candidate | Reject]:
    parquet = pyarrow_parquet()
    for path in files:
        count = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        count += 1
                        yield _candidate(row, f"{path.name} row {count}", path.parent, prompt)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UserError(
                f"{path.as_posix()}: cannot be read as parquet after row {count} ({why}); fix it"
            ) from error


def _lines(path: Path, prompt: str | None) -> Iterator[Candidate | Reject]:
    """JSON Lines, or one JSON list."""
    try:
        text = decode(path.read_bytes())
        listed = json.loads(text) if path.suffix.lower() == ".json" else text.split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.as_posix()}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.as_posix()}: not JSON ({error}); fix it") from error
    for number, row in enumerate(listed if isinstance(listed, list) else [listed], 1):
        where = f"{path.name} {'row' if path.suffix.lower() == '.json' else 'line'} {number}"
        if isinstance(row, str) and not row.strip():
            continue
        try:
            value = json.loads(row) if isinstance(row, str) else row
        except (ValueError, RecursionError):
            value = None
        yield (
            _candidate(value, where, path.parent, prompt) if isinstance(value, dict) else Reject(where, "not an object")
        )


def _candidate(row: dict[str, Any], where: str, root: Path, prompt: str | None) -> Candidate | Reject:
    """A pair of any tabular form. ``root`` holds the pictures that are named by path."""
    verdict = _verdict(row)
    if isinstance(verdict, str):
        return Reject(where, verdict)
    found = []
    for name in (*verdict, "mask"):
        picture = _picture(row.get(name), root)
        if picture is None and name != "mask":
            return Reject(where, f"there is no picture {row.get(name)!r:.80}")
        found.append(picture)
    text = row.get("prompt", row.get("caption"))
    kinds = {"weight": (int, float), "seed": int, "source": str, "group": str}
    extra = {k: row[k] for k, kind in kinds.items() if isinstance(row.get(k), kind) and not isinstance(row[k], bool)}
    if found[2] is not None:
        extra["mask"] = found[2]
    return Candidate(where, text if isinstance(text, str) and text.strip() else prompt or "", found[0], found[1], extra)


def _verdict(row: dict[str, Any]) -> tuple[str, str] | str:
    """The names of the columns with the chosen and the rejected picture; or why there is no verdict."""
    tie = "a tie"
    if "chosen" in row and "rejected" in row:
        return tie if row.get("tie") is True else ("chosen", "rejected")
    if "jpg_0" in row and "jpg_1" in row:
        if row.get("has_label") is False:
            return "it has no label"
        score = row.get("label_0")
        if score not in (0, 1):
            return tie if score == 0.5 else f"label_0 is {score!r}, not 0, 0.5 or 1"
        return ("jpg_0", "jpg_1") if score == 1 else ("jpg_1", "jpg_0")
    if "image_0" in row and "image_1" in row:
        votes = row.get("prefer_0"), row.get("prefer_1")
        if votes in ((True, False), (False, True)):
            return ("image_0", "image_1") if votes[0] else ("image_1", "image_0")
        return tie if votes == (False, False) else f"prefer_0 and prefer_1 are {votes[0]!r} and {votes[1]!r}"
    if "pref" in row:
        sides = next(((a, b) for a, b in (("image_left_id", "image_right_id"), ("image_left", "image_right"))
                      if a in row and b in row), None)  # fmt: skip
        if sides and row["pref"] in (1, -1):
            return sides if row["pref"] == 1 else (sides[1], sides[0])
        return tie if sides and row["pref"] == 0 else f"pref is {row['pref']!r}, not 1 (left) or -1 (right)"
    return f"no pair in the columns {', '.join(map(str, row))[:80]}"


def _picture(value: Any, root: Path) -> Path | bytes | None:
    """Bytes, Hugging Face's {bytes, path}, a path, or an id that is a file's stem."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return None
    name = value.replace("\\", "/")
    for folder in (root, root / "images"):
        for ending in ("", *EXTENSIONS):
            if is_file(folder / (name + ending)):
                return folder / (name + ending)
    return None


def _sides(folders: list[Path], sides: tuple[str, str], prompt: str | None) -> Iterator[Candidate | Reject]:
    for folder in folders:
        better, worse = (Files(folder / side) for side in sides)
        matched = set()
        for relative, path in better.pictures():
            where = f"{folder.name}/{sides[0]}/{relative}"
            other = worse.beside(relative, EXTENSIONS)
            if other is None:
                yield Reject(where, f"there is no picture of this name in {sides[1]}")
                continue
            matched.add(other)
            text = _text(better, relative) or _text(worse, relative) or _text(Files(folder), relative)
            yield Candidate(where, text or prompt or "", path, other)
        for relative, path in worse.pictures():
            if path not in matched:
                yield Reject(f"{folder.name}/{sides[1]}/{relative}", f"there is no picture of this name in {sides[0]}")


def _suffixes(folder: Path, prompt: str | None) -> Iterator[Candidate | Reject]:
    files = Files(folder)
    for relative, path in files.pictures():
        if path.stem.endswith(("_w", "_l")):
            stem = path.stem[:-2]
            other = files.beside(stem + ("_l" if path.stem.endswith("_w") else "_w") + ".", EXTENSIONS)
            if other is None:
                yield Reject(relative, "its partner is not there")
            elif path.stem.endswith("_w"):
                text = _text(files, f"{stem}.png") or _text(files, relative) or _text(files, f"{stem}_l.png")
                yield Candidate(relative, text or prompt or "", path, other)


def _text(files: Files, relative: str) -> str | None:
    path = files.beside(relative, captions.EXTENSIONS)
    try:
        return captions.read(path.read_bytes()).split("\n")[0] if path else None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error


# -- writing -----------------------------------------------------------------------------------------------------------


def export_pairs(folder: Path | str, target: Path | str) -> int:
    """Write all pairs, ties too, as pick-a-pic parquet (``jpg_0 jpg_1 label_0 label_1 caption``, with our own columns
    beside). The chosen picture is ``jpg_0``. Returns how many.

    :raises UserError: a line or a picture is wrong; pyarrow is missing; the file cannot be written.
    """
    folder = Path(folder)
    parquet = pyarrow_parquet()
    import pyarrow

    kinds = {
        "jpg_0": pyarrow.binary(), "jpg_1": pyarrow.binary(), "label_0": pyarrow.float64(),
        "label_1": pyarrow.float64(), "caption": pyarrow.string(), "weight": pyarrow.float64(),
        "seed": pyarrow.int64(), "source": pyarrow.string(), "group": pyarrow.string(), "mask": pyarrow.binary(),
    }  # fmt: skip
    rows = read_pairs(folder)
    schema = pyarrow.schema(list(kinds.items()))

    def write(path: Path) -> None:
        with parquet.ParquetWriter(path, schema) as writer:
            for start in range(0, len(rows), 64):
                some = [_exported(folder, row) for row in rows[start : start + 64]]
                writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))

    write_atomic(Path(target), write)
    return len(rows)


def _exported(folder: Path, row: Pair) -> dict[str, Any]:
    def data(name: str | None) -> bytes | None:
        try:
            return (folder / name).read_bytes() if name else None
        except OSError as error:
            raise UserError(f"{(folder / PAIRS).as_posix()}: the picture {name} cannot be read; restore it") from error

    label = 0.5 if row.tie else 1.0
    return {
        "jpg_0": data(row.chosen), "jpg_1": data(row.rejected), "label_0": label, "label_1": 1 - label,
        "caption": row.prompt, "weight": row.weight, "seed": row.seed, "source": row.source, "group": row.group,
        "mask": data(row.mask),
    }  # fmt: skip
