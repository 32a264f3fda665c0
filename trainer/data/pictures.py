"""Reading pictures: sizes from headers, pixels as 8-bit RGB with an alpha channel where there is one."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, features

from ..errors import UserError
from .buckets import Size
from .options import Interpolation

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp") + ((".avif",) if features.check("avif") else ())
OTHER_EXTENSIONS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".avif", ".psd", ".svg", ".jfif", ".ico")
MAX_PIXELS = 178_956_970
"""Larger pictures are refused before they are decoded: twice Pillow's own threshold for a warning."""

# What Pillow's decoders raise on broken files, beside OSError.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
          AttributeError, ZeroDivisionError, OverflowError, NotImplementedError, MemoryError,
          Image.DecompressionBombError)  # fmt: skip
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS decides


class Unreadable(UserError):
    """A picture that cannot be read; the text says why, without its name."""


@dataclass(frozen=True)
class Header:
    """What is known of a picture without decoding it, as it is seen upright."""

    size: Size
    alpha: bool


def _open(source: Path | bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not a picture, or a kind that is not read here") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"more than {MAX_PIXELS // 10**6} million pixels; make it smaller") from error
    except BROKEN as error:
        raise Unreadable(str(error) or type(error).__name__) from error
    if image.width * image.height > MAX_PIXELS or not image.width * image.height:
        raise Unreadable(f"{image.width}x{image.height} pixels; make it smaller than {MAX_PIXELS // 10**6} million")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8. A PNG's is read only when it stands before the pixels, to stay quick."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except BROKEN:
        return 1
    return value if value in TURNS else 1


def header(source: Path | bytes) -> Header:
    """Size and whether there is an alpha channel.

    :raises Unreadable: not a picture, too large, or a file that ends too early.
    """
    with _open(source) as image:
        width, height = image.size
        size = (height, width) if _orientation(image) >= 5 else (width, height)
        alpha = image.has_transparency_data
        form = image.format
    if not _ends_well(source, form):
        pixels(source)
    return Header(size, alpha)


def _ends_well(source: Path | bytes, form: str | None) -> bool:
    """Whether the end of the file looks complete: a cheap look at its last bytes, False for a mere doubt."""
    tail = source[-64:] if isinstance(source, bytes) else _tail(source)
    if form in ("JPEG", "MPO"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if form == "PNG":
        return b"IEND" in tail
    if form == "WEBP":
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            length = int.from_bytes(file.read(8)[4:], "little") + 8
            return file.seek(0, io.SEEK_END) >= length
    return True


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 64))
        return file.read()


def pixels(source: Path | bytes, hidden: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture upright: colours [H, W, 3] and alpha [H, W] or None, both uint8. 16-bit grey becomes 8-bit; of an
    animation the first picture counts.

    :param hidden: keep the colours under transparent pixels; otherwise white shows through.
    :raises Unreadable: broken or truncated.
    """
    with _open(source) as image:
        try:
            turns = TURNS.get(_orientation(image), ())
            image.load()
            upright = image
            for turn in turns:
                upright = upright.transpose(turn)
            if upright.mode.startswith("I"):
                grey = (np.asarray(upright).astype(np.int64).clip(0, 65535) + 128) // 257
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2), None
            if not upright.has_transparency_data:
                return np.asarray(upright.convert("RGB")), None
            full = upright.convert("RGBA")
            alpha = np.asarray(full.getchannel("A"))
            if not hidden:
                full = Image.alpha_composite(Image.new("RGBA", full.size, "white"), full)
            return np.asarray(full)[..., :3].copy(), alpha
        except BROKEN as error:
            raise Unreadable(str(error) or type(error).__name__) from error


def mask(source: Path | bytes) -> np.ndarray:
    """A mask picture as uint8 [H, W]: its first channel."""
    return np.ascontiguousarray(pixels(source, hidden=True)[0][..., 0])


BLACK = 16
"""Of 255: what a mask below it leaves of the loss is next to nothing (a mask of 8 bits in a file of 16, say)."""


def bounds(source: Path | bytes, alpha: bool) -> list[float] | None:
    """Left, top, right and bottom, as fractions of the sides, of what is not black in a mask or in an alpha channel;
    None when all of it is. Below ``BLACK`` is black, too. Unreadable as ``pixels``."""
    colors, transparency = pixels(source, hidden=True)
    image = transparency if alpha and transparency is not None else colors[..., 0]
    seen = image >= BLACK
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return None
    height, width = image.shape
    sides = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    return [float(side) for side in sides]


def resize(image: np.ndarray, size: Size, method: Interpolation = "auto") -> np.ndarray:
    """uint8 [H, W] or [H, W, C] to ``size``. ``auto``: area when no side grows, Lanczos otherwise."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    if method == "auto":
        method = "area" if width >= size[0] and height >= size[1] else "lanczos"
    if method == "area" and width >= size[0] and height >= size[1]:
        rows = _average(image, size[1])
        means = _average(rows.swapaxes(0, 1), size[0]).swapaxes(0, 1)
        return (means + 0.5).astype(np.uint8)
    resample = {
        "lanczos": Image.Resampling.LANCZOS,
        "area": Image.Resampling.BOX,
        "box": Image.Resampling.BOX,
        "bilinear": Image.Resampling.BILINEAR,
        "linear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "cubic": Image.Resampling.BICUBIC,
        "nearest": Image.Resampling.NEAREST,
    }[method]
    return np.asarray(Image.fromarray(image).resize(size, resample))


def _average(image: np.ndarray, count: int) -> np.ndarray:
    """Means over ``count`` equal stretches of the first axis, with fractions of pixels at their ends."""
    length = image.shape[0]
    edges = np.linspace(0, length, count + 1)
    whole = np.minimum(edges.astype(int), length - 1)
    part = (edges - whole).reshape(-1, *[1] * (image.ndim - 1))
    sums = np.zeros((length + 1, *image.shape[1:]), np.uint32 if image.dtype == np.uint8 else np.float64)
    np.cumsum(image, axis=0, out=sums[1:])
    return np.diff(sums[whole] + part * image[whole], axis=0) * (count / length)


def fitted(
    image: np.ndarray, resized: Size, corner: tuple[int, int], bucket: Size, method: Interpolation
) -> np.ndarray:
    """Resized, then cut to the bucket from ``corner`` (left, top) on."""
    image = resize(image, resized, method)
    cut = image[corner[1] : corner[1] + bucket[1], corner[0] : corner[0] + bucket[0]]
    assert cut.shape[1::-1] == bucket, f"{resized} from {corner} does not cover {bucket}"
    return cut
