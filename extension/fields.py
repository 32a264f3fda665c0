"""An option's row of the reference as a form field, and the field's value as the option's value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import gradio as gr
import tomlkit
from tomlkit.exceptions import TOMLKitError

from ..trainer import config
from . import words

Row = Mapping[str, Any]
SYNONYMS = {
    "vram": "memory", "lr": "learning_rate", "dim": "rank", "size": "resolution", "te": "text_encoders",
    "fp8": "weights", "mirror": "flip",
    # German, as help and most names are English on each page
    "speicher": "memory", "lernrate": "learning_rate", "rang": "rank", "bildgröße": "resolution",
    "auflösung": "resolution", "spiegeln": "flip", "vorschau": "sample", "schritte": "steps", "epochen": "epochs",
    "rauschen": "noise", "ordner": "folder", "speichern": "save", "genauigkeit": "precision",
    "maske": "mask", "masken": "mask",
    "bildbeschreibung": "caption", "bildbeschreibungen": "caption", "zuschneiden": "crop", "startwert": "seed",
}  # fmt: skip
"""What people call an option, in either language -> a word that is in its name, kohya's name or help."""


def key_of(row: Row) -> str:
    return f"{row['table']}.{row['name']}" if row["table"] else row["name"]


def label(row: Row) -> str:
    """The friendly name."""
    if named := words.OPTION_WORDS.get(key_of(row)):
        return named[0]
    return row["label"] or row["name"].replace("_", " ").capitalize()


@cache
def _known() -> dict[str, Row]:
    """An option of each key: those of several objectives have the same label."""
    return {key: candidates[0] for key, candidates in rows().items()}


def option_at(where: str) -> str:
    """The option of a place in the recipe: ``optimizer.betas`` of ``optimizer.betas.0``; empty where it is of none."""
    while where and where not in _known():
        where = where.rpartition(".")[0]
    return where


def title(where: str) -> str:
    """What the page calls a place in the recipe: ``Rank`` of ``adapter.rank``, ``Repeats`` of ``data.sets.0.repeats``;
    empty for what it does not show, as a misspelt option."""
    elsewhere = {
        "preset": words.PRESET, "objective.kind": words.OBJECTIVE, "loss.pixel": words.PIXEL, "data.path": words.FOLDER,
        "data.trigger": words.TRIGGER,
    }  # fmt: skip
    if where in elsewhere:
        return elsewhere[where]
    key = option_at(re.sub(r"^data\.sets\.\d+\.", "data.", where))
    return label(_known()[key]) if key else ""


@cache
def _named() -> re.Pattern[str]:
    """Options that a sentence names, and neither files nor flags of the command line."""
    keys = sorted((key for key in _known() if "." in key), key=len, reverse=True)
    return re.compile(rf"(?<![\w./\\-])({'|'.join(map(re.escape, keys))})(?![\w/\\-]|\.\w)")


def labelled(text: str, write: Callable[[str], str] | None = None) -> str:
    """A sentence in which each option has its label: ``Rank (adapter.rank)``, or what ``write`` makes of its key."""
    write = write or (lambda key: f"{title(key)} ({key})")
    return _named().sub(lambda found: write(found[1]), text)


def kind(row: Row) -> str:
    """Which field fits: check, choice, open choice, whole, lines, text."""
    types = [part.strip() for part in row["type"].split("|")]
    if row["choices"]:
        closed = all(part.startswith('"') or part.lstrip("-").isdigit() for part in types)
        return "choice" if closed else "open choice"
    if row["type"] == "true | false":
        return "check" if isinstance(row["default"], bool) else "choice"
    if row["type"] == "list of text":
        return "lines"
    return "whole" if row["type"] == "integer" else "text"


def choices(row: Row) -> list[tuple[str, str]]:
    """What a choice offers; the empty one is the default of an option that may be left out."""
    given = row["choices"] or (["true", "false"] if "true" in row["type"] else [])
    unset = [(words.UNSET, "")] if row["default"] is None and not row["required"] else []
    return unset + [(str(choice), str(choice)) for choice in given]


def make(row: Row, value: Any, problem: str | None = None, **more: Any) -> gr.components.Component:
    """The field, showing ``value`` (the recipe's, the preset's or the default)."""
    # ``interactive`` is given, since gradio takes a field that appears later for one that only shows.
    common = {
        "label": label(row),
        **dress(row, problem),
        "interactive": True,
        "elem_id": f"option-{key_of(row).replace('.', '-')}",
    } | more
    shown = show(row, value)
    match kind(row):
        case "check":
            return gr.Checkbox(value=shown, **common)
        case "choice" | "open choice" as which:
            return gr.Dropdown(choices(row), value=shown, allow_custom_value=which == "open choice", **common)
        case "whole":
            return gr.Number(value=shown, **common)  # without a precision, which would round what is entered
        case "lines":
            return gr.Textbox(value=shown, lines=3, max_lines=12, **common)
        case _:
            return gr.Textbox(value=shown, max_lines=1, placeholder=words.UNSET, **common)


def dress(row: Row, problem: str | None, kohya: bool = True) -> dict[str, Any]:
    """Help below the label, or what is wrong. ``kohya``: with Kohya's name, which guides use."""
    if problem:
        return {"info": f"⚠ {labelled(problem)}", "elem_classes": ["option", "problem"]}
    name = words.KOHYAS_NAME.format(row["kohya"]) if row["kohya"] and kohya else ""
    _, about = words.OPTION_WORDS.get(key_of(row), ("", row["help"]))
    return {"info": about.replace("``", "") + name, "elem_classes": ["option"]}


def show(row: Row, value: Any) -> Any:
    """The option's value as its field shows it."""
    value = row["default"] if value is None else value
    match kind(row):
        case "check":
            return bool(value)
        case "choice" | "open choice":
            return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
        case "whole":
            return value if isinstance(value, int) else None
        case "lines":
            return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, dict)):
        return tomlkit.item(value).as_string().strip() if value else ""
    return "" if value is None else str(value)


def read(row: Row, shown: Any) -> Any:
    """What a person entered as the option's value; None leaves the option out. What does not fit stays
    as text, for the parser to report."""
    if isinstance(shown, str):
        shown = shown.strip()
    if shown in (None, "", []):
        return None
    match kind(row):
        case "check":
            return bool(shown)
        case "whole":
            return int(shown) if isinstance(shown, float) and shown.is_integer() else shown
        case "lines":
            return [line.strip() for line in str(shown).split("\n") if line.strip()]
        case "choice" if row["type"] == "true | false":
            return shown == "true"
        case "choice" | "open choice":
            known = {str(choice): choice for choice in row["choices"]}
            return known[shown] if shown in known else _toml(shown)
    return shown if row["type"] == "text" else _toml(shown)


def _toml(text: str) -> Any:
    """As TOML reads it; what is not TOML is a text, and so is NaN, which equals nothing."""
    try:
        value = tomlkit.parse(f"value = {text}").unwrap()["value"]
    except TOMLKitError:
        return text
    return value if value == value else text


def rows() -> dict[str, list[Row]]:
    """The reference by key; options of several objectives share a key, one row for each. The version of a file's
    format is no option of a person's."""
    out: dict[str, list[Row]] = {}
    for row in config.reference():
        if not row["table"].startswith("data.sets") and key_of(row) != "config_version":
            out.setdefault(key_of(row), []).append(row)
    return out


def objectives() -> dict[str, str]:
    """Name -> title of every objective: what learns from any data first, then by the data that it needs."""
    known = sorted(config.objectives.tables().items(), key=lambda item: (item[1].data, item[0]))
    return {kind: words.OBJECTIVES.get(kind) or table.title or kind for kind, table in known}


def usual_data(objective: str) -> str | None:
    """The option that gives an objective its data: ``data.pairs`` or ``data.ratings``; None where any data will do."""
    table = config.objectives.tables().get(objective)
    return f"data.{table.data[0]}" if table and table.data else None


def fitting(candidates: Sequence[Row], objective: str) -> Row | None:
    """The row that belongs to the chosen objective."""
    return next((row for row in candidates if row.get("kind") in (None, objective)), None)


def search(by_key: Mapping[str, Sequence[Row]], query: str, table: str | None, objective: str) -> list[Row]:
    """Options whose name, label, kohya name or help holds every word; the names' matches first. Who asks for an option
    by its whole key gets that one, in whatever ``table``."""
    if row := fitting(by_key.get(query.strip(), ()), objective):
        return [row]
    asked = [SYNONYMS.get(word, word) for word in query.lower().split()]
    found: list[tuple[int, Row]] = []
    for candidates in by_key.values():
        row = fitting(candidates, objective)
        if row is None or (table and row["table"].partition(".")[0] != table):
            continue
        name = f"{key_of(row)} {label(row)} {row['kohya'] or ''}".lower()
        about = f"{name} {row['help']} {words.OPTION_WORDS.get(key_of(row), ('', ''))[1]}".lower()
        if all(word in about for word in asked):
            found.append((0 if all(word in name for word in asked) else 1, row))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]
