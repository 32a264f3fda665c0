"""What the Train and Check nodes ask for, as the trainer's own flags. Knows nothing of ComfyUI.

A workflow may come from anybody, so its free options can neither name files nor code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.errors import UserError

TABLES = (
    "run",
    "adapter",
    "data",
    "loss",
    "objective",
    "optimizer",
    "schedule",
    "noise",
    "memory",
    "sample",
    "save",
    "validation",
)
TAKEN = (
    "run.name",
    "run.out",
    "data.path",
    "data.pairs",
    "data.ratings",
    "data.sets",
    "sample.file",
    "adapter.init_from",
)
"""Options that have an input of their own, or none in a workflow."""


@dataclass(frozen=True)
class Request:
    """A training that somebody wants."""

    preset: Path
    run_dir: Path
    flags: tuple[str, ...]
    files: tuple[Path, ...]
    """What else the result depends on: datasets, base model, adapter to start from."""

    def key(self) -> str:
        """Equal for equal trainings: of the preset's text, the flags and the files' names, times and sizes."""
        parts = [self.preset.read_text(encoding="utf-8"), *self.flags]
        for path in self.files:
            parts += [str(path), *(f"{p.name} {p.stat().st_mtime_ns} {p.stat().st_size}" for p in _all(path))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _all(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix not in (".lock", ".part", ".npz"))


def flag(name: str, value: Any) -> str:
    """``--adapter.rank=16``; texts and lists as TOML reads them."""
    if isinstance(value, Path):
        value = str(value)
    return f"--{name}={json.dumps(value, ensure_ascii=False)}"


def flags(values: Mapping[str, Any]) -> list[str]:
    """Flags of the values that are given: neither None nor ''."""
    return [flag(name, value) for name, value in values.items() if value is not None and value != ""]


def device(preset: str, flags: Sequence[str]) -> str:
    """The name of the queue for the device that a run trains on, from its preset's text and its flags."""
    given = [one.partition("=")[2] for one in flags if one.startswith("--run.device=")]
    written = re.search(r"(?m)(?:^|[{,\s])device\s*=\s*([\"'][^\"'\n]*[\"'])", preset)
    name = (given or [written[1] if written else ""])[-1].strip().strip("\"'")
    if name == "cpu":
        return name
    number = re.search(r"\d+$", name)
    return f"gpu{number[0] if number else 0}"


PURPOSES = ("character", "style", "concept", "detail", "preference")
BY_CHECKPOINT = {f"{purpose} (by checkpoint)": purpose for purpose in PURPOSES}
"""Choices that name no preset: the checkpoint's family and the GPU's memory do."""
_NEAR = {"concept": "character", "detail": "style"}


def suiting(purpose: str, family: str, memory_gb: float, names: Iterable[str]) -> str | None:
    """The preset FAMILY-PURPOSE-Ngb with the largest N that fits in ``memory_gb``, else the smallest; None without one.

    A family without presets for a purpose lends those of the nearest one.
    """
    for wanted in (purpose, _NEAR.get(purpose)):
        matches = (re.fullmatch(rf"{family}-{wanted}-(\d+)gb", name) for name in names)
        sizes = sorted((int(match[1]), match[0]) for match in matches if match)
        if sizes:
            fitting = [name for size, name in sizes if size <= memory_gb + 0.5]
            return fitting[-1] if fitting else sizes[0][1]
    return None


_INPUTS = {
    "run.name": "name", "run.steps": "steps", "run.batch": "batch", "run.seed": "run_seed", "model.path": "checkpoint",
    "adapter.rank": "rank", "adapter.init_from": "start_from", "optimizer.learning_rate": "learning_rate",
    "data.resolution": "resolution", "data.trigger": "trigger", "save.trigger": "trigger", "data.path": "dataset_name",
    "data.pairs": "dataset_name", "data.ratings": "dataset_name", "sample.prompts": "prompts",
}  # fmt: skip


def in_inputs(line: str) -> str:
    """A line of the trainer with its options called as the node's inputs are, where there is one."""
    names = "|".join(map(re.escape, _INPUTS))
    line = re.sub(rf"(?<![\w.])(?:--)?({names})(?![\w.])", lambda match: _INPUTS[match[1]], line)
    return re.sub(r"(?<!\S)--(?=[a-z_]+\.[a-z])", "", line)


def dataset_flags(folder: Path, learn_from: str) -> list[str]:
    """Which of pictures, pairs and ratings a folder is; what the preset names instead is switched off."""
    files = {"pairs": "pairs.jsonl", "ratings": "ratings.jsonl"}
    if learn_from == "auto":
        learn_from = next((kind for kind, name in files.items() if (folder / name).is_file()), "pictures")
    elif learn_from in files and not (folder / files[learn_from]).is_file():
        raise UserError(
            f"dataset: {folder.name} has no {files[learn_from]}; choose a folder that Preference or Thumbs wrote"
        )
    chosen = "path" if learn_from == "pictures" else learn_from
    return [flag(f"data.{name}", folder if name == chosen else "") for name in ("path", "pairs", "ratings")]


def free_options(text: str) -> list[str]:
    """Lines ``adapter.kind = "dora"`` as flags. UserError for what is no option, names a file, or code."""
    found = []
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"(?:--)?([a-z_]+(?:\.[a-z0-9_]+)+)\s*=\s*(.+)", line)
        if not match or match[1].split(".")[0] not in TABLES:
            raise UserError(f"options: '{line}' is not understood; write a line such as adapter.rank = 32")
        name, value = match[1], match[2].strip()
        if name in TAKEN or name.startswith("data.sets"):
            raise UserError(f"options: {name} cannot be set here; use the node's own input, or a preset file")
        if re.search(r"[/\\]|\.\.|(?:^|[\"'])\s*(?:~|[A-Za-z]:)", value) or (name == "optimizer.kind" and "." in value):
            raise UserError(
                f"options: {name} may name neither a file nor code in a workflow; put it into a preset file"
            )
        found.append(f"--{name}={value}")
    return found


def prompt_list(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def loss_map(events: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The losses of a run's events, as ComfyUI's loss graph wants them; a resumed step counts once."""
    by_step = {
        e["step"]: float(e["loss"])
        for e in events
        if e.get("kind") == "step" and isinstance(e.get("loss"), (int, float))
    }
    return {"loss": [by_step[step] for step in sorted(by_step)]}
