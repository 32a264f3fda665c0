"""Every preset is whole, says what it is for and where its values come from, and trains."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from short_runs import model, pairs, pictures

from pixelkiln.trainer.config import PRESETS, load, read_toml
from pixelkiln.trainer.training.loop import train

NAMES = sorted(path.stem for path in PRESETS.glob("*.toml") if not path.stem.startswith("demo"))
GOALS = ("character", "style", "concept", "detail", "preference", "depth", "normal")
MODELS = {"sd15": "sd15", "sdxl": "sdxl", "sd3": "sd3-medium"}


def made(name: str, root, **flags):
    """The preset on a tiny model of its family, with little of everything."""
    family, goal, _ = name.split("-")
    data = pairs(root / "pairs") if goal == "preference" else pictures(root / "pictures", 4)
    small = {
        "model.path": str(model(root / family, MODELS[family])), "data.resolution": 64, "run.out": str(root / "runs"),
        "run.device": "cpu", "run.precision": "fp32", "run.steps": 2, "run.accumulation": 1, "run.name": name,
        ("data.pairs" if goal == "preference" else "data.path"): str(data),
    }  # fmt: skip
    if goal in ("depth", "normal"):
        small |= {"data.targets": str(targets(data, goal)), "data.validation_split": 0.25}
    return load(preset=name, flags={**small, **flags})


def targets(pictures: Path, goal: str) -> Path:
    """A map for each picture: a slope."""
    folder = pictures.parent / goal
    folder.mkdir(exist_ok=True)
    slope = np.linspace(1, 3, 64, dtype=np.float32)[:, None].repeat(64, 1)
    normals = np.stack([0 * slope, np.sin(slope / 3), np.cos(slope / 3)], -1)
    for path in pictures.glob("*.png"):
        np.save(folder / f"{path.stem}.npy", slope if goal == "depth" else normals)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_named_and_described(name, tmp_path):
    family, goal, size = name.split("-")
    assert family in MODELS
    assert goal in GOALS
    assert re.fullmatch(r"(8|12|16|24)gb", size)
    lines = (PRESETS / f"{name}.toml").read_text("utf-8").splitlines()
    assert re.match(rf"# SD.*, {size[:-2]} GB: \w", lines[0])
    assert lines[1].startswith("# Values: ")
    config = made(name, tmp_path)
    own = read_toml(PRESETS / f"{name}.toml")
    assert own["memory"] == {"plan": "auto"} and "kind" not in own["optimizer"], "a goal, not how it fits"
    assert (config.objective.kind == "dpo") == (goal == "preference")
    assert ("pixel" in config.terms()) >= (goal == "detail")
    assert (config.dense is not None and config.dense.task) == (goal in ("depth", "normal") and goal)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_two_steps(name, tmp_path):
    config = made(name, tmp_path)
    assert train(config) == 0
    assert (tmp_path / "runs" / name / f"{name}.safetensors").exists()
