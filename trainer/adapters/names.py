"""What a module of a model is called in an adapter file, and back.

A file in Kohya's naming has one *site* per module of the network it was written for: diffusers' own names for SD1.5 and
SD2, the LDM blocks for SDXL, the MMDiT with its fused q, k, v for SD3. A site therefore stands for one module of a
diffusers model, or for three. Standard library and torch only: ComfyUI nodes import this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..errors import UserError

Shape = tuple[int, ...]
Role = Literal["attention", "resnet", "rest", "text"]

FAMILIES = ("sd15", "sd2", "sdxl", "sd3-medium", "sd3.5-medium", "sd3.5-large")
DENOISER = "unet"
"""The component that every file calls so, MMDiT or not. Components are ``unet``, ``te``, ``te1``, ``te2``, ``te3``."""
ENCODERS: dict[str, dict[str, str]] = {
    "sd15": {"te": "clip_l"},
    "sd2": {"te": "clip_h"},
    "sdxl": {"te1": "clip_l", "te2": "clip_g"},
    "sd3": {"te1": "clip_l", "te2": "clip_g", "te3": "t5"},
}
"""The text encoders of a layout by Kohya's names, and what people call them."""


def layout(family: str) -> str:
    """sd15, sd2, sdxl or sd3: families that share a layout share their names."""
    return "sd3" if family.startswith("sd3") else family


def encoder(family: str, called: str) -> str:
    """``clip_l`` or ``te1`` -> ``te1``. ValueError for a text encoder that the family does not have."""
    encoders = ENCODERS[layout(family)]
    for name, people_say in encoders.items():
        if called in (name, people_say):
            return name
    there = ", ".join(encoders.values())
    raise UserError(f"adapter.text_encoders: {family} has no text encoder '{called}'; there is: {there}")


@dataclass(frozen=True)
class Site:
    """One module of the file."""

    name: str
    """``lora_unet_down_blocks_0_attentions_0_proj_in``."""
    component: str
    """``unet``, or a text encoder: ``te``, ``te1``, ``te2``, ``te3``."""
    paths: tuple[str, ...]
    """The modules of the model that it adapts; three where the file's model fuses q, k and v, in that order."""
    shape: Shape
    """Of the weight it adapts: (out, in) or (out, in, height, width); ``out`` counts all of ``paths``."""
    role: Role
    swap: bool = False
    """The model has the halves of ``out`` (scale, shift) the other way round than the file."""

    @property
    def part_shape(self) -> Shape:
        """The weight's shape in one of ``paths``."""
        return (self.shape[0] // len(self.paths), *self.shape[1:])

    @property
    def is_kxk(self) -> bool:
        """A convolution larger than 1x1: it takes the conv rank."""
        return len(self.shape) == 4 and self.shape[2:] != (1, 1)


def weight_shapes(model: nn.Module) -> dict[str, Shape]:
    """Path -> weight shape of every Linear and Conv2d, whether or not an adapter wraps it; quantised ones included."""
    shapes: dict[str, Shape] = {}
    for path, module in model.named_modules():
        if re.search(r"(^|\.)(lora|hada|lokr)_", path):
            continue
        if isinstance(module, nn.Linear):
            shapes[path.removesuffix(".base_layer")] = (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            width = module.in_channels // module.groups
            shapes[path.removesuffix(".base_layer")] = (module.out_channels, width, *module.kernel_size)
    return shapes


def sites(family: str, component: str, shapes: Mapping[str, Shape]) -> list[Site]:
    """Every module that a file can name, in the model's order."""
    layers = 1 + max((int(m[1]) for m in map(_DOWN_RESNET.match, shapes) if m), default=1)
    parts: dict[str, dict[int, str]] = {}
    for path in shapes:
        dotted, part = file_path(family, component, path, layers)
        parts.setdefault(f"lora_{component}_{dotted.replace('.', '_')}", {})[part or 0] = path
    found = []
    for name, by_part in parts.items():
        paths = tuple(by_part[part] for part in sorted(by_part))
        one = shapes[paths[0]]
        whole = (one[0] * len(paths), *one[1:])
        found.append(Site(name, component, paths, whole, role(family, component, paths[0]), is_swapped(paths[0], one)))
    return found


def role(family: str, component: str, path: str) -> Role:
    """Which of Kohya's module classes a path lies in."""
    if component != DENOISER:
        return "text" if re.match(r"(text_model\.)?encoder\.(layers|block)\.\d", path) else "rest"
    if layout(family) == "sd3":
        return "attention" if path.startswith("transformer_blocks.") else "rest"
    if ".attentions." in path:
        return "attention"
    return "resnet" if re.search(r"\.(resnets|downsamplers|upsamplers)\.", path) else "rest"


def is_swapped(path: str, shape: Shape) -> bool:
    """diffusers holds scale and shift of SD3's last layers the other way round than the original network does."""
    return path == "norm_out.linear" or (path.endswith("norm1_context.linear") and shape[0] == 2 * shape[1])


# ------------------------------------------------------------------------------------- model path -> name in the file


def file_path(family: str, component: str, path: str, layers: int = 2) -> tuple[str, int | None]:
    """The dotted path in the file's network, and which third of a fused q, k, v it is (None: not fused).

    ``layers`` is the U-Net's layers_per_block: LDM numbers blocks through.
    """
    if component != DENOISER:
        return (f"text_model.{path}" if path.startswith("encoder.layers.") else path), None
    if layout(family) == "sdxl":
        return _to_ldm(path, layers + 1), None
    if layout(family) == "sd3":
        return _to_mmdit(path)
    return path, None


_DOWN_RESNET = re.compile(r"down_blocks\.\d+\.resnets\.(\d+)\.")
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
}  # fmt: skip
_MMDIT_ENDS = {
    "context_embedder": "context_embedder", "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear", "final_layer.linear": "proj_out",
}  # fmt: skip


def _to_mmdit(path: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", path)
    if match and match[2] in _MMDIT_BLOCK:
        leaf, part = _MMDIT_BLOCK[match[2]]
        return f"joint_blocks.{match[1]}.{leaf}", part
    return _inverse(_MMDIT_ENDS).get(path, path), None


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {there: here for here, there in table.items()}


# ------------------------------------------------------------------------------------- name in the file -> model path


def model_paths(family: str, component: str, dotted: str) -> tuple[str, ...]:
    """The inverse of ``file_path`` for full-size models: one diffusers path, or those of q, k and v.

    LDM names are understood for every U-Net, diffusers names pass through unchanged.
    """
    if component != DENOISER:
        return (dotted,)
    if layout(family) != "sd3":
        return (from_ldm(dotted),)
    match = re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", dotted)
    if not match:
        return (_MMDIT_ENDS.get(dotted, dotted),)
    leaves = [leaf for leaf, (name, _) in _MMDIT_BLOCK.items() if name == match[2]]
    return tuple(f"transformer_blocks.{match[1]}.{leaf}" for leaf in leaves) or (dotted,)


def from_ldm(path: str) -> str:
    """LDM's U-Net path -> diffusers', for two layers per block (SD1.5, SD2, SDXL)."""
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
        if rest == "op" and number % 3 == 0:
            return f"down_blocks.{number // 3 - 1}.downsamplers.0.conv"
        block, j, side = (number - 1) // 3, (number - 1) % 3, "down"
    else:
        if rest == "conv" and number % 3 == 2:
            return f"up_blocks.{number // 3}.upsamplers.0.conv"
        block, j, side = number // 3, number % 3, "up"
    kind = "resnets" if match[3] == "0" else "attentions"
    return f"{side}_blocks.{block}.{kind}.{j}.{_RESNET.get(rest, rest)}"


_COMPOUNDS = re.findall(
    r"\w+",
    """
    down_blocks up_blocks mid_block input_blocks output_blocks middle_block transformer_blocks joint_blocks
    x_block context_block proj_in proj_out to_q to_k to_v to_out to_add_out add_q_proj add_k_proj add_v_proj
    time_emb_proj conv_shortcut time_embedding add_embedding time_embed label_emb linear_1 linear_2 conv_in
    conv_out conv_norm_out in_layers out_layers emb_layers skip_connection text_model self_attn q_proj k_proj
    v_proj out_proj text_projection layer_norm1 layer_norm2 final_layer_norm token_embedding
    position_embedding adaLN_modulation final_layer context_embedder t_embedder x_embedder y_embedder wi_0
    wi_1 layer_norm ff_context norm1_context time_text_embed timestep_embedder text_embedder pos_embed
    norm_out
    """,
)
"""Names of modules that hold an underscore themselves."""
_TOKEN = re.compile(rf"({'|'.join(sorted(_COMPOUNDS, key=len, reverse=True))}|[^_]+)(?:_|$)")


def unflatten(flat: str) -> str:
    """``down_blocks_0_attentions_0_proj_in`` -> ``down_blocks.0.attentions.0.proj_in``; names of any layout above."""
    return ".".join(match[1] for match in _TOKEN.finditer(flat))


def kernel(family: str, name: str) -> Shape:
    """The kernel of the convolution that a site's name stands for in a full-size model; () for a Linear."""
    rest = unflatten(name.removeprefix(f"lora_{DENOISER}_"))
    path = from_ldm(rest)
    if name.startswith("lora_te"):
        return ()
    if layout(family) == "sd3":
        return (2, 2) if rest == "x_embedder.proj" else ()
    if re.search(r"(\.(conv1|conv2)|samplers\.0\.conv|conv_in|conv_out)$", path):
        return (3, 3)
    is_1x1 = path.endswith("conv_shortcut") or (family == "sd15" and path.endswith((".proj_in", ".proj_out")))
    return (1, 1) if is_1x1 else ()


# ---------------------------------------------------------------------------------------------------- Kohya's blocks

BLOCKS = {"sd15": 25, "sd2": 25, "sdxl": 23}
"""Entries of Kohya's block lists: 12 down, 1 mid, 12 up; SDXL 1 base, 9 in, 3 mid, 9 out, 1 out."""


def block_of(family: str, name: str) -> int | None:
    """Kohya's block number of a denoiser's site; None where the family has no such list."""
    if layout(family) == "sdxl":
        match = re.match(r"lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)_", name)
        if not match:
            return 22 if name.startswith("lora_unet_out_") else 0
        return int(match[2]) + {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}[match[1]]
    if layout(family) == "sd3":
        match = re.match(r"lora_unet_joint_blocks_(\d+)_", name)
        return int(match[1]) if match else None
    if "_mid_block_" in name:
        return 12
    match = re.search(r"(up|down)_blocks_(\d+)_(resnets|upsamplers|downsamplers|attentions)_(\d+)_", name)
    if not match:
        return 0
    inner = 2 if "samplers" in match[3] else int(match[4])
    return 3 * int(match[2]) + inner + (1 if match[1] == "down" else 13)


def all_sites(family: str, modules: Mapping[str, nn.Module]) -> list[Site]:
    """The sites of several components, text encoders first as Kohya orders them."""
    order = sorted(modules, key=lambda component: (component == DENOISER, component))
    return [site for component in order for site in sites(family, component, weight_shapes(modules[component]))]
