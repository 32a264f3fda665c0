"""What one key of an adapter file names, in the spellings of Kohya's tools, LyCORIS, diffusers, PEFT, ComfyUI,
OneTrainer and SimpleTuner. ComfyUI nodes import this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .mappings.mapping import known
from .mappings.mmdit import to_model
from .mappings.unet import from_ldm
from .names import DENOISER, unflatten

Naming = Literal["kohya", "diffusers", "peft", "comfyui", "omi"]


@dataclass(frozen=True)
class Ref:
    """What one key of any program's file names."""

    component: str
    """``unet``, or ``te`` (the only or first), ``te1``, ``te2``, ``te3``."""
    path: str
    """Dotted; diffusers' for a U-Net, either network's for SD3."""
    tensor: str
    """By Kohya's and LyCORIS's names: ``lora_down.weight``, ``alpha``, ``hada_w1_a``, ..."""
    naming: Naming
    module: str
    """The module as the file spells it."""


_SAME = (
    "alpha|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t[12]|diff|diff_b|w_norm|b_norm|set_weight|"
    "reshape_weight|oft_blocks|oft_diag|oft_R|boft_[Rs]|rescale|a1|a2|b1|b2|bm|on_input|vera_lambda_[bd]"
)
_TENSOR = re.compile(
    rf"(?P<module>.+?)[._](?:(?P<bias>lora_up|lora_B|lora\.up)(?:\.(?!bias$)\w+)?\.bias|(?:"
    rf"(?P<down>lora_down|lora_A|lora\.down|lora_linear_layer\.down)"
    rf"|(?P<up>lora_up|lora_B|lora\.up|lora_linear_layer\.up)|(?P<mid>lora_mid)"
    rf"|(?P<dora>dora_scale|lora_magnitude_vector)|(?P<same>{_SAME}))(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?)"
)
_ROLES = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "dora": "dora_scale",
          "bias": "lora_up.bias"}  # fmt: skip
_FLAT = re.compile(r"lora_(unet|te[123]?|transformer|clip_l|clip_g|t5(?:xxl)?)_(.+)|(lycoris)_(.+)")
_CLIPS = {"clip_l": "te", "clip_h": "te", "clip_g": "te2", "t5": "te3", "t5xxl": "te3"}
_DOTTED: tuple[tuple[str, str, Naming], ...] = (
    ("unet.", "unet", "diffusers"), ("transformer.", "unet", "diffusers"),
    ("text_encoder.", "te", "diffusers"), ("text_encoder_2.", "te2", "diffusers"),
    ("text_encoder_3.", "te3", "diffusers"),
    ("model.diffusion_model.", "unet", "comfyui"), ("diffusion_model.", "unet", "comfyui"),
    *((f"text_encoders.{clip}.transformer.", owner, "comfyui") for clip, owner in _CLIPS.items()),
    *((f"{clip}.transformer.", owner, "comfyui") for clip, owner in _CLIPS.items()),
    *((f"{clip}.", owner, "omi") for clip, owner in _CLIPS.items()),
)  # fmt: skip
_NETWORKS = (
    "down_blocks.", "up_blocks.", "mid_block.", "input_blocks.", "output_blocks.", "middle_block.", "conv_in",
    "conv_out", "conv_norm_out", "time_embed", "add_embedding", "label_emb.", "out.",
    "joint_blocks.", "transformer_blocks.", "context_embedder", "time_text_embed.", "t_embedder.", "x_embedder.",
    "y_embedder.", "pos_embed.", "norm_out.", "final_layer.", "proj_out",
    "text_model.", "encoder.", "text_projection", "embeddings.", "shared", "final_layer_norm",
)  # fmt: skip
"""What the paths of the networks that we know begin with."""


def split(key: str) -> tuple[str, str] | None:
    """(module as the file spells it, tensor by Kohya's and LyCORIS's names); None for a key of no adapter."""
    match = _TENSOR.fullmatch(key)
    if not match:
        return None
    tensor = match["same"] or next(name for group, name in _ROLES.items() if match[group])
    return match["module"].removesuffix("_lora").removesuffix(".lora"), tensor


def parse(key: str, layers: int = 2) -> Ref | None:
    """A key of an adapter for a network that we know; None for anything else.

    ``layers`` is the U-Net's layers_per_block, by which LDM numbers its blocks.
    """
    found = split(key)
    if found is None:
        return None
    module, tensor = found
    naming: Naming
    flat = _FLAT.fullmatch(module)
    if flat:
        start, path, naming = flat[1] or flat[3], unflatten(flat[2] or flat[4]), "kohya"
        component = _CLIPS.get(start, start if start.startswith("te") else DENOISER)
    else:
        component, path, naming = _dotted(module)
    if not path.startswith((*_NETWORKS, *(start for one in known().values() for start in one.beginnings))):
        return None
    if component == DENOISER:
        path = _third(from_ldm(path, layers))
    return Ref(component, path, tensor, naming, module)


def _third(path: str) -> str:
    """OneTrainer's ``joint_blocks.0.x_block.attn.qkv.1`` -> diffusers' ``transformer_blocks.0.attn.to_k``."""
    match = re.fullmatch(r"(joint_blocks\.\d+\..+\.qkv)\.([012])", path)
    return to_model(match[1])[int(match[2])] if match else path


def _dotted(module: str) -> tuple[str, str, Naming]:
    component, path = "", module
    naming: Naming = "peft"
    for start, owner, kind in _DOTTED:
        if path.startswith(start):
            component, naming, path = owner, kind, path.removeprefix(start)
            break
    path = path.removeprefix("base_model.model.").replace(".processor.", ".")
    is_text = path.startswith(("text_model.", "encoder.", "text_projection"))
    if not component:
        component = ("te3" if path.startswith("encoder.block.") else "te") if is_text else DENOISER
    if component == DENOISER:
        return component, re.sub(r"\.to_out$", ".to_out.0", path), naming
    path = re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", path)  # the oldest diffusers files
    return component, f"text_model.{path}" if path.startswith("encoder.layers.") else path, naming
