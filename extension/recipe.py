"""Screen 2: the recipe as a form and as TOML, both of one file; every option comes from the trainer's own reference."""

from __future__ import annotations

import functools
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer.config import OBJECTIVE, PRESETS
from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.events import read_object
from . import draft, fields, hosts, words
from .page import EVENT, RENDER, SLOW, Context, Screen, kindly, note, problem_list, say_copy
from .security import ANYWHERE, Folders
from .store import read_text

PRIMARY = {
    "base": ("model.path", "run.name"),
    "length": ("run.steps", "run.epochs", "run.batch", "data.resolution"),
    "adapter": ("adapter.kind", "adapter.rank", "adapter.alpha", "optimizer.kind", "optimizer.learning_rate"),
    "loss": ("loss.pixel.mode", "loss.pixel.weight", "data.pairs", "data.ratings", "adapter.init_from"),
    "previews": ("sample.prompts", "sample.every"),
}
MOST = 24
"""Options shown at a time in the search."""


class Recipe:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home = context, context.home
        self.by_key = fields.rows()
        self.made: dict[str, Any] = {}
        self.based_on, self.version, self.shown = gr.State(""), gr.State(""), gr.State({})
        with gr.Row(elem_classes="with-side"):
            with gr.Column(scale=3):
                self._form()
                with gr.Accordion(words.ALL_OPTIONS, open=False, elem_id="all-options"):
                    with gr.Row():
                        self.query = gr.Textbox(
                            label=words.SEARCH, info=words.SEARCH_INFO, elem_id="search-options", scale=3
                        )
                        tables = sorted({key.partition(".")[0] for key in self.by_key if "." in key})
                        choices = [(words.ALL_TABLES, ""), *((table, table) for table in tables)]
                        self.table = gr.Dropdown(choices, value="", label=words.TABLE, scale=1)
                    searched = gr.Column()
            with gr.Column(scale=2, min_width=320, elem_classes="side"):
                self.changed = gr.HTML(elem_id="difference")
                self.toml = gr.Code(label=words.TOML, lines=18, max_lines=40, elem_id="toml", buttons=["copy"])
                self.apply = gr.Button(words.APPLY_TOML, elem_id="apply-toml")
                self.imported = gr.File(label=words.IMPORT, file_types=[".toml", ".json"], height=150)
        self.outputs = [
            self.status, self.preset, self.objective, self.pixel, self.changed, self.toml, self.based_on, self.version,
            self.shown, *self.made.values(),
        ]  # fmt: skip
        with searched:
            gr.render(inputs=[self.query, self.table, self.version], **RENDER)(self._found)
        self._wire()

    def _form(self) -> None:
        self.status = gr.HTML(elem_id="recipe-status")
        self.preset = gr.Dropdown([], label=words.PRESET, info=words.PRESET_INFO, elem_id="preset")
        for section, keys in PRIMARY.items():
            with gr.Group(elem_classes="section"):
                gr.HTML(f"<h3>{words.SECTIONS[section]}</h3>")
                if section == "loss":
                    kinds = [(title, kind) for kind, title in fields.objectives().items()]
                    self.objective = gr.Radio(
                        kinds, label=words.OBJECTIVE, info=words.OBJECTIVE_INFO, elem_id="objective"
                    )
                    self.pixel = gr.Checkbox(label=words.PIXEL, info=words.PIXEL_INFO, elem_id="pixel")
                with gr.Row():
                    for key in (key for key in keys if key in self.by_key):
                        self.made[key] = _field(self.by_key[key][0], key, self.home)

    def _found(self, asked: str, of: str, version: str) -> None:
        """The options that a search finds, as fields."""
        text = draft.read(self.home)
        values = draft.values(text, self.context.folders)
        rows = fields.search(self.by_key, asked or "", of or None, _kind(values))
        wrong = {one.where: one.what for one in draft.problems(text, self.home.draft, self.context.folders)}
        shown = {fields.key_of(row): _shown_as(row, values) for row in rows[:MOST]}
        if not rows:
            gr.HTML(note(words.NOTHING_FOUND))
        with gr.Row(elem_classes="cells wide"):
            for row in rows[:MOST]:
                key = fields.key_of(row)
                one = fields.make(row, draft.get(values, key), wrong.get(key), key=f"{key}-{version}")
                _wire(one, functools.partial(self.edit, key, shown=shown), [one], self.outputs)
        if len(rows) > MOST:
            gr.HTML(note(words.MORE_FOUND.format(len(rows) - MOST)))

    def _wire(self) -> None:
        self.preset.input(self.choose_preset, [self.preset], self.outputs, **EVENT)
        self.pixel.input(self.set_pixel, [self.pixel], self.outputs, **EVENT)
        self.objective.input(self.set_objective, [self.objective], self.outputs, **EVENT)
        self.apply.click(self.apply_text, [self.toml, self.based_on], self.outputs, **EVENT)
        read = self.imported.upload(
            self.import_file, [self.imported], self.outputs, show_progress_on=[self.imported], **SLOW
        )
        for ended in (read.success, read.failure):  # so that another can be dropped
            ended(lambda: None, None, [self.imported], **EVENT)
        for key, one in self.made.items():
            _wire(one, functools.partial(self.edit, key), [one, self.shown], self.outputs)

    def show(self) -> list[Any]:
        """The form and the text as the file has them."""
        text = draft.read(self.home)
        values = draft.values(text, self.context.folders)
        problems = draft.problems(text, self.home.draft, self.context.folders)
        wrong = {one.where: one.what for one in problems}
        kind = _kind(values)
        rows = {key: _fitting(self.by_key, key, kind) for key in self.made}
        shown = {key: _shown_as(row, values) for key, row in rows.items()}
        filled = [_filled(row, key, shown[key], values, wrong) for key, row in rows.items()]
        good = note(words.RECIPE_OK, "good") if not problems else problem_list(problems)
        mark = draft.mark(text)
        return [
            good, gr.update(choices=_presets(), value=draft.get(values, "preset", "")), kind,
            _pixel_on(values), _difference(text, self.context.folders), text, mark, mark, shown, *filled,
        ]  # fmt: skip

    @kindly
    def edit(self, key: str, entered: Any, shown: dict[str, Any]) -> list[Any]:
        """One option changed in its field, which showed what ``shown`` says. No field gets a value by this: what is
        being typed in another stays."""
        values = self.context.recipe()
        row = _fitting(self.by_key, key, _kind(values))
        current = _shown_as(row, values)
        value, *others = (fields.read(row, one) for one in (entered, shown.get(key, current), current))
        if draft.untouched(key, value, *others):
            return [gr.skip()] * len(self.outputs)
        self.context.change({key: None if value == row["default"] and self._inherited(key) is None else value})
        shown[key] = entered
        now = self.show()
        for one in (self.preset, self.objective, self.pixel, self.version, self.shown):
            now[self.outputs.index(one)] = gr.skip()
        for at in range(len(now) - len(self.made), len(now)):
            now[at].pop("value")
        return now

    @kindly
    def choose_preset(self, name: str) -> list[Any]:
        say_copy(draft.choose_preset(self.home, name or None, self.context.folders))
        return self.show()

    @kindly
    def set_pixel(self, on: bool) -> list[Any]:
        inherited = self._inherited("loss.pixel") is not None
        if inherited and not on:
            self.context.change({"loss.pixel": None, "loss.pixel.weight": 0.0})
        else:
            self.context.change({"loss.pixel": {} if on and not inherited else None})
        return self.show()

    @kindly
    def set_objective(self, kind: str) -> list[Any]:
        self.context.change({"objective": None if kind == OBJECTIVE else {"kind": kind}})
        return self.show()

    @kindly
    def apply_text(self, text: str, mark: str) -> list[Any]:
        draft.replace(self.home, text, mark)
        return self.show()

    @kindly
    def import_file(self, path: str | None) -> list[Any]:
        if path:
            say_copy(draft.start_over(self.home, read_import(Path(path), self.context.folders)))
            gr.Info(words.READ)
        return self.show()

    def _inherited(self, key: str) -> Any:
        """What the preset says of an option."""
        return draft.get(draft.inherited(draft.values_of(draft.read(self.home)), self.context.folders), key)


def build(context: Context) -> Screen:
    screen = Recipe(context)
    return Screen(screen.show, screen.outputs)


def _pixel_on(values: dict[str, Any]) -> bool:
    return draft.get(values, "loss.pixel") is not None and draft.get(values, "loss.pixel.weight") != 0


def _kind(values: dict[str, Any]) -> str:
    return str(draft.get(values, "objective.kind", OBJECTIVE))


def _wire(one: Any, function: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """Texts are taken when left or entered, the rest at once."""
    if isinstance(one, (gr.Textbox, gr.Number)):
        one.blur(function, inputs, outputs, **EVENT)
        one.submit(function, inputs, outputs, **EVENT)
    else:
        one.input(function, inputs, outputs, **EVENT)


def _fitting(by_key: Any, key: str, kind: str) -> fields.Row:
    return fields.fitting(by_key[key], kind) or by_key[key][0]


def _field(row: fields.Row, key: str, home: Any) -> gr.components.Component:
    common = {"label": fields.label(row), "info": row["help"], "elem_id": f"field-{key.replace('.', '-')}"}
    if key == "model.path":
        return gr.Dropdown(hosts.models(hosts.find(home)), allow_custom_value=True, min_width=320, **common)
    if key == "sample.prompts":
        return gr.Textbox(lines=3, max_lines=8, min_width=320, **common)
    return fields.make(row, None, min_width=200, elem_id=common["elem_id"])


def _shown_as(row: fields.Row, values: dict[str, Any]) -> Any:
    """The recipe's value as its field shows it."""
    return fields.show(row, draft.get(values, fields.key_of(row)))


def _filled(row: fields.Row, key: str, shown: Any, values: dict[str, Any], wrong: dict[str, str]) -> Any:
    """The field with the recipe's value, and with what is wrong with it."""
    problem = wrong.get(key)
    hidden = (key.startswith("loss.pixel.") and not _pixel_on(values)) or (
        key in ("data.pairs", "data.ratings") and key != fields.usual_data(_kind(values))
    )
    return gr.update(value=shown, visible=not hidden, **fields.dress(row, problem))


def _presets() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PRESETS.glob("*.toml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").strip()
        found.append((first if first.lower().startswith(path.stem.lower()) else f"{path.stem}: {first}", path.stem))
    return [(words.NO_PRESET, ""), *found]


def _difference(text: str, folders: Folders) -> str:
    rows = draft.difference(text, folders)
    if not rows:
        return f"<h3>{words.DIFFERENCE}</h3>{note(words.NO_DIFFERENCE)}"
    cells = "".join(
        f"<li><code>{escape(key)}</code> {escape(_shown(new))}"
        + (f" <small>({words.OF_PRESET.format(escape(_shown(old)))})</small>" if old is not None else "")
        + "</li>"
        for key, old, new in rows
    )
    return f"<h3>{words.DIFFERENCE}</h3><ul class='difference'>{cells}</ul>"


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value) if value != {} else "on"
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def read_import(path: Path, folders: Folders = ANYWHERE) -> str:
    """A recipe from a dropped file: our TOML as it is, kohya's through the trainer. UserError when neither, or when
    kohya's names a file that who is at this page may not read, since the trainer would read it."""
    text = read_text(path)
    tables = draft.values_of(text) if path.suffix.lower() == ".toml" else read_object(path)
    if "config_version" in tables:
        return text
    for key, value in draft.flat(tables).items():
        folders.allow(key, value)
    answer = control.ask(["import-kohya", str(path)])
    text = answer.get("toml")
    if not isinstance(text, str):
        raise UserError(f"{path.name}: the trainer could not make a recipe of it")
    return text
