"""What a scan finds: items, and a count of everything that was odd."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..diffusion.types import Role
from ..errors import UserError, escaped
from .augment import window
from .buckets import Fit, Rules, Size, assign
from .cache import Index
from .options import SetOptions
from .pictures import Header, Unreadable

NOTES = {
    "unreadable": ("pictures that cannot be read, left out", "fix or remove them"),
    "too small": ("pictures smaller than one bucket step, left out", "use larger ones, or a smaller bucket_step"),
    "no caption": ("pictures without a caption", "add a text file of equal name beside each, or set caption"),
    "fixed caption": ("pictures without a caption file, given the fixed caption", ""),
    "other extension": ("captions found under another extension than caption_extension", "set it to the one shown"),
    "empty caption": ("empty caption files", ""),
    "duplicate": ("pictures of the same content as another one", "remove them, unless it is meant"),
    "enlarged": ("pictures smaller than their bucket, enlarged", "no_upscale = true keeps their size"),
    "cropped": ("pictures that lose more than a quarter to cropping", "raise bucket_max"),
    "no mask": ("pictures without a mask, which count fully", ""),
    "black mask": (
        "pictures whose mask or alpha channel is black, or nearly, where they are seen, which train nothing",
        "white counts, black is ignored: invert or remove them",
    ),
    "no target": ("pictures without a target, left out", "give each one of equal name, or remove them"),
    "sparse target": (
        "pictures with hardly a latent cell whose pixels are all valid, which the losses on latents leave out",
        "[loss.dense] learns from their valid pixels",
    ),
    "mask size": ("masks of another size than their picture, stretched to it", ""),
    "other kind": ("files of a kind that is not read here, left out", "save them as PNG, JPEG or WebP"),
    "missing": ("pictures that the metadata names but that are not there", "restore them"),
    "empty folder": ("folders without pictures, left out", ""),
    "linked twice": ("linked folders that are read already or lead back, left out", ""),
    "repeated set": ("sets of the same folder and size as an earlier one, left out", "raise repeats instead"),
    "repeats = 0": ("sets with repeats = 0, left out", ""),
    "tie": ("pairs that are ties, left out", ""),
    "fitted": ("pairs of different shapes, the rejected picture fitted to the chosen one's bucket", ""),
    "rated twice": ("pictures rated more than once for one prompt", "keep one rating"),
}
"""What can be odd, and what would be right."""


class Notes:
    """Counted warnings, with a few names each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, name: str, count: int = 1) -> None:
        assert kind in NOTES, kind
        total, names = self._found.get(kind, (0, []))
        self._found[kind] = (total + count, [*names, name] if len(names) < 5 else names)

    def count(self, kind: str) -> int:
        return self._found.get(kind, (0, []))[0]

    def names(self, kind: str) -> list[str]:
        """The first of them."""
        return self._found.get(kind, (0, []))[1]

    def line(self, kind: str) -> str:
        total, names = self._found[kind]
        what, advice = NOTES[kind]
        shown = escaped(", ".join(names)) + (", ..." if total > len(names) else "")
        return f"{what}: {total} ({shown}){advice and '; ' + advice}"

    def lines(self) -> list[str]:
        return [self.line(kind) for kind in NOTES if kind in self._found]

    def as_json(self) -> list[dict]:
        return [
            {"kind": kind, "count": self.count(kind), "names": self.names(kind), "text": self.line(kind)}
            for kind in NOTES
            if kind in self._found
        ]


@dataclass(frozen=True)
class Picture:
    """A file that can be trained on."""

    path: Path
    size: Size
    fit: Fit
    alpha: bool = False
    mask: Path | None = None
    target: Path | None = None
    """Its map, of a dense run."""


@dataclass(frozen=True)
class Item:
    """What is drawn at once: one picture, or the two of a pair (the chosen one first)."""

    name: str
    """Path below its folder, or the line of the pairs file: the same on every machine."""
    pictures: tuple[Picture, ...]
    roles: tuple[Role, ...]
    caption: str
    """The text as it was found; ``captions.draw`` makes a step's caption of it."""
    set: int
    """Number of its set in ``Scan.sets``."""
    repeats: int
    weight: float
    group: str
    """Items of equal group are held out together or not at all."""
    is_reg: bool = False

    @property
    def bucket(self) -> Size:
        return self.pictures[0].fit.bucket


@dataclass
class Scan:
    """What the data is."""

    items: list[Item] = field(default_factory=list)
    sets: list[SetOptions] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """A name for each set: its folder's."""
    notes: Notes = field(default_factory=Notes)


def check_unreadable(notes: Notes, limit: int) -> None:
    """:raises UserError: more pictures cannot be read than ``limit``."""
    if notes.count("unreadable") > limit:
        raise UserError(f"data: {notes.line('unreadable')}, or raise max_unreadable = {limit}")


def read_header(path: Path, index: Index) -> Header | str:
    """What is known of a picture, or why it cannot be read."""
    try:
        return index.header(path)
    except Unreadable as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def place(notes: Notes, name: str, path: Path, header: Header | str, shape: Rules) -> Picture | None:
    """The picture in its bucket; None, and noted, when it is unreadable or too small for one."""
    if isinstance(header, str):
        notes.add("unreadable", f"{name} ({header})")
        return None
    fit = assign(header.size, shape)
    if fit is None:
        notes.add("too small", f"{name} ({header.size[0]}x{header.size[1]})")
        return None
    if fit.resized[0] > header.size[0]:
        notes.add("enlarged", f"{name} ({header.size[0]}x{header.size[1]} to {fit.resized[0]}x{fit.resized[1]})")
    if fit.bucket[0] * fit.bucket[1] < 0.75 * fit.resized[0] * fit.resized[1]:
        notes.add("cropped", name)
    return Picture(path, header.size, fit, header.alpha)


def with_mask(notes: Notes, name: str, picture: Picture, path: Path, index: Index) -> Picture:
    """The picture with a mask. UserError when that cannot be read."""
    header = read_header(path, index)
    if isinstance(header, str):
        raise UserError(f"data: the mask {path.as_posix()} cannot be read ({header}); fix or remove it")
    if header.size != picture.size:
        notes.add("mask size", name)
    return replace(picture, mask=path)


def is_black(picture: Picture, options: SetOptions, index: Index) -> bool:
    """Whether the masks of a picture leave nothing within its crop. False for one that cannot be decoded."""
    sources = [(picture.mask, False)] if picture.mask else []
    sources += [(picture.path, True)] if options.alpha_mask and picture.alpha else []
    whole = options.random_crop or options.face_crop
    place, (_, corner) = picture.fit, window(picture.path, picture.size, picture.fit, options, None)
    left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
    if not whole:
        left, top = corner[0] / place.resized[0], corner[1] / place.resized[1]
        right, bottom = left + place.bucket[0] / place.resized[0], top + place.bucket[1] / place.resized[1]
    for path, alpha in sources:
        try:
            box = index.mask_box(path, alpha)
        except (Unreadable, OSError):
            return False
        left, top, right, bottom = (
            (max(left, box[0]), max(top, box[1]), min(right, box[2]), min(bottom, box[3])) if box else (0, 0, 0, 0)
        )
    return left >= right or top >= bottom
