"""Screen 4: checkpoints, strengths and the base side by side; a blind vote; and the winner where it is used."""

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
from . import draws, hosts, maps, votes, words
from .draws import BASE, Candidate, Sheet
from .page import EVENT, SLOW, Context, Screen, changing, folder_of, grid, kindly, lora_hosts, note, short
from .store import read_text

MOST_CANDIDATES = 12


@dataclass(frozen=True)
class Showing:
    """Two candidates and the prompt's number, laid on the table once."""

    pair: tuple[str, str, int]
    mark: str


class Compare:
    """The screen: its parts as they lie on the page, and what they do."""

    def __init__(self, context: Context):
        self.context, self.home, self.address = context, context.home, context.addresses
        with gr.Accordion(words.COMPARE) as self.asking:
            self._ask()
        self.message, self.shown = gr.HTML(elem_id="compare-message"), gr.State("")
        with gr.Tabs():
            with gr.Tab(words.GRID):
                self.grid = gr.HTML(elem_id="compare-grid")
            with gr.Tab(words.VOTE_TITLE) as voting:
                self._vote()
            with gr.Tab(words.MAPS) as mapping:
                self.maps = maps.Maps(context)
            with gr.Tab(words.USE):
                self._use()
        self.table = [self.asked, self.left, self.right]
        self.result = [self.message, self.grid, *self.table]
        self.outputs = [self.run, self.which, self.prompts, self.used, self.where, *self.result, self.tally, self.shown]
        self._wire()
        for tab in (voting, mapping):  # room for the pictures
            tab.select(lambda: gr.update(open=False), None, [self.asking], **EVENT)

    def _ask(self) -> None:
        with gr.Row():
            self.run = changing(gr.Dropdown([], label=words.COMPARE_RUN, elem_id="compare-run", scale=1))
            self.which = changing(
                gr.Dropdown([], label=words.COMPARE_WHAT, multiselect=True, elem_id="compare-which", scale=3)
            )
            self.strengths = gr.Textbox("1", label=words.STRENGTHS, info=words.STRENGTHS_INFO, scale=1)
        with gr.Row(elem_classes="align-end"):
            self.prompts = gr.Textbox(
                label=words.COMPARE_PROMPTS, lines=3, max_lines=4, scale=4, elem_id="compare-prompts"
            )
            self.drawing = gr.Button(words.DRAW, variant="primary", elem_id="draw", scale=1, min_width=150)
            stop_button(self.home, "stop-drawing")

    def _vote(self) -> None:
        gr.HTML(note(words.VOTE_INTRO))
        self.asked = gr.HTML(elem_id="vote-prompt")
        with gr.Row(elem_classes="duel"):
            self.left, self.right = gr.HTML(), gr.HTML()
        self.buttons: dict[str, gr.Button] = {}
        with gr.Row(elem_classes="tight"):
            for name, text in words.CHOICES.items():
                self.buttons[name] = gr.Button(text, elem_id=f"vote-{name}", min_width=80)
        self.show_tally = gr.Button(words.SHOW_TALLY, size="sm", elem_id="show-tally")
        self.tally = gr.HTML(elem_id="tally")

    def _use(self) -> None:
        with gr.Row(elem_classes="align-end"):
            self.used = changing(gr.Dropdown([], label=words.USE_WHICH, elem_id="use-which", scale=2))
            self.where = changing(gr.Dropdown([], label=words.USE_WHERE, elem_id="use-where", scale=2))
            self.use = gr.Button(words.USE, variant="primary", elem_id="use", scale=1, min_width=120)
        with gr.Row(elem_classes="align-end"):
            self.host_folder = gr.Textbox(label=words.OTHER_HOST, scale=4, elem_id="host-folder")
            self.add_host = gr.Button(words.ADD_HOST, scale=1, min_width=150, elem_id="add-host")

    def _wire(self) -> None:
        self.run.input(self.show, [self.run, self.shown], self.outputs, **EVENT)
        asked = [self.run, self.which, self.strengths, self.prompts]
        # The last values of a generator come twice: the pictures to vote on are laid by an event of their own, or they
        # would lie there again when the first vote is already in.
        drawn = self.drawing.click(self.draw, asked, [self.message, self.grid], **SLOW)
        drawn.success(self.lay, [self.run], self.table, **EVENT)
        # A quick key is not dropped while the last one is under way: one after another, each for what was seen.
        keys = {**EVENT, "trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "vote"}
        for name, button in self.buttons.items():
            button.click(functools.partial(self.vote, name), [self.run, self.left], self.table, **keys)
        self.show_tally.click(self.count, [self.run], [self.tally], **EVENT)
        self.use.click(self.give, [self.used, self.where], None, **EVENT)
        self.add_host.click(self.remember_host, [self.host_folder], [self.where], **EVENT)

    def show(self, chosen: str | None, before: str = "") -> list[Any]:
        """The run's checkpoints, its last sheet, and what was drawn of it. What was typed or chosen for the run that
        was shown ``before`` stays."""
        known = [one for one in control.list_runs(self.home.runs) if control.checkpoints(one.path)]
        current = next((one for one in known if one.name == chosen), known[0] if known else None)
        if current is None:
            blank = [gr.update(choices=[], value=None), gr.update(choices=[], value=[]), gr.skip()]
            rest = [_where(self.home), note(words.NO_RUNS), "", "", "", "", "", ""]
            return [*blank, gr.update(choices=[], value=None), *rest]
        options = _options(current.path, known)
        sheet = draws.latest(current.path)
        ids = [value for _, value in options]
        picked = [c.adapter or BASE for c in sheet.candidates] if sheet else [BASE, *ids[1:][-3:]]
        picked = [one for one in dict.fromkeys(picked) if one in ids]
        texts = sheet.prompts if sheet else prompts_of(current.path)
        files = [one for one in options if one[1] != BASE]
        same = current.name == before
        return [
            gr.update(choices=[one.name for one in known], value=current.name),
            gr.update(choices=options) if same else gr.update(choices=options, value=picked),
            gr.skip() if same else "\n".join(texts),
            gr.update(choices=files) if same else gr.update(choices=files, value=files[-1][1]), _where(self.home),
            *self._result(current.path, sheet), "", current.name,
        ]  # fmt: skip

    def _result(self, run_dir: Path, sheet: Sheet | None) -> list[Any]:
        if sheet is None:
            return ["", "", "", "", ""]
        line = note(words.DRAWING.format(sheet.done(), sheet.total)) if draws.busy(sheet) else _ended(sheet)
        return [line, _grid(sheet, self.address), *self._next(run_dir, sheet)]

    def _next(self, run_dir: Path, sheet: Sheet, last: Showing | None = None) -> list[Any]:
        """Two pictures to vote on. After the same showing, with the same votes, the same two: an answer that is sent
        twice shows nothing else."""
        given = votes.read(votes_of(run_dir))
        seen = f"{last.mark}{len(given)}" if last else secrets.token_hex(8)
        rng, mark = random.Random(seen), hashlib.sha256(seen.encode()).hexdigest()[:16]
        pair = votes.choose(sheet.drawn(), given, rng, last and last.pair)
        return self._lay(sheet, Showing(pair, mark), len(given)) if pair else ["", "", ""]

    def _lay(self, sheet: Sheet, shown: Showing, given: int) -> list[Any]:
        one, other, number = shown.pair
        drawn = sheet.drawn()
        urls = [self.address.url(drawn[name][number], 1024) for name in (one, other)]
        about = f"{one} {other} {number} {shown.mark}"
        left = f'<figure data-showing="{about}"><img alt="left" src="{urls[0]}"></figure>'
        right = f'<figure><img alt="right" src="{urls[1]}"></figure>'
        count = words.VOTES_SO_FAR.format(given) if given else ""
        return [f'<p class="prompt">{escape(sheet.prompts[number])} <small>{count}</small></p>', left, right]

    def draw(self, name: str, adapters: list[str], weights: str, text: str) -> Iterator[list[Any]]:
        """Draw what is missing, and fill the grid while it comes."""
        sheet = self._begin(name, adapters, weights, text)
        before = -1
        while draws.busy(sheet):
            if sheet.done() != before:
                before = sheet.done()
                yield [note(words.DRAWING.format(before, sheet.total)), _grid(sheet, self.address)]
            time.sleep(0.5)
        yield [_ended(sheet), _grid(sheet, self.address)]

    @kindly
    def lay(self, name: str) -> list[Any]:
        """The first two pictures of what was drawn."""
        run_dir = folder_of(self.home, name)
        sheet = draws.latest(run_dir)
        return self._next(run_dir, sheet) if sheet else ["", "", ""]

    @kindly
    def _begin(self, name: str, adapters: list[str], weights: str, text: str) -> Sheet:
        run_dir = folder_of(self.home, name)
        sheet = draws.sheet(run_dir, lines_of(text), _candidates(self.home, run_dir, adapters, weights))
        draws.start(run_dir, sheet)
        draws.remember(run_dir, sheet)
        return sheet

    @kindly
    def vote(self, won: str, name: str, seen: str) -> list[Any]:
        """One answer to what the person saw, which the page itself says: no other window, restart or quick key
        mistakes it for another."""
        run_dir = folder_of(self.home, name)
        sheet, path = draws.latest(run_dir), votes_of(run_dir)
        if sheet is None:
            return ["", "", ""]
        shown = _shown(seen, sheet)
        if won == "undo":
            taken = votes.undo(path)
            back = taken and _showing(sheet, taken.left, taken.right, taken.prompt, secrets.token_hex(8))
            return self._lay(sheet, back, len(votes.read(path))) if back else self._next(run_dir, sheet, shown)
        if shown and won != "skip":
            votes.record(path, votes.Vote(*shown.pair[:2], won, shown.pair[2], mark=shown.mark))
        return self._next(run_dir, sheet, shown)

    @kindly
    def count(self, name: str) -> str:
        run_dir = folder_of(self.home, name)
        return _tally(run_dir, draws.latest(run_dir))

    @kindly
    def give(self, adapter: str | None, target: str | None) -> None:
        known = {str(c.path) for one in control.list_runs(self.home.runs) for c in control.checkpoints(one.path)}
        found = next((one for one in lora_hosts(self.home) if str(one.root) == target), None)
        if adapter not in known or found is None:
            raise UserError("use: choose a checkpoint and where it goes")
        gr.Info(words.COPIED.format(escape(str(hosts.give(Path(str(adapter)), found)))))

    @kindly
    def remember_host(self, folder: str) -> Any:
        hosts.add(self.home, self.context.folders.check("folder", folder))
        return _where(self.home)


def build(context: Context) -> Screen:
    screen = Compare(context)

    def show(chosen: str | None, before: str, predicting: str | None) -> list[Any]:
        return [*screen.show(chosen, before), *screen.maps.show(predicting)]

    inputs = [screen.run, screen.shown, screen.maps.run]
    return Screen(show, [*screen.outputs, *screen.maps.outputs], inputs)


def stop_button(home: Any, elem_id: str) -> None:
    """Ends whatever is being drawn, also by another page or before a restart."""

    @kindly
    def stop() -> None:
        draws.stop(home.runs)
        gr.Info(words.STOPPED)

    button = gr.Button(words.STOP_DRAWING, elem_id=elem_id, scale=0, min_width=80)
    button.click(stop, None, None, **EVENT)


def votes_of(run_dir: Path) -> Path:
    return run_dir / "compare" / "votes.jsonl"


def _shown(seen: str, sheet: Sheet) -> Showing | None:
    """What lay on the page, by its own words; None for anything that the sheet does not hold."""
    found = re.search(r'data-showing="(\w+) (\w+) (\d{1,6}) ([0-9a-f]{16})"', seen or "")
    return _showing(sheet, found[1], found[2], int(found[3]), found[4]) if found else None


def _showing(sheet: Sheet, left: str, right: str, prompt: int, mark: str) -> Showing | None:
    drawn = sheet.drawn()
    there = left != right and all(prompt in drawn.get(one, {}) for one in (left, right))
    return Showing((left, right, prompt), mark) if there else None


def _ended(sheet: Sheet) -> str:
    return note(draws.trouble(sheet), "bad")


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


def lines_of(text: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError("prompts: there are none; write one per line")
    return lines


def _candidates(home: Any, run_dir: Path, adapters: list[str], weights: str) -> list[Candidate]:
    names = {value: shown for shown, value in _options(run_dir, control.list_runs(home.runs))}
    try:
        numbers = list(dict.fromkeys(float(one) for one in weights.replace(";", ",").split(",") if one.strip())) or [
            1.0
        ]
    except ValueError:
        raise UserError(f"strengths: '{weights}' are no numbers; write for example 0.6, 0.8, 1") from None
    out = [Candidate(words.BASE, None)] if BASE in adapters else []
    for adapter in (one for one in adapters if one in names and one != BASE):
        out += [Candidate(names[adapter] + (f" × {n:g}" if n != 1 else ""), adapter, n) for n in numbers]
    if not out:
        raise UserError("checkpoints: none is chosen; choose at least one")
    if len(out) > MOST_CANDIDATES:
        raise UserError(f"checkpoints: {len(out)} columns are too many to look at; keep {MOST_CANDIDATES} or fewer")
    return out


def _grid(sheet: Sheet, address: Any) -> str:
    drawn = sheet.drawn()
    body = ""
    for number, prompt in enumerate(sheet.prompts):
        cells = ""
        for one in sheet.candidates:
            path = drawn[one.id].get(number)
            cells += (
                f'<td><a href="{address.url(path)}" target="_blank"><img loading="lazy" alt="{escape(one.name)}" '
                f'src="{address.url(path, 256)}"></a></td>' if path else "<td>…</td>"
            )  # fmt: skip
        body += f'<tr><th title="{escape(prompt)}">{escape(short(prompt, 48))}</th>{cells}</tr>'
    return grid([one.name for one in sheet.candidates], body)


def _tally(run_dir: Path, sheet: Sheet | None) -> str:
    names = {one.id: one.name for one in sheet.candidates} if sheet else {}
    rows = [row for row in votes.tally(votes.read(votes_of(run_dir))) if {row.one, row.other} <= set(names)]
    if not rows:
        return note(words.NO_VOTES)
    body = ""
    for row in rows:
        better, worse = (row.one, row.other) if row.wins >= row.losses else (row.other, row.one)
        score = f"{max(row.wins, row.losses)} : {min(row.wins, row.losses)}" + (
            f", {words.TIES.format(row.ties)}" if row.ties else ""
        )
        sure = words.LIKELY if row.p < 0.05 else words.UNSURE
        cells = (escape(names[better]), escape(names[worse]), score, f"{row.p:.3f}", sure)
        body += f"<tr>{''.join(f'<td>{one}</td>' for one in cells)}</tr>"
    head = "".join(f"<th>{one}</th>" for one in words.TALLY)
    return f'<table class="tally"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _where(home: Any) -> Any:
    found = lora_hosts(home)
    return gr.update(
        choices=[(f"{one.name}: {one.loras}", str(one.root)) for one in found],
        value=str(found[0].root) if found else None,
    )
