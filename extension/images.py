"""Pictures as the interface sees them: their size, a thumbnail, and what is wrong with them. Never a whole decode of
something huge."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..trainer.errors import UserError
from . import words
from .store import write

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
MOST_PIXELS = 120_000_000
"""More are not decoded here; 30,000 x 4,000 are."""
OTHERS = (".gif", ".tif", ".tiff", ".jfif", ".heic", ".heif")
"""Kinds that are not trained on, and that are saved as PNG on demand."""
HEIC = (".heic", ".heif")
"""Of these, those that need the package pillow-heif (the extra ``heic``)."""
Image.MAX_IMAGE_PIXELS = None
"""Pillow's own limit is off: every decode here asks MOST_PIXELS first, and reports a huge picture by its size."""
WRONG = (OSError, ValueError, SyntaxError)
"""What Pillow raises for a file that is no whole picture."""


def size(path: Path) -> tuple[int, int] | None:
    """Width and height as seen (EXIF turned), from the header alone; None when it is no picture."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return size_of(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=50_000)
def size_of(path: str, _changed: int, _bytes: int) -> tuple[int, int] | None:
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.format != "PNG" and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (height, width) if turned else (width, height)
    except WRONG:
        return None


def digest(path: Path) -> str:
    """The content's SHA-256, looked at again only when the file has changed."""
    stat = path.stat()
    return digest_of(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=50_000)
def digest_of(path: str, _changed: int, _bytes: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def thumbnail(path: Path, side: int, folder: Path) -> Path | None:
    """A small WebP of the picture, made once; None when it cannot be read or is too large to be decoded here."""
    try:
        stat = path.stat()
        name = hashlib.sha256(f"{path}|{stat.st_mtime_ns}|{stat.st_size}|{side}".encode()).hexdigest()[:32]
        made = folder / f"{name}.webp"
        if made.is_file():
            return made
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                return None
            picture.draft("RGB", (side, side))
            small = ImageOps.exif_transpose(picture)
            small.thumbnail((side, side))
            data = io.BytesIO()
            small.convert("RGBA" if "A" in small.mode or "transparency" in small.info else "RGB").save(
                data, "WEBP", quality=82
            )
        write(made, data.getvalue())
    except WRONG:
        return None
    return made


def opened(path: Path, remedy: str) -> Image.Image:
    """The picture, turned as its EXIF data ask. UserError, ending in ``remedy``: it cannot be read, or is too large."""
    measured = size(path)
    if measured is None or measured[0] * measured[1] > MOST_PIXELS:
        raise UserError(words.CANNOT_OPEN.format(path.name, remedy))
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture)
    except WRONG:
        raise UserError(words.CANNOT_READ.format(path.name, remedy)) from None


def as_png(data: bytes, ending: str) -> bytes:
    """A picture of another kind as the trainer would see it, which reads eight bits and no colour profile: upright,
    in sRGB, RGB or RGBA, of an animation the first frame; a PNG without EXIF. UserError, without the file's name: it
    cannot be read."""
    if ending.lower() in HEIC:
        try:
            from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(words.NEEDS_HEIF.format(sys.executable)) from None
        register_heif_opener()
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UserError(words.MANY_PIXELS.format(picture.width, picture.height))
            _srgb(ImageOps.exif_transpose(picture)).save(out, "PNG", icc_profile=None)
    except UserError:
        raise
    except (*WRONG, EOFError, RuntimeError):  # a codec of HEIC too
        raise UserError(words.NOT_WHOLE) from None
    return out.getvalue()


def _srgb(picture: Image.Image) -> Image.Image:
    """RGB or RGBA, by the picture's colour profile where it has a valid one."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut at 255
        grey = (np.asarray(picture).astype(np.int64).clip(0, 65535) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    colours = picture if picture.mode in ("L", "CMYK", "RGB") else picture.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info.get("icc_profile") or b""))
        colours = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # none, or one that is not of these colours
        colours = colours.convert("RGB")
    assert colours is not None
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def whole(data: bytes) -> str:
    """The ending that fits an uploaded picture. UserError: not a picture of these kinds, broken, or too large."""
    kinds = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "AVIF": ".avif"}
    try:
        with Image.open(io.BytesIO(data), formats=list(kinds)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UserError(words.MANY_PIXELS.format(picture.width, picture.height))
            ending = kinds[str(picture.format)]
            picture.load()
    except UserError:
        raise
    except WRONG:
        raise UserError(words.OTHER_KIND) from None
    return ending


def refusals(refused: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason, with the names of the files that it is about."""
    return [
        f"{', '.join(names[:3])}{'…' if len(names) > 3 else ''} ({len(names)}): {why}" if len(names) > 1
        else f"{names[0]}: {why}"
        for why, names in refused.items()
    ]  # fmt: skip
