"""Pictures drawn for comparing and choosing, in the run's own folder; the trainer draws them, beside the page."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from ..trainer import job
from .store import read_json, write, write_json

BASE = "base"
PICTURE = "step00000000_{:02d}.png"
_under_way: dict[str, threading.Thread] = {}
_failed: dict[str, str] = {}


@dataclass(frozen=True)
class Candidate:
    """An adapter at a strength, or the base model."""

    name: str
    """What people read: ``demo step 80 × 0.8``."""
    adapter: str | None
    strength: float = 1.0

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.adapter}|{self.strength:g}".encode()).hexdigest()[:16] if self.adapter else BASE


@dataclass(frozen=True)
class Sheet:
    """Prompts by candidates, in a folder."""

    folder: Path
    prompts: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    @property
    def total(self) -> int:
        return len(self.prompts) * len(self.candidates)

    def drawn(self) -> dict[str, dict[int, Path]]:
        """Candidate -> prompt number -> picture, of what is there."""
        places = {
            one.id: {i: self.folder / one.id / PICTURE.format(i) for i in range(len(self.prompts))}
            for one in self.candidates
        }
        return {name: {i: path for i, path in row.items() if path.is_file()} for name, row in places.items()}

    def done(self) -> int:
        return sum(map(len, self.drawn().values()))


def sheet(run_dir: Path, prompts: Sequence[str], candidates: Sequence[Candidate]) -> Sheet:
    """The sheet of these prompts; the same prompts later find the same pictures."""
    key = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12]
    return Sheet(run_dir / "compare" / key, tuple(prompts), tuple(candidates))


def latest(run_dir: Path) -> Sheet | None:
    """The sheet that was asked for last."""
    raw = read_json(run_dir / "compare" / "latest.json")
    try:
        candidates = [Candidate(c["name"], c["adapter"], float(c["strength"])) for c in raw["candidates"]]
        return sheet(run_dir, [str(one) for one in raw["prompts"]], candidates)
    except (KeyError, TypeError, ValueError):
        return None


def remember(run_dir: Path, one: Sheet) -> None:
    rows = [{"name": c.name, "adapter": c.adapter, "strength": c.strength} for c in one.candidates]
    write_json(run_dir / "compare" / "latest.json", {"v": 1, "prompts": list(one.prompts), "candidates": rows})


def configured(run_dir: Path, prompts: Sequence[str]) -> str:
    """The run's configuration with other prompts."""
    try:
        document = tomlkit.parse((run_dir / "config.toml").read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"run '{run_dir.name}': its config.toml cannot be read; choose another run") from None
    sample: Any = document.setdefault("sample", tomlkit.table())
    sample.pop("file", None)
    sample["prompts"] = list(prompts)
    return tomlkit.dumps(document)


def start(run_dir: Path, one: Sheet) -> None:
    """Draw what is missing, in a process of its own. Asking twice does it once."""
    name = str(one.folder)
    if busy(one):
        return
    _failed.pop(name, None)
    write(one.folder / "config.toml", configured(run_dir, one.prompts))
    rows = [{"adapter": c.adapter, "strength": c.strength, "folder": str(one.folder / c.id)} for c in one.candidates]
    write(one.folder / "cells.json", json.dumps(rows))

    def work() -> None:
        try:
            command = ["draw", str(one.folder / "config.toml"), "--cells", str(one.folder / "cells.json")]
            job.ask(command, timeout=24 * 3600)
        except ValueError as error:
            _failed[name] = str(error)

    thread = threading.Thread(target=work, daemon=True)
    _under_way[name] = thread
    thread.start()


def busy(one: Sheet) -> bool:
    thread = _under_way.get(str(one.folder))
    return bool(thread and thread.is_alive())


def trouble(one: Sheet) -> str:
    """Why drawing ended early; empty when it did not."""
    return _failed.get(str(one.folder), "")
