"""Single-file checkpoints in the public layouts (LDM, OpenCLIP, SAI's MMDiT), written from diffusers' modules.

The reverse of what loaders do, from the layouts' own rules and not from any loader's table: so loading what this writes
proves the loader. Works on meta tensors too, for names and shapes at full size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def unet(state: State, layers: int) -> dict[str, Tensor]:
    """LDM's U-Net: ``layers`` residual blocks per level (diffusers' layers_per_block)."""
    attended = {int(m[1]) for key in state if (m := re.match(r"up_blocks\.(\d+)\.attentions", key))}

    def name(key: str) -> str:
        for old, new in _UNET.items():
            if key.startswith(f"{old}."):
                key = new + key.removeprefix(old)
                break
        if m := re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\.conv(?=\.))?", key
        ):
            side, block, kind, j = m[1], int(m[2]), m[3], int(m[4])
            if kind == "downsamplers":
                new = f"input_blocks.{(layers + 1) * (block + 1)}.0.op"
            elif kind == "upsamplers":
                new = f"output_blocks.{(layers + 1) * block + layers}.{2 if block in attended else 1}.conv"
            else:
                at = (layers + 1) * block + j + (side == "down")
                new = f"{'input' if side == 'down' else 'output'}_blocks.{at}.{0 if kind == 'resnets' else 1}"
            key = new + key[m.end() :]
        head, _, leaf = key.rpartition(".")
        last = head.rsplit(".", 1)[-1]
        if last in _RESNET and "transformer_blocks" not in head:
            key = f"{head.removesuffix(last)}{_RESNET[last]}.{leaf}"
        return key

    return {name(key): value for key, value in state.items()}


def vae(state: State) -> dict[str, Tensor]:
    top = 1 + max(int(m[1]) for key in state if (m := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{top - 1 - int(m[1])}.block.", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{top - 1 - int(m[1])}.upsample", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            key = re.sub(r"to_([qkv])\.", r"\1.", key).replace("to_out.0", "proj_out")
            value = value[:, :, None, None] if value.ndim == 2 else value
        out[key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = value
    return out


def clip(state: State) -> dict[str, Tensor]:
    """transformers' names with the ``text_model`` that old releases put first, as in public files."""
    inside = ("text_model.", "text_projection.")
    return {key if key.startswith(inside) else f"text_model.{key}": value for key, value in state.items()}


def openclip(state: State, extra_layer: bool = False) -> dict[str, Tensor]:
    """OpenCLIP's text tower: fused qkv, transposed projection. ``extra_layer`` adds the unread one of SD 2.x."""
    plain = {key.removeprefix("text_model."): value for key, value in state.items()}
    out: dict[str, Tensor] = {}
    for key, value in plain.items():
        if key == "text_projection.weight":
            out["text_projection"] = value.T.contiguous()
            continue
        key = key.replace("embeddings.token_embedding.weight", "token_embedding.weight")
        key = key.replace("embeddings.position_embedding.weight", "positional_embedding")
        key = key.replace("final_layer_norm", "ln_final").replace("encoder.layers.", "transformer.resblocks.")
        key = key.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2")
        key = key.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")
        if m := re.fullmatch(r"(.*attn)\.q_proj\.(weight|bias)", key):
            source = f"{m[1].replace('transformer.resblocks.', 'encoder.layers.').replace('attn', 'self_attn')}"
            fused = [plain[f"{source}.{p}_proj.{m[2]}"] for p in "qkv"]
            out[f"{m[1]}.in_proj_{m[2]}"] = torch.cat(fused)
        elif not re.search(r"attn\.[kv]_proj", key):
            out[key] = value
    if extra_layer:
        last = max(int(key.split(".")[2]) for key in out if key.startswith("transformer.resblocks."))
        for key in [k for k in out if k.startswith(f"transformer.resblocks.{last}.")]:
            out[key.replace(f".{last}.", f".{last + 1}.", 1)] = torch.ones_like(out[key])
        width = out["positional_embedding"].shape[1]
        out["text_projection"] = torch.ones(width, width, device=out["positional_embedding"].device)
    return out


_MMDIT = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
}  # fmt: skip
_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj", "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}


def _swap(value: Tensor) -> Tensor:
    """diffusers holds (scale, shift) where SAI holds (shift, scale)."""
    return torch.cat(value.chunk(2)[::-1])


def mmdit(state: State) -> dict[str, Tensor]:
    last = max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks."))
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        head, _, leaf = key.rpartition(".")
        if not key.startswith("transformer_blocks."):
            new = _MMDIT[key] if key in _MMDIT else f"{_MMDIT[head]}.{leaf}"
            out[new] = _swap(value) if head == "norm_out.linear" else value
            continue
        _, number, inner = head.split(".", 2)
        block, at = f"joint_blocks.{number}", f"transformer_blocks.{number}"
        if inner in _BLOCK:
            swapped = inner == "norm1_context.linear" and int(number) == last
            out[f"{block}.{_BLOCK[inner]}.{leaf}"] = _swap(value) if swapped else value
        for fused, names in _FUSED.items():
            if inner == names[0]:
                out[f"{block}.{fused}.{leaf}"] = torch.cat([state[f"{at}.{name}.{leaf}"] for name in names])
    return out


def checkpoint(
    name: str, denoiser: Any = None, autoencoder: Any = None, encoders: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """The tensors of a single-file checkpoint of the family ``name``, from the modules that are given."""
    parts: dict[str, dict[str, Tensor]] = {}
    if denoiser is not None:
        state = denoiser.state_dict()
        parts["model.diffusion_model."] = (
            mmdit(state) if name.startswith("sd3") else unet(state, denoiser.config.layers_per_block)
        )
    if autoencoder is not None:
        parts["first_stage_model."] = vae(autoencoder.state_dict())
    for key, module in (encoders or {}).items():
        state = module.state_dict()
        if name == "sd15":
            parts["cond_stage_model.transformer."] = clip(state)
        elif name == "sd2":
            parts["cond_stage_model.model."] = openclip(state, extra_layer=True)
        elif name == "sdxl":
            first = key == "te1"
            parts[f"conditioner.embedders.{0 if first else 1}.{'transformer' if first else 'model'}."] = (
                clip(state) if first else openclip(state)
            )
        elif key == "te3":
            parts["text_encoders.t5xxl.transformer."] = {k: v for k, v in state.items() if "embed_tokens" not in k}
        else:
            parts[f"text_encoders.clip_{'l' if key == 'te1' else 'g'}.transformer."] = clip(state)
    return {prefix + key: value for prefix, tensors in parts.items() for key, value in tensors.items()}


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, **metadata: str) -> Path:
    from safetensors.torch import save_file

    converted = {
        k: (v.to(dtype) if dtype and v.is_floating_point() else v).clone().contiguous() for k, v in tensors.items()
    }
    save_file(converted, path, metadata={"format": "pt", **metadata})
    return path
