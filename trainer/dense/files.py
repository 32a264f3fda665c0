"""Arrays in files: NPY, NPZ, 8 and 16-bit PNG, EXR and PFM, read and written at their full precision."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError

EXTENSIONS = (".npy", ".npz", ".exr", ".pfm", ".png", ".webp", ".jpg", ".jpeg")
LOSSY = (".webp", ".jpg", ".jpeg")
NO_EXR = "EXR files need the package OpenEXR; install it (pip install OpenEXR), or convert the file to .npy"
# What Pillow's decoders raise on broken files, beside OSError.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
          NotImplementedError, Image.DecompressionBombError)  # fmt: skip


def read(path: Path, prefer: tuple[str, ...] = ()) -> np.ndarray:
    """The array of a file: [H, W] or [H, W, C], in the file's own type (uint8, uint16, float16, float32, ...).

    :param prefer: names of the array to take from an NPZ or EXR file that holds several.
    :raises UserError: missing, broken, or several arrays none of which is named so.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        elif suffix == ".npz":
            found = _read_npz(path, prefer)
        elif suffix == ".exr":
            found = _read_exr(path, prefer)
        elif suffix == ".pfm":
            found = _read_pfm(path)
        elif suffix in EXTENSIONS:
            found = read_picture(path)
        else:
            raise UserError(f"{path}: targets are not read from {suffix or 'such'} files; use {', '.join(EXTENSIONS)}")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of a map") from None
    except (*BROKEN, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: it cannot be read ({error}); save it again") from error
    if found.dtype.kind not in "uifb" or not 2 <= found.ndim <= 4 or not found.size:
        raise UserError(f"{path}: an array {list(found.shape)} of {found.dtype}; a map is [height, width] of numbers")
    while found.ndim > 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim == 3 and found.shape[0] in (3, 4) and found.shape[2] not in (1, 3, 4):
        found = np.moveaxis(found, 0, 2)
    if found.ndim == 4:
        raise UserError(f"{path}: an array {list(found.shape)}; a file holds one map [height, width] or with channels")
    return found[..., 0] if found.ndim == 3 and found.shape[2] == 1 else found


def _read_npz(path: Path, prefer: tuple[str, ...]) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in prefer if name in arrays.files] or arrays.files
        if len(names) != 1:
            raise UserError(f"{path}: it holds {', '.join(names) or 'nothing'}; name the map {' or '.join(prefer)}")
        return arrays[names[0]]


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 or uint16 [H, W] or [H, W, C], with all bits of 16-bit PNG files of any channels.

    Pillow keeps the high byte alone of 16-bit RGB: its own decoder, set to swapped bytes, gives the low one.
    """
    with Image.open(path) as image:
        if image.mode in ("P", "1", "LA", "CMYK"):
            return np.asarray(image.convert("RGB" if image.mode in ("P", "CMYK") else "L"))
        layout = image.tile[0][3] if image.format == "PNG" and image.tile else ""
        high = np.asarray(image)
    if layout not in ("RGB;16B", "RGBA;16B"):
        return high.astype(np.uint16) if high.dtype.kind in "ui" and high.dtype.itemsize > 1 else high
    with Image.open(path) as image:
        (codec, extents, offset, _), *others = image.tile
        assert not others
        image.tile = [type(image.tile[0])(codec, extents, offset, layout.replace("16B", "16L"))]
        low = np.asarray(image)
    return high.astype(np.uint16) * 256 + low


def _read_pfm(path: Path) -> np.ndarray:
    """Portable float map: rows from the bottom up; the scale's sign is the byte order."""
    with path.open("rb") as file:
        kind, size, scale = file.readline().strip(), file.readline().split(), float(file.readline())
        width, height = int(size[0]), int(size[1])
        shape = (height, width, 3) if kind == b"PF" else (height, width)
        values = np.frombuffer(file.read(), "<f4" if scale < 0 else ">f4", int(np.prod(shape)))
    return values.reshape(shape)[::-1].astype(np.float32)


def _openexr(path: Path) -> Any:
    try:
        import OpenEXR  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        raise UserError(f"{path}: {NO_EXR}") from None
    return OpenEXR


def require_exr(path: Path) -> None:
    """UserError where EXR files cannot be written here, before anything is computed."""
    _openexr(path)


def _read_exr(path: Path, prefer: tuple[str, ...]) -> np.ndarray:
    module = _openexr(path)
    if not path.is_file():
        raise FileNotFoundError
    try:
        with module.File(str(path)) as file:
            channels = {name: channel.pixels for name, channel in file.channels().items()}
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: it cannot be read ({error}); save it again") from error
    names = [name for name in (*prefer, "RGB", "RGBA", "Z", "V", "Y") if name in channels] or list(channels)
    if len(names) > 1 and names[0] not in (*prefer, "RGB", "RGBA", "Z", "V", "Y"):
        raise UserError(f"{path}: it holds the channels {', '.join(names)}; name the map {' or '.join(prefer)}")
    return np.array(channels[names[0]])


# ------------------------------------------------------------------------------------------------------------ writing


def write(path: Path, values: np.ndarray) -> None:
    """Write an array by the extension: .npy and .exr float32, .png uint8 or uint16 as ``values`` are."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        np.save(path, values.astype(np.float32))
    elif suffix == ".exr":
        module = _openexr(path)
        pixels = np.ascontiguousarray(values, np.float32)
        header = {"compression": module.ZIP_COMPRESSION, "type": module.scanlineimage}
        with module.File(header, {"RGB" if values.ndim == 3 else "Z": pixels}) as file:
            file.write(str(path))
    elif suffix == ".png":
        path.write_bytes(png(values))
    else:
        raise UserError(f"{path}: maps are not written to {suffix or 'such'} files; use .png, .npy or .exr")


def png(values: np.ndarray) -> bytes:
    """uint8 or uint16 [H, W] or [H, W, 3] as a PNG file. Pillow cannot write 16-bit RGB."""
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    height, width = values.shape[:2]
    bits = 8 * values.dtype.itemsize
    data = np.ascontiguousarray(values, f">u{bits // 8}").reshape(height, -1).view(np.uint8)
    pixel = data.shape[1] // width
    left = np.pad(data, ((0, 0), (pixel, 0)))[:, :-pixel]  # filter 1: the difference to the pixel on the left
    rows = np.concatenate([np.ones((height, 1), np.uint8), data - left], axis=1)
    head = struct.pack(">IIBBBBB", width, height, bits, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    packed = (struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def sixteen_bit(values: np.ndarray) -> np.ndarray:
    """[0, 1] as uint16; what is outside is clipped."""
    return np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)
