"""Where the interface keeps what it knows: beside the runs, in small files, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.data import pairs_file
from ..trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Home:
    """The folder of the runs, and what the interface puts beside them."""

    runs: Path

    @property
    def own(self) -> Path:
        return self.runs / ".ui"

    @property
    def draft(self) -> Path:
        return self.own / "draft.toml"

    @property
    def queue(self) -> Path:
        return self.own / "queue.json"

    @property
    def thumbnails(self) -> Path:
        return self.own / "thumbnails"

    @property
    def settings(self) -> Path:
        return self.own / "settings.json"

    @property
    def data(self) -> Path:
        """Pictures and pairs that come from the page."""
        return self.runs / "data"

    def make(self) -> None:
        """ValueError when the folder cannot be written."""
        try:
            for folder in (self.own, self.thumbnails):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.own / f".write{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            told = f"{self.runs}: it cannot be written ({error.strerror}); name another folder with --runs"
            raise UserError(told) from None


@contextmanager
def locked(path: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock beside a file. ValueError when another process keeps it longer than ``patience`` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pairs_file.locked(path, patience):
        yield


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one piece. ValueError when it cannot be written; the old one is then untouched."""
    aside = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise UserError(f"{path}: it cannot be written ({error.strerror}); what was there before is kept") from None


def start_beside(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one; what it says is added to the log."""
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as out:
        return subprocess.Popen[bytes](
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **apart
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    write(path, json.dumps(value, ensure_ascii=False, indent=1))
