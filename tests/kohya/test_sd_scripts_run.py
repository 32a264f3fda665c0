"""Ten steps on a small SD1.5 from Kohya's own TOML and folders, beside the same ten steps of sd-scripts.

sd-scripts' own ``train_network.py`` ran with these values, on the same weights, pictures, captions and adapter, and was
recorded once (``sd_scripts_run.json.gz``). Pinned in it: the order of the pictures, noise and timesteps are ours;
latents are the posterior's mean where it would draw from the posterior. Not pinned, so compared: what the file means,
folders and repeats, buckets, captions, tokens, text encoder with clip_skip, latents, the noisy input, U-Net with
adapters on it and on the text encoder, min-SNR, the weight of regularisation pictures, gradient clipping, learning
rates and their warm-up, AdamW.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import sd15_small
import torch
from sample_data import picture
from short_runs import events

from pixelkiln.trainer.config import load
from pixelkiln.trainer.kohya import entrance
from pixelkiln.trainer.training.build import build_model
from pixelkiln.trainer.training.loop import train

GOLDEN: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "golden" / "sd_scripts_run.json.gz").read_bytes())
)
THEIRS = """
pretrained_model_name_or_path = "model"
train_data_dir = "data"
reg_data_dir = "reg"
output_dir = "out"
output_name = "t"
resolution = "128,128"
enable_bucket = true
min_bucket_reso = 64
max_bucket_reso = 256
train_batch_size = 2
max_train_steps = 10
caption_extension = ".txt"
network_module = "networks.lora"
network_dim = 4
network_alpha = 2.0
network_weights = "start.safetensors"
unet_lr = 1e-3
text_encoder_lr = [5e-4]
learning_rate = 1e-4
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 3
min_snr_gamma = 5.0
noise_offset = 0.1
prior_loss_weight = 0.5
clip_skip = 2
seed = 7
sdpa = true
max_data_loader_n_workers = 0
mixed_precision = "no"
"""


@pytest.mark.slow
def test_ten_steps_as_sd_scripts_takes_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # as sd-scripts, relative paths are the working folder's
    model = sd15_small.write(tmp_path / "model")
    files = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    weights = [safetensors.torch.load_file(model / file) for file in files]
    sizes = [sum(float(v.double().abs().sum()) for v in some.values() if v.is_floating_point()) for some in weights]
    assert sizes == pytest.approx(GOLDEN["weights"], rel=1e-7)  # else PyTorch's generator has changed
    for i in range(4):
        picture(tmp_path / "data" / "3_anna" / f"{i}.png", (128, 128), i, f"a red cat, number {i}")
    for i in range(3):
        picture(tmp_path / "data" / "3_anna" / f"w{i}.png", (256, 64), 10 + i, f"anna in a house, {i} trees")
    for i in range(2):
        picture(tmp_path / "reg" / "1_cat" / f"r{i}.png", (128, 128), 20 + i, f"a cat {i}")
    flags = {"model.path": str(model), "data.path": "data", "adapter.text_encoders": True, "adapter.rank": 4,
             "adapter.alpha": 2.0, "run.device": "cpu", "run.precision": "fp32"}  # fmt: skip
    start = started(build_model(load(flags=flags), print)[0].adapter.for_file(torch.float32))
    safetensors.torch.save_file(start, tmp_path / "start.safetensors")
    (tmp_path / "theirs.toml").write_text(THEIRS, "utf-8")
    given, _ = entrance.take(["--config_file", "theirs.toml", "--run.device=cpu"])
    config, _ = entrance.load(given)
    assert train(config) == 0

    losses = [e["loss"] for e in events(config) if e["kind"] == "step"]
    assert losses == pytest.approx(GOLDEN["losses"], abs=1e-5)
    saved = safetensors.torch.load_file(tmp_path / "out" / "t" / "t.safetensors")
    assert {name for name in saved if not name.endswith(".alpha")} == set(GOLDEN["tensors"])
    moved = []
    for name, (norm, *some) in GOLDEN["tensors"].items():
        flat = saved[name].flatten()
        assert float(flat.norm()) == pytest.approx(norm, abs=1e-4), name
        assert [float(flat[at]) for at in (0, len(flat) // 2, -1)] == pytest.approx(some, abs=1e-4), name
        moved.append(float((flat - start[name].flatten()).abs().max()))
    assert sorted(moved)[len(moved) // 2] > 1e-3  # far more than the tolerance was learned


def started(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter to begin with, as random as its tensors' names."""
    found = {}
    for name, value in tensors.items():
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        found[name] = value if name.endswith("alpha") else noise * (0.3 if "lora_down" in name else 0.05)
    return found
