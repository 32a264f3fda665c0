from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_trainer
import pytest
import waiting

from pixelkiln.trainer.runs import control, process
from pixelkiln.trainer.runs.events import write_status
from pixelkiln.trainer.runs.folder import safe_name

HERE: dict[str, Any] = {"python": sys.executable, "module": "fake"}
LONG = {"steps": 100_000, "pause": 0.01}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run's folder beside the stand-in trainer; nothing is left running."""
    fake_trainer.write(tmp_path)
    folder = tmp_path / "runs" / "cat"
    folder.parent.mkdir()
    yield folder
    control.kill(folder)


def start(run: Path, *flags: str, resume: bool = False, **config: Any) -> control.Job:
    return control.start(fake_trainer.config(run, **config), run, *flags, resume=resume, root=run.parents[1], **HERE)


def until(run: Path, **wanted: Any) -> control.Status:
    """The status once it is as wanted."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        now = control.status(run)
        if all(getattr(now, key) == value for key, value in wanted.items()):
            return now
        time.sleep(0.01)
    raise AssertionError(f"{wanted} never came: {control.status(run)}, log: {control.tail(run)}")


def test_from_start_to_end(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    assert control.status(run) == control.Status("new")
    started = start(run, "--adapter.rank=4", resume=True, late=0.2)
    assert (control.status(run).state, control.status(run).live) == ("queued", True)
    if os.name != "nt":
        assert os.getpgid(started.pid) == started.pid
    done = control.wait(run, 10)
    assert (done.state, done.step, done.total, done.exit_code, done.live) == ("done", 3, 3, 0, False)
    assert started.process.wait(5) == started.exit_code() == 0
    events, offset = control.events(run)
    assert [event["step"] for event in events] == [1, 2, 3]
    assert control.events(run, offset) == ([], offset)
    assert control.tail(run) == "hello --adapter.rank=4 --resume PYTHONUNBUFFERED PYTHONUTF8"
    assert not (run / "start.json").exists()


def test_a_mistake_before_the_run_begins(run: Path):
    start(run).process.wait(10)
    assert control.status(run).state == "done"
    started = start(run, mistake="'a?b' is no folder name; choose another")
    assert started.process.wait(10) == 2
    now = control.status(run)
    assert (now.state, now.message) == ("failed", "run.name: 'a?b' is no folder name; choose another")
    start(run).process.wait(10)
    assert control.status(run).state == "done"


def test_a_crash_is_told_as_failed_and_nothing_is_written(run: Path):
    start(run, crash=2).process.wait(10)
    written = (run / "status.json").read_bytes()
    now = control.status(run)
    assert (now.state, now.step, now.live) == ("failed", 2, False)
    assert now.message.startswith("the process is gone")
    assert "(out of memory); resume continues" in now.message
    assert (run / "status.json").read_bytes() == written
    with pytest.raises(ValueError, match="run 'cat': nothing trains there, so it cannot save; start it first"):
        control.request(run, "save")


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_and_started_again(run: Path):
    started = start(run, **LONG)
    until(run, state="running")
    os.kill(started.pid, signal.SIGKILL)
    until(run, state="failed", live=False)
    again = start(run, steps=2)
    assert again.process.wait(10) == 0
    assert control.status(run).state == "done"


def test_stop_saves_and_kill_does_not_wait(run: Path):
    started = start(run, **LONG)
    until(run, state="running")
    assert control.stop(run, 10).state == "stopped"
    assert started.process.wait(10) == 130
    assert control.stop(run, 0).state == "stopped", "asking again is harmless"
    assert not (run / "control" / "stop").exists()


def test_a_stop_that_comes_while_it_loads_is_obeyed(run: Path):
    started = start(run, late=0.3, **LONG)
    control.request(run, "stop")
    assert started.process.wait(10) == 130
    assert control.status(run).step == 1


def test_a_stop_that_nobody_obeyed_does_not_end_the_next_run(run: Path):
    (run / "control").mkdir(parents=True)
    (run / "control" / "stop").touch()
    assert start(run).process.wait(10) == 0
    (run / "control" / "stop").touch()
    command = [sys.executable, "-m", "fake", "train", str(fake_trainer.config(run))]
    assert subprocess.run(command, cwd=run.parents[1], capture_output=True).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_kill_ends_the_children_too(run: Path):
    start(run, child=True, **LONG)
    waiting.until(lambda: control.events(run)[0], "the first event")
    child = control.events(run)[0][0]["child"]
    assert process.start_time(child)
    assert control.kill(run).state == "stopped"
    end = time.monotonic() + 5
    while process.start_time(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert process.start_time(child) is None
    assert control.kill(run).state == "stopped", "killing again is harmless"


def test_two_starts_on_one_folder(run: Path):
    first = start(run, **LONG)
    with pytest.raises(ValueError, match=rf"run 'cat': it is already training \(process {first.pid}\); stop it first"):
        start(run, **LONG)
    until(run, state="running")
    command = [sys.executable, "-m", "fake", "train", str(fake_trainer.config(run))]
    by_hand = subprocess.run(command, cwd=run.parents[1], capture_output=True, text=True)
    assert by_hand.returncode == 2
    assert by_hand.stderr.startswith(f"error: run 'cat': it is already training (process {first.pid})")
    assert control.status(run).live
    assert control.stop(run, 10).state == "stopped"


def test_many_starts_at_once_give_one_run(run: Path):
    started, refused = [], []

    def one() -> None:
        try:
            started.append(start(run, **LONG))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(started), len(refused)) == (1, 4)
    until(run, state="running")


def test_a_number_that_now_belongs_to_another_process(run: Path):
    run.mkdir()
    write_status(run, "running", step=7, total=9)
    assert control.status(run).live, "we live, and say that we train"
    recorded = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**recorded, "start": "before"}))
    assert (control.status(run).state, control.status(run).step) == ("failed", 7)
    control.kill(run)  # and not this process, whose number it is


def test_clock_jumps_change_nothing(run: Path, monkeypatch: pytest.MonkeyPatch):
    start(run, **LONG)
    until(run, state="running")
    for now in (0.0, 4e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert control.status(run).live
    assert control.stop(run, 10).state == "stopped"


def test_a_folder_that_another_machine_writes(run: Path):
    run.mkdir()
    write_status(run, "running", step=7)
    recorded = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**recorded, "host": "elsewhere"}))
    assert control.status(run).live
    os.utime(run / "status.json", (1e9, 1e9))
    assert control.status(run).message.startswith("the process is gone on elsewhere")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"state": 5, "pid": "x"}', b"\xff\xfe"])
def test_a_damaged_status_is_no_status(run: Path, content: bytes):
    run.mkdir()
    (run / "status.json").write_bytes(content)
    assert control.status(run) == control.Status("new")


def test_lock_leaves_with_a_killed_process_and_clears_up(run: Path):
    run.mkdir()
    start(run, **LONG)
    until(run, state="running")
    (run / ".status.json.0123abcd.tmp").touch()
    with pytest.raises(ValueError, match="already training"), control.lock(run):
        pass
    assert (run / ".status.json.0123abcd.tmp").exists()
    control.kill(run)
    with control.lock(run):
        assert not (run / ".status.json.0123abcd.tmp").exists()
        assert control.status(run).live, "no moment in which a second start would be let in"
    (run / "status.json").unlink()


def test_ask(run: Path):
    root = run.parents[1]
    answer = control.ask(["check", "a b.toml", "--run.name=x y"], root=root, **HERE)
    assert answer["arguments"] == ["a b.toml", "--run.name=x y", "--json"]
    assert Path(answer["cwd"]).resolve() == root.resolve()
    with pytest.raises(control.Refused, match=r"^adapter\.rank: first\nadapter\.kind: second$") as refused:
        control.ask(["inspect"], root=root, **HERE)
    assert (refused.value.code, refused.value.answer["problems"]) == (1, ["a"])
    with pytest.raises(ValueError, match="'babble' ended with code 0 and no message"):
        control.ask(["babble"], root=root, **HERE)
    with pytest.raises(ValueError, match=r"no answer to 'hang' within 0\.3 s"):
        control.ask(["hang"], root=root, timeout=0.3, **HERE)
    with pytest.raises(ValueError, match=r"nothing does not run \(No such file or directory\); run: python install.py"):
        control.ask(["check"], root=root, python=root / "nothing", module="fake")
    with pytest.raises(ValueError, match=r"cannot be started there \(No such file or directory: .*nothing\)"):
        control.start("a.toml", run, root=root, python=root / "nothing")


def test_find_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIXELKILN_PYTHON", raising=False)
    with pytest.raises(ValueError, match=r"not set up in .*; run once, in that folder: python install.py trainer"):
        control.find_python(tmp_path)
    python = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    assert control.find_python(tmp_path) == python
    monkeypatch.setenv("PIXELKILN_PYTHON", sys.executable)
    assert control.find_python(tmp_path) == Path(sys.executable)
    monkeypatch.setenv("PIXELKILN_PYTHON", "/no/python")
    with pytest.raises(ValueError, match="PIXELKILN_PYTHON: there is no /no/python"):
        control.find_python(tmp_path)


@pytest.mark.parametrize("name", ["cat", "Ünïcode 猫", "a-b_c.d", "x" * 100, "common"])
def test_names_that_may_become_folders(name: str):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "C:", "/etc", ".hidden", "x.", "x ", " x", "a\nb", "a\0b", "con", "COM1.txt",
     "a*", "x" * 101, "x\n", "~/x/"],
)  # fmt: skip
def test_names_that_may_not(name: str):
    with pytest.raises(ValueError, match="cannot be a folder's name everywhere"):
        safe_name(name)


def test_a_list_of_many_runs_is_quick(tmp_path: Path):
    for number in range(60):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        write_status(folder, "running" if number % 2 else "done", step=number)
        recorded = json.loads((folder / "status.json").read_text())
        live = {} if number == 1 else {"pid": 2**22 + number}
        (folder / "status.json").write_text(json.dumps({**recorded, "t": number, **live}))
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").touch()
    began = time.perf_counter()
    runs = control.list_runs(tmp_path)
    assert time.perf_counter() - began < 0.5
    assert [r.name for r in runs[:3]] == ["run1", "run59", "run58"]
    assert [r.status.state for r in runs[:3]] == ["running", "failed", "done"]
    assert len(runs) == 60
    assert control.list_runs(tmp_path / "nowhere") == []


def test_checkpoints_in_order(run: Path):
    folder = run.with_name("a [1]")
    (folder / "checkpoints").mkdir(parents=True)
    names = ["a [1]-step00000020", "a [1]-step00000100", "a [1]-ema-step00000100", "b-step00000500", "a [1]-step5"]
    for name in (*names, ".a [1]-step00000200.safetensors.0123abcd.tmp"):
        (folder / "checkpoints" / f"{name}{'' if name.startswith('.') else '.safetensors'}").touch()
    assert [c.step for c in control.checkpoints(folder)] == [20, 100]
    final = folder / "a [1].safetensors"
    final.touch()
    assert control.checkpoints(folder)[-1] == control.Checkpoint(final)
    os.utime(final, (1e9, 1e9))
    assert [c.step for c in control.checkpoints(folder)] == [None, 20, 100], "the run was continued after its end"
    assert control.checkpoints(run) == []


def test_tail_shows_a_progress_bar_once(run: Path):
    run.mkdir()
    (run / "log.txt").write_bytes(b"first\n" * 100_000 + b"10%\r50%\r100%\r\nlast \xff\n")
    assert control.tail(run, 2) == "100%\nlast \ufffd"
    assert control.tail(run.with_name("none")) == ""


def test_the_files_that_hosts_use_need_the_standard_library_only():
    """-S leaves out every installed package."""
    code = "import sys; sys.path.insert(0, '.'); import trainer.runs.control, trainer.runs.events, "
    code += "trainer.runs.turn, trainer.runs.check_report; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=control.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_processes_by_ps_as_on_macos():
    own = process._ps_start(os.getpid())
    assert own
    assert own == process._ps_start(os.getpid())
    assert process._ps_start(2**22 + 1) is None
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert process._ps_start(zombie.pid) is process._linux_start(zombie.pid) is None
    zombie.wait()
