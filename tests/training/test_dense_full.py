"""Dense runs at public sizes: random weights in a single file, three real steps, the memory beside the estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import short_runs as runs
import torch
from estimate_checks import compare, estimated_peak
from public_models import random_file, shallow

from pixelkiln.trainer.config import load
from pixelkiln.trainer.families import load as loading
from pixelkiln.trainer.registry import families
from pixelkiln.trainer.training.loop import train


@pytest.mark.nightly
@pytest.mark.parametrize("name, whole", [("sd15", True), ("sd2", True), ("sdxl", False), ("sdxl", True)])
def test_three_steps_and_their_memory(name: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL at its full width with fewer layers, and whole, which takes 20 GB of memory."""
    spec = families[name].build()
    spec = replace(spec, in_file=lambda shapes: True) if whole else shallow(spec)
    monkeypatch.setattr(loading, "_specs", lambda: [spec])
    path = random_file(spec, tmp_path / f"{name}.safetensors")
    pictures, folder = runs.pictures(tmp_path / "pictures", 4, (128, 128)), tmp_path / "depth"
    folder.mkdir()
    for picture in pictures.glob("*.png"):
        slope = np.linspace(1, 3, 128, dtype=np.float32)[:, None].repeat(128, 1)
        np.save(folder / f"{picture.stem}.npy", slope)
    flags = {
        "model.path": str(path), "run.out": str(tmp_path / "runs"), "run.name": name, "run.steps": 3, "run.batch": 1,
        "run.precision": "bf16", "run.device": "cpu", "data.path": str(pictures), "data.targets": str(folder),
        "data.resolution": 128, "dense.task": "depth", "adapter.rank": 16, "loss.dense.weight": "auto",
        "memory.gradient_checkpointing": True, "save.state_every": 0, "sample.at_start": False,
    }  # fmt: skip
    config = load(flags=flags | ({"model.prediction": "v"} if name == "sd2" else {}))
    assert train(config) == 0
    found = runs.events(config)
    steps = [event for event in found if event["kind"] == "step"]
    assert len(steps) == 3 and all(np.isfinite(event["loss"]) and event["grad_norm"] > 0 for event in steps)
    assert [event["message"] for event in found if event["kind"] == "warning"] == []
    with safetensors.safe_open(tmp_path / "runs" / name / f"{name}.safetensors", "pt") as file:
        assert "pixelkiln.dense" in file.metadata()
    _, peak, _, estimate = compare(config, torch.bfloat16)
    print(f"{name}: {peak / 2**20:.1f} MiB measured, {estimated_peak(estimate) / 2**20:.1f} estimated")
    assert estimated_peak(estimate) == pytest.approx(peak, rel=0.1)
