"""Decoding latents with a gradient, one sample at a time, and by plans that decode less than the whole picture.

``evaluate_in_chunks`` limits the memory: it computes the gradient of a sample's error with respect to its latents in
the forward pass, right after the sample's decode, and stores that gradient alone. One decoder graph is alive at a time,
never together with the denoiser's backward pass; the result is an ordinary differentiable [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..runs.files import is_file
from . import tiny
from .term import at_least_float32

Norm = Callable[[nn.GroupNorm, Tensor], Tensor]
Layer = Callable[[Tensor], Tensor]


class _ChunkedErrors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, evaluate: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
        values, grads = [], []
        for rows in torch.arange(len(z)).split(size):
            with torch.enable_grad():
                leaf = z[rows.to(z.device)].detach().requires_grad_()
                value = evaluate(leaf, rows)
                (grad,) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
            grads.append(grad)
        ctx.save_for_backward(torch.cat(grads))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grads,) = ctx.saved_tensors
        return grads * grad_outputs[0].reshape(-1, *[1] * (grads.ndim - 1)), None, None


def evaluate_in_chunks(z: Tensor, evaluate: Callable[[Tensor, Tensor], Tensor], size: int = 1) -> Tensor:
    """Errors [B] of latents z [B, C, h, w]; ``evaluate(z[rows], rows) -> [n]`` is called with ``size`` rows at a time.

    Equal to ``evaluate(z, all rows)`` with its gradient, as long as rows do not depend on each other. Only z gets a
    gradient. Without gradient (a reference pass, validation) it just evaluates.
    """
    with torch.autocast(z.device.type, enabled=False):
        if torch.is_grad_enabled() and z.requires_grad:
            return _ChunkedErrors.apply(z, evaluate, size)  # pyright: ignore[reportReturnType]
        return torch.cat([evaluate(z[rows.to(z.device)], rows) for rows in torch.arange(len(z)).split(size)])


class Decoder:
    """Scaled latents [N, C, h, w] -> pixels [N, 3, 8h, 8w] in about [-1, 1], float32 or float64, differentiable.

    It decodes z / scale + shift; its weights are frozen. ``vae`` is a diffusers AutoencoderKL (checkpointed by resnet,
    every plan), an AutoencoderTiny, or anything with ``decode(z).sample`` (not the plan midcrop).
    """

    def __init__(
        self, vae: Any, scale: float, shift: float = 0.0, dtype: torch.dtype | None = None,
        checkpointing: bool = True, factor: int = 8,
    ):  # fmt: skip
        self.vae = vae.requires_grad_(False).eval()
        self.scale, self.shift, self.checkpointing = scale, shift, checkpointing
        blocks = getattr(getattr(vae, "decoder", None), "up_blocks", None)
        self.by_parts = blocks is not None and all(type(b).__name__ == "UpDecoderBlock2D" for b in blocks)
        """Whether the middle and the up-blocks can be run on their own."""
        self.factor = 2 ** (len(blocks) - 1) if blocks is not None else factor
        self.room: int | None = None
        """Bytes that a decode may take; None: no limit. Plan ``auto`` keeps to it."""
        self.layout = torch.contiguous_format
        self._resnet: Callable[..., Tensor] = _resnet
        if dtype is not None:
            for part in (getattr(vae, "decoder", vae), getattr(vae, "post_quant_conv", None)):
                if part is not None:
                    part.to(dtype)

    def tune(self, channels_last: bool = False, compiled: bool = False) -> None:
        """Set another memory layout and compile the resnets, for speed. The results are equal up to rounding."""
        if channels_last:
            self.layout = torch.channels_last
            getattr(self.vae, "decoder", self.vae).to(memory_format=torch.channels_last)
        if compiled:
            self._resnet = torch.compile(_resnet)

    def need(self, cells: int) -> int:
        """Bytes, roughly, that decoding ``cells`` latent cells with a gradient takes beside the weights: ten of the
        widest feature maps at full size (6.6 are saved, the rest is temporary)."""
        decoder = getattr(self.vae, "decoder", self.vae)
        weight = next(decoder.parameters())
        widths = getattr(self.vae.config, "block_out_channels", None) or self.vae.config.decoder_block_out_channels
        return 10 * cells * self.factor**2 * widths[min(1, len(widths) - 1)] * weight.element_size()

    def __call__(self, z: Tensor) -> Tensor:
        return self.upper(self.middle(z))

    def middle(self, z: Tensor) -> Tensor:
        """Up to and with the middle block, whose attention sees the whole picture. [N, C, h, w] -> [N, C', h, w]."""
        weight = next(getattr(self.vae, "decoder", self.vae).parameters(), z)
        z = (z / self.scale + self.shift).to(weight.dtype, memory_format=self.layout)
        if not self.by_parts:
            return z
        decoder = self.vae.decoder
        x = z if self.vae.post_quant_conv is None else self.vae.post_quant_conv(z)
        x = self._run(partial(self._resnet, decoder.mid_block.resnets[0], _own), decoder.conv_in(x))
        for attention, resnet in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True):
            if attention is not None:
                x = self._run(attention, x)
            x = self._run(partial(self._resnet, resnet, _own), x)
        return x

    def blocks(self, x: Tensor, norm: Norm | None = None, first: int | None = None) -> list[Tensor]:
        """The features after each of the first up-blocks, from the middle block's."""
        out = []
        for block in self.vae.decoder.up_blocks[:first]:
            for resnet in block.resnets:
                x = self._run(partial(self._resnet if norm is None else _resnet, resnet, norm or _own), x)
            for upsampler in block.upsamplers or ():
                x = self._run(upsampler, x)
            out.append(x)
        return out

    def upper(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """From the middle block's features (or a part of them) to pixels; ``norm`` stands in for each group norm."""
        if not self.by_parts:
            return at_least_float32(self.vae.decode(x).sample)
        decoder = self.vae.decoder

        def tail(h: Tensor) -> Tensor:
            return decoder.conv_out(decoder.conv_act((norm or _own)(decoder.conv_norm_out, h)))

        return at_least_float32(self._run(tail, self.blocks(x, norm)[-1]))

    def halo(self, after_middle: bool) -> int:
        """Latent cells around a window whose content reaches into it by convolution alone (13 and 18 for SD)."""
        decoder, reach, cell = self.vae.decoder, 0.0, 1.0
        for block in decoder.up_blocks:
            reach += 2 * cell * len(block.resnets)
            for _ in block.upsamplers or ():
                cell /= 2
                reach += cell
        return math.ceil(reach + cell + (0 if after_middle else 1 + 2 * len(decoder.mid_block.resnets)))

    def _run(self, layer: Layer, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
            return checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]
        return layer(x)


def tiny_decoder(folder: str, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A TAESD-class decoder from a diffusers AutoencoderTiny folder or a single file (``tiny.read``). It takes scaled
    latents as they are."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from safetensors import SafetensorError

    if is_file(Path(folder)):
        return Decoder(tiny.read(folder).to(device, dtype), 1.0)
    if not is_file(Path(folder, "config.json")):
        raise UserError(
            f"loss.pixel.tiny: {folder} has no config.json and is no file; give taesd_decoder.safetensors, or a "
            "diffusers folder of an AutoencoderTiny"
        )
    try:
        vae: Any = AutoencoderTiny.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"loss.pixel.tiny: {folder} cannot be loaded ({reason}); give another folder") from None
    return Decoder(vae.to(device, dtype), 1.0)


def decoding_dtype(wanted: torch.dtype, device: torch.device, given: str = "auto") -> tuple[torch.dtype, str | None]:
    """The dtype to decode in with a gradient, and a note where it is not the wanted one. ``given``: see
    ``model.vae_precision``.

    float16 overflows in SDXL-class autoencoders, and in all of them the gradient of a mean over a million pixels (1e-6
    and less) is lost below its smallest number, 6e-8, where the loss is not scaled.

    :raises UserError: float16 is given for a run that does not scale its loss.
    """
    if given == "fp16":
        if wanted != torch.float16:
            raise UserError(
                "model.vae_precision: fp16 needs the loss scaling of run.precision = 'fp16'; set that, or auto here"
            )
        return torch.float16, None
    if given != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[given], None
    if wanted != torch.float16:
        return wanted, None
    real = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    safe = torch.bfloat16 if real else torch.float32
    return safe, f"decoder: float16 overflows in autoencoders and loses small gradients; decoding in {str(safe)[6:]}"


def _resnet(block: Any, norm: Norm, x: Tensor) -> Tensor:
    """A decoder's ResnetBlock2D (no time embedding, no dropout, no resampling) with its group norms exchanged."""
    h = block.conv1(block.nonlinearity(norm(block.norm1, x)))
    h = block.conv2(block.nonlinearity(norm(block.norm2, h)))
    return ((x if block.conv_shortcut is None else block.conv_shortcut(x)) + h) / block.output_scale_factor


# ------------------------------------------------------------------------------------------------------------- norms


def _own(module: nn.GroupNorm, x: Tensor) -> Tensor:
    return module(x)


def _statistics(module: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each group, [N, groups, 1] each."""
    groups = at_least_float32(x).reshape(len(x), module.num_groups, -1)
    return groups.mean(-1, keepdim=True), (groups.var(-1, unbiased=False, keepdim=True) + module.eps).rsqrt()


def _recorded(decoder: Decoder, features: Tensor) -> Norm:
    """A norm that uses, in every layer, the statistics of a full decode of ``features``."""
    seen: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}

    def record(module: nn.GroupNorm, x: Tensor) -> Tensor:
        seen[module] = _statistics(module, x)
        return module(x)

    def replay(module: nn.GroupNorm, x: Tensor) -> Tensor:
        mean, scale = seen[module]
        y = ((at_least_float32(x).reshape(len(x), module.num_groups, -1) - mean) * scale).reshape(x.shape).to(x.dtype)
        return y * module.weight[:, None, None] + module.bias[:, None, None]

    with torch.no_grad():
        decoder.upper(features, record)
    return replay


# ------------------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True)
class View:
    """Part of a picture: what decodes it, and where it is."""

    decode: Layer
    """Scaled latents of the whole picture -> pixels of the part."""
    rows: slice
    columns: slice
    """In pixels of the whole picture."""


@dataclass(frozen=True)
class Plan:
    """How much of a picture is decoded: ``kind`` full, window or midcrop. ``window`` and ``halo`` are in latent cells.

    window: a random window with ``halo`` cells around it, as if it were a picture: cheap, but biased by the group norms
    and the attention, which see less. Prediction and target share that bias, so the error is 0 exactly when they agree.
    midcrop: the middle block sees the whole picture, the up-blocks only the window and its exact halo; their group
    norms take the crop's own statistics (``norms = "own"``) or those of a full decode of the target (``"full"``).
    """

    kind: str = "full"
    window: int = 32
    halo: int | None = None
    norms: str = "own"

    def whole(self, h: int, w: int) -> bool:
        """Whether all of a picture of h x w cells is decoded."""
        return self.kind == "full" or self.window >= max(h, w)

    def cells(self, h: int, w: int, place: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """(top, bottom), (left, right) of what is scored of h x w cells; ``place`` [2] in [0, 1)."""
        if self.whole(h, w):
            return (0, h), (0, w)
        return _span(h, self.window, float(place[0])), _span(w, self.window, float(place[1]))

    def view(self, decoder: Decoder, target: Tensor, place: Tensor) -> View:
        """target: [n, C, h, w], n = 1 unless the plan is full; place: [n, 2] in [0, 1), top and left of the room."""
        h, w = target.shape[-2:]
        f = decoder.factor
        if self.whole(h, w):
            return View(decoder, slice(0, h * f), slice(0, w * f))
        assert len(target) == 1, "a window is decoded row by row"
        halo = decoder.halo(after_middle=True) if self.halo is None else self.halo
        (top, bottom), (left, right) = self.cells(h, w, place[0])
        outer = (slice(max(top - halo, 0), bottom + halo), slice(max(left - halo, 0), right + halo))
        y, x = (top - outer[0].start) * f, (left - outer[1].start) * f
        inner = (..., slice(y, y + (bottom - top) * f), slice(x, x + (right - left) * f))
        norm = None
        if self.kind == "midcrop" and self.norms == "full":
            with torch.no_grad():
                norm = _recorded(decoder, decoder.middle(target))

        def decode(z: Tensor) -> Tensor:
            if self.kind == "window":
                return decoder(z[(..., *outer)])[inner]
            return decoder.upper(decoder.middle(z)[(..., *outer)], norm)[inner]

        return View(decode, slice(top * f, bottom * f), slice(left * f, right * f))


def _span(side: int, window: int, place: float) -> tuple[int, int]:
    size = min(window, side)
    start = int(place * (side - size + 1))
    return start, start + size
