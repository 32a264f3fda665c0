"""Pictures drawn for comparing and choosing, in the run's own folder; the trainer draws them, beside the page."""

from __future__ import annotations

import hashlib
import json
import statistics
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.events import read_object
from ..trainer.runs.process import environment, start_detached
from . import words
from .store import ROOT, Home, locked, read_text, write, write_json

BASE = "base"
PICTURE = "step00000000_{:02d}.png"
MARK = "start.json"
"""Names a sheet's process as a run's folder does, so that ``control`` can watch and end it."""
LEAST_SECONDS = 0.05
"""Pictures that follow each other faster were copied, not drawn."""


@dataclass(frozen=True)
class Candidate:
    """An adapter at a strength, or the base model."""

    name: str
    """What people read: ``demo step 80 × 0.8``."""
    adapter: str | None
    strength: float = 1.0

    @property
    def id(self) -> str:
        """Of the file as it is now: another adapter in its place is another candidate."""
        if not self.adapter:
            return BASE
        return hashlib.sha256(f"{self.adapter}|{self.strength:g}|{_stamp(self.adapter)}".encode()).hexdigest()[:16]


def _stamp(path: str) -> tuple[int, int] | None:
    """A file's time of change and its bytes; None when it is not there."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True)
class Sheet:
    """Prompts by candidates, in a folder."""

    folder: Path
    prompts: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    @property
    def total(self) -> int:
        return len(self.prompts) * len(self.candidates)

    def drawn(self) -> dict[str, dict[int, Path]]:
        """Candidate -> prompt number -> picture, of what is there."""
        places = {
            one.id: {i: self.folder / one.id / PICTURE.format(i) for i in range(len(self.prompts))}
            for one in self.candidates
        }
        return {name: {i: path for i, path in row.items() if path.is_file()} for name, row in places.items()}

    def done(self) -> int:
        return sum(map(len, self.drawn().values()))


def sheet(run_dir: Path, prompts: Sequence[str], candidates: Sequence[Candidate]) -> Sheet:
    """The sheet of these prompts; the same prompts later find the same pictures."""
    key = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12]
    return Sheet(run_dir / "compare" / key, tuple(prompts), tuple(candidates))


def latest(run_dir: Path) -> Sheet | None:
    """The sheet that was asked for last."""
    raw = read_object(run_dir / "compare" / "latest.json")
    try:
        candidates = [Candidate(c["name"], c["adapter"], float(c["strength"])) for c in raw["candidates"]]
        return sheet(run_dir, [str(one) for one in raw["prompts"]], candidates)
    except (KeyError, TypeError, ValueError):
        return None


def remember(run_dir: Path, one: Sheet) -> None:
    rows = [{"name": c.name, "adapter": c.adapter, "strength": c.strength} for c in one.candidates]
    write_json(run_dir / "compare" / "latest.json", {"v": 1, "prompts": list(one.prompts), "candidates": rows})


def configured(run_dir: Path, prompts: Sequence[str]) -> str:
    """The run's configuration with other prompts."""
    try:
        document = tomlkit.parse(read_text(run_dir / "config.toml"))
    except (UserError, TOMLKitError):
        raise UserError(words.RUN_UNREADABLE.format(run_dir.name)) from None
    sample: Any = document.setdefault("sample", tomlkit.table())
    sample.pop("file", None)
    sample["prompts"] = list(prompts)
    return tomlkit.dumps(document)


def start(run_dir: Path, one: Sheet) -> None:
    """Draw what is missing, in a process of its own, which outlives the page. Asking twice does it once. UserError:
    something else works on this machine's GPU."""
    runs = run_dir.parent
    with locked(Home(runs).own / "drawing"):
        if busy(one):
            return
        need_gpu(runs)
        write(one.folder / "config.toml", configured(run_dir, one.prompts))
        cells = [
            {"adapter": c.adapter, "strength": c.strength, "folder": str(one.folder / c.id)} for c in one.candidates
        ]
        write(one.folder / "cells.json", json.dumps(cells))
        asked = ["draw", str(one.folder / "config.toml"), "--cells", str(one.folder / "cells.json"), "--json"]
        begin(one.folder, asked)


def need_gpu(runs: Path) -> None:
    """UserError where something else works on this machine's GPU."""
    training = next((run.name for run in control.list_runs(runs) if run.status.live), None)
    if training:
        raise UserError(words.GPU_TRAINS.format(training))
    if drawing(runs):
        raise UserError(words.GPU_DRAWS)
    if under_way(runs):
        raise UserError(words.GPU_STUDIES)


def begin(folder: Path, arguments: Sequence[str]) -> None:
    """Start a command of the trainer in a process of its own, which ``control`` watches and ends by the folder. Its
    output goes to ``log.txt`` there. UserError when it cannot be started."""
    command = [str(control.find_python()), "-m", "trainer", *arguments]
    log = folder / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    try:
        process = start_detached(command, log, cwd=ROOT, env=environment())
    except OSError as error:
        raise UserError(words.NO_TRAINER.format(command[0], error.strerror)) from None
    write_json(folder / MARK, {"v": 1, "job": uuid.uuid4().hex, **control.identity(process.pid), "log": before})


def seconds_each(run_dir: Path) -> float | None:
    """About how long one picture takes, by the times of the run's newest pictures: the median between one and the next
    of the same drawing. None where there are too few, or where they were copied."""
    folders: dict[str, list[float]] = {}
    for path in [*run_dir.glob("samples/step*_*.png"), *run_dir.glob("candidates/*/*/*.png")]:
        where = path.name.split("_")[0] if path.parent.name == "samples" else str(path.parent)
        folders.setdefault(where, []).append(path.stat().st_mtime)
    drawn = sorted((sorted(times) for times in folders.values() if len(times) > 1), key=max)
    gaps = [after - before for times in drawn[-3:] for before, after in pairwise(times)]
    each = statistics.median(gaps) if gaps else 0.0
    return each if each > LEAST_SECONDS else None


def busy(one: Sheet) -> bool:
    return control.status(one.folder).live


def drawing(runs: Path) -> list[Path]:
    """The folders of the sheets that are being drawn, whoever began it."""
    marks = [*runs.glob(f"*/compare/*/{MARK}"), *runs.glob(f"*/candidates/*/{MARK}")]
    return [mark.parent for mark in marks if control.status(mark.parent).live]


def under_way(runs: Path) -> list[Path]:
    """What works on the GPU beside the queue: sheets that are being drawn, and studies."""
    studies = [mark.parent for mark in runs.glob(f"studies/*/{MARK}")]
    return [*drawing(runs), *(one for one in studies if control.status(one).live)]


def stop(runs: Path) -> None:
    """End all drawing below a folder of runs; what is drawn stays. UserError: nothing is being drawn."""
    drawn = drawing(runs)
    if not drawn:
        raise UserError(words.NOTHING_DRAWN)
    for folder in drawn:
        control.kill(folder)
        (folder / MARK).unlink(missing_ok=True)


def progress(folder: Path) -> tuple[int, int]:
    """Pictures that are drawn in a sheet's folder, and that were asked for."""
    try:
        cells = json.loads(read_text(folder / "cells.json"))
        prompts = tomlkit.parse(read_text(folder / "config.toml")).unwrap()["sample"]["prompts"]
    except (UserError, TOMLKitError, ValueError, KeyError):
        return 0, 0
    return len([*folder.glob("*/*.png")]), len(cells) * len(prompts)


def ended(folder: Path) -> tuple[str, str]:
    """Why drawing ended early, as a line and its kind; empty when it did not."""
    now, (done, total) = control.status(folder), progress(folder)
    if done >= total:
        return "", "quiet"
    return (now.message, "bad") if now.state == "failed" else (words.STOPPED, "quiet")
