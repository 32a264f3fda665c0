"""``dense check`` and ``dense import``: each mistake is found and named, and sound folders have none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.dense import files, scenes, targets
from pixelkiln.trainer.dense.check import check_folder


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_scenes(folder, 5, (48, 32))
    return folder


def changed(rendered: Path, folder: Path, task: str, change) -> Path:
    """A copy of the rendered targets as arrays, each changed."""
    made = folder / task
    made.mkdir()
    for path in sorted((rendered / task).iterdir()):
        values = files.read(path).astype(np.float64)
        values = values / 1000 if task == "depth" else values / 65535 * 2 - 1
        np.save(made / f"{path.stem}.npy", change(values))
    return made


def test_rendered_scenes_are_sound(rendered: Path, capsys):
    assert main(["dense", "check", str(rendered), "--unit", "0.001", "--valid", "0.1", "80"]) == 0
    out = capsys.readouterr().out
    assert "nothing is wrong" in out and "warning" not in out
    assert "pictures  5, 5 targets, 5 readable" in out and "sizes     48x32: 5" in out
    assert main(["dense", "check", str(rendered), "--unit", "0.001", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["sound"] and [one["task"] for one in answer["tasks"]] == ["depth", "normal"]
    assert 1 < answer["tasks"][0]["range"]["least"] < answer["tasks"][0]["range"]["largest"] < 20


@pytest.mark.parametrize(
    "change, unit, words",
    [
        (lambda d: 1 / d, None, "it looks inverted, like disparity"),
        (lambda d: d * 1000, None, r"no metres; give --unit 0.001 (millimetres)"),
        (lambda d: d * 1e6, None, "give --unit the size of a step in metres"),
        (lambda d: d / d.max(), None, "it looks scaled to [0, 1]"),
        (lambda d: np.round(d / d.max() * 200) + 1, 0.05, "of 8 bits once"),
        (lambda d: d, 0.001, "that unit looks wrong"),
    ],
)
def test_what_looks_wrong_in_depth_is_named(rendered: Path, tmp_path: Path, change, unit, words: str):
    made = changed(rendered, tmp_path, "depth", change)
    found = check_folder(rendered / "pictures", made, "depth", unit)
    assert any(words in line for line in found.warnings), found.warnings
    assert not found.sound


@pytest.mark.parametrize(
    "change, words",
    [(lambda n: n * [1, 1, -1], "point away from the camera"), (lambda n: n * [1, -1, 1], "OpenCV's axes")],
)
def test_what_looks_wrong_in_normals_is_named(rendered: Path, tmp_path: Path, change, words: str):
    found = check_folder(rendered / "pictures", changed(rendered, tmp_path, "normal", change), "normal")
    assert [words in line for line in found.warnings] == [True]


def test_missing_partners_shapes_and_broken_files_are_listed(rendered: Path, tmp_path: Path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "depth").mkdir()
    for name in "abcde":
        Image.new("RGB", (20, 10)).save(tmp_path / "pictures" / f"{name}.jpg")
    half = np.full((10, 20), 4.0)
    half[:, :10] = 0
    np.save(tmp_path / "depth/a.npy", half)
    np.save(tmp_path / "depth/b.npy", np.full((20, 20), 4.0))
    files.write(tmp_path / "depth/c.png", np.full((10, 20), 9, np.uint8))
    np.save(tmp_path / "depth/d.npy", np.zeros((10, 20)))
    np.save(tmp_path / "depth/x.npy", half)
    assert main(["dense", "check", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "warning: e.jpg has no target" in out
    assert "warning: x.npy is a target without a picture" in out
    assert "warning: b.jpg (20x20) has a target of another shape" in out
    assert "c.png: depth of 8 bits" in out and "d.npy: no pixel is valid" in out
    assert "invalid   25.0% of the pixels; most in a.jpg: 50.0%" in out
    assert "pictures  5, 5 targets, 2 readable" in out
    assert main(["dense", "check", str(tmp_path), "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["sound"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{}/none"], "there is no such folder"),
        (["{}"], "it holds no folder depth, normal or image"),
        (["{}", "--task", "depth"], "there is no such folder; give --pictures and --targets"),
        (["{}", "--targets", "{}"], "--targets: which task they are for is not given"),
        (["{}", "--task", "depth", "--targets", "{}"], "it holds no pictures"),
        (["{}", "--task", "depth", "--valid", "3", "1"], "--valid: 3 1 is no range"),
        (["{}", "--task", "depth", "--unit", "0"], "--unit: 0 is no size of a step"),
    ],
)
def test_mistakes_in_what_is_given_are_one_line(tmp_path: Path, capsys, arguments, words: str):
    assert main(["dense", "check", *(word.format(tmp_path) for word in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_import_says_what_it_made_and_how_to_train_on_it(rendered: Path, tmp_path: Path, capsys):
    room = tmp_path / "in/room"
    room.mkdir(parents=True)
    for path in (rendered / "depth").iterdir():
        (room / f"depth_{path.stem}.png").write_bytes(path.read_bytes())
        (room / f"rgb_{path.stem}.png").write_bytes((rendered / "pictures" / path.name).read_bytes())
    (room / "rgb_00003.png").unlink()
    assert main(["dense", "import", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "4 pictures with depth from nyuv2 into" in out and "left out: " in out and "unit = 0.001" in out
    assert main(["dense", "check", str(tmp_path / "out"), "--unit", "0.001"]) == 0
    assert main(["dense", "import", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["count"] == 4


def test_dense_alone_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dense"])
    assert ended.value.code == 0 and "dense-check" in capsys.readouterr().out


def test_targets_with_hardly_a_whole_cell_are_named(rendered: Path, tmp_path: Path, capsys):
    """Holes in every cell, and whole cells in a corner: 2 of 24; at a larger size each pixel is a cell."""

    def holed(depth: np.ndarray) -> np.ndarray:
        kept = np.zeros(depth.shape, bool)
        kept[::2] = True
        kept[:8, :16] = True
        return np.where(kept, depth, 0)

    made = changed(rendered, tmp_path, "depth", holed)
    assert check_folder(rendered / "pictures", made, "depth").sparse == []
    for path in made.iterdir():
        depth = np.load(path)
        depth[0] = depth[:, 0] = 0
        np.save(path, depth)
    found = check_folder(rendered / "pictures", made, "depth")
    assert len(found.sparse) == 5 and found.sound
    assert check_folder(rendered / "pictures", made, "depth", resolution=640).sparse == []
    words = ["dense", "check", str(tmp_path), "--pictures", str(rendered / "pictures")]
    assert main(words) == 0
    assert "sparse    5 with less than 5% of whole cells of 8x8 pixels" in capsys.readouterr().out
    assert main([*words, "--resolution", "640"]) == 0
    assert "sparse" not in capsys.readouterr().out
    assert main([*words, "--resolution", "0"]) == 2
    assert "--resolution: 0 is no side of a picture" in capsys.readouterr().err


def test_a_target_that_training_refuses_for_its_shape_is_named(rendered: Path, tmp_path: Path):
    """48 x 32 against 47 x 32 is off by 2 %; 480 x 320 against 479 x 320 by what rounding explains."""
    made = changed(rendered, tmp_path, "depth", lambda depth: depth[:, 1:])
    assert len(check_folder(rendered / "pictures", made, "depth").shapes) == 5
    assert targets.same_shape((479, 320), (480, 320)) and not targets.same_shape((47, 32), (48, 32))
