"""The configuration that is being written: one TOML file beside the runs, changed key by key, comments kept.

Only what differs from the preset and the defaults stands in it, so the file itself is the difference. Two open pages
change different keys without losing either.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from ..trainer import config
from ..trainer.errors import UserError
from ..trainer.runs.events import read_object
from . import fields, words
from .security import Folders
from .store import Home, locked, read_text, write, write_json

KEPT_WITH_A_NEW_PRESET = ("run.name", "run.out", "model.path", "data", "sample.prompts")
OF_A_FOLDER = (
    "run.name", "run.out", "data.path", "data.sets", "data.trigger", "data.pairs", "data.ratings", "data.targets",
    "data.masks", "sample.prompts",
)  # fmt: skip
"""What belongs to one folder of pictures, and to no preset."""
WITH_A_FOLDER, FOLDERS = ("run.name", "data.trigger", "data.masks", "sample.prompts"), "folders.json"
"""What comes back when a folder of pictures is opened again, and where it is kept meanwhile."""
SHAPE = ("kind", "rank")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILES = ("model.path", "model.vae", "adapter.init_from", "data.path", "data.pairs", "data.ratings",
         "data.targets", "data.masks")  # fmt: skip
BUNDLED = Folders(())
"""No folder at all: presets by their names only."""
COPY = "draft-before-[0-9][0-9][0-9][0-9].toml"
COPIES = 20
"""How many earlier recipes are kept."""
EMPTY = (None, "", [])
HEADER = "The recipe. What is not written here comes from the preset, and then from the defaults."
START = f"# {HEADER}\nconfig_version = {config.VERSION}\n"
"""In English for pages of all languages, since it is compared."""


TRIGGER = "[trigger]"
"""In a preview prompt: the trigger word of the recipe goes here."""


@dataclass(frozen=True)
class Earlier:
    """A recipe that another took the place of."""

    path: Path
    name: str
    preset: str
    changes: int
    """How many options it changes of its preset."""
    t: float


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place of the configuration; ``remedy`` is (what the button says, key, value)."""

    where: str
    what: str
    remedy: tuple[str, str, Any] | None = None


class Changed(UserError):
    """The recipe is not the one that a text was made from; ``mark`` is that of the one there is."""

    def __init__(self, mark: str):
        super().__init__(words.CHANGED_ELSEWHERE)
        self.mark = mark


# ------------------------------------------------------------------------------------------------------------- text


def read(home: Home) -> str:
    return current(read_text(home.draft)) if home.draft.exists() else START


def replace(home: Home, text: str, based_on: str | None = None) -> None:
    """The whole text from an editor. UserError: no TOML. Changed: so has the file since ``based_on`` was shown."""
    try:
        tomlkit.parse(text)
    except TOMLKitError as error:
        raise UserError(f"{words.THE_RECIPE}: {words.NOT_TOML.format(error)}") from None
    with locked(home.draft):
        if based_on is not None and based_on != (now := mark(read(home))):
            raise Changed(now)
        write(home.draft, text)


def current(text: str) -> str:
    """The text with options under today's names, where it was written before they were renamed."""
    try:
        document = tomlkit.parse(text)
        changes = config.renames(document)
        config.renamed(document)  # refuses an option under both names
    except (TOMLKitError, UserError):
        return text
    values = [(old, new, get(document, ".".join(map(str, old)))) for old, new in changes]
    for old, new, value in values:
        _set(document, ".".join(map(str, new)), value, {})
        _set(document, ".".join(map(str, old)), None, {})
    return tomlkit.dumps(document) if changes else text


def mark(text: str) -> str:
    """Tells versions of the text apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def change(home: Home, changes: Mapping[str, Any], folders: Folders = BUNDLED) -> str:
    """Set keys such as ``adapter.rank``; None takes the key or the table out. Gives the new text."""
    with locked(home.draft):
        text = changed(read(home), changes, folders)
        write(home.draft, text)
    return text


def changed(text: str, changes: Mapping[str, Any], folders: Folders = BUNDLED) -> str:
    """The text with these keys set; what the preset says anyway is not written."""
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise UserError(words.TEXT_NOT_TOML.format(error)) from None
    under = inherited(document.unwrap(), folders)
    for key, value in changes.items():
        _set(document, key, value, under)
    return tomlkit.dumps(document)


def untouched(key: str, entered: Any, shown: Any, now: Any) -> bool:
    """Whether a field still says what it showed. UserError: it does not, and another window has set the key since."""
    if entered != shown and now not in (shown, entered):
        raise UserError(words.SET_ELSEWHERE.format(key, now, entered))
    return entered == shown


def start_over(home: Home, text: str, because: str = "") -> Path | None:
    """Put another recipe in the place of this one. Gives the copy of this one; None when it was the same.

    ``because`` says what did it, for the line beside Undo.
    """
    with locked(home.draft):
        return _put(home, read(home), text, because)


def _put(home: Home, old: str, new: str, because: str) -> Path | None:
    copy = None if old in (START, new) else _copy(home, old)
    remember_folder(home, old)
    write(home.draft, new)
    if old != new:
        write_json(home.own / "replaced.json", {"v": 1, "text": old, "because": because})
    return copy


def remember_folder(home: Home, text: str) -> None:
    """Keep what belongs to the recipe's folder of pictures for when that is opened again."""
    own = values_of(text)
    if isinstance(path := get(own, "data.path"), str) and path:
        known = {**read_object(home.own / FOLDERS), path: {key: get(own, key) for key in WITH_A_FOLDER}}
        write_json(home.own / FOLDERS, known)


def of_folder(home: Home, path: str) -> dict[str, Any]:
    """What was kept of a folder of pictures; empty for a new one."""
    return read_object(home.own / FOLDERS).get(path) or {}


def replaced(home: Home) -> str | None:
    """What replaced the recipe before this one; None when there is nothing to undo."""
    found = read_object(home.own / "replaced.json")
    return str(found["because"]) if isinstance(found.get("text"), str) and "because" in found else None


def undo(home: Home) -> None:
    """Bring the recipe back that was replaced last; what was changed since is kept among the earlier ones."""
    found = read_object(home.own / "replaced.json")
    if not isinstance(found.get("text"), str):
        raise UserError(words.NOT_REPLACED)
    with locked(home.draft):
        if (now := read(home)) != START:
            _copy(home, now)
        write(home.draft, found["text"])
        forget_replaced(home)


def forget_replaced(home: Home) -> None:
    (home.own / "replaced.json").unlink(missing_ok=True)


def earlier(home: Home) -> list[Earlier]:
    """Recipes that others took the place of, newest first."""
    found = []
    for path in sorted(home.own.glob(COPY), reverse=True):
        text = read_text(path)
        own = values_of(text)
        changes = len(difference(text))
        found.append(
            Earlier(path, str(get(own, "run.name", "")), str(own.get("preset", "")), changes, path.stat().st_mtime)
        )
    return found


def _copy(home: Home, text: str) -> Path:
    """The text beside the recipe, under a number of its own and once only; the oldest of too many goes."""
    copies = sorted(home.own.glob(COPY))
    same = next((one for one in copies if read_text(one) == text), None)
    if same is not None:
        return same
    number = int(copies[-1].stem[-4:]) + 1 if copies else 1
    path = home.own / f"draft-before-{number:04}.toml"
    write(path, text)
    for one in [*copies, path][:-COPIES]:
        one.unlink()
    return path


def _set(document: tomlkit.TOMLDocument, key: str, value: Any, under: Mapping[str, Any]) -> None:
    *tables, name = key.split(".")
    if value in EMPTY or (not isinstance(value, dict) and get(under, key) == value and value is not None):
        chain: list[Any] = [document]
        for table in tables:
            if not isinstance(chain[-1].get(table), dict):
                return
            chain.append(chain[-1][table])
        chain[-1].pop(name, None)
        for parent, table in reversed(list(zip(chain, tables))):
            if not parent[table] and table != "pixel":  # an empty [loss.pixel] means: with its defaults
                parent.pop(table)
        return
    at: Any = document
    for table in tables:
        if not isinstance(at.get(table), dict):
            at[table] = tomlkit.table()
        at = at[table]
    at[name] = tomlkit.table() if value == {} else value


# ----------------------------------------------------------------------------------------------------------- meaning


def values(text: str, folders: Folders = BUNDLED) -> dict[str, Any]:
    """What the recipe says with its preset; empty for text that is not TOML."""
    own = values_of(text)
    return config.merge(inherited(own, folders), own)


def preset_file(name: str, folders: Folders) -> Path:
    """A bundled preset by its name, or a file in the folders. UserError for any other."""
    if Path(name).suffix == ".toml":
        folders.allow("preset", str(Path(name).resolve()))
    return config.find_preset(name)


def inherited(own: Mapping[str, Any], folders: Folders = BUNDLED) -> dict[str, Any]:
    """What the preset says; empty without one, or when there is none of that name that may be read."""
    name = own.get("preset")
    if not isinstance(name, str) or not name:
        return {}
    try:
        found = preset_file(name, folders)
        return config.preset_tables(str(found), own.get("config_version", config.VERSION))
    except UserError:
        return {}


def get(tables: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """``get(values, "adapter.rank")``."""
    at: Any = tables
    for part in key.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return default
        at = at[part]
    return at


def flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """``{"adapter": {"rank": 8}}`` -> ``{"adapter.rank": 8}``; an empty table stays as itself."""
    out: dict[str, Any] = {}
    for key, value in tables.items():
        out |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return out


def difference(text: str, folders: Folders = BUNDLED) -> list[tuple[str, Any, Any]]:
    """What the recipe changes of its preset: (key, the preset's value or None, the recipe's). What it says that is the
    default anyway changes nothing, as in a recipe that was taken from a run."""
    own = values_of(text)
    under = inherited(own, folders)
    rows = [
        (key, get(under, key), value) for key, value in flat(own).items() if key not in ("preset", "config_version")
    ]
    usual = {key: _defaults().get(key, ()) if old is None else (old,) for key, old, _ in rows}
    return [row for row in rows if row[2] not in usual[row[0]]]


@cache
def _defaults() -> dict[str, list[Any]]:
    """What each option is where nothing sets it; several for one that each objective has."""
    out: dict[str, list[Any]] = {}
    for row in config.reference():
        if row["default"] is not None:
            out.setdefault(f"{row['table']}.{row['name']}".lstrip("."), []).append(row["default"])
    return out | {"objective.kind": [config.OBJECTIVE]}  # each objective's own default is itself


def choose_preset(home: Home, name: str | None, folders: Folders = BUNDLED) -> Path | None:
    """Start from a preset: the model, the pictures, the name and the prompts stay, and with pairs or ratings what
    learns from them; other changes go. Gives the copy of the recipe before; None when nothing of it is lost."""
    with locked(home.draft):
        text = read(home)
        lost = values_of(text) != values_of(_over(get(values_of(text), "preset"), text, folders))
        new = _over(name, text, folders)
        if not lost:  # only what the preset says changes: nothing of a person's goes
            write(home.draft, new)
            return None
        return _put(home, text, new, name or words.NO_PRESET)


def _over(name: str | None, text: str, folders: Folders) -> str:
    """A preset, with what stays of the recipe."""
    own = values_of(text)
    kept = {key: get(own, key) for key in KEPT_WITH_A_NEW_PRESET if get(own, key) is not None}
    start = START + (f"preset = {tomlkit.item(name).as_string()}\n" if name else "")
    if get(own, "data.pairs") or get(own, "data.ratings"):
        start += tomlkit.dumps(_learning(own, values(text, folders)))
    return changed(start, flat(kept), folders)


def _learning(own: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """What learns from pairs or ratings: the objective, and the adapter that continues from a file, with that file's
    shape."""
    out: dict[str, Any] = {}
    if kind := get(whole, "objective.kind"):
        out["objective"] = {"kind": kind, **get(own, "objective", {})}
    if get(own, "adapter.init_from"):
        out["adapter"] = {**own["adapter"], **{key: whole["adapter"][key] for key in SHAPE if key in whole["adapter"]}}
    return out


def dumps(tables: Mapping[str, Any]) -> str:
    """Tables as TOML."""
    return tomlkit.dumps(dict(tables))


def values_of(text: str) -> dict[str, Any]:
    """What stands in the text itself, without its preset; what its version meant is written out."""
    try:
        own = config.renamed(tomlkit.parse(text).unwrap())
        version = own.get("config_version", config.VERSION)
        return config.meant(own, version) if isinstance(version, int) else own
    except (TOMLKitError, UserError):
        return {}


def problems(text: str, path: Path, folders: Folders = BUNDLED) -> list[Problem]:
    """Everything that the parser finds wrong, with a remedy where it is plain."""
    try:
        own = config.renamed(tomlkit.parse(text).unwrap())
    except TOMLKitError as error:
        return [Problem(words.THE_RECIPE, words.NOT_TOML.format(error))]
    except config.ConfigError as error:
        return [problem(where, what, {}) for where, what in error.problems]
    try:
        if own.get("preset"):  # first: without it, much else seems to be missing
            preset_file(str(own["preset"]), folders)
        whole = config.merge(inherited(own, folders), own)
        config.parse(whole, str(path))
    except config.ConfigError as error:
        return [problem(where, what, own) for where, what in error.problems]
    except UserError as error:
        where, _, what = str(error).partition(": ")
        return [problem(where, what, own)]
    return missing_files(whole, path)


def problem(where: str, what: str, own: Mapping[str, Any]) -> Problem:
    """With its remedy, and at the option where a table's problem begins with the name of one."""
    name, _, rest = what.partition(": ")
    if rest and f"{where}.{name}" == fields.option_at(f"{where}.{name}"):
        where, what = f"{where}.{name}", rest
    return Problem(where, what, remedy(where, what, own))


def missing_files(whole: Mapping[str, Any], path: Path) -> list[Problem]:
    """Files and folders of the recipe that are not there; the trainer itself looks into them."""
    found = []
    for key in FILES:
        value = get(whole, key)
        if (
            isinstance(value, str)
            and value
            and not HUB_ID.fullmatch(value)
            and not (path.parent / Path(value).expanduser()).exists()
        ):
            found.append(Problem(key, words.NOT_THERE_PATH.format(value)))
    return found


def fill_trigger(texts: Iterable[str], trigger: str) -> list[str]:
    """Prompts with the trigger word where they ask for it; without one its place closes up."""
    if trigger:
        return [text.replace(TRIGGER, trigger) for text in texts]
    return [re.sub(r"\[trigger\]\s*,?\s*", "", text).strip() for text in texts]


def without_trigger(values: Mapping[str, Any]) -> list[str]:
    """The preview prompts in which the trigger word does not occur; none where there is no trigger word."""
    trigger, texts = get(values, "data.trigger") or "", get(values, "sample.prompts") or []
    if not trigger or not isinstance(texts, list):
        return []
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)")
    return [text for text in map(str, texts) if TRIGGER not in text and not word.search(text)]


def located(line: str, own: Mapping[str, Any]) -> list[Problem]:
    """The trainer's error (one problem per line: ``where: what; what would be right``) as problems."""
    out = []
    for one in filter(None, (part.strip() for part in line.split("\n"))):
        where, colon, what = one.partition(": ")
        where, what = (where, what) if colon and " " not in where else ("", one)
        out.append(problem(where, what, own))
    return out


def remedy(where: str, what: str, own: Mapping[str, Any]) -> tuple[str, str, Any] | None:
    """A change that fixes the problem, when there is one that a person would make without thinking."""
    meant = re.search(r"did you mean '([^']+)'", what)
    if meant and "no such option" in what:
        table, _, _ = where.rpartition(".")
        new = f"{table}.{meant[1]}" if table else meant[1]
        return words.RENAME.format(meant[1]), f"{where}>{new}", get(own, where)
    if meant:
        key = "preset" if where == "preset" else where
        return words.USE_INSTEAD.format(meant[1]), key, meant[1]
    if "valid number" in what and re.fullmatch(r"-?\d+,\d+(e-?\d+)?", given := str(get(own, where))):
        return words.USE_INSTEAD.format(given.replace(",", ".")), where, float(given.replace(",", "."))
    if "steps and epochs are both given" in what:
        return words.KEEP_STEPS, "run.epochs", None
    if what.startswith("there is no such option") or ("does not fit" in what and get(own, where) is not None):
        return words.REMOVE, where, None
    return None


def apply_remedy(home: Home, found: tuple[str, str, Any], folders: Folders = BUNDLED) -> str:
    _, key, value = found
    old, renamed, new = key.partition(">")
    return change(home, {old: None, new: value} if renamed else {key: value}, folders)


# --------------------------------------------------------------------------------------------------------- snapshots


def snapshot(text: str, source: Path, name: str, runs: Path, folders: Folders) -> str:
    """The whole configuration as it would run now, under this name; later changes do not reach it. UserError: it is
    wrong, or names a file that who is at this page may not read."""
    own = config.renamed(tomlkit.parse(text).unwrap())
    if own.get("preset"):
        preset_file(str(own["preset"]), folders)
    raw = config.merge(inherited(own, folders), own)
    raw.pop("preset", None)
    raw = config.merge(raw, {"run": {"name": name, "out": str(runs)}})
    if isinstance(texts := get(raw, "sample.prompts"), list):
        raw["sample"] = {**raw["sample"], "prompts": fill_trigger(map(str, texts), get(raw, "data.trigger") or "")}
    whole = config.parse(config.absolute(raw, source.parent), str(source)).to_toml()
    for key, value in flat(values_of(whole)).items():
        folders.allow(key, value)
    return whole
