"""Screen 5: two pictures, one key. Every choice is written at once, and trains the next adapter."""

from __future__ import annotations

import functools
import time
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..trainer.data import pairs_file
from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.events import read_object
from . import draft, draws, duels, progress, words
from .compare import newest, prompts_of, prompts_or_own, stop_button, stop_drawing
from .page import (
    EVENT,
    SLOW,
    Context,
    Screen,
    about,
    bar,
    changing,
    choice_buttons,
    folder_of,
    in_place,
    kindly,
    note,
    short,
)
from .security import unquoted
from .store import read_text, write_json

KINDS = ("dpo", "kto")
PACE = 2.0
"""Seconds between looks at what is being drawn."""
STEPS, BATCH, RATE = 300, 2, 2e-5
"""Of the recipe for a preference run."""


class Prefer:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.rest, self.acts, self.source = gr.State([]), gr.State([]), gr.State("generate")
        self.clock = gr.Timer(PACE, active=False)
        self._ask()
        self.message = gr.HTML(elem_id="prefer-message")
        with gr.Column(visible=False, elem_id="judging") as self.judging:
            self.asked = gr.HTML(elem_id="prefer-prompt")
            with gr.Row(elem_classes="duel"):
                self.left, self.right = gr.HTML(elem_id="duel-left"), gr.HTML(elem_id="duel-right")
            self._choices()
        with gr.Row(elem_classes="align-end"):
            self.counted = gr.HTML(elem_id="prefer-counts")
            self.train = gr.Button(
                words.TRAIN_ON_THESE, variant="primary", elem_id="train-on-these", scale=0, min_width=240,
                interactive=False,
            )  # fmt: skip
        self.table = [self.message, self.asked, self.left, self.right, self.counted, self.rest, self.train]
        self.table += [self.judging]
        self.laid = [*self.table, self.clock, self.source, self.halt]
        self.outputs = [self.run, self.generate, self.load, self.kept, self.prompts, self.outside, *self.laid]
        self.inputs = [self.source, self.run, self.kept, self.outside, self.many, self.kind, self.acts]
        self._wire()

    def _ask(self) -> None:
        with gr.Row(elem_classes="align-end"):
            self.run = changing(gr.Dropdown([], label=words.RUN, elem_id="prefer-run", scale=2, min_width=160))
            self.generate = gr.Button(
                words.GENERATE.format(words.USEFUL),
                variant="primary",
                elem_id="generate",
                scale=2,
                min_width=240,
                interactive=False,
            )
            self.halt = stop_button("stop-pairs", visible=False)
            self.outside = gr.Textbox("", label=words.OUTPUTS, elem_id="outputs-folder", scale=3, min_width=240)
            self.load = gr.Button(words.LOAD, elem_id="load-pairs", scale=0, min_width=120, interactive=False)
        with gr.Accordion(words.PREFER_OPTIONS, open=False, elem_id="prefer-more"), gr.Row():
            self.prompts = gr.Textbox(
                "", label=words.COMPARE_PROMPTS, lines=3, max_lines=6, elem_id="prefer-prompts", scale=3
            )
            with gr.Column(scale=2):
                self.many = gr.Slider(
                    2, 200, value=words.USEFUL, step=1, label=words.HOW_MANY, elem_id="how-many-pairs", buttons=[]
                )
                self.kept = gr.Textbox("", label=words.PAIRS_FOLDER, info=words.PAIRS_INFO, elem_id="pairs-folder")
                self.kind = gr.Radio(
                    [(words.JUDGED_BY[one], one) for one in KINDS], value="dpo", label=words.JUDGED, elem_id="judge-by"
                )

    def _choices(self) -> None:
        self.buttons = choice_buttons("prefer")
        self.thumbs: dict[tuple[str, bool], gr.Button] = {}
        with gr.Row(elem_classes="tight", visible=False, elem_id="thumbs") as self.alone:
            for (side, liked), text in words.THUMBS.items():
                name = f"{'like' if liked else 'dislike'}-{side}"
                self.thumbs[side, liked] = gr.Button(text, elem_id=name, min_width=80)

    def _wire(self) -> None:
        where = [self.source, self.run, self.outside, self.kind]
        decided = [self.kept, self.rest, *where, self.acts, self.left, self.right]
        # A quick key is not dropped while the last one is under way: one after another, each for what was seen.
        keys = {**EVENT, "trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "prefer"}
        for name, button in self.buttons.items():
            chosen = in_place(functools.partial(self.choose, name), self.table, at=0)
            button.click(chosen, decided, self.table, **keys)
        for (side, liked), button in self.thumbs.items():
            rated = [self.kept, self.rest, self.acts, self.run]
            counts = [self.counted, self.train, self.message]
            button.click(in_place(functools.partial(self.thumb, side, liked), counts), rated, counts, **keys)
        drawing = [self.kept, self.run, self.prompts, self.many]
        drawn = [self.message, self.clock, self.source, self.halt]
        begun = self.generate.click(in_place(self.draw, drawn, at=0), drawing, drawn, **SLOW)
        look = (self.watch, [self.kept, self.rest, *where, self.acts], self.laid)
        begun.success(*look, **keys)
        self.clock.tick(*look, **{**keys, "trigger_mode": "once"})
        self.halt.click(in_place(functools.partial(stop_drawing, self.home), [self.message]), None, [self.message],
                        **EVENT)  # fmt: skip
        opened = [self.kept, self.outside, self.run, self.kind, self.acts]
        seen: dict[str, Any] = {**SLOW, "show_progress_on": [self.message]}
        self.load.click(in_place(self.from_folder, self.laid, at=0), opened, self.laid, **seen)
        self.run.input(self.of_run, self.inputs, self.outputs, **EVENT)
        self.many.change(self.named, [self.run, self.many], [self.generate], **EVENT)
        kinds = [self.alone, *(self.buttons[one] for one in ("left", "tie", "right")), self.counted, self.train]
        self.kind.input(self.judge_by, [self.kind, self.kept, self.run], kinds, **EVENT)

    @kindly
    def show(
        self, which: str, chosen: str | None, folder: str, outside: str, many: float, kind: str,
        acts: list[duels.Act],
    ) -> list[Any]:  # fmt: skip
        """Runs that can draw, and the next two pictures. What is typed stays: empty fields say what is taken."""
        known = [one for one in control.list_runs(self.home.runs) if control.checkpoints(one.path)]
        current = next((one for one in known if one.name == chosen), known[0] if known else None)
        name = current.name if current else None
        names = [one.name for one in known]
        return [
            gr.update(choices=names) if name == chosen else gr.update(choices=names, value=name),
            self.named(name, many), gr.update(interactive=True),
            gr.update(placeholder=str(duels.place(self.home, current and current.path))),
            gr.update(placeholder="\n".join(prompts_of(current.path)) if current else ""),
            gr.update(placeholder=self._before().get("outputs", "")),
            *self._all(which, name, outside, folder, kind, acts),
        ]  # fmt: skip

    @kindly
    def of_run(
        self, which: str, chosen: str | None, folder: str, outside: str, many: float, kind: str,
        acts: list[duels.Act],
    ) -> list[Any]:  # fmt: skip
        """Another run, whose own pictures are meant."""
        return self.show("generate", chosen, folder, outside, many, kind, acts)

    def named(self, name: str | None, many: float) -> Any:
        """The button that draws, with its time as far as it is known."""
        run_dir = _run(self.home, name)
        text = words.GENERATE.format(int(many))
        each = draws.seconds_each(run_dir) if run_dir else None
        return gr.update(
            value=words.TAKES.format(text, about(2 * many * each)) if each else text, interactive=run_dir is not None
        )

    @kindly
    def judge_by(self, kind: str, folder: str, name: str | None) -> list[Any]:
        """Buttons for two pictures against each other, or thumbs for each."""
        alone = kind == "kto"
        counts = self._counts(self._folder(folder, name), name, kind)
        return [gr.update(visible=alone), *[gr.update(visible=not alone)] * 3, *counts]

    # ------------------------------------------------------------------------------------------------- what is open

    def _pool(self, which: str, run_dir: Path | None, outside: str) -> Path | None:
        """The folder whose pictures are compared."""
        if which == "folder":
            given = outside.strip() or self._before().get("outputs", "")
            return self.context.folders.check(words.OUTPUTS_PLACE, given)
        return run_dir / "candidates" if run_dir and (run_dir / "candidates").is_dir() else None

    def _all(
        self, which: str, name: str | None, outside: str, folder: str, kind: str, acts: list[duels.Act], line: str = ""
    ) -> list[Any]:  # fmt: skip
        """Everything that is still open, the first of it on the table."""
        run_dir = _run(self.home, name)
        pool, drawn = self._pool(which, run_dir, outside), self._drawing(run_dir)
        found = self._open(pool, self._folder(folder, name), not drawn)
        if not found and not line:
            nothing = words.NOTHING_TO_RATE if run_dir or which == "folder" else words.NO_RUN_DRAWS
            decided = bool(pool and duels.duels(duels.grouped(pool), set(), not drawn))
            line = note(words.MORE_COMES if drawn and pool else words.ALL_RATED if decided else nothing)
        if drawn:
            line = note(words.DRAWING.format(*draws.progress(drawn)))
        laid = self._top(found, folder, name, kind, acts, line)
        at_work = drawn is not None
        return [*laid, gr.Timer(PACE, active=at_work), which, gr.update(visible=at_work)]

    def _open(self, pool: Path | None, folder: Path, whole: bool = True) -> list[duels.Duel]:
        return duels.duels(duels.grouped(pool), duels.decided(folder), whole) if pool else []

    def _drawing(self, run_dir: Path | None) -> Path | None:
        """The folder in which pairs of this run are being drawn."""
        under_way = draws.under_way(self.home.runs)
        return next((one for one in under_way if run_dir and one.parent == run_dir / "candidates"), None)

    def _top(
        self, rest: list[duels.Duel], folder: str, name: str | None, kind: str, acts: list[duels.Act], line: str = ""
    ) -> list[Any]:  # fmt: skip
        """The first of the rest; where there is none, the keys stay as long as there is something to undo."""
        counts, train = self._counts(self._folder(folder, name), name, kind)
        if not rest:
            return [line or note(words.ALL_RATED), "", "", "", counts, [], train, gr.update(visible=bool(acts))]
        one = rest[0]
        pictures = [
            f'<figure><img alt="{side}" src="{self.address.url(path, 1024)}"></figure>'
            for side, path in ((words.LEFT, one.left), (words.RIGHT, one.right))
        ]
        prompt = f'<p class="prompt">{escape(one.prompt)} <small>({words.LEFT_OVER.format(len(rest))})</small></p>'
        soon = "".join(
            f'<img hidden alt="" src="{self.address.url(p, 1024)}">' for d in rest[1:2] for p in (d.left, d.right)
        )
        return [line, prompt + soon, *pictures, counts, rest, train, gr.update(visible=True)]

    # ---------------------------------------------------------------------------------------------------- answers

    @kindly
    def choose(
        self, won: str, folder: str, rest: list[duels.Duel], which: str, name: str, outside: str, kind: str,
        acts: list[duels.Act], *seen: str,
    ) -> list[Any]:  # fmt: skip
        """One key, for the two pictures that were seen: the answer is on the disk before the next two show. ``acts`` is
        what this page has written so far."""
        target = self._pairs_folder(folder, name)
        run_dir = _run(self.home, name)
        drawn = self._drawing(run_dir)
        line = _take_back(acts) if won == "undo" else ""
        if won == "undo" or not rest:  # nothing is known of a page that was open before a restart
            rest = self._open(self._pool(which, run_dir, outside), target, not drawn)
        if won == "undo":
            return self._top(rest, folder, name, kind, acts, line)
        if not rest:
            raise UserError(words.NOTHING_TO_RATE)
        if drawn:
            line = note(words.DRAWING.format(*draws.progress(drawn)))
        meant = next((one for one in rest if self._is(one, seen)), None)
        if meant is None:  # the key was meant for the pictures before, which are decided
            return self._top(rest, folder, name, kind, acts, line)
        others = [one for one in rest if one is not meant]
        if won == "skip":
            return self._top([*others, meant], folder, name, kind, acts, line)
        act = duels.decide(target, meant, won)
        if act:
            acts.append(act)
        if not others:  # what was drawn meanwhile
            others = self._open(self._pool(which, run_dir, outside), target, not drawn)
        return self._top(others, folder, name, kind, acts, line)

    def _is(self, duel: duels.Duel, seen: tuple[str, ...]) -> bool:
        """Whether these are the two pictures that the page showed."""
        return all(self.address.url(path, 1024) in one for path, one in zip((duel.left, duel.right), seen))

    @kindly
    def thumb(
        self, side: str, liked: bool, folder: str, rest: list[duels.Duel], acts: list[duels.Act], name: str | None
    ) -> list[Any]:
        if not rest:
            raise UserError(words.NOTHING_TO_RATE)
        target = self._pairs_folder(folder, name)
        acts.append(duels.rate(target, rest[0], side, liked))
        return self._counts(target, name, "kto")

    # ---------------------------------------------------------------------------------------------------- drawing

    def from_folder(
        self, folder: str, outside: str, name: str | None, kind: str, acts: list[duels.Act]
    ) -> list[Any]:  # fmt: skip
        pool = self._pool("folder", None, outside)
        self._remember(folder, name, outputs=str(pool))
        return self._all("folder", name, str(pool), folder, kind, acts)

    def draw(self, folder: str, name: str, text: str, many: float) -> list[Any]:
        """Begin to draw the number of pairs that was asked for; pairs can be judged while others are drawn."""
        run_dir = folder_of(self.home, name)
        texts = duels.two_seeds(prompts_or_own(run_dir, text), int(time.time()) % 1_000_000, int(many))
        place = run_dir / "candidates" / str(int(time.time()))
        draws.start(run_dir, draws.Sheet(place, tuple(texts), (draws.Candidate(name, str(newest(run_dir))),)))
        self._remember(folder, name)
        return [
            note(words.DRAWING.format(0, len(texts))),
            gr.Timer(PACE, active=True),
            "generate",
            gr.update(visible=True),
        ]

    @kindly
    def watch(
        self, folder: str, rest: list[duels.Duel], which: str, name: str | None, outside: str, kind: str,
        acts: list[duels.Act],
    ) -> list[Any]:  # fmt: skip
        """How far the drawing is. Two pictures are laid only where none lie."""
        run_dir = _run(self.home, name)
        drawn = self._drawing(run_dir)
        line = note(words.DRAWING.format(*draws.progress(drawn))) if drawn else note(*_ended(run_dir))
        if not rest:
            return self._all(which, name, outside, folder, kind, acts, line)
        kept = [gr.skip()] * (len(self.table) - 1)
        at_work = drawn is not None
        return [line, *kept, gr.Timer(PACE, active=at_work), which, gr.update(visible=at_work)]

    def _before(self) -> dict[str, Any]:
        return read_object(self.home.settings).get("prefer", {})

    def _remember(self, folder: str, name: str | None, **more: str) -> None:
        if folder.strip():
            self._pairs_folder(folder, name)
        settings = read_object(self.home.settings)
        write_json(self.home.settings, {**settings, "prefer": {**settings.get("prefer", {}), **more}})

    def _folder(self, folder: str, name: str | None) -> Path:
        """Where pairs are kept: as typed, else the run's own place."""
        given = unquoted(folder)
        return Path(given).expanduser() if given else duels.place(self.home, _run(self.home, name))

    def _pairs_folder(self, folder: str, name: str | None) -> Path:
        """Where pairs are written, from now on for this run: any folder on one's own machine, one of the server's when
        it is open to others."""
        run_dir = folder_of(self.home, name) if name else None
        path = (Path(unquoted(folder)).expanduser() if unquoted(folder) else duels.place(self.home, run_dir)).resolve()
        roots = self.context.folders.roots
        if roots is not None and not any(path.is_relative_to(root) for root in roots):
            raise UserError(words.OUTSIDE.format(words.WHERE_PAIRS, folder))
        if not unquoted(folder):
            return duels.claim_place(self.home, run_dir).resolve()
        duels.keep(self.home, run_dir, path)
        return path

    # ---------------------------------------------------------------------------------------------- train on these

    def _counts(self, folder: Path, name: str | None, kind: str) -> list[Any]:
        """How many there are, and the button that trains on them once they are enough, with its time."""
        rows = duels.pairs(folder)
        ties = sum(row.tie for row in rows)
        there = len(duels.ratings(folder)) if kind == "kto" else len(rows) - ties
        what = words.RATED if kind == "kto" else words.PAIRS
        text = words.ENOUGH.format(there, words.USEFUL) if kind == "dpo" else words.RATINGS.format(there)
        text += f" · {words.number(ties, words.TIE_COUNT)}" if ties and kind == "dpo" else ""
        text += words.TOO_FEW.format(words.LEAST) if there < words.LEAST else ""
        takes = _seconds(_run(self.home, name), kind)
        label = words.TRAIN_ON.format(words.number(there, what)) if there else words.TRAIN_ON_THESE
        label = words.TAKES.format(label, about(takes)) if takes and there else label
        return [bar(there / words.USEFUL, text), gr.update(value=label, interactive=there >= words.LEAST)]

    @kindly
    def fill(self, folder: str, name: str, kind: str) -> None:
        """The recipe for a preference run, from the run that drew the pictures."""
        fill_recipe(self.home, self._pairs_folder(folder, name), _run(self.home, name), kind)


def build(context: Context) -> Screen:
    screen = Prefer(context)
    parts = {"train": screen.train, "fill": screen.fill, "inputs": [screen.kept, screen.run, screen.kind]}
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


def _ended(run_dir: Path | None) -> tuple[str, str]:
    """Why the last drawing of pairs ended early, as a line and its kind; empty when it did not."""
    drawn = sorted((run_dir / "candidates").glob("*/cells.json")) if run_dir else []
    return draws.ended(drawn[-1].parent) if drawn else ("", "quiet")


def _seconds(run_dir: Path | None, kind: str) -> float | None:
    """About how long the preference run takes, by the speed of the run that it starts from. A row of it costs a
    forward and a backward pass as any row does, and a forward pass of the reference, a third as much again; a pair is
    two rows. None before the first steps."""
    if run_dir is None or not (speed := progress.speed(progress.history(run_dir))):
        return None
    try:
        batch = draft.get(draft.values_of(read_text(run_dir / "config.toml")), "run.batch")
    except UserError:
        return None
    rows = BATCH * (1 if kind == "kto" else 2)
    return STEPS * rows * 4 / 3 / speed / (batch if isinstance(batch, int) and batch else 1)


def fill_recipe(home: Any, pairs: Path, run_dir: Path | None, kind: str = "dpo") -> None:
    """Write a new recipe, of a preference run: the pairs, and the run's model and adapter to start from. The one that
    was there is kept among the earlier ones."""
    rated = kind == "kto"
    if not (duels.ratings(pairs) if rated else duels.pairs(pairs)):
        raise UserError(words.NO_PAIRS.format(pairs))
    key = "data.ratings" if rated else "data.pairs"
    changes: dict[str, Any] = {
        "data": None, "loss.pixel": None, "objective": {"kind": kind}, "run.epochs": None, "run.steps": STEPS,
        "optimizer.learning_rate": RATE, "run.batch": BATCH, "run.name": "preference",
    }  # fmt: skip
    if run_dir is not None:
        tables = draft.values_of(read_text(run_dir / "config.toml"))
        resolution = draft.get(tables, "data.resolution")
        newest = control.checkpoints(run_dir)
        changes |= {name: tables[name] for name in ("model", "adapter", "sample") if name in tables}
        changes |= {"run.name": f"{run_dir.name}-{kind}", "data.resolution": resolution}
        changes |= {"adapter.init_from": str(newest[-1].path)} if newest else {}
    draft.start_over(home, draft.changed(draft.START, {**changes, key: str(pairs)}), words.BY_PAIRS)
