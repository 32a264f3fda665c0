"""``dense export --comfy-lotus``: a dense run on SD 2.x as the LotusD model that ComfyUI's core loads by itself.

ComfyUI takes a U-Net of SD 2.x's layout for LotusD where it finds ``label_emb`` of four inputs, and then feeds the task
switch, timestep 999 and no noise by itself. The adapter's file has the switch folded into the time embedding, exactly
at that timestep, so ``label_emb`` adds nothing here: its last layer is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapters.bake import bake
from ..adapters.mappings.unet import to_ldm
from ..errors import UserError
from ..families.load import load
from ..runs.files import check_target
from .dense_predict import base_model, header

SWITCH = 4
"""sin and cos of the two numbers of Lotus' task switch."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_lotus(
    adapter: Path, output: Path, model: str | None, precision: str, log: Callable[[str], None], force: bool = False
) -> None:
    """Write the U-Net of the adapter's base model with the adapter in it.

    :raises UserError: a base model that is not SD 2.x, an adapter of another task than depth, or a file that is there.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: models are written as .safetensors; name the file so")
    found = header(adapter)
    if (found.task, found.space) != ("depth", "disparity"):
        raise UserError(
            f"{adapter}: it predicts {found.shown}, and ComfyUI's Lotus Depth shows disparity; export one of disparity"
        )
    check_target(output, adapter, force=force)
    family = load(base_model(adapter, model))
    if family.name != "sd2":
        raise UserError(
            f"{adapter}: its base is {family.spec.title}; LotusD has the layout of SD 2.x. Other adapters run in "
            "ComfyUI as they are: see docs/dense.md"
        )
    for note in bake(family.denoiser, {}, family.name, str(adapter)):
        log(note)
    tensors = {key: value.to(DTYPES[precision]) for key, value in lotus_state(family.denoiser).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output)


def lotus_state(unet: nn.Module) -> dict[str, Tensor]:
    """The U-Net's tensors by LDM's names, with a ``label_emb`` that adds 0."""
    state = unet.state_dict()
    layers = int(unet.config.layers_per_block)  # type: ignore[union-attr, arg-type]
    attended = {m[0] for key in state if (m := re.match(r"up_blocks\.\d+(?=\.attentions)", key))}
    found = {}
    for key, value in state.items():
        path, _, leaf = key.rpartition(".")
        block = re.match(r"up_blocks\.\d+", path)
        found[f"{to_ldm(path, layers, not block or block[0] in attended)}.{leaf}"] = value.contiguous()
    width = int(state["time_embedding.linear_2.weight"].shape[0])
    like = state["time_embedding.linear_2.weight"]
    shapes = {"0.weight": (width, SWITCH), "0.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    return found | {f"label_emb.0.{name}": like.new_zeros(shape) for name, shape in shapes.items()}
