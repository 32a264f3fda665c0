"""Run by ComfyUI's own Python (see nodes/test_nodes_host.py): our loader beside core's LoraLoader on small networks of
ComfyUI's own classes. Prints one JSON object: case -> findings."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models as supported
import torch
from safetensors.torch import save_file

spec = importlib.util.spec_from_file_location("pixelkiln", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
pack = importlib.util.module_from_spec(spec)
sys.modules["pixelkiln"] = pack
spec.loader.exec_module(pack)
from pixelkiln.nodes import adapter, load
from pixelkiln.trainer.adapters import keys  # noqa: F401

CPU = torch.device("cpu")
TEXT = {
    "architectures": ["CLIPTextModel"], "bos_token_id": 0, "eos_token_id": 49407, "hidden_act": "quick_gelu",
    "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 49408, "projection_dim": 64, "layer_norm_eps": 1e-5,
}  # fmt: skip


def unet(kind: str):
    """A narrow U-Net of ComfyUI's own, with the real cross-attention width and block layout."""
    common = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
              "use_spatial_transformer": True, "legacy": False, "num_head_channels": -1, "num_heads": 4}  # fmt: skip
    if kind == "sd15":
        config = supported.SD15({
            **common, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4), "context_dim": 768,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False,
            "adm_in_channels": None, "use_temporal_attention": False,
        })  # fmt: skip
        model = comfy.model_base.BaseModel(config, device=CPU)
    else:
        config = supported.SDXL({
            **common, "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "context_dim": 2048,
            "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
            "adm_in_channels": 2816, "num_classes": "sequential", "use_temporal_attention": False,
        })  # fmt: skip
        model = comfy.model_base.SDXL(config, device=CPU)
    return settled(model)


def mmdit(attn2: bool):
    """A narrow SD3 of ComfyUI's own."""
    config = supported.SD3({
        "in_channels": 16, "depth": 2, "pos_embed_max_size": 16, "num_patches": 256, "patch_size": 2,
        "adm_in_channels": 2048, "input_size": None, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
        "x_block_self_attn_layers": [0] if attn2 else [], "qk_norm": "rms" if attn2 else None,
        "pos_embed_scaling_factor": None,
    })  # fmt: skip
    return settled(comfy.model_base.SD3(config, device=CPU))


def settled(model):
    """Weights that are there and finite, in float32."""
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    model.requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


class Clip:
    """What LoraLoader asks of a CLIP."""

    def __init__(self, network, patcher=None):
        self.cond_stage_model = network
        self.patcher = patcher or comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU)

    def clone(self):
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, patches, strength=1.0):
        return self.patcher.add_patches(patches, strength)


class Encoders(torch.nn.Module):
    """Text encoders with the names that ComfyUI gives them; two layers, 64 wide."""

    def __init__(self, *names: str):
        super().__init__()
        for name in names:
            one = torch.nn.Module()
            one.transformer = torch.nn.Module()
            one.transformer.text_model = torch.nn.Module()
            one.transformer.text_model.encoder = torch.nn.Module()
            layers = []
            for _ in range(2):
                layer = torch.nn.Module()
                layer.mlp = torch.nn.Module()
                layer.mlp.fc1, layer.mlp.fc2 = torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)
                layer.self_attn = torch.nn.Module()
                for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    setattr(layer.self_attn, leaf, torch.nn.Linear(64, 64))
                layers.append(layer)
            one.transformer.text_model.encoder.layers = torch.nn.ModuleList(layers)
            setattr(self, name, one)
        self.requires_grad_(False)


def clip(*names: str) -> Clip:
    torch.manual_seed(1)
    return Clip(Encoders(*names))


# ------------------------------------------------------------------------------------------------------ made adapters


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=random.generator) * 0.1


random.generator = torch.Generator().manual_seed(2)


def module(kind: str, shape: tuple[int, ...], rank: int = 4) -> dict[str, torch.Tensor]:
    """One module's tensors by Kohya's and LyCORIS's names."""
    out, into, kernel = shape[0], shape[1], shape[2:]
    flat = into * (kernel[0] * kernel[1] if kernel else 1)
    alpha = {"alpha": torch.tensor(2.0)}
    if kind in ("lora", "dora"):
        ones = (1, 1) if kernel else ()
        found = {"lora_down.weight": random(rank, into, *kernel), "lora_up.weight": random(out, rank, *ones), **alpha}
        return {**found, "dora_scale": random(out, 1, *ones).abs() + 0.5} if kind == "dora" else found
    if kind == "loha":
        return {"hada_w1_a": random(out, rank), "hada_w1_b": random(rank, flat), "hada_w2_a": random(out, rank),
                "hada_w2_b": random(rank, flat), **alpha}  # fmt: skip
    assert kind == "lokr"
    return {"lokr_w1": random(2, 2), "lokr_w2_a": random(out // 2, rank), "lokr_w2_b": random(rank, flat // 2), **alpha}


def kohya_file(kind: str, model, text, te: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Every attention and text-encoder module, in Kohya's names."""
    import re

    names = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = model.model.state_dict()
    attention = "to_[qkv]|to_out_0|ff_net_0_proj|ff_net_2|proj_in|proj_out"
    wanted = re.compile(rf"lora_unet_(down|up|mid)_block.*({attention}|conv1)$")
    if "SDXL" in type(model.model).__name__:
        wanted = re.compile(rf"lora_unet_(input_blocks|middle_block|output_blocks).*({attention})$")
    if "SD3" in type(model.model).__name__:
        wanted = re.compile(r"lora_unet_joint_blocks_\d+_.*(qkv|proj|fc1|fc2|adaLN_modulation_1)$")
    chosen = {
        name: tuple(weights[t].shape) for name, t in names.items() if isinstance(t, str) and wanted.fullmatch(name)
    }
    if text is not None:
        state = text.cond_stage_model.state_dict()
        for name, target in comfy.lora.model_lora_keys_clip(text.cond_stage_model, {}).items():
            if name.startswith(te):
                chosen[name] = tuple(state[target].shape)
    return {
        f"{name}.{part}": v.contiguous() for name, shape in chosen.items() for part, v in module(kind, shape).items()
    }


# ----------------------------------------------------------------------------------------------------------- measuring


def patched(patcher) -> dict[str, torch.Tensor]:
    """Every patched weight, computed by ComfyUI from its patches in float32."""
    weights = patcher.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patcher.patches[key], weights[key].clone(), key) for key in patcher.patches
    }


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest relative error; 1 where only one has the weight."""
    worst = 0.0
    for key in ours.keys() | theirs.keys():
        if key not in ours or key not in theirs:
            return 1.0
        worst = max(worst, float((ours[key] - theirs[key]).norm() / theirs[key].norm()))
    return worst


class Missing(logging.Handler):
    """Counts core's complaints."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def core(model, text, tensors):
    handler = Missing()
    logging.getLogger().addHandler(handler)
    out = comfy.sd.load_lora_for_models(model, text, dict(tensors), 0.7, 0.4)
    logging.getLogger().removeHandler(handler)
    return *out, [line for line in handler.lines if "not loaded" in line.lower()]


def against_core(model, text, path: Path) -> dict:
    tensors = adapter.read(path).tensors
    theirs_model, theirs_clip, missing = core(model, text, tensors)
    ours = load.apply(model, text, path, 0.7, 0.4, "", "error")
    found = {"missing": len(missing), "unet": distance(patched(ours.model), patched(theirs_model)),
             "weights": len(theirs_model.patches), "info": ours.info.splitlines()[1]}  # fmt: skip
    if text is not None:
        found |= {
            "te": distance(patched(ours.clip.patcher), patched(theirs_clip.patcher)),
            "te_weights": len(theirs_clip.patcher.patches),
        }
    return found


def peft_names(tensors: dict[str, torch.Tensor], style: str) -> dict[str, torch.Tensor]:
    """A Kohya SD1.5 file of plain LoRA in the names of today's diffusers (or PEFT), with alpha = rank folded in."""
    from pixelkiln.trainer.adapters.parse import parse

    found = {}
    for key, value in tensors.items():
        ref = parse(key)
        if ref.tensor == "alpha":
            continue
        start = {"unet": "unet.", "te": "text_encoder."}[ref.component] if style == "diffusers" else "base_model.model."
        part = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}[ref.tensor]
        found[f"{start}{ref.path}.{part}"] = value
    return found


def today(model, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """An adapter without alpha as diffusers and PEFT write it now, and the same in a spelling that core reads whole.

    The modules' names are from ComfyUI's own table of diffusers' names."""
    import re

    config, weights = model.model.model_config.unet_config, model.model.state_dict()
    if sd3 := "SD3" in type(model.model).__name__:
        names = comfy.utils.mmdit_to_diffusers(config, "diffusion_model.")
    else:
        names = {k: f"diffusion_model.{v}" for k, v in comfy.utils.unet_to_diffusers(config).items()}
    leaves = r"to_[qkv]|to_out\.0|to_add_out|add_[qkv]_proj|net\.0\.proj|net\.2"
    wanted = re.compile(rf"(.*blocks?\..*\.(?:{leaves}))\.weight")
    modern = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight",
              "dora_scale": "lora_magnitude_vector"}  # fmt: skip
    start = "base_model.model." if kind.startswith("lo") and kind != "lora" else "transformer." if sd3 else "unet."
    dotted, flat = {}, {}
    for name, target in names.items():
        match = wanted.fullmatch(name)
        if match is None or (target[0] if isinstance(target, tuple) else target) not in weights:
            continue
        key, cut = target[:2] if isinstance(target, tuple) else (target, None)
        weight = weights[key].narrow(*cut) if cut else weights[key]
        for part, value in module(kind, tuple(weight.shape)).items():
            if part != "alpha":
                dotted[f"{start}{match[1]}.{modern.get(part, part)}"] = value.flatten() if "dora" in part else value
                flat[f"lora_{'transformer' if sd3 else 'unet'}_{match[1].replace('.', '_')}.{part}"] = value
    return dotted, flat


def faults(sd15, text, sdxl, text2, plain, saved) -> dict:
    """Files with a fault, or with more than matrices: what is applied is counted, what is not is named."""

    def loaded(model, clip, tensors, check: str = "error") -> str:
        try:
            return load.apply(model, clip, saved("fault.safetensors", tensors), 1, 1, "", check).info
        except ValueError as error:
            return f"refused: {error}"

    first = next(iter(plain))
    flux = "lora_unet_double_blocks_0_img_attn_qkv.lora_{}.weight"
    cases = {
        "half": {key: value for key, value in plain.items() if key != first.replace("lora_down", "lora_up")},
        "nan": {**plain, first: plain[first] * float("nan")},
        "foreign": {**plain, "lora_te9_strange": torch.ones(1)},
        "embedding": {**plain, "bundle_emb.cat.clip_l": torch.ones(1, 768)},
        "whole": {"model.diffusion_model.out.2.weight": torch.ones(1), "first_stage_model.x": torch.ones(1)},
        "flux": {flux.format(name): torch.ones(4, 4) for name in ("up", "down")},
    }
    found: dict = {
        f"{name}, {check}": loaded(sd15, text, tensors, check)
        for name, tensors in cases.items()
        for check in ("error", "warn")
    }
    names = {
        "unet.middle_block.1.transformer_blocks.0.attn2.to_k": 2048,
        "clip_g.text_model.encoder.layers.0.mlp.fc1": 64,
    }
    omi = {f"{name}.lora_down.weight": random(4, width) for name, width in names.items()}
    omi |= {f"{name}.lora_up.weight": random(128, 4) for name in names}
    found["omi"] = loaded(sdxl, text2, omi)
    start, bias = "unet.mid_block.attentions.0.transformer_blocks.0.attn1", random(128)
    pair = {"A": random(4, 128), "B": random(128, 4)}
    both = {f"{start}.{to}.lora_{n}.weight": v.clone() for to in ("to_k", "to_out.0") for n, v in pair.items()}
    path = saved("bias.safetensors", {**both, f"{start}.to_out.0.lora_B.bias": bias})
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0.bias"
    shift = patched(load.apply(sd15, text, path, 0.5, 1, "", "error").model)[key] - sd15.model.state_dict()[key]
    found["bias"] = float((shift - 0.5 * bias).abs().max())
    found["no bias"] = loaded(sd15, text, {**both, f"{start}.to_k.lora_B.bias": bias})
    return found


def main() -> dict:
    found: dict = {}
    folder = Path(tempfile.mkdtemp())

    def saved(name: str, tensors, metadata=None) -> Path:
        save_file({key: value.contiguous() for key, value in tensors.items()}, str(folder / name), metadata)
        return folder / name

    sd15, text = unet("sd15"), clip("clip_l")
    for kind in ("lora", "dora", "loha", "lokr"):
        found[f"sd15 {kind}"] = against_core(
            sd15, text, saved(f"{kind}.safetensors", kohya_file(kind, sd15, text, ("lora_te_",)))
        )

    # today's diffusers and PEFT files: core drops attention, we must give base + strength x B A
    plain = {k: v for k, v in kohya_file("lora", sd15, text, ("lora_te_",)).items() if not k.endswith(".alpha")}
    for style in ("diffusers", "peft"):
        path = saved(
            f"{style}.safetensors",
            peft_names({k: v for k, v in plain.items() if style == "diffusers" or "lora_unet" in k}, style),
        )
        ours = load.apply(sd15, text, path, 0.7, 0.4, "", "error")
        base, names = sd15.model.state_dict(), comfy.lora.model_lora_keys_unet(sd15.model, {})
        worst = 0.0
        got = patched(ours.model)
        for name, parts in adapter.by_module(plain).items():
            if name.startswith("lora_unet"):
                weight = base[names[name]]
                up, down = parts["lora_up.weight"].double(), parts["lora_down.weight"].double()
                want = weight.double() + 0.7 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
                worst = max(worst, float((got[names[name]].double() - want).norm() / want.norm()))
        core_model, _, missing = core(sd15, text, adapter.read(path).tensors)
        found[f"sd15 {style} file"] = {"error": worst, "ours": len(got), "core": len(core_model.patches),
                                       "missing": len(missing), "info": ours.info.splitlines()[1]}  # fmt: skip

    sdxl, text2 = unet("sdxl"), clip("clip_l", "clip_g")
    xl = kohya_file("lora", sdxl, text2, ("lora_te1_", "lora_te2_"))
    for kind in ("lora", "dora", "loha", "lokr"):
        tensors = xl if kind == "lora" else kohya_file(kind, sdxl, text2, ("lora_te1_", "lora_te2_"))
        found[f"sdxl {kind}"] = against_core(sdxl, text2, saved(f"xl_{kind}.safetensors", tensors))

    for name, attn2 in (("sd3", False), ("sd3.5", True)):
        model = mmdit(attn2)
        for kind in ("lora", "dora", "loha", "lokr"):
            found[f"{name} {kind}"] = against_core(
                model, None, saved(f"{name}_{kind}.safetensors", kohya_file(kind, model, None, ()))
            )

    # today's names of every kind, beside core with the same tensors in a spelling that it reads
    for name, model in {"sd15": sd15, "sdxl": sdxl, "sd3": mmdit(False), "sd3.5": mmdit(True)}.items():
        for kind in ("lora", "dora", "loha", "lokr"):
            dotted, flat = today(model, kind)
            theirs, _, missing = core(model, None, flat)
            ours = load.apply(model, None, saved("today.safetensors", dotted), 0.7, 0.4, "", "error")
            found[f"{name} {kind}, today's names"] = {
                "missing": len(missing), "unet": distance(patched(ours.model), patched(theirs)),
                "weights": len(theirs.patches), "info": ours.info.splitlines()[1],
            }  # fmt: skip

    # of another family
    try:
        load.apply(sd15, text, folder / "xl_lora.safetensors", 1, 1, "", "error")
        found["sdxl on sd15"] = {"message": "nothing"}
    except ValueError as error:
        found["sdxl on sd15"] = {"message": str(error)}
    warned = load.apply(sd15, text, folder / "xl_lora.safetensors", 1, 1, "", "warn")
    found["sdxl on sd15, warn"] = {"message": warned.info}
    asis = load.apply(sd15, text, folder / "xl_lora.safetensors", 0.7, 0.4, "", "as ComfyUI")
    theirs, *_ = core(sd15, text, adapter.read(folder / "xl_lora.safetensors").tensors)
    found["sdxl on sd15, as ComfyUI"] = {"same": asis.model.patches.keys() == theirs.patches.keys()}

    # blocks: each weight is base + factor x delta
    blocked = load.apply(sd15, text, folder / "lora.safetensors", 1, 1, "in=1 mid=0.5 out.3-5=0 te=0", "error")
    whole = load.apply(sd15, text, folder / "lora.safetensors", 1, 1, "", "error")
    base, some, full = sd15.model.state_dict(), patched(blocked.model), patched(whole.model)
    deltas = {k: (some[k] - base[k], full[k] - base[k]) for k in full if "middle_block" in k}
    inner = [{k: v for k, v in one.items() if "input_blocks" in k} for one in (some, full)]
    found["blocks"] = {
        "mid": max(float((half - 0.5 * whole).norm() / whole.norm()) for half, whole in deltas.values()),
        "in": distance(*inner),
        "out.3-5": sum(any(f"output_blocks.{n}." in k for n in (3, 4, 5)) for k in some),
        "te": len(blocked.clip.patcher.patches),
    }
    try:
        load.apply(sd15, text, folder / "lora.safetensors", 1, 1, "joint.3=0", "error")
    except ValueError as error:
        found["blocks"]["unknown"] = str(error)

    found["faults"] = faults(sd15, text, sdxl, text2, plain, saved)

    # without a CLIP, the text encoder's part is counted, not missed
    found["model only"] = {"info": load.apply(sd15, None, folder / "lora.safetensors", 1, 0, "", "error").info}
    return found


if __name__ == "__main__":
    with torch.no_grad():
        findings = main()
    print("FINDINGS " + json.dumps(findings))
