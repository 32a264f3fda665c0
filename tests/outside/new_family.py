"""A family from outside the tree: a small U-Net on latents of 8 channels, made of SD 1.x's parts."""

from __future__ import annotations

from dataclasses import replace

from pixelkiln.trainer.families.family import FamilySpec
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.families.sd15 import SD15
from pixelkiln.trainer.registry import families

SPEC = replace(
    SD15, name="new", title="New", vae={**SD15.vae, "latent_channels": 8},
    in_file=lambda shapes: shapes.get("input_blocks.0.0.weight", (0, 0))[1] == 8,
    in_folder=lambda config: config.get("in_channels") == 8,
    predictions=("epsilon",), dpo_beta=700.0, sd_scripts=None, resolution=64,
)  # fmt: skip


@families.register("new", ModelOptions)
def new() -> FamilySpec:
    return SPEC
