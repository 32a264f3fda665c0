"""[model]: which model is trained on, and how its text encoders read a caption."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from ..errors import UserError
from ..registry import Choices, Options, PathStr, families, option

PREDICTIONS = {
    "sd15": ("epsilon", "v", "sample"),
    "sd2": ("epsilon", "v", "sample"),
    "sdxl": ("epsilon", "v", "sample"),
    "sd3-medium": ("flow",),
    "sd3.5-medium": ("flow",),
    "sd3.5-large": ("flow",),
}
"""Family -> what its models predict, here to be readable without torch: the U-Nets, then the transformers."""


def _family_names() -> list[str]:
    """Those here, then those of other packages."""
    others = [entry.name for entry in families.registered_so_far() if entry.name not in PREDICTIONS]
    return ["auto", *PREDICTIONS, *others]


class ModelOptions(Options):
    path: PathStr = option(kohya="pretrained_model_name_or_path", label="Base model")
    """A checkpoint file (.safetensors; .ckpt only if it holds nothing but tensors), a diffusers folder, or a hub id."""
    family: Annotated[str, Choices(_family_names)] = option("auto", label="Family")
    """The kind of model. ``auto`` reads it from the file; anything else must agree with the file."""
    prediction: Literal["auto", "epsilon", "v", "sample", "flow"] = option("auto", label="Prediction")
    """What the network predicts. ``auto`` reads it from the file: noise (epsilon) unless it says otherwise."""
    zero_terminal_snr: bool | None = option(None, kohya="zero_terminal_snr", label="Zero terminal SNR")
    """Whether the last noise level is pure noise, which only v-prediction models are made for. Read from the file when
    not given."""
    vae: PathStr | None = option(None, kohya="vae", label="Autoencoder (VAE)")
    """Another autoencoder of the same kind, as a file, a folder or a hub id. The base model's own when not given."""
    vae_precision: Literal["auto", "bf16", "fp32", "fp16"] = option("auto", label="Autoencoder precision")
    """``auto`` encodes and decodes as ``run.precision`` has it, and in bf16 or fp32 where that is fp16: it overflows.
    ``fp32`` is kohya's ``no_half_vae``: slower, twice the memory, and latents without bf16's rounding. ``fp16``, for
    GPUs without bf16: with ``run.precision = "fp16"``, whose loss scaling keeps the decoder's small gradients, and an
    autoencoder that does not overflow, as SD1.5's or one that is given in ``vae`` and made for it."""
    base_adapters: list[PathStr] = option([], kohya="base_weights", label="Adapters in the base")
    """Adapter files that are added to the base model before training: the new adapter is learned on top of them."""
    base_adapter_weights: list[float] = option([], kohya="base_weights_multiplier", label="Their weights")
    """What each of ``base_adapters`` is multiplied by; 1 where not given."""
    clip_skip: int | None = option(None, kohya="clip_skip", label="CLIP skip", ge=1, le=12)
    """Which layer of CLIP conditions SD 1.x and 2.x, counted from the end: 1 is the last, 2 what many anime models
    want. SDXL and SD3 always read the layer before the last."""
    max_tokens: Literal[75, 150, 225] = option(75, kohya="max_token_length", label="Caption length (tokens)")
    """How many tokens of a caption CLIP reads, in chunks of 75. SD3 reads 75; its T5 has ``t5_max_tokens``."""
    weighted_captions: bool = option(False, kohya="weighted_captions", label="Weighted captions")
    """Read ``(word:1.3)``, ``(word)`` and ``[word]`` in captions as emphasis. Not for SD3."""
    clip_l: PathStr | None = option(None, kohya="clip_l", label="CLIP-L file")
    """The CLIP-L text encoder, for SDXL and SD3 files that hold none."""
    clip_g: PathStr | None = option(None, kohya="clip_g", label="CLIP-G file")
    """The CLIP-G text encoder, for SDXL and SD3 files that hold none."""
    t5: PathStr | None = option(None, kohya="t5xxl", label="T5-XXL file")
    """The T5-XXL text encoder, for SD3 files that hold none."""
    use_t5: bool = option(True, label="Use T5")
    """Load T5 for SD3 where there is one. Without it the model receives zeros in its place and needs 10 GB less."""
    t5_max_tokens: int = option(256, kohya="t5xxl_max_token_length", label="T5 caption length (tokens)", ge=16, le=512)
    """How many tokens of a caption T5 reads (SD3); also the number of zeros without T5."""
    t5_mask: bool = option(False, kohya="apply_t5_attn_mask", label="T5 attention mask")
    """Hide the padding of short captions from T5 itself. SD3 was trained without."""
    clip_mask: bool = option(False, kohya="apply_lg_attn_mask", label="CLIP attention mask")
    """Hide the padding of short captions from CLIP itself (SD3). SD3 was trained without."""
    t5_on_cpu: bool = option(False, label="T5 on the CPU")
    """Leave T5 on the CPU: slower to encode captions, but it never takes graphics memory."""
    tokenizer_cache_dir: PathStr | None = option(None, kohya="tokenizer_cache_dir", label="Tokenizer folder")
    """A folder of tokenizers, each in a folder named like its hub id with / as _, for use without a network. CLIP's is
    built in; T5's is ``google_t5-v1_1-xxl``."""
    revision: str | None = option(None, label="Hub revision")
    """Branch, tag or commit of a hub id."""
    variant: str | None = option(None, label="Weights variant")
    """Which weights of a folder or hub id, such as ``fp16``. A folder that holds only one variant needs none."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelOptions:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise UserError("zero_terminal_snr: no noise can be told apart in pure noise; set prediction = 'v'")
        if self.family != "auto" and self.prediction != "auto":
            known = PREDICTIONS.get(self.family) or families[self.family].build().predictions
            if self.prediction not in known:
                listed = ", ".join(f"'{one}'" for one in known)
                raise UserError(f"prediction: {self.family} does not predict {self.prediction}; use {listed} or 'auto'")
        if len(self.base_adapter_weights) > len(self.base_adapters):
            raise UserError("base_adapter_weights: there are more of them than base_adapters; give one for each")
        if self.t5 and not self.use_t5:
            raise UserError("t5: a file is given, but use_t5 is false; drop one of them")
        return self
