"""A study's file: what it may hold, and how it is read."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, field_validator, model_validator

from ..config import Config, ConfigError, absolute, load, loads, merge, nested
from ..errors import UserError
from ..registry import Options, PathStr, nearest, option
from ..runs.files import decode
from ..runs.folder import safe_name

NEUTRAL = [
    "a photo of a cat on a sofa", "a red car in a street", "a bowl of fruit on a table", "a portrait of an old man",
    "a house by a lake", "a forest in autumn", "a cup of coffee", "a boat on the sea",
]  # fmt: skip
"""Prompts that have nothing to do with what is trained; the drift from the base is measured on them."""


SEEDS, MOST_SEEDS, LIMIT = 5, 40, 1000
"""Seeds where none are given: without a budget, and at most with one; and how many may be given."""


class ArmOptions(Options):
    """[[arms]]: one recipe, or adapter files that exist."""

    name: str
    """What the arm is called in the report, and what its runs' folders begin with."""
    options: dict[str, Any] = option({})
    """Changes to the base configuration, by dotted names or in tables."""
    adapter: PathStr | None = option(None)
    """An adapter file instead of training: at every seed the same one."""
    adapters: list[PathStr] = option([])
    """One adapter file for each seed, in the order of the seeds."""
    untrained: bool = option(False)
    """The base model alone."""
    seed_offset: int = option(0, ge=0)
    """Added to every training seed of this arm. Two arms that differ in it alone are a null study."""

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise UserError(f"{name[:60]!r} has spaces around it or a line break; leave them out")
        return name

    @property
    def trains(self) -> bool:
        return not (self.adapter or self.adapters or self.untrained)

    @model_validator(mode="after")
    def _one_thing(self) -> ArmOptions:
        given = [bool(self.options or self.seed_offset), bool(self.adapter), bool(self.adapters), self.untrained]
        if sum(given) > 1:
            raise UserError("options, adapter, adapters and untrained exclude each other; keep one of them")
        return self


class MeasureOptions(Options):
    """[measures]: how much is measured, and with what."""

    levels: int = option(8, ge=1, le=100)
    """Noise levels of the held-out error in latents, evenly spaced over the schedule."""
    pixel_levels: int = option(4, ge=0, le=100)
    """Noise levels at which it is decoded as well; 0 leaves the pixel error out."""
    captions: int = option(4, ge=0, le=64)
    """Captions among which a picture's own is looked for; 0 leaves the text alignment out."""
    caption_levels: int = option(4, ge=1, le=100)
    """Noise levels at which each of them is tried."""
    neutral: list[str] = option(NEUTRAL)
    """Prompts that the drift from the base is measured on; none leaves it out."""
    features: list[PathStr] = option([])
    """Folders of CLIP, SigLIP or DINO models (transformers): their features are used beside the autoencoder's."""
    scores: list[PathStr] = option([])
    """Folders of CLIP-class scorers (CLIP, SigLIP, PickScore, HPSv2 in transformers' form)."""

    @model_validator(mode="after")
    def _agree(self) -> MeasureOptions:
        if self.pixel_levels and self.levels % self.pixel_levels:
            raise UserError(f"pixel_levels: {self.pixel_levels} does not divide levels = {self.levels}; change one")
        if self.captions == 1:
            raise UserError("captions: one caption cannot be told from others; give 2 or more, or 0")
        return self


class StudyOptions(Options):
    """A whole study file."""

    name: str
    """The study's folder, in ``out``."""
    out: PathStr = option("studies")
    """The folder that holds the studies."""
    base: PathStr | None = option(None)
    """The base configuration: a .toml file."""
    preset: str | None = option(None)
    """A preset that the base configuration starts from."""
    options: dict[str, Any] = option({})
    """Options laid over them, by dotted names or in tables."""
    arms: list[ArmOptions]
    seeds: int | list[int] | None = option(None)
    """How many training seeds, or which. Unset: 5, or with a budget as many as fit."""
    held_out: float = option(0.2, gt=0, lt=1)
    """The share of the pictures (or pairs) that no arm trains on."""
    prompts: list[str] = option([])
    """What is drawn; without it the captions of the held-out pictures."""
    pictures: int | None = option(None, ge=2)
    """At most so many prompts and so many held-out pictures."""
    equal: Literal["steps", "time", "both"] = option("steps")
    """``steps``: as configured. ``time``: every arm gets the steps that take as long as the first arm's; ``both`` has
    each arm both ways."""
    measures: MeasureOptions = option(MeasureOptions())

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        return safe_name(name)

    @field_validator("seeds", mode="before")
    @classmethod
    def _whole(cls, seeds: Any) -> Any:
        many = seeds if isinstance(seeds, list) else [seeds]
        whole = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in many)
        if isinstance(seeds, list):
            fits = whole and 0 < len(set(many)) == len(many) <= LIMIT
        else:
            fits = seeds is None or (whole and 0 < seeds <= LIMIT)
        if not fits:
            raise UserError(f"{str(seeds)[:60]} does not fit; give how many (1 to {LIMIT}), or a list of different "
                            "whole numbers from 0 on")  # fmt: skip
        return seeds

    @model_validator(mode="after")
    def _agree(self) -> StudyOptions:
        if len(self.arms) < 2:
            raise UserError("arms: there is nothing to compare; give two or more [[arms]]")
        names = [unicodedata.normalize("NFC", arm.name).casefold() for arm in self.arms]  # as file systems compare them
        if twice := [arm.name for arm, name in zip(self.arms, names, strict=True) if names.count(name) > 1]:
            raise UserError(f"arms: two are called '{twice[-1]}'; give each a name of its own")
        for arm in self.arms:
            if arm.adapters and len(arm.adapters) != len(self.seed_list):
                raise UserError(
                    f"arms: '{arm.name}' has {len(arm.adapters)} files for {len(self.seed_list)} seeds; give one each"
                )
        if self.equal != "steps" and not self.arms[0].trains:
            raise UserError(f"equal: '{self.arms[0].name}' trains nothing, so there is no time to be equal to; "
                            "put an arm that trains first")  # fmt: skip
        return self

    @property
    def seed_list(self) -> list[int]:
        if isinstance(self.seeds, list):
            return self.seeds
        files = max((len(arm.adapters) for arm in self.arms), default=0)
        return list(range(files or SEEDS if self.seeds is None else self.seeds))


def read(path: Path, flags: Mapping[str, Any] | None = None, out: Path | None = None) -> tuple[StudyOptions, Config]:
    """The study of a file, and its base configuration. Paths are relative to the file, those of flags to here.

    ``flags``: options of the base configuration, by dotted names; ``out``: the folder of studies instead of the file's.

    :raises UserError: it cannot be read, or something in it is wrong; a ConfigError has a line for each.
    """
    try:
        raw = loads(decode(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({(error.strerror or 'error').lower()}); check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not UTF-8 text; save the file as UTF-8") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    study = parse(raw, path.resolve().parent)
    given = absolute(nested(flags or {}), Path.cwd())
    study = study.model_copy(update={
        "options": merge(study.options, given), "out": str(out.resolve()) if out else study.out,
    })  # fmt: skip
    if not (study.base or study.preset or study.options):
        raise UserError(f"{path}: it has no base configuration; give base, preset or options")
    return study, load(study.base, study.options, study.preset)


def parse(raw: Mapping[str, Any], folder: Path) -> StudyOptions:
    """Check a study; ConfigError names every problem with its place. ``folder``: what its paths are relative to."""
    try:
        found = StudyOptions.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError([_readable(problem, raw) for problem in error.errors()]) from None
    arms = [
        arm.model_copy(update={
            "options": absolute(nested(arm.options), folder), "adapter": arm.adapter and _path(arm.adapter, folder),
            "adapters": [_path(one, folder) for one in arm.adapters],
        })
        for arm in found.arms
    ]  # fmt: skip
    measures = found.measures.model_copy(
        update={key: [_path(one, folder) for one in getattr(found.measures, key)] for key in ("features", "scores")}
    )
    return found.model_copy(update={
        "arms": arms, "measures": measures, "out": _path(found.out, folder),
        "base": found.base and _path(found.base, folder), "options": absolute(nested(found.options), folder),
    })  # fmt: skip


def _path(value: str, folder: Path) -> str:
    return str((folder / Path(value).expanduser()).resolve())


def _readable(problem: Any, raw: Mapping[str, Any]) -> tuple[str, str]:
    """A problem found by pydantic as (where, what)."""
    where, kind = ".".join(str(part) for part in problem["loc"]) or "study", problem["type"]
    if kind == "extra_forbidden":
        tables = {"arms": ArmOptions, "measures": MeasureOptions}
        model = tables.get(str(problem["loc"][0]), StudyOptions) if len(problem["loc"]) > 1 else StudyOptions
        return where, f"there is no such entry; {nearest(str(problem['loc'][-1]), list(model.model_fields))}"
    if kind == "missing":
        return where, "it is needed and not given; set it"
    if kind == "value_error":
        text = str(problem.get("ctx", {}).get("error", problem["msg"]))
        at, _, rest = text.partition(": ")
        return (at, rest) if where == "study" and rest else (where, text.removeprefix("name: "))
    return where, f"{str(problem['input'])[:60]!r} does not fit; {problem['msg'].replace('Input should', 'it should')}"
