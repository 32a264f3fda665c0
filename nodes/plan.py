"""What the Train and Check nodes ask for, as the trainer's own flags. Knows nothing of ComfyUI.

A workflow may come from anybody, so its free options can neither name files nor code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
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
        told = [self.preset.read_text(encoding="utf-8"), *self.flags]
        for path in self.files:
            told += [str(path), *(f"{p.name} {p.stat().st_mtime_ns} {p.stat().st_size}" for p in _all(path))]
        return hashlib.sha256("\0".join(told).encode()).hexdigest()


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
    """Flags of the values that say something: neither None, nor '' nor 0 of a number that means 'as in the preset'."""
    return [flag(name, value) for name, value in values.items() if value is not None and value != "" and value != 0]


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
    """Lines ``adapter.kind = "dora"`` as flags. ValueError for what is no option, names a file, or code."""
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
