"""Small real runs for tests: a tiny model, a few pictures, a configuration, and the run's events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from PIL import Image

from pixelkiln.trainer.config import Config, load
from pixelkiln.trainer.training import loop
from pixelkiln.trainer.training.loop import train

DROPOUT = {"adapter.dropout": 0.2, "adapter.rank_dropout": 0.2, "adapter.module_dropout": 0.2}


def pictures(folder: Path, count: int = 8, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """Pictures of coloured blocks with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colors = ["red", "green", "blue", "sky", "ink"]
    for i in range(count):
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(folder / f"p{i:02d}.png")
        (folder / f"p{i:02d}.txt").write_text(f"a {colors[i % 5]} cat {i}", "utf-8")
    return folder


def pairs(folder: Path, count: int = 6) -> Path:
    """Pairs: dark pictures chosen over bright ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    rows = []
    for i in range(count):
        blocks = rng.integers(0, 100, (4, 4, 3), dtype=np.uint8)
        for role, offset in (("chosen", 0), ("rejected", 140)):
            shown = Image.fromarray(blocks + np.uint8(offset)).resize((64, 64), Image.Resampling.NEAREST)
            shown.save(folder / f"{i}_{role}.png")
        rows.append({"prompt": f"a cat {i}", "chosen": f"{i}_chosen.png", "rejected": f"{i}_rejected.png"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def depths(root: Path, holes: float = 0.0) -> Path:
    """A depth of each picture in ``root / "pictures"``: steps of 8 pixels, a share of them holes."""
    folder, rng = root / "depth", np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "pictures").glob("*.png")):
        grey = np.asarray(Image.open(path).convert("L").resize((8, 8)), np.float32)
        blocks = np.where(rng.random((8, 8)) < holes, 0, 1 + grey / 50)
        np.save(folder / f"{path.stem}.npy", np.kron(blocks, np.ones((8, 8))).astype(np.float32))
    return folder


def model(folder: Path, name: str = "sd15") -> Path:
    """A tiny model's folder, written once."""
    if not (folder / "model_index.json").exists():
        tiny.write(folder, tiny.parts(name))
    return folder


def config(root: Path, flags: Mapping[str, Any] | None = None, name: str = "sd15", data: str = "data.path") -> Config:
    """A short run on a tiny model in fp64, plain AdamW, no previews; a dense run of depth has targets with holes."""
    source = {"data.path": root / "pictures", "data.pairs": root / "pairs"}[data]
    if not source.exists():
        (pictures if data == "data.path" else pairs)(source)
    base = {
        "run.out": str(root / "runs"),
        "run.name": "t",
        "run.steps": 6,
        "run.batch": 4,
        "run.precision": "fp64",
        "run.device": "cpu",
        "model.path": str(model(root / name, name)),
        data: str(source),
        "data.resolution": 64,
        "adapter.rank": 4,
        "optimizer.learning_rate": 1e-3,
        "save.state_every": 0,
    }
    if flags and flags.get("dense.task") == "depth" and "data.targets" not in flags:
        base["data.targets"] = str(depths(root, holes=0.2))
    return load(flags={**base, **(flags or {})})


def events(config: Config) -> list[dict[str, Any]]:
    path = Path(config.run.out) / config.run.name / "events.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def trajectory(config: Config, resume: bool = False) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every step after a whole run."""
    assert train(config, resume=resume) == 0
    return steps(config)


def steps(config: Config) -> list[tuple[float, float]]:
    return [(e["loss"], e["grad_norm"]) for e in events(config) if e["kind"] == "step"]


def stop_after(monkeypatch, count: int) -> None:
    """Ask for a stop as Ctrl-C does, after ``count`` steps."""
    step = loop.Loop.step

    def counted(self):
        facts = step(self)
        if self.steps_done + 1 == count:
            self.stop_requested.set()
        return facts

    monkeypatch.setattr(loop.Loop, "step", counted)
