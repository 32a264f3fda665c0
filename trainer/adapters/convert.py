"""Adapter files into other programs' forms and other ranks, several into one, and what a file says of itself."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..dense.header import KEY as DENSE
from ..errors import UserError, escaped
from ..runs.files import make_folder, write_atomic
from . import algebra, files, keys
from .mappings.mapping import key_mapping, known
from .names import DENOISER, file_path, kernel, model_paths, unflatten
from .parse import parse
from .ranks import Modules, join, resize
from .recognize import what_is
from .verify import difference, misfit

Form = Literal["kohya", "diffusers", "peft"]
Places = dict[tuple[str, str], dict[str, Tensor]]
"""By the model's own modules: (component, diffusers path) -> tensors; q, k and v each their own."""
Names = Callable[[str], Mapping[str, tuple[int, ...]]]
"""Family -> what Kohya's tools call its modules, and their weights' shapes (``names.network_names`` of the whole
network)."""


EXACT = (
    "it predicts maps, with its task folded into one rank, which is exact alone and at strength 1; look at the maps of "
    "what is made here"
)

# ------------------------------------------------------------------------------------------------------------ commands


def convert(
    source: Path,
    target: Path,
    to: Form = "kohya",
    rank: int | None = None,
    family: str | None = None,
    names: Names | None = None,
) -> list[str]:
    """Write ``source`` in another form, at another rank if given; returns notes, with what was lost.

    ``kohya``: what A1111, Forge, ComfyUI and sd-scripts read. ``diffusers``: what its pipelines read. ``peft``: folders
    that PEFT reads, one per part of the model. ``family`` where the file does not tell it. What is written is compared
    with what was read before it is written. UserError where the form cannot hold the adapter.
    """
    made = _read(source, family, names, same=to == "kohya" and rank is None)
    metadata, notes = made.metadata, made.notes
    if rank is not None:
        with files.naming(source):
            made.modules, loss = resize({**made.modules, **made.apart}, rank, made.family)
        made.apart = {}
        notes.append(f"rank {rank}: {_percent(loss)} of the effect is lost")
        notes += [f"{source}: {EXACT}"] if DENSE in metadata else []
        metadata = {
            **metadata,
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(_common(made.modules, algebra.alpha_of)),
        }
    if to != "kohya" and keys.network_args(metadata).get(keys.DORA_MARK[0]) == keys.DORA_MARK[1]:
        notes.append("its magnitudes are exact in ComfyUI and Forge, nearly so elsewhere (adapter.dora_for)")
    with files.naming(source):
        if to == "kohya":
            if made.apart:
                raise UserError(f"{next(iter(made.apart))}: {keys.APART}, or --rank makes a LoRA of it")
            tensors = _flat(made.modules)
            _compare(_apart(made.modules, made.apart, made.family), tensors, {}, made.family)
            files.save(target, tensors, _header(metadata, made.family, _kind(made.modules), made.modules, target))
        elif to == "diffusers":
            tensors, more = to_diffusers(made.modules, made.family, made.apart)
            notes += more
            files.save(target, tensors, {})
        else:
            notes += _save_peft(target, made)
    return notes


def merge(
    sources: Sequence[tuple[Path, float]],
    target: Path,
    rank: int | None = None,
    family: str | None = None,
    names: Names | None = None,
) -> list[str]:
    """Several adapters of one family, each with its weight, as one file; returns notes, with what was lost.

    LoRA files are joined exactly (ranks add up) and cut to ``rank`` if given; LoHa and LoKr need ``rank``. Differences
    of biases, norms and whole weights add up. UserError for DoRA, whose effects do not, and for a mix of families.
    """
    read = [(_read(path, family, names, same=False), weight, path) for path, weight in sources]
    notes = list(dict.fromkeys(note for made, _, _ in read for note in made.notes))
    families = {made.family for made, _, _ in read}
    if len(families) != 1:
        raise UserError(f"merge: the files are for {', '.join(sorted(families))}; choose files for one family")
    parts: list[tuple[Mapping[str, Any], float]] = []
    for made, weight, path in read:
        for module in made.modules.values():
            kind = algebra.method(module)
            if "dora_scale" in module:
                raise UserError(f"{path}: a DoRA cannot be merged, its effect depends on the base; use it as it is")
            if "set_weight" in module:
                raise UserError(f"{path}: it replaces weights of the model, which cannot be merged; use it as it is")
            if kind in ("loha", "lokr") and rank is None:
                raise UserError(f"{path}: a {kind} can only be merged into a LoRA; give --rank")
        if made.apart and rank is None:
            raise UserError(f"{path}: a lokr can only be merged into a LoRA; give --rank")
        parts.append(({**made.modules, **made.apart}, weight))
    name = families.pop()
    merged, loss = join(parts, rank, name)
    got = _common(merged, algebra.rank_of)
    notes.append(f"{f'rank {got}: ' if got else ''}{_percent(loss)} of the joint effect is lost")
    notes += [f"{path}: {EXACT}" for made, _, path in read if DENSE in made.metadata]
    origin = ", ".join(f"{path.stem}:{weight:g}" for path, weight in sources)
    tensors = _flat(merged)
    _compare(_apart(merged, {}, name), tensors, {}, name)
    header = _header({}, name, _kind(merged), merged, target)
    files.save(target, tensors, {**header, "modelspec.merged_from": origin})
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
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    facts = keys.identify(shapes, metadata)
    alphas = Counter(float(value) for key, value in tensors.items() if key.endswith("alpha") and value.numel() == 1)
    training = {key: value for key, value in metadata.items() if key.startswith("ss_") and value != "None"}
    data_hash = None
    if path.is_file() and path.suffix == ".safetensors":
        data_hash = files.data_hash(path)
    stored = metadata.get("sshs_model_hash")
    config = metadata.get(files.CONFIG)
    return {
        "path": str(path),
        "what": what_is(shapes, facts),
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
        "training": {
            k.removeprefix("ss_"): v for k, v in training.items() if k.removeprefix("ss_") not in files.PRIVATE
        },
        "config": _config(config),
        "hashes": {"stored": stored, "found": data_hash, "agree": None if stored is None else stored == data_hash},
        "does_not_belong": list(facts.foreign),
        "damaged": _damage(tensors, metadata, facts),
    }


def _damage(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], facts: keys.AdapterFacts) -> str:
    """The first thing in an adapter that no program can apply; '' where there is none."""
    if facts.kind is None:
        return ""
    for key, value in tensors.items():
        if not algebra.finite(value):
            return f"{key} holds NaN or infinite values"
    try:
        if facts.family and facts.kind in keys.KINDS:
            keys.read(tensors, metadata)
        else:
            keys.whole_places(tensors)
    except UserError as error:
        return str(error)
    return ""


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


def to_diffusers(
    modules: Modules, family: str, apart: Mapping[str, list[dict[str, Tensor]]] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as diffusers' pipelines read them, the scale folded into the up matrix; and notes.

    ``apart``: q, k and v that no single adapter stands for.
    """
    places = _apart(modules, apart or {}, family)
    kinds = _words(places)
    if others := sorted(kind for kind in kinds if kind not in ("lora", "dora")):
        raise UserError(f"diffusers reads no {' and no '.join(others)} for these models; give --rank to make it a LoRA")
    notes = _one_kind(kinds, places, "diffusers")
    found: dict[str, Tensor] = {}
    worst = 0.0
    biased = any("diff_b" in module for module in places.values())
    for (component, path), module in places.items():
        module, _ = algebra.as_plain(module)
        start = f"{_part(family, component)}.{path}"
        up = module["lora_up.weight"]
        exact = up.float() * algebra.scale_of(module)
        folded = exact.to(up.dtype)
        found[f"{start}.lora_A.weight"] = module["lora_down.weight"]
        found[f"{start}.lora_B.weight"] = folded if algebra.finite(folded) else exact
        worst = max(worst, float((found[f"{start}.lora_B.weight"] - exact).norm() / exact.norm().clamp(min=1e-30)))
        if biased:  # PEFT gives all of them a bias, or none
            found[f"{start}.lora_B.bias"] = module.get("diff_b", up.new_zeros(len(up))).to(up.dtype)
        if "dora_scale" in module:
            found[f"{start}.lora_magnitude_vector"] = _peft_magnitude(module["dora_scale"])
    lost = (
        f"alpha is folded into the up matrices, rounding loses {worst:.0e}" if worst else "alpha is folded in exactly"
    )
    notes.append(lost)
    if biased:
        notes.append("differences of biases are written as the bias of lora_B")
    if any(key.startswith("text_encoder_3.") for key in found):
        notes.append("diffusers' pipelines leave the T5 part out")
    if kinds == {"dora"} and any(key.startswith("text_encoder") for key in found):
        notes.append("diffusers with transformers 5 reads no magnitudes of text encoders: their part is wrong there")
    _compare(places, found, {}, family)
    return found, notes


def _one_kind(kinds: set[str], places: Places, reader: str) -> list[str]:
    """Take out of ``places`` what PEFT has no form for, and name it. UserError where nothing or several kinds are left,
    and for magnitudes over the inputs."""
    if len(kinds) > 1:
        raise UserError(f"{reader} reads one kind per file, and here are {' and '.join(sorted(kinds))}; "
                        "give --rank to make it a LoRA")  # fmt: skip
    if any(algebra.over_inputs(module) for module in places.values()):
        raise UserError(
            f"its DoRA magnitudes are of the inputs (wd_on_output = False), which {reader} cannot read; "
            "use the file in ComfyUI, or train with wd_on_output = True"
        )
    if not kinds:
        raise UserError(
            f"it holds differences of norms and biases only, which {reader} cannot read; use the file as it is"
        )
    lost: dict[str, str] = {}
    for (component, path), module in list(places.items()):
        names = [name for name in module if name in algebra.BESIDE and name != "dora_scale"]
        if _word(module) is None:
            del places[component, path]
            names = list(module)
        elif kinds == {"lora"}:
            names = [name for name in names if name != "diff_b"]
        for name in names:
            lost[f"{component} {path}: {name}"] = name
            places.get((component, path), {}).pop(name, None)
    lost = {place: name for place, name in lost.items() if name != "alpha"}
    if not lost:
        return []
    first, what = next(iter(lost)), ", ".join(sorted(set(lost.values())))
    return [f"{len(lost)} tensors ({what}) have no form in {reader} and are left out, the first: {first}"]


def _words(places: Places) -> set[str]:
    """The kinds of the modules that have a difference of the weight."""
    return {kind for module in places.values() if (kind := _word(module))}


def _word(module: Mapping[str, Tensor]) -> str | None:
    """The kind of one module as people call it."""
    kind = algebra.method(module)
    if kind and "dora_scale" in module:
        return "dora" if kind == "lora" else f"{kind} with dora"
    return kind


def _save_peft(target: Path, made: _Read) -> list[str]:
    """PEFT's folder for each part of the model, below ``target``."""
    from safetensors.torch import save

    if target.suffix in (".safetensors", ".pt", ".ckpt", ".bin"):
        raise UserError(f"{target}: PEFT keeps an adapter in a folder; give a folder's name")
    places = _apart(made.modules, made.apart, made.family)
    kinds = _words(places)
    if others := sorted(kind for kind in kinds if kind not in keys.KINDS):
        raise UserError(f"PEFT reads no {' and no '.join(others)}; give --rank to make it a LoRA")
    notes = _one_kind(kinds, places, "PEFT")
    kind = kinds.pop()
    parts: dict[str, dict[str, dict[str, Tensor]]] = {}
    windows: dict[str, tuple[int, ...]] = {}
    for (component, path), module in places.items():
        if component == DENOISER:
            dotted, _ = file_path(made.family, component, path)
            windows[path] = kernel(made.family, f"lora_{component}_{dotted.replace('.', '_')}")
        parts.setdefault(_part(made.family, component), {})[path] = algebra.as_plain(module)[0]
    names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "diff_b": "lora_B.bias",
             "dora_scale": "lora_magnitude_vector"}  # fmt: skip
    whole: dict[str, dict[str, Tensor]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for part, own in parts.items():
        configs[part] = _peft_config(kind, own, windows)
        biased, tensors = configs[part].get("lora_bias"), whole.setdefault(part, {})
        for path, module in own.items():
            start = f"base_model.model.{path}"
            if biased:
                up, scale = module["lora_up.weight"], algebra.scale_of(module)
                bias = module.get("diff_b", up.new_zeros(len(up)))
                if not scale and bias.any():
                    raise UserError(f"{path}: PEFT scales the bias by alpha, which is 0 here; choose another form")
                module = {**module, "diff_b": (bias.float() / (scale or 1.0)).to(bias.dtype)}
            for name, value in module.items():
                if name != "alpha":
                    value = _peft_magnitude(value) if name == "dora_scale" else value
                    tensors[f"{start}.{names.get(name, name)}"] = value.contiguous()
    config = {f"{part}.{key}": value for part, own_config in configs.items() for key, value in own_config.items()}
    flat = {f"{part}.{key}": value for part, own_tensors in whole.items() for key, value in own_tensors.items()}
    _compare(places, flat, {"lora_adapter_metadata": json.dumps(config)}, made.family)
    for part, tensors in whole.items():
        folder = target / part
        make_folder(folder)
        write_atomic(folder / files.PEFT_WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_atomic(folder / files.PEFT_CONFIG, json.dumps(configs[part], indent=2))
    text = [part for part in parts if part.startswith("text_encoder")]
    return notes + ([f"{', '.join(text)}: module names are those of transformers before 5"] if text else [])


def _peft_config(
    kind: str, modules: Mapping[str, Mapping[str, Tensor]], windows: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """PEFT's configuration of one part of the model; ``windows`` are the kernels of its convolutions, by path."""
    ranks = {path: algebra.rank_of(module) for path, module in modules.items()}
    alphas = {path: algebra.alpha_of(module) for path, module in modules.items()}
    config: dict[str, Any] = {}
    if kind == "lokr":
        config["decompose_factor"], config["decompose_both"] = _lokr_factor(modules, windows)
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
        **({"lora_bias": True} if any("diff_b" in module for module in modules.values()) else {}),
        **config,
    }


def _lokr_factor(
    modules: Mapping[str, Mapping[str, Tensor]], windows: Mapping[str, tuple[int, ...]]
) -> tuple[int, bool]:
    """PEFT's decompose_factor and decompose_both that give a LoKr's shapes. UserError where none does."""
    have = {path: {name: tuple(value.shape) for name, value in own.items()} for path, own in modules.items()}
    for factor in (-1, *range(2, 129)):
        for both in (False, True):
            if all(_lokr_fits(one, windows.get(path, ()), factor, both) for path, one in have.items()):
                return factor, both
    raise UserError("PEFT has no settings for the shapes of this LoKr; give --rank to make it a LoRA")


def _lokr_fits(one: Mapping[str, tuple[int, ...]], window: tuple[int, ...], factor: int, both: bool) -> bool:
    """Whether PEFT would make these shapes, for the same weight and rank; ``window`` is a convolution's kernel."""
    whole = list(one.get("lokr_w2", ()))
    window = tuple(whole[2:]) if whole else window
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


def _apart(modules: Modules, apart: Mapping[str, Sequence[Mapping[str, Tensor]]], family: str) -> Places:
    """By the model's own modules. ``apart``: q, k and v that no single adapter stands for."""
    found: Places = {}
    for name, module in [*modules.items(), *apart.items()]:
        component = name.split("_")[1]
        paths = model_paths(family, component, unflatten(name.removeprefix(f"lora_{component}_")))
        if not isinstance(module, Mapping):
            found.update(((component, path), dict(part)) for path, part in zip(paths, module))
            continue
        shapes = {tensor: tuple(value.shape) for tensor, value in module.items()}
        if key_mapping(family).is_swapped(paths[0], keys.matrix(shapes) or (1, 1)):
            module = algebra.swap_halves(module)
        with files.naming(name):
            parts = algebra.split(module, len(paths)) if len(paths) > 1 else [module]
        found.update(((component, path), dict(part)) for path, part in zip(paths, parts))
    return found


def _part(family: str, component: str) -> str:
    """diffusers' name of a component."""
    if component == DENOISER:
        return key_mapping(family).denoiser
    return {"te": "text_encoder", "te1": "text_encoder"}.get(component, f"text_encoder_{component[-1]}")


# -------------------------------------------------------------------------------------------------------------- pieces


@dataclass
class _Read:
    """An adapter file to write otherwise."""

    modules: Modules
    """By Kohya's names."""
    apart: dict[str, list[dict[str, Tensor]]]
    """q, k and v that no single adapter stands for."""
    metadata: dict[str, str]
    family: str
    notes: list[str]


_OURS = re.compile(r"lora_(up|down|mid)\.weight|hada_.+|lokr_.+|alpha|dora_scale|diff|diff_b|[wb]_norm|set_weight")


def _read(path: Path, family: str | None, names: Names | None, same: bool) -> _Read:
    """Any adapter that we can write, checked whole; ``same``: its tensors stay as they are."""
    tensors, metadata = files.read(path)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    facts = keys.identify(shapes, metadata)
    with files.naming(path):
        keys.whole_places(tensors)
    ours = {ref.tensor: key for key in tensors if (ref := parse(key))}
    strange = [key for name, key in ours.items() if not (_OURS.fullmatch(name) or name == "lora_up.bias")]
    if facts.kind in keys.KINDS and strange:
        raise UserError(f"{path}: '{strange[0]}' is of no form that can be converted; use the file as it is")
    if not ours or strange:
        raise UserError(f"{path}: it is {what_is(shapes, facts)}; give a lora, dora, loha or lokr for SD1.5, SD2, SDXL "
                        "or SD3")  # fmt: skip
    if facts.family is None and family is None:
        why = "adapts text encoders only, which several families have" if DENOISER not in facts.modules else "fits none"
        raise UserError(f"{path}: it is {what_is(shapes, facts)}, and {why}; name its family with --family: "
                        f"{', '.join(known())}")  # fmt: skip
    if family and facts.family not in (None, family):
        raise UserError(f"{path}: it is an adapter for {facts.family}, not for {family}; leave --family out")
    for key, value in tensors.items():
        if not algebra.finite(value):
            raise UserError(f"{path}: {escaped(key)} holds NaN or infinite values; give a sound file")
    with files.naming(path):
        found = keys.read(tensors, metadata, family or facts.family)
    if not found.modules and not found.apart:
        raise UserError(f"{path}: nothing in it has an effect: {'; '.join(found.notes)}; give another file")
    args = keys.network_args(metadata)
    if args.pop("split_qkv", None):  # the alphas are whole from here on
        metadata = {**metadata, "ss_network_args": json.dumps(args)}
    made = _Read(found.modules, found.apart, metadata, found.family, found.notes)
    if names is not None:
        _only_known(path, made, names(made.family))
    small = [
        n for n, m in made.modules.items() if any(v.is_floating_point() and v.element_size() == 1 for v in m.values())
    ]
    if small and not same:
        made.modules = {name: {n: _half(v) for n, v in module.items()} for name, module in made.modules.items()}
        made.apart = {name: [{n: _half(v) for n, v in m.items()} for m in parts] for name, parts in made.apart.items()}
        made.notes.append("its 8-bit floats are written as float16")
    return made


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() and value.element_size() == 1 else value


def _only_known(path: Path, made: _Read, names: Mapping[str, tuple[int, ...]]) -> None:
    """Leave out the modules that the family's network does not have, and name them and those that do not fit it."""
    strange = [name for name in (*made.modules, *made.apart) if name not in names]
    if len(strange) == len(made.modules) + len(made.apart):
        raise UserError(f"{path}: {made.family} has none of its modules, such as '{strange[0]}'; give another file")
    if strange:
        made.modules = {name: module for name, module in made.modules.items() if name in names}
        made.apart = {name: parts for name, parts in made.apart.items() if name in names}
        made.notes.append(
            f"{len(strange)} modules are none of {made.family} and are left out: {', '.join(strange[:3])}"
        )
    parts = [(name, module, 1) for name, module in made.modules.items()]
    parts += [(name, part, len(apart)) for name, apart in made.apart.items() for part in apart]
    wrong = [f"{name} ({why})" for name, module, share in parts
             if (why := misfit(module, (names[name][0] // share, *names[name][1:])))]  # fmt: skip
    if wrong:
        made.notes.append(f"{len(wrong)} modules do not fit the network of {made.family}, the first: {wrong[0]}")


def _compare(wanted: Places, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], family: str) -> None:
    """AssertionError where what is to be written has not the effect of ``wanted`` when it is read again."""
    found = keys.read(tensors, metadata, family)
    places = _apart(found.modules, found.apart, family)
    odd = sorted(set(places) ^ set(wanted))
    wrong = {" ".join(place): "is not in both" for place in odd} or {
        " ".join(place): why for place, module in wanted.items() if (why := difference(places[place], module)[1])
    }
    for place, why in wrong.items():
        if "nan" in why or "inf" in why:
            raise UserError(f"{place}: its effect is larger than float32 can hold; give a sound file")
        raise AssertionError(f"{place}: it would not have the effect of the file that was read ({why})")


def _flat(modules: Modules) -> dict[str, Tensor]:
    """Tensors by their whole names, with an alpha for each module: readers differ on a missing one."""
    found = {}
    for name, module in modules.items():
        whole = dict(module)
        if algebra.method(module) not in (None, "full"):
            alpha = algebra.alpha_of(module)
            whole.setdefault("alpha", torch.tensor(1.0 if alpha is None else alpha))
        found.update({f"{name}.{tensor}": value for tensor, value in whole.items()})
    return found


def _kind(modules: Modules) -> str:
    return keys.kind_of({n: tuple(v.shape) for n, v in module.items()} for module in modules.values()) or "lora"


def _common(modules: Modules, what: Any) -> Any:
    found = [value for module in modules.values() if (value := what(module)) is not None]
    return Counter(found).most_common(1)[0][0] if found else None


def _header(metadata: Mapping[str, str], family: str, kind: str, modules: Modules, target: Path) -> dict[str, str]:
    """The source's own header, or one that says the least."""
    if any(key.startswith("ss_") for key in metadata):
        return {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    rank, alpha = _common(modules, algebra.rank_of), _common(modules, algebra.alpha_of)
    return files.metadata(family, kind, {"output_name": target.stem}, rank=rank, alpha=alpha)


def _percent(share: float) -> str:
    return "nothing" if share < 1e-6 else f"{100 * share:.2g} %"
