"""Models of public sizes, some with fewer layers, with random weights: checkpoints in the public layout."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import ldm
import torch
from torch import nn

from pixelkiln.trainer.families import parts
from pixelkiln.trainer.families.family import FamilySpec


def shallow(spec: FamilySpec) -> FamilySpec:
    """The same widths with fewer layers."""
    fewer = {
        "sdxl": {"transformer_layers_per_block": (1, 1, 2)},
        "sd3-medium": {"num_layers": 3},
        "sd3.5-medium": {"num_layers": 3, "dual_attention_layers": (0, 1)},
        "sd3.5-large": {"num_layers": 2},
    }.get(spec.name, {})
    encoders = {
        key: replace(encoder, config=encoder.config | {"num_hidden_layers": 3})
        for key, encoder in spec.encoders.items()
        if spec.name != "sd15" and key != "te3"
    }
    return replace(
        spec, config=spec.config | fewer, encoders={**spec.encoders, **encoders}, in_file=lambda shapes: True
    )


def fill(module: nn.Module) -> nn.Module:
    """Random fp16 weights of sensible size, in seconds: all tensors are stretches of the same million numbers."""
    module.half().to_empty(device="cpu")
    numbers = torch.randn(1_000_003, generator=torch.Generator().manual_seed(5))
    at = 0
    with torch.no_grad():
        for name, value in module.state_dict().items():
            size = value.numel()
            repeats = math.ceil((size + 1) / len(numbers)) + 1
            stretch = numbers.roll(-at).repeat(repeats)[:size].reshape(value.shape)
            scale = 1 / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.1
            value.copy_(
                stretch * scale + (1.0 if "norm" in name and name.endswith("weight") and value.ndim == 1 else 0.0)
            )
            at = (at + size) % len(numbers)
    return module


def random_file(spec: FamilySpec, path: Path) -> Path:
    """A checkpoint of the family with random fp16 weights, without T5."""
    diffusers: Any = import_module("diffusers")

    net, encoders = parts.meta(spec)
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL(**spec.vae)
    filled = {key: fill(encoder) for key, encoder in encoders.items() if key != "te3"}
    return ldm.write(path, ldm.checkpoint(spec.name, fill(net), fill(vae), filled))
