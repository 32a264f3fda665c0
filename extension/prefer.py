"""Screen 5: two pictures, one key. Every choice is written at once, and trains the next adapter."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer.data import pairs_file
from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.events import read_object
from . import draft, draws, duels, words
from .compare import lines_of, prompts_of, stop_button
from .page import EVENT, SLOW, Context, Screen, bar, changing, folder_of, kindly, note, short
from .store import read_text, write_json


class Prefer:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.rest, self.acts = gr.State([]), gr.State([])
        self._source()
        self.message = gr.HTML(elem_id="prefer-message")
        self.asked = gr.HTML(elem_id="prefer-prompt")
        with gr.Row(elem_classes="duel"):
            self.left, self.right = gr.HTML(elem_id="duel-left"), gr.HTML(elem_id="duel-right")
        self._choices()
        self.counted = gr.HTML(elem_id="prefer-counts")
        with gr.Row():
            gr.HTML("")
            self.train = gr.Button(
                words.TRAIN_ON_THESE, variant="primary", elem_id="train-on-these", scale=0, min_width=180
            )
        self.table = [self.message, self.asked, self.left, self.right, self.counted, self.rest]
        self.laid = [self.where, *self.table]
        self.outputs = [
            self.source, self.kept, self.run, self.prompts, self.outside, self.by_drawing, self.by_folder, *self.laid
        ]  # fmt: skip
        self.inputs = [self.source, self.run, self.kept]
        self._wire()

    def _source(self) -> None:
        with gr.Accordion(words.SOURCE, elem_id="prefer-where") as self.where:
            self._choose_source()

    def _choose_source(self) -> None:
        with gr.Row(elem_classes="align-end"):
            sources = [(text, key) for key, text in words.SOURCES.items()]
            self.source = gr.Radio(sources, value="generate", show_label=False, scale=3, elem_id="prefer-source")
            self.kept = gr.Textbox(label=words.PAIRS_FOLDER, info=words.PAIRS_INFO, elem_id="pairs-folder", scale=2)
        with gr.Row(elem_classes="align-end") as self.by_drawing:
            self.run = changing(gr.Dropdown([], label=words.RUN, elem_id="prefer-run", scale=1))
            self.prompts = gr.Textbox(
                label=words.COMPARE_PROMPTS, lines=3, max_lines=4, elem_id="prefer-prompts", scale=3
            )
            self.generate = gr.Button(words.GENERATE, variant="primary", elem_id="generate", scale=0, min_width=140)
            stop_button(self.home, "stop-pairs")
        with gr.Row(elem_classes="align-end", visible=False) as self.by_folder:
            self.outside = gr.Textbox(label=words.OUTPUTS, elem_id="outputs-folder", scale=4)
            self.load = gr.Button(words.LOAD, variant="primary", elem_id="load-pairs", scale=0, min_width=140)

    def _choices(self) -> None:
        self.buttons: dict[str, gr.Button] = {}
        with gr.Row(elem_classes="tight"):
            for name, text in words.CHOICES.items():
                self.buttons[name] = gr.Button(text, elem_id=f"prefer-{name}", min_width=80)
        gr.HTML(note(words.PREFER_INTRO))
        self.thumbs: dict[tuple[str, bool], gr.Button] = {}
        with gr.Accordion(words.THUMBS_TITLE, open=False), gr.Row(elem_classes="tight"):
            for (side, liked), text in words.THUMBS.items():
                name = f"{'like' if liked else 'dislike'}-{side}"
                self.thumbs[side, liked] = gr.Button(text, size="sm", elem_id=name)

    def _wire(self) -> None:
        decided = [self.kept, self.rest, self.source, self.run, self.outside, self.acts, self.left, self.right]
        # A quick key is not dropped while the last one is under way: one after another, each for what was seen.
        keys = {**EVENT, "trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "prefer"}
        for name, button in self.buttons.items():
            button.click(functools.partial(self.choose, name), decided, self.table, **keys)
        for (side, liked), button in self.thumbs.items():
            rated = [self.kept, self.rest, self.acts]
            button.click(functools.partial(self.thumb, side, liked), rated, [self.counted], **keys)
        drawn = self.generate.click(self.draw, [self.kept, self.run, self.prompts], [self.message], **SLOW)
        # An event of its own, as a generator's last values come twice: see compare.
        drawn.success(self.lay, [self.kept, self.run, self.message], self.laid, **EVENT)
        self.load.click(self.from_folder, [self.kept, self.outside], self.laid, **SLOW)
        for changed in (self.source.input, self.run.input):
            changed(self.change, self.inputs, self.outputs, **EVENT)

    @kindly
    def show(self, which: str, chosen: str | None, folder: str) -> list[Any]:
        """Runs that can draw, the folder of pairs, and the next two pictures."""
        known = [one for one in control.list_runs(self.home.runs) if control.checkpoints(one.path)]
        current = next((one for one in known if one.name == chosen), known[0] if known else None)
        before = read_object(self.home.settings).get("prefer", {})
        first, outside = not folder, before.get("outputs", "")
        folder = folder or before.get("pairs") or str(self.home.data / "pairs")
        same = current is None or chosen == current.name
        return [
            which, folder, gr.update(choices=[one.name for one in known], value=current.name if current else None),
            gr.skip() if same or current is None else "\n".join(prompts_of(current.path)),
            outside if first else gr.skip(),
            gr.update(visible=which == "generate"), gr.update(visible=which == "folder"),
            *self._all(self._pool(which, current.path if current else None, outside), folder),
        ]  # fmt: skip

    def _pool(self, which: str, run_dir: Path | None, outside: str) -> Path | None:
        """The folder whose pictures are compared."""
        if which == "folder":
            return self.context.folders.check("folder of outputs", outside) if outside.strip() else None
        return run_dir / "candidates" if run_dir and (run_dir / "candidates").is_dir() else None

    @kindly
    def change(self, which: str, chosen: str | None, folder: str) -> list[Any]:
        """Another source or run; where it is chosen stays open."""
        now = self.show(which, chosen, folder)
        now[self.outputs.index(self.where)] = gr.skip()
        return now

    def _all(self, pool: Path | None, folder: str, line: str = "") -> list[Any]:
        """Everything that is still open, the first of it on the table; where it comes from folds away."""
        found = self._open(pool, Path(folder))
        none = words.ALL_RATED if pool else words.NOTHING_TO_RATE
        return [gr.update(open=not found), *self._top(found, folder, line or ("" if found else note(none)))]

    def _open(self, pool: Path | None, folder: Path) -> list[duels.Duel]:
        return duels.duels(duels.grouped(pool), duels.decided(folder)) if pool else []

    def _top(self, rest: list[duels.Duel], folder: str, line: str = "") -> list[Any]:
        counts = _counts(Path(folder))
        if not rest:
            return [line or note(words.ALL_RATED), "", "", "", counts, []]
        one = rest[0]
        pictures = [
            f'<figure><img alt="{side}" src="{self.address.url(path, 1024)}"></figure>'
            for side, path in (("left", one.left), ("right", one.right))
        ]
        prompt = f'<p class="prompt">{escape(one.prompt)} <small>({words.LEFT_OVER.format(len(rest))})</small></p>'
        soon = "".join(
            f'<img hidden alt="" src="{self.address.url(p, 1024)}">' for d in rest[1:2] for p in (d.left, d.right)
        )
        return [line, prompt + soon, *pictures, counts, rest]

    @kindly
    def choose(
        self, won: str, folder: str, rest: list[duels.Duel], which: str, name: str, outside: str,
        acts: list[duels.Act], *seen: str,
    ) -> list[Any]:  # fmt: skip
        """One key, for the two pictures that were seen: the answer is on the disk before the next two show. ``acts`` is
        what this page has written so far."""
        target = self._pairs_folder(folder)
        line = _take_back(acts) if won == "undo" else ""
        if won == "undo" or not rest:  # nothing is known of a page that was open before a restart
            rest = self._open(self._pool(which, _run(self.home, name), outside), target)
        if won == "undo":
            return self._top(rest, str(target), line)
        if not rest:
            raise UserError(words.NOTHING_TO_RATE)
        meant = next((one for one in rest if self._is(one, seen)), None)
        if meant is None:  # the key was meant for the pictures before, which are decided
            return self._top(rest, str(target))
        others = [one for one in rest if one is not meant]
        if won == "skip":
            return self._top([*others, meant], str(target))
        act = duels.decide(target, meant, won)
        if act:
            acts.append(act)
        return self._top(others, str(target))

    def _is(self, duel: duels.Duel, seen: tuple[str, ...]) -> bool:
        """Whether these are the two pictures that the page showed."""
        return all(self.address.url(path, 1024) in one for path, one in zip((duel.left, duel.right), seen))

    @kindly
    def thumb(self, side: str, liked: bool, folder: str, rest: list[duels.Duel], acts: list[duels.Act]) -> str:
        if not rest:
            raise UserError(words.NOTHING_TO_RATE)
        target = self._pairs_folder(folder)
        acts.append(duels.rate(target, rest[0], side, liked))
        return _counts(target)

    @kindly
    def from_folder(self, folder: str, outside: str) -> list[Any]:
        pool = self.context.folders.check("folder of outputs", outside)
        self._remember(folder, outputs=str(pool))
        return self._all(pool, folder)

    def draw(self, folder: str, name: str, text: str) -> Iterator[str]:
        """Draw two pictures for each prompt."""
        sheet = self._begin(folder, name, text)
        before = -1
        while draws.busy(sheet):
            if sheet.done() != before:
                before = sheet.done()
                yield note(words.DRAWING.format(before, sheet.total))
            time.sleep(0.5)
        yield note(draws.trouble(sheet), "bad")

    @kindly
    def lay(self, folder: str, name: str, trouble: str) -> list[Any]:
        """Lay what was drawn on the table."""
        return self._all(self._pool("generate", _run(self.home, name), ""), folder, trouble)

    @kindly
    def _begin(self, folder: str, name: str, text: str) -> draws.Sheet:
        run_dir = folder_of(self.home, name)
        adapter = control.checkpoints(run_dir)[-1].path
        texts = duels.two_seeds(lines_of(text), int(time.time()) % 1_000_000)
        place = run_dir / "candidates" / str(int(time.time()))
        sheet = draws.Sheet(place, tuple(texts), (draws.Candidate(name, str(adapter)),))
        draws.start(run_dir, sheet)
        self._remember(folder)
        return sheet

    def _remember(self, folder: str, **more: str) -> None:
        settings = read_object(self.home.settings)
        write_json(self.home.settings, {**settings, "prefer": {**settings.get("prefer", {}), "pairs": folder, **more}})

    def _pairs_folder(self, folder: str) -> Path:
        """Where pairs are written: any folder on one's own machine, one of the server's when it is open to others."""
        if not folder.strip():
            raise UserError("pairs: no folder is given; write where they are kept")
        path = Path(folder.strip()).expanduser().resolve()
        roots = self.context.folders.roots
        if roots is not None and not any(path.is_relative_to(root) for root in roots):
            raise UserError(f"pairs: {folder} is outside the folders of this server; start it with --folder {folder}")
        return path

    @kindly
    def fill(self, folder: str, name: str) -> None:
        """The recipe for a preference run, from the run that drew the pictures."""
        fill_recipe(self.home, self._pairs_folder(folder), _run(self.home, name))


def build(context: Context) -> Screen:
    screen = Prefer(context)
    parts = {"train": screen.train, "fill": screen.fill, "inputs": [screen.kept, screen.run]}
    return Screen(screen.show, screen.outputs, screen.inputs, parts)


def _run(home: Any, name: str | None) -> Path | None:
    return next((one.path for one in control.list_runs(home.runs) if one.name == name), None)


def _take_back(acts: list[duels.Act]) -> str:
    """Undo the last of what this page has written, and say what it was."""
    if not acts:
        return note(words.NOTHING_TO_UNDO)
    row, done = acts[-1].row, duels.undo(acts[-1])
    acts.pop()
    what = words.THUMB if isinstance(row, pairs_file.Rating) else words.CHOICE
    return note((words.TAKEN_BACK if done else words.NOT_THERE).format(what, short(row.prompt)))


def _counts(folder: Path) -> str:
    rows = duels.pairs(folder)
    decided = sum(not row.tie for row in rows)
    ties, rated = len(rows) - decided, len(duels.ratings(folder))
    text = (
        words.ENOUGH.format(decided, words.USEFUL)
        + (f" {words.TIES.format(ties)}." if ties else "")
        + (f" {words.RATINGS.format(rated)}." if rated else "")
    )
    return bar(decided / words.USEFUL, text)


def fill_recipe(home: Any, pairs: Path, run_dir: Path | None) -> None:
    """Write the recipe of a preference run: the pairs, and the run's model and adapter to start from."""
    rated = not duels.pairs(pairs)
    if rated and not duels.ratings(pairs):
        raise UserError(f"pairs: there are none in {pairs}; choose some first")
    kind = "kto" if rated else "dpo"
    key = "data.ratings" if rated else "data.pairs"
    changes: dict[str, Any] = {
        "data": None, "loss.pixel": None, "objective": {"kind": kind}, "run.epochs": None, "run.steps": 300,
        "optimizer.learning_rate": 2e-5, "run.batch": 2, "run.name": "preference",
    }  # fmt: skip
    if run_dir is not None:
        tables = draft.values_of(read_text(run_dir / "config.toml"))
        resolution = draft.get(tables, "data.resolution")
        newest = control.checkpoints(run_dir)
        changes |= {name: tables[name] for name in ("model", "adapter", "sample") if name in tables}
        changes |= {"run.name": f"{run_dir.name}-{kind}", "data.resolution": resolution}
        changes |= {"adapter.init_from": str(newest[-1].path)} if newest else {}
    draft.start_over(home, draft.changed(draft.START, {**changes, key: str(pairs)}), words.TRAIN_ON_THESE)
