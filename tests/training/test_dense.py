"""Dense runs: what is trained, what is saved, and that hosts' own code makes the same maps of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import short_runs as runs
import torch
from PIL import Image

from pixelkiln.trainer.config import Config
from pixelkiln.trainer.data.progress import silent
from pixelkiln.trainer.dense import maps
from pixelkiln.trainer.dense.options import TIMESTEP, DenseOptions
from pixelkiln.trainer.training import checkpoint
from pixelkiln.trainer.training.build import build_model, build_session
from pixelkiln.trainer.training.dense import DensePrediction, Predictor, predict_latents
from pixelkiln.trainer.training.loop import train
from pixelkiln.trainer.training.session import Session

FP32 = {"run.precision": "fp32", "save.precision": "fp32", "optimizer.learning_rate": 3e-3, "run.steps": 5}


def depths(root: Path, holes: float = 0.0) -> Path:
    """A depth of each picture of ``runs.pictures``: steps of 8 pixels, with some blocks of holes."""
    folder, rng = root / "depth", np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "pictures").glob("*.png")):
        grey = np.asarray(Image.open(path).convert("L").resize((8, 8)), np.float32)
        blocks = np.where(rng.random((8, 8)) < holes, 0, 1 + grey / 50)
        np.save(folder / f"{path.stem}.npy", np.kron(blocks, np.ones((8, 8))).astype(np.float32))
    return folder


def config(root: Path, flags: Mapping[str, Any] | None = None, name: str = "sd15", holes: float = 0.0) -> Config:
    runs.pictures(root / "pictures")
    base = {"dense.task": "depth", "data.targets": str(depths(root, holes))}
    return runs.config(root, {**base, **(flags or {})}, name)


def trained(config: Config) -> Session:
    """Train, and give the session with what was trained, as --resume would have it."""
    assert train(config) == 0
    session = build_session(config, lambda line: None)
    session.load_state(*checkpoint.load_state(Path(config.run.out) / config.run.name / "state"))
    session.dataset.prepare(silent)
    return session


def final(config: Config) -> Path:
    return Path(config.run.out) / config.run.name / f"{config.run.name}.safetensors"


def of_trainer(session: Session) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(picture latents, empty prompt, predicted map latents) of the first batch's maps."""
    system, batch = session.model.system, session.dataset.batch(0)
    assert isinstance(system, DensePrediction) and batch.conditioning is not None
    latents = batch.latents[: len(batch) // 2]
    return latents, batch.conditioning.hidden[:1], predict_latents(session.model, system, latents, batch.conditioning)


def test_file_is_a_lora_that_diffusers_reads_with_the_switch_in_it(tmp_path: Path) -> None:
    """Fold equals the switch's network, through diffusers' own pipeline, to 1e-5 in float32."""
    import diffusers

    c = config(tmp_path, {**FP32, "model.path": str(runs.model(tmp_path / "sd15"))})
    session = trained(c)
    latents, prompt, mine = of_trainer(session)
    switch = session.model.system.modules["switch"]
    assert float(switch(torch.tensor([False])).abs().max()) > 1e-3, "the switch has not learned"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(c.model.path, safety_checker=None)
    bare = pipe.unet(latents, TIMESTEP, encoder_hidden_states=prompt.expand(len(latents), -1, -1)).sample
    pipe.load_lora_weights(str(final(c)))
    with torch.no_grad():
        theirs = pipe.unet(latents, TIMESTEP, encoder_hidden_states=prompt.expand(len(latents), -1, -1)).sample
    assert float((theirs - mine).norm() / (mine - bare).norm()) < 1e-5
    log = (Path(c.run.out) / c.run.name / "log.txt").read_text("utf-8")
    assert "diffusers loads it with the trained effect" in log and "warning" not in log


@pytest.mark.parametrize("precision, most", [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_predictor_with_the_file_equals_the_run(tmp_path: Path, precision: str, most: float) -> None:
    """Files of 16 bits are off by their rounding: the bounds are those that the documentation states."""
    c = config(tmp_path, {**FP32, "save.precision": precision})
    session = trained(c)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mine = Predictor(session.model)(pictures)
    plain = c.changed({"data.targets": None}).model_copy(update={"dense": None})
    model, _ = build_model(plain, lambda line: None, str(final(c)))
    theirs = Predictor(model, DenseOptions())(pictures)
    with model.adapter.off():
        bare = Predictor(model, DenseOptions())(pictures)
    assert float((theirs - mine).norm() / (mine - bare).norm()) < most
    assert maps.decode(theirs, "depth").shape == (2, 64, 64)


def test_header_says_how_to_run_it(tmp_path: Path) -> None:
    c = config(tmp_path, {**FP32, "run.steps": 1, "save.minimal": True})
    assert train(c) == 0
    with safetensors.safe_open(final(c), "pt") as file:
        header, names = file.metadata(), set(file.keys())
    import json

    assert json.loads(header["pixelkiln.dense"]) == {
        "task": "depth", "space": "disparity", "quantiles": [0.02, 0.98], "timestep": 999, "prediction": "sample",
        "prompt": "", "tokens": 77, "resolution": [64, 64], "task_switch": "embedding",
    }  # fmt: skip
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert all(name.startswith("lora_unet_") and name.endswith(ends) for name in names)
    for layer in ("conv_in", "conv_out", "time_embedding_linear_1", "time_embedding_linear_2"):
        assert f"lora_unet_{layer}.alpha" in names, layer
