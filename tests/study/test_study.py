"""Whole studies: killed and resumed on the bundled base, and what is found where there is something and where not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import short_runs as runs

import pixelkiln
from pixelkiln.trainer.study import options, plan, queue
from pixelkiln.trainer.study.statistics import compare, verdict

ROOT = Path(pixelkiln.__path__[0])
BUNDLED = """
name = "{name}"
preset = "demo"
seeds = 2
held_out = 0.2
pictures = 2
[options]
"data.resolution" = 64
"run.steps" = 4
"run.device" = "cpu"
"save.state_every" = 1
"sample.steps" = 2
"loss.pixel.weight" = 0.0
[[arms]]
name = "four steps"
[[arms]]
name = "two steps"
options = {{ "run.steps" = 2 }}
[measures]
levels = 2
pixel_levels = 1
captions = 2
caption_levels = 1
neutral = ["a cat"]
"""


def start(path: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trainer", "study", str(path), *more]
    with (path.parent / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def killed_when(path: Path, there) -> None:
    """Start the study and kill it, without a word, as soon as something is there."""
    process, until = start(path), time.monotonic() + 400
    while not there():
        assert process.poll() is None and time.monotonic() < until, (path.parent / "log.txt").read_text()[-2000:]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study that ran in one go."""
    root = tmp_path_factory.mktemp("study")
    (root / "whole.toml").write_text(BUNDLED.format(name="whole"), "utf-8")
    assert start(root / "whole.toml").wait() == 0, (root / "log.txt").read_text()[-3000:]
    return root / "studies" / "whole"


def table(folder: Path) -> list[dict]:
    return json.loads((folder / "summary.json").read_text("utf-8"))["rows"]


@pytest.mark.slow
def test_two_arms_and_two_seeds_of_the_bundled_base(whole):
    rows = table(whole)
    assert {row["seeds"] for row in rows} == {2} and len([row for row in rows if row["tested"]]) >= 7
    assert all(row["p_holm"] is not None for row in rows if row["tested"])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_study_that_is_killed_twice_and_resumed_gives_the_same_table(whole, tmp_path):
    """Once in the middle of a training, once in the middle of drawing."""
    path, folder = tmp_path / "killed.toml", tmp_path / "studies" / "killed"
    path.write_text(BUNDLED.format(name="killed"), "utf-8")

    def training() -> bool:
        return any(folder.glob("runs/two-steps-*seed0/state/*1.safetensors"))

    def drawing() -> bool:
        return len(list(folder.glob("cells/four-steps-*seed1/pictures/*.png"))) == 1

    killed_when(path, training)
    killed_when(path, drawing)
    assert start(path, "--json").wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    one, other = ((at / "values.csv").read_text("utf-8") for at in (whole, folder))
    assert one == other and len(one.splitlines()) > 50
    assert table(whole) == table(folder)


TINY = """
name = "tiny"
seeds = 5
held_out = 0.4
pictures = 4
[options.model]
path = "sd15"
[options.data]
path = "pictures"
resolution = 64
[options.run]
steps = 24
batch = 2
device = "cpu"
[options.adapter]
rank = 4
[options.optimizer]
kind = "AdamW"
learning_rate = 0.02
[options.save]
minimal = true
[options.sample]
steps = 1
guidance = 1.0
[[arms]]
name = "full"
[[arms]]
name = "half"
options = { "run.steps" = 12 }
[[arms]]
name = "again"
seed_offset = 1000
[measures]
levels = 4
pixel_levels = 1
captions = 2
caption_levels = 1
neutral = ["a dog"]
"""


@pytest.mark.slow
def test_half_the_steps_are_found_and_other_training_seeds_are_not(tmp_path):
    """A planted difference and a null study, five seeds each."""
    runs.pictures(tmp_path / "pictures", 10)
    runs.model(tmp_path / "sd15")
    (tmp_path / "study.toml").write_text(TINY, "utf-8")
    made = plan.make(*options.read(tmp_path / "study.toml"))
    assert queue.run(made, lambda _: None) == 0
    outcome = queue.Queue(made, lambda _: None).outcome()
    planted = compare(outcome.values, outcome.measures, ["full", "half"])
    error = next(row for row in planted if row.measure.name == "latent error")
    assert error.found and not error.is_better and error.seeds == 5, verdict(error)
    null = compare(outcome.values, outcome.measures, ["full", "again"])
    assert len([row for row in null if row.measure.tested]) >= 7
    assert not [verdict(row) for row in null if row.found]
