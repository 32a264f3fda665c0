"""The panel at the end of the recipe: what a run would do, before it does it; what is worth fixing, with a button each;
and the start, which never acts on an old report."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.check_report import duration
from ..trainer.runs.control import gigabytes
from ..trainer.runs.events import read_object
from . import draft, edits, fields, findings, queue, words
from .draft import Problem
from .findings import ASIDE, MANY, SHOW, Finding
from .page import EVENT, Context, bar, facts, kindly, note, notes, options_in, problem_list
from .store import locked, write, write_json

REMEDIES = 4
"""How many remedies are offered at a time."""
KEPT = 12
"""Answers that are remembered."""
SETTLED = 2.0
"""Seconds without a change after which the recipe is checked by itself."""
FIX_JS = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-fix]");
  if (button) trigger("select", { fix: button.dataset.fix });
});"""
LOOK_SECONDS, FIRST_LOOK = 1.0, 0.3
"""How long the sizes of pictures may be looked at before the rest is left for the next look."""


@dataclass(frozen=True)
class Report:
    """What is known of a recipe."""

    key: str
    problems: tuple[Problem, ...]
    found: tuple[Finding, ...]
    answer: dict[str, Any]
    """Empty while the trainer has not answered."""

    @property
    def ready(self) -> bool:
        return bool(self.answer) and not self.problems and not any(one.stops for one in self.found)

    @property
    def questions(self) -> bool:
        """Whether somebody should look before a start."""
        fit = self.answer.get("fit") or {}
        return not fit.get("fits", True) or any(not one.pictures for one in self.found)


class Asking:
    """The trainer's check of a configuration, in a process that can be ended."""

    def __init__(self, context: Context, text: str):
        self._process: subprocess.Popen[bytes] | None = None
        self.cancelled = False
        self.problems: list[Problem] = []
        self.answer: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=copy_context().run, args=(self._ask, context, text), daemon=True)
        self._thread.start()

    def _ask(self, context: Context, text: str) -> None:
        try:
            self.problems, self.answer = ask(context, text, self._started)
        except Exception as error:  # a programming mistake: raised where the answer is waited for
            self.error = error

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        if self.cancelled:
            process.kill()

    def done(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        self.cancelled = True
        if self._process is not None:
            with suppress(OSError):
                self._process.kill()


class Check:
    """The panel: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home = context, context.home
        self._asking: dict[str, Asking] = {}
        self.offered, self.start_state, self.started = gr.State([]), gr.State({}), gr.State("")
        gr.HTML(f"<h2>{words.CHECK}</h2>")
        self.shown = gr.HTML(elem_id="check-report", js_on_load=FIX_JS)
        self.look_at = gr.State("")
        with gr.Row(elem_classes="tight"):
            self.buttons = [gr.Button("", visible=False, elem_id=f"remedy-{n}", size="sm") for n in range(REMEDIES)]
        with gr.Row(elem_classes="sticky-end"):
            self.cancel = gr.Button(
                words.CANCEL, visible=False, size="sm", elem_id="cancel-check", scale=0, min_width=90
            )
            self.again = gr.Button(words.CHECK_AGAIN, scale=0, min_width=130, elem_id="check-again")
            self.start = gr.Button(
                words.START, variant="primary", scale=0, min_width=220, elem_id="start-training", interactive=False
            )
        self.outputs = [self.shown, self.start, self.again, self.cancel, self.offered, *self.buttons]
        self._wire()

    def _wire(self) -> None:
        fixed = self.shown.select(self.fix, [self.offered], [self.look_at], **EVENT)
        self.fixed = fixed
        self.again.click(functools.partial(self.run, fresh=True), [self.start_state], self.outputs, **EVENT)
        self.cancel.click(self.stop, None, None, **EVENT)
        begun = self.start.click(self.begin, [self.start_state], [*self.outputs, self.started], **EVENT)
        begun.failure(self.known_view, [self.start_state], self.outputs, **EVENT)

    def on_arrival(self, tab: gr.Tab) -> None:
        """When somebody comes to the screen: the verdict, beside the form, whose answer it does not need."""
        first = tab.select(self.verdict, [self.start_state], self.outputs[:2], **EVENT)
        first.success(self.settle, [self.start_state], self.outputs, **EVENT)

    def on_change(self, event: Any) -> None:
        """After an event that may change the recipe: what is known of it, and after a pause the trainer's check."""
        event.success(self.settle, [self.start_state], self.outputs, **EVENT)

    def verdict(self, start_state: dict[str, Any]) -> list[Any]:
        """What is known at once, for the first two of the outputs: gradio's work in the browser grows with the number
        of an event's outputs, and a person who comes to the screen waits for it."""
        return self._view(self.known(draft.read(self.home), seconds=FIRST_LOOK), start_state)[:2]

    def settle(self, start_state: dict[str, Any]) -> Iterator[list[Any]]:
        """What is known at once; the rest when nothing has changed for a moment."""
        text = draft.read(self.home)
        report = self.known(text)
        yield self._view(report, start_state)
        if report.answer or report.problems:
            return
        until = time.monotonic() + SETTLED
        while time.monotonic() < until:
            time.sleep(0.2)
            if (now := draft.read(self.home)) != text:
                text, until = now, time.monotonic() + SETTLED
        yield from self.run(start_state)

    def run(self, start_state: dict[str, Any], fresh: bool = False) -> Iterator[list[Any]]:
        """The whole check: what the page knows at once, then the trainer's answer. A recipe that changes meanwhile,
        also in another window or an editor, is checked as it then is."""
        while True:
            text = draft.read(self.home)
            report = self.known(text, remembered=not fresh)
            if not (report.answer or report.problems):
                yield self._view(report, start_state, asking=True)
                report = self._answered(text, report.key) or report
            if draft.read(self.home) == text:
                break
            fresh = False
        yield self._view(report, start_state)

    def stop(self) -> None:
        for one in list(self._asking.values()):
            one.cancel()

    def _answered(self, text: str, key: str) -> Report | None:
        """Wait for the trainer; None when it was cancelled, or the recipe changed meanwhile."""
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = Asking(self.context, text)
        try:
            while not asking.done(0.2):
                if draft.read(self.home) != text:
                    asking.cancel()
        finally:
            if asking.done(0):
                self._asking.pop(key, None)
        if asking.error is not None:
            raise asking.error
        if asking.cancelled:
            return None
        _remember(self.context, key, asking)
        return self.known(text, key=key)

    def known(self, text: str, remembered: bool = True, key: str = "", seconds: float = LOOK_SECONDS) -> Report:
        """What the page knows of a recipe without asking: its own look, at the pictures for at most ``seconds``, and an
        answer that still holds; ``key`` is that of an answer that has just come, whatever has ended meanwhile."""
        folders = self.context.folders
        problems = draft.problems(text, self.home.draft, folders)
        values = draft.values(text, folders)
        key = key or _key(text, values, self.home.runs)
        kept = read_object(self.home.own / "checks.json").get(key) if remembered and not problems else None
        answer: dict[str, Any] = kept["answer"] if kept else {}
        problems += [Problem(one["where"], one["what"]) for one in kept["problems"]] if kept else []
        own = draft.values_of(text)
        problems = [Problem(p.where, p.what, p.remedy or draft.remedy(p.where, p.what, own)) for p in problems]
        found = [*findings.of_recipe(values), *findings.of_pairs(values)]
        found += findings.of_answer(values, answer, self.home.runs) if answer else []
        if isinstance(size := draft.get(values, "data.resolution", 512), int):
            found += findings.of_pictures(values, data_folders(values), size, seconds)
        return Report(key, tuple(problems), tuple(found), answer)

    def _view(self, report: Report, start_state: dict[str, Any], asking: bool = False) -> list[Any]:
        """A report, and what Start says by it on the page whose ``start_state`` is: see ``begin``."""
        values = self.context.recipe()
        offered = [one.remedy for one in report.problems if one.remedy]
        offered = [*offered, *fitting(report.answer)][:REMEDIES]
        labels = [gr.update(value=label, visible=True) for label, *_ in offered]
        labels += [gr.update(visible=False)] * (REMEDIES - len(offered))
        offered += [one.remedy for one in report.found if one.remedy]
        if start_state.get("waits"):
            start = _waiting()
        else:
            allowed = not report.problems and not any(one.stops for one in report.found)
            text = words.START_ANYWAY if start_state.get("accepted") == report.key else words.START
            start = gr.update(interactive=allowed, value=text)
        return [
            shown(report, values, self.context, asking), start,
            gr.update(visible=not asking), gr.update(visible=asking), offered, *labels,
        ]  # fmt: skip

    @kindly
    def apply(self, number: int, offered: list[Any]) -> None:
        if number < len(offered):
            label, key, value = offered[number]
            if key == MANY:
                self.context.change(value)
            elif key == ASIDE:
                for folder, names in value.items():
                    edits.leave_out(self.context.folders.check("data.path", folder), names)
            else:
                draft.apply_remedy(self.home, (label, key, value), self.context.folders)

    @kindly
    def fix(self, event: gr.EventData, offered: list[Any]) -> Any:
        """The button of a finding. Gives the filter of step 1 that shows its pictures, for what only a person can
        settle; made new each time, so that it is a change."""
        found = next((one for one in offered if _id_of(one) == event.fix), None)
        if found is None:
            raise UserError(words.CHANGED_MEANWHILE)
        if found[1] == SHOW:
            return f"{found[2]}#{time.time_ns()}"
        self.apply(offered.index(found), offered)
        return gr.skip()

    def begin(self, start_state: dict[str, Any]) -> Iterator[list[Any]]:
        """Queue a copy of the recipe, if a check of just this recipe found it ready. What is worth fixing is shown
        first; a second press starts anyway. The last output is the run's folder.

        ``start_state`` is of this page, and one object for all of its events: whatever else is answered meanwhile,
        Start says that it waits (``waits``), and after a question that it starts anyway (``accepted``, the report's
        key)."""
        start_state["waits"] = True
        try:
            yield from self._begin(start_state)
        finally:
            start_state["waits"] = False

    def known_view(self, start_state: dict[str, Any]) -> list[Any]:
        """What is known without asking the trainer, after an error: Start can be pressed again."""
        return self._view(self.known(draft.read(self.home)), start_state)

    def _begin(self, start_state: dict[str, Any]) -> Iterator[list[Any]]:
        yield [_waiting() if one is self.start else gr.skip() for one in [*self.outputs, self.started]]
        text = draft.read(self.home)
        report = self.known(text)
        if not (report.answer or report.problems):
            yield [*self._view(report, start_state, asking=True), ""]
            report = self._answered(text, report.key) or report
        start_state["waits"], accepted = False, start_state.get("accepted")
        asks = report.ready and report.questions and accepted != report.key
        start_state["accepted"] = report.key if asks else ""
        if draft.read(self.home) == text and (asks or not report.ready):
            yield [*self._view(report, start_state), ""]
            return
        folder = self._queued(text)
        yield [*self._view(report, start_state), folder]

    @kindly
    def _queued(self, text: str) -> str:
        if draft.read(self.home) != text:
            raise UserError(words.CHANGED_MEANWHILE)
        name = queue.free_name(self.home, _name(self.context, text))
        added = queue.add(
            self.home, name, draft.snapshot(text, self.home.draft, name, self.home.runs, self.context.folders)
        )
        queue.ensure(self.home)
        return added.folder


def _waiting() -> Any:
    """Start, while it waits for the check."""
    return gr.update(value=words.STARTS_AFTER, interactive=False)


def ask(context: Context, text: str, started: Any = lambda _: None) -> tuple[list[Problem], dict[str, Any]]:
    """The trainer's own check of the configuration as it would run."""
    home = context.home
    own = draft.values_of(text)
    try:
        name = queue.free_name(home, _name(context, text))
        path = home.own / "check.toml"
        write(path, draft.snapshot(text, home.draft, name, home.runs, context.folders))
        return [], control.ask(["check", str(path)], started=started)
    except control.Refused as refused:
        listed = refused.answer.get("problems")
        if isinstance(listed, list):
            return [p for one in listed for p in draft.located(_line(one), own)], {}
        return draft.located(str(refused), own), {}
    except UserError as error:
        return draft.located(str(error), own), {}


def _name(context: Context, text: str) -> str:
    return str(draft.get(draft.values(text, context.folders), "run.name", "last"))


def _line(problem: Any) -> str:
    if isinstance(problem, dict):
        return f"{problem.get('where', '')}: {problem.get('what', problem)}"
    return ": ".join(map(str, problem)) if isinstance(problem, (list, tuple)) else str(problem)


# ------------------------------------------------------------------------------------------------- what is remembered


def data_folders(values: dict[str, Any]) -> list[Path]:
    """The folders of pictures that a recipe names."""
    sets = [one.get("path") for one in draft.get(values, "data.sets", []) or [] if isinstance(one, dict)]
    return [Path(one) for one in [draft.get(values, "data.path"), *sets] if isinstance(one, str) and one]


def _key(text: str, values: dict[str, Any], runs: Path) -> str:
    """Of everything that an answer depends on: the recipe, its preset, its files, and the runs that teach how long a
    step takes."""
    named = [draft.get(values, key) for key in draft.FILES]
    paths = [Path(one) for one in named if isinstance(one, str) and one] + data_folders(values)
    ended = sum(not one.status.live for one in control.list_runs(runs))
    whole = [text, values, [_stamp(path) for path in paths], ended]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _stamp(path: Path) -> list[Any]:
    try:
        stat = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), stat.st_mtime_ns, stat.st_size]


def _remember(context: Context, key: str, asking: Asking) -> None:
    path = context.home.own / "checks.json"
    row = {"problems": [{"where": p.where, "what": p.what} for p in asking.problems], "answer": asking.answer}
    with locked(path):
        rows = {name: one for name, one in read_object(path).items() if name != key}
        write_json(path, {**dict(list(rows.items())[-KEPT + 1 :]), key: row})


def last_answer(home: Any) -> dict[str, Any]:
    """The newest answer, whatever recipe it was for; empty without one."""
    rows = [one["answer"] for one in read_object(home.own / "checks.json").values() if one.get("answer")]
    return rows[-1] if rows else {}


# -------------------------------------------------------------------------------------------------------- what is shown


def shown(report: Report, values: dict[str, Any], context: Context, asking: bool) -> str:
    """Verdict first, then what is worth fixing, then everything else on demand."""
    worth = [one for one in report.found if not one.stops]
    stops = [Problem("", one.text) for one in report.found if one.stops]
    problems = [*report.problems, *stops]
    if problems:
        return note(words.NOT_READY, "bad verdict") + problem_list(problems) + _worth(worth, context)
    if not report.answer:
        line = words.CHECKING if asking else words.NOT_CHECKED
        return note(line, "verdict") + _worth(worth, context)
    fit = report.answer.get("fit") or {}
    verdict = note(ready(report.answer, values), "good verdict" if fit.get("fits", True) else "bad verdict")
    warnings = [str(one) for one in report.answer.get("warnings", []) if not _said_already(str(one), worth)]
    return (
        verdict
        + note(words.CHECKED)
        + _worth([*worth, *(Finding(one) for one in warnings)], context)
        + fit_report(fit)
        + f"<details><summary>{words.DETAILS}</summary>{details(report.answer)}</details>"
    )


def ready(answer: dict[str, Any], values: dict[str, Any]) -> str:
    """``Ready: about 56 s, 0.6 of 19.8 GB of memory, 0.2 GB of disk``."""
    fit = answer.get("fit") or {}
    time_ = (duration(fit, answer["steps"]) if answer.get("steps") else "") or words.NOT_KNOWN
    memory = words.OF_GPU.format(gigabytes(fit["gb"]), gigabytes(fit["of_gb"]), fit["card"]) if fit.get("of_gb") else ""
    disk = words.OF_DISK.format(gigabytes(findings.disk(values, answer)))
    return (words.READY if fit.get("fits", True) else words.TOO_LARGE).format(
        ", ".join(filter(None, (time_, memory, disk)))
    )


def _said_already(warning: str, found: list[Finding]) -> bool:
    """Whether the page's own look has found what the trainer warns of; it shows the pictures too."""
    return any(path.name in warning for one in found for path in one.pictures)


def _worth(found: list[Finding], context: Context) -> str:
    if not found:
        return ""
    rows = ""
    for one in found:
        thumbs = "".join(
            f'<img loading="lazy" alt="{escape(path.name)}" title="{escape(path.name)}" '
            f'src="{context.addresses.url(path, 96)}">'
            for path in one.pictures
        )
        button = (
            f'<button type="button" class="plain" data-fix="{_id_of(one.remedy)}">{escape(one.remedy[0])}</button>'
            if one.remedy
            else ""
        )
        rows += f"<li>{options_in(one.text)}{thumbs}{button}</li>"
    return f'<h3>{escape(words.WORTH_FIXING.format(len(found)))}</h3><ul class="worth">{rows}</ul>'


def _id_of(remedy: tuple[str, str, Any]) -> str:
    """What a button in the report names its remedy by, whatever else has come and gone since it was shown."""
    return hashlib.sha256(json.dumps(remedy, sort_keys=True, default=str).encode()).hexdigest()[:12]


def fitting(answer: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """What makes a run fit on the GPU, or smaller: all that helps at once, then the first of it alone."""
    remedies = (answer.get("fit") or {}).get("remedies") or []
    if not remedies:
        return []
    together = {key: value for one in remedies for key, value in one["changes"].items()}
    whole = f"{', '.join(one['label'] for one in remedies)} ({gigabytes(remedies[-1]['gb'])} GB)"
    alone = [(f"{one['label']} ({gigabytes(one['gb'])} GB)", MANY, one["changes"]) for one in remedies[:1]]
    title = words.MAKE_FIT if remedies[-1]["fits"] else words.MAKE_SMALLER
    return [(f"{title}: {whole}", MANY, together), *(alone if len(remedies) > 1 else [])]


def fit_report(fit: dict[str, Any]) -> str:
    """Memory of a run, as the trainer estimates it, and what would make it smaller."""
    if not fit:
        return ""
    room = words.OF_GPU.format(gigabytes(fit["gb"]), gigabytes(fit["of_gb"]), fit["card"])
    peak = {name: gb for name, gb in fit["parts"].items() if gb >= 0.005}
    remedies = [f"{one['label']}: {gigabytes(one['gb'])} GB, {one['cost']}" for one in fit["remedies"]]
    plan = _listed(words.PLAN, [("", line) for line in (fit.get("plan") or {}).get("lines", [])])
    plan += _listed(words.AT_PEAK.format(fit["at"]), [(f"{gigabytes(gb)} GB", name) for name, gb in peak.items()])
    hopeless = not fit["fits"] and not (fit["remedies"] and fit["remedies"][-1]["fits"])
    return (
        note(words.NOT_ENOUGH if hopeless else "", "bad")
        + bar(fit["gb"] / max(fit["of_gb"], 0.01), f"{words.MEMORY}: {room}", "" if fit["fits"] else "over")
        + f"<details{'' if fit['fits'] else ' open'}><summary>{words.MEMORY}</summary>{plan}</details>"
        + _listed(words.MAKES_FIT, [(str(number), one) for number, one in enumerate(remedies, 1)])
    )


def _listed(title: str, rows: list[tuple[str, str]]) -> str:
    """What belongs together, side by side while there is room."""
    lines = "".join(f"<li><b>{escape(name)}</b> {escape(value)}</li>" for name, value in rows)
    return f"<h3>{escape(title)}</h3><ul class='buckets'>{lines}</ul>" if rows else ""


def details(answer: dict[str, Any]) -> str:
    """What ``check --json`` knows beyond the verdict."""
    data, model = answer.get("data") or {}, answer.get("model") or {}
    fit = answer.get("fit") or {}
    steps, epoch = answer.get("steps"), data.get("steps_per_epoch")
    lengths = words.PER_EPOCH.format(epoch, data.get("samples_per_epoch", "?")) if epoch else ""
    takes = duration(fit, steps) if steps else ""
    terms, size = answer.get("terms") or {}, answer.get("resolution")
    titles, kinds = fields.objectives(), dict.fromkeys(str(term["objective"]) for term in terms.values())
    rows = [
        (words.MODEL, model.get("title") or model.get("path")),
        (words.DATA, f"{data.get('items', '?')} {data.get('kind', '')}".strip()),
        (words.HELD_OUT, data.get("held_out") or None),
        (words.LENGTH, words.STEPS_EPOCHS.format(steps, answer.get("epochs") or 0)),
        (words.AN_EPOCH, lengths),
        (words.TIME, f"{takes} ({fit.get('pace', '')})" if takes else words.NOT_KNOWN),
        (words.COMPUTE, words.COMPUTE_TIMES.format(fit["computing"]) if fit.get("computing", 0) > 1 else None),
        (words.RESOLUTION, " × ".join(map(str, size)) if isinstance(size, list) else size),
        (words.LOSSES, ", ".join(terms)),
        (words.LEARNS_FROM, "; ".join(titles.get(kind, kind) for kind in kinds)),
        (words.WRITES, (answer.get("files") or {}).get("adapter")),
    ]
    buckets = [
        (f"{bucket.get('width')} × {bucket.get('height')}", str(bucket.get("samples")))
        for bucket in data.get("buckets") or []
    ]
    return facts(rows) + _listed(words.BUCKETS, buckets) + notes([str(one) for one in model.get("notes", [])])
