"""Run by ComfyUI's own Python (see training/test_dense_host.py): the maps that core's own nodes make.

    python comfy_dense.py COMFYUI FOLDER

FOLDER holds, for sd15 and sdxl, ``FAMILY.safetensors`` (a denoiser's weights as ComfyUI names them),
``FAMILY-with-dense.safetensors`` (an adapter) and ``FAMILY.inputs`` (``latents`` as an autoencoder node gives them,
``hidden`` and ``pooled`` of the empty prompt). Writes the sampled latents as ``FAMILY.out``: LoraLoader, then
``comfy_chain``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import comfy_adapters as own  # reads the command line, and prints what it finds of the adapters

import comfy.model_patcher  # isort: skip
import comfy.sd  # isort: skip
import comfy.utils  # isort: skip
from comfy_chain import sampled  # isort: skip
from safetensors.torch import load_file, save_file

folder: Path = own.folder


for file in sorted(folder.glob("*.inputs")):
    family, inputs = file.stem, load_file(file)
    model = own.network(family)
    state = comfy.utils.load_torch_file(str(folder / f"{family}.safetensors"))
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items()}, strict=False)
    unet = comfy.model_patcher.ModelPatcher(model.requires_grad_(False), load_device=own.CPU, offload_device=own.CPU)
    lora = comfy.utils.load_torch_file(str(folder / f"{family}-with-dense.safetensors"))
    unet, _ = comfy.sd.load_lora_for_models(unet, None, lora, 1.0, 0.0)
    extra = {"pooled_output": inputs["pooled"]} if "pooled" in inputs else {}
    made = sampled(unet, {"samples": inputs["latents"]}, [[inputs["hidden"], extra]])
    save_file({"latents": made["samples"].contiguous()}, str(folder / f"{family}.out"))
sys.stdout.flush()
