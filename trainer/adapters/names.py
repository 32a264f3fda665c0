"""What a module of a model is called in an adapter file, and back.

A file in Kohya's naming has one *site* per module of the network it was written for: diffusers' own names for SD1.5 and
SD2, the LDM blocks for SDXL, the MMDiT with its fused q, k, v for SD3. A site therefore stands for one module of a
diffusers model, or for three. Standard library and torch only: ComfyUI nodes import this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from ..errors import UserError
from .mappings.mapping import Role, Shape, key_mapping, known

DENOISER = "unet"
"""The component that every file calls so, MMDiT or not. Components are ``unet``, ``te``, ``te1``, ``te2``, ``te3``."""


def encoder(family: str, called: str) -> str:
    """``clip_l`` or ``te1`` -> ``te1``. UserError for a text encoder that the family does not have."""
    encoders = key_mapping(family).encoders
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
    found, swapped = [], key_mapping(family).is_swapped
    for name, by_part in parts.items():
        paths = tuple(by_part[part] for part in sorted(by_part))
        one = shapes[paths[0]]
        whole = (one[0] * len(paths), *one[1:])
        found.append(Site(name, component, paths, whole, role(family, component, paths[0]), swapped(paths[0], one)))
    return found


def network_names(family: str, modules: Mapping[str, nn.Module]) -> dict[str, Shape]:
    """Every name that a file may have: of all modules with a weight, norms too -> the weight's shape."""
    found = {site.name: site.shape for site in all_sites(family, modules)}
    for component, network in modules.items():
        for path, module in network.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and not isinstance(module, (nn.Linear, nn.Conv2d)):
                name = f"lora_{component}_{file_path(family, component, path)[0].replace('.', '_')}"
                found.setdefault(name, tuple(weight.shape))
    return found


def role(family: str, component: str, path: str) -> Role:
    """Which of Kohya's module classes a path lies in."""
    if component != DENOISER:
        return "text" if re.match(r"(text_model\.)?encoder\.(layers|block)\.\d", path) else "rest"
    return key_mapping(family).role(path)


# ------------------------------------------------------------------------------------- model path -> name in the file


def file_path(family: str, component: str, path: str, layers: int = 2) -> tuple[str, int | None]:
    """The dotted path in the file's network, and which third of a fused q, k, v it is (None: not fused).

    ``layers`` is the U-Net's layers_per_block: LDM numbers blocks through.
    """
    if component != DENOISER:
        return (f"text_model.{path}" if path.startswith("encoder.layers.") else path), None
    return key_mapping(family).to_file(path, layers)


_DOWN_RESNET = re.compile(r"down_blocks\.\d+\.resnets\.(\d+)\.")


# ------------------------------------------------------------------------------------- name in the file -> model path


def model_paths(family: str, component: str, dotted: str) -> tuple[str, ...]:
    """The inverse of ``file_path`` for full-size models: one diffusers path, or those of q, k and v.

    LDM names are understood for every U-Net, diffusers names pass through unchanged.
    """
    return key_mapping(family).to_model(dotted) if component == DENOISER else (dotted,)


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
    norm_out ln_q ln_k norm_q norm_k norm_added_q norm_added_k
    """,
)
"""Names of modules that hold an underscore themselves."""


@lru_cache
def _token(compounds: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"({'|'.join(sorted(compounds, key=len, reverse=True))}|[^_.]+)(?:[_.]|$)")


def unflatten(flat: str) -> str:
    """``down_blocks_0_attentions_0_proj_in`` -> ``down_blocks.0.attentions.0.proj_in``; names of any family.

    Dots and a last underscore, which some tools leave in, are no matter.
    """
    own = (name for mapping in known().values() for name in mapping.compounds)
    return ".".join(match[1] for match in _token((*_COMPOUNDS, *own)).finditer(flat))


def kernel(family: str, name: str) -> Shape:
    """The kernel of the convolution that a site's name stands for in a full-size model; () for a Linear."""
    return () if name.startswith("lora_te") else key_mapping(family).kernel(unflatten(name.removeprefix("lora_unet_")))


# ---------------------------------------------------------------------------------------------------- Kohya's blocks


def block_of(family: str, name: str) -> int | None:
    """Kohya's block number of a denoiser's site; None where the family has no such list."""
    return key_mapping(family).block_of(name)


def all_sites(family: str, modules: Mapping[str, nn.Module]) -> list[Site]:
    """The sites of several components, text encoders first as Kohya orders them."""
    order = sorted(modules, key=lambda component: (component == DENOISER, component))
    return [site for component in order for site in sites(family, component, weight_shapes(modules[component]))]
