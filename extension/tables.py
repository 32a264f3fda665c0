"""Pictures side by side: a column for each checkpoint or strength, a row for each prompt, from a run's previews or from
what was drawn for comparing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from ..trainer.runs import control
from . import draws, progress, votes, words
from .draws import Sheet
from .page import grid, short
from .security import Addresses

COLUMNS = 6
"""Of previews, the first and the last among them."""
PREVIEWS, DRAWN = "previews", "drawn"
Cell = tuple[str, int]
"""A column's id and a prompt's number."""


@dataclass(frozen=True)
class Column:
    """What drew the pictures of a column."""

    id: str
    """Letters, digits and lines; of the files as they are now, so that a vote is never counted for another picture."""
    name: str
    adapter: str | None = None
    """The file; None for the base, and for a step at which none was saved."""
    strength: float = 1.0
    base: bool = False


@dataclass(frozen=True)
class Table:
    prompts: tuple[str, ...]
    columns: tuple[Column, ...]
    drawn: Mapping[str, Mapping[int, Path]]

    def column(self, name: str) -> Column | None:
        return next((one for one in self.columns if one.id == name), None)

    def picture(self, cell: Cell) -> Path | None:
        return self.drawn.get(cell[0], {}).get(cell[1])

    def cells(self) -> list[Cell]:
        return [
            (one.id, row) for row in range(len(self.prompts)) for one in self.columns if self.picture((one.id, row))
        ]

    def strengths(self, of: Column) -> list[Column]:
        """The columns of the same file at other strengths, weakest first; the base is strength 0."""
        same = [one for one in self.columns if one.base or (of.adapter and one.adapter == of.adapter)]
        return sorted(same, key=_strength)


def _strength(column: Column) -> float:
    return 0.0 if column.base else column.strength


def nearest(columns: list[Column], strength: float) -> Column:
    return min(columns, key=lambda one: abs(_strength(one) - strength))


def of_sheet(sheet: Sheet) -> Table:
    columns = [Column(one.id, one.name, one.adapter, one.strength, one.adapter is None) for one in sheet.candidates]
    return Table(sheet.prompts, tuple(columns), sheet.drawn())


def of_previews(run_dir: Path) -> Table | None:
    """The run's own previews, which have the same noise at every step; None where there are none."""
    pictures = progress.pictures(run_dir)
    rows = sorted({row for one in pictures.values() for row in one})
    if not rows:
        return None
    history = progress.history(run_dir)
    files = _files(run_dir)
    columns: list[Column] = []
    drawn: dict[str, dict[int, Path]] = {}
    for step in progress.columns(sorted(pictures), COLUMNS):
        name = words.AT_STEP.format("", step).strip() if step else words.BEFORE
        one = Column(_mark(step, pictures[step]), name, files.get(step))
        columns.append(one)
        drawn[one.id] = {rows.index(row): path for row, path in pictures[step].items()}
    prompts = tuple(history.prompts.get(row, words.PROMPT.format(row + 1)) for row in rows)
    return Table(prompts, tuple(columns), drawn)


def _files(run_dir: Path) -> dict[int, str]:
    """Step -> the adapter that was saved there; the final file is the last step's."""
    known = control.checkpoints(run_dir)
    found = {one.step: str(one.path) for one in known if one.step is not None}
    final = next((one for one in known if one.step is None and one.epoch is None), None)
    return found | ({control.status(run_dir).step: str(final.path)} if final else {})


def _mark(step: int, pictures: Mapping[int, Path]) -> str:
    stamps = "".join(f"{path.name}{path.stat().st_mtime_ns}" for _, path in sorted(pictures.items()))
    return f"step{step}_{hashlib.sha256(stamps.encode()).hexdigest()[:8]}"


def of_run(run_dir: Path, which: str | None = None) -> Table | None:
    """The table that is asked for, or else what was drawn, or else the previews."""
    sheet = draws.latest(run_dir) if which != PREVIEWS else None
    return of_sheet(sheet) if sheet else of_previews(run_dir)


def first_two(table: Table, picked: list[Cell] | None = None) -> list[Cell]:
    """The two cells that are looked at: those that were picked, or the first prompt before and after."""
    there = [one for one in map(_cell, picked or []) if table.picture(one)]
    if len(there) == 2:
        return there
    row = next((row for _, row in table.cells()), 0)
    drawn = [one for one in table.cells() if one[1] == row]
    return [drawn[0], drawn[-1]] if drawn else []


def _cell(given: object) -> Cell:
    """A cell as a page sends it."""
    name, row = given if isinstance(given, (list, tuple)) and len(given) == 2 else ("", 0)
    return str(name), int(row)


def shown(table: Table, picked: list[Cell], addresses: Addresses) -> str:
    """The table, each cell a button that lays it beside the one that was chosen before."""
    body = ""
    for row, prompt in enumerate(table.prompts):
        cells = ""
        for one in table.columns:
            path = table.picture((one.id, row))
            place = [side for side, cell in zip("AB", picked) if cell == (one.id, row)]
            badge = f'<b class="badge">{" ".join(place)}</b>' if place else ""
            pressed = str(bool(place)).lower()
            cells += (
                f'<td><button type="button" class="pick" data-cell="{one.id} {row}" aria-pressed="{pressed}">'
                f'<img loading="lazy" alt="{escape(words.PROMPT_STEP.format(short(prompt), one.name))}" '
                f'src="{addresses.url(path, 256)}">{badge}</button></td>' if path else "<td>…</td>"
            )  # fmt: skip
        body += f'<tr><th title="{escape(prompt)}">{escape(short(prompt, 48))}</th>{cells}</tr>'
    return grid([one.name for one in table.columns], body)


def two(table: Table, picked: list[Cell]) -> tuple[Image.Image, Image.Image] | None:
    """Both pictures at full size; the second in the size of the first, as a slider needs it."""
    paths = [table.picture(one) for one in picked]
    if len(paths) != 2:
        return None
    try:
        one, other = (Image.open(path).convert("RGB") for path in paths if path)
    except (OSError, ValueError):  # it is just being written
        return None
    return one, other if other.size == one.size else other.resize(one.size)


def named(table: Table, picked: list[Cell]) -> str:
    """What the slider shows, in words."""
    columns = [table.column(name) for name, _ in picked]
    prompts = list(dict.fromkeys(table.prompts[row] for _, row in picked))
    sides = "".join(
        f"<span><b class='badge'>{side}</b> {escape(one.name)}</span>" for side, one in zip("AB", columns) if one
    )
    return f'<p class="sides">{sides}</p><p class="note">{" | ".join(escape(short(one, 90)) for one in prompts)}</p>'


# --------------------------------------------------------------------------------------------------------- the votes


@dataclass(frozen=True)
class Result:
    """Who is ahead in a blind vote."""

    sentence: str
    winner: Column | None
    rows: list[votes.Row]


def result(table: Table, given: list[votes.Vote]) -> Result:
    """Each column's score against all others. The probability is the sign test's, times the number of columns where
    there are more than two: the best of many is more often ahead by chance (Bonferroni)."""
    known = {one.id: one for one in table.columns}
    rows = [row for row in votes.tally(given) if {row.one, row.other} <= set(known)]
    if not rows:
        return Result(words.NO_VOTES, None, [])
    scores = votes.scores(rows)
    best = max(scores, key=lambda name: (scores[name][0] - scores[name][1], scores[name][0]))
    wins, losses = scores[best]
    if wins == losses:
        return Result(words.LEVEL.format(wins, losses), None, rows)
    p = min(1.0, votes.sign_test(wins, losses) * (len(scores) if len(scores) > 2 else 1))
    sure = words.LIKELY if p < 0.05 else words.UNSURE
    return Result(words.WINS.format(known[best].name, wins, losses, sure), known[best], rows)


def tally(table: Table, rows: list[votes.Row]) -> str:
    """Every two that were voted on, for who wants to know more than who won."""
    names = {one.id: one.name for one in table.columns}
    body = ""
    for row in rows:
        better, worse = (row.one, row.other) if row.wins >= row.losses else (row.other, row.one)
        score = f"{max(row.wins, row.losses)} : {min(row.wins, row.losses)}" + (
            f", {words.TIES.format(row.ties)}" if row.ties else ""
        )
        cells = (escape(names[better]), escape(names[worse]), score, f"{row.p:.3f}")
        body += f"<tr>{''.join(f'<td>{one}</td>' for one in cells)}</tr>"
    head = "".join(f"<th>{one}</th>" for one in words.TALLY)
    return f'<table class="tally"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
