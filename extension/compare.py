"""Screen 4: previews, checkpoints and strengths side by side; a blind vote; and the winner where it is used."""

from __future__ import annotations

import functools
import hashlib
import random
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import tomlkit
from tomlkit.exceptions import TOMLKitError

from ..trainer.errors import UserError
from ..trainer.runs import control
from . import draws, hosts, maps, progress, studies, tables, votes, words
from .draws import BASE, Candidate, Sheet
from .page import (
    EVENT,
    SLOW,
    Context,
    Screen,
    bar,
    changing,
    choice_buttons,
    folder_of,
    in_place,
    kindly,
    lora_hosts,
    note,
    success,
)
from .store import read_text
from .tables import Column, Table

MOST_CANDIDATES = 12
SEVERAL = "0.5, 0.75, 1, 1.25"
"""Strengths that one button draws."""
PICK = """
let last = null;
element.addEventListener("click", (event) => {
  const cell = event.target.closest("[data-cell]");
  if (!cell) return;
  last = cell.dataset.cell;
  trigger("click", { cell: last });
});
watch("value", () => {
  if (last) element.querySelector(`[data-cell="${last}"]`)?.focus({ preventScroll: true });
});
"""
"""A click on a cell says which, and the focus stays on it when the table is written again."""


@dataclass(frozen=True)
class Showing:
    """Two candidates and the prompt's number, laid on the table once."""

    pair: tuple[str, str, int]
    mark: str


class Compare:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        self.shown, self.picked = gr.State(""), gr.State([])
        with gr.Row(elem_classes="align-end"):
            self.run = changing(gr.Dropdown([], label=words.COMPARE_RUN, elem_id="compare-run", scale=2))
            self.of = changing(
                gr.Radio([], label=words.SHOWN, elem_id="compare-of", elem_classes="inline", visible=False, scale=2)
            )
            self.begin = gr.Button(
                words.VOTE_BLIND, variant="primary", elem_id="vote-blind", scale=0, min_width=150, visible=False
            )
        self.message = gr.HTML(elem_id="compare-message")
        with gr.Column(visible=False, elem_id="voting") as self.voting:
            self._vote()
        with gr.Column(visible=False, elem_id="side-by-side") as self.looking:
            self._look()
        self.result = gr.HTML(elem_id="vote-result")
        self.use_it = gr.Button(words.USE_IT, elem_id="use-it", visible=False, scale=0)
        with gr.Accordion(words.COMPARE, open=False, elem_id="compare-more"):
            self._ask()
        with gr.Accordion(words.USE, open=False, elem_id="use-this") as self.using:
            self._use()
        self.table = [self.asked, self.left, self.right]
        self.pair = [self.grid, self.slider, self.named, self.strength, self.several, self.picked]
        self.outcome = [self.result, self.use_it]
        self.outputs = [
            self.run, self.of, self.begin, self.looking, self.which, self.prompts, self.used, self.where,
            self.message, *self.pair, *self.outcome, self.shown, self.voting, self.drawing,
        ]  # fmt: skip
        self._wire()

    def _look(self) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=420):
                self.grid = gr.HTML(elem_id="compare-grid", js_on_load=PICK)
            with gr.Column(scale=1, min_width=420, elem_classes="side"):
                self.slider = gr.ImageSlider(
                    show_label=False, label=words.COMPARED, interactive=False, max_height=2000, format="png",
                    elem_id="compare-two", elem_classes="two", buttons=["fullscreen"],
                )  # fmt: skip
                self.named = gr.HTML(elem_id="compare-named")
                self.strength = gr.Slider(
                    0, 2, value=1, step=0.05, label=words.STRENGTH, elem_id="compare-strength", visible=False,
                    buttons=[],
                )  # fmt: skip
                self.several = gr.Button(words.DRAW_STRENGTHS, elem_id="draw-strengths", size="sm")

    def _ask(self) -> None:
        with gr.Row():
            self.which = changing(
                gr.Dropdown([], label=words.COMPARE_WHAT, multiselect=True, elem_id="compare-which", scale=3)
            )
            self.strengths = gr.Textbox(
                "1", label=words.STRENGTHS, info=words.STRENGTHS_INFO, elem_id="compare-strengths", scale=1
            )
        with gr.Row(elem_classes="align-end"):
            self.prompts = gr.Textbox(
                "", label=words.COMPARE_PROMPTS, lines=3, max_lines=4, scale=4, elem_id="compare-prompts"
            )
            self.drawing = gr.Button(
                words.DRAW, variant="primary", elem_id="draw", scale=1, min_width=150, interactive=False
            )
            self.halt = stop_button("stop-drawing")

    def _vote(self) -> None:
        self.asked = gr.HTML(elem_id="vote-prompt")
        with gr.Row(elem_classes="duel"):
            self.left, self.right = gr.HTML(), gr.HTML()
        self.buttons = choice_buttons("vote")
        self.end = gr.Button(words.END_VOTE, elem_id="end-vote", size="sm")

    def _use(self) -> None:
        with gr.Row(elem_classes="align-end"):
            self.used = changing(gr.Dropdown([], label=words.USE_WHICH, elem_id="use-which", scale=2))
            self.where = changing(gr.Dropdown([], label=words.USE_WHERE, elem_id="use-where", scale=2))
            self.use = gr.Button(words.COPY_THERE, variant="primary", elem_id="use", scale=1, min_width=120)
        with gr.Row(elem_classes="align-end"):
            self.host_folder = gr.Textbox("", label=words.OTHER_HOST, scale=4, elem_id="host-folder")
            self.add_host = gr.Button(words.ADD_HOST, scale=1, min_width=150, elem_id="add-host")
        self.given = gr.HTML(elem_id="use-line")

    def _wire(self) -> None:
        self.run.input(self.show, [self.run, self.shown, self.of, self.picked], self.outputs, **EVENT)
        self.of.input(self.turn, [self.run, self.of], [*self.pair, *self.outcome], **EVENT)
        # A cell after the other, or the second would be laid beside what lay there before the first.
        looks = {**EVENT, "trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "look"}
        self.grid.click(self.pick, [self.run, self.of, self.picked], self.pair, **looks)
        moved = [self.run, self.of, self.picked, self.strength]
        self.strength.input(self.set_strength, moved, self.pair, **{**looks, "trigger_mode": "always_last"})
        while_drawn, then = [self.message, self.grid, self.of], (self.turn, [self.run, self.of])
        asked = [self.run, self.which, self.strengths, self.prompts]
        for event in (
            self.drawing.click(in_place(self.draw, while_drawn, at=0), asked, while_drawn, **SLOW),
            self.several.click(
                in_place(self.draw_several, while_drawn, at=0), [self.run, self.of, self.picked, self.prompts],
                while_drawn, **SLOW,
            ),
        ):  # fmt: skip  # the last values of a generator come twice: what is picked from is laid by an event of its own
            event.success(*then, [*self.pair, *self.outcome], **EVENT)
        begun = [self.begin, self.voting, self.looking, *self.table, self.message]
        self.begin.click(in_place(self.start_vote, begun), [self.run, self.of], begun, **EVENT)
        # A quick key is not dropped while the last one is under way: one after another, each for what was seen.
        keys = {**EVENT, "trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "vote"}
        for name, button in self.buttons.items():
            button.click(functools.partial(self.vote, name), [self.run, self.of, self.left], self.table, **keys)
        ended = [self.begin, self.voting, self.looking, *self.outcome]
        self.end.click(self.end_vote, [self.run, self.of], ended, **EVENT)
        taken = [self.used, self.using, self.given]
        self.use_it.click(in_place(self.use_winner, taken), [self.run, self.of, self.where], taken, **EVENT)
        self.use.click(in_place(self.give, [self.given]), [self.used, self.where], [self.given], **EVENT)
        self.halt.click(
            in_place(functools.partial(stop_drawing, self.home), [self.message]), None, [self.message], **EVENT
        )
        known = [self.where, self.given]
        self.add_host.click(in_place(self.remember_host, known), [self.host_folder], known, **EVENT)

    def show(
        self, chosen: str | None, before: str = "", of: str | None = None, picked: list[Any] | None = None
    ) -> list[Any]:
        """The run's previews, or what was drawn of it. What was typed or chosen for the run that was shown ``before``
        stays, and prompts stay in any case: the field shows those that are taken while it is empty."""
        known = [one for one in control.list_runs(self.home.runs) if shows(one.path)]
        current = next((one for one in known if one.name == chosen), known[0] if known else None)
        if current is None:
            none = [gr.update(choices=[], value=None), gr.update(visible=False), gr.update(visible=False)]
            rest = [
                gr.update(visible=False),
                gr.update(choices=[], value=[]),
                gr.skip(),
                gr.update(choices=[], value=None),
            ]
            hidden = [
                "",
                None,
                "",
                gr.update(visible=False),
                gr.update(visible=False),
                [],
                "",
                gr.update(visible=False),
            ]
            return [
                *none,
                *rest,
                _where(self.home),
                note(words.NOTHING_TO_COMPARE),
                *hidden,
                "",
                gr.update(visible=False),
                gr.update(interactive=False),
            ]
        options = _options(current.path, known)
        files = [one for one in options if one[1] != BASE]
        same = current.name == before
        sheet = draws.latest(current.path)
        views = [view for view in (tables.PREVIEWS, tables.DRAWN) if tables.of_run(current.path, view)]
        views = views if sheet else [one for one in views if one != tables.DRAWN]
        view = of if same and of in views else views[-1] if views else None
        line = "" if views else note(words.NO_PREVIEWS_YET)
        if sheet and draws.busy(sheet):
            line = note(words.DRAWING.format(sheet.done(), sheet.total))
        names = gr.update(choices=[one.name for one in known], **_unless(current.name == chosen, current.name))
        return [
            names, gr.update(choices=[(words.VIEWS[one], one) for one in views], value=view, visible=len(views) > 1),
            gr.update(visible=bool(views)), gr.skip() if same else gr.update(visible=True),
            gr.update(choices=options, **_unless(same, [BASE, *[value for _, value in files][-3:]])),
            gr.update(placeholder="\n".join(own_prompts(current.path))),
            gr.update(choices=files, **_unless(same or not files, files and files[-1][1])), _where(self.home), line,
            *self.turn(current.name, view, picked if same else None), current.name,
            gr.skip() if same else gr.update(visible=False), gr.update(interactive=True),
        ]  # fmt: skip

    # ------------------------------------------------------------------------------------------------ side by side

    def _table(self, name: str | None, of: str | None) -> Table:
        found = tables.of_run(folder_of(self.home, name), of)
        return found or Table((), (), {})

    @kindly
    def turn(self, name: str, of: str | None, picked: list[Any] | None = None) -> list[Any]:
        """A table, two of its pictures, and how the vote on it stands."""
        table = self._table(name, of)
        return [*self._pair(table, tables.first_two(table, picked)), *self._outcome(table, name)]

    @kindly
    def pick(self, name: str, of: str | None, picked: list[Any], event: gr.EventData) -> list[Any]:
        """Lay a cell beside the one that was chosen before it."""
        table = self._table(name, of)
        column, _, row = str(getattr(event, "cell", "")).partition(" ")
        cell = (column, int(row) if row.isdigit() else -1)
        before = tables.first_two(table, picked)
        if table.picture(cell) is None or cell in before[-1:]:
            return self._pair(table, before)
        return self._pair(table, [*before[-1:], cell])

    @kindly
    def set_strength(self, name: str, of: str | None, picked: list[Any], strength: float) -> list[Any]:
        """The second picture at the drawn strength that is nearest."""
        table = self._table(name, of)
        now = tables.first_two(table, picked)
        column = table.column(now[-1][0]) if now else None
        if column is None:
            return self._pair(table, now)
        there = table.strengths(_of_file(table, column))
        there = [one for one in there if table.picture((one.id, now[-1][1]))]
        return self._pair(table, [now[0], (tables.nearest(there, strength).id, now[-1][1])])

    def _pair(self, table: Table, picked: list[tables.Cell]) -> list[Any]:
        second = table.column(picked[-1][0]) if picked else None
        there = table.strengths(_of_file(table, second)) if second else []
        movable = len(there) > 2
        at = 0.0 if second and second.base else second.strength if second else 1.0
        info = words.DRAWN_AT.format(", ".join(f"{0 if one.base else one.strength:g}" for one in there))
        most = max([2.0, *(one.strength for one in there)])
        file = bool(second and _of_file(table, second).adapter)
        return [
            tables.shown(table, picked, self.address), tables.two(table, picked), tables.named(table, picked),
            gr.update(visible=movable, value=at, info=info, maximum=most),
            gr.update(visible=file and not movable), [list(one) for one in picked],
        ]  # fmt: skip

    # ----------------------------------------------------------------------------------------------------- drawing

    def draw(self, name: str, adapters: list[str] | None, weights: str, text: str) -> Iterator[list[Any]]:
        """Draw what is missing, and fill the grid while it comes."""
        sheet = self._begin(name, adapters, weights, text)
        before = -1
        while draws.busy(sheet):
            if sheet.done() != before:
                before = sheet.done()
                yield self._drawn(sheet, note(words.DRAWING.format(before, sheet.total)))
            time.sleep(0.5)
        yield self._drawn(sheet, note(*draws.ended(sheet.folder)))

    def draw_several(self, name: str, of: str | None, picked: list[Any], text: str) -> Iterator[list[Any]]:
        """The base and the second picture's file at several strengths."""
        yield from self.draw(name, [BASE, self._file(name, of, picked)], SEVERAL, text)

    @kindly
    def _file(self, name: str, of: str | None, picked: list[Any]) -> str:
        table = self._table(name, of)
        now = tables.first_two(table, picked)
        column = table.column(now[-1][0]) if now else None
        return (_of_file(table, column).adapter if column else None) or str(newest(folder_of(self.home, name)))

    def _drawn(self, sheet: Sheet, line: str) -> list[Any]:
        views = [(words.VIEWS[one], one) for one in (tables.PREVIEWS, tables.DRAWN)]
        views = views if progress.pictures(sheet.folder.parents[1]) else views[1:]
        of = gr.update(choices=views, value=tables.DRAWN, visible=len(views) > 1)
        return [line, tables.shown(tables.of_sheet(sheet), [], self.address), of]

    def _begin(self, name: str, adapters: list[str] | None, weights: str, text: str) -> Sheet:
        run_dir = folder_of(self.home, name)
        candidates = _candidates(self.home, run_dir, adapters or [], weights)
        sheet = draws.sheet(run_dir, prompts_or_own(run_dir, text), candidates)
        draws.start(run_dir, sheet)
        draws.remember(run_dir, sheet)
        return sheet

    # ---------------------------------------------------------------------------------------------------- the vote

    @kindly
    def start_vote(self, name: str, of: str | None) -> list[Any]:
        """Show the first two pictures to compare without their names, in place of the table that has them."""
        table = self._table(name, of)
        laid = self._next(folder_of(self.home, name), table)
        if not laid[1]:
            raise UserError(words.NO_TWO)
        return [gr.update(visible=False), gr.update(visible=True), gr.update(visible=False), *laid]

    @kindly
    def end_vote(self, name: str, of: str | None) -> list[Any]:
        outcome = self._outcome(self._table(name, of), name)
        return [gr.update(visible=True), gr.update(visible=False), gr.update(visible=True), *outcome]

    def _outcome(self, table: Table, name: str) -> list[Any]:
        """Who is ahead, and the button that takes it where it is used."""
        given = votes.read(votes_of(folder_of(self.home, name)))
        found = tables.result(table, given)
        if not found.rows:
            return ["", gr.update(visible=False)]
        line = note(found.sentence, "good verdict" if found.winner else "verdict")
        if found.winner and not (found.winner.adapter or found.winner.base):
            line += note(words.NOT_SAVED, "warn")
        more = f"<details><summary>{words.ALL_SCORES}</summary>{tables.tally(table, found.rows)}</details>"
        return [line + more, gr.update(visible=bool(found.winner and found.winner.adapter))]

    def _next(self, run_dir: Path, table: Table, last: Showing | None = None) -> list[Any]:
        """Two pictures to vote on. After the same showing, with the same votes, the same two: an answer that is sent
        twice shows nothing else."""
        given = votes.read(votes_of(run_dir))
        seen = f"{last.mark}{len(given)}" if last else secrets.token_hex(8)
        rng, mark = random.Random(seen), hashlib.sha256(seen.encode()).hexdigest()[:16]
        pair = votes.choose(table.drawn, given, rng, last and last.pair)
        return self._lay(table, Showing(pair, mark), given) if pair else ["", "", ""]

    def _lay(self, table: Table, shown: Showing, given: list[votes.Vote]) -> list[Any]:
        one, other, number = shown.pair
        urls = [self.address.url(table.drawn[name][number], 1024) for name in (one, other)]
        about = f"{one} {other} {number} {shown.mark}"
        left = f'<figure data-showing="{about}"><img alt="{words.LEFT}" src="{urls[0]}"></figure>'
        right = f'<figure><img alt="{words.RIGHT}" src="{urls[1]}"></figure>'
        done, of = votes.progress(table.drawn, given)
        how_far = bar(done / max(1, of), words.VOTED.format(done, of), label=words.VOTE_TITLE)
        return [f'{how_far}<p class="prompt">{escape(table.prompts[number])}</p>', left, right]

    @kindly
    def vote(self, won: str, name: str, of: str | None, seen: str) -> list[Any]:
        """One answer to what the person saw, which the page itself says: no other window, restart or quick key
        mistakes it for another."""
        run_dir = folder_of(self.home, name)
        table, path = self._table(name, of), votes_of(run_dir)
        shown = _shown(seen, table)
        if won == "undo":
            taken = votes.undo(path)
            back = taken and _showing(table, taken.left, taken.right, taken.prompt, secrets.token_hex(8))
            return self._lay(table, back, votes.read(path)) if back else self._next(run_dir, table, shown)
        if shown and won != "skip":
            votes.record(path, votes.Vote(*shown.pair[:2], won, shown.pair[2], mark=shown.mark))
        return self._next(run_dir, table, shown)

    # ------------------------------------------------------------------------------------------------------ use it

    @kindly
    def use_winner(self, name: str, of: str | None, target: str | None) -> list[Any]:
        """The winner's file to where it is used; without such a place, the panel that asks for one."""
        given = votes.read(votes_of(folder_of(self.home, name)))
        winner = tables.result(self._table(name, of), given).winner
        if winner is None or not winner.adapter:
            raise UserError(words.NO_WINNER)
        line = self.give(winner.adapter, target) if lora_hosts(self.home) else ""
        return [gr.update(value=winner.adapter), gr.update(open=True), line]

    @kindly
    def give(self, adapter: str | None, target: str | None) -> str:
        """Copy a checkpoint to where it is used; gives the line that says where it lies then."""
        known = {str(c.path) for one in control.list_runs(self.home.runs) for c in control.checkpoints(one.path)}
        found = next((one for one in lora_hosts(self.home) if str(one.root) == target), None)
        if adapter not in known or found is None:
            raise UserError(words.USE_WHAT)
        return success(words.COPIED.format(hosts.give(Path(str(adapter)), found)))

    @kindly
    def remember_host(self, folder: str) -> list[Any]:
        hosts.add(self.home, self.context.folders.check(words.WHERE_FOLDER, folder))
        return [_where(self.home)]


def build(context: Context) -> Screen:
    with gr.Tabs():
        with gr.Tab(words.GRID, elem_id="inner-compare"):
            screen = Compare(context)
        with gr.Tab(words.STUDIES, elem_id="inner-studies"):
            studied = studies.Studies(context)
        with gr.Tab(words.MAPS, elem_id="inner-maps"):
            predicted = maps.Maps(context)

    def show(
        chosen: str | None, before: str, of: str | None, picked: list[Any], study: str | None, seen: str,
        where: str, predicting: str | None,
    ) -> list[Any]:  # fmt: skip
        return [
            *screen.show(chosen, before, of, picked),
            *studied.show(study, seen, where),
            *predicted.show(predicting),
        ]

    inputs = [screen.run, screen.shown, screen.of, screen.picked, *studied.inputs, predicted.run]
    return Screen(show, [*screen.outputs, *studied.outputs, *predicted.outputs], inputs)


def stop_button(elem_id: str, visible: bool = True) -> gr.Button:
    return gr.Button(words.STOP_DRAWING, elem_id=elem_id, scale=0, min_width=80, visible=visible)


def stop_drawing(home: Any) -> str:
    """End whatever is being drawn, also by another page or before a restart; gives the line that says so."""
    draws.stop(home.runs)
    return success(words.STOPPED)


def votes_of(run_dir: Path) -> Path:
    return run_dir / "compare" / "votes.jsonl"


def shows(run_dir: Path) -> bool:
    """Whether there is anything to compare of a run: pictures, or files that can draw some."""
    return bool(control.checkpoints(run_dir) or progress.pictures(run_dir))


def newest(run_dir: Path) -> Path:
    """The newest adapter file. UserError when none was saved."""
    found = control.checkpoints(run_dir)
    if not found:
        raise UserError(words.NO_FILE_YET.format(run_dir.name))
    return found[-1].path


def _of_file(table: Table, column: Column) -> Column:
    """The column itself, or of the base another one whose file is known: whose strength may be changed."""
    return column if not column.base else next((one for one in reversed(table.columns) if one.adapter), column)


def _unless(kept: Any, value: Any) -> dict[str, Any]:
    """A value for an update, left out where what the page shows is kept."""
    return {} if kept else {"value": value}


def _shown(seen: str, table: Table) -> Showing | None:
    """What lay on the page, by its own words; None for anything that the table does not hold."""
    found = re.search(r'data-showing="(\w+) (\w+) (\d{1,6}) ([0-9a-f]{16})"', seen or "")
    return _showing(table, found[1], found[2], int(found[3]), found[4]) if found else None


def _showing(table: Table, left: str, right: str, prompt: int, mark: str) -> Showing | None:
    there = left != right and all(table.picture((one, prompt)) for one in (left, right))
    return Showing((left, right, prompt), mark) if there else None


def label(checkpoint: control.Checkpoint, run: str) -> str:
    if checkpoint.step is not None:
        return words.AT_STEP.format(run, checkpoint.step)
    return words.AT_EPOCH.format(run, checkpoint.epoch) if checkpoint.epoch is not None else words.FINAL.format(run)


def _options(run_dir: Path, known: list[control.Run]) -> list[tuple[str, str]]:
    """The base, the run's checkpoints, and the newest of every other run."""
    own = [(label(one, run_dir.name), str(one.path)) for one in control.checkpoints(run_dir)]
    others = [
        (label(c, one.name), str(c.path))
        for one in known
        if one.path != run_dir
        for c in control.checkpoints(one.path)[-1:]
    ]
    return [(words.BASE, BASE), *others, *own]


def prompts_of(run_dir: Path) -> list[str]:
    try:
        found = tomlkit.parse(read_text(run_dir / "config.toml")).unwrap()
    except (UserError, TOMLKitError):
        return []
    return [str(one) for one in (found.get("sample") or {}).get("prompts", [])]


def own_prompts(run_dir: Path) -> list[str]:
    """The prompts that are taken where none is typed: of the last drawing, or of the run's previews."""
    sheet = draws.latest(run_dir)
    return list(sheet.prompts) if sheet else prompts_of(run_dir)


def prompts_or_own(run_dir: Path, text: str) -> list[str]:
    """What was typed, one a line, or else the run's own. UserError where there are none."""
    lines = [line.strip() for line in text.split("\n") if line.strip()] or own_prompts(run_dir)
    if not lines:
        raise UserError(words.NO_PROMPTS)
    return lines


def _candidates(home: Any, run_dir: Path, adapters: list[str], weights: str) -> list[Candidate]:
    names = {value: shown for shown, value in _options(run_dir, control.list_runs(home.runs))}
    try:
        numbers = list(dict.fromkeys(float(one) for one in weights.replace(";", ",").split(",") if one.strip())) or [
            1.0
        ]
    except ValueError:
        raise UserError(words.NO_NUMBERS.format(weights)) from None
    out = [Candidate(words.BASE, None)] if BASE in adapters else []
    for adapter in (one for one in adapters if one in names and one != BASE):
        out += [Candidate(names[adapter] + (f" × {n:g}" if n != 1 else ""), adapter, n) for n in numbers]
    if not out:
        raise UserError(words.NO_CHECKPOINTS)
    if len(out) > MOST_CANDIDATES:
        raise UserError(words.MANY_COLUMNS.format(len(out), MOST_CANDIDATES))
    return out


def _where(home: Any) -> Any:
    found = lora_hosts(home)
    return gr.update(
        choices=[(f"{one.name}: {one.loras}", str(one.root)) for one in found],
        value=str(found[0].root) if found else None,
    )
