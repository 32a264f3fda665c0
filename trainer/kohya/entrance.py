"""The kohya entrance: a command line of sd-scripts becomes a configuration, or a file of ours that says what was what.

Relative paths are relative to the current folder, as in sd-scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from ..config import (
    VERSION,
    Config,
    ConfigError,
    absolute,
    current_names,
    is_broken,
    loads,
    merge,
    nested,
    parse,
    reference,
)
from ..errors import UserError, escaped
from ..runs.files import is_file
from .convert import convert, find_family
from .dataset import bucket_step, data
from .formats import read_configuration
from .launcher import launched
from .made import Made, defaults
from .read import Values, read_flags

ENDINGS = (".toml", ".json", ".yaml", ".yml")
OURS = ("json", "output", "adapter", "prompts", "cells", "preset", "debug", "profile", "memory-snapshot")
"""Flags of our own commands that are not options."""


@dataclass
class Given:
    """A command line in kohya's words."""

    flags: Values = field(default_factory=Values)
    dotted: dict[str, Any] = field(default_factory=dict)
    """Native options on top: ``{"adapter.rank": 16}``."""


def take(words: Sequence[str]) -> tuple[Given, list[str]]:
    """Kohya's flags and native ones; what remains is for the command's own parser."""
    words, flags = launched(words)
    given = Given(flags)
    dotted, left = read_flags(given.flags, words, OURS)
    given.dotted = current_names(dotted)
    return given, left


def load(given: Given) -> tuple[Config, list[str]]:
    """The configuration that trains as sd-scripts would, and notes for the person. ConfigError tells all problems."""
    made, values = _made(given)
    raw = merge(absolute(nested(made.options), Path.cwd()), absolute(nested(given.dotted), Path.cwd()))
    problems = [*values.problems, *made.problems]
    if not raw.get("model", {}).get("path"):
        add = "it is not given; add --pretrained_model_name_or_path PATH"
        problems.append(("pretrained_model_name_or_path", add))
    if not _has_data(raw) and not (
        {"train_data_dir", "reg_data_dir", "dataset_config", "in_json"} & set(values.given) or values.datasets
    ):
        problems.append(("train_data_dir", "it is not given; add --train_data_dir PATH or --dataset_config FILE"))
    try:
        config = parse(raw, "kohya")
    except ConfigError as error:
        problems += _translated(error, made, values, problems)
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return config, _notes(values, made)


def _values(given: Given, file: Path | None, elsewhere: bool) -> Values:
    values = Values(elsewhere=elsewhere)
    path = _file(given, file)
    if path:
        read_configuration(values, path)
    values.over(given.flags)
    return values


def _file(given: Given, file: Path | None) -> Path | None:
    """The configuration that is given. As in sd-scripts the ending of a TOML may be left out."""
    named = given.flags.given.get("config_file") or file
    path = Path(named).expanduser() if named else None
    if path and path.suffix.lower() not in ENDINGS and not path.is_file():
        return path.with_name(path.name + ".toml")
    return path


def sources(given: Given, file: Path | None = None) -> list[Path]:
    """The files that are read for a configuration: they must never be replaced by it."""
    values = _values(given, file, elsewhere=True)
    texts = [text for one in values.given.values() for text in (one if isinstance(one, list) else [one])]
    paths = [_file(given, file), *(Path(text).expanduser() for text in texts if isinstance(text, str))]
    return [path for path in paths if path and is_file(path)]


def _made(given: Given, file: Path | None = None, elsewhere: bool = False) -> tuple[Made, Values]:
    values = _values(given, file, elsewhere)
    family = find_family(values, given.dotted.get("model.family"))
    made = convert(values, family)
    data(values, made)
    bucket_step(values, made, family)
    return made, values


def _has_data(raw: Mapping[str, Any]) -> bool:
    return any(raw.get("data", {}).get(name) for name in ("path", "sets", "pairs", "ratings", "metadata"))


def _translated(error: ConfigError, made: Made, values: Values, known: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Problems with our options under the arguments that they came from, without those that are known already."""
    found = []
    names = {where.rpartition(": ")[2].removeprefix("--") for where, _ in known}
    for option, what in error.problems:
        name = made.names.get(option)
        where = option if not name else values.where(name) if name in values.places else f"{name} ({option})"
        if (name or option) not in names and option not in ("model", "model.path"):
            found.append((where, what))
    return found


# ------------------------------------------------------------------------------------------------- a file of our own


def imported(given: Given, file: Path | None = None) -> tuple[str, list[str]]:
    """The same as a TOML file of ours with comments, and notes. What is not on this machine may be missing."""
    made, values = _made(given, file, elsewhere=True)
    for option, value in given.dotted.items():
        made.options[option], made.comments[option] = value, f"--{option}"
    _full_paths(made)
    raw = nested(made.options)
    raw = merge({"model": {"path": "-"}, "data": {} if _has_data(raw) else {"path": "-"}}, raw)
    problems = [*values.problems, *made.problems]
    try:
        parse(raw, "kohya")
    except ConfigError as error:
        problems += _translated(error, made, values, problems)
    if problems:
        raise ConfigError(problems)
    source = Path(given.flags.given.get("config_file") or file or "kohya's arguments").name
    notes = _notes(values, made)
    return written(made, source, notes), notes


def _notes(values: Values, made: Made) -> list[str]:
    """One line each, whatever a file holds."""
    return [escaped(note) for note in (*values.notes, *made.notes)]


def _full_paths(made: Made) -> None:
    for row in reference():
        option = f"{row['table']}.{row['name']}"
        if row["path"] and isinstance(made.options.get(option), str):
            made.options[option] = _full_path(option, made.options[option])
        if row["path"] and row["table"] == "data.sets":
            for one in made.options.get("data.sets", []):
                if row["name"] in one:
                    one[row["name"]] = _full_path(f"data.{row['name']}", one[row["name"]])


def _full_path(option: str, path: str) -> str:
    """Absolute, where the file belongs to this machine."""
    if is_broken(path) or (PureWindowsPath(path).drive and not Path(path).exists()):
        return path
    table, _, name = option.partition(".")
    return absolute({table: {name: path}}, Path.cwd())[table][name]


def written(made: Made, source: str, notes: Sequence[str]) -> str:
    """TOML with a comment at each value that says what it was. It is read back before it is returned.

    :raises UserError: a text holds what no file can hold.
    """
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment(f"Made from {escaped(source)} by `python -m trainer import-kohya`"))
    for note in notes:
        document.add(tomlkit.comment(f"note: {escaped(note)}"))
    document.add("config_version", tomlkit.item(VERSION))
    tables: dict[str, Any] = {}
    order = list(defaults())
    for option in sorted(made.options, key=lambda one: order.index(one) if one in order else len(order)):
        if option == "data.sets":
            continue
        table, _, name = option.rpartition(".")
        at = tables
        for piece in table.split("."):
            at = at.setdefault(piece, {})
        item = tomlkit.item(made.options[option])
        if made.comments.get(option):
            item.comment(escaped(made.comments[option]))
        at[name] = item
    for name, table in tables.items():
        document.add(tomlkit.nl())
        document.add(name, _table(table))
    text = tomlkit.dumps(document)
    for one in made.options.get("data.sets", []):
        text += f"\n[[data.sets]]\n{tomlkit.dumps(_table(one))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = escaped(text[: error.end].splitlines()[-1])
        raise UserError(f"{line}: this is no text that a file can hold; rename it, or write it again") from None
    wanted = {"config_version": VERSION, **_plain(nested(made.options))}
    assert loads(text) == wanted, "the written file reads otherwise"
    return text


def _plain(value: Any) -> Any:
    """With lists for tuples, and without empty lists of tables."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items() if (name, one) != ("sets", [])}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _table(values: Mapping[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.table()
    for name, value in values.items():
        table.add(name, _table(value) if type(value) is dict and name not in ("args",) else value)
    return table
