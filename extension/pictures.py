"""Screen 1: a folder of pictures, their captions, and what to know of them before training."""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer import config
from ..trainer.errors import UserError
from ..trainer.runs.events import read_object
from . import captioner, captions, crops, draft, fetch, images, tagger, words
from .boxes import Boxes
from .page import EVENT, SLOW, Context, Screen, changing, kindly, note, notes
from .recipe import fetching, read_import
from .store import ROOT, write_json

OF_A_FOLDER = ("run.name", "data.trigger", "sample.prompts")
"""Options that belong to one folder of pictures."""
CELLS = 12
SIDE = 320
LOOK_SECONDS = 1.0
"""How long a look at the pictures' sizes may hold up the page; the rest is looked at the next time."""
DEMO = ROOT / "presets" / "pictures" / "style"


class Pictures:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.undo_file, self.saved = self.home.own / "captions-replaced.json", Boxes(context)
        self.page, self.trigger_shown, self.folder_shown = gr.State(0), gr.State(""), gr.State("")
        with gr.Row(elem_classes="align-end"):
            self.folder = gr.Textbox(label=words.FOLDER, info=words.FOLDER_INFO, elem_id="folder", scale=6)
            self.opened = gr.Button(words.OPEN, elem_id="open-folder", variant="primary", scale=0, min_width=110)
            self.demo = gr.Button(words.DEMO, elem_id="demo-pictures", scale=0, min_width=220)
        self.upload = gr.File(
            label=words.UPLOAD, file_count="multiple", file_types=[*images.ENDINGS, ".txt"], height=128,
            elem_id="drop-pictures",
        )  # fmt: skip
        with gr.Row():
            self.which = changing(gr.Dropdown([], label=words.SET, visible=False, scale=2, elem_id="which-set"))
            self.summary = gr.HTML(elem_id="pictures-summary")
        with gr.Row(elem_classes="with-side"):
            with gr.Column(scale=4):
                self._middle()
            with gr.Column(scale=1, min_width=230, elem_classes="side"):
                self._side()
        self.boxes = [box for *_, box in self.cells]
        self.tokens = [token for _, _, token, _ in self.cells]
        cells = [part for cell in self.cells for part in cell]
        self.outputs = [
            self.folder, self.which, self.summary, self.back, self.place, self.forward, self.page,
            self.trigger, self.counted, self.tagging, self.no_tagger, *cells, self.trigger_shown,
            self.folder_shown, self.filter,
        ]  # fmt: skip
        self.view = [self.which, self.filter, self.holds, self.page]
        self._wire()

    def _middle(self) -> None:
        with gr.Row(elem_classes="align-end"):
            self.filter = gr.Radio(
                list(words.FILTERS), value=words.FILTERS[0], label=words.FILTER, scale=3, elem_id="filter"
            )
            self.holds = gr.Textbox(label=words.CAPTION_SEARCH, scale=2)
            self.back = gr.Button(words.BACK, scale=0, min_width=90, elem_id="pictures-before")
            self.place = gr.HTML(elem_id="pictures-place")
            self.forward = gr.Button(words.FORWARD, scale=0, min_width=90, elem_id="more-pictures")
        self.cells: list[tuple[gr.Column, gr.HTML, gr.Textbox, gr.Textbox]] = []
        with gr.Row(elem_classes="cells"):
            for number in range(CELLS):
                with gr.Column(visible=False, min_width=180, elem_classes="cell") as cell:
                    picture = gr.HTML()
                    token = gr.Textbox(show_label=False, elem_classes="unseen")  # "hidden" ends when the cell is shown
                    box = gr.Textbox(
                        label=f"{words.CAPTION} {number + 1}", show_label=False, lines=2, max_lines=6,
                        placeholder=words.CAPTION_PLACEHOLDER, elem_classes="caption",
                    )  # fmt: skip
                self.cells.append((cell, picture, token, box))

    def _side(self) -> None:
        self.trigger = gr.Textbox(label=words.TRIGGER, info=words.TRIGGER_INFO, elem_id="trigger")
        self.find = gr.Textbox(label=words.FIND, elem_id="find")
        self.by = gr.Textbox(label=words.REPLACE, elem_id="replace-by")
        self.whole = gr.Checkbox(label=words.WHOLE_TAGS, value=True)
        with gr.Row():
            self.replace = gr.Button(words.REPLACE_ALL, min_width=90, elem_id="replace-all")
            self.undo = gr.Button(words.UNDO, min_width=60, elem_id="undo-replace")
        self.counted = gr.HTML()
        with gr.Group(visible=False) as self.tagging:
            self.at_least = gr.Slider(0.1, 0.9, value=0.35, step=0.05, label=words.TAG_AT_LEAST)
            with gr.Row():
                self.tag = gr.Button(words.TAG, elem_id="tag-pictures", min_width=120)
                self.end_tag = gr.Button(words.CANCEL, elem_id="end-tagging", min_width=60, scale=0)
        with gr.Row(visible=captioner.there(captioner.folder(self.home))):
            self.describe = gr.Button(words.DESCRIBE, elem_id="describe-pictures", min_width=120)
            self.end_describe = gr.Button(words.CANCEL, elem_id="end-describing", min_width=60, scale=0)
        with gr.Column(visible=False) as self.no_tagger:
            source = fetch.TAGGERS["tagger"]
            about = words.GET_ABOUT.format(source.title, source.gb, source.licence, source.repository)
            gr.HTML(note(words.NO_TAGGER.format(about, tagger.FOLDER)))
            with gr.Row():
                self.get_tagger = gr.Button(words.GET_TAGGER, elem_id="get-tagger", min_width=120)
                self.end_get = gr.Button(words.CANCEL, elem_id="end-tagger", min_width=60, scale=0)
            self.getting = gr.HTML(elem_id="getting-tagger")
        self.tagged = gr.HTML(elem_id="tagged")

    def _wire(self) -> None:
        self.opened.click(self.choose, [self.folder], self.outputs, **EVENT)
        self.folder.submit(self.choose, [self.folder], self.outputs, **EVENT)
        self.demo.click(self.choose_demo, None, self.outputs, **EVENT)
        added = self.upload.upload(self.add, [self.upload, self.folder], self.outputs, **SLOW)
        added.then(lambda: None, None, [self.upload], **EVENT)
        tagged = self.tag.click(self.tag_all, [self.which, self.at_least], [self.tagged], **SLOW)
        tagged.success(self.show, self.view, self.outputs, **EVENT)
        described = self.describe.click(self.describe_all, [self.which], [self.tagged], **SLOW)
        described.success(self.show, self.view, self.outputs, **EVENT)
        for button, event in ((self.end_tag, tagged), (self.end_describe, described)):
            ended = button.click(lambda: note(words.TAGGING_ENDED), None, [self.tagged], cancels=[event], **EVENT)
            ended.then(self.show, self.view, self.outputs, **EVENT)
        got = self.get_tagger.click(functools.partial(fetching, self.home, "tagger"), None, [self.getting], **EVENT)
        got.success(lambda: _tagger(self.home), None, [self.tagging, self.no_tagger], **EVENT)
        self.end_get.click(functools.partial(fetch.stop, self.home, "tagger"), None, None, **EVENT)
        for changed in (self.trigger.blur, self.trigger.submit):
            changed(self.set_trigger, [self.trigger, self.trigger_shown], [self.trigger_shown], **EVENT)
        page = [*self.view, *self.boxes, *self.tokens]
        for button, by_pages in ((self.back, -1), (self.forward, 1)):
            button.click(functools.partial(self.turn, by_pages), page, self.outputs, **EVENT)
        for changed in (self.which.input, self.filter.input, self.holds.submit, self.holds.blur):
            changed(functools.partial(self.turn, 0), page, self.outputs, **EVENT)
        replaced = [*self.view, self.find, self.by, self.whole, *self.boxes, *self.tokens]
        self.replace.click(self.replace_all, replaced, self.outputs, **EVENT)
        self.undo.click(self.undo_replace, self.view, self.outputs, **EVENT)
        for token, box in zip(self.tokens, self.boxes):
            typed = functools.partial(self.save, leaving=False)
            box.input(typed, [box, token], None, trigger_mode="always_last", **EVENT)
            box.blur(self.save, [box, token], None, **EVENT)  # what was pasted or dropped is no ``input``

    def show(
        self, chosen: str | None = None, filtered: str = words.FILTERS[0], held: str = "", at: int = 0
    ) -> list[Any]:
        """The page of pictures as it is on the disk."""
        recipe = self.context.recipe()
        folders = _folders(recipe)
        if not folders:
            return _nothing(words.NO_FOLDER, recipe, self.home)
        current = chosen if chosen in folders else folders[0]
        try:
            listing = captions.scan(self.context.folders.check("data.path", current))
        except UserError as error:
            return _nothing(str(error), recipe, self.home, current, "bad")
        texts = captions.read_all(listing)
        wrong, later = captions.trouble(listing, _resolution(recipe), seconds=LOOK_SECONDS)
        names = [name for name in listing.pictures if _kept(name, texts, wrong, filtered, held)]
        pages = max(1, math.ceil(len(names) / CELLS))
        at = max(0, min(at, pages - 1))
        part = names[at * CELLS : (at + 1) * CELLS]
        rules = crops.rules(recipe, current)
        drawn = [
            (gr.update(visible=True), _picture(path, wrong.get(path.name, []), self.address, rules),
             self.saved.token(path, texts[path.name]), texts[path.name] or "")
            for path in (listing.folder / name for name in part)
        ]  # fmt: skip
        drawn += [_no_cell()] * (CELLS - len(part))
        trigger = draft.get(recipe, "data.trigger", "")
        return [
            gr.update(value=_folder_shown(folders, current)),
            gr.update(choices=[(Path(one).name, one) for one in folders], value=current, visible=len(folders) > 1),
            _summary(listing, texts, wrong, later), gr.update(interactive=at > 0),
            f'<p class="note center">{at + 1} / {pages}</p>', gr.update(interactive=at + 1 < pages), at,
            trigger, _tags(captions.counts(texts.values())), *_tagger(self.home),
            *(one for cell in drawn for one in cell),
            trigger, _folder_shown(folders, current), _filters(texts, wrong),
        ]  # fmt: skip

    def again(self, typed: str, shown: str, *view: Any) -> list[Any]:
        """The screen when somebody comes back to it: a path that is typed and not opened yet stays."""
        now = self.show(*view)
        if typed.strip() and typed != shown:
            now[0] = gr.skip()
        return now

    @kindly
    def choose(self, given: str) -> list[Any]:
        file = Path(given.strip().strip('"')).expanduser()
        if file.suffix.lower() == ".toml" and file.is_file():
            self.context.folders.check("folder", str(file.parent))
            self._use_sets(file)
        else:
            _use(self.context, captions.scan(self.context.folders.check("folder", given)))
        return self.show()

    def _use_sets(self, file: Path) -> None:
        """The pictures of a file: ours, or kohya's for data sets. The rest of the recipe stays."""
        tables = config.absolute(draft.values_of(read_import(file, self.context.folders)), file.parent)
        if not _folders(tables):
            raise UserError(f"{file.name}: it names no pictures; give a folder, or a file with data sets")
        self.context.change({"data": tables["data"]})

    @kindly
    def choose_demo(self) -> list[Any]:
        """A copy of the bundled pictures, and the preset that goes with them."""
        own = self.home.data / "demo"
        if not own.is_dir():
            shutil.copytree(DEMO, own)
        text = draft.changed(draft.START, {"preset": "demo", "data.path": str(own)})
        draft.start_over(self.home, text, words.DEMO)
        return self.show()

    def keep(self, values: tuple[Any, ...]) -> None:
        """Save what stands in the boxes, so that turning the page loses no keystroke. UserError: some could not be,
        the others are."""
        wrong = []
        for text, token in zip(values[:CELLS], values[CELLS:]):
            try:
                self.saved.save(text, token)
            except UserError as error:
                wrong.append(str(error))
        if wrong:
            raise UserError(wrong[0] + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""))

    @kindly
    def turn(self, by_pages: int, chosen: str, filtered: str, held: str, at: int, *values: Any) -> list[Any]:
        self.keep(values)
        return self.show(chosen, filtered, held, at + by_pages)

    @kindly
    def save(self, text: str, token: str, leaving: bool = True) -> None:
        self.saved.save(text, token, leaving)

    @kindly
    def add(self, files: list[str], given: str) -> list[Any]:
        own = self.home.data / "pictures"
        target = self.context.folders.check("folder", given) if given.strip() else own
        done, written, refused = captions.import_pictures(target, [Path(one) for one in files or []])
        for line in refused[:5]:
            gr.Warning(escape(line))
        if len(refused) > 5:
            gr.Warning(words.MORE_REFUSED.format(len(refused) - 5))
        gr.Info(
            words.ADDED.format(
                words.number(done, words.PICTURES), words.number(written, words.CAPTIONS), escape(str(target))
            )
        )
        _use(self.context, captions.scan(target))
        return self.show()

    @kindly
    def replace_all(
        self, chosen: str, filtered: str, held: str, at: int, old: str, new: str, tags: bool, *values: Any
    ) -> list[Any]:
        self.keep(values)
        listing = captions.scan(_current(self.context, chosen))
        changed = captions.replace_in_all(listing, old, new, tags)
        if changed:
            write_json(self.undo_file, {"folder": str(listing.folder), "captions": changed})
        gr.Info(words.CHANGED.format(words.number(len(changed), words.CAPTIONS)))
        return self.show(chosen, filtered, held, at)

    @kindly
    def undo_replace(self, chosen: str, filtered: str, held: str, at: int) -> list[Any]:
        before = read_object(self.undo_file)
        changed = before.get("captions")
        if not changed:
            raise UserError("undo: nothing was replaced before")
        done = captions.restore(self.context.folders.check("undo", before["folder"]), changed)
        self.undo_file.unlink(missing_ok=True)
        left = words.LEFT_AS_EDITED.format(len(changed) - done) if done < len(changed) else ""
        gr.Info(words.RESTORED.format(words.number(done, words.CAPTIONS)) + left)
        return self.show(chosen, filtered, held, at)

    def tag_all(self, chosen: str, at_least: float) -> Iterator[str]:
        """Captions by the tagger, for the pictures that have none."""
        listing, loaded = self._tagger(chosen)
        yield from self._write(listing, lambda path: loaded.tags(path, at_least))

    def describe_all(self, chosen: str) -> Iterator[str]:
        """Captions in sentences by the captioner, for the pictures that have none."""
        yield note(words.READING_CAPTIONER)
        listing, loaded = self._captioner(chosen)
        yield from self._write(listing, loaded.caption)

    def _write(self, listing: captions.Listing, caption: Callable[[Path], str]) -> Iterator[str]:
        names = [name for name, text in captions.read_all(listing).items() if not text]
        written, refused = 0, []
        for number, name in enumerate(names):
            yield note(words.TAGGING.format(number, len(names)))
            try:
                written += captions.fill(listing.folder / name, caption(listing.folder / name))
            except UserError as error:
                refused.append(str(error))
        typed = len(names) - len(refused) - written
        line = words.TAGGED.format(words.number(written, words.CAPTIONS)) + (
            words.TYPED_MEANWHILE.format(words.number(typed, words.PICTURES)) if typed else ""
        )
        yield note(line, "good") + notes(refused[:5], "warn")

    @kindly
    def _tagger(self, chosen: str) -> tuple[captions.Listing, tagger.Tagger]:
        return captions.scan(_current(self.context, chosen)), tagger.load(tagger.folder(self.home))

    @kindly
    def _captioner(self, chosen: str) -> tuple[captions.Listing, captioner.Captioner]:
        return captions.scan(_current(self.context, chosen)), captioner.load(captioner.folder(self.home))

    @kindly
    def set_trigger(self, text: str, shown: str) -> str:
        text, now = text.strip(), draft.get(self.context.recipe(), "data.trigger", "")
        if not draft.untouched("data.trigger", text, shown, now):
            self.context.change({"data.trigger": text or None, **self._prompts(text)})
        return text

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
    return Screen(screen.again, screen.outputs, [screen.folder, screen.folder_shown, *screen.view])


def _folders(recipe: dict[str, Any]) -> list[str]:
    sets = [one.get("path") for one in draft.get(recipe, "data.sets", []) if isinstance(one, dict)]
    return [one for one in [draft.get(recipe, "data.path"), *sets] if isinstance(one, str) and one]


def _current(context: Context, chosen: str | None) -> Path:
    folders = _folders(context.recipe())
    return context.folders.check("folder", chosen if chosen in folders else (folders or [""])[0])


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
        known = read_object(context.home.own / "folders.json")
        if before:
            known[before] = {key: draft.get(own, key) for key in OF_A_FOLDER}
            write_json(context.home.own / "folders.json", known)
        mine = known.get(str(listing.folder))
        first = not before and not mine  # what was written before the first folder was opened is meant for it
        changes |= mine or {key: draft.get(own, key) if first else None for key in OF_A_FOLDER}
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


def _kept(name: str, texts: dict[str, str | None], wrong: dict[str, list[str]], filtered: str, held: str) -> bool:
    if filtered == words.FILTERS[1] and texts[name]:
        return False
    if filtered == words.FILTERS[2] and name not in wrong:
        return False
    return held.strip().lower() in (texts[name] or "").lower()


def _filters(texts: dict[str, str | None], wrong: dict[str, list[str]]) -> Any:
    """What can be shown, each with how many pictures that is."""
    counts = (len(texts), sum(not text for text in texts.values()), len(wrong))
    return gr.update(choices=[(f"{name} ({count})", name) for name, count in zip(words.FILTERS, counts)])


def _tagger(home: Any) -> tuple[Any, Any]:
    here = tagger.there(tagger.folder(home))
    return gr.update(visible=here), gr.update(visible=not here)


def _picture(path: Path, wrong: list[str], address: Any, rules: crops.Rules | None) -> str:
    size = images.size(path)
    sizes = f"{size[0]} × {size[1]}" if size else ""
    fit = crops.kept(size, rules) if size and rules else None
    sizes += f" → {fit[0][0]} × {fit[0][1]}" if fit else ""
    frame = crops.drawn(size, fit[1]) if size and fit else ""
    marks = "".join(f'<span class="mark">{escape(one)}</span>' for one in wrong)
    return (
        f'<figure><a href="{address.url(path)}" target="_blank"><img loading="lazy" src="{address.url(path, SIDE)}" '
        f'alt="{escape(path.name)}">{frame}</a><figcaption title="{escape(str(path))}">{escape(path.name)} '
        f"<small>{sizes}</small> {marks}</figcaption></figure>"
    )


def _no_cell() -> tuple[Any, ...]:
    return gr.update(visible=False), "", "", ""


def _folder_shown(folders: list[str], current: str) -> str:
    return current if len(folders) == 1 else str(Path(folders[0]).parent)


def _nothing(text: str, recipe: dict[str, Any], home: Any, folder: str = "", kind: str = "quiet") -> list[Any]:
    trigger = draft.get(recipe, "data.trigger", "")
    blank = [one for _ in range(CELLS) for one in _no_cell()]
    # What somebody is typing into the field stays there.
    still = gr.update(interactive=False)
    return [
        folder or gr.skip(), gr.update(visible=False), note(text, kind), still, "", still, 0, trigger, "",
        *_tagger(home),
        *blank, trigger, folder, gr.skip(),
    ]  # fmt: skip


def _summary(listing: captions.Listing, texts: dict[str, str | None], wrong: dict[str, list[str]], later: int) -> str:
    if not listing.pictures:
        return note(words.EMPTY_FOLDER, "bad")
    without = sum(not text for text in texts.values())
    lines = words.COUNTED.format(words.number(len(listing.pictures), words.PICTURES), len(texts) - without)
    out = [note(lines, "good")]
    counted: dict[str, int] = {}
    for marks in wrong.values():
        for one in marks:
            word = words.DUPLICATE if one.startswith(words.SAME_AS.format("")) else one
            counted[word] = counted.get(word, 0) + 1
    out += [note(f"{number} {word}", "warn") for word, number in counted.items()]
    if later:
        out.append(note(words.LATER.format(words.number(later, words.PICTURES))))
    if listing.others:
        named = ", ".join(listing.others[:3]) + ("…" if len(listing.others) > 3 else "")
        out.append(note(words.IGNORED.format(words.number(len(listing.others), words.OTHER_FILES), named)))
    return f'<div class="chips">{"".join(out)}</div>'


def _tags(counted: list[tuple[str, int]]) -> str:
    if not counted:
        return ""
    rows = "".join(f"<li><span>{escape(tag)}</span><b>{number}</b></li>" for tag, number in counted[:30])
    listed = f'<ol tabindex="0" aria-label="{words.TAGS}">{rows}</ol>'
    return f'<details open class="tags"><summary>{words.TAGS}</summary>{listed}</details>'
