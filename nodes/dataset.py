"""Datasets: a report on a folder, and a folder written from pictures and captions."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.files import write_atomic
from . import host
from .node import In, Node, Out, Result, never_same

EXAMPLES = control.ROOT / "presets" / "pictures"
"""The demo's pictures and pairs: something to learn from in a fresh ComfyUI."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")


@dataclass
class Report:
    """What lies in a folder. Paths are relative to it."""

    pictures: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) -> how many."""
    uncaptioned: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Same bytes."""

    def lines(self, resolution: int) -> list[str]:
        small = sum(n for (w, h), n in self.sizes.items() if w * h < resolution * resolution)
        shapes = Counter[str]()
        for (w, h), n in self.sizes.items():
            shapes["square" if w == h else "wide" if w > h else "tall"] += n
        info = [f"{self.pictures} pictures" + "".join(f", {n} {shape}" for shape, n in shapes.most_common())]
        common = [f"{w}x{h} ({n})" for (w, h), n in self.sizes.most_common(6)]
        info += [f"sizes: {', '.join(common)}" + (", ..." if len(self.sizes) > 6 else "")] if common else []
        info += [f"{small} smaller than {resolution}x{resolution}: they would be enlarged or skipped"] if small else []
        info += _listed("without caption", self.uncaptioned)
        info += _listed("unreadable", self.unreadable)
        info += _listed("duplicates", [f"{a} = {b}" for a, b in self.duplicates])
        return info


def _listed(what: str, names: Sequence[str]) -> list[str]:
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{what}: {len(names)} ({', '.join(names[:5])}{more})"] if names else []


def report(folder: Path) -> Report:
    """Look at every picture's size, caption and bytes. UserError when there is no picture."""
    found = Report()
    seen: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        name = path.relative_to(folder).as_posix()
        try:
            with Image.open(path) as picture:
                picture.verify()
                size = picture.size
            data = hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            found.unreadable.append(name)
            continue
        found.pictures += 1
        found.sizes[size] += 1
        caption = path.with_suffix(".txt")
        if not caption.is_file() or not caption.read_text(encoding="utf-8", errors="replace").strip():
            found.uncaptioned.append(name)
        if data in seen:
            found.duplicates.append((seen[data], name))
        seen.setdefault(data, name)
    if not found.pictures and not found.unreadable:
        raise UserError(f"{folder.name}: there is no picture in it; put PNG, JPEG, WebP, BMP or AVIF files there")
    return found


# --------------------------------------------------------------------------------------------------------------- nodes


def roots() -> list[Path]:
    import folder_paths

    return [*host.folders(host.DATA), Path(folder_paths.get_input_directory()), EXAMPLES]


def names() -> list[str]:
    """Folders with something to learn from, below the pack's data folders and ComfyUI's input folder; the pack's
    examples; and none."""
    found = []
    for root in roots():
        if root.is_dir():
            folders = (p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
            found += sorted(p.name for p in folders if _holds_data(p))
    return [*dict.fromkeys(found), host.NONE]


def _holds_data(folder: Path) -> bool:
    """Pictures, here or below, or the files of pairs and ratings."""
    if any((folder / name).is_file() for name in ("pairs.jsonl", "ratings.jsonl")):
        return True
    return any(name.lower().endswith(SUFFIXES) for _, _, files in os.walk(folder) for name in files)


def find(name: str) -> Path:
    if name == host.NONE:
        raise UserError("folder: none is chosen; put a folder of pictures into ComfyUI's input folder and press R")
    for root in roots():
        folder = host.named(root, name)
        if folder.is_dir():
            return folder
    raise UserError(f"folder: there is no '{name}' in {', '.join(map(str, roots()))}; put it there and press R")


def _from_folder(folder: str, resolution: int) -> Result:
    path = find(folder)
    lines = report(path).lines(resolution)
    return Result((str(path), "\n".join(lines)), host.text(lines))


def _folder_stamp(folder: str | None = None, **others: object) -> str:
    try:
        path = find(folder or "")
    except UserError:
        return never_same()
    stamps = [f"{p.name} {p.stat().st_mtime_ns} {p.stat().st_size}" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def write(folder: Path, pictures: Sequence[Image.Image], captions: Sequence[str]) -> tuple[int, int]:
    """Add pictures with captions under the hash of their pixels; how many were new, and how many have another caption.

    What is there stays as it is: a caption is written only where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = other = 0
    for picture, caption in zip(pictures, captions, strict=True):
        name = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16]
        path = folder / f"{name}.png"
        if not path.exists():
            write_atomic(path, host.png(picture), durable=False)
            new += 1
        beside, wanted = path.with_suffix(".txt"), caption.strip()
        there = beside.read_text(encoding="utf-8", errors="replace").strip() if beside.is_file() else None
        if there is None or (wanted and not there):
            write_atomic(beside, f"{wanted}\n", durable=False)
        elif there != wanted:
            other += 1
    return new, other


def _from_images(images: list[Tensor], dataset: list[str], captions: list[str], resolution: list[int]) -> Result:
    pictures = [picture for batch in images for picture in host.pictures(batch)]
    if not pictures:
        raise UserError("images: no picture came in; connect pictures")
    lines = _captions(captions, len(pictures))
    folder = host.place(host.DATA, dataset[0])
    new, other = write(folder, pictures, lines)
    info = [f"{folder.name}: {new} new pictures, {len(pictures) - new} were there"]
    info += [f"{other} kept another caption; edit or delete their .txt files to change it"] if other else []
    info += report(folder).lines(resolution[0])
    return Result((str(folder), "\n".join(info)), host.text(info))


def _captions(given: list[str], count: int) -> list[str]:
    """A caption for each picture: from a list, one line per picture, or one for all; no text leaves all empty."""
    if len(given) > 1:
        lines = [text.strip() for text in given]
    else:
        text = given[0] if given else ""
        lines = [line.strip() for line in text.rstrip("\n").split("\n")]
        if len(lines) != count:  # an empty line is an empty caption only where there is a line for each picture
            lines = [line for line in lines if line] or [""]
    lines = lines * count if len(lines) == 1 else lines
    if len(lines) != count:
        raise UserError(f"captions: {len(lines)} for {count} pictures; give one line for all, one for each, or none")
    return lines


_RESOLUTION = In("resolution", "INT", "Training resolution in pixels: smaller pictures are counted.", default=512,
                 low=64, high=4096, advanced=True)  # fmt: skip
_OUTPUTS = (Out("folder", "STRING", "The folder, for Train."), Out("report", "STRING", "What lies in it."))
FOLDER = Node(
    id="PixelkilnDatasetFolder",
    name="Dataset from folder (Pixelkiln)",
    about="A folder of pictures with captions beside them (name.txt), below ComfyUI's input folder or the pack's data "
    "folder: how many, their sizes, missing captions, duplicates, unreadable files.",
    run=_from_folder,
    inputs=(In("folder", "COMBO", "A folder of pictures.", options=names), _RESOLUTION),
    outputs=_OUTPUTS,
    group="training",
    aliases=("dataset", "training images"),
    fingerprint=_folder_stamp,
    output=True,
)
IMAGES = Node(
    id="PixelkilnDatasetImages",
    name="Dataset from images (Pixelkiln)",
    about="Writes pictures with captions into a dataset folder; the same picture is written once, and a caption that "
    "is there is kept.",
    run=_from_images,
    inputs=(
        In("images", "IMAGE", "Pictures, as batches or as a list."),
        In("dataset", "STRING", "Name of the folder, in the pack's data folder.", default="dataset"),
        In(
            "captions",
            "STRING",
            "One line for all pictures, a line for each, a list, or nothing: Train's "
            "trigger words alone are the captions then.",
            default="",
            multiline=True,
        ),
        _RESOLUTION,
    ),
    outputs=_OUTPUTS,
    group="training",
    aliases=("save dataset", "training images"),
    output=True,
    whole_lists=True,
)
NODES = (FOLDER, IMAGES)
