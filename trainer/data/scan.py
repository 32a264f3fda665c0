"""From folders to items: every picture with its caption, size and bucket."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ..dense.options import DenseOptions
from ..dense.targets import find_target
from ..diffusion.types import Role
from ..errors import UserError
from ..runs.files import decode, is_file
from . import captions
from .buckets import rules
from .cache import Index
from .items import Item, Notes, Picture, Scan, check_unreadable, is_black, place, read_header, with_mask
from .options import DataOptions, PictureOptions, SetOptions
from .pictures import EXTENSIONS, OTHER_EXTENSIONS, Header
from .preferences import contents, scan_pairs, scan_ratings
from .progress import Progress, silent

Named = tuple[str, Path]
"""A picture's name below its folder, and where it lies."""
Text = tuple[str, str] | UnicodeDecodeError | None
"""A caption and the extension it was found under; or what is wrong with it; or None when there is no file."""


def scan(
    options: DataOptions, native: int, index: Index, progress: Progress = silent, dense: DenseOptions | None = None
) -> Scan:
    """Look at everything that [data] names, without decoding a picture that looks whole.

    :param native: side in pixels that the model was made for.
    :param dense: of a dense run, whose items have a target.
    :raises UserError: no folder, no pictures, a wrong file, or more unreadable pictures than allowed.
    """
    found = Scan()
    if options.pairs:
        scan_pairs(found, options, Path(options.pairs), native, index)
    elif options.ratings:
        scan_ratings(found, options, Path(options.ratings), native, index)
    else:
        _folders(found, options, native, index, progress, dense)
    check_unreadable(found.notes, options.max_unreadable)
    _note_black(found, index)
    if not found.items:
        raise UserError(f"data: no picture is left to train on; {'; '.join(found.notes.lines()) or 'name some'}")
    return found


def _note_black(found: Scan, index: Index) -> None:
    """Note the pictures of which the masks leave nothing."""

    def look(item: Item) -> bool:
        return is_black(item.pictures[0], found.sets[item.set], index)

    with ThreadPoolExecutor(4) as pool:
        for item, black in zip(found.items, pool.map(look, found.items), strict=True):
            if black:
                found.notes.add("black mask", item.name)


def _folders(
    found: Scan, options: DataOptions, native: int, index: Index, progress: Progress, dense: DenseOptions | None
) -> None:
    named = options.named_sets()
    if not named:
        raise UserError('data: nothing to train on; give [data] path = "folder of pictures", or pairs, or ratings')
    seen: set[tuple] = set()
    empty: list[tuple[str, SetOptions, NoPictures]] = []
    for where, one in named:
        source = (one.path or "", one.metadata or "", rules(one, native, where), one.is_reg, one.pool)
        if one.repeats == 0 or source in seen:
            found.notes.add("repeats = 0" if one.repeats == 0 else "repeated set", where)
            continue
        seen.add(source)
        before = len(found.items)
        try:
            _folder(found, where, one, options, native, index, progress, dense)
        except NoPictures as error:
            empty.append((where, one, error))
            continue
        if len(found.items) == before and not found.notes.count("unreadable"):
            raise UserError(f"{where}: no picture in {_posix(one.path or one.metadata)} can be used; "
                             f"{'; '.join(found.notes.lines())}")  # fmt: skip
    for _, one, error in empty:
        if not found.items:
            raise error
        found.notes.add("empty folder", _posix(one.path or one.metadata))
    if not any(not item.is_reg for item in found.items) and found.items:
        raise UserError("data: all sets are regularisation pictures; add a set with is_reg = false")
    _mark_duplicates(found, index)


def _folder(
    found: Scan, where: str, one: SetOptions, options: DataOptions, native: int, index: Index, progress: Progress,
    dense: DenseOptions | None,
) -> None:  # fmt: skip
    """The pictures of one set."""
    root = Path(one.path) if one.path else None
    if root is not None and not root.is_dir():
        raise UserError(f"{where}.path: there is no folder {_posix(root)}; give the folder that holds the pictures")
    files = Files(root, one.recursive, one.masks) if root else Files(None)
    for name in files.loops:
        found.notes.add("linked twice", f"{_posix(root)}/{name}")
    texts = _metadata(where, one, files, found.notes) if one.metadata else None
    paths = files.pictures(found.notes) if texts is None else sorted(texts, key=_order)
    if not paths:
        raise _no_pictures(where, one, found.notes)
    masks = Files(Path(one.masks)) if one.masks else None
    if masks is not None and not Path(one.masks or "").is_dir():
        raise UserError(f"{where}.masks: there is no folder {_posix(one.masks)}; give the folder that holds the masks")
    if dense:
        _check_targets(where, one)
        one = one.model_copy(update=_NO_CAPTIONS)
    shape = rules(one, native, where)
    number = len(found.sets)
    found.sets.append(one)
    found.names.append((root or Path(one.metadata or "")).name)
    bad_text: list[str] = []
    look = _look(paths, files, texts, one, index)
    for relative, path, header, text in progress(look, "files", len(paths)):
        if isinstance(text, UnicodeDecodeError):
            bad_text.append(f"{relative} (byte {text.start})")
            continue
        picture = place(found.notes, relative, path, header, shape)
        if picture is None:
            continue
        if dense and (picture := _with_target(found.notes, relative, picture, one)) is None:
            continue
        caption = "" if dense else _caption(found.notes, relative, text, one)
        if masks is not None:
            picture = _masked(found.notes, relative, picture, masks, index)
        weight = options.prior_loss_weight if one.is_reg else 1.0
        name = f"{found.names[number]}/{relative}"
        twice = dense is not None and dense.detail > 0
        pictures, roles = ((picture, picture), _BOTH) if twice else ((picture,), _BOTH[:1])
        found.items.append(Item(name, pictures, roles, caption, number, one.repeats, weight, name, one.is_reg))
    if bad_text:
        raise UserError(f"{where}: {len(bad_text)} captions are not UTF-8: the one of {', '.join(bad_text[:3])}"
                         f"{' ...' if len(bad_text) > 3 else ''}; save them as UTF-8")  # fmt: skip


_CAPTIONED = (
    "caption", "trigger", "prefix", "suffix", "shuffle", "wildcards", "caption_dropout",
    "caption_dropout_every_n_epochs", "tag_dropout", "token_warmup_steps",
)  # fmt: skip
_NO_CAPTIONS = {name: PictureOptions.model_fields[name].default for name in _CAPTIONED}
"""A dense run's prompt is empty, whatever the options for captions are."""
_BOTH: tuple[Role, ...] = ("plain", "reconstruction")
"""The rows of a dense run's sample: its map, and its picture."""


def _check_targets(where: str, one: SetOptions) -> None:
    if one.targets is None:
        raise UserError(f'{where}.targets: a run with [dense] needs the map of each picture; set targets = "folder"')
    if not Path(one.targets).is_dir():
        raise UserError(f"{where}.targets: there is no folder {_posix(one.targets)}; give the one that holds the maps")


def _with_target(notes: Notes, name: str, picture: Picture, one: SetOptions) -> Picture | None:
    """The picture with its target; None, and noted, where there is none."""
    folder = Path(one.targets or "")
    target = find_target((folder / name).parent, Path(name)) or find_target(folder, Path(name))
    if target is None:
        notes.add("no target", name)
        return None
    return replace(picture, target=target)


class NoPictures(UserError):
    """A folder without pictures: passed over with a note where other folders have some."""


def _no_pictures(where: str, one: SetOptions, notes: Notes) -> UserError:
    """Why a set has none."""
    place = _posix(one.path or one.metadata)
    if one.metadata:
        file, missing = Path(one.metadata).name, notes.count("missing")
        if not missing:
            return UserError(f"{where}: {file} names no pictures; write {{picture: {{caption: ...}}}} into it")
        names = "image_dir" if one.path else "the folder of the file"
        return UserError(
            f"{where}: none of the {missing} pictures that {file} names is there: "
            f"{', '.join(notes.names('missing')[:3])}{' ...' if missing > 3 else ''}; names are relative to {names}"
            f"{f', {place}' if one.path else ''}"
        )
    below = one.path is not None and not one.recursive and _below(Path(one.path))
    hint = "its subfolders do: set recursive = true" if below else f"looked for {' '.join(EXTENSIONS)}"
    return NoPictures(f"{where}: {place} holds no pictures; {hint}")


class Files:
    """The files below a folder by their name, in an order and with a spelling that do not depend on the system."""

    def __init__(self, root: Path | None, recursive: bool = False, without: str | None = None):
        self._exact: dict[str, str] = {}  # plain strings: there may be very many
        self.loops: list[str] = []
        """Links to folders that were read already, or that lead back to the folder itself."""
        seen = {os.path.realpath(root)} if root else set()
        for folder, below, names in os.walk(root, followlinks=True) if root else ():
            here = Path(folder)
            above = "" if here == root else here.relative_to(root or here).as_posix() + "/"
            wanted = [one for one in below if recursive and not one.startswith(".") and str(here / one) != without]
            below[:] = [one for one in sorted(wanted) if self._opens(here / one, above + one, root or here, seen)]
            for name in names:
                if not name.startswith("."):
                    self._exact[unicodedata.normalize("NFC", above + name)] = f"{folder}{os.sep}{name}"
        self._folded = {name.casefold(): path for name, path in sorted(self._exact.items(), reverse=True)}

    def _opens(self, folder: Path, name: str, root: Path, seen: set[str]) -> bool:
        """Whether a folder is read: each once, and a linked one not where it is, or holds, one that is read anyway."""
        real, top = Path(os.path.realpath(folder)), Path(os.path.realpath(root))
        inside = folder.is_symlink() and top in (real, *real.parents)
        hidden = inside and any(piece.startswith(".") for piece in real.relative_to(top).parts)
        if str(real) in seen or (inside and not hidden) or real in top.parents:
            self.loops.append(name)
            return False
        seen.add(str(real))
        return True

    def find(self, relative: str) -> Path | None:
        name = unicodedata.normalize("NFC", relative)
        path = self._exact.get(name) or self._folded.get(name.casefold())
        return Path(path) if path else None

    def pictures(self, notes: Notes | None = None) -> list[Named]:
        """Those with a picture's extension, sorted."""
        found = []
        for relative, path in self._exact.items():
            suffix = _suffix(relative).lower()
            if suffix in EXTENSIONS:
                found.append((relative, Path(path)))
            elif suffix in OTHER_EXTENSIONS and notes is not None:
                notes.add("other kind", relative)
        return sorted(found, key=_order)

    def beside(self, relative: str, suffixes: Iterable[str]) -> Path | None:
        """The file of equal stem with the first of these endings."""
        stem = relative.removesuffix(_suffix(relative))
        return next((path for suffix in suffixes if (path := self.find(stem + suffix))), None)


def _suffix(relative: str) -> str:
    """The ending with its dot."""
    name = relative.rpartition("/")[2]
    return name[name.rindex(".") :] if "." in name else ""


def _order(one: Named) -> tuple[str, str]:
    return one[0].casefold(), one[0]


def _posix(path: str | Path | None) -> str:
    return Path(path or "").as_posix()


def _below(root: Path) -> bool:
    """Whether some subfolder holds pictures."""
    return any(Path(name).suffix.lower() in EXTENSIONS for _, _, names in os.walk(root) for name in names)


def _look(
    paths: list[Named], files: Files, texts: dict[Named, str] | None, one: SetOptions, index: Index
) -> Iterator[tuple[str, Path, Header | str, Text]]:
    """For each picture its header, or why there is none, and its caption."""

    def text(relative: str) -> Text:
        stem = relative.removesuffix(_suffix(relative))
        stems = [stem] if stem.count("_") < 4 else [stem, stem.rsplit("_", 4)[0]]
        for suffix in dict.fromkeys((one.caption_extension, *captions.EXTENSIONS)):
            for name in stems:
                path = files.find(name + suffix)
                if path is not None:
                    try:
                        return captions.read(path.read_bytes()), suffix
                    except UnicodeDecodeError as error:
                        return error
        return None

    def look(name: Named) -> tuple[str, Path, Header | str, Text]:
        return *name, read_header(name[1], index), text(name[0]) if texts is None else (texts[name], "")

    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(look, paths)


def _caption(notes: Notes, relative: str, text: Text, one: SetOptions) -> str:
    if isinstance(text, tuple):
        if text[1] and text[1] != one.caption_extension:
            notes.add("other extension", f"{relative} ({text[1]}, not {one.caption_extension})")
        if not text[0]:
            notes.add("empty caption" if text[1] else "no caption", relative)
        return text[0]
    notes.add("no caption" if one.caption is None else "fixed caption", relative)
    return one.caption or ""


def _masked(notes: Notes, name: str, picture: Picture, masks: Files, index: Index) -> Picture:
    path = masks.beside(name, EXTENSIONS) or masks.beside(Path(name).name, EXTENSIONS)
    if path is None:
        notes.add("no mask", name)
        return picture
    return with_mask(notes, name, picture, path, index)


def _metadata(where: str, one: SetOptions, files: Files, notes: Notes) -> dict[tuple[str, Path], str]:
    """Captions of one file: {(relative name, path): text}."""
    path = Path(one.metadata or "")
    found: dict[tuple[str, Path], str] = {}
    for key, entry in _entries(f"{where}.metadata", path):
        relative = key.replace("\\", "/")
        picture = Path(key) if Path(key).is_absolute() else files.find(relative)
        if picture is None and not Path(key).is_absolute():  # a stem, as sd-scripts writes, or relative to the file
            beside = path.parent / relative
            picture = files.beside(relative + ".", EXTENSIONS) or (beside if is_file(beside) else None)
        if picture is None or not is_file(picture):
            notes.add("missing", key)
            continue
        words, tags = entry.get("caption", entry.get("text")) or "", entry.get("tags") or ""
        if not isinstance(words, str) or not isinstance(tags, str):
            raise UserError(f"{where}.metadata: the caption of {key} is no text; write it as one")
        if tags and one.wildcards:
            tags = tags.replace("\n", one.separator)
            words = "\n".join(f"{line}{one.separator}{tags}" for line in words.split("\n") if line.strip()) or tags
        elif tags:
            words = f"{words}{one.separator}{tags}" if words else tags
        name = relative if not Path(key).is_absolute() else Path(key).name
        found[(name, picture)] = words
    return found


def _entries(where: str, path: Path) -> list[tuple[str, dict]]:
    try:
        text = decode(path.read_bytes())
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            entries = [(row.get("image_path") or row.get("file_name"), row) for row in rows]
        else:
            entries = list(json.loads(text).items())
    except OSError as error:
        raise UserError(f"{where}: {_posix(path)} cannot be read ({error.strerror}); give a JSON file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {_posix(path)} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (ValueError, AttributeError, RecursionError) as error:
        remedy = "write a backslash twice, or /" if "escape" in str(error) else "fix it"
        raise UserError(f"{where}: {_posix(path)} is not JSON of the form {{picture: {{caption: ...}}}} ({error}); "
                         f"{remedy}") from error  # fmt: skip
    if not all(isinstance(key, str) and isinstance(entry, dict) for key, entry in entries):
        raise UserError(f"{where}: {_posix(path)} has an entry without a picture's name; write image_path")
    return entries


def _mark_duplicates(found: Scan, index: Index) -> None:
    """Pictures of equal content form one group, named after the first of them."""
    names = contents((item.pictures[0].path for item in found.items), index)
    first: dict[str, Item] = {}
    for item in found.items:
        other = first.setdefault(names[item.pictures[0].path], item)
        if other.pictures[0].path != item.pictures[0].path:
            found.notes.add("duplicate", f"{item.name} = {other.name}")
    found.items = [replace(item, group=first[names[item.pictures[0].path]].name) for item in found.items]
