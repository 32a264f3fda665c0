"""The key mappings of SD3 and 3.5: the names of the original MMDiT, whose q, k and v are fused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from .mapping import KeyMapping, Role, Shape, Widths, register

_MMDIT_BLOCK = {
    "attn.to_q": ("x_block.attn.qkv", 0), "attn.to_k": ("x_block.attn.qkv", 1), "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.add_q_proj": ("context_block.attn.qkv", 0), "attn.add_k_proj": ("context_block.attn.qkv", 1),
    "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn2.to_q": ("x_block.attn2.qkv", 0), "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2),
    "attn.to_out.0": ("x_block.attn.proj", None), "attn.to_add_out": ("context_block.attn.proj", None),
    "attn2.to_out.0": ("x_block.attn2.proj", None),
    "norm1.linear": ("x_block.adaLN_modulation.1", None),
    "norm1_context.linear": ("context_block.adaLN_modulation.1", None),
    "ff.net.0.proj": ("x_block.mlp.fc1", None), "ff.net.2": ("x_block.mlp.fc2", None),
    "ff_context.net.0.proj": ("context_block.mlp.fc1", None), "ff_context.net.2": ("context_block.mlp.fc2", None),
    "attn.norm_q": ("x_block.attn.ln_q", None), "attn.norm_k": ("x_block.attn.ln_k", None),
    "attn.norm_added_q": ("context_block.attn.ln_q", None), "attn.norm_added_k": ("context_block.attn.ln_k", None),
    "attn2.norm_q": ("x_block.attn2.ln_q", None), "attn2.norm_k": ("x_block.attn2.ln_k", None),
}  # fmt: skip
_MMDIT_ENDS = {
    "context_embedder": "context_embedder", "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear", "final_layer.linear": "proj_out",
}  # fmt: skip
_ENDS_OF_MODEL = {there: here for here, there in _MMDIT_ENDS.items()}


def to_file(path: str, layers: int) -> tuple[str, int | None]:
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", path)
    if match and match[2] in _MMDIT_BLOCK:
        leaf, part = _MMDIT_BLOCK[match[2]]
        return f"joint_blocks.{match[1]}.{leaf}", part
    return _ENDS_OF_MODEL.get(path, path), None


def to_model(dotted: str) -> tuple[str, ...]:
    match = re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", dotted)
    if not match:
        return (_MMDIT_ENDS.get(dotted, dotted),)
    leaves = [leaf for leaf, (name, _) in _MMDIT_BLOCK.items() if name == match[2]]
    return tuple(f"transformer_blocks.{match[1]}.{leaf}" for leaf in leaves) or (dotted,)


def role(path: str) -> Role:
    return "attention" if path.startswith("transformer_blocks.") else "rest"


def kernel(dotted: str) -> Shape:
    return (2, 2) if dotted == "x_embedder.proj" else ()


def block_of(name: str) -> int | None:
    match = re.match(r"lora_unet_joint_blocks_(\d+)_", name)
    return int(match[1]) if match else None


def is_swapped(path: str, shape: Shape) -> bool:
    """diffusers holds scale and shift of SD3's last layers the other way round than the original network does."""
    return path == "norm_out.linear" or (path.endswith("norm1_context.linear") and shape[0] == 2 * shape[1])


_MODULES_OF_WIDTH = r"attn\.(qkv|proj|to_[qkv]|to_out\.0)$|(adaLN_modulation\.1|norm1\.linear)$"
"""Modules whose input has the network's width."""


def fits(width: int, second: bool = False) -> Callable[[Widths, str | None], bool | None]:
    """By the network's width, a second attention (``second``), or the header, which medium models differ by alone
    where no second attention is adapted."""

    def decide(widths: Widths, named: str | None) -> bool | None:
        if not any(path.startswith(("joint_blocks.", "transformer_blocks.")) for path in widths):
            return False
        here = {value for path, value in widths.items() if re.search(_MODULES_OF_WIDTH, path)}
        if 2432 in here or width == 2432 or (here and width not in here):
            return 2432 in here and width == 2432
        is_35 = any(".attn2." in path for path in widths) or named == "sd3.5-medium"
        return is_35 == second

    return decide


MEDIUM = KeyMapping(
    "sd3-medium", "mmdit", {"te1": "clip_l", "te2": "clip_g", "te3": "t5"}, to_file, to_model, role, kernel, block_of,
    fits(1536), "medium", "stable-diffusion-3-medium", ("stable-diffusion-3-medium",), lone_encoder="te3",
    network_module="networks.lora_sd3", is_flow=True, is_swapped=is_swapped,
)  # fmt: skip
MEDIUM_35 = replace(
    MEDIUM, family="sd3.5-medium", fits=fits(1536, second=True), base_version="5-medium",
    architecture="stable-diffusion-3-5-medium", marks=("stable-diffusion-3-5-medium",), lone_encoder=None,
)  # fmt: skip
LARGE_35 = replace(
    MEDIUM_35, family="sd3.5-large", fits=fits(2432), base_version="5-large",
    architecture="stable-diffusion-3-5-large", marks=("stable-diffusion-3-5-large",),
)  # fmt: skip
register(MEDIUM, MEDIUM_35, LARGE_35)
