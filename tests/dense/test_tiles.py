"""Prediction at the trained size and in tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pixelkiln.trainer.dense import tiles


def pictures(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, (4 * x * y).sin()])


def seen(picture: torch.Tensor) -> torch.Tensor:
    """A "network" that knows the depth at every pixel: the third channel, in [0, 1]."""
    return (picture[2] + 1) / 2


def relative(picture: torch.Tensor) -> torch.Tensor:
    """As a network of relative depth: each picture from 0 to 1, whatever it shows."""
    depth = seen(picture)
    return (depth - depth.min()) / (depth.max() - depth.min()).clamp(min=1e-6)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 1000), (64, 64), (7, 9)])
def test_the_trained_area_is_kept(size):
    height, width = tiles.fitted(size, (512, 512), 8)
    assert height % 8 == 0 and width % 8 == 0
    assert height * width == pytest.approx(512 * 512, rel=0.06)
    assert width / height == pytest.approx(size[1] / size[0], rel=0.06)


def test_a_whole_picture_comes_back_at_its_own_size():
    picture = pictures(75, 110)
    shapes = []

    def predict(small):
        shapes.append(tuple(small.shape))
        return seen(small)

    found = tiles.whole(predict, picture, (64, 64), "depth")
    assert shapes == [(3, 56, 80)] and found.shape == (75, 110)
    assert (found - seen(picture)).abs().mean() < 0.01
    assert tiles.whole(lambda p: p, picture, (64, 64), "image").shape == (3, 75, 110)
    normals = tiles.whole(lambda p: torch.nn.functional.normalize(p + 2, dim=0), picture, (64, 64), "normal")
    torch.testing.assert_close(torch.linalg.vector_norm(normals, dim=0), torch.ones(75, 110))


@pytest.mark.parametrize("length, side", [(65, 64), (100, 64), (640, 64), (64, 64), (30, 64)])
def test_tiles_cover_and_overlap(length, side):
    starts = tiles.places(length, side)
    assert starts[0] == 0 and max(starts[-1] + side, length) == max(length, side)
    assert all(b - a <= side * 0.75 + 1 for a, b in pairwise(starts))


def test_tiles_of_relative_depth_get_one_scale_and_no_seams():
    picture = pictures(160, 224)
    found = tiles.tiled(relative, picture, (64, 64), "depth")
    true = relative(picture)
    assert (found - true).abs().max() < 0.05
    steps = (found.diff(dim=1) - true.diff(dim=1)).abs().max(), (found.diff(dim=0) - true.diff(dim=0)).abs().max()
    assert max(steps) < 0.01, "a seam"


def test_tiles_keep_detail_that_the_whole_loses():
    fine = pictures(128, 128)
    fine[2] = (torch.arange(128) // 2 % 2)[None] * 2.0 - 1
    at_once, in_tiles = (f(seen, fine, (32, 32), "depth") for f in (tiles.whole, tiles.tiled))
    # all tiles of such a picture say the same as the flat overview, so they are compared as images
    assert (at_once - seen(fine)).abs().mean() > 0.3
    assert in_tiles.shape == (128, 128)
    image = tiles.tiled(lambda p: (p + 1) / 2, fine, (32, 32), "image")
    torch.testing.assert_close(image, (fine + 1) / 2, atol=1e-5, rtol=0)


def test_small_pictures_are_one_tile():
    calls = []

    def predict(picture):
        calls.append(picture.shape)
        return seen(picture)

    assert tiles.tiled(predict, pictures(40, 50), (64, 64), "depth").shape == (40, 50)
    assert len(calls) == 1


def test_a_tile_that_contradicts_the_whole_is_left_out():
    overview = torch.linspace(0, 1, 64).expand(64, 64)
    torch.testing.assert_close(tiles._like(1 - overview, overview), overview)
    torch.testing.assert_close(tiles._like(torch.full((64, 64), 0.3), overview), overview)
    torch.testing.assert_close(tiles._like(overview * 3 + 1, overview), overview)
