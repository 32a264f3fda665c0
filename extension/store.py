"""Where the interface keeps what it knows: beside the runs, in small files, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.errors import UserError
from ..trainer.runs.files import make_folder, write_atomic
from ..trainer.runs.process import wait_for_lock
from . import words

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

    @property
    def models(self) -> Path:
        """Base models and taggers that the page fetched."""
        return self.runs / "models"

    def make(self) -> None:
        """UserError when the folder cannot be written."""
        try:
            for folder in (self.own, self.thumbnails):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.own / f".write{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"{self.runs}: it cannot be written ({error.strerror}); name another folder with --runs"
            ) from None


@contextmanager
def locked(path: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock beside a file. UserError when another process keeps it longer than ``patience`` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(path, patience):
        yield


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one piece, in a folder that is made where missing. UserError when it cannot be written."""
    make_folder(path.parent)
    write_atomic(path, content)


def read_text(path: Path) -> str:
    """A text that people may have written. UserError when it is missing, closed, or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(words.FILE_UNREADABLE.format(path, error.strerror)) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {words.NOT_UTF8}") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    write(path, json.dumps(value, ensure_ascii=False, indent=1))
