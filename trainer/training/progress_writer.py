"""Reports a run while it runs: to a person (bar, lines), to hosts (events, status) and to TensorBoard."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ..errors import UserError
from ..runs.control import DEFECT, INTERNAL_ERROR, INTERRUPTED, USER_ERROR
from ..runs.events import STARTED_AS, EventLog, State, write_status
from ..runs.files import make_folder

STATUS_SECONDS = 0.5
T = TypeVar("T")


class Board:
    """TensorBoard's curves, by its own writer of events: torch's, which makes the same file, imports its compiler too.

    :raises OSError: the disk is full or may not be written; an earlier event's error, since a thread writes.
    """

    def __init__(self, folder: Path, purge: int):
        """``purge``: the step from which on earlier curves of the folder are not shown."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        made: Any = event_pb2
        self._event = made.Event
        self._file = EventFileWriter(str(folder))
        self._file.add_event(made.Event(wall_time=time.time(), step=purge, file_version="brain.Event:2"))
        start = made.SessionLog(status=made.SessionLog.SessionStatus.Value("START"))
        self._file.add_event(made.Event(wall_time=time.time(), step=purge, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        summary = {"value": [{"tag": name, "simple_value": value}]}
        self._file.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()


class ProgressWriter:
    """Writes everything that a run reports. Writes nothing on all processes but the first."""

    def __init__(self, folder: Path, main: bool = True, board: Path | None = None):
        """``board``: where TensorBoard's curves go; unset, beside the run's events."""
        self.folder, self.main = folder, main
        self._board_folder = board or folder / "tensorboard"
        self._events = EventLog(folder / "events.jsonl") if main else None
        self._board: Any = None
        self._average: deque[float] = deque(maxlen=1)
        self._last_status = 0.0
        self._bar: tqdm[Any] | None = None
        self.at, self.total = 0, 0
        started_by_host = bool(os.environ.get(STARTED_AS))  # its log.txt is this process's output already
        self._lines = (folder / "log.txt").open("a", encoding="utf-8") if main and not started_by_host else None

    def __enter__(self) -> ProgressWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._events, self._lines, self._board):
            if file:
                with suppress(OSError):  # what a full disk did not take
                    file.close()

    def log(self, text: str) -> None:
        """A line for the person and the log."""
        if self.main:
            tqdm.write(text, file=sys.stderr)
        self._write_line(text)

    def _write_line(self, text: str) -> None:
        """To the log alone."""
        if self._lines:
            with suppress(OSError):  # a full disk is reported by whatever needs the space
                self._lines.write(text + "\n")
                self._lines.flush()

    def warning(self, text: str) -> None:
        self.log(f"warning: {text}")
        self.event("warning", self.at, message=text)

    def event(self, kind: str, step: int, **facts: Any) -> None:
        self.at = step
        if not self._events:
            return
        self._events.write(kind, step, **facts)
        if self._board and kind in ("step", "validation"):
            try:
                for name, value in _curves(kind, facts, self._average):
                    self._board.add_scalar(name, value, step)
            except OSError as error:
                self._board = None
                self.log(f"warning: no more curves for TensorBoard, they cannot be written ({error.strerror})")

    def status(self, state: State, *, message: str = "", eta: float | None = None, now: bool = False) -> None:
        """``status.json``, at most twice a second while running."""
        if not self.main or (state == "running" and not now and time.monotonic() - self._last_status < STATUS_SECONDS):
            return
        self._last_status = time.monotonic()
        write_status(self.folder, state, step=self.at, total=self.total, eta=eta, message=message)

    def start(self, step: int, total: int, report: dict[str, Any]) -> None:
        """The run begins to train."""
        self.at, self.total = step, total
        self._average = deque(maxlen=max(1, report["steps_per_epoch"]))
        if self.main:
            make_folder(self._board_folder, "run.log_dir")
            self._board = Board(self._board_folder, step + 1)
        self.event("start", step, total=total, data=report)
        self.status("running", message="training", now=True)

    def progress(self, items: Iterable[T], text: str, total: int | None = None) -> Iterable[T]:
        """Yields the items, with a bar; also shown in the status."""
        for done, item in enumerate(tqdm(items, desc=text, total=total, disable=not self.main, leave=False)):
            self.status("running", message=f"{text}: {done + 1}" + (f" of {total}" if total else ""))
            yield item

    def bar(self, total: int, start: int) -> tqdm[Any]:
        self._bar = tqdm(
            total=total, initial=start, disable=not self.main, dynamic_ncols=True, unit="step", smoothing=0.1
        )
        return self._bar

    def tick(self, facts: dict[str, Any]) -> None:
        """One step was taken."""
        assert self._bar is not None
        shown = {"loss": f"{facts['loss']:.4f}", **{k: f"{v:.3g}" for k, v in _headline(facts["terms"])}}
        self._bar.set_postfix({**shown, "lr": f"{facts['lr']:.2e}", "GB": f"{facts['gb']:.1f}"}, refresh=False)
        self._bar.update(1)
        self.status("running", message=f"loss {facts['loss']:.4f}", eta=facts["eta"])

    def held_out(
        self,
        step: int,
        means: Mapping[str, float],
        levels: Mapping[str, Mapping[str, float]],
        measures: Mapping[str, float],
    ) -> None:
        """A validation: the means over all levels, each level, and what was measured beside the loss."""
        beside = {"measures": measures} if measures else {}
        self.event("validation", step, loss=means["loss"], levels=levels, **beside)
        shown = {"loss": f"{means['loss']:.4f}", **{k: f"{v:.3g}" for k, v in _headline(means)}}
        shown |= {name.replace("_", " "): f"{value:.3f}" for name, value in measures.items()}
        self.log(f"held-out loss at step {step}: " + ", ".join(f"{name} {value}" for name, value in shown.items()))

    def rewind(self, step: int) -> None:
        """The run went back to a step."""
        self.at = step
        if self._bar is not None:
            self._bar.n = step
            self._bar.refresh()

    def end(self, state: State, step: int, message: str, code: int) -> None:
        self.at = step
        self.event("end", step, state=state, message=message, exit_code=code)
        if self.main:
            write_status(self.folder, state, step=step, total=self.total, eta=0, message=message, exit_code=code)
        self.log(message)

    def fail(self, error: BaseException) -> None:
        """The run ends with an error; whoever started it shows the message."""
        line = f"error: {error}"
        if isinstance(error, KeyboardInterrupt):
            state, code, message = "stopped", INTERRUPTED, "interrupted twice, so nothing more was saved"
        elif isinstance(error, UserError):
            state, code, message = "failed", USER_ERROR, str(error)
        else:
            state, code, message = "failed", INTERNAL_ERROR, f"{type(error).__name__}: {error}"
            line = f"{''.join(traceback.format_exception(error))}error: {DEFECT}"
        self._write_line(line if state == "failed" else message)
        self.event("end", self.at, state=state, message=message, exit_code=code)
        if self.main:
            write_status(self.folder, state, step=self.at, total=self.total, message=message, exit_code=code)


TAGS = {
    "loss": "loss/current", "rates/denoiser": "lr/unet", "rates/text_encoder": "lr/textencoder",
    "validation/loss": "loss/validation/step_average",
}  # fmt: skip
"""TensorBoard's names of what Kohya's tools draw too."""


def _curves(kind: str, facts: dict[str, Any], recent: deque[float]) -> Iterable[tuple[str, float]]:
    """What TensorBoard draws of a step or validation; ``recent``: the losses of the last epoch's steps."""
    prefix = "" if kind == "step" else "validation/"
    for name, value in _scalars({k: v for k, v in facts.items() if k not in ("eta", "seconds", "lr")}):
        yield TAGS.get(prefix + name, (prefix + name).replace("rates/", "lr/")), value
    if kind == "step":
        recent.append(facts["loss"])
        yield "loss/average", sum(recent) / len(recent)


def _scalars(facts: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


SHORT = {"accuracy": "acc", "margin": "margin", "saturated": "sat", "winner_change": "win", "loser_change": "lose"}
"""Metrics of preferences by their names on the bar. win, lose: the error over the reference's; win must not rise."""


def _headline(terms: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    """What belongs on the bar beside the loss."""
    compared = [name.partition("/")[0] for name in terms if name.endswith("/accuracy")]
    for name, value in terms.items():
        term, _, metric = name.partition("/")
        if (metric in SHORT and term == compared[0]) or metric == "accuracy":
            yield f"{term} {SHORT[metric]}", value
        elif metric == "error" and term != "mse" and not compared:
            yield term, value
