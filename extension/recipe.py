"""Screen 2: the recipe. Three choices first, then what most people change; every other option of the trainer's own
reference and the text of the file in drawers; the check at the end. Form and text are of one file."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer.config import OBJECTIVE, PRESETS
from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.check_report import duration
from ..trainer.runs.events import read_object
from . import check, draft, fetch, fields, hosts, models, words
from .page import (
    EVENT,
    RENDER,
    SLOW,
    Context,
    Screen,
    alert,
    bar,
    changing,
    in_place,
    kindly,
    note,
    option,
    problem_list,
    success,
)
from .security import ANYWHERE, Folders, unquoted
from .store import read_text, write, write_json

PRIMARY = {
    "length": ("run.steps", "run.epochs", "run.batch", "data.resolution"),
    "adapter": ("adapter.kind", "adapter.rank", "adapter.alpha", "optimizer.kind", "optimizer.learning_rate"),
    "loss": ("loss.pixel.mode", "loss.pixel.weight", "data.pairs", "data.ratings", "adapter.init_from"),
}
FIRST = ("model.path", "run.name", "data.targets", "sample.prompts", "sample.every")
"""Fields that everybody meets; all others lie in the drawer, with Kohya's names."""
MOST = 24
"""Options shown at a time in the search."""
GPUS = (6, 8, 12, 16, 24)
"""GB of the GPUs that presets are made for."""
LONGEST = 2.0
"""The length slider goes from a quarter of the preset's steps to four times as many."""


@dataclass(frozen=True)
class Import:
    """A recipe that was read from a file and is not taken yet."""

    text: str
    name: str
    read: int
    unknown: tuple[str, ...]


class Recipe:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home = context, context.home
        self.by_key = fields.rows()
        self.made: dict[str, Any] = {}
        self.based_on, self.version, self.shown = gr.State(""), gr.State(""), gr.State({})
        self.pending, self.looking, self.found = gr.State(None), gr.State(False), gr.State("")
        with gr.Row(elem_classes="tight undo"):
            self.replaced = gr.HTML(elem_id="recipe-replaced")
            self.undo = gr.Button(words.UNDO, size="sm", scale=0, min_width=90, visible=False, elem_id="undo-recipe")
        with gr.Row(elem_classes="with-side"):
            with gr.Column(scale=4):
                self._first()
                with gr.Accordion(words.ALL_OPTIONS, open=False, elem_id="all-options") as drawer:
                    searched = self._more()
                with gr.Accordion(words.FILES, open=False, elem_id="recipe-files"):
                    self._files()
            with gr.Column(scale=1, min_width=240, elem_classes="side"):
                self.status = gr.HTML(elem_id="recipe-status")
                self.changed = gr.HTML(elem_id="difference")
        self.check = check.Check(context)
        self.outputs = [
            self.status, self.preset, self.objective, self.pixel, self.changed, self.toml, self.based_on, self.version,
            self.shown, self.goal, self.tiles, self.length, self.length_note, self.prompts_note, self.replaced,
            self.undo, self.earlier, self.searched, *self.made.values(),
        ]  # fmt: skip
        with searched:
            gr.render(inputs=[self.query, self.table, self.version, self.looking], **RENDER)(self._found)
        drawer.expand(lambda: True, None, [self.looking], **EVENT)
        self.view = [self.toml, self.based_on]
        self._wire()

    def _first(self) -> None:
        """What most people choose."""
        goals = [(words.GOALS[goal], goal) for goal in models.GOALS]
        self.goal = gr.Radio(goals, label=words.GOAL, info=words.GOAL_INFO, elem_id="goal")
        self.tiles = changing(gr.Radio([], label=words.BASE_MODEL, elem_id="models", elem_classes="tiles"))
        with gr.Accordion(words.GET, open=False, elem_id="get-model"):
            self._get()
        with gr.Row(elem_classes="align-end"):
            self._field("model.path", scale=4)
            name, gb = models.gpu()
            info = words.GPU_FOUND.format(name, gb) if name else words.NO_GPU
            sizes = [(words.GPU_SIZE.format(size), size) for size in GPUS]
            self.gpu = gr.Dropdown(sizes, value=self._gpu_gb(), label=words.GPU, info=info, elem_id="gpu", scale=2)
        with gr.Row():
            self._field("run.name")
            self._field("data.targets")
            with gr.Column(scale=2):
                self.length = gr.Slider(
                    -LONGEST, LONGEST, value=0, step=0.5, label=words.LENGTH_SLIDER, elem_id="length",
                    buttons=[],
                )  # fmt: skip
                self.length_note = gr.HTML(elem_id="length-note")
        with gr.Row():
            with gr.Column(scale=3):
                self._field("sample.prompts")
                self.prompts_note = gr.HTML(elem_id="prompts-note")
            with gr.Column(scale=1, min_width=200):
                self._field("sample.every")
                self.pixel = gr.Checkbox(label=words.PIXEL, info=words.PIXEL_INFO, elem_id="pixel")

    def _get(self) -> None:
        """What can be fetched by name, where models are searched, and a folder to search too."""
        self.searched = gr.HTML()
        self.fetched: dict[str, tuple[gr.Button, gr.Button, gr.HTML]] = {}
        for name, source in fetch.BASES.items():
            with gr.Row(elem_classes="align-end tight"):
                about = words.GET_ABOUT.format(source.title, source.gb, source.licence, source.repository)
                line = gr.HTML(note(about + (words.GET_GATED if source.gated else "")), elem_id=f"about-{name}")
                get = gr.Button(
                    words.GET_ONE.format(source.title), size="sm", scale=0, min_width=140, elem_id=f"get-{name}"
                )
                end = gr.Button(words.CANCEL, size="sm", scale=0, min_width=80, elem_id=f"end-{name}")
            self.fetched[name] = (get, end, line)
        with gr.Row(elem_classes="align-end tight"):
            self.folder = gr.Textbox(label=words.MODEL_FOLDER, elem_id="model-folder", scale=4)
            self.inside = changing(gr.Dropdown([], label=words.BROWSE, elem_id="browse", scale=3))
            self.add_folder = gr.Button(words.ADD_FOLDER, scale=0, min_width=170, elem_id="add-models")
        self.not_added = gr.HTML(elem_id="get-model-error")

    def _more(self) -> gr.Column:
        """Every other option, and where the search puts what it finds."""
        self.preset = changing(gr.Dropdown([], label=words.PRESET, info=words.PRESET_INFO, elem_id="preset"))
        kinds = [(title, kind) for kind, title in fields.objectives().items()]
        self.objective = gr.Radio(kinds, label=words.OBJECTIVE, info=words.OBJECTIVE_INFO, elem_id="objective")
        for section, keys in PRIMARY.items():
            with gr.Group(elem_classes="section"):
                gr.HTML(f"<h2>{words.SECTIONS[section]}</h2>")
                with gr.Row():
                    for key in (key for key in keys if key in self.by_key):
                        self._field(key)
        with gr.Row():
            self.query = gr.Textbox(label=words.SEARCH, info=words.SEARCH_INFO, elem_id="search-options", scale=3)
            tables = sorted({key.partition(".")[0] for key in self.by_key if "." in key})
            choices = [(words.ALL_TABLES, ""), *((table, table) for table in tables)]
            self.table = gr.Dropdown(choices, value="", label=words.TABLE, scale=1)
        return gr.Column()

    def _files(self) -> None:
        """The text of the recipe, others to take in, and those that were here before."""
        self.toml = gr.Code(label=words.TOML, lines=12, max_lines=30, elem_id="toml", buttons=["copy"], wrap_lines=True)
        self.apply = gr.Button(words.APPLY_TOML, elem_id="apply-toml")
        self.not_taken = gr.HTML(elem_id="recipe-files-error")
        self.imported = gr.File(label=words.IMPORT, file_types=[".toml", ".json"], height=120, elem_id="import")
        with gr.Row(visible=False, elem_id="import-question") as self.question:
            self.asked = gr.HTML()
            self.take = gr.Button(words.TAKE_IMPORT, variant="primary", scale=0, min_width=150, elem_id="take-import")
            self.leave = gr.Button(words.CANCEL, scale=0, min_width=90, elem_id="leave-import")
        with gr.Row(elem_classes="align-end"):
            self.earlier = changing(gr.Dropdown([], label=words.EARLIER, elem_id="earlier", scale=3))
            self.restore = gr.Button(words.RESTORE, scale=0, min_width=130, elem_id="restore-recipe")
        with gr.Row(elem_classes="align-end"):
            self.own_name = gr.Textbox(label=words.OWN_PRESET, elem_id="own-preset", scale=3)
            self.keep = gr.Button(words.SAVE_PRESET, scale=0, min_width=130, elem_id="save-preset")
        self.kept = gr.HTML(elem_id="own-preset-line")

    def _field(self, key: str, **more: Any) -> None:
        self.made[key] = _field(self.by_key[key][0], key, **more)

    def _found(self, asked: str, of: str, version: str, looking: bool) -> None:
        """The options that a search finds, as fields; none before the drawer is opened, since each is work for the
        browser."""
        if not looking:
            return
        text = draft.read(self.home)
        values = draft.values(text, self.context.folders)
        found = fields.search(self.by_key, asked or "", of or None, _kind(values))
        seen = [key for row in found if self._has_field(key := fields.key_of(row), values)]
        rows = [row for row in found if fields.key_of(row) not in seen]  # no option has two fields
        wrong = _wrong(draft.problems(text, self.home.draft, self.context.folders))
        shown = {fields.key_of(row): _shown_as(row, values) for row in rows[:MOST]}
        if not found:
            gr.HTML(note(words.NOTHING_FOUND))
        elif seen and (asked or "").strip():
            gr.HTML(f'<p class="note" id="found-above">{words.FOUND_ABOVE} {", ".join(map(option, seen))}</p>')
        with gr.Row(elem_classes="cells wide"):
            for row in rows[:MOST]:
                key = fields.key_of(row)
                one = fields.make(row, draft.get(values, key), wrong.get(key), key=f"{key}-{version}")
                filled = [*self.outputs, one, self.found]
                for happened in _when_taken(one):
                    take = in_place(functools.partial(self.edit_found, key, shown), filled, at=0)
                    happened(take, [one, *self.view], filled, **EVENT)
        if len(rows) > MOST:
            gr.HTML(note(words.MORE_FOUND.format(len(rows) - MOST)))

    def _has_field(self, key: str, values: dict[str, Any]) -> bool:
        """Whether the form shows an option in a field of its own."""
        if key == "objective.kind":
            return _objective_shown(values)
        return key == "preset" or (key in self.made and not _hidden(key, values))

    def _wire(self) -> None:
        once: dict[str, Any] = {**EVENT}
        beside = self._beside
        with_error = [*self.outputs, self.not_taken]
        import_with_error = [*self.outputs, self.question, self.pending, self.not_taken]
        for event in (
            self.preset.input(beside(self.choose_preset), [self.preset, *self.view], self.outputs, **once),
            self.goal.input(beside(self.choose_goal), [self.goal, self.gpu, *self.view], self.outputs, **once),
            self.gpu.input(beside(self.choose_gpu), [self.goal, self.gpu, *self.view], self.outputs, **once),
            self.tiles.input(
                beside(self.choose_model), [self.tiles, self.goal, self.gpu, *self.view], self.outputs, **once
            ),
            self.length.release(beside(self.set_length), [self.length, *self.view], self.outputs, **once),
            self.pixel.input(beside(self.set_pixel), [self.pixel, *self.view], self.outputs, **once),
            self.objective.input(beside(self.set_objective), [self.objective, *self.view], self.outputs, **once),
            self.apply.click(in_place(self.apply_text, with_error), [self.toml, self.based_on], with_error, **once),
            self.undo.click(beside(self.undo_replaced), None, self.outputs, **once),
            self.restore.click(in_place(self.restore_earlier, with_error), [self.earlier], with_error, **once),
            self.take.click(in_place(self.take_import, import_with_error), [self.pending], import_with_error, **once),
        ):
            self.check.on_change(event)
        for number, button in enumerate(self.check.buttons):
            applied = button.click(functools.partial(self.check.apply, number), [self.check.offered], None, **EVENT)
            self.check.on_change(applied.success(self.show, self.view, self.outputs, **EVENT))
        self.check.on_change(self.check.fixed.success(self.show, self.view, self.outputs, **EVENT))
        for name, (get, end, line) in self.fetched.items():
            fetch_it = in_place(functools.partial(fetching, self.home, name), [line])
            fetched = get.click(fetch_it, None, [line], **EVENT)
            fetched.success(self.show, self.view, self.outputs, **EVENT)
            end.click(functools.partial(fetch.stop, self.home, name), None, None, **EVENT)
        listed = [self.inside, self.not_added]
        for happened in (self.inside.focus, self.folder.submit):
            happened(in_place(self.browse, listed), [self.folder], listed, **EVENT)
        entered = self.inside.input(lambda path: path, [self.inside], [self.folder], **EVENT)
        entered.success(in_place(self.browse, listed), [self.folder], listed, **EVENT)
        added = self.add_folder.click(in_place(self.add_models, listed), [self.folder], listed, **EVENT)
        added.success(self.show, self.view, self.outputs, **EVENT)
        asked = [self.question, self.asked, self.pending, self.not_taken]
        read = self.imported.upload(
            in_place(self.read_file, asked), [self.imported], asked, show_progress_on=[self.imported], **SLOW
        )
        for ended in (read.success, read.failure):  # so that another can be dropped
            ended(lambda: None, None, [self.imported], **EVENT)
        self.leave.click(lambda: (gr.update(visible=False), None), None, [self.question, self.pending], **EVENT)
        kept = [self.preset, self.kept]
        self.keep.click(in_place(self.save_preset, kept), [self.own_name], kept, **EVENT)
        self.made["sample.prompts"].input(
            self.filled, [self.made["sample.prompts"]], [self.prompts_note], trigger_mode="always_last", **EVENT
        )
        for key, one in self.made.items():
            self._taken(one, functools.partial(self.edit, key), [one, self.shown])
        # What follows an edit of a found field is no event of that field, which another search takes away meanwhile.
        self.found.change(self.check.settle, [self.check.start_state], self.check.outputs, **EVENT)

    def _taken(self, one: Any, function: Any, inputs: list[Any]) -> None:
        for happened in _when_taken(one):
            self.check.on_change(happened(self._beside(function), [*inputs, *self.view], self.outputs, **EVENT))

    def _beside(self, function: Any) -> Any:
        """``function`` with its errors shown beside the form."""
        return in_place(function, self.outputs, at=0)

    def show(self, typed: str = "", based_on: str = "", refused: draft.Problem | None = None) -> list[Any]:
        """The form and the text as the file has them. A text that somebody is writing in the box (``typed``, from the
        version ``based_on``) stays. ``refused``: an edit that was not taken, and why."""
        text = draft.read(self.home)
        values = draft.values(text, self.context.folders)
        problems = draft.problems(text, self.home.draft, self.context.folders) + ([refused] if refused else [])
        wrong = _wrong(problems)
        kind, preset = _kind(values), str(draft.get(values, "preset", "") or "")
        rows = {key: _fitting(self.by_key, key, kind) for key in self.made}
        shown = {key: _shown_as(row, values) for key, row in rows.items()}
        filled = [_filled(row, key, shown[key], values, wrong) for key, row in rows.items()]
        good = note(words.RECIPE_OK, "good") if not problems else problem_list(problems)
        mark = draft.mark(text)
        writing = bool(based_on) and draft.mark(typed) != based_on
        because = draft.replaced(self.home)
        parts = models.preset_parts(preset)
        prompts = "\n".join(map(str, draft.get(values, "sample.prompts") or []))
        path = str(draft.get(values, "model.path") or "")
        return [
            good, gr.update(choices=presets(self.home), value=preset),
            gr.update(value=kind, visible=_objective_shown(values)),
            gr.update(value=_pixel_on(values), info=_pixel_info(self.home), visible=not _dense(values)),
            _difference(text, self.context.folders),
            gr.skip() if writing else text, gr.skip() if writing else mark, mark, shown,
            gr.update(value=self._goal(preset, parts[1] if parts else "", kind)), self._tiles(path),
            gr.update(value=_length(values, self._preset_steps())), self._length_note(values), self.filled(prompts),
            note(words.REPLACED_BY.format(because), "warn") if because is not None else "",
            gr.update(visible=because is not None), gr.update(choices=_earlier(self.home), value=None),
            self._searched(), *filled,
        ]  # fmt: skip

    @kindly
    def edit(self, key: str, entered: Any, shown: dict[str, Any], typed: str = "", based_on: str = "") -> list[Any]:
        """One option changed in its field, which showed what ``shown`` says. No field gets a value by this: what is
        being typed in another stays. Only one that another window has changed meanwhile shows that."""
        values = self.context.recipe()
        row = _fitting(self.by_key, key, _kind(values))
        current = _shown_as(row, values)
        entered = unquoted(entered) if key in draft.FILES and isinstance(entered, str) else entered
        value, *others = (fields.read(row, one) for one in (entered, shown.get(key, current), current))
        try:
            if draft.untouched(key, value, *others):
                return [gr.skip()] * len(self.outputs)
        except UserError as error:
            where, _, what = str(error).partition(": ")
            return self._only(key, {**shown, key: current}, typed, based_on, draft.Problem(where, what))
        self.context.change({key: None if value == row["default"] and self._inherited(key) is None else value})
        shown[key] = _shown_as(row, self.context.recipe())  # of a field that was emptied, what holds now
        now = self._only("", shown, typed, based_on)
        now[self.outputs.index(self.shown)] = gr.skip()
        if value is None and key in self.made and fields.kind(row) in ("text", "lines", "whole"):
            now[self.outputs.index(self.made[key])]["placeholder"] = str(shown[key] or words.UNSET)
        return now

    def edit_found(self, key: str, shown: dict[str, Any], entered: Any, typed: str, based_on: str) -> list[Any]:
        """As ``edit``, for a field of the search, which is built with what it shows, and which says what is wrong."""
        now = self.edit(key, entered, shown, typed, based_on)
        now[self.outputs.index(self.shown)] = gr.skip()  # that is what the fields of the form show
        text, values = draft.read(self.home), self.context.recipe()
        row = _fitting(self.by_key, key, _kind(values))
        wrong = _wrong(draft.problems(text, self.home.draft, self.context.folders))
        field = fields.dress(row, wrong.get(key))
        if shown[key] != (current := _shown_as(row, values)):  # another window's, which stays
            shown[key] = field["value"] = current
        return [*now, gr.update(**field), draft.mark(text)]

    def _only(
        self, key: str, shown: dict[str, Any], typed: str, based_on: str, refused: draft.Problem | None = None
    ) -> list[Any]:
        """The screen, with a new value for one field at most."""
        now = self.show(typed, based_on, refused)
        for one in (self.preset, self.version, self.goal, self.tiles, self.length, self.earlier):
            now[self.outputs.index(one)] = gr.skip()
        for one in (self.objective, self.pixel):
            now[self.outputs.index(one)].pop("value")
        now[self.outputs.index(self.shown)] = shown
        for name, at in zip(self.made, range(len(now) - len(self.made), len(now))):
            if name != key:
                now[at].pop("value")
        return now

    @kindly
    def choose_preset(self, name: str, typed: str = "", based_on: str = "") -> list[Any]:
        if (name or "") == str(draft.get(self.context.recipe(), "preset", "") or ""):
            return [gr.skip()] * len(self.outputs)  # the field was only left
        draft.choose_preset(self.home, name or None, self.context.folders)
        return self.show(typed, based_on)

    @kindly
    def choose_goal(self, goal: str, gb: int, typed: str = "", based_on: str = "") -> list[Any]:
        self._fit_preset(goal, gb)
        return self.show(typed, based_on)

    @kindly
    def choose_gpu(self, goal: str | None, gb: int, typed: str = "", based_on: str = "") -> list[Any]:
        settings = read_object(self.home.settings)
        if gb == self._gpu_gb():
            return [gr.skip()] * len(self.outputs)
        write_json(self.home.settings, {**settings, "gpu_gb": gb})
        self._fit_preset(goal, gb)
        return self.show(typed, based_on)

    @kindly
    def choose_model(self, path: str, goal: str | None, gb: int, typed: str = "", based_on: str = "") -> list[Any]:
        self.context.folders.allow("model.path", path)
        self.context.change({"model.path": path})
        self._fit_preset(goal, gb)
        return self.show(typed, based_on)

    def _goal(self, preset: str, of_preset: str, kind: str) -> str | None:
        """What it learns: as the preset says, else as it was chosen."""
        chosen = read_object(self.home.settings).get("goal")
        if kind != OBJECTIVE:
            return "preference"
        if of_preset or preset == "demo_dense":
            return of_preset or "depth"
        usual = "style" if preset == "demo" else None  # what the demo's pictures teach
        return chosen if chosen in models.GOALS and chosen not in ("preference", "depth", "normal") else usual

    def _fit_preset(self, goal: str | None, gb: int) -> None:
        """The preset that the three choices ask for; the one that is there stays where none does."""
        write_json(self.home.settings, {**read_object(self.home.settings), "goal": goal})
        values = self.context.recipe()
        path, now = str(draft.get(values, "model.path") or ""), str(draft.get(values, "preset", "") or "")
        parts = models.preset_parts(now)
        model = models.look(Path(path)) if path else None
        family = (model.family if model else "") or (parts[0] if parts else "") or ("sd15" if goal else "")
        if model and model.path == models.BUNDLED:
            wanted = {"preference": "demo_dpo", "depth": "demo_dense"}.get(goal or "", "demo")
        else:
            wanted = models.choose_preset((name for _, name in presets(self.home)), family, goal or "", gb)
        if wanted and wanted != now:
            draft.choose_preset(self.home, wanted, self.context.folders)
            if path:
                self.context.change({"model.path": path})

    @kindly
    def set_length(self, at: float, typed: str = "", based_on: str = "") -> list[Any]:
        steps = self._preset_steps()
        wanted = max(1, round(steps * 2**at))
        wanted = round(wanted, -1) if wanted > 40 else wanted
        self.context.change(
            {"run.epochs": None, "run.steps": None if at == 0 and self._inherited("run.steps") else wanted}
        )
        return self.show(typed, based_on)

    @kindly
    def set_pixel(self, on: bool, typed: str = "", based_on: str = "") -> list[Any]:
        inherited = self._inherited("loss.pixel") is not None
        if inherited and not on:
            self.context.change({"loss.pixel": None, "loss.pixel.weight": 0.0})
        else:
            self.context.change({"loss.pixel": {} if on and not inherited else None})
        return self.show(typed, based_on)

    @kindly
    def set_objective(self, kind: str, typed: str = "", based_on: str = "") -> list[Any]:
        self.context.change({"objective": None if kind == OBJECTIVE else {"kind": kind}})
        return self.show(typed, based_on)

    @kindly
    def apply_text(self, text: str, mark: str) -> list[Any]:
        """The text in the box as the recipe, if that is the one that the text was made from; else the box keeps what
        was typed, and may be applied over what the screen now shows."""
        try:
            draft.replace(self.home, text, mark)
        except draft.Changed as error:
            now = self.show(text, mark)
            now[self.outputs.index(self.toml)] = gr.skip()
            now[self.outputs.index(self.based_on)] = error.mark
            return [*now, alert(str(error))]
        return self.show()

    @kindly
    def undo_replaced(self) -> list[Any]:
        draft.undo(self.home)
        return self.show()

    @kindly
    def restore_earlier(self, path: str | None) -> list[Any]:
        found = next((one for one in draft.earlier(self.home) if str(one.path) == path), None)
        if found is None:
            raise UserError(words.NO_EARLIER)
        draft.start_over(self.home, read_text(found.path), words.AN_EARLIER)
        return self.show()

    @kindly
    def read_file(self, path: str | None) -> list[Any]:
        """What a dropped file would do; nothing is replaced yet."""
        if not path:
            return [gr.skip()] * 3
        file = Path(path)
        try:
            found = look_into(file, self.by_key, self.context.folders)
        except UserError as error:  # without the folder that the upload lies in
            raise UserError(str(error).replace(str(file), file.name)) from None
        line = words.IMPORTED.format(found.name, words.number(found.read, words.OPTIONS))
        if found.unknown:
            line += words.UNKNOWN.format(len(found.unknown), ", ".join(found.unknown[:8]))
        return [gr.update(visible=True), note(line), found]

    @kindly
    def take_import(self, found: Import | None) -> list[Any]:
        if found is None:
            raise UserError(words.NO_IMPORT)
        draft.start_over(self.home, found.text, found.name)
        return [*self.show(), gr.update(visible=False), None]

    @kindly
    def save_preset(self, name: str) -> list[Any]:
        """The recipe as a preset of one's own, without what is of this folder of pictures alone."""
        own = draft.values_of(draft.read(self.home))
        path = own_presets(self.home) / f"{control_name(name)}.toml"
        whole = draft.values(draft.read(self.home), self.context.folders)
        for key in draft.OF_A_FOLDER:
            table, _, leaf = key.partition(".")
            if isinstance(whole.get(table), dict):
                whole[table] = {k: v for k, v in whole[table].items() if k != leaf}
        whole.pop("preset", None)
        if path.exists():
            raise UserError(words.PRESET_THERE.format(path.stem))
        write(path, f"# {own.get('preset') or words.NO_PRESET}, {time.strftime('%Y-%m-%d')}\n" + draft.dumps(whole))
        return [gr.update(choices=presets(self.home)), success(words.PRESET_SAVED.format(path.stem))]

    @kindly
    def browse(self, folder: str) -> list[Any]:
        """What lies in a folder of this machine: folders to go into, and models to choose."""
        given = folder.strip() or str(Path.home())
        path = self.context.folders.check(words.WHERE_FOLDER, given)
        inside = [one for one in sorted(path.iterdir()) if not one.name.startswith(".")]
        folders = [(f"{one.name}/", str(one)) for one in inside if one.is_dir()]
        choices = [(words.UP, str(path.parent)), *folders]
        return [gr.update(choices=choices, label=words.OPEN_FOLDER_IN.format(path), value=None)]

    @kindly
    def add_models(self, folder: str) -> list[Any]:
        hosts.add_models(self.home, self.context.folders.check(words.WHERE_FOLDER, folder))
        return [gr.skip()]

    def _searched(self) -> str:
        places = [str(folder) for host in hosts.find(self.home) for folder in host.checkpoints]
        places += [str(folder) for folder in model_folders(self.home)]
        return note(words.SEARCHED.format(", ".join(places) or words.NO_FOLDERS))

    def filled(self, typed: str) -> str:
        """The prompts as they will be drawn, while they are typed."""
        values = self.context.recipe()
        texts = [line.strip() for line in typed.split("\n") if line.strip()]
        trigger = draft.get(values, "data.trigger") or ""
        missing = draft.without_trigger({"data": {"trigger": trigger}, "sample": {"prompts": texts}})
        out = [
            note(words.DRAWN_AS.format(drawn))
            for text, drawn in zip(texts, draft.fill_trigger(texts, trigger))
            if drawn != text
        ]
        if missing:
            out.append(note(words.NO_TRIGGER.format(len(missing), len(texts), trigger), "warn"))
        return "".join(out)

    def _tiles(self, path: str) -> Any:
        found = models.found(hosts.find(self.home), model_folders(self.home))
        choices = [(one.title, str(one.path)) for one in found]
        return gr.update(choices=choices, value=path if path in [value for _, value in choices] else None)

    def _gpu_gb(self) -> int:
        """What was chosen, or the size below what the driver reports; the middle where it reports nothing."""
        chosen = read_object(self.home.settings).get("gpu_gb")
        if chosen in GPUS:
            return int(chosen)
        _, gb = models.gpu()
        return max((size for size in GPUS if size <= gb + 0.6), default=12 if not gb else GPUS[0])

    def _preset_steps(self) -> int:
        steps = self._inherited("run.steps")
        return steps if isinstance(steps, int) and steps > 0 else 1000

    def _length_note(self, values: dict[str, Any]) -> str:
        steps, epochs = draft.get(values, "run.steps"), draft.get(values, "run.epochs")
        answer = check.last_answer(self.home)
        per_epoch = (answer.get("data") or {}).get("steps_per_epoch")
        if isinstance(epochs, int) and not steps:
            line = words.number(epochs, words.EPOCHS)
            steps = epochs * per_epoch if per_epoch else None
        else:
            steps = steps if isinstance(steps, int) else 1000
            line = words.number(steps, words.STEPS)
            line += f" = {words.EPOCHS_OF.format(steps / per_epoch)}" if per_epoch else ""
        takes = duration(answer.get("fit") or {}, steps) if steps else ""
        return note(line + (f", {takes}" if takes else ""))

    def _inherited(self, key: str) -> Any:
        """What the preset says of an option."""
        return draft.get(draft.inherited(draft.values_of(draft.read(self.home)), self.context.folders), key)


def fetching(home: Any, name: str) -> Iterator[str]:
    """Fetch what has this name, and say how far it is."""
    source = fetch.SOURCES[name]
    fetch.start(home, name)
    while (now := fetch.state(home, name)).live:
        yield bar(now.gb / source.gb, words.FETCHING.format(source.title, now.gb, source.gb))
        time.sleep(1)
    if now.done:
        yield success(words.FETCHED.format(source.title, fetch.place(home, name)))
    else:
        yield note(now.message or words.STOPPED_FETCHING, "warn")


def build(context: Context) -> Screen:
    screen = Recipe(context)
    return Screen(screen.show, screen.outputs, screen.view, {"check": screen.check})


def _length(values: dict[str, Any], preset_steps: int) -> float:
    steps = draft.get(values, "run.steps")
    if not isinstance(steps, int) or steps < 1:
        return 0.0
    return max(-LONGEST, min(LONGEST, round(2 * math.log2(steps / preset_steps)) / 2))


def _dense(values: dict[str, Any]) -> bool:
    """Whether the run learns maps of pictures: it has targets, and neither captions nor prompts."""
    return draft.get(values, "dense") is not None


def _pixel_on(values: dict[str, Any]) -> bool:
    return draft.get(values, "loss.pixel") is not None and draft.get(values, "loss.pixel.weight") != 0


def _pixel_info(home: Any) -> str:
    """What it does, and what it cost in the last check where that had it on."""
    times = (check.last_answer(home).get("fit") or {}).get("computing") or 0
    return words.PIXEL_INFO + (f" {words.COMPUTE}: {words.COMPUTE_TIMES.format(times)}." if times > 1 else "")


def _kind(values: dict[str, Any]) -> str:
    return str(draft.get(values, "objective.kind", OBJECTIVE))


def _fitting(by_key: Any, key: str, kind: str) -> fields.Row:
    return fields.fitting(by_key[key], kind) or by_key[key][0]


def _field(row: fields.Row, key: str, **more: Any) -> gr.components.Component:
    other = words.OTHER_MODEL if key == "model.path" else fields.label(row)
    common = {
        "label": other,
        **fields.dress(row, None, kohya=False),
        "elem_id": f"field-{key.replace('.', '-')}",
        **more,
    }
    if key == "model.path":
        return gr.Textbox(max_lines=1, placeholder=words.MODEL_PLACEHOLDER, min_width=320, **common)
    if key == "sample.prompts":
        return gr.Textbox(lines=3, max_lines=8, min_width=320, **common)
    return fields.make(row, None, min_width=200, elem_id=common["elem_id"])


def _wrong(problems: list[draft.Problem]) -> dict[str, str]:
    """What is wrong with each option, for its field: of several problems the first."""
    return {fields.option_at(one.where) or one.where: one.what for one in reversed(problems)}


def _shown_as(row: fields.Row, values: dict[str, Any]) -> Any:
    """The recipe's value as its field shows it."""
    return fields.show(row, draft.get(values, fields.key_of(row)))


def _when_taken(one: Any) -> tuple[Any, ...]:
    """Texts are taken when left or entered, the rest at once."""
    return (one.blur, one.submit) if isinstance(one, (gr.Textbox, gr.Number)) else (one.input,)


def _objective_shown(values: dict[str, Any]) -> bool:
    parts = models.preset_parts(str(draft.get(values, "preset", "") or ""))
    return _kind(values) != OBJECTIVE or bool(parts and parts[1] == "preference")


def _hidden(key: str, values: dict[str, Any]) -> bool:
    """Whether the form leaves a field of its own out, as it means nothing in this recipe."""
    return (
        (key.startswith("loss.pixel.") and not _pixel_on(values))
        or (key in ("data.pairs", "data.ratings") and key != fields.usual_data(_kind(values)))
        or (key == "data.targets" and not _dense(values))
        or (key == "sample.prompts" and _dense(values))
    )


def _filled(row: fields.Row, key: str, shown: Any, values: dict[str, Any], wrong: dict[str, str]) -> Any:
    """The field with the recipe's value, and with what is wrong with it."""
    problem = wrong.get(key)
    return gr.update(
        value=shown, visible=not _hidden(key, values), **fields.dress(row, problem, kohya=key not in FIRST)
    )


def own_presets(home: Any) -> Path:
    return home.own / "presets"


def model_folders(home: Any) -> list[Path]:
    """Folders of models: the one that the page fills, and those that a person added."""
    return [folder for folder in hosts.model_places(home) if folder.is_dir()]


def presets(home: Any) -> list[tuple[str, str]]:
    """What is shown and the name, the bundled ones first; one's own by their path, as the trainer finds them."""
    own = sorted(own_presets(home).glob("*.toml"))
    return [(words.NO_PRESET, ""), *bundled_presets(), *((words.OWN.format(path.stem), str(path)) for path in own)]


@cache
def bundled_presets() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PRESETS.glob("*.toml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").strip()
        found.append((first if first.lower().startswith(path.stem.lower()) else f"{path.stem}: {first}", path.stem))
    return found


def control_name(name: str) -> str:
    """A name for a file. UserError for what is none."""
    from ..trainer.runs.folder import safe_name

    return safe_name(name.strip())


def _earlier(home: Any) -> list[tuple[str, str]]:
    return [
        (
            words.EARLIER_ONE.format(
                time.strftime("%Y-%m-%d %H:%M", time.localtime(one.t)), one.name or words.NO_NAME,
                Path(one.preset).stem if one.preset else words.NO_PRESET, words.number(one.changes, words.CHANGES),
            ),
            str(one.path),
        )
        for one in draft.earlier(home)
    ]  # fmt: skip


def _difference(text: str, folders: Folders) -> str:
    rows = draft.difference(text, folders)
    if not rows:
        return f"<h2>{words.DIFFERENCE}</h2>{note(words.NO_DIFFERENCE)}"
    cells = "".join(
        f"<li>{option(key)} {escape(_shown(new))}"
        + (f" <small>({words.OF_PRESET.format(escape(_shown(old)))})</small>" if old is not None else "")
        + "</li>"
        for key, old, new in rows
    )
    return f"<h2>{words.DIFFERENCE}</h2><ul class='difference' tabindex='0'>{cells}</ul>"


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value) if value != {} else "on"
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


# -------------------------------------------------------------------------------------------------------------- import


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
        raise UserError(words.NOT_IMPORTED.format(path.name))
    return text


def look_into(path: Path, by_key: Any, folders: Folders) -> Import:
    """What an import would bring. UserError for a file in which no option is known."""
    tables = draft.values_of(read_text(path)) if path.suffix.lower() == ".toml" else read_object(path)
    ours = "config_version" in tables
    given = draft.flat(draft.values_of(draft.current(read_text(path))) if ours else tables)
    known = {*by_key, "preset", "config_version"} if ours else kohya_names(by_key)
    unknown = [key for key in given if not _is_known(key, known, ours)]
    if len(unknown) == len(given) or not set(given) - {"config_version"}:
        raise UserError(words.NOTHING_KNOWN.format(path.name))
    return Import(read_import(path, folders), path.name, len(given) - len(unknown) - ours, tuple(unknown))


def _is_known(key: str, known: set[str], ours: bool) -> bool:
    if ours:  # an empty table, and the tables of data sets, are options too
        return key in known or key == "data.sets" or any(one.startswith(f"{key}.") for one in known)
    return key.rpartition(".")[2] in known


def kohya_names(by_key: Any) -> set[str]:
    """What sd-scripts and its window call their options."""
    from ..trainer.kohya import gui, names

    named = {str(row["kohya"]) for rows in by_key.values() for row in rows if row["kohya"]}
    return named | set(names.arguments()) | set(gui.RENAMED) | set(gui.OTHERS) | {"datasets", "subsets", "general"}
