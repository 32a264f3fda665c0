"""The queue: which configurations train one after another. One small JSON file, whoever looks at it.

A small process (``supervisor``) works it off, with or without an open page; every job runs from its own copy of the
configuration. A job that fails does not hold up the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.events import read_object
from ..trainer.runs.folder import safe_name
from ..trainer.runs.process import start_detached
from . import draws, words
from .store import ROOT, Home, locked, write, write_json

KEPT = 20
"""How many ended jobs the file remembers."""
IDLE_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """One training to be done, under way, or done."""

    id: str
    run: str
    folder: str
    config: str
    """A copy, absolute; nothing that changes later reaches it."""
    resume: bool = False
    state: str = "waiting"
    """waiting, running, done, stopped, failed."""
    message: str = ""
    added: float = 0.0


@dataclass(frozen=True)
class Queue:
    jobs: tuple[Job, ...] = ()
    paused: bool = False
    """Nothing new is started."""

    def of(self, *states: str) -> list[Job]:
        return [one for one in self.jobs if one.state in states]


@dataclass(frozen=True)
class Place:
    """Where a run stands among those that wait; the first is 1."""

    number: int
    paused: bool


def place(queue: Queue, folder: Path) -> Place | None:
    """None for a run that does not wait."""
    waiting = [one.folder for one in queue.of("waiting")]
    return Place(waiting.index(str(folder)) + 1, queue.paused) if str(folder) in waiting else None


def read(home: Home) -> Queue:
    raw = read_object(home.queue)
    known = Job.__dataclass_fields__
    jobs = [
        one for one in raw.get("jobs", []) if isinstance(one, dict) and {"id", "run", "folder", "config"} <= set(one)
    ]
    return Queue(tuple(Job(**{k: v for k, v in one.items() if k in known}) for one in jobs), bool(raw.get("held")))


@contextlib.contextmanager
def _changing(home: Home) -> Iterator[dict[str, Any]]:
    """The queue in a box: put another one in, and it is written."""
    with locked(home.queue):
        box: dict[str, Any] = {"queue": read(home)}
        before = box["queue"]
        yield box
        now: Queue = box["queue"]
        if now != before:
            ended = [one.id for one in now.jobs if one.state not in ("waiting", "running")][:-KEPT]
            jobs = [asdict(one) for one in now.jobs if one.id not in ended]
            write_json(home.queue, {"v": 1, "held": now.paused, "jobs": jobs})


def free_name(home: Home, wanted: str) -> str:
    """The name, or the name with a number, that no run and no waiting job has."""
    safe_name(wanted)
    taken = {one.run.lower() for one in read(home).of("waiting", "running")}
    names = [wanted, *(f"{re.sub(r'-[0-9]+$', '', wanted)}-{number}" for number in range(2, 10_000))]
    return next(name for name in names if name.lower() not in taken and not (home.runs / name).exists())


def add(home: Home, name: str, text: str) -> Job:
    """Queue a whole configuration, whose ``run.name`` and ``run.out`` say this name and these runs."""
    number = uuid.uuid4().hex[:12]
    copy = home.own / "queued" / f"{number}.toml"
    write(copy, text)
    one = Job(number, safe_name(name), str(home.runs / name), str(copy), added=time.time())
    with _changing(home) as box:
        box["queue"] = replace(box["queue"], jobs=(*box["queue"].jobs, one))
    return one


def add_resume(home: Home, run_dir: Path) -> Job:
    """Resume a run that stopped, before the others."""
    if not (run_dir / "config.toml").is_file():
        raise UserError(words.NEVER_BEGAN.format(run_dir.name))
    with _changing(home) as box:
        old: Queue = box["queue"]
        if any(one.folder == str(run_dir) for one in old.of("waiting", "running")):
            raise UserError(words.QUEUED_ALREADY.format(run_dir.name))
        one = Job(
            uuid.uuid4().hex[:12], run_dir.name, str(run_dir), str(run_dir / "config.toml"), True, added=time.time()
        )
        box["queue"] = replace(old, jobs=(one, *old.jobs))
    return one


def remove(home: Home, number: str) -> None:
    """Take a waiting or an ended job out."""
    with _changing(home) as box:
        kept = [one for one in box["queue"].jobs if one.id != number or one.state == "running"]
        box["queue"] = replace(box["queue"], jobs=tuple(kept))


def move(home: Home, number: str, by: int) -> None:
    """Earlier (-1) or later (+1) among those that wait."""
    with _changing(home) as box:
        jobs = list(box["queue"].jobs)
        waiting = [i for i, one in enumerate(jobs) if one.state == "waiting"]
        at = next((n for n, i in enumerate(waiting) if jobs[i].id == number), None)
        if at is not None and 0 <= at + by < len(waiting):
            a, b = waiting[at], waiting[at + by]
            jobs[a], jobs[b] = jobs[b], jobs[a]
            box["queue"] = replace(box["queue"], jobs=tuple(jobs))


def pause(home: Home, paused: bool) -> None:
    """Pause the queue, or resume it. What trains is not stopped."""
    with _changing(home) as box:
        box["queue"] = replace(box["queue"], paused=paused)


# --------------------------------------------------------------------------------------------------------- working off


def turn(home: Home) -> subprocess.Popen[bytes] | None:
    """Note what has ended; start the next job if nothing trains. Gives the process that was started."""
    with _changing(home) as box:
        queue: Queue = box["queue"]
        jobs = [_looked_at(one) for one in queue.jobs]
        started = None
        following = next((i for i, one in enumerate(jobs) if one.state == "waiting"), None)
        if following is not None and not queue.paused and not _busy(home, jobs):
            jobs[following], started = _started(jobs[following])
        box["queue"] = replace(queue, jobs=tuple(jobs))
    return started


def _looked_at(one: Job) -> Job:
    if one.state != "running":
        return one
    now = control.status(one.folder)
    if now.live:
        return one
    return replace(one, state=now.state if now.state in ("done", "stopped") else "failed", message=now.message)


def _busy(home: Home, jobs: list[Job]) -> bool:
    """Whether something trains here, from this queue or started by hand, or is drawn: there is one GPU."""
    if any(one.state == "running" for one in jobs) or any(run.status.live for run in control.list_runs(home.runs)):
        return True
    return bool(draws.under_way(home.runs))


def _started(one: Job) -> tuple[Job, subprocess.Popen[bytes] | None]:
    try:
        begun = control.start(one.config, one.folder, resume=one.resume)
    except UserError as error:
        return replace(one, state="failed", message=str(error)), None
    return replace(one, state="running", message=""), begun.process


def supervise(home: Home) -> None:
    """Work the queue off until it is empty. One process does; a second one ends at once."""
    children: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(home.own / "supervisor", patience=2))
        except UserError:
            return
        idle_since = None
        while idle_since is None or time.monotonic() - idle_since < IDLE_SECONDS:
            started = turn(home)
            children = [child for child in [*children, *([started] if started else [])] if child.poll() is None]
            queue = read(home)
            work = queue.of("running") or (queue.of("waiting") and not queue.paused)
            idle_since = None if work else (idle_since or time.monotonic())
            time.sleep(1.0)


def supervised(home: Home) -> bool:
    """Whether a supervisor is at work."""
    try:
        with locked(home.own / "supervisor", patience=0):
            return False
    except UserError:
        return True


def ensure(home: Home) -> subprocess.Popen[bytes] | None:
    """Start a supervisor if there is work and none at it. It outlives this process."""
    queue = read(home)
    if not (queue.of("running") or (queue.of("waiting") and not queue.paused)) or supervised(home):
        return None
    command = [sys.executable, "-m", f"{__package__}.supervisor", str(home.runs)]
    return start_detached(command, home.own / "supervisor.log", cwd=ROOT, env=os.environ)
