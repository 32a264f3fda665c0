"""What a person should know before a start: what the page itself can see of the recipe, its pictures and the disk,
and what follows from the trainer's answer. Each with a way to fix it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.errors import UserError
from ..trainer.runs.check_report import preset_warnings
from ..trainer.runs.control import gigabytes
from . import captions, draft, duels, tokens, words

MANY_EPOCHS = 100
"""Showing the same pictures more often than this only copies them."""
SENSIBLE_EPOCHS = 40
FEW_PAIRS = 20
SHOWN = 6
"""Thumbnails beside a finding."""
PREVIEW_GB, SPARE_GB = 0.002, 0.2
GIB = 2**30
MANY = "*"
"""In the place of a remedy's key: its value is a table of changes."""
ASIDE = "leave out"
"""In the place of a remedy's key: its value is {folder: names of the pictures that are left out}."""
SHOW = "show"
"""In the place of a remedy's key: its value is the filter of step 1 that shows the pictures."""
LONGEST = 225
"""The most tokens of a caption that CLIP is made to read."""


@dataclass(frozen=True)
class Finding:
    """Something worth fixing."""

    text: str
    remedy: tuple[str, str, Any] | None = None
    """What the button says, the option, its new value."""
    pictures: tuple[Path, ...] = ()
    stops: bool = False
    """A run would fail."""


def of_recipe(values: Mapping[str, Any]) -> list[Finding]:
    """What the prompts say."""
    found = []
    trigger, missing = draft.get(values, "data.trigger") or "", draft.without_trigger(values)
    prompts = [str(one) for one in draft.get(values, "sample.prompts") or []]
    if missing:
        with_it = [f"{draft.TRIGGER}, {one}" if one in missing else one for one in prompts]
        found.append(Finding(words.NO_TRIGGER.format(len(missing), len(prompts), trigger),
                             (words.ADD_TRIGGER, "sample.prompts", with_it)))  # fmt: skip
    limit = draft.get(values, "model.max_tokens") or tokens.LIMIT
    long = [one for one in draft.fill_trigger(prompts, trigger) if tokens.count(one.split(" --")[0]) > limit]
    if long:
        found.append(Finding(words.LONG_PROMPTS.format(words.number(len(long), words.PROMPTS), limit)))
    return found


def of_pictures(values: Mapping[str, Any], folders: list[Path], resolution: int, seconds: float) -> list[Finding]:
    """What single pictures are like; sizes are looked at for at most ``seconds``."""
    by_kind: dict[str, list[Path]] = {}
    longest = 0
    limit = draft.get(values, "model.max_tokens") or tokens.LIMIT
    trigger = draft.get(values, "data.trigger") or ""
    for folder in folders:
        try:
            listing = captions.scan(folder)
        except UserError:  # the trainer says so
            continue
        for name, marks in captions.trouble(listing, resolution, seconds=seconds)[0].items():
            for mark in (words.UNREADABLE,) if words.UNREADABLE in marks else marks:
                kind = words.DUPLICATE if mark.startswith(words.SAME_AS.format("")) else mark
                by_kind.setdefault(kind, []).append(folder / name)
        for name, text in captions.read_all(listing).items():
            if text and (length := tokens.count(f"{trigger}, {text}" if trigger else text)) > limit:
                by_kind.setdefault(words.TOO_LONG, []).append(folder / name)
                longest = max(longest, length)
    if draft.get(values, "dense"):  # no caption is read
        by_kind.pop(words.NO_CAPTION, None)
        by_kind.pop(words.CAPTION_UNREADABLE, None)
    elif draft.get(values, "data.caption"):  # given to all without a caption file, and not to those whose file is empty
        empty = [path for path in by_kind.pop(words.NO_CAPTION, ()) if captions.file_of(path).is_file()]
        by_kind |= {words.NO_CAPTION: empty} if empty else {}
    return [
        Finding(
            f"{words.number(len(paths), words.PICTURES)}: {kind}",
            _fix(kind, paths, values, longest),
            tuple(paths[:SHOWN]),
        )
        for kind, paths in by_kind.items()
    ]


def _fix(kind: str, paths: list[Path], values: Mapping[str, Any], longest: int) -> tuple[str, str, Any]:
    """What one button does for pictures of a kind, whose captions have at most ``longest`` tokens; for what only a
    person can settle, such as a caption that is longer than any text encoder reads, it shows them."""
    trigger = draft.get(values, "data.trigger") or ""
    if kind in (words.UNREADABLE, words.SMALL, words.DUPLICATE):
        by_folder = {str(path.parent): [one.name for one in paths if one.parent == path.parent] for path in paths}
        return words.LEAVE_THEM_OUT.format(words.number(len(paths), words.PICTURES)), ASIDE, by_folder
    if kind == words.NO_CAPTION and trigger and not any(captions.file_of(path).is_file() for path in paths):
        return words.CAPTION_THEM.format(trigger), "data.caption", trigger
    if kind == words.TOO_LONG and draft.get(values, "model.family") != "sd3":
        limit = tokens.LIMIT * math.ceil(longest / tokens.LIMIT)
        if limit <= LONGEST:
            return words.READ_TOKENS.format(limit), "model.max_tokens", limit
    return words.SHOW_THEM, SHOW, words.TOO_LONG_HERE if kind == words.TOO_LONG else kind


def of_pairs(values: Mapping[str, Any]) -> list[Finding]:
    """Whether there is enough to learn from."""
    path = draft.get(values, "data.pairs") or draft.get(values, "data.ratings")
    if not isinstance(path, str) or not Path(path).is_dir():
        return []
    pairs = "pairs" in values.get("data", {})
    there = sum(not row.tie for row in duels.pairs(Path(path))) if pairs else len(duels.ratings(Path(path)))
    what = words.PAIRS if pairs else words.RATED
    return [Finding(words.FEW_PAIRS.format(words.number(there, what), FEW_PAIRS))] if there < FEW_PAIRS else []


def of_answer(values: Mapping[str, Any], answer: Mapping[str, Any], runs: Path) -> list[Finding]:
    """What follows from the trainer's answer."""
    found = [Finding(text) for text in preset_warnings(str(values.get("preset", "")), answer)]
    epochs, per_epoch = answer.get("epochs") or 0, (answer.get("data") or {}).get("steps_per_epoch")
    if epochs > MANY_EPOCHS and per_epoch:
        steps = SENSIBLE_EPOCHS * per_epoch
        found.append(Finding(words.MANY_EPOCHS.format(round(epochs)), (words.SET_STEPS.format(steps), MANY,
                             {"run.steps": steps, "run.epochs": None})))  # fmt: skip
    wanted, free = disk(values, answer), free_disk(runs)
    if free is not None and free < wanted:
        text = words.DISK_SHORT.format(gigabytes(wanted), gigabytes(free), runs)
        found.append(Finding(text, stops=True))
    return found


def disk(values: Mapping[str, Any], answer: Mapping[str, Any]) -> float:
    """GB that a run would write at most: adapter files, states, previews, and some to spare."""
    parts, steps = (answer.get("fit") or {}).get("parts") or {}, answer.get("steps") or 0
    adapter = float(parts.get("adapter", 0))
    every, keep = (int(draft.get(values, f"save.{name}") or 0) for name in ("every", "keep_last"))
    files = steps // every if every else 0
    files = 1 + (min(files, keep) if keep else files)
    states = int(draft.get(values, "save.keep_states") or 2) + 1
    sampled = int(draft.get(values, "sample.every") or 0)
    previews = (steps // sampled if sampled else 1) * len(draft.get(values, "sample.prompts") or [])
    state = adapter + float(parts.get("optimizer", 0))
    return adapter * files + state * states + PREVIEW_GB * previews + SPARE_GB


def free_disk(folder: Path) -> float | None:
    """GB that are free where a folder is or will be; None where the system does not say."""
    there = next((one for one in (folder, *folder.parents) if one.is_dir()), None)
    try:
        return shutil.disk_usage(there).free / GIB if there else None
    except OSError:
        return None
