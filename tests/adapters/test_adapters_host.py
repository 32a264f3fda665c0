"""Our files in a real ComfyUI: COMFYUI_PATH names a checkout, COMFYUI_PYTHON the Python that runs it (this one, else).

ComfyUI's own LoraLoader patches networks of ComfyUI's own classes that hold our base weights; the patched weights must
be those of our trained model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ldm
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelkiln.trainer.adapters import files, keys
from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions

pytestmark = pytest.mark.host
CASES = [
    (family, kind) for family in ("sd15", "sdxl", "sd3-medium", "sd3.5-medium", "sd3.5-large") for kind in keys.KINDS
]
ROOT = Path(__file__).resolve().parents[2]


def denoiser(family: str) -> Any:
    """A narrow network of the public layout; comfy_adapters.py builds the same of ComfyUI's classes."""
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    torch.manual_seed(0)
    if family == "sd15":
        cross = ("CrossAttnDownBlock2D",) * 3
        return UNet2DConditionModel(
            block_out_channels=(32, 64, 128, 128), layers_per_block=2, cross_attention_dim=768, attention_head_dim=4,
            down_block_types=(*cross, "DownBlock2D"), up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        )  # fmt: skip
    if family == "sdxl":
        return UNet2DConditionModel(
            block_out_channels=(32, 64, 128), layers_per_block=2, cross_attention_dim=2048, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
            transformer_layers_per_block=(1, 1, 2), addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    return SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=64,
        num_attention_heads=2, joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=2048,
        pos_embed_max_size=16, qk_norm=None if family == "sd3-medium" else "rms_norm",
        dual_attention_layers=(0,) if family == "sd3.5-medium" else (),
    )  # fmt: skip


def encoders(family: str) -> dict[str, nn.Module]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def clip(made: Any) -> nn.Module:
        return made(CLIPTextConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                   num_attention_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0))  # fmt: skip

    torch.manual_seed(1)
    if family == "sd15":
        return {"te": clip(CLIPTextModel)}
    both = {"te1": clip(CLIPTextModel), "te2": clip(CLIPTextModelWithProjection)}
    if family == "sdxl":
        return both
    t5 = T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return {**both, "te3": T5EncoderModel(t5)}


def as_comfyui(family: str, body: Any, text: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All weights as ComfyUI names them."""

    def state(module: nn.Module) -> dict[str, Tensor]:
        plain = {k.replace(".base_layer", ""): v.detach().clone() for k, v in module.state_dict().items()}
        return {k: v for k, v in plain.items() if not any(mark in k for mark in ("lora_", "hada_", "lokr_"))}

    net = ldm.mmdit(state(body)) if family.startswith("sd3") else ldm.unet(state(body), 2)
    found = {f"model.diffusion_model.{key}": value for key, value in net.items()}
    for name, module in text.items():
        slot = {"te3": "t5xxl", "te2": "clip_g"}.get(name, "clip_l")
        own = state(module) if name == "te3" else ldm.clip(state(module))
        found.update({f"{slot}.transformer.{key}": value for key, value in own.items() if "embed_tokens" not in key})
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What ComfyUI says of each file, and the weights that it should have made."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    folder = tmp_path_factory.mktemp("comfy")
    wanted = {}
    for family, kind in CASES:
        body, text = denoiser(family), encoders(family)
        conv = {} if family.startswith("sd3") else {"conv_rank": 2}
        options = AdapterOptions(kind=kind, rank=4, alpha=2.0, text_encoders=list(text), **conv)
        if kind == "lora":
            save_file(
                {k: v.contiguous() for k, v in as_comfyui(family, body, text).items()}, folder / f"{family}.safetensors"
            )
        adapter = inject(body, text, family, options, seed=2)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        files.save(folder / f"{family}-with-{kind}.safetensors", adapter.for_file(torch.float16), {})
        for one in adapter.mounted:
            for layer in one.layers:
                layer.merge()
        wanted[f"{family}-with-{kind}"] = as_comfyui(family, body, text)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(ROOT / "tests" / "comfy_adapters.py"), os.environ["COMFYUI_PATH"], str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout.split("FOUND ")[1]), wanted


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_comfyui_makes_the_trained_weights(family: str, kind: str, loaded: Any) -> None:
    folder, reported, wanted = loaded
    case = f"{family}-with-{kind}"
    assert reported[case] == {"complaints": [], "unfilled": [], "unexpected": []}
    base = load_file(folder / f"{family}.safetensors")
    got = {
        (f"model.{k}" if k.startswith("diffusion_model") else k): v
        for k, v in load_file(folder / f"{case}.out").items()
    }
    changed = {k for k, v in wanted[case].items() if not torch.equal(v, base[k])} if kind != "dora" else set(got)
    assert set(got) == changed
    worst = max(float((got[k] - wanted[case][k]).norm() / wanted[case][k].norm()) for k in got)
    print(f"{family:13} {kind:5} {len(got):4} weights, largest relative error {worst:.1e}")
    assert worst < 1e-3, "the rounding of fp16"
