"""Studies under Compare: those that there are, a new one from a plan, its progress, its report and its blind vote. The
work is ``python -m trainer study``, a process that outlives the page."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer import config
from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.events import read_object
from ..trainer.runs.process import locked as process_lock
from . import captions, draft, draws, fields, targets, votes, words
from .page import EVENT, SLOW, Context, about, alert, bar, changing, choice_buttons, in_place, kindly, note
from .security import unquoted
from .store import ROOT, Home, locked, read_text, write_json

READY = ROOT / "presets" / "studies"
ASKED = "asked.json"
"""In a study's folder: what the page started it with."""
PACE = 3.0


@dataclass(frozen=True)
class Study:
    """A study's folder, as it stands."""

    folder: Path
    state: str
    """live, done, stopped, failed; seen: begun at the command line, so that it is not known how many cells it has."""
    done: int
    total: int | None
    left: str = ""
    now: str = ""
    """The cell that is being worked on."""
    message: str = ""
    ours: bool = False
    """Whether this page started it, and can stop it and go on with it."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def found(folder: Path) -> list[Study]:
    """The studies in a folder, the newest first."""
    folders = [path for path in folder.glob("*") if (path / "cells").is_dir() or _marked(path)]
    return [look(one) for one in sorted(folders, key=lambda path: -path.stat().st_mtime)]


def _marked(folder: Path) -> bool:
    return any((folder / name).exists() for name in (draws.MARK, ASKED))


def look(folder: Path) -> Study:
    """How far it is, by its cells, its log and its process."""
    asked = read_object(folder / ASKED)
    done, ours = len([*folder.glob("cells/*/cell.json")]), bool(asked.get("arguments"))
    if not ours:
        return Study(folder, "live" if _held(folder) else "seen", done, None)
    since = read_object(folder / draws.MARK).get("log", 0)
    log = control.tail(folder, 400, since if isinstance(since, int) else 0)
    cells = list(re.finditer(r"(?m)^(.+): cell (\d+) of (\d+)(?:, about (.+) left)?$", log))
    total = int(cells[-1][3]) if cells else asked.get("cells")
    if control.status(folder).live:
        at, left = (cells[-1][1], cells[-1][4] or "") if cells else ("", "")
        return Study(folder, "live", done, total, left, at, ours=True)
    errors = re.findall(r"(?m)^error: (.*)$", log)
    if errors and not asked.get("stopped"):
        return Study(folder, "failed", done, total, message=errors[-1], ours=True)
    over = total is None or done >= total or "budget: " in log
    return Study(folder, "done" if over and done else "stopped", done, total, ours=True)


def _held(folder: Path) -> bool:
    """Whether a study works there, whoever started it."""
    if not (folder / ".lock").exists():
        return False
    with process_lock(folder / ".lock") as free:
        return not free


def at_work(one: Study) -> control.Run | None:
    """The cell's run that trains now."""
    return next((run for run in control.list_runs(one.folder / "runs") if _training(run)), None)


def _training(run: control.Run) -> bool:
    return run.status.state in ("running", "saving") and run.status.live


def plan(arguments: list[str]) -> dict[str, Any]:
    """The trainer's plan of a study, which loads nothing. UserError: it cannot be done so."""
    return control.ask([*arguments, "--plan"], timeout=900)


def base_of(path: Path) -> dict[str, Any]:
    """What the recipes of a study have in common; empty for a file that cannot be read, which its plan reports."""
    try:
        raw = config.loads(read_text(path))
        under = draft.inherited(raw)
        if isinstance(raw.get("base"), str):
            under = draft.values(read_text(path.parent / Path(raw["base"]).expanduser()))
        options = raw.get("options")
        return config.merge(under, config.nested(options if isinstance(options, dict) else {}))
    except UserError:
        return {}


def data_of(base: dict[str, Any]) -> str:
    """The option that gives the study its pictures: ``data.path``, or ``data.pairs`` or ``data.ratings``."""
    return fields.usual_data(str(draft.get(base, "objective.kind", config.OBJECTIVE))) or "data.path"


def start(home: Home, folder: Path, arguments: list[str], cells: int | None = None) -> None:
    """Begin a study, or go on with it. UserError: something else works on this machine's GPU."""
    with locked(home.own / "drawing"):
        draws.need_gpu(home.runs)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ASKED, {"v": 1, "arguments": arguments, "cells": cells})
        draws.begin(folder, arguments)


def stop(folder: Path) -> None:
    """A cell that trains saves first; one that measures is measured again. UserError when it is not at work."""
    one = look(folder)
    if one.state != "live" or not one.ours:
        raise UserError(words.STUDY_NOT_WORKING)
    write_json(folder / ASKED, {**read_object(folder / ASKED), "v": 1, "stopped": True})
    training = at_work(one)
    if training and training.status.step:
        control.request(training.path, "stop")
    else:
        control.kill(folder)


# ------------------------------------------------------------------------------------------------------ the blind vote


@dataclass(frozen=True)
class Duel:
    """Two pictures of one prompt and noise, as the study's own page of votes has them."""

    left: str
    right: str
    prompt: int
    text: str
    sources: tuple[Path, Path]
    mark: str


def duels(folder: Path) -> list[Duel]:
    """What the study asks people, in its own order; none before its first pictures."""
    try:
        page = read_text(folder / "vote.html")
        rows = json.loads(re.search(r"duels = (\[.*?\]);\n", page, re.DOTALL)[1])  # pyright: ignore[reportOptionalSubscript]
        return [
            Duel(r["left"], r["right"], r["prompt"], r["text"], _sources(folder, r["sources"]), r["mark"]) for r in rows
        ]
    except (UserError, TypeError, ValueError, KeyError):
        return []


def _sources(folder: Path, given: list[str]) -> tuple[Path, Path]:
    one, other = (folder / path for path in given)
    return one, other


def open_duels(folder: Path) -> tuple[list[Duel], int]:
    """Those without a vote, and how many there are."""
    every = duels(folder)
    given = {vote.mark for vote in votes.read(folder / "votes.jsonl")}
    return [one for one in every if one.mark not in given], len(every)


# ---------------------------------------------------------------------------------------------------------- the screen


class Studies:
    """The tab: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.asked, self.clock = gr.State({}), gr.Timer(PACE, active=False)
        with gr.Accordion(words.NEW_STUDY, elem_id="new-study") as self.new:
            self._ask()
        with gr.Row(elem_classes="align-end"):
            self.study = changing(gr.Dropdown([], label=words.STUDY, elem_id="study", visible=False, scale=2))
            place = str(self.home.runs / "studies")
            self.where = gr.Textbox("", label=words.STUDY_FOLDER, placeholder=place, elem_id="study-folder", scale=2)
        self.state = gr.HTML(elem_id="study-state")
        with gr.Row(elem_classes="tight"):
            self.stop = gr.Button(words.STOP_STUDY, size="sm", elem_id="stop-study", visible=False)
            self.go_on = gr.Button(words.GO_ON, size="sm", variant="primary", elem_id="continue-study", visible=False)
            self.begin = gr.Button(words.VOTE_BLIND, size="sm", elem_id="study-vote", visible=False)
            self.renew = gr.Button(words.TO_REPORT, size="sm", elem_id="study-report-again", visible=False)
        self.refused = gr.HTML(elem_id="study-error")
        with gr.Column(visible=False, elem_id="study-voting") as self.voting:
            self.duel = gr.HTML(elem_id="study-prompt")
            with gr.Row(elem_classes="duel"):
                self.left, self.right = gr.HTML(), gr.HTML()
            self.buttons = choice_buttons("study")
            self.end = gr.Button(words.END_VOTE, size="sm", elem_id="end-study-vote")
        self.report = gr.HTML(elem_id="study-report")
        self.outputs = [
            self.study, self.state, self.stop, self.go_on, self.begin, self.renew, self.report, self.new, self.clock
        ]  # fmt: skip
        self.seen = gr.State("")
        self.outputs += [self.seen, self.refused]
        self.inputs = [self.study, self.seen, self.where]
        self._wire()

    def _ask(self) -> None:
        gr.HTML(note(words.STUDY_INTRO))
        with gr.Row(elem_classes="align-end"):
            self.ready = gr.Dropdown(_ready(), label=words.READY_STUDY, value=None, elem_id="ready-study", scale=3)
            self.file = gr.Textbox("", label=words.OWN_STUDY, elem_id="study-file", scale=3)
        with gr.Row(elem_classes="align-end"):
            own: dict[str, Any] = {"placeholder": words.STUDYS_OWN, "scale": 2, "min_width": 220}
            self.model = gr.Textbox("", label=words.STUDY_MODEL, elem_id="study-model", **own)
            self.pictures = gr.Textbox("", label=words.STUDY_PICTURES, elem_id="study-pictures", **own)
            maps = fields.title("data.targets")
            self.targets = gr.Textbox("", label=maps, elem_id="study-targets", visible=False, **own)
            self.budget = gr.Textbox("", label=words.STUDY_BUDGET, info=words.STUDY_BUDGET_INFO, elem_id="study-budget")
            self.plan = gr.Button(words.LOOK_AT_PLAN, elem_id="study-plan", scale=0, min_width=190)
        self.planned = gr.HTML(elem_id="study-planned")
        self.start = gr.Button(words.START_STUDY, variant="primary", elem_id="start-study", visible=False)

    def _wire(self) -> None:
        asked = [self.ready, self.file, self.model, self.pictures, self.targets, self.budget]
        planned = [self.planned, self.start, self.asked]
        looked = self.plan.click(self.plan_or_why, asked, planned, **SLOW)
        looked.then(_still_asked, [self.asked, *asked], planned[:2], **EVENT)
        for field in asked:  # what is started is what was looked at
            field.change(lambda: ["", gr.update(visible=False), {}], None, planned, **EVENT)
        for event, other, empty in ((self.ready.input, self.file, ""), (self.file.change, self.ready, None)):
            event(functools.partial(_one_of_two, empty), [self.ready, self.file], [other], **EVENT)
        own = [self.model, self.pictures, self.targets]
        for field in (self.ready, self.file):
            field.change(self.ask_for, [self.ready, self.file], own, trigger_mode="always_last", **EVENT)
        work = [self.study, self.start, self.planned]
        begun = self.start.click(in_place(self.begin_study, work), [self.asked], work, **SLOW)
        view: dict[str, Any] = {"fn": self.show, "inputs": self.inputs, "outputs": self.outputs, **EVENT}
        begun.success(**view)
        self.study.input(**view)
        self.where.submit(**view)
        self.clock.tick(**view)
        for button, act in ((self.stop, self.end_study), (self.go_on, self.resume), (self.renew, self.report_again)):
            button.click(in_place(act, [self.refused]), [self.study], [self.refused], **SLOW).then(**view)
        table = [self.duel, self.left, self.right]
        self.begin.click(self.lay, [self.study, self.where], [self.voting, *table], **EVENT)
        keys = {**EVENT, "trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "study"}
        for name, button in self.buttons.items():
            button.click(functools.partial(self.vote, name), [self.study, self.left, self.where], table, **keys)
        self.end.click(lambda: gr.update(visible=False), None, [self.voting], **EVENT).then(**view)

    def show(self, chosen: str | None, seen: str = "", where: str = "") -> list[Any]:
        """The studies, and the chosen one as it stands. What has not changed since it was ``seen`` is left alone."""
        try:
            known = found(self._place(where))
        except UserError as error:
            return [*[gr.skip()], alert(str(error)), *[gr.skip()] * (len(self.outputs) - 2)]
        one = next((each for each in known if each.name == chosen), known[0] if known else None)
        hidden = gr.update(visible=False)
        if one is None:
            none = [gr.update(choices=[], visible=False), note(words.NO_STUDIES), hidden, hidden, hidden, hidden, ""]
            return [*none, gr.skip(), gr.Timer(PACE, active=False), "", ""]
        choices = [(f"{each.name} · {words.STUDY_STATES[each.state]}", each.name) for each in known]
        left, every = open_duels(one.folder)
        resumes = one.state in ("stopped", "failed")
        stamp = one.report.stat().st_mtime_ns if one.report.is_file() else 0
        now = f"{one.folder} {stamp}"
        seen, _, before = seen.partition("\n")
        value: dict[str, Any] = {} if one.name == chosen else {"value": one.name}
        return [
            gr.update(choices=choices, visible=True, **value), self._state(one),
            gr.update(visible=one.state == "live" and one.ours), gr.update(visible=resumes),
            gr.update(visible=bool(left)),
            gr.update(visible=len(left) < every and one.state != "live" and one.ours),
            gr.skip() if now == seen else self._report(one), gr.skip() if seen else gr.update(open=False),
            gr.Timer(PACE, active=one.state == "live"), f"{now}\n{one.state}",
            gr.skip() if before in ("", one.state) else "",  # why something was refused in another state
        ]  # fmt: skip

    def _state(self, one: Study) -> str:
        run = at_work(one) if one.state == "live" else None
        inner = run.status.step / run.status.total if run and run.status.total else 0.0
        part = (one.done + inner) / one.total if one.total else 0.0
        parts = [words.STUDY_STATES[one.state]]
        if one.state == "live":
            parts += [words.STUDY_AT.format(min(one.done + 1, one.total), one.total)] if one.total else []
            parts += [one.now] if one.now else []
            parts += [words.STEP_OF.format(run.status.step, run.status.total)] if run and run.status.step else []
            parts += [words.LEFT_OVER.format(one.left)] if one.left else []
        else:
            parts.append(words.STUDY_CELLS_DONE.format(words.number(one.done, words.CELLS)))
        out = bar(1.0 if one.state in ("done", "seen") else part, " · ".join(parts), label=words.STUDY)
        out += note(one.message, "bad") if one.state == "failed" else ""
        out += note(words.STUDY_STOPPED) if one.state == "stopped" else ""
        return out + (note(words.STUDY_ELSEWHERE) if not one.ours else "")

    def _report(self, one: Study) -> str:
        if not one.report.is_file():
            return note(words.NO_REPORT)
        url = self.address.report(one.report)
        return (
            f'<p><a class="plain" href="{url}" target="_blank" rel="noopener">{words.REPORT_TAB}</a></p>'
            f'<iframe class="report" sandbox="" title="{escape(one.name)}" src="{url}"></iframe>'
        )

    def _place(self, where: str) -> Path:
        """The folder of studies that is looked at: as typed, or beside the runs."""
        return self.context.folders.check(words.WHERE_STUDIES, where) if where.strip() else self.home.runs / "studies"

    def _folder(self, name: str | None, where: str = "") -> Path:
        one = next((each for each in found(self._place(where)) if each.name == name), None)
        if one is None:
            raise UserError(words.NO_STUDY.format(name))
        return one.folder

    # ---------------------------------------------------------------------------------------------------- a new one

    def ask_for(self, ready: str | None, file: str) -> list[Any]:
        """The fields that the study needs: its pictures or pairs, and for a study of maps the maps; each says whether
        the study names what is meant."""
        try:
            base = base_of(self._file(ready, file))
        except UserError:  # nothing is chosen, or it is still typed
            base = {}
        key, missing = data_of(base), _missing(base)
        hints = [
            words.STUDYS_NONE if one in missing else words.STUDYS_OWN for one in ("model.path", key, "data.targets")
        ]
        return [
            gr.update(placeholder=hints[0]),
            gr.update(placeholder=hints[1], label=words.STUDY_PICTURES if key == "data.path" else fields.title(key)),
            gr.update(placeholder=hints[2], visible=draft.get(base, "dense") is not None),
        ]

    def plan_or_why(self, *asked: Any) -> list[Any]:
        """The plan, or why there is none, and for which fields."""
        outputs = [self.planned, self.start, self.asked]
        planned, start, plan = in_place(self.look_at_plan, outputs, at=0)(*asked)
        return [planned, start, plan if "arguments" in plan else {"fields": [*asked]}]

    def look_at_plan(
        self, ready: str | None, file: str, model: str, pictures: str, maps: str, budget: str
    ) -> list[Any]:  # fmt: skip
        """What would be done, and how long it takes; only what was looked at can be started."""
        arguments = self._arguments(ready, file, model, pictures, maps, budget)
        answer = plan(arguments)
        asked = {
            "folder": answer["folder"],
            "arguments": arguments,
            "cells": None if budget.strip() else answer["cells"],
            "fields": [ready, file, model, pictures, maps, budget],
        }
        return [_planned(answer, budget.strip()), gr.update(visible=True), asked]

    def _file(self, ready: str | None, file: str) -> Path:
        """The study that is meant. UserError: none is, or who is at this page may not name files."""
        given = unquoted(file)
        if given and self.context.folders.roots is not None:  # its paths may lead anywhere
            raise UserError(words.STUDY_LISTEN)
        path = Path(given).expanduser().absolute() if given else READY / f"{ready}.toml"
        if not path.is_file() or (not given and ready not in [name for _, name in _ready()]):
            raise UserError(words.NO_STUDY_FILE.format(given) if given else words.STUDY_FILE)
        return path

    def _arguments(
        self, ready: str | None, file: str, model: str, pictures: str, maps: str, budget: str
    ) -> list[str]:  # fmt: skip
        path = self._file(ready, file)
        base = base_of(path)
        given = {"model.path": self._model(unquoted(model))} if unquoted(model) else {}
        folders = {data_of(base): pictures} | ({"data.targets": maps} if draft.get(base, "dense") is not None else {})
        for key, folder in folders.items():
            if unquoted(folder):
                given[key] = str(self.context.folders.check(fields.title(key), folder))
        if missing := [key for key in _missing(base) if key not in given]:
            raise UserError(words.STUDY_NEEDS.format(fields.title(missing[0])))
        _need_maps(config.merge(base, config.nested(given)))
        arguments = ["study", str(path), "-o", str(self.home.runs / "studies")]
        arguments += [f"--{name}={value}" for name, value in given.items()]
        return [*arguments, *(["--budget", _time(budget)] if budget.strip() else [])]

    def _model(self, given: str) -> str:
        """A file or folder of this machine, else an id of the hub."""
        self.context.folders.allow("model.path", given)
        path = Path(given).expanduser()
        if path.exists():
            return str(path.resolve())
        if not draft.HUB_ID.fullmatch(given):
            raise UserError(f"{words.STUDY_MODEL}: {words.NOT_THERE_PATH.format(given)}")
        return given

    @kindly
    def begin_study(self, asked: dict[str, Any]) -> list[Any]:
        if "arguments" not in asked:
            raise UserError(words.STUDY_NO_PLAN)
        folder = Path(asked["folder"])
        start(self.home, folder, asked["arguments"], asked["cells"])
        return [gr.update(choices=[folder.name], value=folder.name), gr.update(visible=False), ""]

    @kindly
    def end_study(self, name: str | None) -> None:
        stop(self._folder(name))

    @kindly
    def resume(self, name: str | None) -> None:
        folder = self._folder(name)
        asked = read_object(folder / ASKED)
        start(self.home, folder, list(map(str, asked.get("arguments", []))), asked.get("cells"))

    @kindly
    def report_again(self, name: str | None) -> None:
        """The report with the votes in it."""
        asked = read_object(self._folder(name) / ASKED).get("arguments", [])
        control.ask([*map(str, asked), "--report"], timeout=900)

    # ---------------------------------------------------------------------------------------------------- the vote

    @kindly
    def lay(self, name: str | None, where: str = "") -> list[Any]:
        return [gr.update(visible=True), *self._next(self._folder(name, where))]

    def _next(self, folder: Path) -> list[Any]:
        left, every = open_duels(folder)
        how_far = bar((every - len(left)) / max(1, every), words.VOTED.format(every - len(left), every))
        if not left:
            return [how_far + note(words.STUDY_VOTED, "good"), "", ""]
        one = left[0]
        urls = [self.address.url(path, 1024) for path in one.sources]
        return [
            f'{how_far}<p class="prompt">{escape(one.text)}</p>',
            f'<figure data-mark="{escape(one.mark)}"><img alt="{words.LEFT}" src="{urls[0]}"></figure>',
            f'<figure><img alt="{words.RIGHT}" src="{urls[1]}"></figure>',
        ]

    @kindly
    def vote(self, won: str, name: str | None, seen: str, where: str = "") -> list[Any]:
        """One answer to the two pictures that the page shows; a second one to the same two counts for nothing."""
        folder = self._folder(name, where)
        path = folder / "votes.jsonl"
        if won == "undo":
            votes.undo(path)
            return self._next(folder)
        mark = re.search(r'data-mark="([0-9a-f]+)"', seen or "")
        one = next((each for each in open_duels(folder)[0] if mark and each.mark == mark[1]), None)
        if one and won != "skip":
            votes.record(path, votes.Vote(one.left, one.right, won, one.prompt, mark=one.mark))
        return self._next(folder)


def _one_of_two(empty: str | None, ready: str | None, file: str) -> Any:
    """Of a ready study and a file the later is meant: the other becomes empty where both are there."""
    return gr.update(value=empty) if ready and file else gr.skip()


def _still_asked(asked: dict[str, Any], *shown: Any) -> list[Any]:
    """No answer, and nothing to start, where a field was changed while the trainer made its plan."""
    changed = bool(asked) and asked["fields"] != list(shown)
    return ["", gr.update(visible=False)] if changed else [gr.skip(), gr.skip()]


def _missing(base: dict[str, Any]) -> list[str]:
    """What a study asks for and names nowhere: a model, pictures, maps. Nothing of one that cannot be read."""
    data = draft.get(base, "data", {})
    if not isinstance(data, dict):
        return []
    missing = [] if draft.get(base, "model.path") or not base else ["model.path"]
    if base and not any(data.get(name) for name in ("path", "sets", "pairs", "ratings")):
        missing.append(data_of(base))
    sets = data.get("sets") or []
    if (
        draft.get(base, "dense") is not None
        and not data.get("targets")
        and not any("targets" in one for one in sets if isinstance(one, dict))
    ):
        missing.append("data.targets")
    return missing


def _need_maps(values: dict[str, Any]) -> None:
    """UserError where none of the pictures that a study learns maps of has one."""
    folders = [str(draft.get(values, key) or "") for key in ("data.path", "data.targets")]
    pictures, maps = map(Path, folders)
    if pictures.is_absolute() and pictures.is_dir() and maps.is_absolute() and not draft.get(values, "data.recursive"):
        names = captions.scan(pictures).pictures
        if names and targets.of(values, pictures, names) == {}:
            raise UserError(words.NO_TARGETS.format(fields.title("data.targets"), *reversed(folders)))


def _time(text: str) -> str:
    """UserError for what is no time."""
    if not re.fullmatch(r"(\s*\d+(\.\d+)?\s*[dhms])+\s*", text.lower()) or not re.search("[1-9]", text):
        raise UserError(words.NO_TIME.format(text.strip()))
    return text.strip()


def _ready() -> list[tuple[str, str]]:
    """The bundled studies: the question that their first line asks, and their name."""
    out = []
    for path in sorted(READY.glob("*.toml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").strip()
        out.append((f"{path.stem}: {first}", path.stem))
    return out


def _named(text: str) -> str:
    """A sentence as HTML, with options by their labels: they are of the study's recipes, which no field shows."""
    return fields.labelled(escape(text), lambda key: f"{escape(fields.title(key))} <code>{key}</code>")


def _planned(answer: dict[str, Any], budget: str = "") -> str:
    """A plan in words; ``budget``: the time that it was asked for."""
    counts = (
        words.number(len(answer["arms"]), words.ARMS), words.number(answer["seeds"], words.SEEDS),
        words.number(answer["cells"], words.CELLS), words.number(answer["held_out"], words.PICTURES),
        words.number(answer["prompts"], words.PROMPTS) if answer["prompts"] else words.STUDY_MAPS,
    )  # fmt: skip
    rows = "".join(f"<li><b>{escape(arm['name'])}</b>: {_named(arm['changes'])}</li>" for arm in answer["arms"])
    time = note(words.STUDY_TIME_UNKNOWN)
    if answer["seconds"]:
        least, most = (about(one) for one in answer["seconds"])
        span = least if least == most else words.STUDY_SPAN.format(least, most)
        time = note(words.STUDY_TIME.format(span, answer["pace"]), "verdict")
    if budget and (fit := answer.get("seeds_in_budget")):
        span = str(fit[0]) if fit[0] == fit[1] else words.STUDY_SPAN.format(*fit)
        time += note(words.STUDY_FITS.format(budget, span, answer["seeds"]), "verdict")
    warned = "".join(f'<p class="note warn">{_named(one)}</p>' for one in answer["notes"])
    return note(words.STUDY_PLAN.format(*counts)) + f"<ul>{rows}</ul>" + time + warned
