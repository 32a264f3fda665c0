"""``check --calibrate``: a few real steps, for their time."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from ..config import Config
from ..runs.folder import RunFolder
from ..training.build import build_session
from ..training.loop import Loop
from ..training.oom import fill_with_blocks
from ..training.progress_writer import ProgressWriter


def calibrate(config: Config, steps: int = 3) -> None:
    """Take steps of a run to learn how long they are, the first to warm up. Only that, and the caches, are kept."""
    data = config.data.model_copy(update={"cache_dir": config.data.cache_dir or str(Path(config.run.out) / "cache")})
    with tempfile.TemporaryDirectory() as aside:
        folder = RunFolder(Path(aside))
        with ProgressWriter(folder.path) as writer:
            session = build_session(config.model_copy(update={"data": data}), writer.log)
            loop = Loop(session, folder, writer, threading.Event())
            session.prepare(writer.progress)
            session.offload_encoders()
            for _ in range(steps):
                loop.step()
                loop.steps_done += 1
                if loop.steps_done == 2:
                    fill_with_blocks(session)
            loop.remember_step_time(least=steps)
