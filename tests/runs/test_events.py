from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from waiting import until

from pixelkiln.trainer.runs import events
from pixelkiln.trainer.runs.events import EventLog, read_events, read_object, write_status
from pixelkiln.trainer.runs.files import NotWritten, sweep, write_atomic

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="resource limits")


def test_events_are_valid_json_whatever_the_numbers(tmp_path: Path):
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write(
            "step",
            1,
            loss=math.nan,
            norm=torch.tensor(math.inf),
            lr=torch.tensor(0.5),
            at=Path("a"),
            many=(1, -math.inf),
        )
        log.write("step", 2, terms={"mse": torch.tensor(2), 3: None}, ok=True, text="猫\n", name="\udcff")
    lines = (tmp_path / "e.jsonl").read_text(encoding="utf-8").splitlines()
    one, two = (json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines)
    assert abs(one.pop("t") - time.time()) < 60
    assert one == {
        "v": 1,
        "kind": "step",
        "step": 1,
        "loss": None,
        "norm": None,
        "lr": 0.5,
        "at": "a",
        "many": [1, None],
    }
    assert (two["terms"], two["ok"], two["text"], two["name"]) == ({"mse": 2, "3": None}, True, "猫\n", "?")


def test_reading_goes_on_where_it_ended(tmp_path: Path):
    path = tmp_path / "e.jsonl"
    assert read_events(path) == ([], 0)
    assert read_events(path, 50) == ([], 0)
    with EventLog(path) as log:
        log.write("start", 0)
        first, offset = read_events(path)
        log.write("step", 1)
        second, offset = read_events(path, offset)
        assert ([e["kind"] for e in first], [e["kind"] for e in second]) == (["start"], ["step"])
        assert read_events(path, offset) == ([], offset)
    path.write_bytes(b'{"kind": "new"}\n')
    assert read_events(path, offset) == ([{"kind": "new"}], 16), "written again"


def test_a_torn_line_costs_that_line_only(tmp_path: Path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b'{"kind": "start"}\n{"kind": "st')
    seen, offset = read_events(path)
    assert ([e["kind"] for e in seen], offset) == (["start"], 18)
    with EventLog(path) as log:
        log.write("step", 2)
    assert [e["kind"] for e in read_events(path, offset)[0]] == ["step"]
    path.write_bytes(b'null\n\n\xff\n[1]\n{"kind": "end"}\n')
    assert read_events(path)[0] == [{"kind": "end"}]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_read_in_any_pieces_it_is_the_same(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("pieces") / "e.jsonl"
    whole = b"".join(json.dumps({"step": i, "text": "ü" * i}).encode() + b"\n" for i in range(8))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    seen, offset = [], 0
    for cut in (*cuts, len(whole)):
        path.write_bytes(whole[:cut])
        new, offset = read_events(path, offset)
        seen += new
    assert [e["step"] for e in seen] == list(range(8))


@posix
def test_killed_in_the_middle_of_writing(tmp_path: Path):
    """Every line that a reader meets is whole, and the status is one of those that were written."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from trainer.runs.events import EventLog, write_status\n"
        "log = EventLog(sys.argv[1] + '/e.jsonl')\n"
        "for i in range(10**6): log.write('step', i, text='x' * 5000); write_status(sys.argv[1], 'running', step=i)\n"
    )
    for round in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
        until(lambda n=10 * (round + 1): len(read_events(tmp_path / "e.jsonl")[0]) >= n, "events")
        writer.kill()
        writer.wait()
        assert read_object(tmp_path / "status.json")["state"] == "running"
        lines = (tmp_path / "e.jsonl").read_bytes().split(b"\n")[:-1]
        assert sum(1 for line in lines if not line.endswith(b"}")) <= round
    assert sweep(tmp_path) <= 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.jsonl", "status.json"]


def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(events.STARTED_AS, "token")
    write_status(tmp_path, "saving", step=3, total=9, eta=math.inf, message="ü", exit_code=None)
    status = read_object(tmp_path / "status.json")
    assert {**status, "t": 0, "start": 0, "host": 0} == {
        "v": 1, "t": 0, "state": "saving", "step": 3, "total": 9, "eta": None, "message": "ü", "exit_code": None,
        "pid": os.getpid(), "start": 0, "host": 0, "job": "token",
    }  # fmt: skip
    assert read_object(tmp_path / "none.json") == {}


def in_little_room(code: str, folder: Path) -> str:
    """What a program says that may write no file beyond 4 KiB: the same road as a full disk, but for its number."""
    head = (
        "import resource, sys; sys.path.insert(0, '.'); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pathlib import Path; folder = Path(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", head + code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@posix
@pytest.mark.parametrize(
    "writing",
    [
        "content = bytes(5000)",
        "import torch; from safetensors.torch import save_file\n"
        "content = lambda path: save_file({'a': torch.zeros(5000)}, path)",
    ],
)
def test_no_room_for_a_file_leaves_the_old_one(tmp_path: Path, writing: str):
    (tmp_path / "a").write_text("old")
    code = (
        f"{writing}\nfrom trainer.runs.files import NotWritten, write_atomic\n"
        "try: write_atomic(folder / 'a', content)\n"
        "except NotWritten as error: print(error.errno, error)"
    )
    message = in_little_room(code, tmp_path)
    assert message.startswith(f"27 {tmp_path / 'a'}: it cannot be written (file too large)")
    assert "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@posix
def test_no_room_for_an_event_costs_the_events_that_found_none(tmp_path: Path):
    code = (
        "from trainer.runs.events import EventLog; from trainer.runs.files import NotWritten\n"
        "log, refused = EventLog(folder / 'e.jsonl'), 0\n"
        "for i in range(6):\n"
        "    try: log.write('step', i, text='x' * 1000)\n"
        "    except NotWritten: refused += 1\n"
        "print(refused)"
    )
    assert in_little_room(code, tmp_path) == "3"
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write("end", 6)
    assert [e["step"] for e in read_events(tmp_path / "e.jsonl")[0]] == [0, 1, 2, 6]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_a_full_disk_in_one_line(tmp_path: Path):
    def fill(path: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x")

    with pytest.raises(
        ValueError, match=r"a: it cannot be written \(no space left on device\); free some space"
    ) as error:
        write_atomic(tmp_path / "a", fill)
    assert isinstance(error.value, NotWritten)
    assert isinstance(error.value, OSError)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_may_be_written_from(tmp_path: Path):
    write_atomic(tmp_path / "text", "ü\n")
    write_atomic(tmp_path / "bytes", b"\r\n", durable=False)
    write_atomic(str(tmp_path / "text"), "new")
    write_atomic(tmp_path / "tensors.safetensors", lambda path: save_file({"a": torch.ones(2)}, path))
    assert (tmp_path / "text").read_bytes() == b"new"
    assert (tmp_path / "bytes").read_bytes() == b"\r\n"
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "text", lambda path: path.write_text("half") and 1 / 0)
    with pytest.raises(NotWritten, match="no such file or directory"):
        write_atomic(tmp_path / "no" / "folder", b"")
    assert (tmp_path / "text").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 3


def test_sweep_removes_its_own_leftovers_only(tmp_path: Path):
    (tmp_path / "state").mkdir()
    for name in (
        "state/.step00000100.safetensors.0123abcd.tmp",
        "mine.tmp",
        ".mine.tmp",
        "state/step00000100.safetensors",
    ):
        (tmp_path / name).touch()
    assert sweep(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == [".mine.tmp", "mine.tmp", "step00000100.safetensors"]
