"""Is the file that was written the adapter that was trained? Asked of the file, by readers that share nothing with the
writer: where a host would look each name up, what it would add to each weight, and what diffusers makes of it.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import files, keys
from .inject import Adapter, norm_ratio
from .layers import NAME

PROOF = "proof"


def prove(path: Path, adapter: Adapter, *, effect: bool = False) -> list[str]:
    """Read the file back and check it against the model; returns what was proven, in sentences.

    Always: every name leads to a module of the model and every module of the adapter is there, shapes fit, no number is
    infinite. With ``effect`` (once per run): each module's difference has the effect of the trained one on one fixed
    input, and where diffusers reads such files, its forward with the file equals the trainer's. ValueError names what
    is wrong.
    """
    tensors, metadata = files.read(path)
    for_comfyui = keys.network_args(metadata).get(keys.DORA_MARK[0]) == keys.DORA_MARK[1]
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, tensor = key.partition(".")
        grouped.setdefault(name, {})[tensor] = value
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {key} holds numbers that are not finite; the training has gone wrong")
    bare = {name: _modules(module) for name, module in adapter.modules.items()}
    flat = {name: {path.replace(".", "_"): path for path in modules} for name, modules in bare.items()}
    reached: dict[tuple[str, str], str] = {}
    places: dict[str, list[tuple[str, str]]] = {}
    for name in grouped:
        component = name.split("_")[1]
        paths = _find(component, name, flat.get(component, {}), adapter.family)
        if not paths:
            raise UserError(f"{path}: no module of the model is called '{name}'; hosts would leave it out")
        _fits(path, name, grouped[name], [bare[component][p] for p in paths])
        places[name] = [(component, p) for p in paths]
        for place in places[name]:
            if place in reached:
                raise UserError(f"{path}: '{name}' and '{reached[place]}' are the same module of the model")
            reached[place] = name
    trained = {(one.component, p) for one in adapter.mounted for p in one.plan.site.paths}
    if trained != set(reached):
        odd = sorted(trained ^ set(reached))[0]
        raise UserError(f"{path}: {odd[0]}.{odd[1]} was trained but is not in the file, or the other way round")
    said = [f"{len(grouped)} modules are where hosts look for them"]
    if effect:
        errors = []
        for name, module in grouped.items():
            layers = [bare[component][p] for component, p in places[name]]
            errors.append(_compare(path, name, module, layers, adapter.kind, for_comfyui))
        said.append(f"each has the trained effect (largest relative error {max(errors):.1e})")
        said += _diffusers(path, tensors, adapter, max(errors))
    return said


# ----------------------------------------------------------------------------------------------- where a host looks


def _modules(model: nn.Module) -> dict[str, Any]:
    """Path -> module of every adapted or bare Linear and Conv2d."""
    found = {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "base_layer") or isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return {path: module for path, module in found.items() if not re.search(r"\.(base_layer|lora_|hada_|lokr_)", path)}


def _find(component: str, name: str, flat: Mapping[str, str], family: str) -> list[str]:
    """The paths of the model's modules that a file's name stands for, as ComfyUI and sd-scripts would find them.

    ``flat``: the model's paths by their names with _ for dots.
    """
    rest = name.removeprefix(f"lora_{component}_")
    if component != "unet":
        for candidate in (rest, rest.removeprefix("text_model_")):
            if candidate in flat:
                return [flat[candidate]]
        return []
    if family.startswith("sd3"):
        return [flat[c] for c in _mmdit(rest) if c in flat]
    if family == "sdxl":
        rest = _sdxl(rest, flat)
    return [flat[rest]] if rest in flat else []


def _sdxl(rest: str, flat: Mapping[str, str]) -> str:
    """An LDM name -> diffusers', by counting the model's own blocks."""
    per_block = 1 + sum(bool(re.fullmatch(r"down_blocks_0_resnets_\d_conv1", name)) for name in flat)
    leaves = {"in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
              "skip_connection": "conv_shortcut"}  # fmt: skip
    ends = {"time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
            "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
            "input_blocks_0_0": "conv_in", "out_2": "conv_out"}  # fmt: skip
    if rest in ends:
        return ends[rest]
    match = re.fullmatch(r"middle_block_([012])_(.+)", rest)
    if match:
        owner = "attentions_0" if match[1] == "1" else f"resnets_{'0' if match[1] == '0' else '1'}"
        return f"mid_block_{owner}_{leaves.get(match[2], match[2])}"
    match = re.fullmatch(r"(in|out)put_blocks_(\d+)_(\d)_(.+)", rest)
    if not match:
        return rest
    going_in, number, inner, leaf = match[1] == "in", int(match[2]), match[3], match[4]
    side, at = ("down", number - 1) if going_in else ("up", number)
    block, j = at // per_block, at % per_block
    if leaf == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if leaf == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    owner = "attentions" if inner == "1" else "resnets"
    return f"{side}_blocks_{block}_{owner}_{j}_{leaves.get(leaf, leaf)}"


def _mmdit(rest: str) -> list[str]:
    """An MMDiT name -> diffusers' names; q, k and v of a fused one."""
    ends = {"final_layer_linear": "proj_out", "final_layer_adaLN_modulation_1": "norm_out_linear",
            "x_embedder_proj": "pos_embed_proj", "context_embedder": "context_embedder"}  # fmt: skip
    match = re.fullmatch(r"([ty])_embedder_mlp_([02])", rest)
    if match:
        owner = "timestep" if match[1] == "t" else "text"
        return [f"time_text_embed_{owner}_embedder_linear_{1 if match[2] == '0' else 2}"]
    match = re.fullmatch(r"joint_blocks_(\d+)_(x|context)_block_(.+)", rest)
    if not match:
        return [ends[rest]] if rest in ends else []
    start, text, leaf = f"transformer_blocks_{match[1]}", match[2] == "context", match[3]
    if leaf.endswith("_qkv"):
        attention = leaf.removesuffix("_qkv")
        return [f"{start}_{attention}_{f'add_{one}_proj' if text else f'to_{one}'}" for one in "qkv"]
    if leaf.endswith("_proj"):
        return [f"{start}_{leaf.removesuffix('_proj')}_{'to_add_out' if text else 'to_out_0'}"]
    if leaf == "adaLN_modulation_1":
        return [f"{start}_norm1{'_context' if text else ''}_linear"]
    if leaf in ("mlp_fc1", "mlp_fc2"):
        return [f"{start}_ff{'_context' if text else ''}_net_{'0_proj' if leaf == 'mlp_fc1' else '2'}"]
    return []


# ------------------------------------------------------------------------------------------- what it does to a weight


def _fits(path: Path, name: str, module: Mapping[str, Tensor], layers: list[Any]) -> None:
    """ValueError for tensors that do not make up the weights they are for."""
    shapes = [_weight_shape(layer) for layer in layers]
    t = {key: value.to("meta", torch.float32) for key, value in module.items()}
    try:
        rows = _applied(t, torch.empty(shapes[0][1], 1, device="meta")).shape[0]
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path}: '{name}' does not fit its module ({str(error).splitlines()[0]})") from None
    if rows != sum(shape[0] for shape in shapes):
        raise UserError(f"{path}: '{name}' adapts {rows} rows; its module has {sum(shape[0] for shape in shapes)}")


def _weight_shape(layer: Any) -> tuple[int, int]:
    """(out, in times kernel) of a layer's bare weight, also where it is stored packed."""
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    if isinstance(base, nn.Conv2d):
        return base.out_channels, base.in_channels // base.groups * base.kernel_size[0] * base.kernel_size[1]
    return base.out_features, base.in_features


@torch.no_grad()
def _compare(
    path: Path, name: str, module: Mapping[str, Tensor], layers: list[Any], kind: str, for_comfyui: bool
) -> float:
    """The relative error of a module of the file against the trained layers; ValueError for more than rounding."""
    trained = torch.cat([layer.get_delta_weight(NAME).float().flatten(1) for layer in layers])
    t = {key: value.to(trained) for key, value in module.items()}
    out, width = trained.shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(width, 4, generator=random).to(trained)
    rows = _applied(t, x)
    rounding = (_applied({k: _nudged(v, module[k].dtype, random) for k, v in t.items()}, x) - rows).norm()
    magnitude = t["dora_scale"].flatten() if kind == "dora" else torch.zeros(out)
    # diffusers has the halves of these the other way round
    if "final_layer_adaLN" in name or ("context_block_adaLN" in name and out == 2 * width):
        rows, magnitude = (torch.cat(v.chunk(2)[::-1]) for v in (rows, magnitude))
    wanted = trained @ x
    apart, size = float((rows - wanted).norm()), float(wanted.norm())
    wrong = apart > 1e-4 * size + 4 * float(rounding)
    if kind == "dora":
        sizes = torch.cat([layer.lora_magnitude_vector[NAME].weight.float().flatten() for layer in layers])
        if for_comfyui:
            sizes = sizes * torch.cat([norm_ratio(layer) for layer in layers])
        wrong = wrong or not torch.allclose(magnitude, sizes, rtol=torch.finfo(module["dora_scale"].dtype).eps + 1e-5)
    if wrong:
        raise UserError(
            f"{path}: '{name}' does not do what was trained ({apart:.1e} of {size:.1e} apart); please report it"
        )
    return apart / size if size else apart


def _nudged(value: Tensor, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """A value moved as far as rounding to ``dtype`` may have moved it, up or down."""
    if value.dim() == 0 or not dtype.is_floating_point:
        return value
    info = torch.finfo(dtype)
    step = (value.abs() * info.eps).clamp(min=info.smallest_normal * info.eps) / 2
    signs = torch.randint(0, 2, value.shape, generator=random).to(value) * 2 - 1
    return value + step * signs


def _applied(t: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The difference that LyCORIS's formulas make of a module's tensors, times x [in, n]."""
    if "lora_up.weight" in t:
        down = t["lora_down.weight"].flatten(1)
        return t["alpha"] / down.shape[0] * (t["lora_up.weight"].flatten(1) @ (down @ x))
    if "hada_w1_a" in t:
        one, two = t["hada_w1_a"] @ t["hada_w1_b"], t["hada_w2_a"] @ t["hada_w2_b"]
        if "hada_t1" in t:
            one, two = (
                torch.einsum("abkl,ao,bi->oikl", t[f"hada_t{n}"], t[f"hada_w{n}_a"], t[f"hada_w{n}_b"]).flatten(1)
                for n in (1, 2)
            )
        return t["alpha"] / t["hada_w1_b"].shape[0] * ((one * two) @ x)
    ranks = [t[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in t]
    one = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_t2" in t:
        two = torch.einsum("abkl,ao,bi->oikl", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"]).flatten(1)
    else:
        two = t["lokr_w2"].flatten(1) if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    scale = t["alpha"] / ranks[0] if ranks else 1.0
    inner = x.reshape(one.shape[1], two.shape[1], -1)  # (A kron B) x = A X B^T
    return scale * torch.einsum("ij,kl,jln->ikn", one, two, inner).flatten(0, 1)


# ------------------------------------------------------------------------------------------ what diffusers makes of it


def _diffusers(path: Path, tensors: Mapping[str, Tensor], adapter: Adapter, rounding: float) -> list[str]:
    """Load the file by diffusers' own reader as a second adapter on the same denoiser, and compare one forward."""
    if adapter.kind != "lora" or adapter.family.startswith("sd3") or "unet" not in adapter.modules:
        return []
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    reader: Any = StableDiffusionXLLoraLoaderMixin if adapter.family == "sdxl" else StableDiffusionLoraLoaderMixin
    denoiser: Any = adapter.modules["unet"]
    inputs = probe(denoiser)
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    try:
        with torch.no_grad():
            mine = denoiser(**inputs).sample
            noise = float((denoiser(**_nudge(inputs)).sample - mine).double().norm())
            with adapter.off():
                bare = denoiser(**inputs).sample
            state, alphas = reader.lora_state_dict(dict(tensors), unet_config=denoiser.config)[:2]
            if _misread(alphas):
                return ["diffusers would give all attention layers one alpha, and here they have several: "
                        "convert the file for it (`convert --to diffusers`)"]  # fmt: skip
            with _second(denoiser, adapter):
                denoiser.load_lora_adapter(
                    {key: value for key, value in state.items() if key.startswith("unet.")},
                    prefix="unet", network_alphas=alphas, adapter_name=PROOF,
                )  # fmt: skip
                denoiser.set_adapter(PROOF)
                theirs = denoiser(**inputs).sample
    finally:
        for module in training:
            module.training = True
    apart, size, whole = (float(v.double().norm()) for v in (theirs - mine, mine - bare, mine))
    if apart > (0.02 + 4 * rounding) * size + 1e-5 * whole + 4 * noise:
        raise UserError(
            f"{path}: diffusers' picture of it is another ({apart:.1e} of {size:.1e} apart); please report it"
        )
    if size <= 4 * noise:
        return ["diffusers loads it; what was trained so far is less than the model's own rounding"]
    return [f"diffusers loads it with the trained effect ({apart / size:.1e} apart)"]


def _misread(alphas: Mapping[str, float]) -> bool:
    """diffusers (0.42) finds no layer for the alphas of attention's q, k, v, out, and takes the commonest instead."""
    unet = {key: alpha for key, alpha in alphas.items() if key.startswith("unet.")}
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
        if PROOF in getattr(denoiser, "peft_config", {}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Adapter proof was active")
                denoiser.delete_adapters(PROOF)
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
