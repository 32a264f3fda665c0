"""One configuration for TOML, flags and form: what may be written, how it is read, merged, checked and written back.

Order of precedence: flag > file > preset > default. Paths are relative to the file that holds them.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from .adapters.options import AdapterOptions
from .data.options import DataOptions
from .dense.options import DenseOptions
from .diffusion.options import NoiseOptions, SampleOptions
from .errors import UserError, escaped
from .families.options import ModelOptions
from .losses.options import TermOptions
from .memory.options import MemoryOptions
from .objectives.options import ObjectiveOptions
from .optimizers.options import OptimizerOptions, ScheduleOptions
from .registry import Choices, Options, former_names, losses, nearest, objectives, option
from .runs.files import decode, is_file
from .training.health import RecoveryOptions
from .training.run_options import RunOptions
from .training.save_options import SaveOptions
from .training.validation import ValidationOptions

_log = logging.getLogger(__name__)
VERSION = 4
PLANNED_ANEW = (
    "memory.gradient_checkpointing", "memory.checkpointing_fraction", "memory.cpu_offload_checkpointing",
    "memory.blocks_on_gpu", "memory.grad_cache", "model.t5_on_cpu",
)  # fmt: skip
"""What memory.plan chooses at every start, where it is not set: the results are equal up to rounding."""
PLANNED_ONCE = ("memory.base_weights", "memory.text_weights", "optimizer.kind")
"""What it chooses at a run's first start alone, with the decode plans of the loss terms."""
OBJECTIVE = "sft"
"""The kind of objective where none is given."""
PRESETS = Path(__file__).resolve().parents[1] / "presets"
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".bin", ".toml", ".txt", ".json", ".parquet")


class ConfigError(UserError):
    """Everything that is wrong with a configuration, one per line: ``where: what is wrong; what would be right``."""

    def __init__(self, problems: list[tuple[str, str]]):
        self.problems = [(escaped(where), escaped(what)) for where, what in problems]
        super().__init__("\n".join(f"{where}: {what}" for where, what in self.problems))


class LossTable(Options):
    """[loss]: one optional table per registered loss."""

    def terms(self) -> dict[str, TermOptions]:
        """The tables that are there, by the names of their losses."""
        tables = {name: getattr(self, name) for name in losses.tables()}
        return {name: options for name, options in tables.items() if options is not None}


@cache
def _loss_table() -> type[LossTable]:
    fields: dict[str, Any] = {name: (table | None, option(None)) for name, table in losses.tables().items()}
    return create_model("LossTable", __base__=LossTable, **fields)


@cache
def _objective_table() -> Any:
    """[objective]: a union on ``kind``; [objective.NAME] is the objective of the loss term NAME instead."""
    plain = objectives.tables()
    one: Any = Annotated[reduce(or_, plain.values()), Field(discriminator="kind")]
    per_term: dict[str, Any] = {name: (one | None, option(None)) for name in losses.tables()}
    tables = [create_model(f"{kind}_objective", __base__=table, **per_term) for kind, table in plain.items()]
    return Annotated[reduce(or_, tables), Field(discriminator="kind")]


class _Tables(Options):
    """The tables whose models are written in one place; see ``config_model`` for the rest."""

    config_version: Literal[4] = 4
    """The version of this file's form. Older files are migrated when they are read."""
    preset: str | None = None
    """Start from this preset: a name in ``presets/`` or a path."""
    run: RunOptions = Field(default_factory=RunOptions)
    model: ModelOptions
    data: DataOptions
    dense: DenseOptions | None = None
    """Train a picture's map instead of pictures: depth, normals, or another image. Its presence makes a run one."""
    adapter: AdapterOptions = Field(default_factory=AdapterOptions)
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions)
    noise: NoiseOptions = Field(default_factory=NoiseOptions)
    memory: MemoryOptions = Field(default_factory=MemoryOptions)
    sample: SampleOptions = Field(default_factory=SampleOptions)
    save: SaveOptions = Field(default_factory=SaveOptions)
    validation: ValidationOptions = Field(default_factory=ValidationOptions)
    recovery: RecoveryOptions = Field(default_factory=RecoveryOptions, json_schema_extra={"formerly": "heal"})


class Config(_Tables):
    """A whole configuration. Build it with ``load`` or ``parse``."""

    loss: LossTable
    objective: ObjectiveOptions

    def terms(self) -> dict[str, tuple[TermOptions, ObjectiveOptions]]:
        """The loss terms that count: name -> (its options, its objective's options)."""
        chosen = {name: options for name, options in self.loss.terms().items() if options.weight != 0}
        return {name: (options, getattr(self.objective, name) or self.objective) for name, options in chosen.items()}

    def notes(self) -> list[str]:
        """What is trained although the file does not ask for it, one per line."""
        given = self.loss.model_fields_set
        if not given or "mse" in given or "mse" not in self.terms():
            return []
        return ["loss.mse: added, as no latent loss is given; set loss.mse.weight = 0 to train without it"]

    def changed(self, changes: Mapping[str, Any]) -> Config:
        """With options set, by dotted names. ConfigError when the configuration contradicts itself then."""
        planned = nested({name: self.value(name) for name in PLANNED_ANEW if self.value(name) != _default(name)})
        return parse(merge(merge(self.model_dump(exclude_none=True, exclude_unset=True), planned), nested(changes)))

    def value(self, name: str) -> Any:
        """An option outside [loss] and [objective], by its dotted name."""
        table, _, key = name.partition(".")
        return getattr(getattr(self, table), key)

    def is_set(self, name: str) -> bool:
        """Whether such an option is given, and not left to its default or the plan."""
        table, _, key = name.partition(".")
        return table in self.model_fields_set and key in getattr(self, table).model_fields_set

    def planned(self, anew: Mapping[str, Any], once: Mapping[str, Any]) -> Config:
        """With what memory.plan chose, by dotted names: ``once`` is set from here on, ``anew`` is not, so that the next
        start may choose otherwise."""
        config = self.changed({**once, **anew})
        for table, values in nested(anew).items():
            getattr(config, table).model_fields_set.difference_update(values)
        return config

    def to_toml(self, *, only_set: bool = False) -> str:
        """As TOML; None is what is left out. ``parse(loads(config.to_toml())) == config`` but for what memory.plan
        chooses at every start, which is a comment."""
        import tomlkit

        whole, chosen = self.model_dump(exclude_none=True, exclude_unset=only_set), ""
        for name in (*PLANNED_ANEW, *PLANNED_ONCE) if self.memory.plan == "auto" else ():
            if not self.is_set(name):
                table, _, key = name.partition(".")
                whole.get(table, {}).pop(key, None)
                value = self.value(name)
                chosen += f"# memory.plan chose {name} = {json.dumps(value)}\n" if value != _default(name) else ""

        def written(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: written(one) for key, one in value.items()}
            return [written(one) for one in value] if isinstance(value, list) else value

        return chosen + tomlkit.dumps(written(whole))


def _default(name: str) -> Any:
    table, _, key = name.partition(".")
    (model,) = _models(_Tables.model_fields[table].annotation)
    return model.model_fields[key].get_default(call_default_factory=True)


@cache
def config_model() -> type[Config]:
    return create_model("Config", __base__=Config, loss=(_loss_table(), ...), objective=(_objective_table(), ...))


# ----------------------------------------------------------------------------------------------------------- reading


def load(path: str | Path | None = None, flags: Mapping[str, Any] | None = None, preset: str | None = None) -> Config:
    """Read a TOML file, lay it over its preset and the flags over both. Raises ConfigError with all problems."""
    file = absolute(_refuse_kohya(read_toml(Path(path)), path), Path(path).resolve().parent) if path else {}
    flags = absolute(nested(flags or {}), Path.cwd())
    name = preset or flags.get("preset") or file.get("preset")
    base = preset_tables(str(name), file.get("config_version", VERSION)) if name else {}
    _refuse_broken(file)
    _log.debug("configuration: file %s, preset %s, flags %s", path, name, flags)
    return parse(merge(merge(base, file), {**flags, **({"preset": name} if name else {})}), str(path or "flags"))


def is_broken(path: str) -> bool:
    r"""Whether a path holds control characters, as "D:\train" does in double quotes, and names nothing."""
    return any(unicodedata.category(one) == "Cc" for one in path) and not is_file(Path(path)) and not _is_folder(path)


def _is_folder(path: str) -> bool:
    return "\0" not in path and Path(path).is_dir()


def _refuse_broken(raw: Mapping[str, Any]) -> None:
    """:raises ConfigError: for the paths of a file that are broken by backslashes."""
    names = {row["name"] for row in reference() if row["path"]}
    problems: list[tuple[str, str]] = []

    def look(where: str, name: str, value: Any) -> None:
        if isinstance(value, str):
            if name in names and is_broken(value):
                problems.append((where, f"{Path(value).name} holds control characters; {BACKSLASH}"))
        elif isinstance(value, Mapping):
            for key, one in value.items():
                look(f"{where}.{key}" if where else key, key, one)
        elif isinstance(value, list):
            for number, one in enumerate(value):
                look(f"{where}.{number}", name, one)

    look("", "", raw)
    if problems:
        raise ConfigError(problems)


def _refuse_kohya(raw: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """``raw``; UserError for a file of Kohya's tools."""
    others = [
        table for name, table in raw.items() if isinstance(table, dict) and name not in config_model().model_fields
    ]
    inner = [one for table in others for one in table.values() if isinstance(one, dict)]  # of LoRA_Easy_...
    kohya = {row["kohya"] for row in reference()} & {*raw, *(key for table in (*others, *inner) for key in table)}
    if len(kohya) > 1 or isinstance(raw.get("datasets"), list):
        flag = "--dataset_config" if "datasets" in raw else "--config_file"
        raise UserError(f"{path}: this is a file of Kohya's tools; give it as {flag} {path}, and it trains as it is")
    return raw


def parse(raw: Mapping[str, Any], source: str = "configuration") -> Config:
    """Check a whole configuration; ConfigError names every problem with its place."""
    given = migrate(raw, source)
    raw = _completed(given)
    try:
        config = config_model().model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_merged(_readable(problem, raw) for problem in error.errors())) from None
    if "mse" not in given.get("loss", {}):
        config.loss.model_fields_set.discard("mse")  # a default is not set: it goes when another latent loss comes
    idle = [name for name in losses.tables() if getattr(config.objective, name) and name not in config.loss.terms()]
    if idle:
        raise ConfigError([(f"objective.{n}", f"there is no [loss.{n}]; add it or leave this out") for n in idle])
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with options under today's names. Raises UserError, which begins with the path."""
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        raise UserError(f"{path}: a configuration here is TOML; one of the GUI of kohya_ss, OneTrainer or ai-toolkit "
                        f"is read by `import-kohya {path} -o mine.toml`")  # fmt: skip
    try:
        text = decode(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of a .toml configuration") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; give the path of a .toml configuration") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: it cannot be read: {error.strerror}; check the path and its permissions") from None
    try:
        return renamed(loads(text))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def loads(text: str) -> dict[str, Any]:
    """TOML as the standard says; what only the reader of Kohya's tools takes, as that reads it.

    :raises UserError: neither can read it; the text says why, where, and what would be right.
    """
    import toml
    import tomllib  # pyright: ignore[reportMissingImports]  # the trainer needs Python 3.11

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        why = str(error)
    try:
        return toml.loads(text)
    except (toml.TomlDecodeError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        line = re.search(r"at line (\d+)", why)
        wrong = text.splitlines()[int(line[1]) - 1] if line else ""
        remedy = BACKSLASH if "\\" in wrong and '"' in wrong else "fix that line"
        if word := re.search(r"=\s*(none|null|nil|true|false)\b", wrong, re.IGNORECASE):
            small = word[1].lower()
            remedy = f"write {small}" if small in ("true", "false") else "leave out what is not given"
        raise UserError(f"this is not TOML: {why}; {remedy}") from None


BACKSLASH = "write a Windows path with / or in single quotes, as a backslash in double quotes is no plain character"
"""What to do about a path such as "D:\\train", in double quotes."""


def find_preset(name: str) -> Path:
    """A preset by its name in ``presets/`` or by path."""
    if Path(name).suffix.lower() == ".toml" and Path(name).is_file():
        return Path(name).resolve()
    known = {p.stem: p for p in sorted(PRESETS.glob("*.toml"))}
    if name not in known:
        raise UserError(f"preset: there is no '{name}'; {nearest(name, list(known))}")
    return known[name]


def preset_tables(name: str, version: Any = VERSION) -> dict[str, Any]:
    """What a preset gives to a file of this version, with absolute paths. UserError where there is no such preset.

    Up to version 2 the bundled presets set memory options, an 8-bit optimizer and a heavier pixel loss; a file of that
    time keeps them.
    """
    found = find_preset(name)
    tables = absolute(read_toml(found), found.parent)
    old = version in (1, 2) and found.parent == PRESETS and found.stem.startswith(("sd15-", "sdxl-", "sd3-"))
    if old:
        tables = merge(tables, nested({**MEMORY_UNTIL_2, **OF_ONE_UNTIL_2.get(found.stem, {})}))
    own = tables.get("config_version", VERSION)
    return meant(tables, min((one for one in (own, version) if isinstance(one, int)), default=VERSION))


MEMORY_UNTIL_2 = {
    "memory.plan": "manual", "memory.gradient_checkpointing": True, "optimizer.kind": "AdamW8bit",
}  # fmt: skip
OF_ONE_UNTIL_2 = {
    "sd15-preference-8gb": {"memory.grad_cache": True}, "sdxl-character-8gb": {"memory.base_weights": "nf4"},
    "sdxl-character-12gb": {"memory.base_weights": "int8"}, "sdxl-style-12gb": {"memory.base_weights": "int8"},
    "sd3-character-16gb": {"memory.text_weights": "int8"},
    "sd15-detail-8gb": {"loss.pixel.auto_ratio": 1.0}, "sdxl-detail-16gb": {"loss.pixel.auto_ratio": 1.0},
}  # fmt: skip
"""What all of the bundled presets set until version 2, and what some of them did."""


def migrate(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Bring a configuration of any version to today's form: today's names (``renames``), and what it meant written out.

    Until version 2 the bundled presets set memory options, too, see ``preset_tables``.
    """
    version = raw.get("config_version", VERSION)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UserError(f"{source}: config_version {version!r} is not known here; this version reads 1 to {VERSION}")
    return {**meant(renamed(raw), version), "config_version": VERSION}


def meant(tables: Mapping[str, Any], version: int) -> dict[str, Any]:
    """``tables`` with what this version meant by options of [loss.pixel] that it left out.

    Until version 2 ``decode = "auto"`` was what ``by_size`` is now; until version 3 ``auto_ratio`` was 1.
    """
    loss = tables.get("loss")
    pixel = loss.get("pixel") if isinstance(loss, Mapping) else None
    if not isinstance(loss, Mapping) or not isinstance(pixel, Mapping):
        return dict(tables)
    old: dict[str, Any] = {}
    if version < 3 and pixel.get("decode", "auto") == "auto":
        old["decode"] = "by_size"
    if version < 4 and "auto_ratio" not in pixel:
        old["auto_ratio"] = 1.0
    return merge(tables, {"loss": {"pixel": old}})


Place = tuple[str | int, ...]
"""Names of tables and of an option, with numbers in lists of tables."""


def renames(raw: Mapping[str, Any]) -> list[tuple[Place, Place]]:
    """The options in ``raw`` that have another name today: (where they are, where they belong)."""
    return list(_renames(raw, [config_model()], (), ()))


def _renames(
    at: Mapping[str, Any], models: list[type[Options]], old: Place, new: Place
) -> Iterator[tuple[Place, Place]]:
    names = {former: name for model in models for former, name in former_names(model).items()}
    for key, value in at.items():
        name = names.get(key, key)
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        inner = [found for field in fields for found in _models(field.annotation)] if fields else models
        was, now = (*old, key), (*new, name)
        if isinstance(value, Mapping) and value and (fields or key.isdigit()):
            yield from _renames(value, inner, was, now)
        elif isinstance(value, list) and inner and fields:
            for i, one in enumerate(value):
                if isinstance(one, Mapping):
                    yield from _renames(one, inner, (*was, i), (*now, i))
        elif was != now:
            yield was, now


def renamed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``raw`` with all options under today's names, whatever its version says.

    :raises ConfigError: an option is given under both names.
    """
    found = renames(raw)
    if not found:
        return dict(raw)
    out, problems = _copied(raw), []
    for old, new in found:
        *tables, key = old
        value = _at(out, tables).pop(key)
        while tables and not _at(out, tables) and tables != list(new[: len(tables)]):  # a renamed table, empty now
            *tables, key = tables
            del _at(out, tables)[key]
        *tables, key = new
        if key in (table := _at(out, tables)):
            was, now = (".".join(map(str, place)) for place in (old, new))
            problems.append((was, f"its name is {now} today, and both are given; keep {now}"))
        table[key] = value
    if problems:
        raise ConfigError(problems)
    return out


def current_names(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Options by dotted names, under today's names. Raises ConfigError as ``renamed``."""
    nested(flags)  # refuses two names of one option
    today = {".".join(old): ".".join(new) for old, new in _flag_renames(flags)}
    return {today.get(name, name): value for name, value in flags.items()}


def _flag_renames(flags: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    for name in flags:
        for old, new in renames(_nested({name: None})):
            yield [str(part) for part in old], [str(part) for part in new]


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _at(tables: Any, place: Iterable[Any]) -> Any:
    """The table at a place of keys and list positions, made where it is not there."""
    for part in place:
        tables = tables[int(part)] if isinstance(tables, list) else tables.setdefault(part, {})
    return tables


def _completed(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the tables say together: a latent loss, the objective's kind, what an override inherits."""
    loss = raw.get("loss", {})
    if isinstance(loss, dict) and not any(name in loss for name, table in losses.tables().items() if not table.decodes):
        loss = {"mse": {}, **loss}
    objective = raw.get("objective", {})
    if isinstance(objective, dict):
        objective = {"kind": OBJECTIVE, **objective}
        shared = {k: v for k, v in objective.items() if not isinstance(v, dict)}
        for name, own in objective.items():
            if isinstance(own, dict):
                same = own.get("kind", shared["kind"]) == shared["kind"]
                objective[name] = {**shared, **own} if same else own
    raw = {"model": {}, "data": {}, **raw, "loss": loss, "objective": objective}
    if isinstance(raw.get("dense"), dict) and isinstance(adapter := raw.get("adapter", {}), dict):
        raw["adapter"] = {"targets": ["."], **adapter}  # all of the network has to learn another output
    return raw


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; anything else is replaced. A changed objective kind drops the old kind's options."""
    out = dict(under)
    for key, value in over.items():
        old = out.get(key)
        if key == "objective" and isinstance(value, Mapping) and isinstance(old, Mapping):
            out[key] = dict(value) if value.get("kind", old.get("kind")) != old.get("kind") else merge(old, value)
        elif isinstance(old, list) and isinstance(value, Mapping) and value and all(k.isdigit() for k in value):
            if beyond := [i for i in value if int(i) >= len(old)]:
                raise ConfigError([(f"{key}.{beyond[0]}", f"there is none; the last is {key}.{len(old) - 1}")])
            out[key] = [merge(item, value.get(str(i), {})) for i, item in enumerate(old)]
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = merge(old, value)
        else:
            out[key] = value
    return out


def nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """``{"adapter.rank": 8}`` -> ``{"adapter": {"rank": 8}}``, under today's names."""
    return renamed(_nested(flags))


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for dotted, value in flags.items():
        *tables, key = dotted.split(".")
        at = out
        for table in tables:
            at = at.setdefault(table, {})
        at[key] = value
    return out


def flag_value(text: str) -> Any:
    """A flag's value as TOML would read it, and as a plain string where it is not TOML."""
    import toml

    try:
        return toml.loads(f"value = {text}")["value"]
    except (toml.TomlDecodeError, IndexError, ValueError):
        return text


# ------------------------------------------------------------------------------------------------------------- paths


def absolute(raw: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Make the path fields of a raw configuration absolute."""
    return _absolute(raw, config_model(), base)


def _absolute(raw: Any, model: type[Options], base: Path) -> dict[str, Any]:
    out = dict(raw)
    for key, info in model.model_fields.items():
        if key not in out:
            continue
        value, inner = out[key], list(_models(info.annotation))
        if "path" in info.metadata or _mentions_path(info.annotation):
            out[key] = [_path(v, base) for v in value] if isinstance(value, list) else _path(value, base)
        elif isinstance(value, dict) and inner:
            for one in inner:
                out[key] = _absolute(out[key], one, base)
        elif isinstance(value, list) and inner:
            out[key] = [_absolute(v, inner[0], base) if isinstance(v, dict) else v for v in value]
    return out


def _path(value: Any, base: Path) -> Any:
    if not isinstance(value, str) or not value or value.startswith("data:"):
        return value
    path = base / Path(value).expanduser()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not path.exists() and path.suffix.lower() not in WEIGHTS:
        return value  # perhaps an id on the Hugging Face hub; who opens it says so when it is neither
    return str(path.resolve())


def _mentions_path(annotation: Any) -> bool:
    return "path" in getattr(annotation, "__metadata__", ()) or any(map(_mentions_path, get_args(annotation)))


def _models(annotation: Any) -> Iterator[type[Options]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


# ---------------------------------------------------------------------------------------------------------- problems


def _readable(problem: Any, raw: Any) -> tuple[str, str]:
    """A problem found by pydantic as (where, "what is wrong; what would be right")."""
    where = _place(problem["loc"], raw)
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        table, _, key = where.rpartition(".")
        kinds = [kind for kind, table in objectives.tables().items() if key in table.model_fields]
        if table.startswith("objective") and kinds:
            return where, f"this kind has no such option, only {', '.join(kinds)}; leave it out or change the kind"
        return where, f"there is no such option; {nearest(key, list(_fields_at(table, raw)))}"
    if kind == "missing":
        return where, "it is needed and not given; set it"
    if kind == "value_error":
        return where, str(context.get("error", problem["msg"]))
    if kind == "union_tag_invalid":
        return f"{where}.kind", f"there is no '{context['tag']}'; {nearest(context['tag'], list(objectives.tables()))}"
    wanted = re.sub(r"^Input should be", "it should be", problem["msg"])
    wanted = re.sub(r"^it should be a valid dictionary or instance of \w+", "it should be a table", wanted)
    shown = repr(given) if len(repr(given)) <= 60 else f"{repr(given)[:57]}..."
    return where, f"{shown} does not fit; {wanted}"


def _merged(problems: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """One line per place: a value that fits none of several types is one problem."""
    at: dict[str, list[str]] = {}
    for where, what in problems:
        at.setdefault(where, []).append(what)
    joined = {
        where: " or ".join([lines[0], *(more.rpartition("it should be ")[2] for more in lines[1:])])
        for where, lines in at.items()
    }
    return list(joined.items())


def _place(loc: Iterable[Any], raw: Any) -> str:
    """Pydantic's location without the names of union members, which are not part of the file."""
    out, at = [], raw
    for part in loc:
        known = isinstance(at, Mapping) and (part in at or str(part) in _fields_at(".".join(out), raw))
        if isinstance(part, int) or known or not out:
            out.append(str(part))
            at = at[part] if (isinstance(at, list) or (isinstance(at, Mapping) and part in at)) else None
        elif isinstance(at, Mapping):
            continue
    return ".".join(out) or "configuration"


def _fields_at(where: str, raw: Any) -> set[str]:
    """The names that a table may hold."""
    models: list[type[Options]] = [config_model()]
    at = raw
    for part in filter(None, where.split(".")):
        at = at.get(part) if isinstance(at, Mapping) else at
        infos = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [found for info in infos for found in _models(info.annotation)] or models
    if isinstance(at, Mapping) and "kind" in at:
        models = [m for m in models if _kind(m) in (None, at["kind"])] or models
    return {name for m in models for name in m.model_fields}


def _kind(model: type[Options]) -> str | None:
    info = model.model_fields.get("kind")
    return get_args(info.annotation)[0] if info and get_origin(info.annotation) is Literal else None


# --------------------------------------------------------------------------------------------------------- reference


def reference() -> list[dict[str, Any]]:
    """Every option: table, name, type, default, bounds, kohya's and former name, label, help, in the file's order."""
    rows: list[dict[str, Any]] = []
    former = {name: old for old, name in former_names(config_model()).items()}
    for table, info in config_model().model_fields.items():
        if table == "loss":
            for name, options in losses.tables().items():
                rows += _rows(f"loss.{name}", options)
        elif table == "objective":
            for name, options in objectives.tables().items():
                rows += [{**row, "kind": name} for row in _rows("objective", options)]
        else:
            inner = list(_models(info.annotation))
            rows += _rows(table, inner[0], former.get(table, table)) if inner else [_row("", table, info, None)]
    return rows


def _rows(table: str, model: type[Options], formerly: str = "") -> list[dict[str, Any]]:
    """The options of a table that was called ``formerly`` in version 1."""
    rows, former = [], {name: old for old, name in former_names(model).items()}
    for name, info in model.model_fields.items():
        inner, before, now = list(_models(info.annotation)), former.get(name, name), f"{table}.{name}"
        first = f"{formerly or table}.{before}"
        rows += _rows(now, inner[0], first) if inner else [_row(table, name, info, first if first != now else None)]
    return rows


def _row(table: str, name: str, info: FieldInfo, formerly: str | None) -> dict[str, Any]:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    bounds = {k: getattr(m, k) for m in info.metadata for k in ("ge", "gt", "le", "lt") if hasattr(m, k)}
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    named = next((m.names() for m in info.metadata if isinstance(m, Choices)), None)
    annotation = Literal[tuple(named)] if named else info.annotation  # pyright: ignore[reportInvalidTypeForm]
    return {
        "table": table, "name": name, "type": _type(annotation), "choices": _choices(annotation),
        "default": default, "required": info.is_required(), "bounds": bounds,
        "path": "path" in info.metadata or _mentions_path(info.annotation),
        "kohya": extra.get("kohya"), "formerly": formerly, "label": extra.get("label"),
        "help": " ".join((info.description or "").split()),
    }  # fmt: skip


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in inner)
    if origin in (Union, UnionType):
        return " | ".join(_type(a) for a in inner if a is not type(None))
    if origin is Annotated:
        return _type(inner[0])
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "table"
    known = {"str": "text", "bool": "true | false", "int": "integer", "float": "number"}
    return known.get(getattr(annotation, "__name__", ""), str(annotation))


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [c for inner in get_args(annotation) if get_origin(annotation) is not list for c in _choices(inner)]
