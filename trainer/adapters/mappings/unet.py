"""The key mappings of the U-Nets: diffusers' own names for SD 1.x and 2.x, the blocks of LDM for SDXL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .mapping import KeyMapping, Role, Shape, Widths, register

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
}  # fmt: skip
_UNET_ENDS = {
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
}  # fmt: skip
_UNET_PATH = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def _to_ldm(path: str, step: int) -> str:
    """diffusers' U-Net path -> LDM's; ``step`` is the number of LDM blocks per diffusers block."""
    match = _UNET_PATH.fullmatch(path)
    if not match:
        return _inverse(_UNET_ENDS).get(path, path)
    side, block, kind, j, rest = match[1] or match[3], int(match[2] or 0), match[4], int(match[5]), match[6]
    if kind == "downsamplers":
        return f"input_blocks.{step * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{step * block + step - 1}.2.conv"
    if kind == "resnets":
        rest = _inverse(_RESNET).get(rest, rest)
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * j}.{rest}"
    inner = 1 if kind == "attentions" else 0
    number = step * block + j + 1 if side == "down" else step * block + j
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{inner}.{rest}"


def to_ldm(path: str, layers: int, attended: bool = True) -> str:
    """diffusers' U-Net path -> LDM's. ``attended``: whether its block has attention; without, an upsampler stands one
    place earlier, which names of adapters keep as it is."""
    name = _to_ldm(path, layers + 1)
    return name if attended else re.sub(r"^(output_blocks\.\d+)\.2\.conv$", r"\1.1.conv", name)


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {there: here for here, there in table.items()}


def from_ldm(path: str, layers: int = 2) -> str:
    """LDM's U-Net path -> diffusers'; ``layers`` is the U-Net's layers_per_block (SD1.5, SD2, SDXL: 2)."""
    step = layers + 1
    if path in _UNET_ENDS:
        return _UNET_ENDS[path]
    match = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d)\.(.+)|(middle_block)\.(\d)\.(.+)", path)
    if not match:
        return path
    if match[5]:
        inner = "attentions.0" if match[6] == "1" else f"resnets.{int(match[6]) // 2}"
        return f"mid_block.{inner}.{_RESNET.get(match[7], match[7])}"
    number, rest = int(match[2]), match[4]
    if match[1] == "input_blocks":
        if rest == "op" and number % step == 0:
            return f"down_blocks.{number // step - 1}.downsamplers.0.conv"
        block, j, side = (number - 1) // step, (number - 1) % step, "down"
    else:
        if rest == "conv" and number % step == step - 1:
            return f"up_blocks.{number // step}.upsamplers.0.conv"
        block, j, side = number // step, number % step, "up"
    kind = "resnets" if match[3] == "0" else "attentions"
    return f"{side}_blocks.{block}.{kind}.{j}.{_RESNET.get(rest, rest)}"


def to_model(dotted: str) -> tuple[str, ...]:
    """LDM names are understood for every U-Net, diffusers names pass through unchanged."""
    return (from_ldm(dotted),)


def role(path: str) -> Role:
    if ".attentions." in path:
        return "attention"
    return "resnet" if re.search(r"\.(resnets|downsamplers|upsamplers)\.", path) else "rest"


def kernel(dotted: str) -> Shape:
    path = from_ldm(dotted)
    if re.search(r"(\.(conv1|conv2)|samplers\.0\.conv|conv_in|conv_out)$", path):
        return (3, 3)
    return (1, 1) if path.endswith("conv_shortcut") else ()


def _kernel_sd15(dotted: str) -> Shape:
    return (1, 1) if dotted.endswith((".proj_in", ".proj_out")) else kernel(dotted)


def block_of(name: str) -> int | None:
    """Of Kohya's 25 blocks: 12 down, 1 mid, 12 up."""
    if "_mid_block_" in name:
        return 12
    match = re.search(r"(up|down)_blocks_(\d+)_(resnets|upsamplers|downsamplers|attentions)_(\d+)_", name)
    if not match:
        return 0
    inner = 2 if "samplers" in match[3] else int(match[4])
    return 3 * int(match[2]) + inner + (1 if match[1] == "down" else 13)


def ldm_block_of(name: str) -> int | None:
    """Of Kohya's 23 blocks of SDXL: 1 base, 9 in, 3 mid, 9 out, 1 out."""
    match = re.match(r"lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)_", name)
    if not match:
        return 22 if name.startswith("lora_unet_out_") else 0
    return int(match[2]) + {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}[match[1]]


def fits(cross_attention: int, deep: bool = False) -> Callable[[Widths, str | None], bool | None]:
    """By the width of the text; where no such module is adapted, by transformers of several blocks (``deep``)."""

    def decide(widths: Widths, named: str | None) -> bool | None:
        if any(path.startswith(("joint_blocks.", "transformer_blocks.")) for path in widths):
            return False
        for path, width in widths.items():
            if path.endswith("attn2.to_k"):
                return width == cross_attention
        if any(re.search(r"attentions\.\d\.transformer_blocks\.[1-9]", path) for path in widths):
            return deep
        return None

    return decide


SD15 = KeyMapping(
    "sd15", "unet", {"te": "clip_l"}, lambda path, layers: (path, None), to_model, role, _kernel_sd15, block_of,
    fits(768), "sd_v1", "stable-diffusion-v1", ("sd_v1", "stable-diffusion-v1"), resolution=512,
    for_v={"base_version": "sd_v1_v"}, block_list=25,
    diffusers_loader="StableDiffusionLoraLoaderMixin",
)  # fmt: skip
SD2 = KeyMapping(
    "sd2", "unet", {"te": "clip_h"}, lambda path, layers: (path, None), to_model, role, kernel, block_of,
    fits(1024), "sd_v2", "stable-diffusion-v2-512", ("sd_v2", "stable-diffusion-v2"), resolution=512,
    for_v={"base_version": "sd_v2_v", "architecture": "stable-diffusion-v2-768-v", "resolution": 768},
    is_v2=True, block_list=25,
    diffusers_loader="StableDiffusionLoraLoaderMixin",
)  # fmt: skip
SDXL = KeyMapping(
    "sdxl", "unet", {"te1": "clip_l", "te2": "clip_g"}, lambda path, layers: (_to_ldm(path, layers + 1), None),
    to_model, role, kernel, ldm_block_of, fits(2048, deep=True), "sdxl_base_v1-0", "stable-diffusion-xl-v1-base",
    ("sdxl", "stable-diffusion-xl"), implementation="https://github.com/Stability-AI/generative-models",
    lone_encoder="te2", block_list=23, rates=(9, 3, True),
    diffusers_loader="StableDiffusionXLLoraLoaderMixin",
)  # fmt: skip
register(SD15, SD2, SDXL)
