"""Two processes on the CPU: the same numbers as one, one writer, and a clear end when one dies."""

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
from fork_server import Server, file_of, places, together

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")
ROOT = Path(__file__).resolve().parents[2]
PIXEL = {"loss.pixel.mode": "mixed", "loss.pixel.probability": 0.5, "loss.pixel.weight": "auto", "data.flip": True}
DPO = {"objective.kind": "dpo", "objective.pixel.kind": "simpo", "loss.pixel.mode": "anchored"}
DENSE = {"dense.task": "depth", "loss.dense.weight": "auto", "data.flip": True, "data.caption_dropout": 0}
KINDS = [(PIXEL, "data.path"), (DPO, "data.pairs"), (DENSE, "data.path")]


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "data"), KINDS, ids=["sft", "dpo", "dense"])
def test_two_processes_are_one_with_twice_the_batch(server, tmp_path, flags, data):
    """Also with dropout of captions and ranks, a bucket whose last batch is short, and an automatic weight."""
    flags = {"run.steps": 12, "data.caption_dropout": 0.2, "adapter.rank_dropout": 0.2, **flags}
    one = runs.config(tmp_path, {**flags, "run.name": "one", "run.batch": 4}, data=data)
    two = runs.config(tmp_path, {**flags, "run.name": "two", "run.batch": 1, "run.accumulation": 2}, data=data)
    assert server.run(["train", file_of(one)], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    codes = [server.wait(pid) for pid in together(server, two)]
    assert codes == [0, 0], (tmp_path / "0.log").read_text() + (tmp_path / "1.log").read_text()
    for a, b in zip(runs.steps(one), runs.steps(two), strict=True):
        assert b == pytest.approx(a, rel=1e-9, abs=1e-9)
    folder = Path(two.run.out) / "two"
    assert len(runs.steps(two)) == 12 and (folder / "two.safetensors").exists()
    assert (tmp_path / "1.log").read_text() == "", "the second process has nothing to say"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [{}, DENSE], ids=["sft", "dense"])
def test_resumed_together_is_never_stopped(server, tmp_path, kind):
    flags = {"run.steps": 8, "run.batch": 2, "save.state_every": 3, "optimizer.kind": "AdamW", **kind}
    never = runs.config(tmp_path, {**flags, "run.name": "never"})
    assert [server.wait(pid) for pid in together(server, never)] == [0, 0]
    cut = runs.config(tmp_path, {**flags, "run.name": "cut"})
    killed = together(server, cut, hooks={0: {"kill_after_step": 5}, 1: {"kill_after_step": 5}})
    assert [server.wait(pid) for pid in killed] == [-9, -9]
    assert [server.wait(pid) for pid in together(server, cut, "--resume")] == [0, 0]
    assert runs.steps(cut)[-5:] == runs.steps(never)[-5:]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_killed_process_ends_the_run_with_a_saved_state_and_one_line(server, tmp_path, dead):
    cut = runs.config(tmp_path, {"run.steps": 500, "run.batch": 1, "run.name": "cut", "save.state_every": 200})
    pids = together(server, cut, hooks={dead: {"kill_after_step": 5}})
    assert server.wait(pids[dead]) == -9
    assert server.wait(pids[1 - dead]) == 2
    reported = (tmp_path / f"{1 - dead}.log").read_text()
    errors = [line for line in reported.splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 1 and "another of the run's 2 processes has ended" in errors[0] and "Traceback" not in reported
    )
    assert "the state of step 5 is saved; --resume continues from there" in reported
    folder = Path(cut.run.out) / "cut"
    assert [p.name for p in (folder / "state").iterdir()] == ["step00000000.safetensors", "step00000005.safetensors"]
    status = json.loads((folder / "status.json").read_text("utf-8"))
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", 5, 2)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.nightly
def test_processes_with_different_data_do_not_start(server, tmp_path):
    one = runs.config(tmp_path, {"run.name": "differ", "data.path": str(runs.pictures(tmp_path / "a", 8))})
    file = file_of(one)
    more = ["--data.path", str(runs.pictures(tmp_path / "b", 6))]
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    pids = [
        server.start(["train", file, *(more if r else [])], log, env)
        for r, (env, log) in enumerate(zip(places(), logs, strict=True))
    ]
    assert [server.wait(pid) for pid in pids] == [2, 2]
    assert "error: train: process 1 has another data than process 0; give all machines" in logs[0].read_text()


@pytest.mark.nightly
def test_started_by_torchrun_and_stopped_by_ctrl_c(tmp_path):
    """The command of docs/several-gpus.md; Ctrl-C reaches torchrun and the processes at once."""
    made = runs.config(tmp_path, {"run.steps": 5000, "run.batch": 1, "run.name": "launched"})
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", places()[0]["MASTER_PORT"]]
    command = [sys.executable, "-m", *launch, "-m", "trainer", "train", str(file_of(made))]
    events = Path(made.run.out) / "launched" / "events.jsonl"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 300
        while time.monotonic() < until and not (events.exists() and '"kind": "step"' in events.read_text("utf-8")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(120)
    ended = json.loads((events.parent / "status.json").read_text("utf-8"))
    assert (ended["state"], ended["exit_code"]) == ("stopped", 130), (tmp_path / "log").read_text()
    assert list((events.parent / "state").glob(f"step{ended['step']:08d}.safetensors"))
