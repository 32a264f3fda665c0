"""What a file is, in words, by the names and shapes of its tensors, also where it is no adapter of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .keys import AdapterFacts, identify, kind_of
from .parse import split

_KINDS = {
    "lora": "a LoRA", "dora": "a DoRA", "loha": "a LoHa", "lokr": "a LoKr", "glora": "a GLoRA", "oft": "an OFT",
    "diag-oft": "a Diag-OFT", "boft": "a BOFT", "ia3": "an (IA)3", "vera": "a VeRA",
    "full": "whole differences of weights", "norm": "differences of norms", "bias": "differences of biases",
    "mixed": "an adapter of several kinds",
}  # fmt: skip
_NETWORKS = (
    (r"distilled_guidance_layer|double_blocks.*(?=.*approximator)", "Chroma"),
    (r"individual_token_refiner|txt_in.*refiner", "HunyuanVideo"),
    (r"single_transformer_blocks|double_blocks|single_blocks", "Flux"),
    (r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)", "Qwen-Image"),
    (r"(^|[._])blocks[._]\d+[._](self|cross)_attn", "Wan"),
    (r"noise_refiner|context_refiner", "Lumina or Z-Image"),
    (r"lora_prior_|prior_unet", "Stable Cascade"),
    (r"caption_projection|adaln_single|scale_shift_table", "PixArt"),
    (r"(^|[._])(language_model|model)[._]layers[._]\d+[._](self_attn|mlp)", "a language model"),
)  # fmt: skip
"""What modules of other models are called."""
_FILES = (
    (r"lora_controlnet", "a ControlLoRA"),
    (r"lllite_.+", "a ControlNet-LLLite"),
    (r"(control_model|controlnet_.+|input_hint_block|zero_convs|controlnet)\..*", "a ControlNet"),
    (r"(ip_adapter|image_proj|image_proj_model)\..+", "an IP-Adapter"),
    (r".*(motion_modules|temporal_transformer)\..+", "a motion module"),
    (r"(string_to_param|emb_params)(\..*)?|bundle_emb\..+", "an embedding (textual inversion)"),
)  # fmt: skip
_WHOLE = (
    (r"(model\.diffusion_model|diffusion_model)\..+", "the weights of a whole denoiser (U-Net or transformer)"),
    (r"(down_blocks|input_blocks|joint_blocks|transformer_blocks|double_blocks)\..+",
     "the weights of a whole denoiser (U-Net or transformer)"),
    (r"(encoder|decoder)\.(down|up|mid|conv_in)(_block|_blocks)?\..+", "a VAE"),
    (r"((transformer\.)?text_model\.)?(encoder|embeddings)\.(layers|block|token_embedding)\..+|shared\.weight",
     "a text encoder"),
)  # fmt: skip
_CHECKPOINT = ("first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "text_encoders.")


def what_is(shapes: Mapping[str, Sequence[int]], facts: AdapterFacts | None = None) -> str:
    """``a LoRA for Flux``, ``a whole checkpoint``, ``an embedding (textual inversion)``."""
    facts = facts or identify(shapes)
    for pattern, name in _FILES:
        if any(re.fullmatch(pattern, key) for key in shapes) and not facts.kind:
            return name
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        if found := split(key):
            modules.setdefault(found[0], {})[found[1]] = tuple(shape)
    kind = facts.kind or kind_of(modules.values())
    if kind:
        other = (name for pattern, name in _NETWORKS if any(re.search(pattern, module) for module in modules))
        family = facts.family or next(other, "" if facts.modules else "no family that we know")
        return _KINDS.get(kind, f"an adapter of the kind {kind}") + (f" for {family}" if family else "")
    if any(key.startswith("model.diffusion_model.") for key in shapes) and any(
        key.startswith(_CHECKPOINT) for key in shapes
    ):
        return "a whole checkpoint"
    for pattern, name in _WHOLE:
        if any(re.fullmatch(pattern, key) for key in shapes):
            return name
    if shapes and len(shapes) <= 4 and all(_is_embedding(key, shape) for key, shape in shapes.items()):
        return "an embedding (textual inversion)"
    return "no adapter that we know"


_EMBEDDING_WIDTHS = (768, 1024, 1280, 2048, 4096)


def _is_embedding(key: str, shape: Sequence[int]) -> bool:
    """One or a few vectors of a text encoder's width, under the encoder's or the word's name."""
    return (
        len(shape) in (1, 2)
        and shape[-1] in _EMBEDDING_WIDTHS
        and (len(shape) == 1 or shape[0] <= 256)
        and "." not in key
    )
