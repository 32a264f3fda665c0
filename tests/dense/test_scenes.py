"""Rendered scenes: geometry against known answers and against its own depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelkiln.trainer.dense import scenes
from pixelkiln.trainer.dense.targets import read_target

ROOT = Path(__file__).resolve().parents[2]


def solid(shape, centre=(0.0, 0.0, -5.0), half=(1.0, 1.0, 1.0), angle=0.0) -> scenes.Solid:
    axes = scenes._turned(np.array([0.0, 1, 0]), angle)
    return scenes.Solid(shape, np.array(centre), axes, np.array(half), lambda at: np.ones_like(at))


AHEAD = np.array([[0.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    "shape, half, depth, normal",
    [
        (scenes.sphere, (2, 2, 2), 3.0, (0, 0, 1)),
        (scenes.sphere, (1, 1, 2), 3.0, (0, 0, 1)),
        (scenes.box, (1, 1, 0.5), 4.5, (0, 0, 1)),
        (scenes.cylinder, (1, 3, 1), 4.0, (0, 0, 1)),
        (scenes.cone, (1, 1, 1), 4.5, (0, np.sqrt(0.2), np.sqrt(0.8))),  # half as wide in its middle; slope 1 : 2
    ],
)
def test_a_ray_ahead_meets_a_solid_where_it_is(shape, half, depth, normal):
    found = solid(shape, half=half).hit(np.zeros(3), AHEAD)
    assert found[0][0] == pytest.approx(depth)
    np.testing.assert_allclose(found[1][0], normal, atol=1e-9)


def test_a_turned_box_shows_its_corner():
    depth, _ = solid(scenes.box, angle=np.pi / 4).hit(np.zeros(3), AHEAD)
    assert depth[0] == pytest.approx(5 - np.sqrt(2))


def test_depth_is_along_the_view_axis_and_not_along_the_ray():
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    wall = scenes.Solid(scenes.plane, np.array([0.0, 0, -4]), axes, np.ones(3), lambda at: at)
    depth, normal = wall.hit(np.zeros(3), np.array([[0.0, 0, -1], [0.7, 0.3, -1]]))
    np.testing.assert_allclose(depth, 4)
    np.testing.assert_allclose(normal, [[0, 0, 1]] * 2, atol=1e-12)


@pytest.mark.parametrize("shape", [scenes.sphere, scenes.box, scenes.cylinder, scenes.cone])
def test_a_ray_beside_or_behind_meets_nothing(shape):
    one = solid(shape)
    assert one.hit(np.zeros(3), np.array([[1.0, 0, -1]]))[0][0] == scenes.FAR
    assert one.hit(np.zeros(3), -AHEAD)[0][0] == scenes.FAR


@pytest.mark.parametrize("seed", range(3))
def test_normals_are_those_of_the_surface_that_depth_describes(seed: int):
    """Cross products of differences of neighbouring points; at edges they mean nothing, so the median counts. Points
    are the depth along rays of the scene's own field of view, which is the one where planes are flat."""
    scene = scenes.render(seed, (96, 64))
    best = []
    for field in np.deg2rad(np.arange(50, 70.5, 0.5)):
        points = scenes._rays((96, 64), field).reshape(64, 96, 3) * scene.depth[..., None].astype(np.float64)
        across, down = np.diff(points, axis=1)[:-1], np.diff(points, axis=0)[:, :-1]
        normal = np.cross(down, across)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        cosine = (normal * scene.normal[:-1, :-1]).sum(-1)
        best.append(np.median(np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))))
    assert min(best) < 1
    rays = scenes._rays((96, 64), np.deg2rad(60)).reshape(64, 96, 3)
    facing = (rays * scene.normal).sum(-1) < 0.1
    assert facing.mean() > 0.999  # nothing is seen from behind


def test_a_scene_is_a_function_of_its_seed():
    a, b, other = scenes.render(5, (32, 32)), scenes.render(5, (32, 32)), scenes.render(6, (32, 32))
    for name in ("picture", "depth", "normal"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.picture != other.picture).any() and a.picture.std() > 10
    assert a.depth.min() > 1 and a.depth.max() < 20


@pytest.mark.slow
def test_the_bundled_autoencoder_gives_scenes_back():
    """What it loses no adapter can see. In scenes with saturated walls and many textures it lost half of the variance;
    these are made of what it knows, coloured things on white."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(ROOT / "presets" / "base" / "vae")
    made = np.stack([scenes.render(seed).picture for seed in range(200, 212)])
    pictures = torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        back = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    assert (back - pictures).square().mean() < 0.3 * pictures.var((2, 3)).mean()


def test_scenes_are_written_as_targets_are_read(tmp_path: Path):
    scenes.write_scenes(tmp_path, 2, (32, 24), first=7)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["00007.png"] * 3 + ["00008.png"] * 3
    scene = scenes.render(8, (32, 24))
    depth = read_target(tmp_path / "depth" / "00008.png", "depth", unit=0.001, valid=[0.1, 80])
    normal = read_target(tmp_path / "normal" / "00008.png", "normal")
    np.testing.assert_allclose(depth.values, scene.depth, atol=6e-4)
    np.testing.assert_allclose(normal.values, scene.normal, atol=1e-4)
    assert depth.valid.all() and normal.valid.all()
    with Image.open(tmp_path / "pictures" / "00008.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), scene.picture)
