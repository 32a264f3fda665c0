"""Runs as a host sees them: start, watch, steer, list. Standard library only, for the page and ComfyUI's nodes.

A run is identified by its folder, so a host can watch and steer it also after a restart. Training is always another
process, in the trainer's own environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from .events import STARTED_AS, identity, read_events, read_object, write_status
from .files import sweep
from .process import apart, environment, host, locked, start_detached, start_time
from .process import kill as kill_tree

ROOT = Path(__file__).resolve().parents[2]
Request = Literal["stop", "save", "sample"]
REQUESTS = ("stop", "save", "sample")
DONE, INTERNAL_ERROR, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of the trainer's process."""
DEFECT = "this is a defect of Pixelkiln; please report it with the traceback"
ELSEWHERE_SECONDS = 60
"""How long a run on another machine, in a shared folder, may write nothing before it counts as gone."""
TURN = "trainer.runs.turn"
_starting = threading.Lock()


# ------------------------------------------------------------------------------------------- names, places, programs


def find_python(root: str | Path = ROOT) -> Path:
    """The Python of the trainer's own environment, or what ``PIXELKILN_PYTHON`` names. Raises UserError."""
    chosen = os.environ.get("PIXELKILN_PYTHON")
    python = Path(root) / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if chosen and not Path(chosen).is_file():
        raise UserError(f"PIXELKILN_PYTHON: there is no {chosen}; unset it or name a Python")
    if not chosen and not python.is_file():
        raise UserError(f"trainer: it is not set up in {root}; run once, in that folder: python install.py trainer")
    return Path(chosen) if chosen else python


class Refused(UserError):
    """The trainer ended with an error: its line, its exit code, and its JSON answer if there is one."""

    def __init__(self, line: str, code: int, answer: dict[str, Any]):
        super().__init__(line)
        self.code, self.answer = code, answer


def ask(
    arguments: Sequence[str],
    *,
    root: str | Path = ROOT,
    python: str | Path | None = None,
    module: str = "trainer",
    timeout: float = 300,
    started: Callable[[subprocess.Popen[Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Run ``python -m trainer ARGUMENTS --json`` and return its answer.

    :raises UserError: it could not be run, or (Refused) ended with an error.
    """
    command = [str(python or find_python(root)), "-m", module, *arguments]
    command += [] if "--json" in arguments else ["--json"]
    try:
        process: subprocess.Popen[Any] = subprocess.Popen(
            command, cwd=root, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, **apart(),
        )  # fmt: skip
    except OSError as error:
        line = f"trainer: {command[0]} does not run ({error.strerror}); run: python install.py trainer"
        raise UserError(line) from None
    started(process)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        process.communicate()
        raise UserError(f"trainer: no answer to '{arguments[0]}' within {timeout:g} s; try again") from None
    text, errors = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if process.returncode or not isinstance(answer, dict):
        line = _error_line(errors) or f"trainer: '{arguments[0]}' ended with code {process.returncode} and no message"
        raise Refused(line, process.returncode, answer if isinstance(answer, dict) else {})
    return answer


def gigabytes(amount: float) -> str:
    """An amount of memory in GB: two digits below 1 GB, where one would hide what matters, else one."""
    return f"{amount:.2f}" if amount < 1 else f"{amount:.1f}"


def _error_line(text: str) -> str:
    """The trainer's last ``error: ...``, whole, or else its last line."""
    _, *errors = re.split(r"(?m)^error: ", text)
    return (errors or text.strip().split("\n"))[-1].strip()


# ------------------------------------------------------------------------------------------------------------- start


@dataclass(frozen=True)
class Job:
    """A training that this process started."""

    run_dir: Path
    process: subprocess.Popen[Any] = field(repr=False, compare=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    def exit_code(self) -> int | None:
        """None while it runs. 0 done, 2 a user error, 1 a defect, 130 stopped after saving."""
        return self.process.poll()


def start(
    config: str | Path,
    run_dir: str | Path,
    *flags: str,
    resume: bool = False,
    queue: str | None = None,
    copy_to: str | Path | None = None,
    root: str | Path = ROOT,
    python: str | Path | None = None,
    module: str = "trainer",
) -> Job:
    """Start ``python -m trainer train CONFIG FLAGS`` beside the host; its output goes to ``log.txt``.

    ``run_dir`` must be the folder that the configuration names. With ``queue``, a device's name, it waits for the runs
    that were started so before it; once it is done, its adapter is copied into the folder ``copy_to`` (``turn.py``).
    UserError when a training runs there already.
    """
    run_dir = Path(run_dir).resolve()
    command = [module, "train", str(Path(config).resolve()), *flags, *["--resume"] * resume]
    if queue is not None or copy_to is not None:
        copy = ["--copy-to", str(Path(copy_to).resolve())] if copy_to is not None else []
        device = ["--device", queue] if queue is not None else []
        command = [TURN, str(run_dir), *device, *copy, "--", *command]
    command = [str(python or find_python(root)), "-m", *command]
    token = uuid.uuid4().hex
    try:
        (run_dir / "control").mkdir(parents=True, exist_ok=True)
        with _exclusive_start(run_dir), (run_dir / "log.txt").open("ab") as log:
            for request in REQUESTS:
                (run_dir / "control" / request).unlink(missing_ok=True)
            begin = log.tell()
            process = start_detached(command, log, cwd=root, env=environment(**{STARTED_AS: token}))
            started = {"v": 1, "job": token, **identity(process.pid), "log": begin, "command": command}
            # In place: the new process removes this file, and leftovers of atomic writes, as soon as it has the lock.
            (run_dir / "start.json").write_text(json.dumps(started), encoding="utf-8")
    except OSError as error:
        reason = ": ".join(str(part) for part in (error.strerror, error.filename) if part)
        raise UserError(
            f"{run_dir}: the training cannot be started there ({reason}); check the folder and the disk"
        ) from None
    return Job(run_dir, process)


@contextmanager
def _exclusive_start(run_dir: Path) -> Iterator[None]:
    """One start at a time, and none beside a training that runs or is about to."""
    with _starting, locked(run_dir / ".start.lock") as held:
        if not held:
            raise UserError(f"run '{run_dir.name}': it is being started right now; wait for it")
        now = status(run_dir)
        if now.live:
            raise UserError(f"run '{run_dir.name}': {_busy(now)}")
        yield


def _busy(now: Status) -> str:
    return f"it is already training (process {now.pid}); stop it first, or choose another run.name"


@contextmanager
def lock(run_dir: str | Path) -> Iterator[None]:
    """Held, before anything else, by the one process that trains into a run's folder; UserError when another does.

    It ends with the process, even a killed one. The run counts as running from here on. Leftovers of a killed writer
    are removed, and so are requests that nobody obeyed, unless a host started us and may have asked already.
    """
    run_dir = Path(run_dir)
    with locked(run_dir / ".lock") as held:
        if not held:
            raise UserError(f"run '{run_dir.name}': {_busy(status(run_dir))}")
        sweep(run_dir)
        write_status(run_dir, "running", message="starting")
        (run_dir / "start.json").unlink(missing_ok=True)
        if STARTED_AS not in os.environ:
            for request in REQUESTS:
                (run_dir / "control" / request).unlink(missing_ok=True)
        yield


# ------------------------------------------------------------------------------------------------------------- watch


@dataclass(frozen=True)
class Status:
    """The state of a run."""

    state: str = "new"
    """new (nothing ran here yet), queued, running, saving, done, stopped, failed."""
    step: int = 0
    total: int = 0
    eta: float | None = None
    """Seconds."""
    message: str = ""
    exit_code: int | None = None
    t: float = 0.0
    """When the run last wrote its status, in seconds since 1970."""
    pid: int = 0
    start: str | None = None
    host: str = ""
    job: str | None = None
    log: int = 0
    """The byte of ``log.txt`` at which its output begins."""
    live: bool = False
    """Whether there is a process that trains, or is about to."""


_DEFAULTS = {f.name: f.default for f in fields(Status) if f.name != "live"}


def status(run_dir: str | Path) -> Status:
    """The state of the run. A run whose process is gone is reported as failed; nothing is written."""
    run_dir = Path(run_dir)
    now = _read(run_dir / "status.json")
    if now.state in ("running", "saving") and _alive(now, run_dir / "status.json"):
        return replace(now, live=True)
    begun = _read(run_dir / "start.json")
    if begun.job and begun.job != now.job:
        if _alive(begun, run_dir / "start.json"):
            message = begun.message or "starting"
            return Status("queued", message=message, pid=begun.pid, start=begun.start, host=begun.host, live=True)
        line = _error_line(tail(run_dir, since=begun.log))
        return Status("failed", message=line or "it ended before it began", pid=begun.pid)
    if now.state in ("running", "saving"):
        return replace(now, state="failed", eta=None, message=_gone(run_dir, now))
    return now


def _read(path: Path) -> Status:
    """Read a status file; values of a wrong type count as missing."""
    values = {key: value for key, value in read_object(path).items() if key in _DEFAULTS}
    wanted = {key: (int, float) if key == "t" else type(_DEFAULTS[key]) for key in values}
    return Status(**{k: v for k, v in values.items() if _DEFAULTS[k] is None or isinstance(v, wanted[k])})


def _alive(now: Status, path: Path) -> bool:
    """Whether the process is there. Of another machine's, through a shared folder, the age of the file decides."""
    if now.host == host():
        return now.start is not None and start_time(now.pid) == now.start
    try:
        return abs(time.time() - path.stat().st_mtime) < ELSEWHERE_SECONDS
    except OSError:
        return False


def _gone(run_dir: Path, now: Status) -> str:
    last = (tail(run_dir, 1) or " ").strip()
    words = f" ({last.removeprefix('error: ')})" if last.startswith("error: ") else ""
    where = "" if now.host == host() else f" on {now.host}"
    why = f"the process is gone{where}: it crashed, was killed, or the machine went down{words}"
    return f"{why}; resume continues from the last saved state"


def events(run_dir: str | Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The run's new events and the offset for next time: see ``events.read_events``."""
    return read_events(Path(run_dir) / "events.jsonl", offset)


def tail(run_dir: str | Path, lines: int = 40, since: int = 0) -> str:
    """The end of ``log.txt``, from byte ``since`` at most; of a progress bar only its last state."""
    try:
        with (Path(run_dir) / "log.txt").open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")[-lines:])


@dataclass(frozen=True)
class Run:
    """A run's folder in a list."""

    name: str
    path: Path
    status: Status


def list_runs(runs_dir: str | Path) -> list[Run]:
    """The runs below a folder: those that train first, then by the time of their last status."""
    try:
        with os.scandir(runs_dir) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return []
    marks = ("status.json", "start.json", "config.toml")
    runs = [Run(p.name, p, status(p)) for p in folders if any((p / mark).exists() for mark in marks)]
    return sorted(runs, key=lambda run: (not run.status.live, -run.status.t, run.name))


@dataclass(frozen=True)
class Checkpoint:
    """An adapter file of a run."""

    path: Path
    step: int | None = None
    epoch: int | None = None
    """Both None: the final file."""


def checkpoints(run_dir: str | Path) -> list[Checkpoint]:
    """The run's whole adapter files, oldest first; the last is the newest."""
    run_dir = Path(run_dir)
    found: list[Checkpoint] = []
    for path in (run_dir / "checkpoints").glob(f"{_literal(run_dir.name)}-*.safetensors"):
        number = re.fullmatch(r"(?:step(\d{8})|(\d{6}))", path.stem.removeprefix(f"{run_dir.name}-"))
        if number:
            step, epoch = (int(n) if n else None for n in number.groups())
            found.append(Checkpoint(path, step, epoch))
    mixed = len({c.step is None for c in found}) == 2
    found.sort(key=lambda c: (c.path.stat().st_mtime if mixed else 0, c.epoch or 0, c.step or 0))
    final = run_dir / f"{run_dir.name}.safetensors"
    if final.is_file():
        # A finished run that was continued has a final file older than its new checkpoints.
        newest = bool(found) and final.stat().st_mtime < found[-1].path.stat().st_mtime
        found.insert(0 if newest else len(found), Checkpoint(final))
    return found


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


# ------------------------------------------------------------------------------------------------------------- steer


def request(run_dir: str | Path, what: Request) -> None:
    """Ask a running training to stop (saving first), save, or draw its previews. Raises UserError if none runs."""
    run_dir = Path(run_dir)
    if what not in REQUESTS:
        raise UserError(f"request: there is no '{what}'; there is: {', '.join(REQUESTS)}")
    if not status(run_dir).live:
        raise UserError(f"run '{run_dir.name}': nothing trains there, so it cannot {what}; start it first")
    (run_dir / "control").mkdir(exist_ok=True)
    (run_dir / "control" / what).touch()


def stop(run_dir: str | Path, timeout: float = 60) -> Status:
    """Ask it to save and stop, and wait at most ``timeout`` seconds; ``kill`` ends what is still ``live``."""
    with suppress(UserError):  # it ended by itself
        request(run_dir, "stop")
    return wait(run_dir, timeout)


def wait(run_dir: str | Path, timeout: float) -> Status:
    """Wait at most ``timeout`` seconds for the run's process to end."""
    until = time.monotonic() + timeout
    while (now := status(run_dir)).live and time.monotonic() < until:
        time.sleep(0.05)
    return now


def kill(run_dir: str | Path) -> Status:
    """End the run's process and its children at once; nothing is saved. Only ever the process that is the run's.

    The run is then stopped, not failed: somebody wanted it so.
    """
    run_dir, now = Path(run_dir), status(run_dir)
    if not (now.live and now.host == host()):
        return now
    kill_tree(now.pid)
    after = wait(run_dir, 5)
    if after.live or after.state != "failed":
        return after
    (run_dir / "start.json").unlink(missing_ok=True)
    lost = "ended by hand; what came after the last saved state is lost"
    write_status(run_dir, "stopped", step=after.step, total=after.total, message=lost)
    return status(run_dir)
