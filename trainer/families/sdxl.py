"""Stable Diffusion XL (arXiv 2307.01952): a U-Net on two CLIP encoders, the pooled text and the picture's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..diffusion.types import Conditioning
from ..errors import UserError
from ..registry import families
from .family import Encoder, Family, FamilySpec, SdScripts, Shapes
from .options import ModelOptions
from .sd15 import CLIP_L, SD15, VAE, added_to_time, refuse_sd3
from .text import States, clip_states

UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
CLIP_G = CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
CLIP_G_ID = "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"


def read(family: Family, name: str, captions: list[str]) -> States:
    """The layer before the last of an encoder, without final norm, and its pooled text."""
    return States(*clip_states(family.text_encoders[name], family.tokens(name, captions), 2, normed=False))


def join(family: Family, states: Mapping[str, States]) -> Conditioning:
    """Both encoders' states side by side; the second one's pooled text."""
    first, second = states["te1"].hidden, states["te2"]
    assert second.pooled is not None
    return Conditioning(torch.cat([first, second.hidden.to(first)], -1), second.pooled.to(first))


def run(denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    assert conditioning.pooled is not None
    size = conditioning.size
    if size is None:  # a picture made for its own size, uncropped
        height, width = (8 * side for side in noisy.shape[-2:])
        size = noisy.new_tensor([[height, width, 0, 0, height, width]]).expand(len(noisy), -1)
    added = {"text_embeds": conditioning.pooled, "time_ids": size.to(noisy.device).float()}
    with added_to_time(denoiser, conditioning.time):
        return denoiser(noisy, time, encoder_hidden_states=conditioning.hidden, added_cond_kwargs=added).sample


def penultimate(options: ModelOptions, name: str) -> list[str]:
    """What SDXL and SD3 refuse, and a note on ``clip_skip``, since they always read the layer before the last."""
    if options.vae_precision == "fp16" and not options.vae:
        raise UserError(
            f"model.vae_precision: the autoencoder of {name} overflows in fp16; set auto, or give one in vae that "
            "is made for fp16"
        )
    if options.clip_skip is None or options.clip_skip == 2:
        return []
    if options.clip_skip == 1:
        return [f"clip_skip = 1 has no effect: {name} always reads CLIP's layer before the last"]
    raise UserError(f"model.clip_skip: {name} always reads CLIP's layer before the last; remove clip_skip, or set 2")


def _check(options: ModelOptions) -> list[str]:
    refuse_sd3(options, "SDXL")
    return penultimate(options, "SDXL")


def _in_file(shapes: Shapes) -> bool:
    return shapes.get("label_emb.0.0.weight", (0, 0))[1] == 2816


SDXL = FamilySpec(
    name="sdxl", title="Stable Diffusion XL", part="unet", model="UNet2DConditionModel", config=UNET,
    vae=VAE | {"scaling_factor": 0.13025, "sample_size": 1024},
    encoders={
        "te1": Encoder("text_encoder", "tokenizer", "CLIPTextModel", CLIP_L, "conditioner.embedders.0.transformer.",
                       "openai/clip-vit-large-patch14", option="clip_l"),
        "te2": Encoder("text_encoder_2", "tokenizer_2", "CLIPTextModelWithProjection", CLIP_G,
                       "conditioner.embedders.1.model.", CLIP_G_ID, pad="!", option="clip_g"),
    },
    predictions=("epsilon", "v", "sample"), assumed="epsilon", in_file=_in_file,
    in_folder=lambda config: config.get("addition_embed_type") == "text_time",
    read=read, join=join, run=run, check=_check,
    compute_blocks=SD15.compute_blocks, resize_blocks=SD15.resize_blocks, quantized=SD15.quantized, dpo_beta=5000.0,
    sd_scripts=SdScripts("sdxl", "sdxl", 32), resolution=1024,
)  # fmt: skip


@families.register("sdxl", ModelOptions)
def sdxl() -> FamilySpec:
    return SDXL
