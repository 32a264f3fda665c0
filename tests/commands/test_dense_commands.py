"""``dense predict`` and ``dense score`` with adapters of short runs on tiny models."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import short_runs as runs
import torch
from PIL import Image

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands import dense_predict
from pixelkiln.trainer.dense import files, scenes
from pixelkiln.trainer.dense.options import DenseOptions
from pixelkiln.trainer.dense.targets import Target
from pixelkiln.trainer.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with rendered scenes and a run of each task."""
    root = tmp_path_factory.mktemp("dense")
    scenes.write_scenes(root, 4, (64, 64))
    for task in ("depth", "normal"):
        flags = {"dense.task": task, "data.path": str(root / "pictures"), "data.targets": str(root / task)}
        more = {"data.unit": 0.001} if task == "depth" else {}
        made = {"run.name": task, "run.steps": 2, "run.precision": "fp32", "dense.detail": 0}
        assert train(runs.config(root, {**flags, **more, **made})) == 0
    return root


def adapter(home: Path, task: str = "depth") -> str:
    return str(home / "runs" / task / f"{task}.safetensors")


FP32 = ("--precision", "fp32")


def test_maps_have_the_pictures_names_and_sizes_in_every_format(home: Path, tmp_path: Path, capsys):
    frames = tmp_path / "in" / "shot"
    frames.mkdir(parents=True)
    for number, size in ((10, (80, 48)), (2, (64, 64))):
        Image.new("RGB", size, (number * 9, 80, 60)).save(frames / f"f{number}.png")
    words = ["--adapter", adapter(home), "--formats", "png,npy,preview", "--json", *FP32]
    assert main(["dense", "predict", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [Path(path).relative_to(tmp_path / "out").as_posix() for path in answer["maps"]]
    assert names == [f"shot/f{n}{end}" for n in (2, 10) for end in (".png", ".npy", "_preview.png")]
    assert answer["task"] == "depth" and answer["space"] == "disparity"
    raw, png = (files.read(tmp_path / "out/shot" / f"f10.{end}") for end in ("npy", "png"))
    assert raw.shape == (48, 80) and raw.dtype == np.float32 and png.dtype == np.uint16
    np.testing.assert_allclose(png / 65535, raw.clip(0, 1), atol=1e-5)
    assert files.read(tmp_path / "out/shot/f10_preview.png").shape == (48, 80, 3)


def test_one_picture_goes_to_one_file_the_same_each_time(home: Path, tmp_path: Path):
    for name in ("a.npy", "b.npy"):
        source = str(home / "pictures" / "00001.png")
        assert main(["dense", "predict", source, str(tmp_path / name), "--adapter", adapter(home), *FP32]) == 0
    a, b = (np.load(tmp_path / name) for name in ("a.npy", "b.npy"))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (64, 64)


def test_tiles_and_normals(home: Path, tmp_path: Path):
    Image.fromarray(scenes.render(3, (120, 90)).picture).save(tmp_path / "large.png")
    words = ["--adapter", adapter(home, "normal"), "--tiles", "--formats", "npy,png", *FP32]
    assert main(["dense", "predict", str(tmp_path / "large.png"), str(tmp_path / "out"), *words]) == 0
    normals = np.load(tmp_path / "out/large.npy")
    assert normals.shape == (90, 120, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-4)
    np.testing.assert_allclose(files.read(tmp_path / "out/large.png") / 65535 * 2 - 1, normals, atol=1e-4)


def test_scores_stand_beside_prior_and_floor(home: Path, tmp_path: Path, capsys):
    words = ["--adapter", adapter(home), "--unit", "0.001", "--valid", "0.1", "80", *FP32]
    out = ["--csv", str(tmp_path / "scores.csv"), "--picture", str(tmp_path / "look.png")]
    assert main(["dense", "score", str(home), *words, *out, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    for figures in answer["scores"].values():
        assert figures["low"] <= figures["mean"] <= figures["high"]
        assert {"prior", "floor"} < set(figures)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [row["picture"] for row in rows] == [f"0000{i}.png" for i in range(4)]
    mean = np.mean([float(row["absrel"]) for row in rows])
    assert answer["scores"]["absrel"]["mean"] == pytest.approx(mean)
    assert files.read(tmp_path / "look.png").shape == (2 * 64 + 4, 2 * (3 * 64 + 8) + 16, 3)
    assert main(["dense", "score", str(home), "--adapter", adapter(home, "normal"), *FP32]) == 0
    assert "degrees" in capsys.readouterr().out


def test_a_perfect_map_has_no_error():
    scene = scenes.render(1, (48, 32))
    target = Target(scene.depth, scene.depth > 0)
    found = dense_predict.measured(torch.from_numpy(3 / scene.depth - 1), target, "depth", "disparity")
    assert found["absrel"] < 1e-4 and found["delta1"] == 1 and found["edge_f1"] == 1
    normals = Target(scene.normal, scene.depth > 0)
    found = dense_predict.measured(torch.from_numpy(scene.normal).permute(2, 0, 1), normals, "normal", "disparity")
    assert found["degrees"] < 0.01 and found["within_11"] == 1


def test_intervals_are_of_the_mean():
    mean, low, high = dense_predict.interval([*np.arange(100.0), float("nan")])
    assert mean == 49.5 and low < mean < high
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(np.arange(100)) / 10, rel=0.1)


def test_maps_as_files_hold_them():
    depth = np.float32([[-0.1, 0.5, 1.2]])
    np.testing.assert_array_equal(dense_predict.as_written(depth, "png", DenseOptions()), [[0, 32768, 65535]])
    np.testing.assert_array_equal(dense_predict.as_written(depth, "exr", DenseOptions()), depth)


@pytest.mark.parametrize(
    "words, message",
    [
        (["none.png", "out"], "there is no such file or folder"),
        (["pictures", "out.png"], "one file for 4 pictures; give a folder"),
        (["pictures", "pictures"], "maps would replace pictures of the same names"),
        (["pictures/00001.png", "pictures"], "maps would replace pictures of the same names"),
        (["depth", "out", "--formats", "png,tiff"], "--formats: 'tiff' is none"),
        (["empty", "out"], "it holds no pictures"),
        (["twice", "out"], "cat.jpg and cat.png would both be written there; rename one"),
        (["preview", "out"], "a.png and a_preview.png would both be written there; rename one"),
        (["pictures/00001.png", "out.jpg"], "maps are written as .png, .npy, .exr; name the file so, or give a folder"),
        (["clip.mp4", "out"], "videos are not read; give a folder of its frames (ffmpeg -i clip.mp4 frames/%05d.png)"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(home: Path, capsys, monkeypatch, words, message: str):
    monkeypatch.chdir(home)
    monkeypatch.setattr(dense_predict, "build_model", None)
    (home / "empty").mkdir(exist_ok=True)
    (home / "clip.mp4").touch()
    for name in ("twice/cat.jpg", "twice/cat.png", "preview/a.png", "preview/a_preview.png"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).touch()
    assert main(["dense", "predict", *words, "--adapter", adapter(home)]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_of_another_kind_or_place_is_one_line(home: Path, tmp_path: Path, capsys):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(adapter(home)).read_bytes())
    source, out = str(home / "pictures"), str(tmp_path / "out")
    assert main(["dense", "predict", source, out, "--adapter", str(moved)]) == 2
    assert "--model: the base model is not known" in capsys.readouterr().err
    words = ["--adapter", str(moved), "--model", str(home / "sd15"), "--formats", "npy", *FP32]
    assert main(["dense", "predict", source, out, *words]) == 0
    plain = runs.config(tmp_path, {"run.steps": 1, "run.precision": "fp32", "run.name": "plain"})
    assert train(plain) == 0
    words = ["--adapter", str(tmp_path / "runs/plain/plain.safetensors")]
    assert main(["dense", "predict", source, out, *words]) == 2
    assert "it says of no map that it predicts" in capsys.readouterr().err


def test_scoring_without_targets_is_one_line(home: Path, tmp_path: Path, capsys):
    (tmp_path / "depth").mkdir()
    words = ["--adapter", adapter(home), "--pictures", str(home / "pictures"), *FP32]
    assert main(["dense", "score", str(tmp_path), *words]) == 2
    assert "0 targets for the pictures of" in capsys.readouterr().err


def test_scoring_names_what_has_no_target_and_refuses_another_shape(home: Path, tmp_path: Path, capsys):
    targets = tmp_path / "depth"
    shutil.copytree(home / "depth", targets)
    (targets / "00002.png").unlink()
    words = ["dense", "score", str(tmp_path), "--adapter", adapter(home), "--pictures", str(home / "pictures"), *FP32]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "3 pictures" in out and "left out, without a target: 00002.png" in out
    np.save(targets / "00002.npy", np.full((64, 40), 2.0))
    assert main(words) == 2
    assert "00002.npy: its shape, 40x64, is not that of its picture, 64x64" in capsys.readouterr().err


def test_the_snippet_of_the_documentation_makes_the_same_map(home: Path, tmp_path: Path, monkeypatch):
    page = (Path(dense_predict.__file__).parents[2] / "docs/dense.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 17
    for name, path in (("base", home / "sd15"), ("depth.safetensors", adapter(home))):
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(str(path)))
    code = code.replace("(512, 512)", "(64, 64)")
    (tmp_path / "cat.png").write_bytes((home / "pictures/00001.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/dense.md", "exec"), {})
    assert main(["dense", "predict", "cat.png", "ours.png", "--adapter", adapter(home), *FP32]) == 0
    theirs, ours = (files.read(tmp_path / name).astype(int) for name in ("depth.png", "ours.png"))
    assert ours.std() > 0
    assert np.abs(theirs - ours).max() <= 70  # 0.1 %: the file has 16 bits
