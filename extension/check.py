"""Screen 3: what a run would do, before it does it; problems with a button that applies the remedy."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.check_report import clock
from ..trainer.runs.control import gigabytes
from . import draft, fields, queue, words
from .draft import Problem
from .page import EVENT, SLOW, Context, Screen, bar, facts, kindly, note, notes, problem_list
from .store import write

REMEDIES = 4
"""How many remedies are offered at a time."""
MANY = "*"
"""In the place of a remedy's key: its value is a table of changes."""


def build(context: Context) -> Screen:
    home = context.home
    shown = gr.HTML(elem_id="check-report")
    buttons = []
    with gr.Row():
        for number in range(REMEDIES):
            buttons.append(gr.Button(visible=False, elem_id=f"remedy-{number}", size="sm"))
    with gr.Row():
        gr.HTML("")
        again = gr.Button(words.CHECK_AGAIN, scale=0, min_width=150, elem_id="check-again")
        start = gr.Button(
            words.NEXT["check"], variant="primary", scale=0, min_width=220, elem_id="start-training", interactive=False
        )
    remedies = gr.State([])
    outputs = [shown, start, remedies, *buttons]

    def show() -> list[Any]:
        text = draft.read(home)
        problems = draft.problems(text, home.draft, context.folders)
        answer: dict[str, Any] = {}
        if not problems:
            problems, answer = ask(context, text)
        offered = [one.remedy for one in problems if one.remedy] or fitting(answer)
        offered = offered[:REMEDIES]
        fits = (answer.get("fit") or {}).get("fits", True)
        odd = note(other_family(str(draft.values_of(text).get("preset", "")), answer), "warn")
        good = note(words.CHECK_GOOD if fits and not odd else "", "good")
        html = problem_list(problems) or good + odd + report(answer)
        filled = [
            gr.update(value=label if key == MANY else f"{words.APPLY}: {label}", visible=True)
            for label, key, _ in offered
        ]
        filled += [gr.update(visible=False)] * (REMEDIES - len(offered))
        return [html, gr.update(interactive=not problems), offered, *filled]

    def wait() -> Iterator[list[Any]]:
        yield [note(words.CHECKING), gr.update(interactive=False), [], *[gr.update(visible=False)] * REMEDIES]
        yield show()

    @kindly
    def apply(number: int, offered: list[Any]) -> None:
        if number < len(offered):
            label, key, value = offered[number]
            if key == MANY:
                context.change(value)
            else:
                draft.apply_remedy(home, (label, key, value), context.folders)

    @kindly
    def begin() -> str:
        """Queue a copy of the recipe; gives the run's folder."""
        text = draft.read(home)
        name = queue.free_name(home, _name(context, text))
        added = queue.add(home, name, draft.snapshot(text, home.draft, name, home.runs, context.folders))
        queue.ensure(home)
        return added.folder

    again.click(wait, None, outputs, **SLOW)
    for number, button in enumerate(buttons):
        applied = button.click(functools.partial(apply, number), [remedies], None, **EVENT)
        applied.success(wait, None, outputs, **SLOW)
    return Screen(wait, outputs, parts={"start": start, "begin": begin})


def ask(context: Context, text: str) -> tuple[list[Problem], dict[str, Any]]:
    """The trainer's own check of the configuration as it would run."""
    home = context.home
    own = draft.values_of(text)
    try:
        name = queue.free_name(home, _name(context, text))
        path = home.own / "check.toml"
        write(path, draft.snapshot(text, home.draft, name, home.runs, context.folders))
        return [], control.ask(["check", str(path)])
    except control.Refused as refused:
        listed = refused.answer.get("problems")
        if isinstance(listed, list):
            return [p for one in listed for p in draft.located(_line(one), own)], {}
        return draft.located(str(refused), own), {}
    except UserError as error:
        return draft.located(str(error), own), {}


def _name(context: Context, text: str) -> str:
    return str(draft.get(draft.values(text, context.folders), "run.name", "last"))


def other_family(preset: str, answer: dict[str, Any]) -> str:
    """A line when the preset, whose name begins with its family, is for another one than the model's; else nothing."""
    made_for, dash, _ = preset.partition("-")
    model = answer.get("model") or {}
    if not dash or not model or str(model["family"]).startswith(made_for):
        return ""
    return words.OTHER_FAMILY.format(preset, model["title"])


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
    """Memory and time of a run, as the trainer estimates it."""
    if not fit:
        return ""
    room = words.OF_GPU.format(gigabytes(fit["gb"]), gigabytes(fit["of_gb"]), fit["card"])
    time = words.ABOUT.format(clock(fit["seconds"])) if fit.get("seconds") else words.NOT_KNOWN
    peak = {name: gb for name, gb in fit["parts"].items() if gb >= 0.005}
    remedies = [f"{one['label']}: {gigabytes(one['gb'])} GB, {one['cost']}" for one in fit["remedies"]]
    hopeless = not fit["fits"] and not (fit["remedies"] and fit["remedies"][-1]["fits"])
    return (
        note("" if fit["fits"] else words.TOO_LARGE.format(room), "bad")
        + note(words.NOT_ENOUGH if hopeless else "", "bad")
        + facts([(words.TIME, f"{time} ({fit['pace']})")])
        + bar(fit["gb"] / max(fit["of_gb"], 0.01), f"{words.MEMORY}: {room}", "" if fit["fits"] else "over")
        + _listed(words.AT_PEAK.format(fit["at"]), [(f"{gigabytes(gb)} GB", name) for name, gb in peak.items()])
        + _listed(words.MAKES_FIT, [(str(number), one) for number, one in enumerate(remedies, 1)])
    )


def _listed(title: str, rows: list[tuple[str, str]]) -> str:
    """What belongs together, side by side while there is room."""
    lines = "".join(f"<li><b>{escape(name)}</b> {escape(value)}</li>" for name, value in rows)
    return f"<h3>{escape(title)}</h3><ul class='buckets'>{lines}</ul>" if rows else ""


def _line(problem: Any) -> str:
    if isinstance(problem, dict):
        return f"{problem.get('where', '')}: {problem.get('what', problem)}"
    return ": ".join(map(str, problem)) if isinstance(problem, (list, tuple)) else str(problem)


def report(answer: dict[str, Any]) -> str:
    """What ``check --json`` knows, for a person."""
    data, model = answer.get("data") or {}, answer.get("model") or {}
    steps, epoch = answer.get("steps"), data.get("steps_per_epoch")
    lengths = words.PER_EPOCH.format(epoch, data.get("samples_per_epoch", "?")) if epoch else ""
    terms, size = answer.get("terms") or {}, answer.get("resolution")
    titles, kinds = fields.objectives(), dict.fromkeys(str(term["objective"]) for term in terms.values())
    rows = [
        (words.MODEL, model.get("title") or model.get("path")),
        (words.DATA, f"{data.get('items', '?')} {data.get('kind', '')}".strip()),
        (words.HELD_OUT, data.get("held_out") or None),
        (words.LENGTH, words.STEPS_EPOCHS.format(steps, answer.get("epochs") or 0)),
        (words.AN_EPOCH, lengths),
        (words.RESOLUTION, " × ".join(map(str, size)) if isinstance(size, list) else size),
        (words.LOSSES, ", ".join(terms)),
        (words.LEARNS_FROM, "; ".join(titles.get(kind, kind) for kind in kinds)),
        (words.WRITES, (answer.get("files") or {}).get("adapter")),
    ]
    buckets = [
        (f"{bucket.get('width')} × {bucket.get('height')}", str(bucket.get("samples")))
        for bucket in data.get("buckets") or []
    ]
    return (
        notes([str(one) for one in answer.get("warnings", [])], "warn")
        + fit_report(answer.get("fit") or {})
        + facts(rows)
        + _listed(words.BUCKETS, buckets)
        + notes([str(one) for found in (model, data, answer) for one in found.get("notes", [])])
    )
