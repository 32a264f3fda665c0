"""A small Stable Diffusion 1.5 with the blocks, samplers and norms of the public one, and nothing drawn at random.

Weights follow from their names, so that two programs with two versions of the libraries have the same model.
"""

from __future__ import annotations

import math
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

CHANNELS = (32, 64, 64, 64)
WIDTH = 32
"""Of the text encoder."""


def filled(module: Any) -> Any:
    """The module with weights of unit gain, norms near 1, small biases."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            seed = zlib.crc32(name.removeprefix("text_model.").encode())
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
            if value.ndim > 1:
                value.copy_(noise / math.sqrt(value[0].numel()))
            else:
                value.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.02 * noise)
    return module


def write(folder: Path) -> Path:
    """As a diffusers folder."""
    diffusers, transformers = import_module("diffusers"), import_module("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=CHANNELS, layers_per_block=2, cross_attention_dim=WIDTH,
        attention_head_dim=4, down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=49408, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=WIDTH,
            bos_token_id=49406, eos_token_id=49407,
        )
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=filled(vae), text_encoder=filled(text), tokenizer=None, unet=filled(unet), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder
