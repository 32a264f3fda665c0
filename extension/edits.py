"""Changes of the picture files themselves: rotated, cropped, left out, masked, saved as another kind. What was there
before an edit is kept in ``.originals`` beside the pictures; the trainer reads no folder whose name begins with a
dot."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from ..trainer.errors import UserError
from . import captions, images, words
from .crops import Box
from .store import write

ORIGINALS, LEFT_OUT, MASKS = ".originals", ".left-out", "masks"
SAVED = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".avif": "AVIF"}
LEAST = 16
"""Pixels of a side that a crop leaves at least."""
EDITOR_SIDE = 1024
"""The longest side of a picture in the editor of masks, in pixels."""
PAINT = (196, 68, 59)
"""The colour of what is ignored, in the editor."""
PAINT_CSS = "#{:02x}{:02x}{:02x}".format(*PAINT)


# ------------------------------------------------------------------------------------------------------- one picture


def rotate(picture: Path, mask: Path | None) -> None:
    """A quarter to the right, its mask too. UserError: it cannot be read or written."""
    _both(picture, mask, lambda one: one.transpose(Image.Transpose.ROTATE_270))


def crop(picture: Path, mask: Path | None, box: Box) -> None:
    """Keep the part in ``box``, of its mask too. UserError: there is hardly anything in it."""
    left, top, width, height = box
    whole = images.size(picture) or (0, 0)
    if min(width * whole[0], height * whole[1]) < LEAST:
        raise UserError(words.FRAME_SMALL.format(LEAST, picture.name))

    def cut(one: Image.Image) -> Image.Image:
        x, y = round(left * one.width), round(top * one.height)
        return one.crop((x, y, round((left + width) * one.width), round((top + height) * one.height)))

    _both(picture, mask, cut)


def box_of(text: str) -> Box:
    """A frame from percents: ``left, top, width, height``. UserError: it is none."""
    try:
        left, top, width, height = (float(part) / 100 for part in text.replace("%", "").split(","))
    except ValueError:
        raise UserError(words.NO_FRAME) from None
    left, top = max(0.0, left), max(0.0, top)
    return left, top, min(width, 1 - left), min(height, 1 - top)


def _both(picture: Path, mask: Path | None, change: Callable[[Image.Image], Image.Image]) -> None:
    ready = [(path, _changed(path, change)) for path in filter(None, (picture, mask))]
    for path, data in ready:
        _keep(path)
        write(path, data)


def _keep(path: Path) -> None:
    """Copy a file aside before its first change."""
    kept = path.parent / ORIGINALS / path.name
    if not kept.exists():
        write(kept, path.read_bytes())


def _changed(path: Path, change: Callable[[Image.Image], Image.Image]) -> bytes:
    size, out = images.size(path), io.BytesIO()
    if size is None or size[0] * size[1] > images.MOST_PIXELS:
        raise UserError(words.CANNOT_OPEN.format(path.name, words.REPLACE_FILE))
    try:
        with Image.open(path) as opened:
            kind = SAVED.get(f".{(opened.format or '').lower()}") or SAVED[path.suffix.lower()]
            profile = opened.info.get("icc_profile")
            new = change(ImageOps.exif_transpose(opened))
            more = {"quality": 95} if kind != "PNG" else {}
            new.save(out, kind, **more, **({"icc_profile": profile} if profile else {}))
    except images.WRONG as error:
        raise UserError(words.CANNOT_CHANGE.format(path.name, error)) from None
    return out.getvalue()


def has_original(picture: Path) -> bool:
    return (picture.parent / ORIGINALS / picture.name).is_file()


def bring_back(picture: Path, mask: Path | None) -> None:
    """The picture and its mask as they were before the first edit."""
    for path in filter(None, (picture, mask)):
        kept = path.parent / ORIGINALS / path.name
        if kept.is_file():
            write(path, kept.read_bytes())
            kept.unlink()


# ------------------------------------------------------------------------------------------------------------ left out


def left_out(folder: Path) -> tuple[str, ...]:
    """The names of the pictures that were left out."""
    there = folder / LEFT_OUT
    return captions.scan(there).pictures if there.is_dir() else ()


def leave_out(folder: Path, names: list[str]) -> int:
    """Move pictures and their captions aside, where no training finds them; gives how many."""
    return _move(folder, folder / LEFT_OUT, names)


def take_back(folder: Path, names: list[str]) -> int:
    """Move pictures that were left out to the others; gives how many."""
    return _move(folder / LEFT_OUT, folder, names)


def _move(source: Path, target: Path, names: list[str]) -> int:
    pictures, asked = captions.scan(source).pictures, set(names)
    there = [name for name in pictures if name in asked]
    sharing = Counter(Path(name).stem for name in pictures)
    clash = [name for name in there if (target / name).exists()]
    if clash:
        raise UserError(words.NAME_TAKEN.format(clash[0], target))
    target.mkdir(exist_ok=True)
    for name in there:
        shutil.move(source / name, target / name)
        sharing[Path(name).stem] -= 1
        for ending in captions.ENDINGS:
            text = (source / name).with_suffix(ending)
            if text.is_file() and not (target / text.name).exists():
                (shutil.copy2 if sharing[text.stem] else shutil.move)(text, target / text.name)
    return len(there)


# --------------------------------------------------------------------------------------------------------------- masks


def mask_of(masks: Path | None, picture: str) -> Path | None:
    """The mask of a picture, as the trainer finds it: of equal stem, with the ending of a picture."""
    if masks is None:
        return None
    found = (masks / f"{Path(picture).stem}{ending}" for ending in images.ENDINGS)
    return next((path for path in found if path.is_file()), None)


def to_paint(picture: Path, mask: Path | None) -> tuple[Image.Image, Image.Image]:
    """The picture for the editor, and over it what its mask ignores. UserError: one of them cannot be read."""
    seen = images.opened(picture, words.REPLACE_FILE).convert("RGB")
    seen.thumbnail((EDITOR_SIDE, EDITOR_SIDE))
    ignored = Image.new("L", seen.size)
    if mask is not None:
        ignored = ImageOps.invert(images.opened(mask, words.REPLACE_FILE).convert("L")).resize(seen.size)
    layer = Image.new("RGBA", seen.size, (*PAINT, 255))
    layer.putalpha(ignored)
    return seen, layer


def save_mask(masks: Path, picture: Path, painted: list[Image.Image]) -> Path | None:
    """A mask of the picture's size from what was painted over it: painted is black, the rest white. None, and no file
    of this picture, where nothing is painted. A mask that was there is kept in ``.originals``."""
    before, size = mask_of(masks, picture.name), images.size(picture)
    assert size is not None
    ignored = Image.new("L", painted[0].size if painted else (1, 1))
    for layer in painted:
        ignored.paste(255, mask=layer.convert("RGBA").getchannel("A").resize(ignored.size))
    path = masks / f"{picture.stem}.png" if ignored.getextrema()[1] else None
    if before is not None:
        _keep(before)
    if path is not None:
        data = io.BytesIO()
        ImageOps.invert(ignored).resize(size, Image.Resampling.BILINEAR).save(data, "PNG")
        write(path, data.getvalue())
    if before is not None and before != path:
        before.unlink()
    return path


# --------------------------------------------------------------------------------------------------------- other kinds


def others(listing: captions.Listing) -> list[str]:
    """Pictures of kinds that are not trained on and that could be saved as PNG, and are not yet."""
    stems = {Path(name).stem for name in (*listing.pictures, *left_out(listing.folder))}
    found = [name for name in listing.others if Path(name).suffix.lower() in images.OTHERS]
    return [name for name in found if Path(name).stem not in stems]


def convert(listing: captions.Listing) -> tuple[int, list[str]]:
    """Save pictures of other kinds as PNG beside them: how many, and what could not be and why."""
    done, refused = 0, dict[str, list[str]]()
    for path in (listing.folder / name for name in others(listing)):
        try:
            made = path.with_suffix(".png")
            if made.exists():  # of another file of this name, a moment ago
                raise UserError(words.ANOTHER_NAMED.format(made.name))
            write(made, images.as_png(path.read_bytes(), path.suffix))
            done += 1
        except UserError as error:
            refused.setdefault(str(error), []).append(path.name)
    return done, images.refusals(refused)
