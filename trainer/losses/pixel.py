"""[loss.pixel]: the error as it looks in the picture, through the frozen decoder.

Every mode decodes a true latent z and z + c (out - target), where c follows from the parameterisation:

mixed     z = z_t, and z_t rebuilt from the true z0 and the predicted noise: the paper's loss (arXiv 2409.17565, eq. 2)
x0        z = z0 and the clean latents that the output implies
anchored  z = z0 disturbed exactly as in mixed: the decoder sees a nearly clean latent
stepped   z = the latents a little less noisy, against a deterministic (DDIM or Euler) step of the output to there

With both the predicted data *and* the predicted noise the rebuilt latent would be z_t itself whatever the output is,
and there would be no gradient at all; that is why ``mixed`` takes the true z0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.process import Process, widest
from ..diffusion.types import Loss, Step
from ..errors import UserError
from ..registry import losses
from .decode import Decoder, Plan, View, evaluate_in_chunks, tiny_decoder
from .distances import DISTANCES
from .options import DecodeOptions, Mode, PixelOptions
from .surrogate import Surrogate
from .term import Estimate, LossParts, at_least_float32, mask_at, residual

Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Predicted pixels, true pixels [n, 3, H, W], mask [n, 1, H, W] or None -> [n]."""

BY_SIZE = ("auto", "by_size", "surrogate", "corrected")
"""Plans whose decodes are of the whole picture or of a middle crop, by its size."""
WHOLE = 768 * 768
"""Pixels up to which ``decode = "by_size"`` decodes whole pictures; above, a middle crop saves much of the memory."""


def coefficient(process: Process, level: Tensor, mode: Mode, to: Tensor | None = None) -> Tensor:
    """[B] in ``widest``: c of the residual c (out - target). ``to``: (a, s) [2, B] where ``stepped`` arrives."""
    sign = 1 if process.prediction == "sample" else -1
    if mode == "x0":
        return sign * process.gain(level, "x0")
    if mode == "stepped":
        assert to is not None
        return to[0] * sign * process.gain(level, "x0") - to[1] * sign * process.gain(level, "epsilon")
    return -sign * process.gain(level, "mixed")


def arrival(process: Process, level: Tensor, jump: Tensor, reach: tuple[float, float]) -> Tensor:
    """[2, B] in ``widest``: amplitudes of data and noise after the step of ``stepped``; below the schedule: clean."""
    dtype = widest(level.device)
    size = reach[0] + jump.to(dtype) * (reach[1] - reach[0])
    if process.is_flow:
        sigma = (level.to(dtype) - size).clamp(min=0)
        return torch.stack([1 - sigma, sigma])
    at = (level.to(dtype) - size * process.steps).round()
    a, s = process.scales(at.clamp(min=0))
    clean = at < 0
    return torch.stack([a.masked_fill(clean, 1.0), s.masked_fill(clean, 0.0)])


def latents(step: Step, mode: Mode, reach: tuple[float, float] = (0.02, 0.05)) -> tuple[Tensor, Tensor, Tensor]:
    """(predicted, true) latents to decode, at least float32, and c [B]. Equal exactly where output and target are."""
    level, clean, noise = step.draw.level, at_least_float32(step.clean), at_least_float32(step.draw.noise)
    to = arrival(step.process, level, step.draw.jump, reach) if mode == "stepped" else None
    c = coefficient(step.process, level, mode, to)
    if mode == "mixed":
        true = step.process.noisy(clean, noise, level)
    elif to is not None:
        a, s = (scale.to(clean).reshape(-1, 1, 1, 1) for scale in to)
        true = a * clean + s * noise
    else:
        true = clean
    d = residual(step)
    return true + c.to(d).reshape(-1, 1, 1, 1) * d, true, c


def plan_for(options: DecodeOptions, decoder: Decoder, h: int, w: int) -> Plan:
    """The plan for latents of h x w cells; of ``surrogate`` and ``corrected`` that of what is decoded in full."""
    kind, f = {"tiny": "full"}.get(options.decode, options.decode), decoder.factor
    window = options.window // f
    if kind in BY_SIZE:
        kind, window = _auto(decoder, h, w, window)
    return Plan(kind, window, None if kind == "midcrop" else options.halo // f, options.crop_norms)


def _auto(decoder: Decoder, h: int, w: int, window: int) -> tuple[str, int]:
    """(kind, window in cells): the whole picture where it is small and fits, else a middle crop, as large as fits."""
    fits = decoder.room is None or decoder.need(h * w) <= decoder.room
    if not decoder.by_parts or (fits and h * w * decoder.factor**2 <= WHOLE):
        return "full", window
    halo = decoder.halo(after_middle=True)
    while decoder.room is not None and window > 8 and decoder.need((window + 2 * halo) ** 2) > decoder.room:
        window //= 2
    return "midcrop", window


def ready(name: str, options: DecodeOptions, parts: LossParts) -> Decoder:
    """The decoder that the options ask for."""
    decoder = parts.decoder
    if decoder is None:
        raise UserError(f"loss.{name}: it decodes latents, but there is no autoencoder; give [model] one that has it")
    if options.decode == "tiny":
        path = options.tiny or parts.tiny
        if path is None:
            raise UserError(
                f"loss.{name}.tiny: plan 'tiny' needs a tiny autoencoder, and none lies in ComfyUI's vae_approx beside "
                "the model; give the folder or file of one"
            )
        weight = next(decoder.vae.parameters())
        made = tiny_decoder(path, weight.device, weight.dtype)
        wanted, channels = decoder.vae.config.latent_channels, made.vae.config.latent_channels
        if wanted != channels:
            raise UserError(
                f"loss.{name}.tiny: {path} decodes latents of {channels} channels, the model's have {wanted}; give the "
                "one of its family"
            )
        return made
    if options.decode == "midcrop" and not decoder.by_parts:
        raise UserError(f"loss.{name}.decode: midcrop needs an AutoencoderKL with plain up-blocks; use full or window")
    return decoder


class Targets:
    """A cache of decoded targets by the keys of their rows, in host memory; the least recently used go first."""

    def __init__(self, limit: float):
        """limit: bytes."""
        self.limit = limit
        self.bytes = 0
        self._cached: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, keys: list[str], true: Tensor, decode: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """[n, 3, H, W]: from the cache, or decoded and cached in ``dtype``, the decoder's own, so nothing is lost."""
        if all(key in self._cached for key in keys):
            for key in keys:
                self._cached.move_to_end(key)
            return at_least_float32(torch.stack([self._cached[key] for key in keys]).to(true.device))
        pixels = decode(true)
        for key, one in zip(keys, pixels, strict=True):
            self.bytes -= size_of(self._cached.pop(key, None))
            self._cached[key] = one.to("cpu", dtype, copy=True)
            self.bytes += size_of(self._cached[key])
        while self.bytes > self.limit:
            self.bytes -= size_of(self._cached.popitem(last=False)[1])
        return pixels


def size_of(value: Tensor | None) -> int:
    return 0 if value is None else value.numel() * value.element_size()


def compared(
    predicted: Tensor, true: Tensor, step: Step, options: DecodeOptions, decoder: Decoder, compare: Compare,
    targets: Targets | None = None,
) -> Tensor:  # fmt: skip
    """[B]: ``compare`` over the decoded latents, by the plan of the options, one sample (or a few) at a time.

    ``targets``: the cache of decoded targets; not those of preserved rows, whose clean latents are new in every draw.
    """
    plan = plan_for(options, decoder, *true.shape[-2:])
    whole = tuple(side * decoder.factor for side in true.shape[-2:])
    mask = mask_at(step.batch.mask, whole, true)
    preserve = step.batch.preserve

    def evaluate(z: Tensor, rows: Tensor) -> Tensor:
        rows = rows.to(true.device)
        view: View = plan.view(decoder, true[rows], step.draw.window[rows.to(step.draw.window.device)])
        with torch.no_grad():
            if targets and plan.kind == "full" and (preserve is None or not preserve[rows.to(preserve.device)].any()):
                keys = [step.batch.keys[row] for row in rows.tolist()]
                target = targets.get(keys, true[rows], view.decode, next(decoder.vae.parameters()).dtype)
            else:
                target = view.decode(true[rows])
        return compare(view.decode(z), target, None if mask is None else mask[rows][..., view.rows, view.columns])

    return evaluate_in_chunks(predicted, evaluate, options.decode_batch if plan.kind == "full" else 1)


class PixelLoss:
    """The pixel term's errors: of decoded pictures, or as a surrogate of the decoder estimates them."""

    def __init__(self, options: PixelOptions, decoder: Decoder):
        self.options, self.decoder = options, decoder
        self.distance = DISTANCES[options.distance]
        self._targets = Targets(options.target_cache * 2**30) if options.target_cache else None

    def latents(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        return latents(step, self.options.mode, (self.options.step_min, self.options.step_max))

    def __call__(self, step: Step) -> Tensor:
        predicted, true, c = self.latents(step)

        def compare(p: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
            return self.distance(p - t, mask)

        errors = compared(predicted, true, step, self.options, self.decoder, compare, self._targets)
        return self._evened_out(errors, c)

    def estimate(self, surrogate: Surrogate, share: float) -> Estimate:
        """What stands in for the term: ``surrogate`` for every row, corrected by decoding for a share of them."""
        return Estimate(
            lambda step: self.estimated(surrogate, step), lambda step: self.estimated(surrogate, step, True), share
        )

    def estimated(self, surrogate: Surrogate, step: Step, near: bool = False) -> Tensor:
        """[B]: errors of whole pictures by the surrogate; ``near``: of the part that the plan decodes in this draw."""
        predicted, true, c = self.latents(step)
        true = true.to(predicted.dtype)
        with torch.autocast(true.device.type, enabled=False):
            surrogate.to(true.device, true.dtype)
            difference = surrogate(predicted, true)
            mask = mask_at(step.batch.mask, difference.shape[-2:], true)
            (h, w), f = true.shape[-2:], surrogate.factor
            plan = plan_for(self.options, self.decoder, h, w)
            if not near or plan.whole(h, w):
                return self._evened_out(self.distance(difference, mask), c)
            errors = []
            for row, place in enumerate(step.draw.window):
                (top, bottom), (left, right) = plan.cells(h, w, place)
                part = (slice(row, row + 1), ..., slice(top * f, bottom * f), slice(left * f, right * f))
                errors.append(self.distance(difference[part], None if mask is None else mask[part]))
            return self._evened_out(torch.cat(errors), c)

    def _evened_out(self, errors: Tensor, c: Tensor) -> Tensor:
        if not self.options.gain_norm:
            return errors
        return errors / (c**2).clamp(min=0.01).to(errors) ** (self.distance.degree / 2)


@losses.register("pixel", PixelOptions)
def build(options: PixelOptions, parts: LossParts) -> Loss:
    return PixelLoss(options, ready("pixel", options, parts))
