"""``check --calibrate``: a few real steps, for their time."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from ..config import Config
from ..runs.folder import RunFolder
from ..training.build import build
from ..training.loop import Loop
from ..training.oom import settle
from ..training.progress_writer import Writer


def calibrate(config: Config, steps: int = 3) -> None:
    """Take steps of a run to learn how long they are, the first to warm up. Only that, and the caches, are kept."""
    data = config.data.model_copy(update={"cache_dir": config.data.cache_dir or str(Path(config.run.out) / "cache")})
    with tempfile.TemporaryDirectory() as aside:
        folder = RunFolder(Path(aside))
        with Writer(folder.path) as writer:
            parts = build(config.model_copy(update={"data": data}), writer.say)
            loop = Loop(parts, folder, writer, threading.Event())
            loop.parts.prepare(writer.progress)
            loop.parts.free_encoders()
            for _ in range(steps):
                loop.step()
                loop.at += 1
                settle(loop)
            loop.remember_pace()
