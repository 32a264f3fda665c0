"""Adapter files into other programs' forms and other ranks, several into one, and what a file says of itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..runs.files import make_folder, write_atomic
from . import algebra, files, keys
from .mappings.mapping import key_mapping
from .names import DENOISER, kernel, model_paths, unflatten
from .ranks import Modules, join, resize

Form = Literal["kohya", "diffusers", "peft"]


# ------------------------------------------------------------------------------------------------------------ commands


def convert(source: Path, target: Path, to: Form = "kohya", rank: int | None = None) -> list[str]:
    """Write ``source`` in another form, at another rank if given; returns notes, with what was lost.

    ``kohya``: what A1111, Forge, ComfyUI and sd-scripts read. ``diffusers``: what its pipelines read. ``peft``: folders
    that PEFT reads, one per part of the model. ValueError where the form cannot hold the adapter.
    """
    modules, metadata, family, notes = _read(source)
    if rank is not None:
        modules, loss = resize(modules, rank, family)
        notes.append(f"rank {rank}: {_percent(loss)} of the effect is lost")
        metadata = {
            **metadata,
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(_common(modules, algebra.alpha_of)),
        }
    kind = _kind(modules)
    if to != "kohya" and keys.network_args(metadata).get(keys.DORA_MARK[0]) == keys.DORA_MARK[1]:
        notes.append("its magnitudes are exact in ComfyUI and Forge, nearly so elsewhere (adapter.dora_for)")
    with files.naming(source):
        if to == "kohya":
            files.save(target, _flat(modules), _header(metadata, family, kind, modules, target))
        elif to == "diffusers":
            tensors, more = to_diffusers(modules, family)
            notes += more
            files.save(target, tensors, {})
        else:
            notes += _save_peft(target, modules, family, kind)
    return notes


def merge(sources: Sequence[tuple[Path, float]], target: Path, rank: int | None = None) -> list[str]:
    """Several adapters of one family, each with its weight, as one file; returns notes, with what was lost.

    LoRA files are joined exactly (ranks add up) and cut to ``rank`` if given; LoHa and LoKr need ``rank``. ValueError
    for DoRA, whose effects do not add up, and for a mix of families.
    """
    read = [(*_read(path), weight, path) for path, weight in sources]
    notes = [note for _, _, _, said, _, _ in read for note in said]
    families = {family for _, _, family, _, _, _ in read}
    if len(families) != 1:
        raise UserError(f"merge: the files are for {', '.join(sorted(families))}; choose files for one family")
    parts: list[tuple[Modules, float]] = []
    for modules, _, _, _, weight, path in read:
        kind = _kind(modules)
        if kind == "dora":
            raise UserError(f"{path}: a DoRA cannot be merged, its effect depends on the base; use it as it is")
        if kind != "lora" and rank is None:
            raise UserError(f"{path}: a {kind} can only be merged into a LoRA; give --rank")
        parts.append((modules, weight))
    merged, loss = join(parts, rank, read[0][2])
    notes.append(f"rank {_common(merged, algebra.rank_of)}: {_percent(loss)} of the joint effect is lost")
    origin = ", ".join(f"{path.stem}:{weight:g}" for path, weight in sources)
    header = _header({}, families.pop(), "lora", merged, target)
    files.save(target, _flat(merged), {**header, "modelspec.merged_from": origin})
    return notes


def _config(text: str | None) -> Any:
    """The configuration that a file carries; None when there is none, or it is no JSON."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def inspect(path: Path) -> dict[str, Any]:
    """All that a file tells: family, kind, ranks, alphas, trigger words, training, hashes, what does not belong."""
    tensors, metadata = files.read(path)
    facts = keys.identify({key: tuple(value.shape) for key, value in tensors.items()}, metadata)
    alphas = Counter(float(value) for key, value in tensors.items() if key.endswith("alpha") and value.numel() == 1)
    said = {key: value for key, value in metadata.items() if key.startswith("ss_") and value != "None"}
    data_hash = None
    if path.is_file() and path.suffix == ".safetensors":
        data_hash = files.data_hash(path)
    stored = metadata.get("sshs_model_hash")
    config = metadata.get(files.CONFIG)
    return {
        "path": str(path),
        "family": facts.family,
        "kind": facts.kind,
        "naming": facts.naming,
        "modules": facts.modules,
        "ranks": facts.ranks,
        "alphas": dict(alphas.most_common()),
        "types": dict(Counter(str(value.dtype).removeprefix("torch.") for value in tensors.values())),
        "parameters": sum(value.numel() for key, value in tensors.items() if not key.endswith("alpha")),
        "title": metadata.get("modelspec.title") or metadata.get("ss_output_name"),
        "trigger_words": trigger_words(metadata),
        "base_model": metadata.get("ss_sd_model_name"),
        "says_it_is_for": metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version"),
        "training": {k.removeprefix("ss_"): v for k, v in said.items() if k.removeprefix("ss_") not in files.PRIVATE},
        "config": _config(config),
        "hashes": {"stored": stored, "found": data_hash, "agree": None if stored is None else stored == data_hash},
        "does_not_belong": list(facts.foreign),
    }


def trigger_words(metadata: Mapping[str, str], most: int = 10) -> list[str]:
    """What the author says calls the adapter up; else the commonest tags of its training set."""
    phrase = metadata.get("modelspec.trigger_phrase")
    if phrase:
        return [word.strip() for word in phrase.split(",") if word.strip()]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        tags = Counter[str]()
        for counts in folders.values():
            tags.update({tag: int(count) for tag, count in counts.items()})
    except (ValueError, AttributeError, TypeError):
        return []
    return [tag for tag, _ in tags.most_common(most)]


# --------------------------------------------------------------------------------------------------------------- forms


def to_diffusers(modules: Modules, family: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as diffusers' pipelines read them, the scale folded into the up matrix; and notes."""
    kind = _kind(modules)
    if kind not in ("lora", "dora"):
        raise UserError(f"diffusers reads no {kind} for these models; give --rank to make it a LoRA")
    found: dict[str, Tensor] = {}
    worst = 0.0
    for (component, path), module in _apart(modules, family).items():
        module, _ = algebra.as_plain(module)
        start = f"{_part(family, component)}.{path}"
        up = module["lora_up.weight"]
        exact = up.float() * algebra.scale_of(module)
        found[f"{start}.lora_A.weight"] = module["lora_down.weight"]
        found[f"{start}.lora_B.weight"] = exact.to(up.dtype)
        worst = max(worst, float((exact.to(up.dtype).float() - exact).norm() / exact.norm().clamp(min=1e-30)))
        if "dora_scale" in module:
            found[f"{start}.lora_magnitude_vector"] = _peft_magnitude(module["dora_scale"])
    lost = (
        f"alpha is folded into the up matrices, rounding loses {worst:.0e}" if worst else "alpha is folded in exactly"
    )
    notes = [lost]
    if any(key.startswith("text_encoder_3.") for key in found):
        notes.append("diffusers' pipelines leave the T5 part out")
    if kind == "dora" and any(key.startswith("text_encoder") for key in found):
        notes.append("diffusers with transformers 5 reads no magnitudes of text encoders: their part is wrong there")
    return found, notes


def _save_peft(target: Path, modules: Modules, family: str, kind: str) -> list[str]:
    """PEFT's folder for each part of the model, below ``target``."""
    from safetensors.torch import save

    if target.suffix in (".safetensors", ".pt", ".ckpt", ".bin"):
        raise UserError(f"{target}: PEFT keeps an adapter in a folder; give a folder's name")
    parts: dict[str, dict[str, dict[str, Tensor]]] = {}
    for (component, path), module in _apart(modules, family).items():
        parts.setdefault(_part(family, component), {})[path] = algebra.as_plain(module)[0]
    for part, own in parts.items():
        tensors = {}
        for path, module in own.items():
            start = f"base_model.model.{path}"
            names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight",
                     "dora_scale": "lora_magnitude_vector"}  # fmt: skip
            for name, value in module.items():
                if name != "alpha":
                    value = _peft_magnitude(value) if name == "dora_scale" else value
                    tensors[f"{start}.{names.get(name, name)}"] = value.contiguous()
        folder = target / part
        make_folder(folder)
        write_atomic(folder / files.PEFT_WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_atomic(folder / files.PEFT_CONFIG, json.dumps(_peft_config(kind, own), indent=2))
    text = [part for part in parts if part.startswith("text_encoder")]
    return [f"{', '.join(text)}: module names are those of transformers before 5"] if text else []


def _peft_config(kind: str, modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    ranks = {path: algebra.rank_of(module) for path, module in modules.items()}
    alphas = {path: algebra.alpha_of(module) for path, module in modules.items()}
    config: dict[str, Any] = {}
    if kind == "lokr":
        config["decompose_factor"], config["decompose_both"] = _lokr_factor(modules)
        for path, rank in ranks.items():
            if rank is None:  # two whole matrices: PEFT makes them for a large rank, and scale 1 is meant
                ranks[path] = alphas[path] = max(modules[path]["lokr_w2"].shape[:2])
    if kind == "loha":
        config["use_effective_conv2d"] = any("hada_t1" in module for module in modules.values())
    rank = Counter(r for r in ranks.values() if r).most_common(1)[0][0]
    alpha = Counter(a for a in alphas.values() if a is not None).most_common(1)[0][0]
    return {
        "peft_type": {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR"}[kind],
        "r": rank,
        ("lora_alpha" if kind in ("lora", "dora") else "alpha"): alpha,
        "target_modules": sorted(modules),
        "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha},
        **({"use_dora": kind == "dora"} if kind in ("lora", "dora") else {}),
        **config,
    }


def _lokr_factor(modules: Mapping[str, Mapping[str, Tensor]]) -> tuple[int, bool]:
    """PEFT's decompose_factor and decompose_both that give a LoKr's shapes. ValueError where none does."""
    have = {path: {name: tuple(value.shape) for name, value in own.items()} for path, own in modules.items()}
    for factor in (-1, *range(2, 129)):
        for both in (False, True):
            if all(_lokr_fits(one, path, factor, both) for path, one in have.items()):
                return factor, both
    raise UserError("PEFT has no settings for the shapes of this LoKr; give --rank to make it a LoRA")


def _lokr_fits(one: Mapping[str, tuple[int, ...]], path: str, factor: int, both: bool) -> bool:
    """Whether PEFT would make these shapes, for the same weight and rank."""
    whole = list(one.get("lokr_w2", ()))
    window = tuple(whole[2:]) if whole else kernel("sd2", path)
    window = () if not whole and window == (1, 1) else window
    size = keys.matrix(one)
    if size is None:
        return False
    rows, columns = size[0], size[1] if whole else size[1] // math.prod(window)
    rank = algebra.rank_of(one) or max(rows, columns)
    found = algebra.shapes("lokr", (rows, columns, *window), rank, factor=factor, decompose_both=both)
    return found | {"alpha": ()} == dict(one) | {"alpha": ()}


def _peft_magnitude(scale: Tensor) -> Tensor:
    """LyCORIS's [out, 1] or [out, 1, 1, 1] -> PEFT's [out] or [1, out, 1, 1]."""
    return scale.flatten().clone() if scale.dim() == 2 else scale.transpose(0, 1).contiguous()


def _apart(modules: Modules, family: str) -> dict[tuple[str, str], dict[str, Tensor]]:
    """By the model's own modules: (component, diffusers path) -> tensors; q, k and v each their own."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, module in modules.items():
        component = name.split("_")[1]
        paths = model_paths(family, component, unflatten(name.removeprefix(f"lora_{component}_")))
        shapes = {tensor: tuple(value.shape) for tensor, value in module.items()}
        if key_mapping(family).is_swapped(paths[0], keys.matrix(shapes) or (1, 1)):
            module = algebra.swap_halves(module)
        with files.naming(name):
            parts = algebra.split(module, len(paths)) if len(paths) > 1 else [module]
        found.update(((component, path), part) for path, part in zip(paths, parts))
    return found


def _part(family: str, component: str) -> str:
    """diffusers' name of a component."""
    if component == DENOISER:
        return key_mapping(family).denoiser
    return {"te": "text_encoder", "te1": "text_encoder"}.get(component, f"text_encoder_{component[-1]}")


# -------------------------------------------------------------------------------------------------------------- pieces


def _read(path: Path) -> tuple[Modules, dict[str, str], str, list[str]]:
    """(modules by Kohya's names, metadata, family, notes) of any readable adapter."""
    tensors, metadata = files.read(path)
    facts = keys.identify({key: tuple(value.shape) for key, value in tensors.items()}, metadata)
    if facts.kind not in keys.KINDS or facts.family is None:
        what = f"of kind {facts.kind}" if facts.kind else "that is no adapter"
        raise UserError(f"{path}: it is a file {what} for {facts.family or 'no family that we know'}; give a lora, "
                         "dora, loha or lokr for SD1.5, SD2, SDXL or SD3")  # fmt: skip
    with files.naming(path):
        flat, notes = keys.to_kohya(tensors, metadata, facts.family)
    args = keys.network_args(metadata)
    if args.pop("split_qkv", None):  # said once: the alphas are whole from here on
        metadata = {**metadata, "ss_network_args": json.dumps(args)}
    modules: Modules = {}
    for key, value in flat.items():
        name, _, tensor = key.partition(".")
        modules.setdefault(name, {})[tensor] = value
    return modules, metadata, facts.family, notes


def _flat(modules: Modules) -> dict[str, Tensor]:
    """Tensors by their whole names, with an alpha for each module: readers differ on a missing one."""
    found = {}
    for name, module in modules.items():
        alpha = algebra.alpha_of(module)
        whole = {**module, "alpha": module.get("alpha", torch.tensor(1.0 if alpha is None else alpha))}
        found.update({f"{name}.{tensor}": value for tensor, value in whole.items()})
    return found


def _kind(modules: Modules) -> str:
    kind = keys.identify({key: tuple(value.shape) for key, value in _flat(modules).items()}).kind
    assert kind
    return kind


def _common(modules: Modules, what: Any) -> Any:
    return Counter(what(module) for module in modules.values()).most_common(1)[0][0]


def _header(metadata: Mapping[str, str], family: str, kind: str, modules: Modules, target: Path) -> dict[str, str]:
    """The source's own header, or one that says the least."""
    if any(key.startswith("ss_") for key in metadata):
        return {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    rank, alpha = _common(modules, algebra.rank_of), _common(modules, algebra.alpha_of)
    return files.metadata(family, kind, {"output_name": target.stem}, rank=rank, alpha=alpha)


def _percent(share: float) -> str:
    return "nothing" if share < 1e-6 else f"{100 * share:.2g} %"
