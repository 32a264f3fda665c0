"""What a kohya user gives: a TOML file and flags, as one value a name, with everything that is wrong with them.

As sd-scripts does: tables of the file mean nothing, a flag beats the file, the file beats the default. Other than
sd-scripts: a name that it does not know and a value of another type are reported instead of ignored.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import BACKSLASH, is_broken
from ..errors import UserError, escaped
from ..runs.files import decode
from .names import GUI, IGNORED, Argument, arguments, elsewhere, near

EXTRA = {"kohya_strict": Argument("kohya_strict", "flag", False, (), ("sd15", "sdxl", "sd3"))}
"""Arguments of our own that a kohya file may hold."""


FREE_TEXT = (
    "caption_",
    "metadata_",
    "keep_tokens_separator",
    "secondary_separator",
    "training_comment",
    "log_",
    "wandb",
)
"""How the names of texts begin that may hold anything."""


class Wrong(UserError):
    """A value that does not fit: what is wrong; what would be right."""


@dataclass
class Values:
    """The value of every argument; those that were given are kept apart."""

    given: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Argument -> where it was given: ``config.toml, line 3`` or ``--network_dim``."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Options of ours that the file gives in a form that no argument has."""
    family: str | None = None
    """What the file says of the base model's family."""
    datasets: tuple[Path, str, dict[str, Any]] | None = None
    """What the file says of the data, as a dataset_config: the file, its text (for line numbers) and the tables."""
    repairs: bool = False
    """What has one sensible repair is repaired, with a note, instead of refused."""
    elsewhere: bool = False
    """The run may be meant for another machine: folders that are not here are no mistake."""

    def own(self) -> Values:
        return Values(family=self.family, elsewhere=self.elsewhere)

    def over(self, other: Values) -> None:
        """Lay other values over these."""
        self.given |= other.given
        self.places |= other.places
        self.problems += other.problems
        self.notes += other.notes
        self.family = other.family or self.family

    def __getitem__(self, name: str) -> Any:
        return self.given[name] if name in self.given else known()[name].default

    def set(self, name: str, value: Any, place: str) -> None:
        """Take a value of an argument, in its type."""
        argument = known().get(name)
        if argument is None:
            if name in IGNORED or elsewhere(name):
                return
            if name in GUI:
                if GUI[name] and value not in (False, None, "", 0):
                    self.notes.append(f"{place}: {name} has no effect: {GUI[name]}")
                return
            hint = near(name, known())
            if hint and value not in (False, None, ""):
                self.problems.append((at(place, name), f"sd-scripts has no such argument; {hint}"))
            else:
                self.notes.append(f"{place}: {name} is not an argument of sd-scripts' LoRA scripts; it is left out")
            return
        if value is None or value == "" or (value is False and argument.type != "flag"):
            return  # what sd-scripts takes for not given
        try:
            self.given[name] = typed(argument, value)
            self.places[name] = place
        except Wrong as wrong:
            self.problems.append((at(place, name), str(wrong)))
            return
        if not name.startswith(FREE_TEXT) and place != f"--{name}":
            for text in value if isinstance(value, list) else [value]:
                self.path(at(place, name), text)

    def path(self, where: str, text: Any) -> None:
        """Look at a text that may be a path: backslashes in double quotes make tabs and line breaks of it."""
        if not isinstance(text, str) or not is_broken(text):
            return
        what = f"{escaped(text)} holds control characters; {BACKSLASH}"
        if self.elsewhere:
            self.notes.append(f"{where}: {what}")
        else:
            self.problems.append((where, what))

    def wrong(self, name: str, what: str) -> None:
        """A problem with an argument."""
        self.problems.append((self.where(name), what))

    def where(self, name: str) -> str:
        return at(self.places[name], name) if name in self.places else name


def at(place: str, name: str) -> str:
    return place if place == f"--{name}" else f"{place}: {name}"


def known() -> Mapping[str, Argument]:
    return {**arguments(), **EXTRA}


# --------------------------------------------------------------------------------------------------------------- files


def parsed_json(path: Path, text: str) -> Any:
    """The content of a JSON file. UserError otherwise."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = 'write a Windows path with / or with two backslashes, "D:\\\\train"' if "escape" in str(error) else (
            "fix that line")  # fmt: skip
        raise UserError(f"{path}: this is not JSON: {error}; {remedy}") from None


def read_text(path: Path) -> str:
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of a kohya configuration") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: it cannot be read: {error.strerror}; give the path of a file") from None


def flatten(values: Values, tables: Mapping[str, Any], path: Path, text: str) -> None:
    """A ``--config_file``: its tables are laid flat, the later of two equal names counts. ``[[datasets]]`` are taken as
    a dataset_config, with what [general] says of the data.

    :param text: of the file, for line numbers.
    """
    flat: dict[str, tuple[Any, str]] = {}
    if isinstance(tables.get("datasets"), list):
        general = tables.get("general", {})
        shared = {k: v for k, v in general.items() if k not in known()} if isinstance(general, Mapping) else {}
        values.datasets = (path, text, {"general": shared, "datasets": tables["datasets"]})
        values.notes.append(f"{path.name}: [[datasets]] is read from it too, as if it were given as --dataset_config; "
                            "sd-scripts wants it in a file of its own")  # fmt: skip
        tables = {key: value for key, value in tables.items() if key != "datasets"}
        if shared:
            tables["general"] = {k: v for k, v in general.items() if k in known()}
    for key, value in tables.items():
        inner = value.items() if isinstance(value, dict) else [(key, value)]
        for name, one in inner:
            table = f"[{key}]" if isinstance(value, dict) else "the top"
            if name in flat and flat[name][0] != one:
                values.notes.append(f"{path.name}: {name} is {flat[name][0]!r} in {flat[name][1]} and {one!r} in "
                                    f"{table}; the latter counts")  # fmt: skip
            flat[name] = (one, table)
    for name, (value, table) in flat.items():
        values.set(name, value, f"{path.name}{line_of(text, name, table)}")


def line_of(text: str, name: str, table: str = "") -> str:
    """``, line 3`` where a key stands; empty where that is not plain to see."""
    at, found = "the top", ""
    for number, line in enumerate(text.splitlines(), 1):
        if heading := re.match(r"\s*(\[.+?\])\s*(#.*)?$", line):
            at = heading[1]
        elif re.match(rf"""\s*["']?{re.escape(name)}["']?\s*=""", line) and (not table or at == table):
            found = f", line {number}"
    return found


# --------------------------------------------------------------------------------------------------------------- flags


def read_flags(values: Values, words: Sequence[str], ours: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take kohya's flags from a command line; ours with a dot, and what is left over, are returned."""
    from ..config import flag_value

    dotted: dict[str, Any] = {}
    left: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word[2:].partition("=")
        mine = name in ours or (name == "resume" and not equals and (not words or words[0].startswith("--")))
        if not word.startswith("--") or mine or not (name in known() or "." in name or near(name, known())):
            left.append(word)
            continue
        if "." in name:
            if not equals and not words:
                raise UserError(f"{word}: a value is missing; write {word}=VALUE")
            dotted[name] = flag_value(value if equals else words.pop(0))
            continue
        values.set(name, _flag(values, name, [value] if equals else None, words), f"--{name}")
    return dotted, left


def _flag(values: Values, name: str, given: list[str] | None, words: list[str]) -> Any:
    """The value of one flag, taken from the words that follow it."""
    kind = known()[name].type if name in known() else "str"
    if kind == "flag" and given is None:
        return True
    many = kind.startswith("list")
    taken = given or []
    while given is None and words and not words[0].startswith("--") and (many or not taken):
        taken.append(words.pop(0))
    if not taken:
        values.problems.append((f"--{name}", f"a value is missing; write --{name}=VALUE"))
        return None
    return taken if many else taken[0]


# -------------------------------------------------------------------------------------------------------------- values


def typed(argument: Argument, value: Any) -> Any:
    """A value in the type that the argument is declared with. Raises Wrong."""
    made = _SHAPES.get(argument.name, _READERS[argument.type])(value)
    allowed = (*argument.choices, *_TOLERATED.get(argument.name, ()))
    if argument.choices and str(made) not in allowed:
        hint = near(str(made), argument.choices) or f"there is {', '.join(argument.choices)}"
        raise Wrong(f"{value!r} is none of its values; {hint}")
    return made


_TOLERATED = {"max_token_length": ("75",), "dynamo_backend": ("no",)}
"""What the GUI writes beside the declared values."""


def _flag_value(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str):
        raise Wrong(f"{value!r} is text, which sd-scripts takes for true; write true or false without quotes")
    raise Wrong(f"{value!r} is no switch; write true or false")


def whole(value: Any) -> int:
    """A whole number. Raises Wrong."""
    found = number(value)
    if found != int(found):
        raise Wrong(f"{value!r} is no whole number; write one, such as {int(found)}")
    return int(found)


def number(value: Any) -> float:
    """A number, also in quotes. Raises Wrong."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Wrong(f"{value!r} is no number; write one")
    try:
        found = float(value)
    except ValueError:
        raise Wrong(f"{value!r} is no number; write one without quotes") from None
    if not math.isfinite(found):
        raise Wrong(f"{value!r} is no number to work with; write another")
    return found


def _str(value: Any) -> str:
    if isinstance(value, (bool, list, dict)):
        raise Wrong(f"{value!r} is no text; write it in quotes")
    return str(value)


def _steps(value: Any) -> int | float | str:
    if isinstance(value, str) and value.strip().endswith("%"):
        number(value.strip()[:-1])
        return value.strip()
    found = number(value)
    if found < 0 or (found > 1 and found != int(found)):
        raise Wrong(f'{value!r} is no number of steps; write steps such as 100, a ratio such as 0.1, or "10%"')
    return int(found) if found in (0, 1) or found > 1 else found


def _words(value: Any) -> list[str]:
    """Arguments of the form key=value; a single text is split at its spaces."""
    if isinstance(value, str):
        return value.replace('"', "").split()
    if not isinstance(value, list) or any(isinstance(one, (list, dict)) for one in value):
        raise Wrong(f'{value!r} is no list of texts; write ["name=value", ...]')
    words = (re.sub(r"""^(["'])(.*)\1$""", r"\2", str(one).strip()) for one in value)
    return [word for one in words for word in re.split(r"\s+(?=\w+\s*=)", one)]  # several in one, as in one flag


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            raise Wrong(f"{value!r} is no list of numbers; write [1e-5, 1e-5]") from None
    return [number(one) for one in (value if isinstance(value, list) else [value])]


_READERS: Mapping[str, Any] = {
    "flag": _flag_value, "int": whole, "float": number, "str": _str, "path": _str, "steps": _steps,
    "list[str]": _words, "list[float]": _numbers,
}  # fmt: skip


def size(value: Any) -> int | list[int]:
    """512, "512", "512,768" or [512, 768]; one number for a square."""
    sides = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        found = [whole(side) for side in sides]
    except Wrong:
        found = []
    if len(found) not in (1, 2) or any(side <= 0 for side in found):
        raise Wrong(f'{value!r} is no size; write "512" or "512,768" (width, height)')
    return found[0] if len(set(found)) == 1 else found


def _range(value: Any) -> list[float]:
    pieces = value.split(",") if isinstance(value, str) else value
    try:
        found = [number(one) for one in pieces] if isinstance(pieces, list) else []
    except Wrong:
        found = []
    if len(found) != 2:
        raise Wrong(f'{value!r} is no range; write "2.0,4.0"')
    return found


def _paths(value: Any) -> list[str]:
    return [_str(one) for one in (value if isinstance(value, list) else [value])]


_SHAPES: Mapping[str, Any] = {
    "resolution": size, "face_crop_aug_range": _range, "base_weights": _paths,
}  # fmt: skip
"""Arguments that hold more than their declared type."""
