"""Reading pictures of all kinds, and resizing them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_data import noise, picture

from pixelkiln.trainer.data import augment, pictures
from pixelkiln.trainer.data.buckets import Fit
from pixelkiln.trainer.data.options import SetOptions
from pixelkiln.trainer.data.pictures import Unreadable


def saved(image: Image.Image, form: str, **more) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **more)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_colours_arrive_as_they_are(form):
    data = saved(Image.fromarray(noise((20, 10), 1)), form, **({"lossless": True} if form == "WEBP" else {}))
    assert pictures.header(data) == pictures.Header((20, 10), False)
    colors, alpha = pictures.pixels(data)
    assert np.array_equal(colors, noise((20, 10), 1)) and alpha is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_and_its_size(orientation):
    upright = Image.fromarray(
        np.kron(np.array([[0, 80], [160, 255], [40, 120]], np.uint8), np.ones((16, 16), np.uint8))
    )
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Transpose members that undo each
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored.convert("RGB"), "JPEG", quality=100, exif=exif)
    assert pictures.header(data).size == (32, 48)
    colors, _ = pictures.pixels(data)
    assert np.abs(colors[8::16, 8::16, 0].astype(int) - [[0, 80], [160, 255], [40, 120]]).max() < 4


def test_grey_palette_and_16_bit():
    grey = noise((8, 8), 2)[..., 0]
    assert np.array_equal(pictures.pixels(saved(Image.fromarray(grey), "PNG"))[0], np.repeat(grey[..., None], 3, 2))
    palette = Image.fromarray(noise((8, 8), 3)).quantize(16)
    assert np.array_equal(pictures.pixels(saved(palette, "PNG"))[0], np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(pictures.pixels(saved(deep, "PNG"))[0][..., 1], grey)


def test_transparent_pixels_show_white_or_what_is_hidden():
    rgba = noise((8, 8), 4, 4)
    rgba[:4, :, 3], rgba[4:, :, 3] = 0, 255
    data = saved(Image.fromarray(rgba), "PNG")
    assert pictures.header(data).alpha
    colors, alpha = pictures.pixels(data)
    assert (colors[:4] == 255).all() and np.array_equal(colors[4:], rgba[4:, :, :3])
    assert np.array_equal(alpha, rgba[..., 3])
    assert np.array_equal(pictures.pixels(data, hidden=True)[0], rgba[..., :3])


def test_transparency_of_a_palette():
    image = Image.fromarray(noise((8, 8), 5)).quantize(4)
    data = saved(image, "PNG", transparency=0)
    alpha = pictures.pixels(data)[1]
    assert alpha is not None and np.array_equal(alpha == 0, np.asarray(image) == 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_found(form, part):
    data = saved(Image.fromarray(noise((64, 64), 6)), form)
    cut = data[: int(len(data) * part)]
    with pytest.raises(Unreadable):
        pictures.pixels(cut)
    if form != "BMP":  # the others are noticed by their end, without decoding
        with pytest.raises(Unreadable):
            pictures.header(cut)


def test_a_header_does_not_decode_a_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "pixels", lambda *_: pytest.fail("decoded"))
    for form in ("png", "jpg", "webp", "bmp"):
        assert pictures.header(picture(tmp_path / f"a.{form}", (30, 20))).size == (30, 20)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path):
    path = picture(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"maker's notes")
    assert pictures.header(path).size == (64, 64)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30000, 30000), (13000, 14000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(Unreadable, match="make it smaller"):
        pictures.header(png_of(*size))


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_unreadable_or_pictures_but_nothing_else(seed):
    rng = random.Random(seed)
    form = rng.choice(["PNG", "JPEG", "WEBP", "BMP", "GIF"])
    data = bytearray(saved(Image.fromarray(noise((24, 24), seed)), form))
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        colors, _ = pictures.pixels(bytes(data))
        assert colors.dtype == np.uint8 and colors.ndim == 3
    except Unreadable as error:
        assert "\n" not in str(error)


def test_area_resizing_is_the_mean_over_exact_areas():
    image = noise((6, 4), 7)
    half = pictures.resize(image, (3, 2))
    exact = image.reshape(2, 2, 3, 2, 3).mean((1, 3))
    assert np.abs(half - exact).max() <= 0.5
    # 3 -> 2 pixels: each takes one and a half
    assert pictures.resize(np.array([[0, 90, 30]], np.uint8), (2, 1)).tolist() == [[30, 50]]


def test_the_default_filter_depends_on_the_direction():
    image = noise((40, 40), 8)
    assert np.array_equal(pictures.resize(image, (20, 30)), pictures.resize(image, (20, 30), "area"))
    grown = np.asarray(Image.fromarray(image).resize((60, 80), Image.Resampling.LANCZOS))
    assert np.array_equal(pictures.resize(image, (60, 80)), grown)


@pytest.mark.parametrize(
    "method", ["auto", "area", "lanczos", "box", "bilinear", "linear", "bicubic", "cubic", "nearest"]
)
def test_every_filter_keeps_a_flat_picture_flat(method):
    flat = np.full((33, 47, 3), 77, np.uint8)
    for size in ((20, 20), (90, 60), (10, 60)):
        assert (pictures.resize(flat, size, method) == 77).all()


def window(fit: Fit, rng=None, name="a.png", size=(100, 80), **values):
    return augment.window(Path(name), size, fit, SetOptions.model_validate({"path": "p", **values}), rng)


def test_the_window_is_in_the_middle_or_anywhere():
    fit = Fit((64, 64), (80, 64))
    assert window(fit) == ((80, 64), (8, 0))
    corners = {window(fit, random.Random(i), random_crop=True)[1] for i in range(300)}
    assert corners == {(x, 0) for x in range(17)}
    assert window(fit, random_crop=True) == ((80, 64), (8, 0))  # nothing left to chance


def test_a_random_crop_without_buckets_is_cut_from_the_whole_picture():
    fit = Fit((64, 64), (80, 64))
    assert window(fit, random.Random(0), random_crop=True, buckets=False)[0] == (100, 80)


def test_a_face_crop_holds_the_face():
    fit = Fit((64, 64), (96, 64))
    for seed in range(50):
        found = window(
            fit, random.Random(seed), "x_700_300_200_100.png", (1200, 800), face_crop=[2.0, 3.0], buckets=False
        )
        resized, (left, top) = found
        scale = resized[0] / 1200
        assert 64 / 200 / 3 - 0.01 < scale < 64 / 200 / 2 + 0.01
        assert left < 700 * scale < left + 64 and top < 300 * scale < top + 64
    assert window(fit, random.Random(0), "x_y.png", face_crop=[2.0, 3.0], buckets=False) == ((96, 64), (16, 0))


def test_colours_vary_a_little_in_a_third_of_the_cases():
    image = noise((16, 16), 9)
    made = [augment.vary_colors(image, random.Random(i)) for i in range(300)]
    changed = [one for one in made if not np.array_equal(one, image)]
    assert 70 < len(changed) < 130
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in made)
    assert all(np.abs(one.astype(float).mean() - image.mean()) < 6 for one in made)
