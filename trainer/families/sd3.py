"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a multimodal transformer on two CLIPs and T5, rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.types import Conditioning
from ..errors import UserError
from ..registry import families
from .family import Encoder, Family, FamilySpec, SdScripts, Shapes
from .options import ModelOptions
from .sd15 import CLIP_L, VAE
from .sdxl import CLIP_G, CLIP_G_ID, penultimate
from .text import States, clip_states, t5_states

MMDIT = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "is_encoder_decoder": True,
}  # fmt: skip


def read(family: Family, name: str, captions: list[str]) -> States:
    """The layer before the last of a CLIP with its pooled text, or T5's states."""
    how, encoder, tokens = family.options, family.text_encoders[name], family.tokens(name, captions)
    if name == family.spec.t5:
        return States(t5_states(encoder, tokens, how.t5_mask))
    return States(*clip_states(encoder, tokens, 2, normed=False, masked=how.clip_mask))


def join(family: Family, states: Mapping[str, States]) -> Conditioning:
    """Both CLIPs' states side by side, widened with zeros to T5's width, then T5's.

    Where T5 is missing there are ``t5_max_tokens`` zeros, as in diffusers (sd-scripts has 77, ComfyUI none).
    """
    first, second = states["te1"], states["te2"]
    assert first.pooled is not None and second.pooled is not None
    clip = torch.cat([first.hidden, second.hidden.to(first.hidden)], -1)
    pooled = torch.cat([first.pooled.to(first.hidden), second.pooled.to(first.hidden)], -1)
    if "te3" in states:
        t5 = states["te3"].hidden.to(clip)
    else:
        t5 = clip.new_zeros(len(clip), family.options.t5_max_tokens, family.denoiser.config.joint_attention_dim)
    clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return Conditioning(torch.cat([clip, t5], 1), pooled)


def run(denoiser: Any, noisy: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    return denoiser(hidden_states=noisy, timestep=time, encoder_hidden_states=conditioning.hidden,
                    pooled_projections=conditioning.pooled).sample  # fmt: skip


def _check(options: ModelOptions) -> list[str]:
    notes = penultimate(options, "SD3")
    if options.weighted_captions:
        raise UserError("model.weighted_captions: SD3 has none; set it to false")
    if options.max_tokens != 75:
        raise UserError("model.max_tokens: SD3's CLIP reads 75 tokens; set 75 (its T5 reads t5_max_tokens)")
    if options.zero_terminal_snr:
        raise UserError("model.zero_terminal_snr: SD3 is a flow and ends in pure noise anyway; remove it")
    return notes


def _in_file(blocks: int, second_attention: bool, norms: bool) -> Any:
    def matches(shapes: Shapes) -> bool:
        return (
            f"joint_blocks.{blocks - 1}.x_block.mlp.fc1.weight" in shapes
            and f"joint_blocks.{blocks}.x_block.mlp.fc1.weight" not in shapes
            and ("joint_blocks.0.x_block.attn2.qkv.weight" in shapes) == second_attention
            and ("joint_blocks.0.x_block.attn.ln_q.weight" in shapes) == norms
        )

    return matches


def _in_folder(second_attention: bool, norms: bool) -> Any:
    return lambda config: (
        config["_class_name"] == "SD3Transformer2DModel"
        and bool(config.get("dual_attention_layers")) == second_attention
        and bool(config.get("qk_norm")) == norms
    )


MEDIUM = FamilySpec(
    name="sd3-medium", title="Stable Diffusion 3 medium", part="transformer", model="SD3Transformer2DModel",
    config=MMDIT,
    vae=VAE | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024,
               "use_quant_conv": False, "use_post_quant_conv": False},
    encoders={
        "te1": Encoder("text_encoder", "tokenizer", "CLIPTextModelWithProjection", CLIP_L,
                       "text_encoders.clip_l.transformer.", "openai/clip-vit-large-patch14", option="clip_l"),
        "te2": Encoder("text_encoder_2", "tokenizer_2", "CLIPTextModelWithProjection", CLIP_G,
                       "text_encoders.clip_g.transformer.", CLIP_G_ID, pad="!", option="clip_g"),
        "te3": Encoder("text_encoder_3", "tokenizer_3", "T5EncoderModel", T5_XXL,
                       "text_encoders.t5xxl.transformer.", "google/t5-v1_1-xxl", option="t5", optional=True),
    },
    predictions=("flow",), assumed="flow", in_file=_in_file(24, False, False), in_folder=_in_folder(False, False),
    read=read, join=join, run=run, check=_check,
    compute_blocks=("JointTransformerBlock",), quantized=("transformer_blocks",), dpo_beta=100.0,
    sd_scripts=SdScripts("sd3", "sd3", 32, bare_latents=False), sampling_shift=3.0,
    multiple=16, resolution=1024, presets="sd3",
)  # fmt: skip
MEDIUM_35 = replace(
    MEDIUM, name="sd3.5-medium", title="Stable Diffusion 3.5 medium",
    config=MMDIT | {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
    in_file=_in_file(24, True, True), in_folder=_in_folder(True, True),
)  # fmt: skip
LARGE_35 = replace(
    MEDIUM, name="sd3.5-large", title="Stable Diffusion 3.5 large",
    config=MMDIT | {"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432},
    in_file=_in_file(38, False, True), in_folder=_in_folder(False, True),
)  # fmt: skip


@families.register("sd3-medium", ModelOptions)
def sd3_medium() -> FamilySpec:
    return MEDIUM


@families.register("sd3.5-medium", ModelOptions)
def sd35_medium() -> FamilySpec:
    return MEDIUM_35


@families.register("sd3.5-large", ModelOptions)
def sd35_large() -> FamilySpec:
    return LARGE_35
