"""Targets: files of every kind at full precision, validity, and geometry that never mixes near and far."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelkiln.trainer.dense import files
from pixelkiln.trainer.dense.targets import (
    Target,
    crop,
    fill_nearest,
    find_target,
    flip,
    read_target,
    resize,
)
from pixelkiln.trainer.errors import UserError

RANDOM = np.random.default_rng(5)
DEPTH = RANDOM.uniform(0.5, 50, (6, 9)).astype(np.float32)


def unit_normals(height: int = 6, width: int = 9) -> np.ndarray:
    normals = np.random.default_rng(7).normal(size=(height, width, 3)).astype(np.float32)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


NORMALS = unit_normals()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_files_keep_all_their_bits(tmp_path: Path, bits: int, channels: int):
    shape = (7, 5) if channels == 1 else (7, 5, 3)
    values = RANDOM.integers(0, 2**bits, shape).astype(f"u{bits // 8}")
    files.write(tmp_path / "a.png", values)
    read = files.read(tmp_path / "a.png")
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)
    with Image.open(tmp_path / "a.png") as image:  # another reader: Pillow's, whose 16-bit colours keep the high byte
        high = values >> 8 if bits == 16 and channels == 3 else values
        np.testing.assert_array_equal(np.asarray(image), high)


def test_depth_of_sixteen_bits_has_its_unit_and_its_range(tmp_path: Path):
    raw = np.array([[0, 1, 1500], [80_00, 65535, 20000]], np.uint16)
    Image.fromarray(raw).save(tmp_path / "a.png")
    target = read_target(tmp_path / "a.png", "depth", unit=0.001, valid=[0.1, 60])
    np.testing.assert_array_equal(target.valid, [[False, False, True], [True, False, True]])
    np.testing.assert_allclose(target.values, [[0, 0, 1.5], [8, 0, 20]], rtol=1e-6)
    assert read_target(tmp_path / "a.png", "depth").values[1, 1] == 65535


def test_zero_negative_nan_and_infinite_depth_are_invalid(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([[0, -1, np.nan], [np.inf, -np.inf, 2]], np.float64))
    target = read_target(tmp_path / "a.npy", "depth")
    np.testing.assert_array_equal(target.valid, [[False] * 3, [False, False, True]])
    assert np.isfinite(target.values).all() and target.values.dtype == np.float32


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1), (1, 6, 9), (1, 1, 6, 9)])
def test_depth_arrays_may_have_axes_of_one(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", DEPTH.reshape(shape))
    np.testing.assert_array_equal(read_target(tmp_path / "a.npy", "depth").values, DEPTH)


def test_npz_files_name_the_map(tmp_path: Path):
    np.savez(tmp_path / "one.npz", whatever=DEPTH)
    np.savez(tmp_path / "two.npz", depth=DEPTH, other=DEPTH * 2)
    np.savez(tmp_path / "bad.npz", a=DEPTH, b=DEPTH)
    for name in ("one", "two"):
        np.testing.assert_array_equal(read_target(tmp_path / f"{name}.npz", "depth").values, DEPTH)
    with pytest.raises(UserError, match="it holds a, b; name the map depth or Z"):
        read_target(tmp_path / "bad.npz", "depth")


def test_pfm_files_stand_on_their_head(tmp_path: Path):
    (tmp_path / "a.pfm").write_bytes(b"Pf\n9 6\n-1.0\n" + DEPTH[::-1].astype("<f4").tobytes())
    np.testing.assert_array_equal(read_target(tmp_path / "a.pfm", "depth").values, DEPTH)


def test_exr_files_keep_their_floats(tmp_path: Path):
    pytest.importorskip("OpenEXR")
    files.write(tmp_path / "a.exr", DEPTH)
    np.testing.assert_array_equal(read_target(tmp_path / "a.exr", "depth").values, DEPTH)
    files.write(tmp_path / "n.exr", NORMALS)
    np.testing.assert_allclose(read_target(tmp_path / "n.exr", "normal").values, NORMALS, atol=1e-6)
    (tmp_path / "broken.exr").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.exr: it cannot be read"):
        read_target(tmp_path / "broken.exr", "depth")


def test_exr_without_its_reader_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(UserError, match=r"a\.exr: EXR files need the package OpenEXR; install it"):
        read_target(tmp_path / "a.exr", "depth")


@pytest.mark.parametrize("bits, error", [(8, 0.012), (16, 5e-5)])
def test_normals_in_png_files(tmp_path: Path, bits: int, error: float):
    top = 2**bits - 1
    raw = np.round((NORMALS + 1) / 2 * top).astype(f"u{bits // 8}")
    raw[0, 0], raw[0, 1] = 0, round(top / 2)
    files.write(tmp_path / "a.png", raw)
    target = read_target(tmp_path / "a.png", "normal")
    assert not target.valid[0, :2].any() and target.valid.sum() == target.valid.size - 2
    np.testing.assert_allclose(target.values[target.valid], NORMALS[target.valid], atol=error)
    np.testing.assert_allclose(np.linalg.norm(target.values[target.valid], axis=-1), 1, rtol=1e-6)


def test_normals_may_stand_channels_first(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.moveaxis(NORMALS, 2, 0))
    np.testing.assert_allclose(read_target(tmp_path / "a.npy", "normal").values, NORMALS, atol=1e-6)


def test_zero_and_nan_normals_are_invalid(tmp_path: Path):
    normals = NORMALS.copy()
    normals[0, 0], normals[1, 1, 2] = 0, np.nan
    np.save(tmp_path / "a.npy", normals)
    valid = read_target(tmp_path / "a.npy", "normal").valid
    assert not valid[0, 0] and not valid[1, 1] and valid.sum() == valid.size - 2


def test_images_are_colours_and_their_alpha_is_validity(tmp_path: Path):
    raw = RANDOM.integers(0, 256, (4, 6, 4)).astype(np.uint8)
    Image.fromarray(raw).save(tmp_path / "a.png")
    target = read_target(tmp_path / "a.png", "image")
    np.testing.assert_array_equal(target.valid, raw[..., 3] >= 128)
    np.testing.assert_allclose(target.values[target.valid], raw[..., :3][target.valid] / 255, atol=1e-6)
    Image.fromarray(raw[..., 0]).save(tmp_path / "grey.jpg")
    assert read_target(tmp_path / "grey.jpg", "image").values.shape == (4, 6, 3)


def save(path: Path, values: np.ndarray) -> Path:
    files.write(path, values) if path.suffix == ".png" else np.save(path, values)
    return path


@pytest.mark.parametrize(
    "name, values, task, words",
    [
        ("a.png", np.ones((4, 4), np.uint8), "depth", "depth of 8 bits is 256 steps at most"),
        ("a.npy", np.ones((4, 4), np.uint8), "depth", "depth of 8 bits is 256 steps at most"),
        ("a.png", RANDOM.integers(0, 65535, (4, 4, 3)).astype(np.uint16), "depth", "depth is one channel"),
        ("a.npy", np.zeros((4, 4)), "depth", "no pixel is valid; all are 0, NaN, infinite"),
        ("a.npy", np.full((4, 4), np.nan), "depth", "no pixel is valid"),
        ("a.npy", NORMALS * 0.5, "normal", r"100% of its normals are not of length 1 \(median 0.50\)"),
        ("a.npy", (NORMALS + 1) / 2, "normal", r"values in \[0, 1\] are to be 2 v - 1"),
        ("a.npy", NORMALS[..., 0], "normal", "normals have three channels"),
        ("a.npy", np.zeros((4, 4, 3)), "normal", "no pixel is valid"),
        ("a.npy", np.full((4, 4, 3), 200.0), "image", r"colours are in \[0, 1\]"),
        ("a.npy", np.zeros(4), "depth", r"a map is \[height, width\]"),
        ("a.npy", np.zeros((2, 4, 4, 3)), "image", "a file holds one map"),
        ("a.npy", np.array([["x"]]), "depth", "of numbers"),
    ],
)
def test_what_cannot_be_a_target_is_one_line(tmp_path: Path, name: str, values: np.ndarray, task: str, words: str):
    path = save(tmp_path / name, values)
    with pytest.raises(UserError, match=words) as caught:
        read_target(path, task)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_values_outside_the_valid_range_are_named_where_all_are(tmp_path: Path):
    path = save(tmp_path / "a.npy", DEPTH)
    with pytest.raises(UserError, match=r"outside valid = \[0.1, 80\] after unit = 1000"):
        read_target(path, "depth", unit=1000, valid=[0.1, 80])


def test_depth_in_a_jpeg_is_refused(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "a.jpg")
    for task, words in (("depth", "8 bits"), ("normal", "three channels")):
        with pytest.raises(UserError, match=words):
            read_target(tmp_path / "a.jpg", task)


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a.pfm", "a.tif"])
def test_broken_missing_and_foreign_files_are_one_line(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=f"{name}: "):
        read_target(tmp_path / name, "depth")
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=f"{name}: ") as caught:
        read_target(tmp_path / name, "depth")
    assert "\n" not in str(caught.value)


def test_the_target_has_the_pictures_name(tmp_path: Path):
    (tmp_path / "cat.npy").touch()
    (tmp_path / "dog.jpg.png").touch()
    assert find_target(tmp_path, Path("x/cat.jpg")) == tmp_path / "cat.npy"
    assert find_target(tmp_path, Path("x/dog.jpg")) == tmp_path / "dog.jpg.png"
    assert find_target(tmp_path, Path("x/cow.jpg")) is None
    (tmp_path / "cat.png").touch()
    with pytest.raises(UserError, match=r"cat\.npy and cat\.png are both the target of cat\.jpg; keep one"):
        find_target(tmp_path, Path("cat.jpg"))


# ----------------------------------------------------------------------------------------------------------- geometry


def rendered_normals(faces_right: bool) -> np.ndarray:
    """A wall that faces halfway to the camera and halfway to one side."""
    normal = np.float32([0.6 if faces_right else -0.6, 0, 0.8])
    picture = np.zeros((4, 6, 3), np.float32)
    picture[..., 2] = 1
    picture[:, slice(0, 2) if faces_right else slice(4, 6)] = normal
    return picture


def test_a_mirrored_wall_on_the_left_is_a_wall_on_the_right():
    mirrored = flip(Target(rendered_normals(True), np.ones((4, 6), bool)), "normal")
    np.testing.assert_array_equal(mirrored.values, rendered_normals(False))


def test_two_flips_are_none():
    target = Target(NORMALS, RANDOM.random((6, 9)) > 0.5)
    twice = flip(flip(target, "normal"), "normal")
    np.testing.assert_array_equal(twice.values, target.values)
    np.testing.assert_array_equal(twice.valid, target.valid)
    depth = flip(Target(DEPTH, target.valid), "depth")
    np.testing.assert_array_equal(depth.values, DEPTH[:, ::-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_resizing_makes_no_depth_that_was_not_there(height: int, width: int, seed: int):
    random = np.random.default_rng(seed)
    target = Target(np.where(random.random((8, 12)) < 0.5, 1.0, 50.0).astype(np.float32), random.random((8, 12)) < 0.7)
    small = resize(target, (height, width), "depth")
    assert small.values.shape == small.valid.shape == (height, width)
    assert set(np.unique(small.values)) <= {1.0, 50.0}


def test_resizing_takes_the_pixel_in_the_middle():
    wide = Target(np.arange(12, dtype=np.float32).reshape(1, 12), np.arange(12)[None] % 2 == 1)
    third = resize(wide, (1, 4), "depth")
    np.testing.assert_array_equal(third.values, [[1, 4, 7, 10]])
    np.testing.assert_array_equal(third.valid, [[True, False, True, False]])
    np.testing.assert_array_equal(resize(third, (2, 8), "depth").values[0], [1, 1, 4, 4, 7, 7, 10, 10])


def test_an_image_is_made_smaller_by_means():
    checks = np.indices((8, 8)).sum(0)[..., None].repeat(3, -1) % 2
    small = resize(Target(checks.astype(np.float32), np.ones((8, 8), bool)), (4, 2), "image")
    np.testing.assert_allclose(small.values, 0.5, atol=1e-6)
    values = RANDOM.random((6, 9, 3)).astype(np.float32)
    by_hand = values.reshape(3, 2, 3, 3, 3).mean((1, 3))
    np.testing.assert_allclose(
        resize(Target(values, np.ones((6, 9), bool)), (3, 3), "image").values, by_hand, atol=1e-6
    )


def test_a_crop_is_within():
    target = Target(NORMALS, np.ones((6, 9), bool))
    np.testing.assert_array_equal(crop(target, (1, 2), (3, 4)).values, NORMALS[1:4, 2:6])
    with pytest.raises(AssertionError, match="is not within"):
        crop(target, (4, 2), (3, 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_holes_take_the_nearest_valid_value(height: int, width: int, share: float, seed: int):
    random = np.random.default_rng(seed)
    valid = random.random((height, width)) < share
    valid[random.integers(height), random.integers(width)] = True
    place = np.moveaxis(np.indices((height, width), np.float32), 0, 2)
    filled = fill_nearest(np.where(valid[..., None], place, -99), valid)  # each value is the place it is from
    known = place[valid]
    for y, x in np.ndindex(height, width):
        nearest = np.linalg.norm(known - [y, x], axis=-1).min()
        assert np.linalg.norm(filled[y, x] - [y, x]) == pytest.approx(nearest)
        assert tuple(filled[y, x]) in {tuple(one) for one in known}


def test_nothing_can_be_filled_from_nothing():
    with pytest.raises(ValueError, match="no pixel is valid"):
        fill_nearest(DEPTH, np.zeros(DEPTH.shape, bool))
