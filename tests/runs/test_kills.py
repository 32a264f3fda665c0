"""Runs killed by SIGKILL at any moment, also in the middle of writing: everything on the disk stays readable, the run
goes on from its last state, and arrives where it would have arrived.

Long form: ``pytest -m nightly -s tests/runs/test_kills.py``, 100 runs
(``PIXELKILN_KILLS=100 9``: their number and the seed).
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import short_runs as runs
from fork_server import Server
from PIL import Image
from safetensors import safe_open

from pixelkiln.trainer.config import Config
from pixelkiln.trainer.runs import control
from pixelkiln.trainer.training import checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked")
STEPS = 8
RUNS, SEED = (int(word) for word in os.environ.get("PIXELKILN_KILLS", "100 9").split())
FLAGS = {
    "run.steps": STEPS, "run.batch": 2, "save.state_every": 1, "save.every": 2, "save.ema": 0.9, "save.keep_last": 2,
    "data.flip": True, "data.caption_dropout": 0.2, "sample.prompts": ["a red cat"], "sample.steps": 1,
    "sample.every": 3, "data.validation_split": 0.25, "validation.every": 4, "run.precision": "fp32",
    "loss.pixel.mode": "mixed", "loss.pixel.probability": 0.5, "optimizer.kind": "AdamW",
}  # fmt: skip


class Kills:
    """One uninterrupted run, and many that are not."""

    def __init__(self, root: Path, server: Server):
        self.root, self.server, self.log = root, server, root / "log"
        self.whole = self.config("whole")
        assert self.train(self.whole, count_in=str(root / "changes")) == 0, self.log.read_text()
        self.changes = int((root / "changes").read_text())
        self.steps, self.files = last_steps(self.whole), weights(self.whole)
        assert len(self.steps) == STEPS and len(self.files) == 2

    def config(self, name: str) -> Config:
        return runs.config(self.root, {**FLAGS, "run.name": name})

    def train(self, config: Config, *words: str, **hooks: object) -> int:
        file = self.root / f"{config.run.name}.toml"
        file.write_text(config.to_toml(), "utf-8")
        return self.server.run(["train", file, *words], self.log, **hooks)

    def survives(self, name: str, **hooks: float) -> bool:
        """Kill a run, look at what is left, go on with it; whether it was killed before its end."""
        config = self.config(name)
        code = self.train(config, **hooks)
        assert code in (0, -9), self.log.read_text()
        folder = Path(config.run.out) / name
        self.look(folder)
        kept = [int(path.stem[4:]) for path in checkpoint.states(folder / "state")]
        done = len(last_steps(config)) if (folder / "events.jsonl").exists() else 0
        if kept:
            assert kept[-1] >= done - 1, "a state after every step"
        assert self.train(config, *["--resume"] * bool(kept)) == 0, self.log.read_text()
        assert last_steps(config) == self.steps
        assert weights(config) == self.files
        assert not list(folder.rglob("*.tmp"))
        if kept:
            *_, start = [e for e in runs.events(config) if e["kind"] == "start"]
            assert start["step"] == kept[-1], "no step before the state is trained again"
        return code == -9

    @staticmethod
    def look(folder: Path) -> None:
        """Every file that has its own name is whole."""
        for path in folder.rglob("*"):
            if not path.is_file() or path.name.endswith(".tmp"):
                continue
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
            elif path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
        read, _ = control.events(folder)
        assert all("kind" in event for event in read)
        assert not control.status(folder).live


def last_steps(config: Config) -> dict[int, tuple[float, float]]:
    """Loss and gradient norm of each step, as it was taken last."""
    found, _ = control.events(Path(config.run.out) / config.run.name)
    return {e["step"]: (e["loss"], e["grad_norm"]) for e in found if e["kind"] == "step"}


def weights(config: Config) -> list[bytes]:
    """Of the final adapter and its average."""
    name = config.run.name
    folder = Path(config.run.out) / name
    files = [(folder / f"{name}{end}.safetensors").read_bytes() for end in ("", "-ema")]
    return [file[8 + int.from_bytes(file[:8], "little") :] for file in files]


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    with Server() as server:
        yield Kills(tmp_path_factory.mktemp("kills"), server)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "when"), [("kill_at", 60), ("torn_at", 12)])
def test_a_killed_run_goes_on(kills, how, when):
    assert kills.survives(how, **{how: when})


@pytest.mark.nightly
def test_a_hundred_killed_runs_go_on(kills):
    """As many as asked are killed before their end; those that were quicker are compared too, and not counted."""
    rng, killed, ended = random.Random(SEED), 0, 0
    while killed < RUNS:
        how = ("kill_at", "torn_at", "kill_after")[(killed + ended) % 3]
        when = {"kill_at": rng.randint(1, kills.changes), "torn_at": rng.randint(1, 15), "kill_after": rng.random()}[
            how
        ]
        was = kills.survives(f"run{killed + ended:03d}", **{how: when})
        killed, ended = killed + was, ended + (not was)
        print(f"{killed} of {RUNS} killed, {ended} ended before: {how} {when:.3g}", flush=True)
        assert ended <= RUNS, "most runs are over before they are killed"
