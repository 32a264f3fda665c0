"""``train --profile N`` and ``--memory-snapshot``: files in the run's folder that show where time and memory went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError

TRACE, SNAPSHOT = "profile.json.gz", "memory_snapshot.pickle"
HISTORY = 200_000
"""How many allocations the snapshot goes back."""


@dataclass(frozen=True)
class Profiler:
    steps: int = 0
    """How many of the run's first steps are traced; 0 traces none."""
    memory_snapshot: bool = False
    """Whether the history of the GPU's allocations is recorded."""

    def check(self, device: torch.device) -> None:
        """Raise a UserError where the device cannot be recorded so."""
        if self.steps < 0:
            raise UserError(f"--profile: {self.steps} is no number of steps; give 1 or more")
        if self.memory_snapshot and device.type != "cuda":
            raise UserError(f"--memory-snapshot: it needs a CUDA GPU, and this run is on {device.type}; leave it out")

    @contextmanager
    def recording(self, folder: Path, device: torch.device, log: Callable[[str], None]) -> Iterator[Callable[[], None]]:
        """Record the steps inside; yields what is to be called after each step.

        ``profile.json.gz`` opens in Perfetto, ``memory_snapshot.pickle`` at https://pytorch.org/memory_viz. Both are
        written also where the run ends with an error or is stopped before its N steps.
        """
        if self.memory_snapshot:
            torch.cuda.memory._record_memory_history(max_entries=HISTORY)
        trace = _Trace(self.steps, folder / TRACE, device, log) if self.steps else None
        try:
            yield trace.step_done if trace else lambda: None
        finally:
            if trace:
                trace.finish()
            if self.memory_snapshot:
                torch.cuda.memory._dump_snapshot(str(folder / SNAPSHOT))
                torch.cuda.memory._record_memory_history(enabled=None)
                log(f"memory snapshot: {folder / SNAPSHOT}")


class _Trace:
    def __init__(self, steps: int, path: Path, device: torch.device, log: Callable[[str], None]):
        self._path: Path | None = path
        kinds = torch.profiler.ProfilerActivity
        self._steps, self._done, self._log = steps, 0, log
        on_gpu = [kinds.CUDA] if device.type == "cuda" else []
        self._profile = torch.profiler.profile(activities=[kinds.CPU, *on_gpu], record_shapes=True)
        self._profile.start()

    def step_done(self) -> None:
        self._done += 1
        if self._done == self._steps:
            self.finish()

    def finish(self) -> None:
        if self._path is None:
            return
        path, self._path = self._path, None
        self._profile.stop()
        self._profile.export_chrome_trace(str(path))
        self._log(f"profile of {self._done} steps: {path}")
