"""``model.vae_precision``: in which precision the autoencoder encodes and decodes."""

from __future__ import annotations

import pytest
import short_runs as runs
import torch

from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.training.build import build_model

BF16 = {"run.precision": "bf16"}


def test_float32_has_the_latents_of_a_float32_model_and_bfloat16_has_not(tmp_path):
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = {}
    for given in ("fp32", "bf16", "auto"):
        config = runs.config(tmp_path, {**BF16, "model.vae_precision": given})
        model, dtype = build_model(config, lambda line: None)
        wanted = torch.float32 if given == "fp32" else torch.bfloat16
        assert dtype == next(model.family.vae.parameters()).dtype == wanted
        assert next(model.family.denoiser.conv_in.parameters()).dtype == torch.bfloat16
        latents[given] = model.family.encode_pixels(pixels)
        latents[f"{given} key"] = model.family.fingerprints["vae"]
    whole = load(config.model, torch.float32).encode_pixels(pixels)
    assert torch.equal(latents["fp32"], whole) and torch.equal(latents["bf16"], latents["auto"])
    off = float((latents["bf16"] - whole).norm() / whole.norm())
    assert 1e-3 < off < 0.1
    assert latents["auto key"] == latents["bf16 key"] != latents["fp32 key"]  # a cache of their own


@pytest.mark.parametrize("name", ["sdxl", "sd3-medium"])
def test_float16_is_refused_for_autoencoders_that_overflow(tmp_path, name):
    config = runs.config(tmp_path, {"run.precision": "fp16", "model.vae_precision": "fp16"}, name)
    with pytest.raises(ValueError, match=r"model\.vae_precision: the autoencoder of SD.* overflows in fp16; set auto"):
        runs.trajectory(config)


def test_float16_is_read_as_float16_where_it_is_given(tmp_path):
    options = runs.config(tmp_path).model
    for given, wanted in (("fp16", torch.float16), ("auto", torch.float32)):
        family = load(options.model_copy(update={"vae_precision": given}), torch.float16)
        assert next(family.vae.parameters()).dtype == wanted


@pytest.mark.parametrize(("given", "dtype"), [("auto", torch.bfloat16), ("fp32", torch.float32)])
def test_pixel_losses_decode_in_it(tmp_path, given, dtype):
    flags = {**BF16, "model.vae_precision": given, "loss.pixel.mode": "mixed", "run.steps": 1}
    config = runs.config(tmp_path, flags)
    assert len(runs.trajectory(config)) == 1
    model, found = build_model(config, lambda line: None)
    assert found == dtype and next(model.family.vae.decoder.parameters()).dtype == dtype
