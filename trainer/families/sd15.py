"""Stable Diffusion 1.x (arXiv 2112.10752) and 2.x: a U-Net with cross-attention on one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..diffusion.types import Conditioning
from ..errors import UserError
from ..registry import families
from .family import Encoder, Family, FamilySpec, SdScripts
from .options import ModelOptions
from .text import States, clip_states

VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
UNET = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}  # fmt: skip
UNET_2 = UNET | {
    "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
    "upcast_attention": True,
}  # fmt: skip
_TOKENS = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
CLIP_L = _TOKENS | {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
# OpenCLIP's ViT-H has 24 layers; SD 2.x reads the 23rd, so the last is left out.
CLIP_H = _TOKENS | {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu", "projection_dim": 1024,
}  # fmt: skip

_CROSS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def read(family: Family, name: str, captions: list[str]) -> States:
    """The last layer of CLIP, or with ``clip_skip`` an earlier one, under CLIP's final layer norm."""
    tokens = family.tokens(name, captions)
    return States(*clip_states(family.text_encoders[name], tokens, family.options.clip_skip or 1, normed=True))


def join(family: Family, states: Mapping[str, States]) -> Conditioning:
    return Conditioning(states["te"].hidden)


def run(denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    with added_to_time(denoiser, conditioning.time):
        return denoiser(noisy, time, encoder_hidden_states=conditioning.hidden).sample


@contextmanager
def added_to_time(denoiser: Any, vector: Tensor | None) -> Iterator[None]:
    """Inside, ``vector`` [B, width] is added to the U-Net's time embedding."""
    if vector is None:
        yield
        return
    handle = denoiser.time_embedding.register_forward_hook(lambda module, given, out: out + vector.to(out.dtype))
    try:
        yield
    finally:
        handle.remove()


def refuse_sd3(options: ModelOptions, name: str) -> None:
    """UserError when an option is set that only SD3 has."""
    fields = ("t5", "t5_mask", "clip_mask")
    if found := [field for field in fields if getattr(options, field)]:
        raise UserError(f"model.{found[0]}: {name} has no such text encoder option, only SD3 does; remove it")


def _check(options: ModelOptions) -> list[str]:
    refuse_sd3(options, "SD 1.x and 2.x")
    for field in ("clip_l", "clip_g"):
        if getattr(options, field):
            raise UserError(f"model.{field}: SD 1.x and 2.x have one text encoder, inside the model; remove it")
    return []


def _in_file(width: int) -> Any:
    return lambda shapes: shapes.get(_CROSS, (0, 0))[1] == width and "label_emb.0.0.weight" not in shapes


def _in_folder(second: bool) -> Any:
    def matches(config: Mapping[str, Any]) -> bool:
        if config["_class_name"] != "UNet2DConditionModel" or config.get("addition_embed_type"):
            return False
        return second == (config.get("cross_attention_dim") == 1024 and bool(config.get("use_linear_projection")))

    return matches


SD15 = FamilySpec(
    name="sd15", title="Stable Diffusion 1.x", part="unet", model="UNet2DConditionModel", config=UNET, vae=VAE,
    encoders={"te": Encoder("text_encoder", "tokenizer", "CLIPTextModel", CLIP_L, "cond_stage_model.transformer.",
                            "openai/clip-vit-large-patch14")},
    predictions=("epsilon", "v", "sample"), assumed="epsilon", in_file=_in_file(768), in_folder=_in_folder(False),
    read=read, join=join, run=run, check=_check,
    compute_blocks=("ResnetBlock2D", "BasicTransformerBlock"), resize_blocks=("Downsample2D", "Upsample2D"),
    quantized=("down_blocks", "mid_block", "up_blocks"), dpo_beta=2000.0, sd_scripts=SdScripts("sd15", "sd", 64),
)  # fmt: skip
SD2 = replace(
    SD15, name="sd2", title="Stable Diffusion 2.x", config=UNET_2,
    encoders={"te": Encoder("text_encoder", "tokenizer", "CLIPTextModel", CLIP_H, "cond_stage_model.model.",
                            "stabilityai/stable-diffusion-2", pad="!")},
    assumed=None, in_file=_in_file(1024), in_folder=_in_folder(True),
)  # fmt: skip


@families.register("sd15", ModelOptions)
def sd15() -> FamilySpec:
    return SD15


@families.register("sd2", ModelOptions)
def sd2() -> FamilySpec:
    return SD2
