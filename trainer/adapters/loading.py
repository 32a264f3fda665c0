"""An adapter file as a host loads it: by the names that the host knows, with all that cannot be applied named.

ComfyUI nodes import this file, so it and what it imports need the standard library, torch and safetensors only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import UserError
from . import algebra, keys
from .mappings.mmdit import is_swapped, to_file
from .names import DENOISER, file_path
from .parse import Ref, parse, split

_LORA = ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "dora_scale", "diff_b")
UNREAD = ("on_input", "oft_diag", "oft_R", "boft_R", "boft_s", "vera_lambda_b", "vera_lambda_d", "bm", "lokr_t1")
"""Tensors of adapters that no loader of ComfyUI has a patch for."""
_CLIPS = {"te": ("clip_l", "clip_h", "clip_g"), "te1": ("clip_l",), "te2": ("clip_g",), "te3": ("t5xxl",)}


@dataclass
class HostFile:
    """What of a file may be applied, and what not."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Under names that the host knows; what it has no name for stays as the file spells it."""
    lost: list[str] = field(default_factory=list)
    """Modules that are not among ``tensors``."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Found:
    ref: Ref
    keys: dict[str, str]
    """Tensor by Kohya's name -> key in the file."""
    tensors: dict[str, Tensor]


def for_host(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: Collection[str]) -> HostFile:
    """The file under those of the host's ``names`` that lead to the same modules."""
    found = HostFile()
    bad = [key for key, value in tensors.items() if not algebra.finite(value)]
    _report(found.problems, bad, "tensors hold NaN or infinite values")
    if words := keys.embeddings(tensors):
        found.notes.append(f"it holds embeddings, which are not applied: {', '.join(words)}")
    known = _grouped(tensors, found)
    thirds: dict[str, dict[int, _Found]] = {}
    tripled, config = 0, keys.peft_config(metadata)
    split_qkv = keys.network_args(metadata).get("split_qkv") == "True"
    half, unread, nothing = [], [], 0
    for (component, path), one in known.items():
        if any(name in UNREAD for name in one.tensors):
            unread.append(one.ref.module)
            continue
        if lacking := algebra.missing(one.tensors):
            half.append(f"{one.ref.module} without {lacking}")
            continue
        if algebra.rank_of(one.tensors) == 0:
            nothing += 1
            continue
        try:
            one.tensors = keys.normal(component, path, one.keys, one.tensors, config)
        except UserError as error:
            half.append(str(error))
            continue
        if "diff_b" in one.tensors and not one.tensors["diff_b"].any():
            del one.tensors["diff_b"]
        if split_qkv and one.ref.module.endswith("_qkv") and "alpha" in one.tensors:
            one.tensors["alpha"], tripled = one.tensors["alpha"] * 3, tripled + 1
        dotted, part = to_file(path, 2)
        direct = one.ref.module in names and "diff_b" not in one.tensors
        if component == DENOISER and part is not None and not direct:
            thirds.setdefault(dotted, {})[part] = one
        else:
            _put(found, one, *_named(component, path, one, names))
    untied = _fused(found, thirds, names)
    found.lost += [*half, *unread]
    _report(found.problems, half, "modules are damaged and left out")
    _report(found.problems, unread, "modules are of a method that ComfyUI has no patch for")
    if nothing:
        found.notes.append(f"{nothing} modules are of rank 0, which adds nothing")
    if untied:
        found.notes.append(f"{untied} modules have q, k and v of their own, joined at three times the rank")
    if tripled:
        found.notes.append(
            f"{tripled} modules were trained with split_qkv at a third of their strength: alpha is tripled"
        )
    namings = {one.ref.naming for one in known.values()} - {"kohya"}
    found.notes += [f"read {naming} names" for naming in sorted(namings)]
    return found


def _report(lines: list[str], names: list[str], what: str) -> None:
    if names:
        lines.append(f"{len(names)} {what}, as {names[0]}")


def _grouped(tensors: Mapping[str, Tensor], found: HostFile) -> dict[tuple[str, str], _Found]:
    """By module, what is for a network that we know; the rest goes into ``found`` as the file spells it."""
    known: dict[tuple[str, str], _Found] = {}
    foreign: dict[str, dict[str, str]] = {}
    twice = []
    for key, value in tensors.items():
        if key.startswith(keys.EMBEDDING):
            continue
        ref = parse(key)
        if ref is None:
            module, tensor = split(key) or (key, "")
            foreign.setdefault(module, {})[tensor] = key
            continue
        one = known.setdefault((ref.component, ref.path), _Found(ref, {}, {}))
        if ref.tensor in one.keys and not algebra.equal(one.tensors[ref.tensor], value):
            twice.append(key)
            continue
        if ref.tensor != "dora_scale":  # half-flattened names: the matrices' spelling is the one that hosts know
            one.ref = ref
        one.keys[ref.tensor], one.tensors[ref.tensor] = key, value
    for module, own in foreign.items():
        if "" not in own and (lacking := algebra.missing(own)):
            found.lost.append(module)
            found.problems.append(f"{module} without {lacking} is left out")
            continue
        for tensor, key in own.items():
            if tensor == "dora_scale" and "lora_magnitude_vector" in key:
                value = tensors[key]
                found.tensors[f"{module}.dora_scale"] = value.reshape(-1, *(1,) * max(value.dim() - 1, 1))
            else:
                found.tensors[key] = tensors[key]
    found.lost += twice
    _report(found.problems, twice, "tensors are a second adapter for a module and left out")
    return known


def _candidates(component: str, path: str) -> Iterator[str]:
    """Names that hosts may know a module by."""
    flat = path.replace(".", "_")
    if component != DENOISER:
        for start in dict.fromkeys((component, *(("te", "te1") if component in ("te", "te1") else ()))):
            yield f"lora_{start}_{flat}"
        for clip in _CLIPS[component]:
            yield f"text_encoders.{clip}.transformer.{path}"
        return
    yield f"lora_unet_{flat}"
    yield f"lora_unet_{file_path('sdxl', DENOISER, path)[0].replace('.', '_')}"
    for start in ("lora_transformer_", "lycoris_"):
        yield f"{start}{flat}"
    yield f"transformer.{path}"


def _named(component: str, path: str, one: _Found, names: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """The host's name of a module and its tensors there; the file's own name where the host has none."""
    dotted, part = to_file(path, 2)
    own = f"lora_unet_{dotted.replace('.', '_')}"
    if component == DENOISER and dotted != path and part is None and own in names:  # the original MMDiT's
        found = keys.matrix({name: tuple(value.shape) for name, value in one.tensors.items()})
        if one.ref.naming != "kohya" or one.ref.module not in names:
            return own, algebra.swap_halves(one.tensors) if is_swapped(path, found or (0, 1)) else one.tensors
    if one.ref.module in names:
        return one.ref.module, one.tensors
    return next((name for name in _candidates(component, path) if name in names), one.ref.module), one.tensors


def _put(found: HostFile, one: _Found, name: str, tensors: Mapping[str, Tensor]) -> None:
    for tensor, value in tensors.items():
        key = one.keys.get(tensor, "")
        own = tensor in _LORA or not key.startswith(one.ref.module)
        found.tensors[f"{name}.{tensor}" if own else name + key.removeprefix(one.ref.module)] = value


def _fused(found: HostFile, thirds: Mapping[str, Mapping[int, _Found]], names: Collection[str]) -> int:
    """Put q, k and v as the one module that the original MMDiT has, or each by itself where there is no such adapter;
    how many became block-diagonal."""
    untied = 0
    for dotted, parts in thirds.items():
        name = f"lora_unet_{dotted.replace('.', '_')}"
        try:
            if name not in names:
                raise UserError("the host does not know the fused module")
            whole, was_tied = algebra.fuse(keys.complete(name, {part: one.tensors for part, one in parts.items()}))
        except UserError:
            for one in parts.values():
                _put(found, one, *_named(DENOISER, one.ref.path, one, names))
            continue
        untied += not was_tied
        found.tensors.update({f"{name}.{tensor}": value for tensor, value in whole.items()})
    return untied
