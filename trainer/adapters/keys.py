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

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import algebra
from .mappings.mapping import Shape, key_mapping, named_in
from .mappings.mapping import known as known
from .names import DENOISER, all_sites, file_path
from .names import Site as Site
from .names import encoder as encoder
from .parse import Naming, parse

KINDS = ("lora", "dora", "loha", "lokr")
DORA_MARK = ("dora_norm", "bare")
"""In ss_network_args: this DoRA's magnitudes are for readers that divide by |W| instead of |W + delta|."""


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
    return AdapterFacts(
        family, kind_of(grouped.values()), namings.most_common(1)[0][0], dict(modules), dict(ranks.most_common()),
        tuple(foreign),
    )  # fmt: skip


_MARKS = {
    "lora": "lora_down.weight", "loha": "hada_w1_a", "lokr": "lokr_w1", "glora": "a1", "oft": "oft_blocks",
    "diag-oft": "oft_diag", "boft": "boft_R", "ia3": "on_input", "vera": "vera_lambda_b", "full": "diff",
    "norm": "w_norm",
}  # fmt: skip


_ALIKE = {"lora": "lora_down.weight", "hada": "hada_w1_a", "lokr": "lokr_w1", "oft": "oft_blocks"}
"""How the names of a method's tensors begin -> its mark, so that half a module counts too."""


def kind_of(modules: Iterable[Mapping[str, Shape]]) -> str | None:
    """The kind of an adapter of these modules; differences of norms and biases count where there is nothing else."""
    kinds: dict[str, None] = {}
    for tensors in modules:
        names = {_ALIKE.get(n.partition("_")[0], n) if n != "oft_diag" else n for n in tensors}
        kind = next((kind for kind, mark in _MARKS.items() if mark in names), None)
        if kind == "full" and len(tensors["diff"]) < 2:
            kind = "norm"
        if kind == "oft" and len(tensors.get("oft_blocks", ())) == 4:
            kind = "boft"
        if kind and "dora_scale" in names:
            kind = "dora" if kind == "lora" else f"{kind} with dora"
        kinds[kind or ("bias" if "diff_b" in names else "")] = None
    main = [kind for kind in kinds if kind not in ("", "norm", "bias")] or [kind for kind in kinds if kind]
    return None if not main else main[0] if len(main) == 1 else "mixed"


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


_MATRICES = ("lora_", "hada_", "lokr_")


def matrix(tensors: Mapping[str, Shape]) -> tuple[int, int] | None:
    """(out, in) of the weight that an adapter's shapes fit; the kernel of a flattened convolution counts as ``in``."""
    if any(len(shape) < 2 for name, shape in tensors.items() if name.startswith(_MATRICES)):
        tensors = {}  # damaged
    if "lora_down.weight" in tensors and "lora_up.weight" in tensors:
        return tensors["lora_up.weight"][0], tensors["lora_down.weight"][1]
    if "hada_w1_a" in tensors and "hada_w1_b" in tensors and "hada_t1" not in tensors:
        return tensors["hada_w1_a"][0], tensors["hada_w1_b"][1]
    if len(tensors.get("diff", ())) > 1:
        return tensors["diff"][0], tensors["diff"][1]
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

Module = dict[str, Tensor]


@dataclass
class Reading:
    """An adapter file by Kohya's names."""

    family: str
    modules: dict[str, Module]
    """Name in the file of Kohya's tools -> tensors."""
    apart: dict[str, list[Module]]
    """The same for q, k and v that no single adapter can stand for."""
    notes: list[str]
    left: dict[str, str]
    """Keys that are not in ``modules`` -> why."""


def to_kohya(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, family: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names that Kohya's tools, A1111 and ComfyUI read, with the same effect; and notes.

    Tensors that have their name already pass unchanged. ``family`` overrules what the tensors tell. UserError where
    the family is unknown or an adapter has no such form.
    """
    found = read(tensors, metadata, family)
    if found.apart:
        raise UserError(f"{next(iter(found.apart))}: {APART}")
    flat = {f"{name}.{tensor}": value for name, module in found.modules.items() for tensor, value in module.items()}
    return flat, found.notes


def read(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, family: str | None = None
) -> Reading:
    """As ``to_kohya``, with what cannot be in one file of Kohya's apart. UserError for a damaged file too: half a
    module, or two keys for one tensor."""
    metadata = metadata or {}
    places, left = whole_places(tensors)
    family = family or identify({key: tuple(value.shape) for key, value in tensors.items()}, metadata).family
    if family is None:
        raise UserError("its tensors fit none of the families that are known: " + ", ".join(known()) + "; give another")
    foreign = [key for key, why in left.items() if why == FOREIGN]
    notes = [f"{len(foreign)} keys belong to no adapter: {', '.join(map(repr, foreign[:3]))}"] if foreign else []
    if words := embeddings(tensors):
        notes.append(f"it holds embeddings beside the adapter, which are left out: {', '.join(words)}")
    config = peft_config(metadata)
    sites: dict[str, dict[int, tuple[str, Module]]] = {}
    for (component, path), spelled in places.items():
        module = {tensor: tensors[key] for tensor, key in spelled.items()}
        if algebra.rank_of(module) == 0:
            left |= dict.fromkeys(spelled.values(), NO_RANK)
            continue
        dotted, part = _file_path(family, component, path)
        name = f"lora_{_component(family, component)}_{dotted.replace('.', '_')}"
        mine, place = sites.setdefault(name, {}), -1 if part is None else part
        if place in mine or (mine and (place == -1) != (-1 in mine)):
            first = next(iter(spelled.values()))
            raise UserError(f"'{first}' is a second adapter for the same module, '{name}'; one of them is to go")
        mine[place] = (path, normal(component, path, spelled, module, config))
    found = Reading(family, {}, {}, notes, left)
    untied = thirds = 0
    split_qkv = network_args(metadata).get("split_qkv") == "True"
    for name, parts in sites.items():
        if -1 not in parts:
            whole = complete(name, {part: module for part, (_, module) in parts.items()})
            try:
                found.modules[name], was_tied = algebra.fuse(whole)
                untied += not was_tied
            except UserError:
                found.apart[name] = whole
            continue
        path, module = parts[-1]
        if split_qkv and name.endswith("_qkv") and "alpha" in module:
            module, thirds = {**module, "alpha": module["alpha"] * 3}, thirds + 1
        found.modules[name] = algebra.swap_halves(module) if _swaps(family, path, module) else module
    if empty := sum(why == NO_RANK for why in left.values()):
        notes.append(f"{empty} tensors are of rank 0, which adds nothing, and are left out")
    if untied:
        notes.append(f"{untied} modules hold q, k, v of their own: they become one of three times the rank and alpha")
    if thirds:
        notes.append(
            f"{thirds} modules were trained with split_qkv and have a third of their strength: alpha is tripled"
        )
    return found


APART = "q, k and v hold adapters of their own that no single one can stand for; use the file as it is"
FOREIGN = "it belongs to no adapter"
NO_RANK = "its rank is 0, which adds nothing"
EMBEDDING = "bundle_emb."
"""What the keys of embeddings that OneTrainer puts beside an adapter begin with."""


def embeddings(tensors: Iterable[str]) -> list[str]:
    """The words of the embeddings that a file holds beside its adapter."""
    return list(dict.fromkeys(key.split(".")[1] for key in tensors if key.startswith(EMBEDDING) and key.count(".") > 1))


def places_of(tensors: Mapping[str, Tensor]) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, str]]:
    """(component, path) -> tensor by Kohya's name -> key in the file; and the other keys, with why they are left.

    UserError for two keys that are one tensor of one module, unless they are equal.
    """
    places: dict[tuple[str, str], dict[str, str]] = {}
    left: dict[str, str] = {}
    for key, value in tensors.items():
        ref = None if key.startswith(EMBEDDING) else parse(key)
        if ref is None:
            left[key] = "it is an embedding" if key.startswith(EMBEDDING) else FOREIGN
            continue
        mine = places.setdefault((ref.component, ref.path), {})
        other = mine.setdefault(ref.tensor, key)
        if other != key:
            if not algebra.equal(tensors[other], value):
                raise UserError(f"'{other}' and '{key}' are the same tensor of one module; one of them is to go")
            left[key] = f"it equals '{other}'"
    return places, left


def whole_places(tensors: Mapping[str, Tensor]) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, str]]:
    """As ``places_of``. UserError for half a module."""
    places, left = places_of(tensors)
    for spelled in places.values():
        if lacking := algebra.missing(spelled):
            names = ", ".join(spelled.values())
            raise UserError(f"{names}: {lacking} is missing, so the module is half; copy or download the file again")
        for name, key in spelled.items():
            if name.startswith(_MATRICES) and not name.endswith(".bias") and tensors[key].dim() < 2:
                raise UserError(f"{key}: it is {list(tensors[key].shape)}, no matrix; copy or download the file again")
    return places, left


def normal(
    component: str, path: str, spelled: Mapping[str, str], module: Module, config: Mapping[str, object]
) -> Module:
    """A module's tensors as LyCORIS has them: the shape of DoRA's magnitudes, the alpha of PEFT's configuration in a
    header, and a bias of LoRA's up matrix as a difference of the bias. UserError where they are no adapter."""
    rank = algebra.rank_of(module)
    if "alpha" in module and module["alpha"].numel() != 1:
        raise UserError(
            f"{spelled['alpha']}: it is no number but {list(module['alpha'].shape)}; the file is damaged, "
            "copy or download it again"
        )
    if "dora_scale" in module:
        module["dora_scale"] = _magnitudes(module, "lora_magnitude_vector" in spelled["dora_scale"])
    if config and "alpha" not in module and rank is not None:
        module["alpha"] = torch.tensor(_config_alpha(config, component, path, rank))
    if "lora_up.bias" in module:
        bias = module.pop("lora_up.bias")
        more = module.get("diff_b", torch.zeros_like(bias, dtype=torch.float32))
        if more.shape != bias.shape:
            raise UserError(f"{spelled['lora_up.bias']}: it is {list(bias.shape)}, diff_b {list(more.shape)}; "
                            "the file is damaged")  # fmt: skip
        module["diff_b"] = (bias.float() * algebra.scale_of(module) + more.float()).to(bias.dtype)
    if wrong := algebra.damage(module):
        ref = parse(next(iter(spelled.values())))
        where = ref.module if ref else path
        raise UserError(f"{where}: {wrong}; the file is damaged, copy or download it again")
    return module


def _magnitudes(module: Module, pefts: bool) -> Tensor:
    """DoRA's magnitudes as [out, 1, ...], or, where they are those of the inputs, [1, in, ...].

    PEFT writes [out], and [1, out, 1, 1] of a convolution; some tools write [in] of the inputs.
    """
    scale = module["dora_scale"]
    try:
        whole = algebra.delta(algebra.on_meta({n: v for n, v in module.items() if n != "dora_scale"}))
    except (RuntimeError, IndexError, KeyError):
        return scale  # ``damage`` says what is wrong
    if whole.dim() < 2 or not whole.numel():
        return scale
    ones = (1,) * (whole.dim() - 2)
    if pefts or (scale.dim() == 1 and scale.numel() == whole.shape[0]):
        return scale.reshape(-1, 1, *ones)
    columns = scale.dim() == 1 or (scale.dim() > 1 and scale.shape[0] == 1 and set(scale.shape[2:]) <= {1})
    if columns and scale.numel() > 1 and whole.flatten(1).shape[1] % scale.numel() == 0:
        return scale.reshape(1, -1, *ones)
    return scale.reshape(-1, 1, *ones) if scale.dim() > 1 and set(scale.shape[1:]) <= {1} else scale


def peft_config(metadata: Mapping[str, str]) -> Mapping[str, object]:
    """PEFT's configuration in a header; empty where it has none that can be read."""
    try:
        found = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _config_alpha(config: Mapping[str, object], component: str, path: str, rank: int) -> float:
    """The alpha that PEFT's configuration in a header gives a module, for scale = alpha / rank."""
    starts = ("unet", "transformer") if component == DENOISER else ("text_encoder",)
    if component in ("te2", "te3"):
        starts = (f"text_encoder_{component[-1]}",)
    for start in starts:
        mine = {k.removeprefix(f"{start}."): v for k, v in config.items() if k.startswith(f"{start}.")}
        if "lora_alpha" not in mine and "alpha" not in mine:
            continue
        patterns, alpha = mine.get("alpha_pattern"), mine.get("lora_alpha", mine.get("alpha"))
        bare = path.removeprefix("text_model.")  # transformers 5 has no text_model in some CLIP classes
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            try:
                hit = any(re.match(rf"(.*\.)?({pattern})$", name) for name in (path, bare))
            except re.error:
                hit = False
            alpha = value if hit else alpha
        if not isinstance(alpha, (int, float)):
            raise UserError(
                f"the PEFT configuration in its header has the alpha '{alpha}', which is no number; correct it"
            )
        return float(alpha) * (math.sqrt(rank) if mine.get("use_rslora") else 1)
    return float(rank)


def _file_path(family: str, component: str, path: str) -> tuple[str, int | None]:
    """As ``names.file_path``; paths that are the file's own already pass through."""
    return file_path(family, DENOISER if component == DENOISER else "te", path)


def _swaps(family: str, path: str, module: Mapping[str, Tensor]) -> bool:
    found = matrix({name: tuple(value.shape) for name, value in module.items()})
    return key_mapping(family).is_swapped(path, found or (0, 1))


def complete(name: str, parts: Mapping[int, dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """q, k and v, where a missing one adds nothing."""
    some = next(iter(parts.values()))
    if len(parts) < 3 and "dora_scale" in some:
        raise UserError(f"{name}: DoRA on some of q, k, v only has no fused form; use a file that has all three")
    nothing = {n: torch.zeros_like(v) if n in algebra.OUT_ROWS else v for n, v in some.items()}
    return [parts.get(part, nothing) for part in range(3)]


def network_args(metadata: Mapping[str, str]) -> dict[str, object]:
    """Kohya's network_args of a header; empty where it has none that can be read."""
    try:
        found = json.loads(metadata.get("ss_network_args", "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
