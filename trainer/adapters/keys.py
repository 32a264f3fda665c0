"""What stands in an adapter file: its tensors' names and shapes, what family and kind they tell of, and how files of
other programs read in Kohya's names.

ComfyUI nodes import this file, so it and what it imports need the standard library, torch and safetensors only.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import algebra
from .mappings.mapping import Shape, key_mapping, known, named_in
from .mappings.unet import from_ldm
from .names import DENOISER, all_sites, file_path, unflatten
from .names import Site as Site
from .names import encoder as encoder

KINDS = ("lora", "dora", "loha", "lokr")
DORA_MARK = ("dora_norm", "bare")
"""In ss_network_args: this DoRA's magnitudes are for readers that divide by |W| instead of |W + delta|."""
Naming = Literal["kohya", "diffusers", "peft", "comfyui"]


# ------------------------------------------------------------------------------------------- what a run would write


def default_targets(sites: Iterable[Site], conv: bool) -> list[Site]:
    """Kohya's choice: attention blocks and text encoders' layers; with ``conv`` everything in the resnets too."""
    wanted = {"attention", "text", "resnet"} if conv else {"attention", "text"}
    return [site for site in sites if site.role in wanted]


def file_keys(
    family: str,
    modules: Mapping[str, nn.Module],
    rank: int = 16,
    conv_rank: int | None = None,
    kind: str = "lora",
    factor: int = -1,
) -> list[tuple[str, Shape]]:
    """Sorted (name, shape) of the file that a run with default targets would write.

    ``modules`` are the denoiser (``unet``) and the trained text encoders (``te``, ``te1``, ...), on the meta device for
    all we care.
    """
    found: list[tuple[str, Shape]] = []
    for site in default_targets(all_sites(family, modules), conv_rank is not None):
        r = conv_rank if site.is_kxk and conv_rank else rank
        for name, shape in algebra.shapes(kind, site.shape, r, len(site.paths), factor).items():
            found.append((f"{site.name}.{name}", shape))
    return sorted(found)


# --------------------------------------------------------------------------------------------------- reading one key


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


_SAME = (
    "alpha|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t[12]|diff|diff_b|w_norm|b_norm|set_weight|"
    "reshape_weight|oft_blocks|oft_diag|rescale|a1|a2|b1|b2|on_input"
)
_TENSOR = re.compile(
    rf"(?P<module>.+?)[._](?:(?P<down>lora_down|lora_A|lora\.down|lora_linear_layer\.down)"
    rf"|(?P<up>lora_up|lora_B|lora\.up|lora_linear_layer\.up)|(?P<mid>lora_mid)"
    rf"|(?P<dora>dora_scale|lora_magnitude_vector)|(?P<same>{_SAME}))(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?"
)
_FLAT = re.compile(r"lora_(unet|te[123]?|transformer)_(.+)|(lycoris)_(.+)")
_DOTTED: tuple[tuple[str, str, Naming], ...] = (
    ("unet.", "unet", "diffusers"), ("transformer.", "unet", "diffusers"),
    ("text_encoder.", "te", "diffusers"), ("text_encoder_2.", "te2", "diffusers"),
    ("text_encoder_3.", "te3", "diffusers"),
    ("model.diffusion_model.", "unet", "comfyui"), ("diffusion_model.", "unet", "comfyui"),
    ("text_encoders.clip_l.transformer.", "te", "comfyui"), ("text_encoders.clip_h.transformer.", "te", "comfyui"),
    ("text_encoders.clip_g.transformer.", "te2", "comfyui"),
    ("text_encoders.t5xxl.transformer.", "te3", "comfyui"),
)  # fmt: skip
_NETWORKS = (
    "down_blocks.", "up_blocks.", "mid_block.", "input_blocks.", "output_blocks.", "middle_block.", "conv_in",
    "conv_out", "conv_norm_out", "time_embed", "add_embedding", "label_emb.", "out.",
    "joint_blocks.", "transformer_blocks.", "context_embedder", "time_text_embed.", "t_embedder.", "x_embedder.",
    "y_embedder.", "pos_embed.", "norm_out.", "final_layer.", "proj_out",
    "text_model.", "encoder.", "text_projection", "embeddings.", "shared", "final_layer_norm",
)  # fmt: skip
"""What the paths of the networks that we know begin with."""


def parse(key: str, layers: int = 2) -> Ref | None:
    """A key of a Kohya, LyCORIS, diffusers (old and new), PEFT or ComfyUI file; None for anything else.

    ``layers`` is the U-Net's layers_per_block, by which LDM numbers its blocks.
    """
    match = _TENSOR.fullmatch(key)
    if not match:
        return None
    roles = (("down", "lora_down.weight"), ("up", "lora_up.weight"), ("mid", "lora_mid.weight"), ("dora", "dora_scale"))
    tensor = match["same"] or next(name for group, name in roles if match[group])
    module = match["module"].removesuffix("_lora").removesuffix(".lora")
    flat = _FLAT.fullmatch(module)
    if flat:
        start, path, naming = flat[1] or flat[3], unflatten(flat[2] or flat[4]), "kohya"
        component = start if start.startswith("te") else DENOISER
    else:
        component, path, naming = _dotted(module)
    if not path.startswith((*_NETWORKS, *(start for one in known().values() for start in one.beginnings))):
        return None
    return Ref(component, from_ldm(path, layers) if component == DENOISER else path, tensor, naming)


def _dotted(module: str) -> tuple[str, str, Naming]:
    component, naming, path = "", "peft", module
    for start, owner, said in _DOTTED:
        if path.startswith(start):
            component, naming, path = owner, said, path.removeprefix(start)
            break
    path = path.removeprefix("base_model.model.").replace(".processor.", ".")
    is_text = path.startswith(("text_model.", "encoder.", "text_projection"))
    if not component:
        component = ("te3" if path.startswith("encoder.block.") else "te") if is_text else DENOISER
    if component == DENOISER:
        return component, re.sub(r"\.to_out$", ".to_out.0", path), naming
    path = re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", path)  # the oldest diffusers files
    return component, f"text_model.{path}" if path.startswith("encoder.layers.") else path, naming


# ------------------------------------------------------------------------------------------------- family and kind


@dataclass(frozen=True)
class AdapterFacts:
    """What the names and shapes of a file tell."""

    family: str | None
    """A family that has a key mapping; None where the tensors fit several, or none."""
    kind: str | None
    """lora, dora, loha, lokr; another method's name, ``mixed``; None for a file that is no adapter."""
    naming: Naming | None
    modules: dict[str, int] = field(default_factory=dict)
    """Modules per component: ``unet``, ``te``, ``te1``, ``te2``, ``te3``."""
    ranks: dict[int, int] = field(default_factory=dict)
    """Rank -> how many modules have it, the commonest first."""
    foreign: tuple[str, ...] = ()
    """Keys that belong to no adapter that we know."""

    @property
    def has_text_encoder(self) -> bool:
        return any(component != DENOISER for component in self.modules)


def identify(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None) -> AdapterFacts:
    """Family and kind of a file from its keys and shapes. ``metadata`` (ss_*, modelspec) only decides a draw."""
    grouped: dict[tuple[str, str], dict[str, Shape]] = {}
    foreign, namings = [], Counter[Naming]()
    for key, shape in shapes.items():
        ref = parse(key)
        if ref is None:
            foreign.append(key)
            continue
        grouped.setdefault((ref.component, ref.path), {})[ref.tensor] = tuple(shape)
        namings[ref.naming] += 1
    if not grouped:
        return AdapterFacts(None, None, None, foreign=tuple(foreign))
    ranks = Counter(rank for tensors in grouped.values() if (rank := algebra.rank_of(tensors)) is not None)
    family = _family(grouped, metadata or {})
    modules = Counter(_component(family, component) for component, _ in grouped)
    kind = _kind({name for tensors in grouped.values() for name in tensors})
    return AdapterFacts(
        family, kind, namings.most_common(1)[0][0], dict(modules), dict(ranks.most_common()), tuple(foreign)
    )


def _kind(names: set[str]) -> str | None:
    marks = {
        "lora": "lora_down.weight", "loha": "hada_w1_a", "glora": "a1", "oft": "oft_blocks", "diag-oft": "oft_diag",
        "ia3": "on_input", "full": "diff", "norm": "w_norm",
    }  # fmt: skip
    kinds = [kind for kind, mark in marks.items() if mark in names]
    kinds += ["lokr"] if names & {"lokr_w1", "lokr_w1_a"} else []
    if len(kinds) > 1:
        return "mixed"
    if kinds and "dora_scale" in names:
        return "dora" if kinds == ["lora"] else f"{kinds[0]} with dora"
    return kinds[0] if kinds else None


def _family(grouped: Mapping[tuple[str, str], Mapping[str, Shape]], metadata: Mapping[str, str]) -> str | None:
    named = named_in(metadata)
    widths = {path: _in_width(tensors) for (component, path), tensors in grouped.items() if component == DENOISER}
    if not widths:
        there = {component for component, _ in grouped}
        lone = {one.lone_encoder: one.family for one in known().values()}
        return named or next((lone[name] for name in ("te3", "te2") if name in there and name in lone), None)
    fits = {family: one.fits(widths, named) for family, one in known().items()}
    undecided = named if named and fits[named] is None else None
    return next((family for family, fit in fits.items() if fit), undecided)


def matrix(tensors: Mapping[str, Shape]) -> tuple[int, int] | None:
    """(out, in) of the weight that an adapter's shapes fit; the kernel of a flattened convolution counts as ``in``."""
    if "lora_down.weight" in tensors and "lora_up.weight" in tensors:
        return tensors["lora_up.weight"][0], tensors["lora_down.weight"][1]
    if "hada_w1_a" in tensors and "hada_t1" not in tensors:
        return tensors["hada_w1_a"][0], tensors["hada_w1_b"][1]
    one = [tensors.get("lokr_w1") or tensors.get("lokr_w1_a"), tensors.get("lokr_w1") or tensors.get("lokr_w1_b")]
    two = [tensors.get("lokr_w2") or tensors.get("lokr_w2_a"), tensors.get("lokr_w2") or tensors.get("lokr_w2_b")]
    if one[0] and one[1] and two[0] and two[1]:
        return one[0][0] * two[0][0], one[1][1] * two[1][1]
    return None


def _in_width(tensors: Mapping[str, Shape]) -> int | None:
    found = matrix(tensors)
    return found[1] if found else None


def _component(family: str | None, component: str) -> str:
    """The component by the family's own name: ``te`` and ``te1`` are the same where there is one text encoder."""
    if family is None or component == DENOISER:
        return component
    encoders = list(key_mapping(family).encoders)
    if component in encoders:
        return component
    return encoders[0] if component in ("te", "te1") else component


# ---------------------------------------------------------------------------------------------- any file -> Kohya's


def to_kohya(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, family: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names that Kohya's tools, A1111 and ComfyUI read, with the same effect; and notes.

    Tensors that have their name already pass unchanged. ``family`` overrules what the tensors tell. ValueError where
    the family cannot be told or an adapter has no such form.
    """
    metadata = metadata or {}
    facts = identify({key: tuple(value.shape) for key, value in tensors.items()}, metadata)
    family = family or facts.family
    notes = [f"{len(facts.foreign)} keys belong to no adapter: {', '.join(facts.foreign[:3])}"] if facts.foreign else []
    if family is None:
        raise UserError(
            "adapter: its tensors fit none of the families; it should be an adapter for one of " + ", ".join(known())
        )
    sites: dict[str, dict[int, tuple[str, dict[str, Tensor]]]] = {}
    for (component, path), module in _modules(tensors, metadata).items():
        dotted, part = _file_path(family, component, path)
        name = f"lora_{_component(family, component)}_{dotted.replace('.', '_')}"
        sites.setdefault(name, {})[-1 if part is None else part] = (path, module)
    split_qkv = network_args(metadata).get("split_qkv") == "True"
    found: dict[str, Tensor] = {}
    untied = thirds = 0
    for name, parts in sites.items():
        if -1 in parts:
            path, module = parts[-1]
            if split_qkv and name.endswith("_qkv") and "alpha" in module:
                module, thirds = {**module, "alpha": module["alpha"] * 3}, thirds + 1
            module = algebra.swap_halves(module) if _swaps(family, path, module) else module
        else:
            module, was_tied = algebra.fuse(_complete(name, {part: module for part, (_, module) in parts.items()}))
            untied += not was_tied
        found.update({f"{name}.{tensor}": value for tensor, value in module.items()})
    if untied:
        notes.append(f"{untied} modules hold q, k, v of their own: they become one of three times the rank and alpha")
    if thirds:
        notes.append(
            f"{thirds} modules were trained with split_qkv and say a third of their strength: alpha is tripled"
        )
    return found, notes


def _modules(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[tuple[str, str], dict[str, Tensor]]:
    """The tensors by module, with LyCORIS's shape of DoRA's magnitude and an alpha where the file has a say on it."""
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    for key, value in tensors.items():
        ref = parse(key)
        if ref is None:
            continue
        grouped.setdefault((ref.component, ref.path), {})[ref.tensor] = value
    for (component, path), module in grouped.items():
        if "dora_scale" in module and module["dora_scale"].dim() != 2:
            up = module.get("lora_up.weight")
            ones = (1,) * (up.dim() - 1) if up is not None else (1,)
            scale = module["dora_scale"]
            if scale.dim() == 1 or (up is not None and scale.shape == (1, up.shape[0], 1, 1)):  # PEFT's
                module["dora_scale"] = scale.reshape(-1, *ones)
        rank = algebra.rank_of(module)
        if config and "alpha" not in module and rank is not None:
            module["alpha"] = torch.tensor(_config_alpha(config, component, path, rank))
    return grouped


def _config_alpha(config: Mapping[str, object], component: str, path: str, rank: int) -> float:
    """The alpha that PEFT's configuration in a header gives a module, for scale = alpha / rank."""
    starts = ("unet", "transformer") if component == DENOISER else ("text_encoder",)
    if component in ("te2", "te3"):
        starts = (f"text_encoder_{component[-1]}",)
    for start in starts:
        mine = {k.removeprefix(f"{start}."): v for k, v in config.items() if k.startswith(f"{start}.")}
        if "lora_alpha" not in mine and "alpha" not in mine:
            continue
        patterns = mine.get("alpha_pattern") or {}
        alpha = mine.get("lora_alpha", mine.get("alpha"))
        assert isinstance(patterns, Mapping)
        bare = path.removeprefix("text_model.")  # transformers 5 has no text_model in some CLIP classes
        for pattern, value in patterns.items():
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in (path, bare)):
                alpha = value
        assert isinstance(alpha, (int, float))
        return float(alpha) * (math.sqrt(rank) if mine.get("use_rslora") else 1)
    return float(rank)


def _file_path(family: str, component: str, path: str) -> tuple[str, int | None]:
    """As ``names.file_path``; paths that are the file's own already pass through."""
    return file_path(family, DENOISER if component == DENOISER else "te", path)


def _swaps(family: str, path: str, module: Mapping[str, Tensor]) -> bool:
    found = matrix({name: tuple(value.shape) for name, value in module.items()})
    return found is not None and key_mapping(family).is_swapped(path, found)


def _complete(name: str, parts: Mapping[int, dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """q, k and v, where a missing one adds nothing."""
    some = next(iter(parts.values()))
    if len(parts) < 3 and "dora_scale" in some:
        raise UserError(f"{name}: DoRA on some of q, k, v only has no fused form; resize it to a plain LoRA first")
    nothing = {n: torch.zeros_like(v) if n in algebra.OUT_ROWS else v for n, v in some.items()}
    return [parts.get(part, nothing) for part in range(3)]


def network_args(metadata: Mapping[str, str]) -> dict[str, object]:
    """Kohya's network_args of a header; empty where it has none that can be read."""
    try:
        found = json.loads(metadata.get("ss_network_args", "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
