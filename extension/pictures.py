"""Screen 1: a folder of pictures, their captions, and what to know of them before training."""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer import config
from ..trainer.errors import UserError
from ..trainer.runs.events import read_object
from . import (
    captioner,
    captions,
    card,
    crops,
    draft,
    edits,
    fetch,
    fields,
    grid,
    images,
    tagger,
    targets,
    tokens,
    words,
)
from .page import EVENT, SLOW, Context, Screen, alert, changing, in_place, kindly, note, notes, success
from .recipe import fetching, read_import
from .security import unquoted
from .store import ROOT, write_json

LOOK_SECONDS = 1.0
"""How long a look at the pictures' sizes may hold up the page; the rest is looked at after it is shown."""
KINDS = [*images.ENDINGS, *images.OTHERS, ".txt"]
MOST_TAGS = 60
DEMO = ROOT / "presets" / "pictures" / "style"
ALL_JS = "() => document.dispatchEvent(new CustomEvent('choose-pictures', { detail: true }))"
NONE_JS = "() => document.dispatchEvent(new CustomEvent('choose-pictures', { detail: false }))"
TAG_JS = """element.addEventListener("click", (event) => {
  const tag = event.target.closest("[data-tag]");
  if (tag) trigger("select", { tag: tag.dataset.tag });
});"""


FIELD = "(typed, shown, now) => [typed.trim() && typed !== shown ? typed : now, now]"
"""In the browser, where nothing can be typed meanwhile: a path that was typed and is not opened yet stays."""


class Pictures:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.undo_file = self.home.own / "captions-replaced.json"
        self.trigger_shown = gr.State("")
        self.folder_now, self.folder_shown = gr.Textbox("", visible=False), gr.Textbox("", visible=False)
        with gr.Row(elem_classes="align-end"):
            self.folder = gr.Textbox(label=words.FOLDER, info=words.FOLDER_INFO, elem_id="folder", scale=6)
            self.opened = gr.Button(words.OPEN, elem_id="open-folder", variant="primary", scale=0, min_width=110)
            self.demo = gr.Button(words.DEMO, elem_id="demo-pictures", scale=0, min_width=220)
            self.more = gr.UploadButton(
                words.ADD, file_count="multiple", file_types=KINDS, visible=False, scale=0, min_width=140,
                elem_id="add-pictures",
            )  # fmt: skip
        self.upload = gr.File(
            label=words.UPLOAD, file_count="multiple", file_types=KINDS, height=128, elem_id="drop-pictures"
        )
        with gr.Row(elem_classes="align-end"):
            self.which = changing(gr.Dropdown([], label=words.SET, visible=False, scale=2, elem_id="which-set"))
            self.summary = gr.HTML(elem_id="pictures-summary")
            self.convert = gr.Button("", visible=False, size="sm", scale=0, min_width=180, elem_id="convert-pictures")
        self.wrong = gr.HTML(elem_id="pictures-error")
        with gr.Row(elem_classes="with-side", visible=False) as self.whole:
            with gr.Column(scale=4):
                self._middle()
            with gr.Column(scale=1, min_width=300, elem_classes="side"):
                self.card = card.Card(self.context)
                self._side()
        self.foot = gr.HTML(render=False)
        self.saved, self.boxes, self.tokens = self.card.saved, [self.card.box], [self.card.token]
        self.outputs = [
            self.folder, self.which, self.summary, self.grid, self.filter, self.trigger, self.counted, self.tagging,
            self.no_tagger, self.trigger_shown, self.folder_shown, self.foot, self.whole, self.demo, self.more,
            self.upload, self.convert, *self.card.outputs, self.folder_now, self.wrong,
        ]  # fmt: skip
        self.view = [self.which, self.filter, self.holds, self.card.name]
        self.looked = [self.summary, self.filter, self.counted, self.foot]
        self._wire()

    def _middle(self) -> None:
        with gr.Row(elem_classes="align-end tight"):
            self.filter = changing(
                gr.Radio([words.ALL], value=words.ALL, label=words.FILTER, show_label=False, scale=4, elem_id="filter",
                         elem_classes="chosen-of")
            )  # fmt: skip
            self.holds = gr.Textbox(
                "", label=words.CAPTION_SEARCH, placeholder=words.CAPTION_SEARCH_HOW, max_lines=1, scale=1,
                min_width=170, elem_id="caption-search",
            )  # fmt: skip
            self.all = gr.Button(words.CHOOSE_ALL, size="sm", scale=0, min_width=100, elem_id="choose-all")
        with gr.Row(elem_classes="align-end tight", elem_id="bulk"):
            gr.HTML(f'<p class="note"><b class="chosen-count">0</b> {words.CHOSEN}</p>', elem_id="bulk-count")
            self.tag_text = gr.Textbox(
                "", label=words.BULK_TAG, show_label=False, placeholder=words.BULK_TAG, max_lines=1, scale=3,
                min_width=150, elem_id="bulk-tag",
            )  # fmt: skip
            self.first = gr.Button(words.ADD_FIRST, size="sm", scale=0, min_width=90, elem_id="add-first")
            self.last = gr.Button(words.ADD_LAST, size="sm", scale=0, min_width=90, elem_id="add-last")
            self.remove = gr.Button(words.TAKE_OUT, size="sm", scale=0, min_width=90, elem_id="remove-tag")
            self.aside = gr.Button(words.LEAVE_OUT, size="sm", scale=0, min_width=90, elem_id="bulk-leave-out")
            self.returned = gr.Button(words.TAKE_BACK, size="sm", scale=0, min_width=90, elem_id="bulk-take-back")
            self.none = gr.Button(words.CHOOSE_NONE, size="sm", scale=0, min_width=90, elem_id="choose-none")
        with gr.Column(visible=True, elem_id="grid-column") as self.grid_column:
            self.grid = grid.component()
        # What is chosen lies in the browser: each event that needs it fills this first.
        self.chosen = gr.Textbox("", show_label=False, elem_classes="unseen")
        self.editor_place = gr.Column()

    def _side(self) -> None:
        self.trigger = gr.Textbox("", label=words.TRIGGER, info=words.TRIGGER_INFO, elem_id="trigger")
        self.counted = gr.HTML(js_on_load=TAG_JS, elem_id="tags")
        with gr.Accordion(words.REPLACING, open=False, elem_id="replacing"):
            self.find = gr.Textbox("", label=words.FIND, elem_id="find")
            self.by = gr.Textbox("", label=words.REPLACE, elem_id="replace-by")
            self.whole_tags = gr.Checkbox(label=words.WHOLE_TAGS, value=True)
            self.replace = gr.Button(words.REPLACE_ALL, min_width=90, elem_id="replace-all")
        self.undo = gr.Button(words.UNDO_CAPTIONS, size="sm", elem_id="undo-replace")
        with gr.Group(visible=False) as self.tagging:
            self.at_least = gr.Slider(0.1, 0.9, value=0.35, step=0.05, label=words.TAG_AT_LEAST)
            with gr.Row():
                self.tag = gr.Button(words.TAG, elem_id="tag-pictures", min_width=120)
                self.end_tag = gr.Button(words.CANCEL, elem_id="end-tagging", min_width=100, scale=0)
        with gr.Row(visible=captioner.there(captioner.folder(self.home))):
            self.describe = gr.Button(words.DESCRIBE, elem_id="describe-pictures", min_width=120)
            self.end_describe = gr.Button(words.CANCEL, elem_id="end-describing", min_width=100, scale=0)
        with gr.Column(visible=False) as self.no_tagger:
            source = fetch.TAGGERS["tagger"]
            about = words.GET_ABOUT.format(source.title, source.gb, source.licence, source.repository)
            gr.HTML(note(words.NO_TAGGER.format(about, tagger.FOLDER)))
            with gr.Row():
                self.get_tagger = gr.Button(words.GET_TAGGER, elem_id="get-tagger", min_width=120)
                self.end_get = gr.Button(words.CANCEL, elem_id="end-tagger", min_width=100, scale=0)
            self.getting = gr.HTML(elem_id="getting-tagger")
        self.tagged = gr.HTML(elem_id="tagged")

    def _wire(self) -> None:
        with self.editor_place:
            self.card.build_editor()
        for event in (
            self.opened.click(self._in_place(self.choose), [self.folder], self.outputs, **EVENT),
            self.folder.submit(self._in_place(self.choose), [self.folder], self.outputs, **EVENT),
            self.demo.click(self._in_place(self.choose_demo), None, self.outputs, **EVENT),
        ):
            event.success(self.look_on, self.view, [self.grid, *self.looked], **EVENT)
        for part in (self.upload, self.more):
            seen: dict[str, Any] = {**SLOW, "show_progress_on": [part]}
            added = part.upload(self._in_place(self.add), [part, self.folder], self.outputs, **seen)
            added.success(self.look_on, self.view, [self.grid, *self.looked], **EVENT)
            added.then(lambda: None, None, [part], **EVENT)
        page = [*self.view, *self.boxes, *self.tokens]
        seen = {**SLOW, "show_progress_on": [self.wrong]}
        self.convert.click(self._in_place(self.convert_others), page, self.outputs, **seen)
        self._wire_tagging()
        for changed in (self.trigger.blur, self.trigger.submit):
            line = [self.trigger, self.trigger_shown, self.wrong]
            changed(in_place(self.set_trigger, line), [self.trigger, self.trigger_shown], line, **EVENT)
        for changed in (self.which.input, self.filter.input, self.holds.submit, self.holds.blur):
            shown = changed(self._in_place(self.again_kept), page, self.outputs, **EVENT)
            shown.success(self.look_on, self.view, [self.grid, *self.looked], **EVENT)
        tagged = [self.holds, *self.outputs]
        self.counted.select(in_place(self.choose_tag, tagged), page, tagged, **EVENT)
        chosen: dict[str, Any] = {**EVENT, "js": grid.CHOSEN}
        for button, how in ((self.first, "first"), (self.last, "last"), (self.remove, "remove")):
            given = [self.chosen, self.tag_text, *page]
            button.click(self._in_place(functools.partial(self.change_tags, how)), given, self.outputs, **chosen)
        for button, move in ((self.aside, edits.leave_out), (self.returned, edits.take_back)):
            moved = self._in_place(functools.partial(self.move, move))
            button.click(moved, [self.chosen, *page], self.outputs, **chosen)
        replaced = [self.chosen, self.find, self.by, self.whole_tags, *page]
        self.replace.click(self._in_place(self.replace_all), replaced, self.outputs, **chosen)
        self.undo.click(self._in_place(self.undo_replace), page, self.outputs, **EVENT)
        self.all.click(None, None, None, js=ALL_JS, **EVENT)
        self.none.click(None, None, None, js=NONE_JS, **EVENT)
        self._wire_card(page)

    def _wire_tagging(self) -> None:
        chosen: dict[str, Any] = {**SLOW, "js": grid.CHOSEN}
        line, asked = [self.tagged], [self.chosen, self.which]
        tagged = self.tag.click(in_place(self.tag_all, line), [*asked, self.at_least], line, **chosen)
        tagged.success(self.show, self.view, self.outputs, **EVENT)
        described = self.describe.click(in_place(self.describe_all, line), asked, line, **chosen)
        described.success(self.show, self.view, self.outputs, **EVENT)
        for button, event in ((self.end_tag, tagged), (self.end_describe, described)):
            ended = button.click(lambda: note(words.TAGGING_ENDED), None, [self.tagged], cancels=[event], **EVENT)
            ended.then(self.show, self.view, self.outputs, **EVENT)
        fetch_it = in_place(functools.partial(fetching, self.home, "tagger"), [self.getting])
        got = self.get_tagger.click(fetch_it, None, [self.getting], **EVENT)
        got.success(lambda: _tagger(self.home), None, [self.tagging, self.no_tagger], **EVENT)
        self.end_get.click(functools.partial(fetch.stop, self.home, "tagger"), None, None, **EVENT)

    def _in_place(self, function: Any) -> Any:
        """``function`` with its errors, and what it did, shown above the grid."""
        return in_place(function, self.outputs)

    def _wire_card(self, page: list[Any]) -> None:
        one = self.card
        # Errors of the open picture are shown in its card.
        beside = [*(part for part in self.outputs if part is not one.wrong), one.wrong]
        self.grid.select(in_place(self.open_chosen, one.outputs), page, one.outputs, **EVENT)
        for happened, by in ((one.back.click, -1), (one.forward.click, 1), (one.box.submit, 1)):
            happened(in_place(functools.partial(self.step, by), one.outputs), page, one.outputs, **EVENT)
        one.close.click(in_place(functools.partial(self.open, ""), one.outputs), page, one.outputs, **EVENT)
        one.left.success(self.look, self.view, self.looked, **EVENT)
        for button, move in ((one.leave, edits.leave_out), (one.take, edits.take_back)):
            button.click(in_place(functools.partial(self.move_one, move), beside), page, beside, **EVENT)
        for button, change in ((one.turn, edits.rotate), (one.original, edits.bring_back)):
            button.click(in_place(functools.partial(self.change_one, change), beside), page, beside, **EVENT)
        one.crop.click(in_place(self.crop_one, beside), [one.frame, *page], beside, **EVENT)
        begun = [one.painting, one.editor, self.grid_column, one.not_saved, one.wrong]
        one.paint.click(in_place(self.paint, begun), page, begun, **SLOW)
        ended = [one.painting, self.grid_column, one.editor, one.not_saved]
        saved = [*self.outputs, *ended]
        seen: dict[str, Any] = {**SLOW, "show_progress_on": [one.not_saved]}
        one.save_mask.click(in_place(self.save_mask, saved), [one.editor, *page], saved, **seen)
        one.end_paint.click(_grid_again, None, ended, **EVENT)

    def _beside(self, shown: list[Any]) -> list[Any]:
        """An answer for all outputs, with that of the card's line at its end."""
        at = self.outputs.index(self.card.wrong)
        return [*shown[:at], *shown[at + 1 :], shown[at]]

    # ------------------------------------------------------------------------------------------------- what is shown

    def seen(self, recipe: dict[str, Any], current: Path, seconds: float = LOOK_SECONDS) -> grid.View:
        """What is known of a folder's pictures. UserError: it cannot be read."""
        listing = captions.scan(current)
        texts: dict[str, str | None] = captions.read_all(listing)
        wrong, later = captions.trouble(listing, _resolution(recipe), seconds=seconds)
        limit = draft.get(recipe, "model.max_tokens") or tokens.LIMIT
        wrong = grid.with_lengths(texts, wrong, draft.get(recipe, "data.trigger") or "", limit)
        maps = targets.of(recipe, current, listing.pictures)
        if recipe.get("dense") is not None:  # a map is what is learned, and no caption is read
            texts = dict.fromkeys(texts)
            of_text = (words.NO_CAPTION, words.CAPTION_UNREADABLE, words.TOO_LONG_HERE)
            wrong = {name: kept for name, marks in wrong.items() if (kept := [m for m in marks if m not in of_text])}
            for name in listing.pictures if maps is not None else ():
                if name not in (maps or {}):
                    wrong.setdefault(name, []).append(words.NO_TARGET)
        out = edits.left_out(current)
        if out:
            texts |= captions.read_all(captions.scan(current / edits.LEFT_OUT))
        return grid.View(listing, texts, wrong, later, out, maps or {})

    def show(self, chosen: str | None = None, filtered: str = "", held: str = "", name: str = "") -> list[Any]:
        """The pictures as they are on the disk."""
        recipe = self.context.recipe()
        folders = _folders(recipe)
        if not folders:
            return self._nothing(words.NO_FOLDER, recipe)
        current = chosen if chosen in folders else folders[0]
        try:
            view = self.seen(recipe, self.context.folders.check("data.path", current))
        except UserError as error:
            return self._nothing(str(error), recipe, current, "bad")
        folder = view.listing.folder
        if filtered not in (words.ALL, *view.kinds()):
            filtered = words.ALL
        drawn = grid.drawn(view, filtered, held, self.address, crops.rules(recipe, current))
        there = bool(view.listing.pictures or view.left_out)
        trigger, others = draft.get(recipe, "data.trigger", ""), edits.others(view.listing)
        return [
            gr.update(value=_folder_shown(folders, current), info="" if there else words.FOLDER_INFO),
            gr.update(choices=[(Path(one).name, one) for one in folders], value=current, visible=len(folders) > 1),
            _summary(view), drawn, {**grid.filters(view), "value": filtered}, trigger,
            _tags(captions.counts(view.texts.values())), *_tagger(self.home), trigger, _folder_shown(folders, current),
            _foot(view), gr.update(visible=there), gr.update(visible=not there), gr.update(visible=there),
            gr.update(visible=not there),
            gr.update(visible=bool(others), value=words.CONVERT.format(words.number(len(others), words.PICTURES))),
            *self.card.shown(folder, name, view.wrong.get(name, []), recipe), _folder_shown(folders, current), "",
        ]  # fmt: skip

    def look(self, chosen: str | None, *_: Any) -> list[Any]:
        """Counts alone: what is typed and what is chosen stay. As ``looked``."""
        try:
            view = self.seen(self.context.recipe(), _current(self.context, chosen))
        except UserError:
            return [gr.skip()] * len(self.looked)
        return [_summary(view), grid.filters(view), _tags(captions.counts(view.texts.values())), _foot(view)]

    def look_on(self, chosen: str | None, filtered: str, held: str, _: str) -> Iterator[list[Any]]:
        """Look at the sizes of the rest of many pictures, and mark them in the grid at the end."""
        recipe = self.context.recipe()
        try:
            current = _current(self.context, chosen)
            view = self.seen(recipe, current)
            yield [gr.skip()] * (1 + len(self.looked))
            if not view.later:
                return
            while view.later:
                yield [gr.skip(), *self.look(chosen)]
                view = self.seen(recipe, current)
        except UserError:
            yield [gr.skip()] * (1 + len(self.looked))
            return
        drawn = grid.drawn(view, filtered, held, self.address, crops.rules(recipe, str(current)))
        yield [drawn, *self.look(chosen)]

    def again(self, *view: Any) -> list[Any]:
        """The screen when somebody comes to it, but for the folder's field, which ``FIELD`` sets."""
        now = self.show(*view)
        now[0] = {key: value for key, value in now[0].items() if key != "value"}
        now[self.outputs.index(self.folder_shown)] = gr.skip()
        return now

    def _nothing(self, text: str, recipe: dict[str, Any], folder: str = "", kind: str = "quiet") -> list[Any]:
        trigger, hidden, seen = draft.get(recipe, "data.trigger", ""), gr.update(visible=False), gr.update(visible=True)
        # What somebody is typing into the field stays there.
        return [
            gr.update(value=folder, info=words.FOLDER_INFO) if folder else gr.skip(), hidden, note(text, kind), "",
            gr.skip(), trigger, "", *_tagger(self.home), trigger, folder, "", hidden, seen, hidden, seen, hidden,
            *self.card.shown(None, "", [], recipe), folder, "",
        ]  # fmt: skip

    @kindly
    def choose(self, given: str) -> list[Any]:
        file = Path(unquoted(given)).expanduser()
        if file.suffix.lower() == ".toml" and file.is_file():
            self.context.folders.check(words.WHERE_FOLDER, str(file.parent))
            self._use_sets(file)
        else:
            _use(self.context, captions.scan(self.context.folders.check(words.WHERE_FOLDER, given)))
        return self.show()

    def _use_sets(self, file: Path) -> None:
        """The pictures of a file: ours, or kohya's for data sets. The rest of the recipe stays."""
        tables = config.absolute(draft.values_of(read_import(file, self.context.folders)), file.parent)
        if not _folders(tables):
            raise UserError(words.NAMES_NONE.format(file.name))
        self.context.change({"data": tables["data"]})

    @kindly
    def choose_demo(self) -> list[Any]:
        """A copy of the bundled pictures, and the preset that goes with them."""
        own = self.home.data / "demo"
        if not own.is_dir():
            shutil.copytree(DEMO, own)
        text = draft.changed(draft.START, {"preset": "demo", "data.path": str(own)})
        draft.start_over(self.home, text, words.BY_DEMO)
        return self.show()

    # ------------------------------------------------------------------------------------------------ the open picture

    @kindly
    def open_chosen(self, event: gr.EventData, *page: Any) -> list[Any]:
        return self.open(str(event.name), *page)

    @kindly
    def open(self, name: str, chosen: str, filtered: str, held: str, before: str, text: str, token: str) -> list[Any]:
        """Open a picture; the caption of the one before is saved."""
        self.card.keep(text, token)
        recipe, folder = self.context.recipe(), _current(self.context, chosen)
        marks = self.seen(recipe, folder).wrong.get(name, []) if name else []
        return self.card.shown(folder, name, marks, recipe)

    @kindly
    def step(self, by: int, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        """Open the picture before or after, of those that are shown."""
        names = self.seen(self.context.recipe(), _current(self.context, chosen)).kept(filtered, held)
        at = names.index(name) + by if name in names else 0
        return self.open(names[max(0, min(at, len(names) - 1))] if names else "", chosen, filtered, held, name, *box)

    @kindly
    def move_one(self, move: Any, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        self.card.keep(*box)
        move(_current(self.context, chosen), [name])
        return self._beside(self.show(chosen, filtered, held, name))

    @kindly
    def change_one(self, change: Any, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        self.card.keep(*box)
        self.card.change(change, _current(self.context, chosen), name)
        return self._beside(self.show(chosen, filtered, held, name))

    @kindly
    def crop_one(self, frame: str, *page: Any) -> list[Any]:
        box = edits.box_of(frame)
        return self.change_one(lambda picture, mask: edits.crop(picture, mask, box), *page)

    @kindly
    def paint(self, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        self.card.keep(*box)
        return [*self.card.open_editor(_current(self.context, chosen), name), gr.update(visible=False), "", ""]

    @kindly
    def save_mask(self, painted: dict[str, Any] | None, chosen: str, filtered: str, held: str, name: str, *box: Any
    ) -> list[Any]:  # fmt: skip
        self.card.keep(*box)
        self.card.paint_over(_current(self.context, chosen), name, painted)
        return [*self.show(chosen, filtered, held, name), *_grid_again()]

    # ---------------------------------------------------------------------------------------------------- many at once

    @kindly
    def again_kept(self, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        self.card.keep(*box)
        return self.show(chosen, filtered, held, name)

    @kindly
    def choose_tag(self, event: gr.EventData, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        """Show the pictures whose captions have this tag; a second click shows all again."""
        self.card.keep(*box)
        quoted = f'"{event.tag}"'
        held = "" if held == quoted else quoted
        return [held, *self.show(chosen, words.ALL, held, name)]

    @kindly
    def save(self, text: str, token: str, leaving: bool = True) -> str:
        return self.card.save(text, token, leaving)

    @kindly
    def change_tags(self, how: str, names: str, tag: str, chosen: str, filtered: str, held: str, name: str, *box: Any
    ) -> list[Any]:  # fmt: skip
        """Put tags first or last in the captions of the chosen pictures, or take them out."""
        self.card.keep(*box)
        change = captions.without_tags(tag) if how == "remove" else captions.with_tags(tag, how == "first")
        folder = _current(self.context, chosen)
        changed = self._changed(folder, captions.change_each(captions.scan(folder), _some(names), change))
        line = words.CHANGED.format(words.number(changed, words.CAPTIONS))
        return self._after(self.show(chosen, filtered, held, name), line)

    @kindly
    def move(self, move: Any, names: str, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        """Leave out the chosen pictures, or take them back."""
        self.card.keep(*box)
        count = move(_current(self.context, chosen), _some(names))
        line = words.MOVED.format(words.number(count, words.PICTURES))
        return self._after(self.show(chosen, filtered, held, name), line)

    @kindly
    def convert_others(self, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        self.card.keep(*box)
        done, refused = edits.convert(captions.scan(_current(self.context, chosen)))
        line = words.CONVERTED.format(words.number(done, words.PICTURES))
        return self._after(self.show(chosen, filtered, held, name), line, refused)

    @kindly
    def add(self, files: list[str], given: str) -> list[Any]:
        own = self.home.data / "pictures"
        target = self.context.folders.check(words.WHERE_FOLDER, given) if given.strip() else own
        done, written, refused = captions.import_pictures(target, [Path(one) for one in files or []])
        _use(self.context, captions.scan(target))
        line = words.ADDED.format(words.number(done, words.PICTURES), words.number(written, words.CAPTIONS), target)
        return self._after(self.show(), line, refused)

    def _after(self, shown: list[Any], line: str, refused: Sequence[str] = ()) -> list[Any]:
        """An answer for all outputs, with what was done, and what could not be read or saved, as lines above the
        grid."""
        rest = [words.MORE_REFUSED.format(len(refused) - 5)] if len(refused) > 5 else []
        return [*shown[:-1], success(line) + "".join(map(alert, [*refused[:5], *rest]))]

    @kindly
    def replace_all(self, names: str, old: str, new: str, tags: bool, chosen: str, filtered: str, held: str, name: str,
                    *box: Any) -> list[Any]:  # fmt: skip
        """Replace in the captions of the chosen pictures, or in all."""
        self.card.keep(*box)
        folder = _current(self.context, chosen)
        changed = self._changed(folder, captions.replace_in_all(captions.scan(folder), old, new, tags, _names(names)))
        line = words.CHANGED.format(words.number(changed, words.CAPTIONS))
        return self._after(self.show(chosen, filtered, held, name), line)

    def _changed(self, folder: Path, changed: dict[str, tuple[str, str]]) -> int:
        """Remember captions as they were, for ``undo_replace``; gives how many."""
        if changed:
            write_json(self.undo_file, {"folder": str(folder), "captions": changed})
        return len(changed)

    @kindly
    def undo_replace(self, chosen: str, filtered: str, held: str, name: str, *box: Any) -> list[Any]:
        self.card.keep(*box)
        before = read_object(self.undo_file)
        changed = before.get("captions")
        if not changed:
            raise UserError(words.NOTHING_REPLACED)
        done = captions.restore(self.context.folders.check(words.WHERE_UNDO, before["folder"]), changed)
        self.undo_file.unlink(missing_ok=True)
        line = words.RESTORED.format(words.number(done, words.CAPTIONS))
        line += words.LEFT_AS_EDITED.format(len(changed) - done) if done < len(changed) else ""
        return self._after(self.show(chosen, filtered, held, name), line)

    def tag_all(self, names: str, chosen: str, at_least: float) -> Iterator[str]:
        """Tags by the tagger: added to the captions of the chosen pictures, or written for all that have none."""
        listing, loaded = self._tagger(chosen)
        yield from self._write(listing, _names(names), lambda path: loaded.tags(path, at_least), add=True)

    def describe_all(self, names: str, chosen: str) -> Iterator[str]:
        """Captions in sentences by the captioner, for those of the chosen pictures, or of all, that have none."""
        yield note(words.READING_CAPTIONER)
        listing, loaded = self._captioner(chosen)
        yield from self._write(listing, _names(names), loaded.caption)

    def _write(
        self, listing: captions.Listing, chosen: list[str], caption: Callable[[Path], str], add: bool = False
    ) -> Iterator[str]:
        add = add and bool(chosen)
        texts = captions.read_all(listing)
        names = [name for name, text in texts.items() if (name in chosen if chosen else True) and (add or not text)]
        written, refused = 0, []
        changed: dict[str, tuple[str, str]] = {}
        for number, name in enumerate(names):
            yield note(words.TAGGING.format(number, len(names)))
            try:
                found = caption(listing.folder / name)
                if not add:
                    written += captions.fill(listing.folder / name, found)
                elif captions.tags(found):
                    new = captions.change_each(captions.scan(listing.folder), [name], captions.with_more(found))
                    changed, written = changed | new, written + len(new)
            except UserError as error:
                refused.append(str(error))
        if changed:
            write_json(self.undo_file, {"folder": str(listing.folder), "captions": changed})
        typed = len(names) - len(refused) - written
        line = words.TAGGED.format(words.number(written, words.CAPTIONS)) + (
            words.TYPED_MEANWHILE.format(words.number(typed, words.PICTURES)) if typed else ""
        )
        yield success(line) + notes(refused[:5], "warn")

    @kindly
    def _tagger(self, chosen: str) -> tuple[captions.Listing, tagger.Tagger]:
        return captions.scan(_current(self.context, chosen)), tagger.load(tagger.folder(self.home))

    @kindly
    def _captioner(self, chosen: str) -> tuple[captions.Listing, captioner.Captioner]:
        return captions.scan(_current(self.context, chosen)), captioner.load(captioner.folder(self.home))

    @kindly
    def set_trigger(self, text: str, shown: str) -> list[Any]:
        """For the field, what it shows by that, and the line below. What another window has set is shown, and stays."""
        text, now = text.strip(), draft.get(self.context.recipe(), "data.trigger", "")
        try:
            if draft.untouched("data.trigger", text, shown, now):
                return [gr.skip()] * 3
        except UserError as error:
            return [now, now, alert(fields.labelled(str(error)))]
        self.context.change({"data.trigger": text or None, **self._prompts(text)})
        return [gr.skip(), text, ""]

    def _prompts(self, trigger: str) -> dict[str, Any]:
        """Preview prompts that are captions as they were offered get a place for the trigger word, or lose it."""
        recipe = self.context.recipe()
        texts = [str(one) for one in draft.get(recipe, "sample.prompts") or []]
        folders = _folders(recipe)
        if not texts or not folders or not Path(folders[0]).is_dir():
            return {}
        known = {text.split("\n")[0] for text in captions.read_all(captions.scan(Path(folders[0]))).values() if text}
        bare = [text.removeprefix(_with_trigger("")) for text in texts]
        if not set(bare) <= known:
            return {}
        return {"sample.prompts": [_with_trigger(one) for one in bare] if trigger else bare}


def build(context: Context) -> Screen:
    screen = Pictures(context)
    parts: dict[str, Any] = {"foot": screen.foot, "filter": screen.filter, "holds": screen.holds}
    field = [screen.folder, screen.folder_shown]
    parts["field"] = {"fn": None, "inputs": [*field, screen.folder_now], "outputs": field, "js": FIELD}
    parts["more"] = screen.look_on, screen.view, [screen.grid, *screen.looked]
    return Screen(screen.again, screen.outputs, screen.view, parts)


def _folders(recipe: dict[str, Any]) -> list[str]:
    sets = [one.get("path") for one in draft.get(recipe, "data.sets", []) if isinstance(one, dict)]
    return [one for one in [draft.get(recipe, "data.path"), *sets] if isinstance(one, str) and one]


def _current(context: Context, chosen: str | None) -> Path:
    folders = _folders(context.recipe())
    return context.folders.check(words.WHERE_FOLDER, chosen if chosen in folders else (folders or [""])[0])


def _resolution(recipe: dict[str, Any]) -> int:
    given = draft.get(recipe, "data.resolution", 512)
    return (
        int(math.sqrt(given[0] * given[1]))
        if isinstance(given, list) and len(given) == 2
        else given
        if isinstance(given, int)
        else 512
    )


def _use(context: Context, listing: captions.Listing) -> None:
    """Make the folder the recipe's data. Name, trigger word and preview prompts belong to the folder: those of the one
    before are kept for when it is opened again, and a new one gets its name and first captions."""
    changes: dict[str, Any] = {
        "data.path": str(listing.folder),
        "data.sets": None,
        "data.pairs": None,
        "data.ratings": None,
    }
    if not listing.pictures and listing.kohya:
        sets = [
            {"path": str(listing.folder / name), "repeats": int(found[1]), "caption": found[2]}
            for name in listing.kohya
            if (found := captions.KOHYA_FOLDER.fullmatch(name))
        ]
        changes |= {"data.path": None, "data.sets": sets}
    own = draft.values_of(draft.read(context.home))
    before = draft.get(own, "data.path") or ""
    if str(listing.folder) != before:
        draft.remember_folder(context.home, draft.read(context.home))
        mine = draft.of_folder(context.home, str(listing.folder))
        # What was written before the first folder was opened is meant for it; not so a recipe that learns from pairs.
        first = not (before or mine or draft.get(own, "data.pairs") or draft.get(own, "data.ratings"))
        changes |= mine or {key: draft.get(own, key) if first else None for key in draft.WITH_A_FOLDER}
        changes["run.name"] = changes["run.name"] or _plain_name(listing.folder)
    if not changes.get("sample.prompts", draft.get(own, "sample.prompts")):
        texts = [text for text in captions.read_all(listing).values() if text]
        offered = list(dict.fromkeys(text.split("\n")[0] for text in texts))[:3]
        trigger = changes.get("data.trigger", draft.get(own, "data.trigger"))
        changes["sample.prompts"] = [_with_trigger(text) if trigger else text for text in offered] or None
    context.change(changes)


def _plain_name(folder: Path) -> str:
    """A run's name after its folder."""
    return re.sub(r"[^\w .()+-]", "_", folder.name).strip(" .")[:60] or "pictures"


def _with_trigger(prompt: str) -> str:
    return f"{draft.TRIGGER}, {prompt}"


def _grid_again() -> tuple[Any, ...]:
    """The grid in the place of the editor."""
    return gr.update(visible=False), gr.update(visible=True), None, ""


def _names(chosen: str) -> list[str]:
    """The names that the browser says are chosen."""
    return [name for name in chosen.split("/") if name]


def _some(chosen: str) -> list[str]:
    """As ``_names``. UserError: none is chosen."""
    found = _names(chosen)
    if not found:
        raise UserError(words.NONE_CHOSEN)
    return found


def _tagger(home: Any) -> tuple[Any, Any]:
    here = tagger.there(tagger.folder(home))
    return gr.update(visible=here), gr.update(visible=not here)


def _folder_shown(folders: list[str], current: str) -> str:
    return current if len(folders) == 1 else str(Path(folders[0]).parent)


def _summary(view: grid.View) -> str:
    listing = view.listing
    if not listing.pictures:
        return note(words.EMPTY_FOLDER, "bad")
    without = sum(not view.texts.get(name) for name in listing.pictures)
    lines = words.COUNTED.format(words.number(len(listing.pictures), words.PICTURES), len(listing.pictures) - without)
    out = [note(words.number(len(listing.pictures), words.PICTURES) if view.targets else lines, "good")]
    if view.later:
        out.append(note(words.LATER.format(words.number(view.later, words.PICTURES))))
    if listing.others:
        named = ", ".join(listing.others[:3]) + ("…" if len(listing.others) > 3 else "")
        out.append(note(words.IGNORED.format(words.number(len(listing.others), words.OTHER_FILES), named)))
    return f'<div class="chips">{"".join(out)}</div>'


def _foot(view: grid.View) -> str:
    """How many pictures there are and how many have a fault, for the place beside the button to the next screen."""
    line = words.number(len(view.listing.pictures), words.PICTURES)
    fix = len(view.wrong)
    return note(words.TO_FIX.format(line, fix) if fix else line, "warn" if fix else "good")


def _tags(counted: list[tuple[str, int]]) -> str:
    if not counted:
        return ""
    rows = "".join(
        f'<li><button type="button" data-tag="{escape(tag)}"><span>{escape(tag)}</span><b>{number}</b></button></li>'
        for tag, number in counted[:MOST_TAGS]
    )
    listed = f'<ol tabindex="0" aria-label="{words.TAGS}">{rows}</ol>'
    return f'<details open class="tags"><summary>{words.TAGS}</summary>{listed}</details>'
