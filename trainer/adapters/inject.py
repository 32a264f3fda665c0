"""Adapters on a model: put in place by PEFT, switched off for a reference, read out and loaded by the file's names."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..memory.quantize import weights_reused
from . import algebra, files, keys, lean
from .dropout import Dropout
from .layers import NAME, START, Mounted, unique
from .lean import Copies, Lean
from .mappings.mapping import key_mapping
from .names import DENOISER, Site, all_sites, block_of, encoder
from .options import AdapterOptions
from .plan import Planned, continued, plan
from .recognize import what_is


def inject(
    denoiser: nn.Module,
    text_encoders: Mapping[str, nn.Module],
    family: str,
    options: AdapterOptions,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> Adapter:
    """Put fresh adapters, or those of ``options.init_from``, on a frozen model; its weights may be quantised.

    ``text_encoders`` by Kohya's names (``te``; ``te1``, ``te2``, ``te3``). The adapter's weights are of ``dtype``.
    ``seed`` draws the start independently of the global generator. UserError for options or a file that do not fit.
    """
    modules = _trained(denoiser, text_encoders, family, options)
    sites = all_sites(family, modules)
    planned, kind, notes, for_comfyui = plan(family, sites, options), options.kind, [], False
    if options.init_from:
        start, kind, notes, for_comfyui = read_start(options, family)
        planned, more = continued(planned, start, sites, options.init_from)
        notes += more
        notes += _differences(options, planned, kind)
    if kind in ("loha", "lokr"):
        _refuse_4bit(kind, modules)
    with _generator(seed):
        mounted = mount(modules, planned, kind, options, NAME)
    for one in mounted:
        one.to(dtype)  # PEFT made them in the model's own type, which may be too coarse for what comes
        if one.plan.tensors is not None:
            with files.naming(options.init_from or ""):
                one.install(one.plan.tensors)
            one.to(dtype)
            if for_comfyui:
                as_lycoris(one)
    mounted = [replace(one, plan=replace(one.plan, tensors=None)) for one in mounted]  # the file's tensors may go
    adapter = Adapter(family, kind, options, modules, mounted, notes)
    if kind == "lora":
        lean.install(adapter.layers, adapter.copies)
    adapter.dropout.attach(mounted)
    return adapter


@dataclass
class Adapter:
    """What is trained, on its model."""

    family: str
    kind: str
    options: AdapterOptions
    modules: dict[str, nn.Module]
    """The components that carry it: ``unet``, ``te``, ``te1``, ..."""
    mounted: list[Mounted]
    notes: list[str]
    """What a person should know, such as modules of ``init_from`` that were left out."""
    dropout: Dropout = field(init=False)
    anchor: Literal["base", "start"] = "base"
    """What ``reference`` shows: the bare model, or the model with the adapter that the run started from."""

    def __post_init__(self) -> None:
        self.dropout = Dropout(self.options.dropout, self.options.rank_dropout, self.options.module_dropout)
        self.layers = [layer for one in self.mounted for layer in one.layers]
        self.copies = Copies()
        encoders = [module for name, module in self.modules.items() if name != DENOISER]
        self._encoder_parts = [part for module in encoders for part in module.modules()]

    # --------------------------------------------------------------------------------------------------- training

    def parameters(self) -> list[nn.Parameter]:
        """Every trained parameter once; tied ones too."""
        return unique(p for one in self.mounted for p in one.parameters().values())

    @property
    def rank(self) -> int:
        """The commonest rank."""
        return Counter(one.plan.rank for one in self.mounted).most_common(1)[0][0]

    @property
    def alpha(self) -> float:
        """The commonest alpha of that rank."""
        return Counter(one.alpha for one in self.mounted if one.plan.rank == self.rank).most_common(1)[0][0]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer: text encoders first, then the denoiser, by block where blocks have rates of their own.

        Each has ``name`` (``te1``, ``unet``, ``unet block 4``, ``... up``), ``component``, ``params`` and ``lr_scale``.
        """
        o = self.options
        text_ratio = o.loraplus_text or o.loraplus or 1.0
        unet_ratio = o.loraplus_denoiser or o.loraplus or 1.0
        by_block = any(one.plan.lr != 1 for one in self.mounted)
        groups: dict[str, dict[str, Any]] = {}
        for one in self.mounted:
            name, ratio = one.component, text_ratio
            if one.component == DENOISER:
                ratio = unet_ratio
                name += f" block {block_of(self.family, one.plan.site.name)}" if by_block else ""
            for tensor, parameter in one.parameters().items():
                up = ratio != 1 and tensor.startswith("lora_up")
                scale = one.plan.lr * (ratio if up else 1.0)
                mine = {
                    "name": name + (" up" if up else ""),
                    "component": one.component,
                    "params": [],
                    "lr_scale": scale,
                }
                groups.setdefault(mine["name"], mine)["params"].append(parameter)
        return sorted(groups.values(), key=lambda group: group["component"] == DENOISER)

    def train(self, mode: bool = True) -> None:
        """Dropout on or off, in the adapter and in the components that carry it."""
        for module in self.modules.values():
            if module.training != mode:
                module.train(mode)

    def new_step(self, seed: int, rows: Sequence[str] = ()) -> None:
        """Dropout masks of a step, for the forward passes of these rows (by any names) until the next call."""
        self.dropout.seed, self.dropout.rows = seed, tuple(rows)

    def in_dtype(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """For a forward pass under autocast: inside, LoRA's weights are converted to ``dtype`` all at once."""
        first = self.layers[0]
        if first._disable_adapters:
            return nullcontext()
        active = first._active_adapter
        name = active if isinstance(active, str) else active[0]
        leans = (layer.forward for layer in self.layers if isinstance(layer.forward, Lean))
        return self.copies.made(dict.fromkeys(m for one in leans for m in one.matrices(name)), dtype)

    def scale_weight_norms(self, most: float | None = None) -> dict[str, float]:
        """Scale down what has grown beyond ``most`` (the option, if not given): Kohya's max_norm figures."""
        most = most or self.options.scale_weight_norms
        if not most:
            return {}
        norms, scaled = torch.stack([one.scale_norm(most) for one in self.mounted]).unbind(1)
        norms = norms.tolist()
        return {
            "max_norm/keys_scaled": float(scaled.sum()),
            "max_norm/max_key_norm": max(norms),
            "max_norm/average_key_norm": sum(norms) / len(norms),
        }

    # -------------------------------------------------------------------------------------------------- reference

    def off(self) -> AbstractContextManager[None]:
        """The bare model inside; what was, outside, whatever happens."""
        return self._switched(None)

    def reference(self, anchor: Literal["base", "start"] | None = None) -> AbstractContextManager[None]:
        """The model to compare with, without dropout. ``start`` needs ``keep_start``."""
        return self._switched(START if (anchor or self.anchor) == "start" else None)

    def keep_start(self) -> None:
        """Keep a frozen copy of the adapter as it is now, and make it what ``reference`` shows."""
        options = self.options.model_copy(update={"rank_dropout": 0.0})
        copies = mount(self.modules, [one.plan for one in self.mounted], self.kind, options, START)
        for one, copy in zip(self.mounted, copies):
            copy.to(next(iter(one.parameters().values())).dtype, START)
            copy.install(one.tensors(), START)
        for layer in self.layers:
            layer.set_adapter(NAME)
        for one in self.mounted:
            for parameter in one.parameters(START).values():
                parameter.requires_grad_(False)
        self.anchor = "start"

    @contextmanager
    def _switched(self, name: str | None) -> Iterator[None]:
        """PEFT's own switches flip requires_grad of every adapter, and take 0.1 s on SDXL: here the layers are
        switched directly, and no parameter is touched."""
        was = [(layer, layer._active_adapter, layer._disable_adapters) for layer in self.layers]
        training = [part for part in self._encoder_parts if part.training]  # T5 has dropout of its own
        try:
            for part in training:
                part.training = False
            for layer in self.layers:
                layer._disable_adapters = name is None
                layer._active_adapter = layer._active_adapter if name is None else [name]
            yield
        finally:
            for layer, active, disabled in was:
                layer._active_adapter, layer._disable_adapters = active, disabled
            for part in training:
                part.training = True

    # ------------------------------------------------------------------------------------------------------ files

    @torch.no_grad()
    def state_dict(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All tensors by the file's names, on the CPU, in ``dtype`` (their own, if not given): what ``load`` takes."""
        found = {}
        for one in self.mounted:
            for name, value in one.tensors().items():
                own = value if dtype is None else value.to(dtype)
                found[f"{one.plan.site.name}.{name}"] = own.detach().to("cpu", copy=True).contiguous()
        return found

    def for_file(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """As ``state_dict``, for hosts: with DoRA's magnitudes as ``options.dora_for`` wants them."""
        found = self.state_dict()
        if self.kind == "dora" and self.options.dora_for == "comfyui":
            for one in self.mounted:
                name = f"{one.plan.site.name}.dora_scale"
                found[name] = found[name] * _site_ratio(one).cpu()
        return {name: value.to(dtype) for name, value in found.items()}

    def network_args(self) -> dict[str, str]:
        """Kohya's ss_network_args: what beside rank and alpha makes the adapter what it is."""
        names = {
            "conv_rank": "conv_dim", "conv_alpha": "conv_alpha", "rank_dropout": "rank_dropout",
            "module_dropout": "module_dropout", "loraplus": "loraplus_lr_ratio",
            "loraplus_denoiser": "loraplus_unet_lr_ratio", "loraplus_text": "loraplus_text_encoder_lr_ratio",
            "factor": "factor", "decompose_both": "decompose_both", "block_ranks": "block_dims",
            "block_alphas": "block_alphas", "conv_block_ranks": "conv_block_dims",
            "conv_block_alphas": "conv_block_alphas", "down_lr": "down_lr_weight", "mid_lr": "mid_lr_weight",
            "up_lr": "up_lr_weight", "blocks": "train_block_indices", "embedder_ranks": "emb_dims",
        }  # fmt: skip
        set_here = self.options.model_dump(exclude_defaults=True)
        found = {names[k]: str(v).strip("[]").replace(" ", "") for k, v in set_here.items() if k in names}
        if self.kind == "dora" and self.options.dora_for == "comfyui":
            found[keys.DORA_MARK[0]] = keys.DORA_MARK[1]
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of ``state_dict`` back, exactly. UserError for one too few or too many."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, tensor = key.partition(".")
            grouped.setdefault(name, {})[tensor] = value
        odd = sorted(set(grouped) ^ {one.plan.site.name for one in self.mounted})
        if odd:
            raise UserError(f"{odd[0]}: it is not in both the file and this adapter (one of {len(odd)}); the options "
                             "of [adapter] have changed since it was saved")  # fmt: skip
        for one in self.mounted:
            one.load(grouped[one.plan.site.name])


# ------------------------------------------------------------------------------------------------------ the pieces


def _trained(
    denoiser: nn.Module, text_encoders: Mapping[str, nn.Module], family: str, options: AdapterOptions
) -> dict[str, nn.Module]:
    """The components that are trained."""
    there = key_mapping(family).encoders
    wanted = options.text_encoders
    if wanted is True:
        names = [name for name, called in there.items() if called != "t5"]
    else:
        names = sorted({encoder(family, called) for called in wanted or []})
    for name in names:
        if name not in text_encoders:
            raise UserError(f"adapter.text_encoders: {there[name]} is not loaded; give its file, or leave it out")
    parts = {name: text_encoders[name] for name in names}
    return {**parts, DENOISER: denoiser} if options.denoiser else parts


def to_show(options: AdapterOptions, path: str) -> AdapterOptions:
    """The options that put the whole of a file on a model, whatever a run of ``options`` would train."""
    tensors, metadata = files.read(Path(path))
    facts = keys.identify({key: tuple(value.shape) for key, value in tensors.items()}, metadata)
    text = [component for component in facts.modules if component != DENOISER]
    return options.model_copy(update={"init_from": path, "denoiser": True, "text_encoders": text})


def read_start(options: AdapterOptions, family: str) -> tuple[dict[str, Tensor], str, list[str], bool]:
    """The tensors of ``init_from`` by Kohya's names, their kind, notes, and whether magnitudes are ComfyUI's."""
    path = options.init_from
    assert path
    tensors, metadata = files.read(Path(path))
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    facts = keys.identify(shapes, metadata)
    if facts.kind not in keys.KINDS:
        raise UserError(f"{path}: it is {what_is(shapes, facts)}; training starts from lora, dora, loha and lokr")
    foreign = [key for key in facts.foreign if not key.startswith(keys.EMBEDDING)]
    if foreign:
        raise UserError(f"{path}: '{foreign[0]}' and {len(foreign) - 1} more keys belong to no adapter; "
                         "`inspect` lists them")  # fmt: skip
    if facts.family is not None and facts.family != family:
        raise UserError(f"{path}: it is an adapter for {facts.family}, the model is {family}; choose one for {family}")
    try:
        found, notes = keys.to_kohya(tensors, metadata, family)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    odd = [key for key in found if key.partition(".")[2] in (*algebra.SUMS, "diff", "set_weight", "reshape_weight")]
    if odd:
        raise UserError(f"{path}: '{odd[0]}' and {len(odd) - 1} more are differences of biases, norms or weights, "
                         "which are not trained here; give a file without them")  # fmt: skip
    if any(key.endswith("dora_scale") and algebra.over_inputs({"dora_scale": value}) for key, value in found.items()):
        raise UserError(f"{path}: its DoRA magnitudes are of the inputs (wd_on_output = False), which is not trained "
                         "here; give a file with magnitudes of the outputs")  # fmt: skip
    mark, value = keys.DORA_MARK
    for_comfyui = facts.kind == "dora" and keys.network_args(metadata).get(mark) == value
    return found, facts.kind, [f"{path}: {note}" for note in notes], for_comfyui


@torch.no_grad()
def as_lycoris(one: Mounted) -> None:
    """Magnitudes that were written for ComfyUI, as DoRA's again."""
    for layer in one.layers:
        magnitude = layer.lora_magnitude_vector[NAME].weight
        magnitude.div_(norm_ratio(layer).reshape(magnitude.shape).to(magnitude))


def _differences(options: AdapterOptions, planned: Sequence[Planned], kind: str) -> list[str]:
    """Notes on options that the file overrules."""
    ranks = {p.rank for p in planned if p.tensors is not None and not p.site.is_kxk}
    notes = []
    if kind != options.kind:
        notes.append(f"adapter.kind: {options.kind} is overruled by {options.init_from}, which is a {kind}")
    if options.rank not in ranks and len(ranks) == 1:
        notes.append(f"adapter.rank: {options.rank} is overruled by {options.init_from}, whose rank is {min(ranks)}")
    return notes


def _refuse_4bit(kind: str, modules: Mapping[str, nn.Module]) -> None:
    for module in modules.values():
        if any(type(part).__name__ == "Linear4bit" for part in module.modules()):
            raise UserError(f"adapter.kind: {kind} cannot sit on 4-bit weights; use lora or dora")


def mount(
    modules: Mapping[str, nn.Module], planned: Sequence[Planned], kind: str, options: AdapterOptions, adapter: str
) -> list[Mounted]:
    """PEFT's layers on every planned site."""
    groups: dict[tuple[str, int, float], list[Site]] = {}
    for p in planned:
        groups.setdefault((p.site.component, p.rank, p.alpha), []).append(p.site)
    for (component, rank, alpha), sites in groups.items():
        names = "|".join(re.escape(path) for site in sites for path in site.paths)
        _inject(modules[component], _config(kind, rank, alpha, f"(?:{names})", options), adapter)
    layers = {name: dict(module.named_modules()) for name, module in modules.items()}
    mounted = [Mounted(p, kind, tuple(layers[p.site.component][path] for path in p.site.paths)) for p in planned]
    for one in mounted:
        one.tie(adapter)
        for layer in one.layers:
            layer.train(modules[one.component].training)
            if kind == "lora":
                layer._cast_input_dtype = _input
        tensors = one.tensors(adapter)
        if kind == "lokr" and algebra.rank_of(tensors) is None:  # two whole matrices: every reader takes scale 1
            for layer in one.layers:
                layer.alpha[adapter], layer.scaling[adapter] = float(one.plan.rank), 1.0
    return mounted


def _input(x: Tensor, dtype: torch.dtype) -> Tensor:
    """For PEFT's own cast of a LoRA's input. Where autocast casts it too, to 32 bits and back to the same 16 would cost
    two copies, the second kept for the backward pass by each of q, k and v."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def _config(kind: str, rank: int, alpha: float, targets: str, options: AdapterOptions) -> Any:
    import peft

    scale = {"lora_alpha" if kind in ("lora", "dora") else "alpha": alpha}
    shared: dict[str, Any] = {"r": rank, "target_modules": targets, **scale}
    if kind in ("lora", "dora"):
        return peft.LoraConfig(**shared, use_dora=kind == "dora")
    shared["rank_dropout"] = options.rank_dropout
    if kind == "loha":
        return peft.LoHaConfig(**shared)
    both = {"decompose_factor": options.factor, "decompose_both": options.decompose_both}
    return peft.LoKrConfig(**shared, **both, init_weights="lycoris")


def _inject(model: nn.Module, config: Any, adapter: str) -> None:
    import peft

    with warnings.catch_warnings(), weights_reused():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        peft.inject_adapter_in_model(config, model, adapter)


@contextmanager
def _generator(seed: int | None) -> Iterator[None]:
    """The CPU's global generator at ``seed``, and back: PEFT draws from it."""
    if seed is None:
        yield
        return
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def in_float32(layers: Sequence[Any]) -> Iterator[None]:
    """The layers' adapter in float32 where it is narrower: what it stands for, without the rounding of its products."""
    narrow = [
        (parameter, parameter.data)
        for layer in layers
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.") and parameter.dtype in (torch.bfloat16, torch.float16)
    ]
    try:
        for parameter, value in narrow:
            parameter.data = value.float()
        yield
    finally:
        for parameter, value in narrow:
            parameter.data = value


def norm_ratio(layer: Any) -> Tensor:
    """|W| / |W + delta| per row of a layer's weight."""
    from peft.utils.integrations import dequantize_module_weight

    bare = dequantize_module_weight(layer.get_base_layer()).float().flatten(1)
    with in_float32([layer]):
        adapted = bare + layer.get_delta_weight(NAME).float().flatten(1)
    return bare.norm(dim=1) / adapted.norm(dim=1)


def _site_ratio(one: Mounted) -> Tensor:
    """``norm_ratio`` of a site, shaped as its magnitude in the file."""
    rows = torch.cat([norm_ratio(layer) for layer in one.layers])
    ratio = {"dora_scale": rows.reshape(-1, *(1,) * (len(one.plan.site.shape) - 1))}
    return (algebra.swap_halves(ratio) if one.plan.site.swap else ratio)["dora_scale"]
