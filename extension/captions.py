"""A folder of pictures and the captions beside them: list, save, find and replace, count. Nothing is ever lost."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..trainer.errors import UserError
from ..trainer.runs.files import decode
from . import images, words
from .store import write

ENDINGS = (".txt", ".caption", ".cap", ".tags")
"""Of caption files, as the trainer looks for them, first to last."""
KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class Listing:
    """What lies in a folder."""

    folder: Path
    pictures: tuple[str, ...]
    """Names, sorted."""
    others: tuple[str, ...]
    """Files that are neither pictures nor their captions."""
    kohya: tuple[str, ...] = ()
    """Subfolders called ``10_name``: kohya's way to write repeats and a class word."""
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Each file's time of change and its bytes."""


def scan(folder: Path) -> Listing:
    """Read a folder's names. UserError when it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not entry.name.startswith(".")]
            both = [(entry.name, entry.is_dir()) for entry in kept]
            stamps = {e.name: (e.stat().st_mtime_ns, e.stat().st_size) for e in kept if e.is_file()}
    except OSError as error:
        raise UserError(words.FOLDER_UNREADABLE.format("data.path", folder, error.strerror)) from None
    files = [name for name, is_folder in both if not is_folder]
    parts = {name: Path(name) for name in files}
    pictures = sorted(name for name, path in parts.items() if path.suffix.lower() in images.ENDINGS)
    known, stems = set(pictures), {parts[name].stem for name in pictures}
    captions = (*ENDINGS, ".npz")
    others = sorted(n for n in files if n not in known and not (n.endswith(captions) and parts[n].stem in stems))
    kohya = sorted(name for name, is_folder in both if is_folder and KOHYA_FOLDER.fullmatch(name))
    return Listing(folder, tuple(pictures), tuple(others), tuple(kohya), stamps)


def file_of(picture: Path) -> Path:
    """Where a picture's caption is, or will be."""
    found = (picture.with_suffix(ending) for ending in ENDINGS)
    return next((path for path in found if path.is_file()), picture.with_suffix(ENDINGS[0]))


def listed(listing: Listing, picture: str) -> str | None:
    """The name of a picture's caption file; None without one."""
    stem = picture.rpartition(".")[0]
    return next((f"{stem}{ending}" for ending in ENDINGS if f"{stem}{ending}" in listing.stamps), None)


def read(picture: Path) -> str | None:
    """The caption; None without one. UserError when it is not text as the trainer reads it."""
    path = file_of(picture)
    try:
        return decode(path.read_bytes()).strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: {words.NOT_UTF8}") from None
    except OSError as error:
        raise UserError(words.FILE_UNREADABLE.format(path.name, error.strerror)) from None


def current(picture: Path) -> str:
    """The caption; empty without one, and when it is not text: that is written over only by what a person types."""
    try:
        return read(picture) or ""
    except UserError:
        return ""


def line(text: str) -> str:
    """A caption as one line."""
    return " ".join(text.strip().splitlines())


def save(picture: Path, text: str) -> bool:
    """Write the caption, whole or not at all; False when nothing changed. UserError when it cannot be written."""
    text = line(text)
    if current(picture) == text:
        return False
    write(file_of(picture), f"{text}\n" if text else "")
    return True


def fill(picture: Path, text: str) -> bool:
    """Write the caption where there is none; False when there is one by now. UserError when that cannot be read."""
    return not read(picture) and save(picture, text)


def tags(caption: str) -> list[str]:
    """The caption's parts between commas."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def counts(captions: Iterable[str | None]) -> list[tuple[str, int]]:
    """How many captions hold each tag, the most frequent first."""
    counted = Counter(tag for caption in captions if caption for tag in set(tags(caption)))
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0].lower()))


def read_all(listing: Listing) -> dict[str, str | None]:
    """All captions by picture name; one that cannot be read counts as missing."""
    out: dict[str, str | None] = {}
    for name in listing.pictures:
        file = listed(listing, name)
        out[name] = _text(str(listing.folder / name), file, *listing.stamps[file]) if file else None
    return out


@lru_cache(maxsize=50_000)
def _text(picture: str, _file: str, _changed: int, _bytes: int) -> str | None:
    try:
        return read(Path(picture))
    except UserError:
        return None


def replace_in_all(
    listing: Listing, find: str, by: str, whole_tags: bool, names: Iterable[str] = ()
) -> dict[str, tuple[str, str]]:
    """Replace in every caption, or in those of ``names``; gives (old text, new text) of those that changed,
    to undo with ``restore``."""
    if not find:
        raise UserError(words.NOTHING_TO_FIND)
    changed: dict[str, tuple[str, str]] = {}
    only = set(names)
    for name, caption in read_all(listing).items():
        if caption is None or (only and name not in only):
            continue
        if whole_tags:
            parts = [by.strip() if tag == find.strip() else tag for tag in tags(caption)]
            new = ", ".join(tag for tag in dict.fromkeys(parts) if tag) if find.strip() in tags(caption) else caption
        else:
            new = caption.replace(find, by)
        if new != caption:
            save(listing.folder / name, new)
            changed[name] = (caption, line(new))
    return changed


def change_each(
    listing: Listing, names: Iterable[str], change: Callable[[list[str]], list[str]]
) -> dict[str, tuple[str, str]]:
    """Change the tags of these pictures' captions; gives (old text, new text) of those that changed. A caption that is
    not UTF-8 text stays."""
    changed: dict[str, tuple[str, str]] = {}
    texts = read_all(listing)
    for name in names:
        before = texts.get(name)
        if name not in texts or (before is None and listed(listing, name)):
            continue
        parts = tags(before or "")
        new = change(parts)
        if new != parts:
            save(listing.folder / name, ", ".join(new))
            changed[name] = (before or "", ", ".join(new))
    return changed


def with_tags(given: str, first: bool) -> Callable[[list[str]], list[str]]:
    """What puts these tags first or last, also those that stand elsewhere. UserError: none are given."""
    new = _some(given)

    def change(parts: list[str]) -> list[str]:
        rest = [tag for tag in parts if tag not in new]
        return [*new, *rest] if first else [*rest, *new]

    return change


def with_more(given: str) -> Callable[[list[str]], list[str]]:
    """What adds these tags at the end where they do not stand yet."""
    new = dict.fromkeys(tags(given))
    return lambda parts: [*parts, *(tag for tag in new if tag not in parts)]


def without_tags(given: str) -> Callable[[list[str]], list[str]]:
    """What takes these tags out. UserError: none are given."""
    gone = _some(given)
    return lambda parts: [tag for tag in parts if tag not in gone]


def _some(given: str) -> list[str]:
    found = list(dict.fromkeys(tags(given)))
    if not found:
        raise UserError(words.NO_TAG)
    return found


def restore(folder: Path, changed: Mapping[str, Sequence[str]]) -> int:
    """Put the old texts back where the new ones still stand; gives how many that were."""
    same = [name for name, (_, new) in changed.items() if current(folder / name) == new]
    for name in same:
        write(file_of(folder / name), f"{changed[name][0]}\n" if changed[name][0] else "")
    return len(same)


# ------------------------------------------------------------------------------------------------------------ uploads


def import_pictures(folder: Path, uploads: Sequence[Path]) -> tuple[int, int, list[str]]:
    """Copy uploads in, beside what is there: how many pictures, how many captions, and what was refused and why."""
    folder.mkdir(parents=True, exist_ok=True)
    in_place: dict[str, list[Path]] = {}
    written, refused = 0, dict[str, list[str]]()
    texts = [path for path in uploads if path.suffix.lower() == ".txt"]
    for path in (one for one in uploads if one not in texts):
        try:
            in_place.setdefault(path.stem, []).append(_place(folder, path))
        except UserError as error:
            refused.setdefault(str(error), []).append(path.name)
    for path in texts:
        try:
            written += _caption(in_place.get(path.stem) or _pictures(folder, path.stem), path.read_bytes())
        except UserError as error:
            refused.setdefault(str(error), []).append(path.name)
    return sum(map(len, in_place.values())), written, images.refusals(refused)


def _plain(stem: str) -> str:
    return re.sub(r"[^\w .()+-]", "_", stem).strip(" .")[:80] or "picture"


def _pictures(folder: Path, stem: str) -> list[Path]:
    """The pictures of this name that lie there already."""
    return [folder / name for name in scan(folder).pictures if Path(name).stem in (stem, _plain(stem))]


def _place(folder: Path, upload: Path) -> Path:
    """Copy a picture in under a name that nothing else there has, caption or picture; the same picture again stays as
    it is. UserError: it is none."""
    data = upload.read_bytes()
    if upload.suffix.lower() in images.OTHERS:
        data = images.as_png(data, upload.suffix)
    plain, ending = _plain(upload.stem), images.whole(data)
    taken = {path.stem.lower() for path in folder.iterdir()}
    for stem in (plain, *(f"{plain}-{number}" for number in range(2, 10_000))):
        target = folder / f"{stem}{ending}"
        if target.is_file() and target.read_bytes() == data:
            return target
        if stem.lower() not in taken:
            write(target, data)
            return target
    raise UserError(words.TOO_MANY_NAMED)


def _caption(pictures: Sequence[Path], data: bytes) -> int:
    """Write an uploaded caption beside its pictures; gives for how many. UserError: there is no such picture, it has
    another caption, or this is no text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(words.NOT_UTF8) from None
    if not pictures:
        raise UserError(words.NO_SUCH_PICTURE)
    if any(read(one) not in (None, "", text.strip()) for one in pictures):
        raise UserError(words.OTHER_CAPTION)
    for one in pictures:
        write(file_of(one), text)
    return len(pictures)


def trouble(listing: Listing, resolution: int, seconds: float = 60.0) -> tuple[dict[str, list[str]], int]:
    """What a person should know of single pictures: name -> short words; sizes from headers, equal files by content.

    After so many seconds the rest is left for the next call: the second number says how many.
    """
    out: dict[str, list[str]] = {}
    by_bytes: dict[int, list[str]] = {}
    until, later = time.monotonic() + seconds, 0
    for name, text in read_all(listing).items():
        if not text:
            unread = text is None and listed(listing, name)
            out.setdefault(name, []).append(words.CAPTION_UNREADABLE if unread else words.NO_CAPTION)
        if time.monotonic() > until:
            later += 1
            continue
        path, stamp = str(listing.folder / name), listing.stamps[name]
        measured = images.size_of(path, *stamp)
        if measured is None:
            out.setdefault(name, []).append(words.UNREADABLE)
            continue
        if measured[0] * measured[1] > images.MOST_PIXELS:
            out.setdefault(name, []).append(words.VERY_LARGE)
        elif measured[0] * measured[1] < 0.5 * resolution**2:
            out.setdefault(name, []).append(words.SMALL)
        by_bytes.setdefault(stamp[1], []).append(name)
    for names in by_bytes.values():
        seen: dict[str, str] = {}
        for name in names if len(names) > 1 else []:
            if time.monotonic() > until + seconds:
                break
            digest = images.digest_of(str(listing.folder / name), *listing.stamps[name])
            if digest in seen:
                out.setdefault(name, []).append(words.SAME_AS.format(seen[digest]))
            seen.setdefault(digest, name)
    return out, later
