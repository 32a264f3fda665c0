"""Screen 4: the queue, the run that trains, its curves and previews. All of it is read from the run's folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from ..trainer.runs import control
from ..trainer.runs.check_report import clock
from . import draws, progress, queue, words
from .page import EVENT, RENDER, Context, Screen, bar, facts, folder_of, grid, kindly, note, notes, short

COLUMNS = 8
COLOURS = {"measured": "#9db4c8", "smoothed": "#3f86b8", "held out": "#c77d2e"}
TICK, REST = 3.0, 6.0
"""Seconds between looks at the runs, on this screen and on others; each is some tenths of one of the browser's work."""
SPIKES = 5
"""Losses that stood out, above the log; the newest."""
REPORTED = 25
"""Lines of the log that a defect is reported with."""


class Train:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.home, self.address = context.home, context.addresses
        self.seen, self.queue_mark = gr.State({}), gr.State("")
        with gr.Row(elem_classes="with-side"):
            with gr.Column(scale=4):
                self._run()
                self._curve()
                self.gallery = gr.HTML(elem_id="gallery")
            with gr.Column(scale=1, min_width=270, elem_classes="side"):
                gr.HTML(f"<h3>{words.QUEUE}</h3>")
                gr.render(inputs=[self.queue_mark], **RENDER)(self._jobs)
                self.runs = gr.HTML(elem_id="runs")
                with gr.Accordion(words.LOG, open=False):
                    self.logged = gr.HTML(elem_id="log")
        self.view = [self.run, self.what, self.smooth, self.log, self.seen]
        self.outputs = [
            self.run, self.state, self.pause, self.resume, self.sample, self.save, self.kill, self.what, self.plot,
            self.gallery, self.logged, self.runs, self.queue_mark, self.seen,
        ]  # fmt: skip
        self._wire()

    def _run(self) -> None:
        # What was chosen may be newer than the list that a tick has just filled: the name is checked where it is used.
        self.run = gr.Dropdown([], label=words.RUN, elem_id="run", allow_custom_value=True)
        self.state = gr.HTML(elem_id="run-state")
        with gr.Row(elem_classes="tight"):
            self.pause = gr.Button(words.PAUSE, elem_id="pause", size="sm")
            self.resume = gr.Button(words.RESUME, elem_id="resume", size="sm", variant="primary")
            self.sample = gr.Button(words.SAMPLE_NOW, elem_id="sample-now", size="sm")
            self.save = gr.Button(words.SAVE_NOW, elem_id="save-now", size="sm")
            self.kill = gr.Button(words.KILL, elem_id="kill", size="sm", variant="stop")

    def _curve(self) -> None:
        with gr.Row(elem_classes="align-end tight"):
            self.what = gr.Dropdown(["loss"], value="loss", label=words.CURVE, scale=2, elem_id="curve-of")
            self.smooth = gr.Slider(0, 0.98, value=0.9, step=0.02, label=words.SMOOTH, scale=2)
            self.log = gr.Checkbox(label=words.LOG_SCALE, scale=1, min_width=120)
        self.plot = gr.LinePlot(
            x="step", y="value", y_title=" ", color="line", color_title=" ", height=260, show_label=False,
            elem_id="curve", color_map=COLOURS, buttons=["export"],
        )  # fmt: skip
        gr.HTML(note(words.CURVE_NOTE))

    def _jobs(self, _mark: str) -> None:
        """The queue, with a button for each thing to do."""
        now = queue.read(self.home)
        waiting, running = now.of("waiting"), now.of("running")
        for one in running:
            gr.HTML(note(f"▶ {one.run}", "good"))
        for one in waiting:
            with gr.Row(elem_classes="queue-row"):
                gr.HTML(note(one.run + (words.RESUMES if one.resume else "")))
                for sign, name, act in (
                    ("↑", "earlier", functools.partial(queue.move, self.home, one.id, -1)),
                    ("↓", "later", functools.partial(queue.move, self.home, one.id, 1)),
                    ("✕", "remove", functools.partial(queue.remove, self.home, one.id)),
                ):
                    button = gr.Button(sign, size="sm", min_width=34, scale=0, elem_id=f"{name}-{one.run}")
                    button.click(functools.partial(self._then_mark, act), None, [self.queue_mark], **EVENT)
        if waiting and not running and draws.under_way(self.home.runs):
            gr.HTML(note(words.AFTER_DRAWING))
        unbegun = [one for one in now.of("failed") if not Path(one.folder, "status.json").exists()]
        for one in unbegun[-3:]:
            gr.HTML(note(f"{one.run}: {one.message}", "bad"))
        if not waiting and not running:
            gr.HTML(note(words.QUEUE_EMPTY))
        pause = gr.Button(words.RESUME_QUEUE if now.paused else words.PAUSE_QUEUE, size="sm", elem_id="pause-queue")
        act = functools.partial(queue.pause, self.home, not now.paused)
        pause.click(functools.partial(self._then_mark, act), None, [self.queue_mark], **EVENT)

    def _wire(self) -> None:
        after: dict[str, Any] = {"fn": self.show, "inputs": self.view, "outputs": self.outputs, **EVENT}
        for button, request in ((self.pause, "stop"), (self.sample, "sample"), (self.save, "save")):
            button.click(functools.partial(self.ask, request), [self.run], None, **EVENT).then(**after)
        self.resume.click(self.resume_run, [self.run], None, **EVENT).then(**after)
        self.kill.click(self.end, [self.run], None, js=_confirm(words.KILL_QUESTION), **EVENT).then(**after)
        self.smooth.release(**after)
        for changed in (self.run.input, self.what.input, self.log.input):
            self.redraw(changed(**after))

    def redraw(self, event: Any) -> None:
        """After an event: a plot keeps the colours, lines and margins that it was drawn with."""
        for shown in (False, True):
            event = event.then(lambda shown=shown: gr.update(visible=shown), None, [self.plot], **EVENT)

    def show(
        self, chosen: str | None, of: str, weight: float, logarithmic: bool, before: dict[str, Any] | None
    ) -> list[Any]:
        """Everything that has changed since ``before``, which says what the page shows."""
        known = control.list_runs(self.home.runs)
        current = next((one for one in known if one.name == chosen), known[0] if known else None)
        now: dict[str, Any] = {"runs": [(one.name, one.status.state, one.status.step) for one in known]}
        now |= {"run": current and current.name, "queue": _mark(self.home)}
        parts = _nothing(now) if current is None else self._parts(current, known, now, of, weight, logarithmic)
        changed = [gr.skip() if (before or {}).get(key, ...) == now[key] else value for key, value in parts]
        return [*changed, now]

    def _parts(
        self,
        current: control.Run,
        known: list[control.Run],
        now: dict[str, Any],
        of: str,
        weight: float,
        logarithmic: bool,
    ) -> list[tuple[str, Any]]:
        """(what it depends on, the value) for each output; what it depends on is put into ``now``."""
        history = progress.history(current.path)
        status, pictures = current.status, progress.pictures(current.path)
        drawable = progress.names(history)
        of = of if of in drawable else "loss"
        log = control.tail(current.path, 60)
        now |= {
            "choice": [now["runs"], current.name], "state": [current.name, repr(status), len(history.warnings)],
            "names": [current.name, drawable], "curve": [current.name, history.offset, of, weight, logarithmic],
            "gallery": [current.name, repr(pictures), repr(history.prompts)], "log": [log, len(history.spikes)],
        }  # fmt: skip
        choices = [(_title(one), one.name) for one in known]
        return [
            ("choice", gr.update(choices=choices, value=current.name)), ("state", standing(current, history)),
            *_buttons(status), ("names", gr.update(choices=drawable, value=of)),
            ("curve", _frame(history, of, weight, logarithmic)),
            ("gallery", _gallery(pictures, history, self.address)), ("log", _log(history, log)),
            ("runs", _list(known)), ("queue", now["queue"]),
        ]  # fmt: skip

    @kindly
    def ask(self, what_for: Any, name: str) -> None:
        control.request(folder_of(self.home, name), what_for)

    @kindly
    def resume_run(self, name: str) -> None:
        queue.add_resume(self.home, folder_of(self.home, name))
        queue.ensure(self.home)

    @kindly
    def end(self, name: str) -> None:
        control.kill(folder_of(self.home, name))

    def _then_mark(self, act: Callable[[], None]) -> str:
        act()
        queue.ensure(self.home)
        return _mark(self.home)


def build(context: Context) -> Screen:
    screen = Train(context)
    return Screen(screen.show, screen.outputs, screen.view, {"run": screen.run, "redraw": screen.redraw})


def _nothing(now: dict[str, Any]) -> list[tuple[str, Any]]:
    """The screen before the first run."""
    now["state"] = None
    blank = [("state", ""), ("state", ""), ("state", "")]
    return [
        ("state", gr.update(choices=[], value=None)), ("state", note(words.NO_RUNS)), *_buttons(None),
        ("state", gr.skip()), ("state", None), *blank, ("queue", now["queue"]),
    ]  # fmt: skip


def headline(context: Context) -> str:
    """One line on top of the page, wherever the person is."""
    live = next((one for one in control.list_runs(context.home.runs) if one.status.live), None)
    waiting = len(queue.read(context.home).of("waiting"))
    queue.ensure(context.home)
    more = f" · {words.WAITING.format(waiting)}" if waiting else ""
    if live is None:
        return f'<p class="headline">{more.strip(" ·")}</p>'
    status = live.status
    part = f"{status.step} / {status.total}" if status.total else words.STATES.get(status.state, status.state)
    eta = f" · {words.LEFT_OVER.format(clock(status.eta))}" if status.eta else ""
    return f'<p class="headline live">{escape(f"{live.name}: {part}{eta}{more}")}</p>'


def _confirm(question: str) -> str:
    return f"(name) => {{ if (!window.confirm({question!r})) throw new Error('kept'); return name; }}"


def _mark(home: Any) -> str:
    now = queue.read(home)
    after_drawing = bool(now.of("waiting") and draws.under_way(home.runs))
    return str((now.paused, [(one.id, one.state) for one in now.jobs], after_drawing))


def _buttons(status: control.Status | None) -> list[tuple[str, Any]]:
    live = bool(status and status.live)
    again = bool(status and not live and status.state in ("stopped", "failed"))
    return [("state", gr.update(visible=live)), ("state", gr.update(visible=again))] + [
        ("state", gr.update(visible=live)) for _ in range(3)
    ]


def _title(run: control.Run) -> str:
    status = run.status
    return f"{run.name} · {words.STATES.get(status.state, status.state)}"


def _list(known: list[control.Run]) -> str:
    rows = "".join(
        f'<li class="{escape(one.status.state)}"><span>{escape(one.name)}</span>'
        f"<small>{words.STATES.get(one.status.state, '')}</small></li>"
        for one in known[:12]
    )
    more = note(words.MORE_RUNS.format(len(known) - 12)) if len(known) > 12 else ""
    return f'<h3>{words.RUNS}</h3><ul class="runs">{rows}</ul>{more}' if rows else ""


def standing(run: control.Run, history: progress.History) -> str:
    """How the run stands: its bar, what went wrong, its numbers."""
    status = run.status
    last = next(reversed(history.steps.values()), {})
    speed = progress.speed(history)
    pace = "" if not speed else f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"
    words_of_it = words.STATES.get(status.state, status.state)
    line = f"{words_of_it} · {words.STEP_OF.format(status.step, status.total)}" if status.total else words_of_it
    out = bar(status.step / status.total if status.total else 0, line)
    if status.state == "failed":
        out += note(status.message, "bad")
        hint = next((help_ for sign, help_ in words.REMEDIES if sign.lower() in status.message.lower()), "")
        ours = status.exit_code == control.INTERNAL_ERROR or control.DEFECT in status.message
        out += note(hint, "warn") if hint or not ours else _to_report(control.tail(run.path, REPORTED))
    elif status.message:
        out += note(status.message)
    rows = [
        (words.TIME_LEFT, clock(status.eta) if status.live else ""),
        (words.SPEED, pace if status.live else ""),
        (words.EPOCH, f"{last['epoch']:.2f}" if isinstance(last.get("epoch"), float) else last.get("epoch")),
        (words.LOSS, f"{last['loss']:.4g}" if isinstance(last.get("loss"), (int, float)) else ""),
        (words.RATE, f"{last['lr']:.2e}" if isinstance(last.get("lr"), (int, float)) else ""),
        (words.MEMORY, f"{last['gb']:.1f} GB" if isinstance(last.get("gb"), (int, float)) else ""),
        (words.ENDED, time.strftime("%Y-%m-%d %H:%M", time.localtime(status.t)) if not status.live else ""),
    ]  # fmt: skip
    warned = history.warnings[-3:]
    return out + facts(rows) + "".join(note(one, "warn") for one in warned)


def _to_report(log: str) -> str:
    return note(words.DEFECT, "warn") + f'<pre tabindex="0">{escape(log)}</pre>'


def _log(history: progress.History, log: str) -> str:
    return notes(history.spikes[-SPIKES:]) + f'<pre tabindex="0">{escape(log)}</pre>'


def _frame(history: progress.History, of: str, weight: float, logarithmic: bool) -> Any:
    points = progress.curve(history, of, weight, logarithmic)
    return pd.DataFrame(points, columns=["step", "value", "line"]) if points else None


def _gallery(pictures: dict[int, dict[int, Path]], history: progress.History, address: Any) -> str:
    if not pictures:
        return note(words.NO_PREVIEWS)
    steps = progress.columns(sorted(pictures), COLUMNS)
    rows = sorted({row for one in pictures.values() for row in one})
    body = ""
    for row in rows:
        prompt = history.prompts.get(row, words.PROMPT.format(row + 1))
        seed = f" <small>{escape(words.SEED.format(history.seeds[row]))}</small>" if row in history.seeds else ""
        cells = "".join(
            _picture(pictures.get(step, {}).get(row), words.PROMPT_STEP.format(prompt, step), address) for step in steps
        )
        body += f'<tr><th title="{escape(prompt)}">{escape(short(prompt, 48))}{seed}</th>{cells}</tr>'
    return f"<h3>{words.PREVIEWS}</h3>{grid(list(map(str, steps)), body)}"


def _picture(path: Path | None, title: str, address: Any) -> str:
    if path is None:
        return "<td></td>"
    return (
        f'<td><a href="{address.url(path)}" target="_blank" title="{escape(title)}"><img loading="lazy" '
        f'alt="{escape(title)}" src="{address.url(path, 256)}"></a></td>'
    )
