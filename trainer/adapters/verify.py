"""Does an adapter file have the effect that it should have? The file is read as hosts read it: by the key reader of the
ComfyUI nodes (``keys.py``), and by diffusers' own loader.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import algebra, files, keys
from .inject import Adapter, in_float32, norm_ratio
from .layers import NAME
from .mappings.mapping import key_mapping
from .names import DENOISER, model_paths, network_names
from .parse import Ref, parse

SECOND = "verify"
"""PEFT's name of the adapter that diffusers loads beside the trained one."""
Place = tuple[str, str]
"""A module of a diffusers model: component and path."""


@dataclass
class VerifyResult:
    """What was found to be right, and what was not; both one sentence per entry."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ the file of a run


def verify(path: Path, adapter: Adapter, effect: bool = True) -> VerifyResult:
    """Read the file of a run back and compare it with the trained adapter. Never raises: a run has trained already.

    Always: each name belongs to a module of the model, each trained module is there, shapes fit, values are finite.
    With ``effect``: each module has the effect of the trained one on one fixed input, and where diffusers reads such
    files, its forward with the file equals the trainer's.
    """
    found = VerifyResult()
    try:
        _verify(path, adapter, effect, found)
    except UserError as error:
        found.problems.append(str(error))
    except Exception as error:
        logging.getLogger(__name__).exception("%s: it could not be verified", path)
        found.problems.append(f"{path}: it could not be verified ({type(error).__name__}: {error}); please report it")
    return found


@torch.no_grad()
def _verify(path: Path, adapter: Adapter, effect: bool, found: VerifyResult) -> None:
    tensors, metadata = files.read(path)
    models = {name: _modules(module) for name, module in adapter.modules.items()}
    places: dict[str, list[Place]] = {}
    grouped: dict[str, dict[str, Tensor]] = {}
    layers = 1 + max((int(m[1]) for m in map(_RESNET.match, models.get(DENOISER, ())) if m), default=1)
    owners: dict[Place, str] = {}
    for key, value in tensors.items():
        if not algebra.finite(value):
            raise UserError(f"{path}: {key} holds non-finite values; the training has diverged")
        name = key.partition(".")[0]
        ref = parse(key, layers)
        grouped.setdefault(name, {})[ref.tensor if ref else key] = value
        if name in places:
            continue
        places[name] = _places(adapter.family, models, ref) if ref else []
        if not places[name]:
            raise UserError(f"{path}: no module of the model is called '{name}'; hosts would leave it out")
        for place in places[name]:
            if place in owners:
                raise UserError(f"{path}: '{name}' and '{owners[place]}' are the same module of the model")
            owners[place] = name
    trained = {(one.component, p) for one in adapter.mounted for p in one.plan.site.paths}
    if trained != set(owners):
        odd = sorted(trained ^ set(owners))[0]
        raise UserError(f"{path}: {odd[0]}.{odd[1]} was trained but is not in the file, or the other way round")
    by_comfyui = keys.network_args(metadata).get(keys.DORA_MARK[0]) == keys.DORA_MARK[1]
    worst, swapped = 0.0, key_mapping(adapter.family).is_swapped
    for name, module in grouped.items():
        there = [models[component][p] for component, p in places[name]]
        sizes = [_weight_shape(layer) for layer in there]
        if wrong := misfit(module, (sum(out for out, _ in sizes), sizes[0][1])):
            raise UserError(f"{path}: '{name}' does not fit its module: {wrong}")
        if not effect:
            continue
        with in_float32(there):
            wanted = {"delta": torch.cat([layer.get_delta_weight(NAME).float().flatten(1) for layer in there])}
            if adapter.kind == "dora":
                sizes = torch.cat([layer.lora_magnitude_vector[NAME].weight.float().flatten() for layer in there])
                wanted["dora_scale"] = sizes * torch.cat([norm_ratio(x) for x in there]) if by_comfyui else sizes
        if swapped(places[name][0][1], _weight_shape(there[0])):
            wanted = {part: torch.cat(rows.chunk(2)[::-1]) for part, rows in wanted.items()}
        apart, wrong = difference(module, wanted)
        if wrong:
            raise UserError(f"{path}: '{name}' has another effect than what was trained ({wrong}); please report it")
        worst = max(worst, apart)
    found.lines.append(f"{len(grouped)} modules are where hosts look for them")
    if effect:
        found.lines.append(f"each has the trained effect (largest relative error {worst:.1e})")
        _diffusers(path, tensors, adapter, worst, found)


# ------------------------------------------------------------------------------------------------------ any file


@torch.no_grad()
def verify_file(
    path: Path, network: Callable[[str], Mapping[str, nn.Module]], family: str | None = None
) -> VerifyResult:
    """Look at any adapter file as hosts do: is each tensor applied, does each module fit the network of its family, and
    has the file the same effect in diffusers' loader?

    ``network`` maps a family to its public denoiser and text encoders; the meta device will do.
    """
    found = VerifyResult()
    try:
        tensors, metadata = files.read(path)
        found.problems += [
            f"{key} holds non-finite values" for key, value in tensors.items() if not algebra.finite(value)
        ]
        read = keys.read(tensors, metadata, family)
    except UserError as error:
        found.problems.append(str(error))
        return found
    modules = network(read.family)
    shapes = network_names(read.family, modules)
    parts: list[tuple[str, Mapping[str, Tensor], int]] = [(name, module, 1) for name, module in read.modules.items()]
    parts += [(name, module, len(apart)) for name, apart in read.apart.items() for module in apart]
    moved = False
    strange, misfits = [], []
    for name, module, share in parts:
        moved = moved or any(value.any() for part, value in module.items() if part in _MOVES)
        wanted = shapes.get(name)
        if wanted is None:
            strange.append(name)
        elif wrong := misfit(module, (wanted[0] // share, *wanted[1:])):
            misfits.append(f"{name} ({wrong})")
    right = len(parts) - len(strange) - len(misfits)
    found.lines.append(f"{right} of {len(parts)} modules fit the network of {read.family}")
    _report(found, f"is no module of {read.family}: hosts leave it out", strange)
    _report(found, "does not fit its module", misfits)
    for why in sorted(set(read.left.values()) - {keys.NO_RANK}):
        _report(found, f"is not applied: {why}", [key for key, reason in read.left.items() if reason == why])
    if not moved:
        found.problems.append("its up matrices are zero: it has no effect")
    found.lines += read.notes
    loader = key_mapping(read.family).diffusers_loader
    if loader and not read.apart and keys.kind_of([_sizes(m) for m in read.modules.values()]) == "lora":
        _same_in_diffusers(tensors, read, loader, modules[DENOISER], found)
    return found


def _report(found: VerifyResult, what: str, names: Sequence[str]) -> None:
    """One problem of some names: the first, and how many more."""
    if names:
        more = f", and {len(names) - 1} more" if len(names) > 1 else ""
        found.problems.append(f"{names[0]} {what}{more}")


_MOVES = ("lora_up.weight", "hada_w1_a", "hada_w2_a", "lokr_w2", "lokr_w2_a", "diff", *algebra.SUMS, "set_weight")
"""Tensors of which at least one is not zero where an adapter has an effect."""


def _sizes(module: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.items()}


def misfit(module: Mapping[str, Tensor], shape: tuple[int, ...]) -> str:
    """What is wrong with a module for a weight of ``shape``; '' where it fits."""
    if algebra.method(module) is None:
        rows = {name: value.numel() for name, value in module.items() if name in algebra.SUMS or name == "diff"}
        wrong = (f"{name} has {n} values, the weight {shape[0]} rows" for name, n in rows.items() if n != shape[0])
        return next(wrong, "")
    out, width = shape[0], torch.Size(shape[1:]).numel()
    try:
        rows = algebra.applied(algebra.on_meta(module), torch.empty(width, 1, device="meta"))
    except (RuntimeError, KeyError) as error:
        return f"its tensors do not make up a weight of {out} x {width} ({str(error).splitlines()[0]})"
    return "" if len(rows) == out else f"it adapts {len(rows)} rows, the weight has {out}"


_ALPHA = re.compile(r"[._]lora(\.|_linear_layer\.)down\.weight\.alpha$")
"""diffusers names an alpha after the down matrix."""


def _same_in_diffusers(
    tensors: Mapping[str, Tensor], read: keys.Reading, loader: str, denoiser: Any, found: VerifyResult
) -> None:
    """Compare what diffusers' loader makes of the file with what it holds, module by module."""
    reader: Any = getattr(importlib.import_module("diffusers.loaders.lora_pipeline"), loader)
    try:
        state, alphas = reader.lora_state_dict(dict(tensors), unet_config=denoiser.config)[:2]
        scales = {_ALPHA.sub(".alpha", key): torch.tensor(value) for key, value in (alphas or {}).items()}
        theirs = keys.read({**state, **scales}, {}, read.family)
    except Exception as error:
        found.problems.append(f"diffusers does not read it ({type(error).__name__}: {str(error).splitlines()[0]})")
        return
    if alphas and _misread(alphas):
        found.lines.append(MISREAD)
    _report(found, "is left out by diffusers", [name for name in read.modules if name not in theirs.modules])
    worst, others = 0.0, []
    for name, module in theirs.modules.items():
        apart, wrong = difference(module, read.modules.get(name, {}))
        worst = max(worst, apart)
        if wrong:
            others.append(f"{name} ({wrong})")
    _report(found, "has another effect in diffusers", others)
    if not others:
        found.lines.append(f"diffusers reads {len(theirs.modules)} modules with the same effect ({worst:.1e} apart)")


_RESNET = re.compile(r"down_blocks\.\d+\.resnets\.(\d+)\.")


def _modules(model: nn.Module) -> dict[str, Any]:
    """Path -> module of every adapted or bare Linear and Conv2d."""
    found = {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "base_layer") or isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return {path: module for path, module in found.items() if not re.search(r"\.(base_layer|lora_|hada_|lokr_)", path)}


def _places(family: str, models: Mapping[str, Mapping[str, Any]], ref: Ref) -> list[Place]:
    """The modules of the model that a key stands for: one, or q, k and v."""
    there = models.get(ref.component, {})
    if ref.component == DENOISER:
        paths = model_paths(family, DENOISER, ref.path)
    else:  # some CLIP classes of transformers 5 have no text_model
        paths = (ref.path if ref.path in there else ref.path.removeprefix("text_model."),)
    return [(ref.component, path) for path in paths if path in there]


def _weight_shape(layer: Any) -> tuple[int, int]:
    """(out, in times kernel) of a layer's bare weight, also where it is stored packed."""
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    if isinstance(base, nn.Conv2d):
        return base.out_channels, base.in_channels // base.groups * base.kernel_size[0] * base.kernel_size[1]
    return base.out_features, base.in_features


# ------------------------------------------------------------------------------------------------- the effect


def difference(module: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[float, str]:
    """(relative error, what differs by more than rounding or '') of a module of a file.

    ``wanted`` holds ``delta`` [out, in], or a module's tensors to take it from; all else is compared tensor by tensor.
    """
    if module.keys() == wanted.keys() and all(algebra.equal(module[name], value) for name, value in wanted.items()):
        return 0.0, ""
    random = torch.Generator().manual_seed(0)
    apart, size, wrong = 0.0, 0.0, ""
    whole = wanted.get("delta")
    rows = None
    if whole is not None or algebra.method(wanted):
        if not algebra.method(module):
            return 1.0, "it has no difference of the weight"
        width = (algebra.delta(algebra.on_meta(wanted)).flatten(1) if whole is None else whole).shape[1]
        x = torch.randn(width, 4, generator=random)
        x = x if whole is None else x.to(whole)
        rows = algebra.applied(wanted, x) if whole is None else whole @ x
        t = {key: value.to(rows) for key, value in module.items()}
        mine = algebra.applied(t, x)
        nudged = {k: _nudged(v, module[k].dtype, random) for k, v in t.items()}
        rounding = float((algebra.applied(nudged, x) - mine).norm())
        apart, size = float((mine - rows).norm()), float(rows.norm())
        if not apart <= 1e-4 * size + 4 * rounding:
            wrong = f"{apart:.1e} of {size:.1e} apart"
    beside = [name for name in (*algebra.BESIDE, *(() if rows is not None else ("diff",))) if name in wanted]
    for part in beside:
        a, b = module.get(part), wanted[part].float().flatten()
        near = a is not None and a.numel() == b.numel()
        if a is None or not near or not torch.allclose(a.to(b).flatten(), b, rtol=_eps(a.dtype) + 1e-5):
            wrong = wrong or f"{part} is another"
    return apart / size if size else apart, wrong


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _nudged(value: Tensor, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """A value moved as far as rounding to ``dtype`` may have moved it, up or down."""
    if value.dim() == 0 or not dtype.is_floating_point:
        return value
    info = torch.finfo(dtype)
    step = (value.abs() * info.eps).clamp(min=info.smallest_normal * info.eps) / 2
    signs = torch.randint(0, 2, value.shape, generator=random).to(value) * 2 - 1
    return value + step * signs


# ------------------------------------------------------------------------------------------------- diffusers' loader


def _diffusers(
    path: Path, tensors: Mapping[str, Tensor], adapter: Adapter, rounding: float, found: VerifyResult
) -> None:
    """Load the file by diffusers' own reader as a second adapter on the same denoiser, and compare one forward."""
    on_denoiser = any(one.component == DENOISER for one in adapter.mounted)
    loader = key_mapping(adapter.family).diffusers_loader
    if adapter.kind != "lora" or loader is None or not on_denoiser:
        return
    reader: Any = getattr(importlib.import_module("diffusers.loaders.lora_pipeline"), loader)
    denoiser: Any = adapter.modules[DENOISER]
    inputs = probe(denoiser)
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    try:
        mine = denoiser(**inputs).sample
        noise = float((denoiser(**_nudge(inputs)).sample - mine).cpu().double().norm())
        with adapter.off():
            bare = denoiser(**inputs).sample
        state, alphas = reader.lora_state_dict(dict(tensors), unet_config=denoiser.config)[:2]
        if _misread(alphas):
            found.lines.append(MISREAD)
            return
        with _second(denoiser, adapter):
            denoiser.load_lora_adapter(
                {key: value for key, value in state.items() if key.startswith("unet.")},
                prefix="unet", network_alphas=alphas, adapter_name=SECOND,
            )  # fmt: skip
            denoiser.set_adapter(SECOND)
            theirs = denoiser(**inputs).sample
    finally:
        for module in training:
            module.training = True
    apart, size, whole = (float(v.cpu().double().norm()) for v in (theirs - mine, mine - bare, mine))
    if not apart <= (0.02 + 4 * rounding) * size + 1e-5 * whole + 4 * noise:
        found.problems.append(
            f"{path}: diffusers makes another model of it ({apart:.1e} of {size:.1e} apart); please report it"
        )
    elif size <= 4 * noise:
        found.lines.append("diffusers loads it; what was trained so far is less than the model's own rounding")
    else:
        found.lines.append(f"diffusers loads it with the trained effect ({apart / size:.1e} apart)")


MISREAD = (
    "diffusers would give all attention layers one alpha, and here they have several: convert the file for it "
    "(`convert --to diffusers`)"
)


def _misread(alphas: Mapping[str, float]) -> bool:
    """diffusers (0.42) finds no layer for the alphas of attention's q, k, v, out, and takes the commonest instead."""
    unet = {key: alpha for key, alpha in alphas.items() if key.startswith("unet.")}
    if not unet:
        return False
    commonest = Counter(unet.values()).most_common(1)[0][0]
    return any(".processor." in key and alpha != commonest for key, alpha in unet.items())


def _nudge(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with the picture moved by its last digit: what the network makes of that is its own rounding."""
    name = "sample" if "sample" in inputs else "hidden_states"
    return {**inputs, name: _nudged(inputs[name], inputs[name].dtype, torch.Generator().manual_seed(0))}


@contextmanager
def _second(denoiser: Any, adapter: Adapter) -> Iterator[None]:
    """Room for a second adapter; the first comes back active and as trainable as it was."""
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    was_loaded = denoiser._hf_peft_config_loaded
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            yield
    finally:
        denoiser._hf_peft_config_loaded = True
        if SECOND in getattr(denoiser, "peft_config", {}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Adapter verify was active")
                denoiser.delete_adapters(SECOND)
        for one in adapter.mounted:
            for layer in one.layers:
                layer.set_adapter(NAME)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        denoiser._hf_peft_config_loaded = was_loaded


def probe(denoiser: Any) -> dict[str, Any]:
    """One fixed small input of a U-Net or MMDiT: keyword arguments of its forward."""
    config, weight = denoiser.config, next(p for p in denoiser.parameters() if p.is_floating_point())

    def wave(*shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.linspace(0, 7 * count**0.5, count, device=weight.device).sin().reshape(shape).to(weight.dtype)

    time = torch.tensor([500.0], device=weight.device, dtype=weight.dtype)
    if hasattr(config, "joint_attention_dim"):
        return {"hidden_states": wave(1, config.in_channels, 8, 8), "timestep": time,
                "encoder_hidden_states": wave(1, 8, config.joint_attention_dim),
                "pooled_projections": wave(1, config.pooled_projection_dim)}  # fmt: skip
    inputs: dict[str, Any] = {"sample": wave(1, config.in_channels, 8, 8), "timestep": time,
                              "encoder_hidden_states": wave(1, 8, config.cross_attention_dim)}  # fmt: skip
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[512, 512, 0, 0, 512, 512]], device=weight.device)
        inputs["added_cond_kwargs"] = {"text_embeds": wave(1, pooled), "time_ids": sizes}
    return inputs
