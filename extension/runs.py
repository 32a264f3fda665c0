"""Runs as a person keeps them: renamed with all their files, and thrown away into a bin beside the others."""

from __future__ import annotations

import time
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.folder import safe_name
from . import queue, words
from .store import Home, read_text, write


def rename(home: Home, folder: Path, new: str) -> Path:
    """Give a run another name, in its folder, its files and its configuration. UserError while it trains or waits."""
    _at_rest(home, folder)
    target = home.runs / safe_name(new)
    if target.exists():
        raise UserError(words.RUN_THERE.format(new))
    config = folder / "config.toml"
    if config.is_file():
        try:
            document = tomlkit.parse(read_text(config))
        except TOMLKitError as error:
            raise UserError(words.KEEPS_NAME.format(config, error)) from None
        document.setdefault("run", tomlkit.table())["name"] = new
        write(config, tomlkit.dumps(document))
    old = folder.name
    for path in [*folder.glob("*.safetensors"), *(folder / "checkpoints").glob("*.safetensors")]:
        if path.name.startswith((f"{old}.", f"{old}-")):
            path.rename(path.with_name(new + path.name[len(old) :]))
    folder.rename(target)
    return target


def to_bin(home: Home, folder: Path) -> Path:
    """Move a run into the bin; gives where it lies. UserError while it trains or waits."""
    _at_rest(home, folder)
    target = home.own / "bin" / f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    return target


def _at_rest(home: Home, folder: Path) -> None:
    if control.status(folder).live:
        raise UserError(words.IS_TRAINING.format(folder.name))
    if queue.place(queue.read(home), folder) is not None:
        raise UserError(words.IS_WAITING.format(folder.name))
