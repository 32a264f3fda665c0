"""[adapter]: what is trained."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import model_validator

from ..errors import UserError
from ..registry import Options, PathStr, option

Kind = Literal["lora", "dora", "loha", "lokr"]
CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")


class AdapterOptions(Options):
    kind: Kind = option("lora", label="Kind")
    """``lora`` loads everywhere. ``dora`` also trains the size of each output. ``loha`` and ``lokr`` get more out of
    few parameters; A1111, Forge and ComfyUI read them, diffusers needs a conversion."""
    rank: int = option(16, kohya="network_dim", label="Rank", ge=1, le=4096)
    """Size of the adapter: 4-16 for a face or an object, 16-64 for a style. More learns more detail, and more by
    heart."""
    alpha: float | None = option(None, kohya="network_alpha", label="Alpha", ge=0)
    """The adapter's effect is multiplied by alpha / rank, so a smaller alpha wants a larger learning rate. The rank
    when not given or 0: no scaling. (Kohya's tools take 1 when it is not given.)"""
    conv_rank: int | None = option(None, kohya="conv_dim", label="Conv rank", ge=1, le=4096)
    """Adapts the U-Net's resnet blocks too: their 3x3 convolutions with this rank, what else is in them with ``rank``.
    Off when not given. SD3 has no such convolutions."""
    conv_alpha: float | None = option(None, kohya="conv_alpha", label="Conv alpha", ge=0)
    """Alpha of the 3x3 convolutions; ``conv_rank`` when not given. (Kohya's tools take 1.)"""
    dropout: float = option(0.0, kohya="network_dropout", label="Dropout", ge=0, lt=1)
    """Chance to drop each of the ``rank`` values between an adapter's two matrices (lora, dora). Against learning by
    heart: 0.1 to 0.3."""
    rank_dropout: float = option(0.0, kohya="rank_dropout", label="Rank dropout", ge=0, lt=1)
    """Chance to drop a whole rank for a picture (lora, dora), or a row of the difference (loha, lokr)."""
    module_dropout: float = option(0.0, kohya="module_dropout", label="Module dropout", ge=0, lt=1)
    """Chance to leave out a module's adapter for a step."""
    denoiser: bool = option(True, label="Train the U-Net or MMDiT")
    """Off, only text encoders are trained."""
    text_encoders: bool | list[str] = option(False, label="Train text encoders")
    """``true`` trains the CLIP text encoders; a list names them: ``clip_l``, ``clip_g``, ``t5``. When none is trained,
    captions are encoded once, which saves memory and time."""
    targets: list[str] | None = option(None, label="Target modules")
    """Regular expressions; a Linear or convolution of the denoiser is adapted when one is found in its name in
    diffusers, such as ``attn2`` or ``up_blocks.1.*to_k``. Not given: attention blocks, and resnets with
    ``conv_rank``."""
    init_from: PathStr | None = option(None, kohya="network_weights", label="Continue from")
    """An adapter file to go on from, by Kohya's tools, LyCORIS, diffusers or PEFT. Its kind, ranks and alphas are
    kept."""
    dora_for: Literal["lycoris", "comfyui"] = option("comfyui", label="DoRA magnitudes for")
    """DoRA: ComfyUI and Forge divide by the size of the bare weight where the paper, LyCORIS, sd-scripts and diffusers
    divide by that of the adapted one. The file's magnitudes have the exact effect in the programs named here, and a
    nearly equal one in the others."""
    factor: int = option(-1, kohya="factor", label="LoKr factor", ge=-1)
    """LoKr: how a width is split in two, e.g. 8; smaller makes larger files. -1 splits near the square root."""
    decompose_both: bool = option(False, kohya="decompose_both", label="LoKr decompose both")
    """LoKr: give the smaller of its two matrices a rank too."""
    loraplus: float | None = option(None, kohya="loraplus_lr_ratio", label="LoRA+ ratio", gt=0)
    """LoRA+ (arXiv:2402.12354): the up matrices learn so many times faster, e.g. 16 (lora, dora)."""
    loraplus_denoiser: float | None = option(None, kohya="loraplus_unet_lr_ratio", label="LoRA+ ratio, denoiser", gt=0)
    """As ``loraplus``, for the denoiser only."""
    loraplus_text: float | None = option(None, kohya="loraplus_text_encoder_lr_ratio", label="LoRA+ ratio, text", gt=0)
    """As ``loraplus``, for text encoders only."""
    scale_weight_norms: float | None = option(None, kohya="scale_weight_norms", label="Scale weight norms", gt=0)
    """After each step, a module whose difference has a larger norm is scaled down to it. 1 is usual."""
    block_ranks: list[int] | None = option(None, kohya="block_dims", label="Ranks per block")
    """A rank for each U-Net block, 0 leaves it out. 25 numbers for SD1.5 (12 down, middle, 12 up), 23 for SDXL (base, 9
    in, 3 middle, 9 out, end)."""
    block_alphas: list[float] | None = option(None, kohya="block_alphas", label="Alphas per block")
    """An alpha for each block of ``block_ranks``; ``alpha`` when not given."""
    conv_block_ranks: list[int] | None = option(None, kohya="conv_block_dims", label="Conv ranks per block")
    """As ``block_ranks`` for 3x3 convolutions."""
    conv_block_alphas: list[float] | None = option(None, kohya="conv_block_alphas", label="Conv alphas per block")
    """As ``block_alphas`` for 3x3 convolutions."""
    down_lr: list[float] | str | None = option(None, kohya="down_lr_weight", label="Learning rate of down blocks")
    """Factors on the learning rate of the U-Net's down blocks: 12 numbers (SDXL 9), or ``cosine``, ``sine``,
    ``linear``, ``reverse_linear``, ``zeros``, each also with a base such as ``sine+0.25``. A factor of 0 leaves a block
    out."""
    mid_lr: list[float] | None = option(None, kohya="mid_lr_weight", label="Learning rate of the middle block")
    """1 factor (SDXL 3) for the middle block."""
    up_lr: list[float] | str | None = option(None, kohya="up_lr_weight", label="Learning rate of up blocks")
    """As ``down_lr`` for the up blocks."""
    lr_zero_threshold: float = option(0.0, kohya="block_lr_zero_threshold", label="Factors that count as 0", ge=0)
    """Factors of ``down_lr``, ``mid_lr``, ``up_lr`` up to this count as 0."""
    blocks: str = option("all", kohya="train_block_indices", label="Blocks (SD3)", pattern=r"^(all|none|[\d,\- ]+)$")
    """SD3: which joint blocks are adapted, such as ``0-5,8``."""
    context_attn_rank: int | None = option(None, kohya="context_attn_dim", label="Rank of text attention (SD3)", ge=0)
    """SD3: rank of the text side's attention; 0 leaves it out. ``rank`` when not given, like the next five."""
    context_mlp_rank: int | None = option(None, kohya="context_mlp_dim", label="Rank of text MLP (SD3)", ge=0)
    """SD3: rank of the text side's MLP."""
    context_mod_rank: int | None = option(None, kohya="context_mod_dim", label="Rank of text modulation (SD3)", ge=0)
    """SD3: rank of the text side's modulation."""
    x_attn_rank: int | None = option(None, kohya="x_attn_dim", label="Rank of image attention (SD3)", ge=0)
    """SD3: rank of the image side's attention."""
    x_mlp_rank: int | None = option(None, kohya="x_mlp_dim", label="Rank of image MLP (SD3)", ge=0)
    """SD3: rank of the image side's MLP."""
    x_mod_rank: int | None = option(None, kohya="x_mod_dim", label="Rank of image modulation (SD3)", ge=0)
    """SD3: rank of the image side's modulation."""
    embedder_ranks: list[int] | None = option(
        None, kohya="emb_dims", label="Ranks of embedders (SD3)", min_length=6, max_length=6
    )
    """SD3: ranks of the text, time, picture and pooled-text embedders, the last modulation and the last layer."""

    @model_validator(mode="after")
    def _agree(self) -> AdapterOptions:
        if not self.denoiser and not self.text_encoders:
            raise UserError("nothing is trained: denoiser and text_encoders are both off; switch one of them on")
        if self.kind in ("loha", "lokr"):
            if self.dropout:
                raise UserError(f"dropout: {self.kind} has no values between two matrices; use rank_dropout")
            if self.loraplus or self.loraplus_denoiser or self.loraplus_text:
                raise UserError(f"loraplus: {self.kind} has no up matrix; use kind = 'lora' or 'dora'")
        if self.conv_alpha is not None and not (self.conv_rank or self.conv_block_ranks):
            raise UserError("conv_alpha: it needs conv_rank; give conv_rank or leave conv_alpha out")
        if self.factor == 0:
            raise UserError("factor: 0 splits nothing; use -1 or a number from 2 on")
        for name in ("down_lr", "up_lr"):
            curve = getattr(self, name)
            if isinstance(curve, str) and not re.fullmatch(rf"({'|'.join(CURVES)})(\+[\d.]+)?", curve):
                raise UserError(f"{name}: there is no curve '{curve}'; use numbers or one of {', '.join(CURVES)}")
        for pattern in self.targets or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"targets: '{pattern}' is no regular expression ({error}); escape it or fix it"
                ) from None
        return self


def curve(spec: list[float] | str | None, count: int, threshold: float, where: str) -> list[float]:
    """Kohya's down_lr_weight and its kin: ``count`` factors. UserError for too many or too few numbers."""
    if spec is None:
        return [1.0] * count
    if isinstance(spec, str):
        name, _, base = spec.partition("+")
        steps = [i / (count - 1) for i in range(count)]
        values = {
            "sine": [math.sin(math.pi * s / 2) for s in steps],
            "cosine": [math.sin(math.pi * s / 2) for s in reversed(steps)],
            "linear": steps,
            "reverse_linear": steps[::-1],
            "zeros": [0.0] * count,
        }[name]
        found = [value + float(base or 0) for value in values]
    else:
        if len(spec) != count:
            raise UserError(f"adapter.{where}: it has {len(spec)} numbers; this model needs {count}")
        found = spec
    return [value if value > threshold else 0.0 for value in found]


def block_numbers(spec: str, count: int) -> set[int]:
    """``0-5,8`` -> {0, ..., 5, 8}; ``all``; ``none``. UserError for a block that the model does not have."""
    if spec == "all":
        return set(range(count))
    found: set[int] = set()
    for piece in filter(None, (p.strip() for p in ("" if spec == "none" else spec).split(","))):
        first, _, last = piece.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            raise UserError(f"adapter.blocks: '{piece}' is no block or range; write e.g. 0-5,8")
        found |= set(range(int(first), int(last or first) + 1))
    if found and max(found) >= count:
        raise UserError(f"adapter.blocks: there is no block {max(found)}; the model's blocks are 0 to {count - 1}")
    return found
