"""Latent perceptual loss (arXiv 2411.04873): the decoder's inner features of the implied clean latents and the true.

No other network is needed, and with few up-blocks the decoder's expensive last stages are never run. It is meant for
little noise: below timestep 200 unless the gate is set otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.types import Loss, Step
from ..errors import UserError
from ..registry import losses
from .decode import Decoder, evaluate_in_chunks
from .options import LplOptions
from .pixel import latents
from .term import LossParts, at_least_float32, mask_at


def features(decoder: Decoder, z: Tensor, blocks: int) -> list[Tensor]:
    """After the middle block and after each of the first up-blocks."""
    middle = decoder.middle(z)
    return [at_least_float32(f) for f in (middle, *decoder.blocks(middle, first=blocks))]


def usual(f: Tensor) -> Tensor:
    """[N, C, h, w] bool: within two standard deviations of the channel's 2 % and 98 % quantiles."""
    flat = f.flatten(2)
    low, high = torch.quantile(flat, torch.tensor([0.02, 0.98], dtype=f.dtype, device=f.device), dim=-1)
    room = 2 * flat.std(-1)
    return ((flat >= (low - room)[..., None]) & (flat <= (high + room)[..., None])).reshape(f.shape)


def feature_error(predicted: list[Tensor], true: list[Tensor], mask: Tensor | None, outliers: bool) -> Tensor:
    """[N]: mean over layers of 2^-min(i, 3) * mean over places of |difference|^2 / |true|^2, norms over channels."""
    total = torch.zeros(len(true[0]), dtype=true[0].dtype, device=true[0].device)
    for i, (p, t) in enumerate(zip(predicted, true, strict=True)):
        square = (p - t) ** 2 / (t**2).sum(1, keepdim=True).clamp(min=1e-8)
        if outliers and i >= 2:
            square = square * usual(t)
        places = square.sum(1, keepdim=True)
        small = mask_at(mask, places.shape[-2:], places)
        total = total + 2.0 ** -min(i, 3) * (places if small is None else places * small).flatten(1).mean(1)
    return total / len(true)


@losses.register("lpl", LplOptions)
def build(options: LplOptions, parts: LossParts) -> Loss:
    decoder = parts.decoder
    if decoder is None or not decoder.by_parts:
        raise UserError("loss.lpl: it compares the features of an AutoencoderKL's decoder; this model has none")

    def loss(step: Step) -> Tensor:
        predicted, true, _ = latents(step, "x0")
        mask = step.batch.mask

        def evaluate(z: Tensor, rows: Tensor) -> Tensor:
            rows = rows.to(true.device)
            with torch.no_grad():
                wanted = features(decoder, true[rows], options.blocks)
            own = None if mask is None else mask[rows.to(mask.device)]
            return feature_error(features(decoder, z, options.blocks), wanted, own, options.outliers)

        return evaluate_in_chunks(predicted, evaluate)

    return loss
