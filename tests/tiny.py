"""Tiny real models: the classes of the big ones, a few channels, a fixed seed. ``parts("sd15")`` or ``write(folder)``.

Everybody's tests build on these. They are not trained; they are small, quick, and have every module that a real one has
(skip connections, cross-attention, samplers, a middle block with attention in the autoencoder).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a", "red", "blue", "green", "small", "big", "cat", "dog", "tree", "house", "of", "with", "in", "the", "drawing",
    "style", "picture", "car", "sky", "ink",
]  # fmt: skip
NAMES = ("sd15", "sdxl", "sd3-medium", "sd3.5-medium", "sd3.5-large")
LATENT_SIZE = 8
"""Latent cells per side that the tiny models are made for: pictures of 64 x 64."""


def _lib(name: str) -> Any:
    """A library imported when first needed, without its types: its classes are loaded lazily."""
    return import_module(name)


@dataclass
class Parts:
    """The modules of one model, in memory, fp32, evaluation mode."""

    denoiser: Any
    vae: Any
    text_encoders: dict[str, Any]
    """By kohya's names: te, or te1, te2, te3."""
    tokenizers: dict[str, Any]
    scheduler: Any
    pipeline: str
    """The diffusers pipeline class that the folder belongs to."""
    slots: dict[str, str] = field(default_factory=dict)
    """Text encoder name -> suffix of its folder (text_encoder_2, tokenizer_2)."""


def clip_tokenizer() -> Any:
    """A CLIP tokenizer that spells any text byte by byte and knows ``WORDS`` whole."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:  # what the words before have already merged
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == pair:
                    pieces[at : at + 2] = ["".join(pair)]
                at += 1
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    return _lib("transformers").CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)


def t5_tokenizer() -> Any:
    """A Unigram tokenizer as T5's: pad 0, end 1, unknown 2, then letters and ``WORDS``."""

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(WORDS) if len(word) > 1]
    pieces += [(chr(c), -6.0) for c in range(33, 127)]
    return _lib("transformers").T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def vae(latent_channels: int = 4, scale: float = 0.18215, shift: float | None = None) -> Any:
    torch.manual_seed(11)
    quant = shift is None
    return _lib("diffusers").AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=64,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=quant, use_post_quant_conv=quant,
    ).eval()  # fmt: skip


def clip(
    tokenizer: Any, width: int = 16, projection: int | None = None, seed: int = 12, act: str = "quick_gelu"
) -> Any:

    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = _lib("transformers").CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=projection or width, hidden_act=act,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    made = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    return getattr(_lib("transformers"), made)(config).eval()


def t5(width: int = 32) -> Any:

    torch.manual_seed(14)
    size = len(t5_tokenizer())
    return _lib("transformers").T5EncoderModel(_lib("transformers").T5Config(
        vocab_size=size, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )).eval()  # fmt: skip


def sd15(prediction: str = "epsilon") -> Parts:
    words = clip_tokenizer()
    torch.manual_seed(15)
    unet = _lib("diffusers").UNet2DConditionModel(
        sample_size=LATENT_SIZE, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=4,
    ).eval()  # fmt: skip
    scheduler = _lib("diffusers").DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type={"v": "v_prediction"}.get(prediction, prediction),
    )  # fmt: skip
    return Parts(unet, vae(), {"te": clip(words)}, {"te": words}, scheduler, "StableDiffusionPipeline", {"te": ""})


def sdxl(prediction: str = "epsilon") -> Parts:
    words = clip_tokenizer()
    second = clip_tokenizer()
    second.pad_token = "!"
    encoders = {"te1": clip(words), "te2": clip(words, 24, 24, seed=13, act="gelu")}
    torch.manual_seed(16)
    unet = _lib("diffusers").UNet2DConditionModel(
        sample_size=LATENT_SIZE, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=40,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2), norm_num_groups=4, transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
    ).eval()  # fmt: skip
    scheduler = _lib("diffusers").EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1,
        prediction_type={"v": "v_prediction"}.get(prediction, prediction),
    )  # fmt: skip
    return Parts(unet, vae(scale=0.13025), encoders, {"te1": words, "te2": second}, scheduler,
                 "StableDiffusionXLPipeline", {"te1": "", "te2": "_2"})  # fmt: skip


def sd3(name: str = "sd3-medium", with_t5: bool = True, layers: int = 3) -> Parts:
    """``sd3-medium``, ``sd3.5-medium`` (qk-norm, a second attention in block 0) or ``sd3.5-large`` (qk-norm)."""
    words, second = clip_tokenizer(), clip_tokenizer()
    second.pad_token = "!"
    encoders = {"te1": clip(words, 12, 12), "te2": clip(words, 16, 16, seed=13, act="gelu")}
    tokenizers = {"te1": words, "te2": second}
    if with_t5:
        encoders["te3"], tokenizers["te3"] = t5(32), t5_tokenizer()
    torch.manual_seed(17)
    transformer = _lib("diffusers").SD3Transformer2DModel(
        sample_size=LATENT_SIZE, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=28,
        pos_embed_max_size=12, qk_norm=None if name == "sd3-medium" else "rms_norm",
        dual_attention_layers=(0,) if name == "sd3.5-medium" else (),
    ).eval()  # fmt: skip
    scheduler = _lib("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Parts(transformer, vae(16, 1.5305, 0.0609), encoders, tokenizers, scheduler, "StableDiffusion3Pipeline",
                 {"te1": "", "te2": "_2", "te3": "_3"})  # fmt: skip


def parts(name: str, **options: Any) -> Parts:
    """``sd15``, ``sdxl``, ``sd3-medium``, ``sd3.5-medium`` or ``sd3.5-large`` in memory."""
    return {"sd15": sd15, "sdxl": sdxl}[name](**options) if name in ("sd15", "sdxl") else sd3(name, **options)


def write(folder: Path, made: Parts) -> Path:
    """A complete diffusers folder of ``made``; returns ``folder``."""
    net = "transformer" if made.pipeline == "StableDiffusion3Pipeline" else "unet"
    made.denoiser.save_pretrained(folder / net)
    made.vae.save_pretrained(folder / "vae")
    made.scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": made.pipeline, "vae": ["diffusers", "AutoencoderKL"],
        net: ["diffusers", type(made.denoiser).__name__], "scheduler": ["diffusers", type(made.scheduler).__name__],
    }  # fmt: skip
    for key, suffix in made.slots.items():
        if key not in made.text_encoders:
            index[f"text_encoder{suffix}"] = index[f"tokenizer{suffix}"] = [None, None]
            continue
        made.text_encoders[key].save_pretrained(folder / f"text_encoder{suffix}")
        made.tokenizers[key].save_pretrained(folder / f"tokenizer{suffix}")
        index[f"text_encoder{suffix}"] = ["transformers", type(made.text_encoders[key]).__name__]
        index[f"tokenizer{suffix}"] = ["transformers", type(made.tokenizers[key]).__name__]
    if made.pipeline == "StableDiffusionPipeline":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), "utf-8")
    return folder


def tiny_sd15(folder: Path, prediction: str = "epsilon") -> Path:
    return write(Path(folder), sd15(prediction))


def tiny_sdxl(folder: Path, prediction: str = "epsilon") -> Path:
    return write(Path(folder), sdxl(prediction))


def tiny_sd3(folder: Path, name: str = "sd3-medium", with_t5: bool = True) -> Path:
    return write(Path(folder), sd3(name, with_t5))
