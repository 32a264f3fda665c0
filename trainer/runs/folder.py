"""The folder of a run: its interface to every host. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


def safe_name(name: str) -> str:
    """Return ``name`` where it can be a folder's or a file's name on any system; raises UserError otherwise."""
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)
    if reserved or not re.fullmatch(r"(?![.\s])[^\\/:*?\"<>|\x00-\x1f\x7f]{1,100}(?<![.\s])", name):
        raise UserError(
            f"name: {name[:120]!r} cannot be a folder's name everywhere; use up to 100 letters, digits, spaces, - and _"
        )
    return name


OF_HOSTS = ("candidates", "compare", "pairs.json")
"""What hosts keep in a run's folder: pictures drawn with its adapter, votes on them, and where its pairs lie."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files: its interface to the page, the nodes and people."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def surrogate(self) -> Path:
        """The surrogate of the decoder that the run uses, where it uses one."""
        return self.path / "surrogate.safetensors"

    @property
    def before_after(self) -> Path:
        return self.path / "before_after.png"

    @property
    def final(self) -> Path:
        return self.path / f"{self.path.name}.safetensors"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{self.path.name}-step{step:08d}.safetensors"

    def epoch(self, epoch: int) -> Path:
        """The adapter after ``epoch`` epochs."""
        return self.checkpoints / f"{self.path.name}-{epoch:06d}.safetensors"

    def make(self) -> None:
        """Make all folders. Raises UserError where they cannot be written to."""
        try:
            for folder in (self.path, self.samples, self.checkpoints, self.state, self.control):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".write"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"run.out: {self.path} cannot be written ({error.strerror}); choose a folder that you may write to"
            ) from None

    def set_aside(self) -> Path | None:
        """Move the states, checkpoints and pictures of an earlier run, and what hosts keep of it, into a new folder
        ``earlier``, ``earlier-2`` and so on, and return it; None where there are none."""
        old = [path for path in (self.state, self.checkpoints, self.samples) if any(path.iterdir())]
        old += [path for path in (self.before_after, *(self.path / name for name in OF_HOSTS)) if path.exists()]
        if not old:
            return None
        names = ("earlier", *(f"earlier-{number}" for number in range(2, 10_000)))
        earlier = next(folder for name in names if not (folder := self.path / name).exists())
        try:
            earlier.mkdir()
            for path in old:
                path.replace(earlier / path.name)
        except OSError as error:
            raise UserError(
                f"run.name: what an earlier run left in {self.path} cannot be moved to {earlier.name} "
                f"({error.strerror}); close what has it open, or choose another name"
            ) from None
        self.make()
        return earlier

    def take_requests(self) -> set[str]:
        """Remove and return the requests in ``control/``: stop, save, sample."""
        asked = (
            {p.name for p in self.control.iterdir()} & {"stop", "save", "sample"} if self.control.is_dir() else set()
        )
        for name in asked:
            (self.control / name).unlink(missing_ok=True)
        return asked
