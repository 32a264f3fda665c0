"""Screen 3: the queue, the run that trains, its curves and previews. All of it is read from the run's folder."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from PIL import Image

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.check_report import clock
from ..trainer.runs.process import start_detached
from . import draft, draws, duels, hosts, progress, queue, runs, words
from .look import HERE
from .page import (
    EVENT,
    RENDER,
    Context,
    Screen,
    bar,
    changing,
    facts,
    folder_of,
    grid,
    in_place,
    kindly,
    lora_hosts,
    note,
    notes,
    plain_message,
    short,
    success,
)
from .store import read_text

COLUMNS = 8
COLOURS = {
    "measured": "#9db4c8", "smoothed": "#3f86b8", "held out": "#c77d2e", "prior": "#8a94a0", "floor": "#3a9a5c",
}  # fmt: skip
TICK, REST = 3.0, 6.0
"""Seconds between looks at the runs on this screen, and those of the line on top; each is work for the browser."""
SPIKES = 5
"""Losses that stood out, above the log; the newest."""
REPORTED = 25
"""Lines of the log that a defect is reported with."""


def of_shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """For what is done with a run: the method of the screen takes the list's value and then what the page shows
    (``Train.seen``). Where the list has no value the run that the page shows is meant."""

    @functools.wraps(function)
    def inner(self: Train, name: str | None, seen: dict[str, Any] | None = None, *more: Any, **also: Any) -> Any:
        return function(self, name or (seen or {}).get("run"), *more, **also)

    del inner.__wrapped__  # gradio counts the inputs, and has one more for it
    return inner


class Train:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.seen, self.queue_mark = gr.State({}), gr.State("")
        with gr.Row(elem_classes="with-side"):
            with gr.Column(scale=1, min_width=250, elem_classes="side"):
                self._list()
            with gr.Column(scale=4):
                self._run()
                self._finished()
                with gr.Row():
                    self._previews()
                    with gr.Column(scale=2, min_width=320, visible=False, elem_id="measured") as self.measured:
                        self._curve()
                self.gallery = gr.HTML(elem_id="gallery", js_on_load=(HERE / "previews.js").read_text(encoding="utf-8"))
                with gr.Accordion(words.LOG, open=False):
                    self.logged = gr.HTML(elem_id="log")
        self.chosen = [self.run, self.seen]
        self.view = [self.run, self.what, self.smooth, self.log, self.seen, self.prompt, self.at]
        self.outputs = [
            self.run, self.state, self.pause, self.resume, self.sample, self.save, self.kill, self.resume_queue,
            self.again, self.refused, self.finished, self.result, self.given, self.where, self.give, self.elsewhere,
            self.managed, self.numbers, self.what, self.measured, self.plot, self.previews, self.prompt, self.at,
            self.slider, self.gallery, self.logged, self.queue_mark, self.seen,
        ]  # fmt: skip
        self._wire()

    def _list(self) -> None:
        gr.HTML(f"<h2>{words.RUNS}</h2>")
        self.run = changing(gr.Radio([], show_label=False, label=words.RUNS, elem_id="run", elem_classes="tiles list"))
        gr.render(inputs=[self.queue_mark], **RENDER)(self._jobs)
        with gr.Accordion(words.MANAGE, open=False, visible=False, elem_id="manage-run") as self.managed:
            self.new_name = gr.Textbox("", label=words.NEW_NAME, elem_id="new-name")
            with gr.Row(elem_classes="tight"):
                self.rename = gr.Button(words.RENAME_RUN, size="sm", elem_id="rename-run", min_width=80)
                self.delete = gr.Button(words.DELETE_RUN, size="sm", variant="stop", elem_id="delete-run", min_width=80)
            self.not_managed = gr.HTML(elem_id="manage-error")

    def _run(self) -> None:
        self.state = gr.HTML(elem_id="run-state")
        small: dict[str, Any] = {"size": "sm", "visible": False}  # until it is known what can be done with which run
        with gr.Row(elem_classes="tight"):
            self.pause = gr.Button(words.PAUSE, elem_id="pause", **small)
            self.resume = gr.Button(words.RESUME, elem_id="resume", variant="primary", **small)
            self.resume_queue = gr.Button(words.RESUME_QUEUE, elem_id="resume-queue", variant="primary", **small)
            self.sample = gr.Button(words.SAMPLE_NOW, elem_id="sample-now", **small)
            self.save = gr.Button(words.SAVE_NOW, elem_id="save-now", **small)
            self.kill = gr.Button(words.KILL, elem_id="kill", variant="stop", **small)
            self.again = gr.Button(words.TRAIN_AGAIN, elem_id="train-again", scale=0, min_width=180, **small)
        self.refused = gr.HTML(elem_id="run-error")

    def _finished(self) -> None:
        """The file of a run that is done, and where it goes."""
        with gr.Column(visible=False, elem_classes="card tight", elem_id="finished") as self.finished:
            with gr.Row(elem_classes="align-end tight"):
                self.result = gr.HTML(elem_id="result")
                self.open_folder = gr.Button(
                    words.OPEN_FOLDER, elem_id="open-result", size="sm", scale=0, min_width=110,
                    visible=self.context.folders.roots is None and file_manager() is not None,
                )  # fmt: skip
                self.where = changing(
                    gr.Dropdown([], label=words.USE_WHERE, elem_id="finished-where", scale=1, min_width=200)
                )
                self.give = gr.Button(words.COPY_THERE, elem_id="finished-copy", size="sm", scale=0, min_width=110)
            self.elsewhere = gr.Accordion(words.COPY_ELSEWHERE, open=False, elem_id="finished-elsewhere")
            with self.elsewhere, gr.Row(elem_classes="align-end tight"):
                self.host = gr.Textbox(
                    "", label=words.OTHER_HOST, placeholder=words.HOST_PLACEHOLDER, max_lines=1, scale=4,
                    elem_id="finished-host",
                )  # fmt: skip
                self.add_host = gr.Button(words.ADD_HOST, size="sm", scale=0, min_width=170, elem_id="finished-add")
            self.given = gr.HTML(elem_id="finished-line")

    def _previews(self) -> None:
        with gr.Column(visible=False, scale=3, min_width=320) as self.previews:
            with gr.Row(elem_classes="align-end tight"):
                self.prompt = changing(gr.Dropdown([], label=words.PREVIEW_OF, elem_id="preview-prompt", scale=3))
                self.at = gr.Slider(
                    0, 1, value=1, step=1, label=words.AT_PREVIEW, elem_id="preview-at", scale=2, buttons=[]
                )
            self.slider = gr.ImageSlider(
                show_label=False, label=words.BEFORE_AFTER, interactive=False, max_height=2000,
                format="png", elem_id="before-after", elem_classes="two", buttons=["fullscreen"],
            )  # fmt: skip

    def _curve(self) -> None:
        with gr.Row(elem_classes="align-end tight"):
            self.what = changing(gr.Dropdown([], label=words.CURVE, scale=2, min_width=140, elem_id="curve-of"))
            self.smooth = gr.Slider(
                0, 0.98, value=0.9, step=0.02, label=words.SMOOTH, scale=2, min_width=180, buttons=[]
            )
        self.log = gr.Checkbox(label=words.LOG_SCALE)
        self.plot = gr.LinePlot(
            x="step", y="value", x_title=words.AXIS, y_title=" ", color="line", color_title=" ", height=240,
            show_label=False, elem_id="curve", color_map={words.LINES[line]: one for line, one in COLOURS.items()},
            buttons=["export"], value=_frame(progress.History(), "loss", 0, False),
        )  # fmt: skip
        gr.HTML(note(words.CURVE_NOTE))
        self.numbers = gr.HTML(elem_id="run-numbers")

    def _jobs(self, _mark: str) -> None:
        """The queue, with a button for each thing to do."""
        now = queue.read(self.home)
        waiting, running = now.of("waiting"), now.of("running")
        if waiting or running or now.paused:
            gr.HTML(f"<h3>{words.QUEUE}</h3>")
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
        if waiting or running or now.paused:
            pause = gr.Button(words.RESUME_QUEUE if now.paused else words.PAUSE_QUEUE, size="sm", elem_id="pause-queue")
            act = functools.partial(queue.pause, self.home, not now.paused)
            pause.click(functools.partial(self._then_mark, act), None, [self.queue_mark], **EVENT)

    def _wire(self) -> None:
        after: dict[str, Any] = {"fn": self.show, "inputs": self.view, "outputs": self.outputs, **EVENT}
        line = [self.refused]
        for button, request in ((self.pause, "stop"), (self.sample, "sample"), (self.save, "save")):
            asked = in_place(functools.partial(self.ask, what_for=request), line)
            button.click(asked, self.chosen, line, **EVENT).then(**after)
        self.resume.click(in_place(self.resume_run, line), self.chosen, line, **EVENT).then(**after)
        self.resume_queue.click(in_place(self.go, line), None, line, **EVENT).then(**after)
        question = _confirm(words.KILL_QUESTION)
        self.kill.click(in_place(self.end, line), self.chosen, line, js=question, **EVENT).then(**after)
        given = [self.given]
        self.give.click(in_place(self.copy_to, given), [*self.chosen, self.where], given, **EVENT)
        known = [self.given, self.host]
        for added in (self.add_host.click, self.host.submit):
            added(in_place(self.remember_host, known, at=0), [self.host], known, **EVENT).success(**after)
        self.open_folder.click(in_place(self.show_folder, given), self.chosen, given, **EVENT)
        named = [self.run, self.new_name, self.not_managed]
        self.rename.click(in_place(self.rename_run, named), [*self.chosen, self.new_name], named, **EVENT).then(**after)
        question, gone = _confirm(words.DELETE_QUESTION), [self.run, self.not_managed]
        self.delete.click(in_place(self.delete_run, gone), self.chosen, gone, js=question, **EVENT).then(**after)
        self.smooth.release(**after)
        for changed in (self.prompt.input, self.at.input):  # by mouse and by keys
            scrub = {**EVENT, "trigger_mode": "always_last"}
            changed(self.picture, [*self.chosen, self.prompt, self.at], [self.slider, self.at], **scrub)
        for changed in (self.run.input, self.what.input, self.log.input):
            self.redraw(changed(**after))

    def redraw(self, event: Any) -> None:
        """After an event: a plot keeps the colours, lines and margins that it was drawn with."""
        for shown in (False, True):
            event = event.then(lambda shown=shown: gr.update(visible=shown), None, [self.plot], **EVENT)

    def show(
        self, chosen: str | None, of: str, weight: float, logarithmic: bool, before: dict[str, Any] | None,
        prompt: int | None = None, at: int | None = None,
    ) -> list[Any]:  # fmt: skip
        """Everything that has changed since ``before``, which says what the page shows."""
        waiting = queue.read(self.home)
        known = self._known(waiting)
        wanted = chosen or (before or {}).get("run")
        current = next((one for one in known if one.name == wanted), known[0] if known else None)
        now: dict[str, Any] = {"runs": [(one.name, one.status.state, _part(one.status)) for one in known]}
        now |= {"run": current and current.name, "queue": _mark(self.home)}
        if current is None:
            parts = _nothing(now)
        else:
            place = queue.place(waiting, current.path)
            parts = self._parts(
                current, known, now, of, weight, logarithmic, place, (before or {}).get("steps"), prompt, at
            )
        changed = [gr.skip() if (before or {}).get(key, ...) == now[key] else value for key, value in parts]
        return [*changed, now]

    def _known(self, waiting: queue.Queue) -> list[control.Run]:
        """The runs, and before them what waits and has no folder yet."""
        runs = control.list_runs(self.home.runs)
        names = {one.name for one in runs}
        unbegun = [
            control.Run(one.run, Path(one.folder), control.Status("waiting"))
            for one in waiting.of("waiting")
            if one.run not in names
        ]
        return [*(one for one in runs if one.status.live), *unbegun, *(one for one in runs if not one.status.live)]

    def _parts(
        self, current: control.Run, known: list[control.Run], now: dict[str, Any], of: str, weight: float,
        logarithmic: bool, place: queue.Place | None, steps_before: Any, prompt: int | None, at: int | None,
    ) -> list[tuple[str, Any]]:  # fmt: skip
        """(what it depends on, the value) for each output; what it depends on is put into ``now``."""
        history = progress.history(current.path)
        status, pictures = current.status, progress.pictures(current.path)
        drawable = progress.names(history)
        of = of if of in drawable else drawable[0]
        log = control.tail(current.path, 60)
        steps, rows = sorted(pictures), sorted({row for one in pictures.values() for row in one})
        row = prompt if prompt in rows else rows[0] if rows else None
        follows = at is None or steps_before is None or at >= len(steps_before) - 1
        index = max(0, len(steps) - 1 if follows else min(at or 0, len(steps) - 1))
        moved: dict[str, Any] = (
            {"value": index} if index != at else {}
        )  # else the page's own value stays, which may be newer
        doing = _doing(status, log)
        now |= {
            "of": current.name, "choice": [now["runs"], current.name], "steps": steps,
            "state": [current.name, repr(status), len(history.warnings), repr(place), doing],
            "names": [current.name, drawable], "measured": bool(history.steps or history.measures),
            "curve": [current.name, history.offset, of, weight, logarithmic],
            "gallery": [current.name, repr(pictures), repr(history.prompts)], "log": [log, len(history.spikes)],
        }  # fmt: skip
        choices = [(_title(one, queue.place(queue.read(self.home), one.path)), one.name) for one in known]
        result = _result(current, self.address) if status.state == "done" else ""
        places = [(f"{one.name}: {one.loras}", str(one.root)) for one in lora_hosts(self.home)]
        now["hosts"] = places
        prompts = [(short(history.prompts.get(one, words.PROMPT.format(one + 1)), 80), one) for one in rows]
        named = [((words.MEASURES | words.CURVES).get(one, one), one) for one in drawable]
        return [
            ("choice", gr.update(choices=choices, value=current.name)),
            ("state", standing(current, history, place, doing)), *_buttons(current, place),
            ("of", ""), ("state", gr.update(visible=bool(result))), ("state", result), ("of", ""),
            ("hosts", gr.update(choices=places, value=places[0][1] if places else None, visible=bool(places))),
            ("hosts", gr.update(visible=bool(places))), ("hosts", gr.update(visible=not places)),
            ("state", gr.update(visible=not status.live and place is None)), ("state", numbers(status, history)),
            ("names", gr.update(choices=named, value=of)),
            ("measured", gr.update(visible=now["measured"])),
            ("curve", _frame(history, of, weight, logarithmic)),
            ("gallery", gr.update(visible=bool(rows))), ("gallery", gr.update(choices=prompts, value=row)),
            ("gallery", gr.update(maximum=max(1, len(steps) - 1), info=_steps_shown(steps, index), **moved)),
            ("gallery", _two(pictures, row, index)),
            ("gallery", _gallery(pictures, history, self.address)), ("log", _log(history, log)),
            ("queue", now["queue"]),
        ]  # fmt: skip

    @kindly
    @of_shown
    def picture(self, name: str, prompt: int | None, at: int) -> tuple[Any, Any]:
        """Before, and at the chosen step; and which step that is."""
        pictures = progress.pictures(folder_of(self.home, name))
        return _two(pictures, prompt, at), gr.update(info=_steps_shown(sorted(pictures), int(at)))

    @kindly
    @of_shown
    def ask(self, name: str | None, *, what_for: Any) -> None:
        control.request(folder_of(self.home, name), what_for)

    @kindly
    @of_shown
    def resume_run(self, name: str) -> None:
        queue.add_resume(self.home, folder_of(self.home, name))
        queue.ensure(self.home)

    @kindly
    def go(self) -> None:
        queue.pause(self.home, False)
        queue.ensure(self.home)

    @kindly
    @of_shown
    def end(self, name: str) -> None:
        control.kill(folder_of(self.home, name))

    @kindly
    @of_shown
    def copy_to(self, name: str, target: str | None) -> str:
        found = next((one for one in lora_hosts(self.home) if str(one.root) == target), None)
        newest = control.checkpoints(folder_of(self.home, name))
        if found is None or not newest:
            raise UserError(words.NO_HOST)
        return success(words.COPIED.format(hosts.give(newest[-1].path, found)))

    def remember_host(self, folder: str) -> list[str]:
        """A folder of a program to copy to; what is wrong with it stands below the field."""
        hosts.add(self.home, self.context.folders.check(words.WHERE_FOLDER, folder))
        return ["", ""]

    @kindly
    @of_shown
    def show_folder(self, name: str) -> None:
        """The result's folder in this machine's file manager; only for who sits at it."""
        if self.context.folders.roots is not None:
            raise UserError(words.NOT_HERE)
        open_in_files(folder_of(self.home, name))

    @kindly
    @of_shown
    def rename_run(self, name: str, new: str) -> list[Any]:
        made = runs.rename(self.home, folder_of(self.home, name), new.strip())
        return [gr.update(choices=[made.name], value=made.name), "", success(words.RENAMED.format(name, made.name))]

    @kindly
    @of_shown
    def delete_run(self, name: str) -> list[Any]:
        folder = folder_of(self.home, name)
        pairs = duels.recorded_place(self.home, folder)
        line = words.IN_BIN.format(runs.to_bin(self.home, folder))
        return [gr.update(value=None), success(line + (words.PAIRS_STAY.format(pairs) if pairs else ""))]

    @kindly
    @of_shown
    def use_recipe(self, name: str) -> None:
        """The run's configuration as the recipe, under a name of its own."""
        folder = folder_of(self.home, name)
        tables = draft.values_of(read_text(folder / "config.toml"))
        tables["run"] = {**tables.get("run", {}), "name": queue.free_name(self.home, name)}
        tables["run"].pop("out", None)
        draft.start_over(self.home, draft.dumps(tables), words.RECIPE_OF.format(name))

    def _then_mark(self, act: Callable[[], None]) -> str:
        act()
        queue.ensure(self.home)
        return _mark(self.home)


def build(context: Context) -> Screen:
    screen = Train(context)
    parts = {
        "run": screen.run, "redraw": screen.redraw, "again": screen.again, "use_recipe": screen.use_recipe,
        "chosen": screen.chosen,
    }  # fmt: skip
    return Screen(screen.show, screen.outputs, screen.view, parts)


def open_in_files(folder: Path) -> None:
    """UserError where this machine shows no folders."""
    program = file_manager()
    if program is None:
        raise UserError(words.NO_FILE_MANAGER.format(folder))
    start_detached([program, str(folder)], None, cwd=folder, env=os.environ)


def file_manager() -> str | None:
    """The program that shows a folder; None where there is none, as on a server without a screen."""
    program = {"win32": "explorer", "darwin": "open"}.get(sys.platform, "xdg-open")
    seen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return program if seen and shutil.which(program) else None


def _nothing(now: dict[str, Any]) -> list[tuple[str, Any]]:
    """The screen before the first run."""
    now["state"] = now["of"] = None
    hidden, same = ("state", gr.update(visible=False)), ("state", gr.skip())
    return [
        ("state", gr.update(choices=[], value=None)), ("state", note(words.NO_RUNS)), *_buttons(None, None), ("of", ""),
        hidden, ("state", ""), ("of", ""), same, same, same, hidden, ("state", ""), same,
        hidden, ("state", _frame(progress.History(), "loss", 0, False)), hidden, same, same,
        ("state", None), ("state", ""), ("state", ""), ("queue", now["queue"]),
    ]  # fmt: skip


def headline(context: Context) -> str:
    """One line on top of the page, wherever the person is; the browser's title says the same shorter."""
    live = next((one for one in control.list_runs(context.home.runs) if one.status.live), None)
    waiting = len(queue.read(context.home).of("waiting"))
    queue.ensure(context.home)
    more = f" · {words.WAITING.format(waiting)}" if waiting else ""
    if live is None:
        return f'<p class="headline" data-title="">{more.strip(" ·")}</p>'
    status = live.status
    part = f"{status.step} / {status.total}" if status.step else ""
    part = part or _doing(status, "")[0] or words.STATES.get(status.state, status.state)
    eta = f" · {words.LEFT_OVER.format(clock(status.eta))}" if status.eta else ""
    title = f"{_part(status)} % · {live.name}" if status.total else live.name
    line = escape(f"{live.name}: {part}{eta}{more}")
    return f'<p class="headline live" data-title="{escape(title)}" data-run="{escape(live.name)}">{line}</p>'


def _part(status: control.Status) -> int:
    return round(100 * status.step / status.total) if status.total else 0


def _confirm(question: str) -> str:
    """For an event's ``js``: all of its inputs are handed on."""
    return f"(...given) => {{ if (!window.confirm({question!r})) throw new Error('kept'); return given; }}"


def _mark(home: Any) -> str:
    now = queue.read(home)
    after_drawing = bool(now.of("waiting") and draws.under_way(home.runs))
    return str((now.paused, [(one.id, one.state) for one in now.jobs], after_drawing))


def _buttons(run: control.Run | None, place: queue.Place | None) -> list[tuple[str, Any]]:
    """Which of the buttons in a row above the previews can do something."""
    status = run.status if run else None
    live = bool(status and status.live)
    again = bool(status and not live and place is None and status.state in ("stopped", "failed") and status.step)
    held = bool(place and place.paused)
    kept = bool(run and (run.path / "config.toml").is_file())
    shown = [live, again, live, live, live, held, kept]
    return [("state", gr.update(visible=one)) for one in shown]


def _title(run: control.Run, place: queue.Place | None) -> str:
    status = run.status
    state = words.STATES.get(status.state, status.state)
    if place:
        state = words.STATES["waiting"]
    elif status.live and status.total:
        state = f"{_part(status)} %"
    return f"{run.name} · {state}"


def _doing(status: control.Status, log: str) -> tuple[str, float]:
    """What a run does before its first step, in words, and how much of that is done; later, that it draws previews."""
    name, done, total = _counted(status.message)
    if not status.live or (status.step and name != "previews"):
        return "", 0.0
    if name in words.DOING:
        return words.DOING[name] + (f" {done}/{total}" if total else ""), done / total if total else 0.0
    last = log.rpartition("\n")[2].strip()
    return (short(last, 120) if last and not last.startswith(("Traceback", "  ")) else ""), 0.0


def _counted(message: str) -> tuple[str, int, int]:
    """``pictures: 14 of 25`` as its parts."""
    found = re.fullmatch(r"([^:]+): (\d+)(?: of (\d+))?", message)
    return (found[1], int(found[2]), int(found[3] or 0)) if found else (message, 0, 0)


def standing(
    run: control.Run, history: progress.History, place: queue.Place | None = None, doing: tuple[str, float] = ("", 0.0)
) -> str:
    """How the run stands: its bar, and what went wrong."""
    status = run.status
    line = ""
    if place is not None:
        line = words.WAITS.format(run.name, place.number) + (words.QUEUE_PAUSED if place.paused else "")
        if status.state == "waiting":
            return note(line, "warn verdict")
    state = words.STATES.get(status.state, status.state)
    if doing[0]:
        state = doing[0]
    text = f"{state} · {words.STEP_OF.format(status.step, status.total)}" if status.step else state
    text += f" · {words.LEFT_OVER.format(clock(status.eta))}" if status.live and status.eta else ""
    out = f"<h2>{escape(run.name)}</h2>"
    out += note(line, "warn") if place is not None else ""
    out += bar(status.step / status.total if status.step and status.total else doing[1], text, label=words.PROGRESS)
    if status.state == "failed":
        out += note(plain_message(status.message), "bad")
        hint = next((help_ for sign, help_ in words.REMEDIES.items() if sign.lower() in status.message.lower()), "")
        ours = status.exit_code == control.INTERNAL_ERROR or control.DEFECT in status.message
        out += note(hint, "warn") if hint or not ours else _to_report(control.tail(run.path, REPORTED))
    elif status.message not in ("", state) and status.state != "done" and not status.live:
        out += note(plain_message(status.message))
    return out + "".join(note(words.WARNED.format(*one), "warn") for one in history.warnings[-3:])


def numbers(status: control.Status, history: progress.History) -> str:
    """What the last step measured."""
    last = next(reversed(history.steps.values()), {})
    speed = progress.speed(history)
    ended = status.t and status.state in ("done", "stopped", "failed") and not status.live
    pace = "" if not speed else f"{speed:.2f} it/s" if speed >= 1 else f"{1 / speed:.1f} s/it"
    rows = [
        (words.SPEED, pace if status.live else ""),
        (words.EPOCH, f"{last['epoch']:.2f}" if isinstance(last.get("epoch"), float) else last.get("epoch")),
        (words.LOSS, f"{last['loss']:.4g}" if isinstance(last.get("loss"), (int, float)) else ""),
        *_measures(history),
        (words.RATE, f"{last['lr']:.2e}" if isinstance(last.get("lr"), (int, float)) else ""),
        (words.MEMORY, f"{last['gb']:.1f} GB" if isinstance(last.get("gb"), (int, float)) else ""),
        (words.ENDED, time.strftime("%Y-%m-%d %H:%M", time.localtime(status.t)) if ended else ""),
    ]  # fmt: skip
    return facts(rows)


def _measures(history: progress.History) -> list[tuple[str, str]]:
    """What a dense run's last validation measured, beside prior and floor."""
    last = next(reversed(history.measures.values()), {})
    rows = []
    for name in progress.measured(history):
        beside = [words.BESIDE[one].format(last[f"{one}_{name}"]) for one in progress.BESIDE if f"{one}_{name}" in last]
        shown = f"{last[name]:.3g}" + (f" ({', '.join(beside)})" if beside else "")
        rows.append((words.MEASURES.get(name, name), shown))
    return rows


def _result(run: control.Run, address: Any) -> str:
    """A finished run's file: its name, size and path, to copy and to download."""
    found = control.checkpoints(run.path)
    if not found:
        return ""
    path = found[-1].path
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    return (
        f'<div class="result"><span><b>{escape(path.name)}</b> · {size}</span> <code>{escape(str(path))}</code> '
        f'<button type="button" class="plain" data-copy="{escape(str(path))}">{words.COPY_PATH}</button> '
        f'<a class="plain" href="{address.download(path)}" download="{escape(path.name)}">{words.DOWNLOAD}</a></div>'
    )


def _steps_shown(steps: list[int], index: int) -> str:
    return words.STEP_OF.format(steps[min(index, len(steps) - 1)], steps[-1]) if steps else ""


def _two(pictures: dict[int, dict[int, Path]], row: int | None, index: int) -> Any:
    """The picture of a prompt before training, or the first there is, and at the index-th preview."""
    if row is None:
        return None
    steps = [step for step in sorted(pictures) if row in pictures[step]]
    if not steps:
        return None
    chosen = steps[max(0, min(int(index), len(steps) - 1))]
    try:
        return tuple(Image.open(pictures[step][row]).convert("RGB") for step in (steps[0], chosen))
    except OSError:  # it is just being written
        return None


def _to_report(log: str) -> str:
    return note(words.DEFECT, "warn") + f'<pre tabindex="0">{escape(log)}</pre>'


def _log(history: progress.History, log: str) -> str:
    spikes = notes([words.SPIKE.format(*one) for one in history.spikes[-SPIKES:]])
    return spikes + f'<pre tabindex="0">{escape(log)}</pre>'


def _frame(history: progress.History, of: str, weight: float, logarithmic: bool) -> Any:
    return _plotted(progress.curve(history, of, weight, logarithmic))


def _plotted(points: list[tuple[int, float, str]]) -> Any:
    """Typed also where there are no points: a plot takes a column without a type for words, and keeps it so."""
    named = [(step, value, words.LINES[line]) for step, value, line in points]
    return pd.DataFrame(named, columns=["step", "value", "line"]).astype({"step": float, "value": float})


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
        f'<td><a href="{address.url(path)}" target="_blank" data-large title="{escape(title)}"><img loading="lazy" '
        f'alt="{escape(title)}" src="{address.url(path, 256)}"></a></td>'
    )
