"""``--dataset_config``, or folders named ``10_cat``, as [data] and [[data.sets]].

A value is looked for in the subset, the dataset, [general], the arguments, and sd-scripts' default, in this order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..config import is_broken, reference
from ..data.pictures import EXTENSIONS
from ..errors import UserError
from .formats import foreign, is_configuration, parsed
from .made import Made, shown
from .names import near, sd_scripts
from .read import Values, Wrong, line_of, read_text, size

# Where a key may stand: D in [general] and a dataset, S also in a subset, s only in a subset.
KEYS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("batch_size", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "validation_seed"),
                    ("int", "D")),
    **dict.fromkeys(("enable_bucket", "bucket_no_upscale"), ("bool", "D")),
    **dict.fromkeys(("validation_split", "network_multiplier"), ("number", "D")),
    "resolution": ("size", "D"),
    **dict.fromkeys(("num_repeats", "keep_tokens", "token_warmup_min", "caption_dropout_every_n_epochs"), ("int", "S")),
    **dict.fromkeys(("shuffle_caption", "color_aug", "flip_aug", "random_crop", "enable_wildcard", "cache_info"),
                    ("bool", "S")),
    **dict.fromkeys(("keep_tokens_separator", "secondary_separator", "caption_separator", "caption_prefix",
                     "caption_suffix", "caption_extension", "class_tokens", "resize_interpolation"), ("text", "S")),
    **dict.fromkeys(("token_warmup_step", "caption_dropout_rate", "caption_tag_dropout_rate"), ("number", "S")),
    "face_crop_aug_range": ("range", "S"),
    "custom_attributes": ("table", "S"),
    **dict.fromkeys(("is_reg", "alpha_mask"), ("bool", "s")),
    **dict.fromkeys(("image_dir", "metadata_file", "conditioning_data_dir"), ("text", "s")),
}  # fmt: skip
PLACES = {"general": "D S", "dataset": "D S", "subset": "S s"}
KINDS = {
    "int": "a whole number", "number": "a number", "bool": "true or false", "text": 'a text in quotes',
    "size": "a number or [width, height]", "range": "[smallest, largest]", "table": "a table",
}  # fmt: skip
ARGUMENTS = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
"""Keys whose argument has another name."""


@cache
def set_aliases() -> dict[str, str]:
    """Key -> option of a set, from the aliases there."""
    rows = [row for row in reference() if row["table"] == "data.sets" and row["kohya"]]
    return {"in_json": "metadata", **{row["kohya"]: row["name"] for row in rows}, "metadata_file": "metadata"}


def data(values: Values, made: Made) -> None:
    """Fill in [data] and its sets."""
    _shared(values, made)
    config = values.given.get("dataset_config")
    folders = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if name in values.given]
    if config or values.datasets:
        if folders:
            made.notes.append(f"{' and '.join(folders)}: not used, as dataset_config is given")
        if config:
            _config(values, made, Path(config).expanduser())
        elif values.datasets:
            path, text, tables = values.datasets
            _tables(values, made, Reader(path, text, made), tables)
    elif "in_json" in values.given:
        _metadata(values, made)
    elif folders:
        _folders(values, made)
    sets = made.options.get("data.sets", [])
    _buckets(values, made, sets)
    masked = any(one.get("masks") for one in sets) or "data.masks" in made.options
    if values["masked_loss"] and sets and not (masked or _alpha(made, sets)):
        values.wrong("masked_loss", "no set has a mask; give each subset conditioning_data_dir, or alpha_mask = true")


def _alpha(made: Made, sets: list[dict[str, Any]]) -> bool:
    return bool(made.options.get("data.alpha_mask")) or any(one.get("alpha_mask") for one in sets)


def _shared(values: Values, made: Made) -> None:
    """The arguments: what holds for every set that does not say otherwise."""
    options = set_aliases()
    for key, (_, place) in KEYS.items():
        name = ARGUMENTS.get(key, key)
        if key in options and place in "DS" and key not in ("num_repeats", "class_tokens", "batch_size"):
            made.put(f"data.{options[key]}", values[name], values, name)
    if "data.resolution" in made.options:
        made.options["data.resolution"] = _eighths(made, made.options["data.resolution"])
    made.put("data.transparent", "keep" if values["kohya_strict"] else None, values, "kohya_strict")
    made.put("run.batch", values["train_batch_size"], values, "train_batch_size")
    made.put("data.caption_extension", values["caption_extention"], values, "caption_extention")
    made.put("data.alpha_mask", values["alpha_mask"], values, "alpha_mask")
    made.put("data.validation_split", values["validation_split"], values, "validation_split")
    for option in ("data.validation_seed", "validation.seed"):
        made.put(option, values["validation_seed"], values, "validation_seed")
    if values["masked_loss"]:
        made.put("data.masks", values["conditioning_data_dir"], values, "conditioning_data_dir")


def _eighths(made: Made, value: Any) -> Any:
    """A resolution whose sides are multiples of 8."""
    sides = value if isinstance(value, list) else [value]
    if not any(side % 8 for side in sides):
        return value
    rounded = [side // 8 * 8 for side in sides]
    made.notes.append(f"resolution: {shown(value)} is rounded down to multiples of 8: {shown(rounded)}")
    return rounded if isinstance(value, list) else rounded[0]


# -------------------------------------------------------------------------------------------------------- the checks


def _buckets(values: Values, made: Made, sets: list[dict[str, Any]]) -> None:
    """What sd-scripts asserts of buckets: refused, or repaired where the file's tool has other rules."""

    def of(one: Mapping[str, Any], name: str) -> Any:
        return one.get(name, made.options.get(f"data.{name}"))

    places = [(f"set {number + 1} ({one.get('path') or one.get('metadata')})", one) for number, one in enumerate(sets)]
    reported: set[str] = set()
    for where, one in places or [("", dict[str, Any]())]:
        sides = of(one, "resolution")
        if of(one, "buckets") is False or sides is None:
            continue
        least, most = (min(sides), max(sides)) if isinstance(sides, list) else (sides, sides)
        low, high = of(one, "bucket_min") or 256, of(one, "bucket_max") or 1024
        found = []
        if not of(one, "no_upscale") and low > least:
            found.append(("min_bucket_reso", f"{low} is more than the resolution's shorter side", least))
        if not of(one, "no_upscale") and high < most:
            found.append(("max_bucket_reso", f"{high} is less than the resolution's longer side", most))
        for name, what, right in found:
            if values.repairs:
                option = "bucket_min" if name == "min_bucket_reso" else "bucket_max"
                (one if where else made.options)[option if where else f"data.{option}"] = right
            if what in reported:
                continue
            reported.add(what)
            place = f"{where}: {name}" if where else name
            if values.repairs:
                made.notes.append(f"{place}: {what}; {right} is taken")
            else:
                made.problems.append(
                    (place, f"{what}; set {right} or {'less' if name == 'min_bucket_reso' else 'more'}")
                )


def bucket_step(values: Values, made: Made, family: str | None) -> None:
    """sd-scripts' rule for the granularity of buckets: refused, or repaired where the file's tool has another."""
    step = sd_scripts(family).bucket_step if family else 8
    shared = {"bucket_step": made.options.get("data.bucket_step")}
    for option, one in (("data.bucket_step", shared), *(("", one) for one in made.options.get("data.sets", []))):
        given = one.get("bucket_step")
        if given and given % step and one.get("buckets", made.options.get("data.buckets", True)):
            right = max(step, round(given / step) * step)
            what = f"no multiple of {step}, which {family or 'a model'} needs"
            if not (values.repairs or values.elsewhere):
                made.problems.append(("bucket_reso_steps", f"{given} is {what}; set {right}"))
                continue
            made.notes.append(f"bucket_reso_steps: {given} is {what}; {right} is taken")
            (made.options if option else one)[option or "bucket_step"] = right


# ------------------------------------------------------------------------------------------------- a dataset_config


@dataclass
class Reader:
    """A dataset_config while it is read, to say where something is wrong."""

    path: Path
    text: str
    made: Made

    def wrong(self, where: str, key: str, what: str) -> None:
        line = line_of(self.text, key) if self.text.count(key) == 1 else ""
        place = f"{where}{'.' if where and key else ''}{key}"
        self.made.problems.append((f"{self.path.name}{line}{': ' if place else ''}{place}", what))

    def table(self, raw: Any, where: str, place: str) -> dict[str, Any]:
        """The keys of one table that may stand there, in their types."""
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self.wrong(where, "", f"{raw!r} is no table; write [{where}] or [[{where}]]")
            return {}
        found: dict[str, Any] = {}
        allowed = {key for key, (_, kind) in KEYS.items() if kind in PLACES[place]}
        for key, value in raw.items():
            if key in ("subsets", "datasets") and place in ("dataset", "general"):
                continue
            empty = value is None or value == "" or (value is False and KEYS.get(key, ("bool",))[0] != "bool")
            if key in allowed and empty:
                continue  # what the notebooks write for not given
            if key in ("subsets", "datasets"):
                self.wrong(where, key, "it may not stand here; write [[datasets]] and below each [[datasets.subsets]]")
            elif key not in KEYS:
                hint = near(key, [*KEYS, "subsets", "datasets"]) or f"there is {', '.join(sorted(allowed))}"
                self.wrong(where, key, f"there is no such key; {hint}")
            elif key not in allowed:
                right = "a subset" if KEYS[key][1] == "s" else "[general] or [[datasets]]"
                self.wrong(where, key, f"it may not stand here; put it into {right}")
            else:
                try:
                    found[key] = _value(KEYS[key][0], value)
                except Wrong:
                    self.wrong(where, key, f"{value!r} does not fit; write {KINDS[KEYS[key][0]]}")
        return found


def _value(kind: str, value: Any) -> Any:
    fits = {
        "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v),
        "bool": lambda v: isinstance(v, bool),
        "text": lambda v: isinstance(v, str),
        "table": lambda v: isinstance(v, dict),
        "range": lambda v: isinstance(v, list) and len(v) == 2 and all(isinstance(n, (int, float)) for n in v),
        "size": lambda v: not isinstance(v, str),
    }[kind]
    if not fits(value):
        raise Wrong(kind)
    return size(value) if kind == "size" else [float(n) for n in value] if kind == "range" else value


def _config(values: Values, made: Made, path: Path) -> None:
    text = read_text(path)
    try:
        raw = parsed(path, text)
    except UserError as error:
        made.problems.append(("dataset_config", str(error)))
        return
    read = Reader(path, "" if path.suffix.lower() == ".json" else text, made)
    if what := foreign(raw):
        read.wrong("", "", what)
    elif not isinstance(raw, dict):
        read.wrong("", "", "it holds no tables; write [general] and [[datasets]]")
    elif is_configuration(raw):
        more = "; its [[datasets]] are read there too" if "datasets" in raw else ", and the data set by itself"
        read.wrong("", "", f"this is the configuration of a training; give it as --config_file{more}")
    else:
        _tables(values, made, read, raw)


def _tables(values: Values, made: Made, read: Reader, raw: Mapping[str, Any]) -> None:
    """The tables of a dataset_config."""
    for key in sorted(set(raw) - {"general", "datasets"}):
        read.wrong("", key, f"there is no such table; {near(key, ['general', 'datasets']) or 'use [[datasets]]'}")
    general = read.table(raw.get("general", {}), "general", "general")
    datasets = raw.get("datasets", [])
    if not isinstance(datasets, list) or not datasets:
        read.wrong("", "datasets", "there is none; write [[datasets]] and below it [[datasets.subsets]]")
        return
    made.options["data.sets"] = []
    tables = []
    for number, one in enumerate(datasets):
        where = f"datasets[{number}]" if len(datasets) > 1 else "datasets"
        before = len(made.options["data.sets"])
        tables.append({**general, **_dataset(values, made, read, general, one, where)})
        if len(datasets) > 1:
            for made_set in made.options["data.sets"][before:]:
                made_set["pool"] = str(number + 1)
    _one_for_all(values, made, read, tables)


def _dataset(values: Values, made: Made, read: Reader, general: dict[str, Any], raw: Any, where: str) -> dict[str, Any]:
    """Add the sets of one dataset; its own keys."""
    own = read.table(raw, where, "dataset")
    subsets = raw.get("subsets", []) if isinstance(raw, dict) else []
    if not isinstance(subsets, list) or not subsets:
        read.wrong(where, "subsets", "there is none; write [[datasets.subsets]] with image_dir")
        return own
    tables = [read.table(one, f"{where}.subsets[{k}]", "subset") for k, one in enumerate(subsets)]
    captioned = [bool(one.get("metadata_file")) for one in tables]
    if any(captioned) and not all(captioned):
        read.wrong(where, "", "subsets with and without metadata_file are mixed; put them into two [[datasets]]")
    for k, one in enumerate(tables):
        place = f"{where}.subsets[{k}]"
        for key in ("image_dir", "metadata_file", "conditioning_data_dir"):
            values.path(f"{read.path.name}: {place}.{key}", one.get(key))
        if not one.get("image_dir") and not one.get("metadata_file"):
            read.wrong(place, "image_dir", "it is needed; give the folder of the pictures")
        if one.get("conditioning_data_dir") and not values["masked_loss"]:
            read.wrong(place, "conditioning_data_dir", "it is for masks; set masked_loss = true in the configuration")
        for key in ("is_reg", "class_tokens", "caption_extension"):
            if one.get("metadata_file") and key in one:
                read.wrong(place, key, "metadata_file brings the captions; leave it out")
        merged = {**general, **own, **one}
        made.options["data.sets"].append(_set(made, merged))
    return own


def _set(made: Made, keys: Mapping[str, Any]) -> dict[str, Any]:
    """One set: what differs from [data]."""
    options = set_aliases()
    found: dict[str, Any] = {}
    for key, value in keys.items():
        name, value = options.get(key), _eighths(made, value) if key == "resolution" else value
        if name and (key in ("image_dir", "metadata_file") or made.options.get(f"data.{name}", _UNSET) != value):
            found[name] = max(value, 0) if key == "num_repeats" else value
    for key, value in keys.get("custom_attributes", {}).items():
        if key == "diff_output_preservation":
            found["preserve"] = bool(value)
        else:
            made.notes.append(f"custom_attributes.{key}: nothing reads it; it is left out")
    if keys.get("network_multiplier", 1.0) != 1.0:
        made.notes.append("network_multiplier: sd-scripts does not apply it to LoRA either; it is left out")
    return found


_UNSET = object()


def _one_for_all(values: Values, made: Made, read: Reader, tables: list[dict[str, Any]]) -> None:
    """Keys of a dataset that are one for the whole run here."""
    for key, options in (
        ("batch_size", ["run.batch"]),
        ("validation_split", ["data.validation_split"]),
        ("validation_seed", ["data.validation_seed", "validation.seed"]),
    ):
        found = [one.get(key, values[ARGUMENTS.get(key, key)]) for one in tables]
        differ = any(other != found[0] for other in found)
        if key == "batch_size":
            if differ:
                continue  # each set keeps its own
            for one in made.options["data.sets"]:
                one.pop("batch", None)
        if differ:
            read.wrong("datasets", key, f"the datasets have {shown(found)}; give all of them the same")
        elif found and found[0] is not None and any(key in one for one in tables):
            for option in options:
                made.options[option] = found[0]
                made.names[option] = key
                made.comments[option] = f"{key} = {shown(found[0])} in {read.path.name}"


# --------------------------------------------------------------------------------------------------------- folders


def _metadata(values: Values, made: Made) -> None:
    one: dict[str, Any] = {"metadata": values["in_json"], "repeats": values["dataset_repeats"]}
    if "train_data_dir" in values.given:
        one["path"] = values["train_data_dir"]
    made.options["data.sets"] = [one]
    made.names["data.sets.0.metadata"] = "in_json"


def _folders(values: Values, made: Made) -> None:
    """train_data_dir and reg_data_dir: a set for each folder named REPEATS_WORDS, sorted by name."""
    sets: list[dict[str, Any]] = []
    for name in ("train_data_dir", "reg_data_dir"):
        if name not in values.given:
            continue
        root = Path(values[name]).expanduser()
        if is_broken(values[name]):
            continue  # the argument itself says so
        if not root.is_dir() and values.elsewhere:
            made.notes.append(f"{name}: {values[name]} is not on this machine; name its folders in [[data.sets]]")
            continue
        if not root.is_dir():
            values.wrong(name, f"there is no folder {root.as_posix()}; give the folder that holds folders like 10_cat")
            continue
        found, skipped = [], []
        for folder in sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: (p.name.casefold(), p.name)):
            repeats, _, words = folder.name.partition("_")
            if not re.fullmatch(r"\d+", repeats):
                if not folder.name.startswith("."):
                    skipped.append(folder.name)
            elif int(repeats) > 0:
                one = {"path": str(folder), "repeats": int(repeats), "caption": words}
                found.append({**one, "is_reg": True} if name == "reg_data_dir" else one)
        for folder in skipped:
            made.notes.append(f"{name}: {folder} is left out; name it like 10_{folder} to use it")
        if not found:
            pictures = sum(p.suffix.lower() in EXTENSIONS for p in root.iterdir())
            own = f"it holds {pictures} pictures itself: move them into {root.name}/10_{root.name}" if pictures else (
                "name the folders with pictures in it like 10_cat, for 10 repeats")  # fmt: skip
            if pictures and re.fullmatch(r"\d+_.*", root.name):
                own = f"it is such a folder itself: give its parent, {root.resolve().parent.as_posix()}"
            values.wrong(name, f"{root.as_posix()} has no folder named REPEATS_WORDS; {own}")
        sets += found
    if sets:
        made.options["data.sets"] = sets
