"""``dense export --comfy-lotus``: names against the layout's own rules, numbers in diffusers' form of Lotus' U-Net."""

from __future__ import annotations

from pathlib import Path

import diffusers
import ldm
import pytest
import safetensors.torch
import short_runs as runs
import tiny
import torch

from pixelkiln.trainer.adapters.mappings.unet import from_ldm
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands.dense_export import SWITCH
from pixelkiln.trainer.commands.dense_predict import load_adapter
from pixelkiln.trainer.dense import scenes
from pixelkiln.trainer.training.dense import predict_latents
from pixelkiln.trainer.training.loop import train

pytestmark = pytest.mark.slow


def sd2(folder: Path) -> Path:
    """A small model with SD 2.x's marks: text of width 1024 and linear projections."""
    words = tiny.clip_tokenizer()
    words.pad_token = "!"
    torch.manual_seed(21)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, cross_attention_dim=1024,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=4, use_linear_projection=True,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    made = tiny.Parts(unet, tiny.vae(), {"te": tiny.clip(words, 1024, 16)}, {"te": words}, scheduler,
                      "StableDiffusionPipeline", {"te": ""})  # fmt: skip
    return tiny.write(folder, made)


def trained(root: Path, model: Path, name: str, **flags) -> Path:
    scenes.write_scenes(root, 4, (64, 64))
    given = {
        "model.path": str(model), "run.name": name, "run.steps": 3, "run.precision": "fp32", "save.precision": "fp32",
        "data.path": str(root / "pictures"), "data.targets": str(root / "depth"), "data.unit": 0.001,
        "dense.task": "depth", "optimizer.learning_rate": 1e-2,
    }  # fmt: skip
    config = runs.config(root, {**given, **{key.replace("__", "."): value for key, value in flags.items()}})
    assert train(config) == 0
    return root / "runs" / name / f"{name}.safetensors"


def test_the_export_is_lotus_own_network_with_the_same_maps(tmp_path: Path):
    adapter = trained(tmp_path, sd2(tmp_path / "sd2"), "t")
    out = tmp_path / "lotus.safetensors"
    words = ["dense", "export", str(out), "--adapter", str(adapter), "--comfy-lotus"]
    assert main([*words, "--precision", "fp32"]) == 0
    exported = safetensors.torch.load_file(out)

    config = diffusers.UNet2DConditionModel.load_config(tmp_path / "sd2/unet")
    lotus = diffusers.UNet2DConditionModel.from_config(
        config, class_embed_type="projection", projection_class_embeddings_input_dim=SWITCH
    ).eval()
    plain = {key: value for key, value in lotus.state_dict().items() if not key.startswith("class_embedding")}
    labels = {name for name in exported if name.startswith("label_emb")}
    assert set(exported) - labels == set(ldm.unet(plain, layers=2))
    assert labels == {f"label_emb.0.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")}

    inner = {"label_emb.0.0": "class_embedding.linear_1", "label_emb.0.2": "class_embedding.linear_2"}
    back = {}
    for name, value in exported.items():
        path, _, leaf = name.rpartition(".")
        back[f"{inner.get(path) or from_ldm(path)}.{leaf}"] = value
    lotus.load_state_dict(back)

    loaded = load_adapter(adapter, None, lambda line: None, {"run.precision": "fp32"})
    predictor, latents = loaded.predictor, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    mine = predict_latents(predictor.model, predictor.system, latents, predictor.prompt)
    with predictor.model.adapter.off():
        bare = predict_latents(predictor.model, predictor.system, latents, predictor.prompt)
    hidden = predictor.prompt.hidden[:, :2].expand(2, -1, -1)  # LotusConditioning: start and end alone
    switch = torch.tensor([[1.0, 0.0]])
    labels = torch.cat([switch.sin(), switch.cos()], 1).expand(2, -1)
    with torch.no_grad():
        theirs = lotus(latents, 999, encoder_hidden_states=hidden, class_labels=labels).sample
    assert float((mine - bare).norm() / bare.norm()) > 1e-3, "the adapter has learned nothing"
    assert float((theirs - mine).norm() / (mine - bare).norm()) < 1e-4

    assert main(words) == 2  # the file is there
    assert main([*words, "--force"]) == 0
    assert {value.dtype for value in safetensors.torch.load_file(out).values()} == {torch.float16}


def test_what_lotus_cannot_be_is_one_line(tmp_path: Path, capsys):
    plain = trained(tmp_path, runs.model(tmp_path / "sd15"), "sd15")
    out = str(tmp_path / "lotus.safetensors")
    assert main(["dense", "export", out, "--adapter", str(plain), "--comfy-lotus"]) == 2
    assert "its base is Stable Diffusion 1.x; LotusD has the layout of SD 2.x" in capsys.readouterr().err
    far = trained(tmp_path, runs.model(tmp_path / "sd15"), "far", dense__space="depth")
    assert main(["dense", "export", out, "--adapter", str(far), "--comfy-lotus"]) == 2
    assert "it predicts depth (depth), and ComfyUI's Lotus Depth shows disparity" in capsys.readouterr().err
    assert main(["dense", "export", str(tmp_path / "x.ckpt"), "--adapter", str(plain), "--comfy-lotus"]) == 2
    assert "models are written as .safetensors" in capsys.readouterr().err
