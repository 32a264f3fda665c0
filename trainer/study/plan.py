"""From a study's file to its cells: what each arm and seed trains and draws, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..adapters import files, keys
from ..config import Config, reference
from ..data import captions
from ..data.items import Item
from ..data.loader import Dataset
from ..dense import header as headers
from ..dense.options import DenseOptions
from ..errors import UserError
from ..families.load import Found, identify
from ..training.build import scan
from . import models
from .options import ArmOptions, MeasureOptions, StudyOptions

OWN = (
    "run.name", "run.out", "run.seed", "run.resume_from", "data.validation_split", "data.validation_seed",
    "sample.prompts", "sample.file", "validation.every", "validation.every_epochs",
)  # fmt: skip
"""What the study sets itself."""
WANTED = ("plain", "winner", "liked")
"""Roles of pictures that an arm should come close to."""
LEAST = 2
"""Held-out pictures and prompts."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm whose configuration is whole."""

    name: str
    given: ArmOptions
    config: Config
    """Without a seed; what is drawn and measured is in the study."""
    equal_time: bool = False
    """Its steps are those that take as long as the first arm's."""

    @property
    def changes(self) -> str:
        """In one line."""
        if self.given.untrained:
            return "the base model alone"
        if files := [*filter(None, [self.given.adapter]), *self.given.adapters]:
            return ", ".join(dict.fromkeys(Path(file).name for file in files))
        lines = [f"{name} = {_shown(value)}" for name, value in dotted(self.given.options).items()]
        lines += [f"training seeds + {self.given.seed_offset}"] if self.given.seed_offset else []
        return ", ".join(lines) or "as the base configuration"


@dataclass(frozen=True)
class Plan:
    """A checked study."""

    options: StudyOptions
    config: Config
    """The base configuration, with the held-out share."""
    found: Found
    arms: tuple[PlannedArm, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    held: tuple[str, ...]
    """Names of the held-out pictures or pairs that are measured."""
    data: str = ""
    """A digest of all pictures and captions, and of which of them are held out."""
    notes: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        return Path(self.options.out) / self.options.name

    @property
    def cells(self) -> list[tuple[PlannedArm, int]]:
        """Arms interleaved over seeds, so that half of a study compares all arms at half of the seeds."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    def run_name(self, arm: PlannedArm, seed: int) -> str:
        return f"{folder_name(arm.name)}-seed{seed}"

    def run_config(self, arm: PlannedArm, seed: int, steps: int | None = None) -> Config:
        """The configuration of one run. ``steps`` instead of the arm's own length."""
        changes: dict[str, Any] = {
            "run.out": str(self.folder / "runs"), "run.name": self.run_name(arm, seed),
            "run.seed": seed + arm.given.seed_offset, "validation.max_batches": 1,
        }  # fmt: skip
        config = arm.config.changed(changes)
        if steps is not None:
            run = config.run.model_dump(exclude_unset=True, exclude={"epochs"})
            config = config.model_copy(update={"run": type(config.run).model_validate({**run, "steps": steps})})
        return config


def make(options: StudyOptions, config: Config, seeds: Sequence[int] | None = None, look: bool = False) -> Plan:
    """Check a study and complete it; headers are read, no weights, and nothing is written. UserError says what is wrong
    in one line.

    ``seeds``: instead of the file's. ``look``: at every map of a study of maps too, as ``check`` does: one that cannot
    be used is an error, and what is left out a note.
    """
    if config.dense:
        _refuse_drawing(options)
    for where, folders in (("features", options.measures.features), ("scores", options.measures.scores)):
        for folder in folders:
            models.check(folder, f"measures.{where}", scores=where == "scores")
    base = config.changed({
        "data.validation_split": options.held_out, "run.out": str(Path(options.out) / options.name / "runs"),
        "sample.prompts": [], "validation.every": 0, "validation.every_epochs": 0,
    })  # fmt: skip
    base = base.model_copy(update={"sample": base.sample.model_copy(update={"file": None})})
    found = identify(base.model)
    dataset = _scan(base, found)
    arms = _arms(options, base, found, dataset)
    held = _held(options, dataset)
    prompts = () if config.dense else _prompts(options, dataset, held)
    names = tuple(map(item_id, held))
    notes, many = _notes(options, arms, dataset), tuple(seeds or options.seed_list)
    if look and dataset.dense:
        dataset.look_at_targets()
        notes += tuple(dataset.warnings)
    return Plan(options, base, found, arms, many, prompts, names, _data(dataset), notes)


def _notes(options: StudyOptions, arms: Sequence[PlannedArm], dataset: Dataset) -> tuple[str, ...]:
    """What a person should know before anything is started, in sentences without a stop."""
    notes = [f"'{arm.name}' is one file: its interval does not hold the chance of training" for arm in arms
             if arm.given.adapter and len(options.seed_list) > 1]  # fmt: skip
    notes += [
        f"'{arm.name}' was trained elsewhere: on held-out pictures it is too good if it was trained on them"
        for arm in arms
        if arm.given.adapter or arm.given.adapters
    ]
    for i, arm in enumerate(arms):
        same = [one.name for one in arms[:i] if arm.given.trains and one.given.trains and _alike(one, arm)]
        notes += [f"'{arm.name}' and '{same[0]}' are one recipe under two names"] if same else []
    trained = set[str]() if dataset.dense else _trained(dataset)
    if known := [text for text in options.measures.neutral if _same(text) in trained]:
        notes.append(f"measures.neutral: '{known[0]}' is the caption of a training picture, where a change is wanted")
    return tuple(notes)


def _alike(one: PlannedArm, other: PlannedArm) -> bool:
    same = one.equal_time == other.equal_time and one.given.seed_offset == other.given.seed_offset
    return same and one.config.model_dump() == other.config.model_dump()


def _data(dataset: Dataset) -> str:
    """Changes when a picture is added, replaced or left out, when a caption changes, or what is held out."""
    rows = [
        (item_id(item), item.caption, [(one.path.stat().st_size, one.size) for one in item.pictures])
        for item in dataset.scan.items
    ]
    return digest(rows, sorted(map(item_id, dataset.held)))


def _scan(config: Config, found: Found) -> Dataset:
    try:
        return scan(config, found=found, remember=False)[1]
    except UserError as error:
        if str(error).startswith("data.validation_split"):
            raise UserError("held_out: all pictures belong together, so none can be held out; add others") from None
        raise


def _arms(options: StudyOptions, base: Config, found: Found, dataset: Dataset) -> tuple[PlannedArm, ...]:
    made, held = [], list(map(item_id, dataset.held))
    for given in options.arms:
        where = f"arms: '{given.name}'"
        folder_name(given.name)
        changes = dotted(given.options)
        if own := next((name for name in OWN if name in changes), None):
            hint = "seed_offset shifts it" if own == "run.seed" else "it is the same for all arms"
            raise UserError(f"{where}: {own} is set by the study ({hint}); leave it out")
        for file in filter(None, [given.adapter, *given.adapters]):
            _check_adapter(where, Path(file), found, base.dense)
        try:
            config = base.changed(changes)
        except UserError as error:
            lines = str(error).split("\n")
            raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None
        if (config.dense and config.dense.task) != (base.dense and base.dense.task):
            raise UserError(f"{where}: its [dense] task is not the base's; all arms predict one kind of map, or none")
        if config.model != base.model:
            _refuse_model(where, config, base, found)
        if config.data != base.data or config.terms() != base.terms():
            try:
                own_held = list(map(item_id, scan(config, found=found, remember=False)[1].held))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            if own_held != held:
                raise UserError(
                    f"{where}: with its [data] other pictures are held out than with the base's; keep data.path, "
                    "data.sets and what belongs together as they are"
                )
        made.append(PlannedArm(given.name, given, config))
    return _with_equal_time(options, made)


def _with_equal_time(options: StudyOptions, made: list[PlannedArm]) -> tuple[PlannedArm, ...]:
    if options.equal == "steps":
        return tuple(made)
    timed = [replace(arm, name=f"{arm.name}, equal time" if options.equal == "both" else arm.name, equal_time=True)
             for arm in made[1:] if arm.given.trains]  # fmt: skip
    others = made[1:] if options.equal == "both" else [arm for arm in made[1:] if not arm.given.trains]
    if twice := {arm.name for arm in others} & {arm.name for arm in timed}:
        raise UserError(f"arms: '{min(twice)}' is what the study calls an arm of equal time; give it another name")
    return (made[0], *others, *timed)


def _refuse_drawing(options: StudyOptions) -> None:
    """UserError for what has no meaning in a study of maps."""
    for name, given in (("prompts", options.prompts), ("measures", options.measures != MeasureOptions())):
        if given:
            raise UserError(f"{name}: a study of dense runs compares maps of held-out pictures; leave this out")
    if untrained := [arm.name for arm in options.arms if arm.untrained]:
        raise UserError(f"arms: '{untrained[0]}': the base model predicts no maps; leave this arm out")


def _check_adapter(where: str, path: Path, found: Found, dense: DenseOptions | None) -> None:
    if not path.exists():
        raise UserError(f"{where}: there is no adapter {path}; give the path of a file")
    try:
        tensors, metadata = files.read(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    of = headers.read(metadata, str(path))
    if (of and of.task) != (dense and dense.task):
        what = f"predicts {of.shown}" if of else "predicts no maps"
        raise UserError(f"{where}: {path.name} {what}, unlike the base configuration; give another file")
    family = keys.identify({key: tuple(value.shape) for key, value in tensors.items()}, metadata).family
    if family not in (None, found.spec.name):
        raise UserError(f"{where}: {path.name} is for {family}, the base model is {found.spec.name}; give another file")


def _refuse_model(where: str, config: Config, base: Config, found: Found) -> None:
    """One base model: latents, noise and the judge of captions are its own."""
    spec = identify(config.model).spec
    if spec.name != found.spec.name:
        raise UserError(
            f"{where}: its model is {spec.title}, the base's is {found.spec.title}; all arms need one model family"
        )
    changed = [
        name for name in type(base.model).model_fields if getattr(config.model, name) != getattr(base.model, name)
    ]
    raise UserError(
        f"{where}: model.{changed[0]} differs from the base's; arms share one base model, make a study for each"
    )


def _held(options: StudyOptions, dataset: Dataset) -> list[Item]:
    held = [item for item in dataset.held if set(item.roles) & set(WANTED)][: options.pictures]
    if len(held) < LEAST:
        count = len([item for item in dataset.scan.items if not item.is_reg])
        raise UserError(
            f"held_out: {options.held_out:g} of {count} pictures holds out {len(held)}; give at least "
            f"{min(0.5, (LEAST + 0.5) / count):.2g}, or add pictures"
        )
    return held


def _prompts(options: StudyOptions, dataset: Dataset, held: Sequence[Item]) -> tuple[str, ...]:
    trained = _trained(dataset)
    _each_once("measures.neutral", options.measures.neutral)
    if options.prompts:
        if known := [prompt for prompt in options.prompts if _same(prompt) in trained]:
            raise UserError(
                f"prompts: '{known[0]}' is the caption of a training picture, so it says nothing about new prompts; "
                "leave it out"
            )
        _each_once("prompts", options.prompts)
        chosen = options.prompts[: options.pictures]
    else:
        once = {_same(text): text for text in reversed([_caption(dataset, item) for item in held])}
        chosen = [text for same, text in reversed(once.items()) if same and same not in trained]
    if len(chosen) < LEAST:
        what = "there are fewer than 2" if options.prompts else (
            "the held-out pictures have no two captions that no training picture has")  # fmt: skip
        raise UserError(f"prompts: {what}; give two or more prompts")
    return tuple(chosen)


def _caption(dataset: Dataset, item: Item) -> str:
    return captions.plain(item.caption, dataset.set_of(item))


def _trained(dataset: Dataset) -> set[str]:
    return {_same(_caption(dataset, item)) for item in dataset.items}


def _each_once(where: str, texts: Sequence[str]) -> None:
    """UserError where a text is empty, or there twice but for case and spaces."""
    seen = list(map(_same, texts))
    if "" in seen:
        raise UserError(f"{where}: one is empty; leave it out")
    if twice := [text for text, same in zip(texts, seen, strict=True) if seen.count(same) > 1]:
        raise UserError(f"{where}: '{twice[-1]}' is there twice; leave one out")


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def item_id(item: Item) -> str:
    """A picture's or pair's name, with the number of its set."""
    return f"{item.set}/{item.name}"


def folder_name(name: str) -> str:
    """An arm's name as part of a folder's; UserError where nothing of it can be."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[:60]
    if not kept:
        raise UserError(f"arms: '{name}' holds no letter or digit; give another name")
    plain = "-".join(part for part in kept.split("-") if part)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def dotted(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"adapter": {"rank": 8}}`` -> ``{"adapter.rank": 8}``."""
    out: dict[str, Any] = {}
    for key, value in options.items():
        out |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out


def tellable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that may be sent to others: numbers, switches, and names that the list of options has."""
    rows = [row for row in reference() if not row["path"]]
    named = {f"{row['table']}.{row['name']}": row["choices"] for row in rows}
    named |= {"objective.kind": [row["kind"] for row in rows if row["table"] == "objective"]}
    out: dict[str, Any] = {}
    for name, value in dotted(options).items():
        plain = isinstance(value, (bool, int, float)) or value in _choices(name, named)
        out[name] = value if plain else "(not told)"
    return out


def _choices(name: str, named: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Of an option; that of a term's objective ([objective.pixel] kind) are those of any."""
    if name in named:
        return named[name]
    table, _, last = name.rpartition(".")
    return named.get(f"{table.partition('.')[0]}.{last}", ())


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def digest(*what: Any) -> str:
    """Of JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]
