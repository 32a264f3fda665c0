"""Runs that wait for each other, and where their adapters are copied."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_trainer
import pytest
from waiting import until

from pixelkiln.trainer.runs import control, turn
from pixelkiln.trainer.runs.files import user_cache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for runs beside the stand-in trainer, and a queue of its own."""
    fake_trainer.write(tmp_path)
    (tmp_path / "trainer").symlink_to(ROOT / "trainer")
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "runs").mkdir()
    yield tmp_path / "runs"
    for folder in (tmp_path / "runs").iterdir():
        control.kill(folder) if folder.is_dir() else None


def start(runs: Path, name: str, queue: str | None = "gpu0", copy_to: Path | None = None, **config) -> Path:
    run = runs / name
    control.start(fake_trainer.config(run, **config), run, queue=queue, copy_to=copy_to, root=runs.parent,
                  python=sys.executable, module="fake")  # fmt: skip
    return run


def test_runs_on_one_device_train_one_after_the_other(runs):
    first = start(runs, "first", steps=100_000)
    until(lambda: control.status(first).state == "running", "the first run")
    second = start(runs, "second")
    until(lambda: "waiting" in control.status(second).message, "the second run to wait")
    third = start(runs, "third")
    elsewhere = start(runs, "elsewhere", queue="gpu1")
    until(lambda: control.status(elsewhere).state == "done", "the run on another device")
    until(lambda: "'second'" in control.status(third).message, "the third run to wait for the second")
    now = control.status(second)
    assert (now.state, now.live) == ("queued", True)
    assert now.message == "waiting for run 'first', which trains or waits before it"
    control.stop(first, 20)
    until(lambda: control.status(third).state == "done", "the queue to empty")
    began = [min(e["t"] for e in control.events(run)[0]) for run in (first, second, third)]
    assert began == sorted(began)
    assert "waiting" not in control.status(second).message
    tickets = user_cache() / "queue" / "gpu0"
    until(lambda: [path.name for path in tickets.iterdir()] == [], "the last process to leave")


def test_a_killed_run_leaves_the_queue(runs):
    first = start(runs, "first", steps=100_000)
    until(lambda: control.status(first).state == "running", "the first run")
    waiting = start(runs, "waiting")
    until(lambda: "'first'" in control.status(waiting).message, "the second run to wait")
    last = start(runs, "last")
    until(lambda: "'waiting'" in control.status(last).message, "the last run to wait")
    control.kill(waiting)
    control.kill(first)
    until(lambda: control.status(last).state == "done", "the last run")
    assert control.status(waiting).state == "stopped"
    assert control.events(waiting) == ([], 0)


def test_a_run_stopped_while_it_waits_never_trains(runs):
    first = start(runs, "first", steps=100_000)
    until(lambda: control.status(first).state == "running", "the first run")
    second = start(runs, "second")
    until(lambda: "waiting" in control.status(second).message, "the second run to wait")
    now = control.stop(second, 20)
    assert (now.state, now.live, now.exit_code) == ("stopped", False, 130)
    assert control.events(second) == ([], 0)
    assert control.status(first).state == "running"


def test_a_finished_run_is_copied_and_a_failed_one_is_not(runs, tmp_path):
    (runs / "good").mkdir()
    (runs / "good" / "good.safetensors").write_bytes(b"adapter")
    good = start(runs, "good", copy_to=tmp_path / "loras" / "pixelkiln")
    bad = start(runs, "bad", copy_to=tmp_path / "loras" / "pixelkiln", mistake="no such name")
    copy = tmp_path / "loras" / "pixelkiln" / "good.safetensors"
    until(lambda: "copied to" in control.tail(good), "the copy")
    until(lambda: not control.status(bad).live and not control.status(good).live, "both ends")
    assert control.status(bad).message == "run.name: no such name"
    assert [path.name for path in copy.parent.iterdir()] == ["good.safetensors"]


def test_a_copy_that_is_the_same_is_left_alone(tmp_path):
    run = tmp_path / "cat"
    run.mkdir()
    assert turn.copy_adapter(run, tmp_path / "loras") is None
    (run / "cat.safetensors").write_bytes(b"1")
    copy = turn.copy_adapter(run, tmp_path / "loras")
    assert copy and copy.read_bytes() == b"1"
    os.utime(copy, (1, 1))
    assert turn.copy_adapter(run, tmp_path / "loras") == copy
    assert copy.stat().st_mtime == 1
    (run / "cat.safetensors").write_bytes(b"2")
    turn.copy_adapter(run, tmp_path / "loras")
    assert copy.read_bytes() == b"2"
    shutil.rmtree(run)
