"""What a study found: one self-contained HTML page, a markdown table, and a JSON summary that may be sent around."""

from __future__ import annotations

import base64
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from .statistics import Comparison, compare, verdict
from .values import Measure, Value

SHEET_COLUMNS, CELL, CAPTION = 8, 160, 70
"""Pictures of a contact sheet's row, the most pixels of their sides, and the most letters of the prompts above."""


@dataclass(frozen=True)
class Cost:
    """What an arm took, as means over its seeds."""

    steps: float
    train_seconds: float
    """Of the training steps alone."""
    gb: float
    """Peak memory of the device, or of the process on a CPU."""
    evaluate_seconds: float


@dataclass(frozen=True)
class Arm:
    """An arm as it is reported."""

    name: str
    changes: str
    """In one line: the options that it changes, or the adapter files that it is."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of them that may be shared: numbers, switches and names from the list of options."""
    cost: Cost | None = None
    """None where nothing was trained here."""
    seeds: int = 0
    """Whose measures are complete."""


@dataclass(frozen=True)
class Sheet:
    """Pictures of one seed: a row per arm, columns by the prompts' numbers."""

    seed: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Path | None, ...]], ...]


@dataclass(frozen=True)
class Outcome:
    """All that is reported."""

    name: str
    arms: Sequence[Arm]
    """The one that the others are compared with first."""
    measures: Sequence[Measure]
    values: Sequence[Value]
    identical: frozenset[str]
    seeds: int
    """Planned."""
    notes: Sequence[str]
    """What a reader has to know, in sentences."""
    facts: Mapping[str, Any]
    """Of the study and its machine, for the summary: no paths, no prompts."""
    sheets: Sequence[Sheet] = ()

    def rows(self) -> list[Comparison]:
        return self._rows

    @cached_property
    def _rows(self) -> list[Comparison]:
        return compare(self.values, self.measures, [arm.name for arm in self.arms], self.identical)


def every_nth(count: int, columns: int = SHEET_COLUMNS) -> list[int]:
    """The prompts of a contact sheet, by index alone: every n-th from the first."""
    apart = max(1, math.ceil(count / columns))
    return list(range(0, count, apart))


# ---------------------------------------------------------------------------------------------------------- markdown

HEADER = ("measure", "arm", "first", "arm's", "difference (95 %)", "pairs", "seeds", "better : worse", "sign p",
          "p (Holm)", "result")  # fmt: skip


def markdown(outcome: Outcome) -> str:
    """The tables and the notes."""
    first = outcome.arms[0].name
    rows = [_cells(row) for row in outcome.rows()]
    lines = [f"# {outcome.name}", "", f"Differences are to `{first}`.", "", *_table(HEADER, rows)]
    lines += ["", *_table(COST_HEADER, [_cost_cells(arm) for arm in outcome.arms]), ""]
    return "\n".join([*lines, *(f"- {note}" for note in outcome.notes)]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def _cells(row: Comparison) -> list[str]:
    between = row.interval
    spread = "" if between.low is None or between.high is None else f" ({between.low:+.3g} to {between.high:+.3g})"
    return [
        row.measure.title, row.arm, f"{row.first_mean:.4g}", f"{row.arm_mean:.4g}", f"{between.mean:+.3g}{spread}",
        str(row.pairs), str(row.seeds), f"{row.wins} : {row.losses}" + (f", {row.ties} tied" if row.ties else ""),
        _p(row.sign_p), "" if row.adjusted is None else _p(row.adjusted), verdict(row),
    ]  # fmt: skip


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


COST_HEADER = ("arm", "what it changes", "seeds done", "steps", "training", "memory", "evaluation")


def _cost_cells(arm: Arm) -> list[str]:
    if arm.cost is None:
        return [arm.name, arm.changes, str(arm.seeds), "", "", "", ""]
    cost = arm.cost
    return [
        arm.name, arm.changes, str(arm.seeds), f"{cost.steps:g}", clock(cost.train_seconds), f"{cost.gb:.1f} GB",
        clock(cost.evaluate_seconds),
    ]  # fmt: skip


def clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


# -------------------------------------------------------------------------------------------------------------- JSON


def summary(outcome: Outcome) -> dict[str, Any]:
    """Numbers without pictures, prompts or paths: arms by number, with options that are numbers, switches or names of
    the option list."""
    numbers = {arm.name: i for i, arm in enumerate(outcome.arms)}
    return {
        "v": 1, "kind": "pixelkiln-study", **outcome.facts, "planned_seeds": outcome.seeds,
        "arms": [
            {"arm": i, "options": dict(arm.options), "seeds": arm.seeds, "cost": arm.cost and vars(arm.cost)}
            for i, arm in enumerate(outcome.arms)
        ],
        "rows": [
            {
                "measure": row.measure.name, "better": row.measure.better, "tested": row.measure.tested,
                "arm": numbers[row.arm], "first": row.first_mean, "mean": row.interval.mean, "low": row.interval.low,
                "high": row.interval.high, "p": row.interval.p, "p_holm": row.adjusted, "pairs": row.pairs,
                "seeds": row.seeds, "wins": row.wins, "losses": row.losses, "ties": row.ties, "sign_p": row.sign_p,
                "identical": row.identical, "resolution": row.resolution,
            }
            for row in outcome.rows()
        ],
    }  # fmt: skip


def summary_text(outcome: Outcome) -> str:
    return json.dumps(summary(outcome), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# -------------------------------------------------------------------------------------------------------------- HTML

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #197a3c; --bad: #b3261e; --soft: #777; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .scroll { overflow-x: auto; } small, .soft { color: var(--soft); }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
.sheet th:first-child { position: sticky; left: 0; background: Canvas; }
svg { display: block; } figure { margin: 1rem 0; } figure img { max-width: 100%; image-rendering: auto; }
@media (prefers-color-scheme: dark) { :root { --good: #6cd28c; --bad: #ff8a80; --soft: #aaa; } }
"""


def page(outcome: Outcome) -> str:
    """The report as one file: nothing in it is loaded from elsewhere."""
    rows = outcome.rows()
    tested = [row for row in rows if row.measure.tested]
    details = [row for row in rows if not row.measure.tested]
    first = escape(outcome.arms[0].name)
    parts = [
        f"<h1>{escape(outcome.name)}</h1>",
        f"<p>{_headline(tested)} Differences are to <b>{first}</b>.</p>",
        "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in outcome.notes) + "</ul>",
        "<h2>Measures</h2>", _comparisons(tested),
        "<h2>Cost</h2>", _html_table(COST_HEADER, [[escape(c) for c in _cost_cells(arm)] for arm in outcome.arms]),
        *(_sheet(sheet) for sheet in outcome.sheets),
    ]  # fmt: skip
    if details:
        parts += ["<details><summary>Details, which are not tested</summary>", _comparisons(details), "</details>"]
    parts += ["<h2>What is measured</h2><dl>"]
    parts += [f"<dt><b>{escape(m.title)}</b></dt><dd>{escape(m.what)}</dd>" for m in outcome.measures if m.tested]
    parts += ["</dl>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    title = f"<title>{escape(outcome.name)}</title>"
    return f'<!doctype html><html lang="en"><head>{head}{title}</head><body>{"".join(parts)}</body></html>\n'


def _headline(tested: Sequence[Comparison]) -> str:
    found = [row for row in tested if row.found]
    if found:
        return f"{len(found)} of {len(tested)} comparisons show a difference after Holm's correction."
    if any(row.adjusted is not None for row in tested):
        return f"None of {len(tested)} comparisons shows a difference after Holm's correction."
    if tested and all(row.identical for row in tested):
        return "The arms are identical."
    return "There are not two seeds of two arms yet, so nothing is tested."


def _comparisons(rows: Sequence[Comparison]) -> str:
    if not rows:
        return '<p class="soft">Nothing is measured yet.</p>'
    header = [*HEADER[:5], "", *HEADER[5:]]
    out, scales = [], dict[str, float]()
    for row in rows:  # rows of one measure are drawn to one scale
        scales[row.measure.name] = max(scales.get(row.measure.name, 0.0), *_ends(row))
    for row in rows:
        cells = [escape(cell) for cell in _cells(row)]
        kind = ("better" if row.is_better else "worse") if row.found else ""
        cells[-1] = f'<span class="{kind}">{cells[-1]}</span>'
        out.append([*cells[:5], _bar(row, scales[row.measure.name] or 1.0), *cells[5:]])
    return _html_table(header, out)


def _ends(row: Comparison) -> list[float]:
    return [abs(x) for x in (row.interval.mean, row.interval.low, row.interval.high) if x is not None]


def _bar(row: Comparison, scale: float) -> str:
    """The interval as a line; the right side is where the arm is better. ``scale``: the difference at its ends."""
    between = row.interval
    side = -1 if row.measure.better == "lower" else 1

    def at(x: float) -> float:
        return 60 + 54 * side * x / scale

    line = ""
    if between.low is not None and between.high is not None:
        line = f'<line x1="{at(between.low):.1f}" x2="{at(between.high):.1f}" y1="9" y2="9" stroke-width="2"/>'
    return (
        '<svg width="120" height="18" stroke="currentColor" fill="currentColor" role="img" aria-label="interval">'
        '<title>right: better</title><line x1="60" x2="60" y1="1" y2="17" stroke-opacity=".4"/>'
        f'{line}<circle cx="{at(between.mean):.1f}" cy="9" r="3"/></svg>'
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sheet(sheet: Sheet) -> str:
    head = "".join(
        f'<th title="{escape(text)}"><small>{escape(textwrap.shorten(text, CAPTION, placeholder=" ..."))}</small></th>'
        for text in sheet.columns
    )
    lines = []
    for name, paths in sheet.rows:
        shown = "".join(f"<td>{_picture(path, name)}</td>" for path in paths)
        lines.append(f"<tr><th>{escape(name)}</th>{shown}</tr>")
    title = f"<h2>Pictures of seed {sheet.seed}</h2><p>Every n-th prompt, chosen by its number alone.</p>"
    return f'{title}<div class="scroll sheet"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _picture(path: Path | None, name: str) -> str:
    if path is None:
        return ""
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
        shown.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        shown.save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
