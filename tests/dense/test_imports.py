"""Published layouts, made small here, converted to folders that a dense run reads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelkiln.trainer.dense import files, imports
from pixelkiln.trainer.dense.targets import Target, find_target, read_target
from pixelkiln.trainer.errors import UserError

RANDOM = np.random.default_rng(11)
DEPTH = RANDOM.uniform(1, 9, (6, 8)).astype(np.float32)
PICTURE = RANDOM.integers(0, 256, (6, 8, 3)).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".hdf5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["dataset"] = values
    elif path.suffix == ".jpg":
        Image.fromarray(values).save(path, quality=95)
    else:
        files.write(path, values)


def converted(source: Path, output: Path, unit: float = 0.001) -> tuple[imports.Imported, Target, Path]:
    found = imports.convert(source, output)
    (picture,) = (output / "pictures").iterdir()
    target = find_target(output / "depth", picture)
    assert target and found.count == 1 and found.unit == unit
    return found, read_target(target, "depth", unit, imports.VALID[found.layout]), picture


def test_hypersim_distance_becomes_depth_and_normals_face_the_camera(tmp_path: Path):
    geometry = tmp_path / "in/ai_001_001/images/scene_cam_00_geometry_hdf5"
    flat = np.full((6, 8), 4.0)  # a wall four metres ahead, as distances to the camera
    rays = np.stack(np.meshgrid((np.arange(8) - 3.5) / (8 * 886.81 / 1024), (np.arange(6) - 2.5) / (8 * 886.81 / 1024)))
    distance = flat * np.sqrt(1 + (rays**2).sum(0))
    distance[0, 0] = np.nan
    save(geometry / "frame.0003.depth_meters.hdf5", distance.astype(np.float16))
    normal = np.zeros((6, 8, 3), np.float16)
    normal[..., 2] = np.where(np.arange(8) < 4, 1, -1)  # not consistent
    save(geometry / "frame.0003.normal_cam.hdf5", normal)
    save(geometry.parent / "scene_cam_00_final_preview/frame.0003.tonemap.jpg", PICTURE)
    save(geometry / "frame.0004.depth_meters.hdf5", distance.astype(np.float16))
    found, depth, picture = converted(tmp_path / "in", tmp_path / "out")
    assert found.layout == "hypersim" and found.tasks == {"depth", "normal"}
    assert picture.name == "ai_001_001_scene_cam_00_0003.jpg"
    assert not depth.valid[0, 0] and depth.valid.sum() == 47
    np.testing.assert_allclose(depth.values[depth.valid], 4, rtol=2e-3)
    target = read_target(tmp_path / "out/normal/ai_001_001_scene_cam_00_0003.png", "normal")
    np.testing.assert_allclose(target.values, np.broadcast_to([0, 0, 1], (6, 8, 3)), atol=1e-4)
    missing = geometry / "frame.0004.depth_meters.hdf5"
    why = "its picture frame.0004.tonemap.jpg is missing from scene_cam_00_final_preview"
    assert found.rejects == [f"{missing}: {why}"]


def test_virtual_kitti_keeps_its_centimetres_and_its_sky(tmp_path: Path):
    frames = tmp_path / "in/Scene01/clone/frames"
    steps = np.round(DEPTH * 100).astype(np.uint16)
    steps[0] = 65535
    save(frames / "depth/Camera_0/depth_00007.png", steps)
    save(frames / "rgb/Camera_0/rgb_00007.jpg", PICTURE)
    found, depth, picture = converted(tmp_path / "in", tmp_path / "out", unit=0.01)
    assert found.layout == "vkitti2" and picture.name == "Scene01_clone_Camera_0_00007.jpg"
    np.testing.assert_allclose(depth.values[1:], DEPTH[1:], atol=0.006)
    np.testing.assert_allclose(depth.values[0], 655.35)  # the furthest there is
    assert depth.valid.all()


def test_nyu_as_matlab_wrote_it(tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = PICTURE.transpose(2, 1, 0)[None]
        file["depths"] = DEPTH.T[None]
    found, depth, picture = converted(tmp_path / "nyu_depth_v2_labeled.mat", tmp_path / "out")
    assert found.layout == "nyuv2"
    np.testing.assert_allclose(depth.values, DEPTH, atol=6e-4)
    with Image.open(picture) as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)


def test_nyu_as_folders(tmp_path: Path):
    save(tmp_path / "in/bathroom/depth_0045.png", np.round(DEPTH * 1000).astype(np.uint16))
    save(tmp_path / "in/bathroom/rgb_0045.png", PICTURE)
    found, depth, picture = converted(tmp_path / "in", tmp_path / "out")
    assert found.layout == "nyuv2" and picture.name == "bathroom_0045.png"
    np.testing.assert_allclose(depth.values, DEPTH, atol=6e-4)


def test_middlebury_of_2014(tmp_path: Path):
    folder = tmp_path / "in/Adirondack-perfect"
    disparity = 178.2 * 4000 / (DEPTH * 1000) - 131.1
    disparity[2, 3] = np.inf
    save(folder / "im0.png", PICTURE)
    (folder / "disp0.pfm").write_bytes(b"Pf\n8 6\n-1\n" + disparity[::-1].astype("<f4").tobytes())
    (folder / "calib.txt").write_text("cam0=[4000 0 1; 0 4000 1; 0 0 1]\ncam1=[1 0 0]\ndoffs=131.1\nbaseline=178.2\n")
    found, depth, _ = converted(tmp_path / "in", tmp_path / "out")
    assert found.layout == "middlebury" and not depth.valid[2, 3] and depth.valid.sum() == 47
    np.testing.assert_allclose(depth.values[depth.valid], DEPTH[depth.valid], atol=6e-4)


def test_middlebury_of_2006(tmp_path: Path):
    folder = tmp_path / "in/Aloe"
    disparity = np.arange(48, dtype=np.uint8).reshape(6, 8) * 4
    save(folder / "view1.png", PICTURE)
    save(folder / "disp1.png", disparity)
    (folder / "dmin.txt").write_text("270\n")
    _, depth, _ = converted(tmp_path / "in", tmp_path / "out")
    assert not depth.valid[0, 0] and depth.valid.sum() == 47
    np.testing.assert_allclose(depth.values[5, 7], 3740 * 0.16 / (188 + 270), atol=6e-4)
    (folder / "dmin.txt").unlink()
    with pytest.raises(UserError, match=r"nothing of this middlebury data could be converted; .*without dmin\.txt"):
        imports.convert(tmp_path / "in", tmp_path / "out2")


def test_the_options_read_what_was_written(tmp_path: Path):
    save(tmp_path / "in/room/depth_1.png", np.round(DEPTH * 1000).astype(np.uint16))
    save(tmp_path / "in/room/rgb_1.png", PICTURE)
    lines = imports.convert(tmp_path / "in", tmp_path / "out").options(tmp_path / "out")
    assert lines[-2:] == ["unit = 0.001", "valid = [0.1, 10.0]"]
    assert f'targets = "{(tmp_path / "out/depth").as_posix()}"' in lines


def test_what_is_no_such_data_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="there is no such file or folder"):
        imports.convert(tmp_path / "none", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="not a layout that is known here"):
        imports.convert(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/x.mat").write_bytes(b"old")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="HDF5 files need the package h5py"):
        imports.convert(tmp_path / "in", tmp_path / "out")


def test_a_broken_hdf5_file_is_one_line(tmp_path: Path):
    pytest.importorskip("h5py")
    (tmp_path / "x.mat").write_bytes(b"old")
    with pytest.raises(UserError, match=r"x\.mat: it cannot be read as HDF5 with images and depths"):
        imports.convert(tmp_path, tmp_path / "out")


def test_maps_of_another_shape_are_left_out(tmp_path: Path):
    folder = tmp_path / "in/Aloe"
    save(folder / "view1.png", PICTURE)
    save(folder / "disp1.png", np.full((6, 20), 9, np.uint8))
    (folder / "dmin.txt").write_text("270")
    with pytest.raises(UserError, match="depth of 20x6 for a picture of 8x6"):
        imports.convert(tmp_path / "in", tmp_path / "out")
