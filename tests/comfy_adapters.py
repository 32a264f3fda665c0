"""Run by ComfyUI's own Python (see adapters/test_adapters_host.py): its LoraLoader on networks of its own classes.

    python comfy_adapters.py COMFYUI FOLDER

FOLDER holds ``FAMILY.safetensors`` (a denoiser's and text encoders' weights as ComfyUI names them) and
``FAMILY-with-*.safetensors`` (adapters). Writes the patched weights beside each adapter as ``.out`` and prints one JSON
line.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
folder = Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models as supported
import comfy.utils
import torch
from safetensors.torch import save_file

CPU = torch.device("cpu")
UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "use_spatial_transformer": True,
        "legacy": False, "num_head_channels": -1, "num_heads": 4, "use_temporal_attention": False}  # fmt: skip


def network(family: str):
    if family == "sd15":
        config = supported.SD15({
            **UNET, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4), "context_dim": 768,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False,
            "adm_in_channels": None,
        })  # fmt: skip
        return comfy.model_base.BaseModel(config, device=CPU)
    if family == "sdxl":
        config = supported.SDXL({
            **UNET, "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "context_dim": 2048,
            "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": 2,
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "use_linear_in_transformer": True,
            "adm_in_channels": 2816, "num_classes": "sequential",
        })  # fmt: skip
        return comfy.model_base.SDXL(config, device=CPU)
    return comfy.model_base.SD3(supported.SD3({
        "in_channels": 16, "depth": 2, "pos_embed_max_size": 16, "num_patches": 256, "patch_size": 2,
        "adm_in_channels": 2048, "input_size": None, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
        "x_block_self_attn_layers": [0] if family == "sd3.5-medium" else [],
        "qk_norm": None if family == "sd3-medium" else "rms", "pos_embed_scaling_factor": None,
    }), device=CPU)  # fmt: skip


def grown(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Modules with the names and weights of a state dict: all that LoraLoader asks of a text encoder."""
    root = torch.nn.Module()
    for key, value in state.items():
        *path, leaf = key.split(".")
        at = root
        for name in path:
            if not hasattr(at, name):
                at.add_module(name, torch.nn.Module())
            at = getattr(at, name)
        at.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
    return root


class Clip:
    """What LoraLoader asks of a CLIP."""

    def __init__(self, model, patcher=None):
        self.cond_stage_model = model
        self.patcher = patcher or comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)

    def clone(self):
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, patches, strength=1.0):
        return self.patcher.add_patches(patches, strength)


class Complaints(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def patched(patcher) -> dict[str, torch.Tensor]:
    weights = patcher.model.state_dict()
    return {k: comfy.lora.calculate_weight(patcher.patches[k], weights[k].clone(), k) for k in patcher.patches}


found = {}
for base in sorted(p for p in folder.glob("*.safetensors") if "-with-" not in p.name):
    state = comfy.utils.load_torch_file(str(base))
    model = network(base.stem)
    own = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    missing, unexpected = model.load_state_dict(own, strict=False)
    missing = [k for k in missing if k.startswith("diffusion_model.")]
    model.requires_grad_(False)
    unet = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    clip = Clip(grown({k: v for k, v in state.items() if not k.startswith("model.")}))
    for file in sorted(folder.glob(f"{base.stem}-with-*.safetensors")):
        handler = Complaints()
        logging.getLogger().addHandler(handler)
        out, text = comfy.sd.load_lora_for_models(unet, clip, comfy.utils.load_torch_file(str(file)), 1.0, 1.0)
        both = patched(out) | patched(text.patcher)
        logging.getLogger().removeHandler(handler)
        save_file({k: v.contiguous() for k, v in both.items()}, str(file.with_suffix(".out")))
        found[file.stem] = {"complaints": handler.lines, "unfilled": missing, "unexpected": list(unexpected)}
print("FOUND " + json.dumps(found))
