"""Every family trains: twenty steps of tiny models, and in the nightly suite single files of public sizes."""

from __future__ import annotations

import json
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest
import tiny
from short_runs import config, events, pictures, trajectory

from pixelkiln.trainer.config import load
from pixelkiln.trainer.training.loop import train

STEPS = 20
QUICK = [("sd15", "v", False), ("sdxl", "epsilon", True), ("sd3-medium", "flow", False), ("sd3-medium", "flow", True)]
"""What test_trajectories.py has not; the rest takes longer than the default suite has."""
nightly = pytest.mark.nightly
PIXEL = {"loss.pixel.mode": "mixed", "loss.pixel.probability": 0.5}
CASES = [
    pytest.param(name, prediction, pixel, id=f"{name}-{prediction}{'-pixel' if pixel else ''}",
                 marks=() if (name, prediction, pixel) in QUICK else nightly)
    for name, prediction in (("sd15", "epsilon"), ("sd15", "v"), ("sdxl", "epsilon"), ("sdxl", "v"),
                             ("sd3-medium", "flow"), ("sd3.5-medium", "flow"), ("sd3.5-large", "flow"))
    for pixel in (False, True)
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prediction", "pixel"), CASES)
def test_twenty_steps(name: str, prediction: str, pixel: bool, tmp_path: Path) -> None:
    """One batch of two and two of one are the same steps, the errors are finite, and the file is proven."""
    tiny.write(tmp_path / name, tiny.parts(name, **({} if prediction == "flow" else {"prediction": prediction})))
    flags = {"run.steps": STEPS, "run.batch": 2, **(PIXEL if pixel else {})}
    whole = config(tmp_path, {**flags, "run.name": "whole"}, name)
    steps = trajectory(whole)
    split = trajectory(config(tmp_path, {**flags, "run.name": "split", "run.batch": 1, "run.accumulation": 2}, name))
    assert len(steps) == STEPS
    for one, other in zip(steps, split, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9)
    assert any("pixel/error" in e["terms"] for e in events(whole) if e["kind"] == "step") == pixel
    log = (tmp_path / "runs" / "whole" / "log.txt").read_text("utf-8")
    assert f"predicts {prediction}" in log
    assert "each has the trained effect" in log


# --------------------------------------------------------------------------------------------- files of public sizes


def run_of_file(name: str, root: str, answer: Any) -> None:
    """In a process of its own: write a checkpoint with random weights, train three steps on it, say the peak memory."""
    import public_models as full

    from pixelkiln.trainer.families import load as loading
    from pixelkiln.trainer.registry import families

    spec, folder = families[name].build(), Path(root)
    if name == "sd3.5-large":  # 16 GB whole; its full names and shapes are checked on the meta device
        spec = full.shallow(spec)
        loading._specs = lambda: [spec]
    path = full.random_file(spec, folder / f"{name}.safetensors")
    flags = {
        "run.out": str(folder / "runs"), "run.name": "t", "run.steps": 3, "run.batch": 1, "run.precision": "bf16",
        "run.device": "cpu", "model.path": str(path), "data.path": str(pictures(folder / "pictures", 3)),
        "data.resolution": 64, "adapter.rank": 4, "loss.mse.weight": 1.0, "loss.pixel.mode": "mixed",
        "model.prediction": "v" if name == "sd2" else "auto",
    }  # fmt: skip
    code = train(load(flags=flags))
    path.unlink()
    answer.put((code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


@nightly
@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_a_single_file_trains(name: str, tmp_path: Path) -> None:
    """A checkpoint of public size in the public layout (SD3.5 large: of two blocks), without T5, 64 pixels, bf16."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=run_of_file, args=(name, str(tmp_path), answer))
    child.start()
    child.join(1800)
    code, peak = answer.get(timeout=10)
    rows = [json.loads(line) for line in (tmp_path / "runs/t/events.jsonl").read_text("utf-8").splitlines()]
    steps = [e for e in rows if e["kind"] == "step"]
    print(f"{name}: peak {peak:.1f} GiB, {steps[-1]['t'] - steps[0]['t']:.0f} s for two steps")
    assert code == 0
    assert len(steps) == 3
    assert all(0 < e["loss"] < 100 for e in steps)
    assert (tmp_path / "runs/t/t.safetensors").is_file()
