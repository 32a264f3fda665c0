"""Maps to three channels in [-1, 1] and back, validity of cells, colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixelkiln.trainer.dense import colours, maps
from pixelkiln.trainer.dense.targets import Target

RANDOM = np.random.default_rng(3)
DEPTH = RANDOM.uniform(0.5, 30, (40, 50)).astype(np.float32)
ALL = np.ones(DEPTH.shape, bool)


def test_disparity_is_encoded_as_lotus_does():
    """Lotus' formula, written out: trunc_disparity of its dataset."""
    disparity = 1 / DEPTH.astype(np.float64)
    low, high = np.quantile(disparity, 0.02), np.quantile(disparity, 0.98)
    lotus = (((disparity - low) / (high - low + 1e-5) - 0.5) * 2).clip(-1, 1)
    encoded = maps.encode(Target(DEPTH, ALL), "depth")
    assert encoded.shape == (3, 40, 50) and encoded.dtype == torch.float32
    for channel in encoded:
        np.testing.assert_allclose(channel, lotus, atol=2e-5)  # e is relative to hi here


@pytest.mark.parametrize("space", ["disparity", "depth", "log"])
def test_invalid_pixels_change_nothing(space):
    valid = RANDOM.random(DEPTH.shape) < 0.5
    a, b = (maps.encode(Target(np.where(valid, DEPTH, hole), valid), "depth", space) for hole in (0.0, 1e9))
    assert torch.equal(a, b) and a.isfinite().all()
    alone = maps.encode(Target(DEPTH[valid][None], np.ones((1, valid.sum()), bool)), "depth", space)
    np.testing.assert_allclose(a[:, valid], alone[:, 0], atol=1e-6)


@pytest.mark.parametrize("space", ["disparity", "depth"])
@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_unit_of_depth_does_not_matter(space, unit: float):
    a, b = (maps.encode(Target(DEPTH * np.float32(by), ALL), "depth", space) for by in (1, unit))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_which_end_is_near():
    two = np.float32([[1, 2, 4]])
    near_first = {"disparity": 1, "depth": -1, "log": -1}
    for space, sign in near_first.items():
        row = maps.encode(Target(two, two > 0), "depth", space, (0, 1))[0, 0] * sign
        assert row[0] > row[1] > row[2]
    np.testing.assert_allclose(maps.encode(Target(two, two > 0), "depth", "log", (0, 1))[0, 0], [-1, 0, 1], atol=1e-4)


def test_a_flat_depth_is_finite():
    assert maps.encode(Target(np.full((4, 4), 7, np.float32), np.ones((4, 4), bool)), "depth").isfinite().all()


def test_sixteen_bits_come_back_from_decoding():
    encoded = maps.encode(Target(DEPTH, ALL), "depth", "disparity", (0, 1))
    back = maps.decode(encoded[None], "depth")[0].double().numpy()
    low, high = colours.limits(Target(DEPTH, ALL), "disparity", (0, 1))
    np.testing.assert_allclose(back * (high - low) + low, 1 / DEPTH, rtol=1e-4, atol=1e-5)


def test_normals_and_images_come_back():
    normals = RANDOM.normal(size=(4, 6, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    encoded = maps.encode(Target(normals, np.ones((4, 6), bool)), "normal")
    np.testing.assert_allclose(encoded.permute(1, 2, 0), normals)
    decoded = maps.decode(0.3 * encoded[None], "normal")  # too short, the same direction
    np.testing.assert_allclose(decoded[0].permute(1, 2, 0), normals, atol=1e-6)
    image = RANDOM.random((4, 6, 3)).astype(np.float32)
    encoded = maps.encode(Target(image, np.ones((4, 6), bool)), "image")
    assert encoded.min() >= -1 and encoded.max() <= 1
    np.testing.assert_allclose(maps.decode(encoded[None], "image")[0].permute(1, 2, 0), image, atol=1e-6)


def test_depth_is_the_mean_of_the_channels_and_is_not_clipped():
    pixels = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 3, 1, 1).requires_grad_()
    decoded = maps.decode(pixels, "depth")
    assert decoded.item() == pytest.approx(1.0)
    decoded.sum().backward()
    assert torch.allclose(pixels.grad, torch.full((1, 3, 1, 1), 1 / 6))


def test_a_cell_is_valid_when_all_its_pixels_are():
    valid = torch.ones(2, 16, 24, dtype=torch.bool)
    valid[0, 7, 8] = False
    cells = maps.cell_validity(valid, 8)
    assert cells.shape == (2, 2, 3) and (~cells).sum() == 1 and not cells[0, 0, 1]
    with pytest.raises(AssertionError, match="not in cells of 8"):
        maps.cell_validity(valid[:, :15])


def test_near_is_bright_in_every_space():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None]
    bright = colours.colour(ramp, "depth").astype(int).sum(-1)[0]
    assert (np.diff(bright) >= 0).all() and bright[-1] > 500 > 100 > bright[0]
    np.testing.assert_array_equal(colours.colour(1 - ramp, "depth", "log"), colours.colour(ramp, "depth", "disparity"))


def test_invalid_pixels_are_grey_and_panels_stand_beside_each_other():
    valid = np.ones((8, 9), bool)
    valid[2, 3] = False
    target = Target(RANDOM.uniform(1, 9, (8, 9)).astype(np.float32), valid)
    shown = colours.colour_target(target, "depth")
    assert (shown[2, 3] == colours.GREY).all() and shown.shape == (8, 9, 3) and shown.dtype == np.uint8
    row = colours.panels(shown, shown, shown, gap=2)
    assert row.shape == (8, 31, 3) and (row[:, 9:11] == 255).all()
    assert colours.grid([row, row]).shape == (20, 31, 3)
    up = np.zeros((3, 2, 2), np.float32)
    up[1] = 1
    np.testing.assert_array_equal(colours.colour(torch.from_numpy(up), "normal")[0, 0], [128, 255, 128])
