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
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from ..diffusion.process import Process, widest
from ..diffusion.types import Loss, Step
from ..errors import UserError
from ..registry import PathStr, losses, option
from .decode import Decoder, Plan, View, evaluate_in_chunks, tiny_decoder
from .distances import DISTANCES
from .surrogate import Surrogate
from .term import Estimate, LossParts, TermOptions, Weight, at_least_float32, mask_at, residual

Mode = Literal["mixed", "x0", "anchored", "stepped"]
Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Predicted pixels, true pixels [n, 3, H, W], mask [n, 1, H, W] or None -> [n]."""

BY_SIZE = ("auto", "by_size", "surrogate", "corrected")
"""Plans whose decodes are of the whole picture or of a middle crop, by its size."""
WHOLE = 768 * 768
"""Pixels up to which ``decode = "by_size"`` decodes whole pictures; above, a middle crop saves much of the memory."""


class DecodeOptions(TermOptions):
    decodes: ClassVar[bool] = True

    decode: Literal["auto", "full", "window", "midcrop", "tiny"] = option("auto", label="Decode plan")
    """How much is decoded. full: the picture. midcrop: a random window, with the middle block seeing everything.
    window: a random window alone, cheapest but biased. tiny: a small decoder. auto: full to 768 x 768, else midcrop."""
    window: int = option(256, label="Window size", ge=64, multiple_of=8)
    """Side of the window of `window` and `midcrop`, in pixels; the same for prediction and target."""
    halo: int = option(64, label="Window's halo", ge=0, multiple_of=8)
    """Pixels around the window of plan `window` that are decoded and not scored. `midcrop` computes its own."""
    crop_norms: Literal["own", "full"] = option("own", label="Norms of a crop")
    """Group norms of `midcrop` use the crop's own statistics, or those of a full decode of the target (slower)."""
    decode_batch: int = option(1, label="Pictures decoded at once", ge=1)
    """Pictures decoded at once by plan `full`: more is faster on small pictures and takes more memory."""
    target_cache: float = option(0.0, label="Decoded target cache (GB)", ge=0)
    """Host memory that caches decoded targets for the next visit of their picture, which saves a decode of four. For
    plan `full` in the modes x0 and anchored, whose targets never change but in sets with `preserve`; a picture of
    1024 x 1024 takes 6 MB (bf16)."""
    tiny: PathStr | None = option(None, label="Tiny autoencoder")
    """Plan `tiny`: a TAESD made for this family's latents, a diffusers folder or the single file of its decoder
    (taesd_decoder.safetensors, .pth). When not given, that of ComfyUI's models (vae_approx) where the model lies."""

    def warnings(self) -> list[str]:
        lines = super().warnings()
        if self.decode == "tiny":
            lines.append(
                "decode: 'tiny' invents fine detail and gives no gradient to latents beyond about 6; look closely"
            )
        if self.decode == "window":
            lines.append("decode: 'window' is biased, its norms and attention see only the window; 'midcrop' is closer")
        return lines


class PixelOptions(DecodeOptions):
    decode: Literal[  # pyright: ignore[reportIncompatibleVariableOverride]
        "auto", "full", "window", "midcrop", "tiny", "by_size", "surrogate", "corrected"
    ] = option("auto", label="Decode plan")
    """How much is decoded. surrogate: nothing, a small network fitted to the autoencoder predicts how pictures differ;
    biased. corrected: the same, and `corrected_share` of the samples are decoded too, which takes the bias out. full:
    the picture. midcrop: a random window, with the middle block seeing everything. window: a random window alone,
    biased. tiny: a small decoder. by_size: full to 768 x 768, else midcrop. auto: corrected where it pays, else
    by_size."""
    corrected_share: float | None = option(None, label="Corrected share", gt=0, le=1)
    """Share of the samples that plan `corrected` decodes; when not given, what keeps a step at 1.15 times a latent one
    or less (1.3 where decoding all makes it more than 4.5 times as dear)."""
    surrogate: PathStr | None = option(None, label="Surrogate")
    """File of the surrogate that `python -m trainer surrogate` made; when not given, the one that is kept for this
    autoencoder and mode, made at the first start."""
    weight: Weight | Literal["auto"] = option("auto", label="Weight")
    """What this term is multiplied by. `auto` keeps it as large as the latent terms, times `auto_ratio`."""
    auto_ratio: float = option(0.1, label="Automatic weight's ratio", gt=0)
    """With `weight = "auto"`: how large this term is beside the latent ones; 1 is as large, which did harm where it was
    measured (docs/study.md)."""
    mode: Mode = option("mixed", label="Mode")
    """Which latents are decoded: the paper's noisy ones (mixed), the implied clean ones (x0), clean ones disturbed as
    in mixed (anchored), or slightly less noisy ones (stepped)."""
    distance: Literal["l2", "l1", "charbonnier", "gradient", "laplacian", "haar", "focal_frequency"] = option(
        "l2", label="Distance"
    )
    """How two decoded pictures are compared. Others than `l2` make sense in the modes x0 and anchored."""
    gain_norm: bool = option(False, label="Even out noise levels")
    """Divide by how strongly the mode weighs a noise level (at most 100 times), so that each level counts alike."""
    step_min: float = option(0.02, label="Smallest step", ge=0, le=1)
    """Mode stepped: the smallest step towards the clean picture, as a share of the schedule."""
    step_max: float = option(0.05, label="Largest step", gt=0, le=1)
    """Mode stepped: the largest step towards the clean picture, as a share of the schedule."""

    def recorded_dump(self, **selection: Any) -> dict[str, Any]:
        """Without what older versions did not have, where it is not used, and with their name of ``by_size``."""
        dumped = super().recorded_dump(**selection)
        unused = [name for name in ("corrected_share", "surrogate") if dumped.get(name) is None]
        kept = {name: value for name, value in dumped.items() if name not in unused}
        return {**kept, "decode": "auto"} if kept.get("decode") == "by_size" else kept

    @model_validator(mode="after")
    def _steps(self) -> PixelOptions:
        if self.step_min > self.step_max:
            raise UserError(f"step_min: {self.step_min} is above step_max {self.step_max}; lower it")
        return self

    def warnings(self) -> list[str]:
        lines = super().warnings()
        if self.decode == "surrogate":
            lines.append("decode: 'surrogate' alone is biased; 'corrected' takes the bias out for little")
        if self.distance != "l2" and self.mode in ("mixed", "stepped"):
            lines.append(
                f"distance: '{self.distance}' compares the texture of noise in mode '{self.mode}', which decodes noisy "
                "latents; use l2 there, or mode 'anchored' or 'x0'"
            )
        if self.target_cache and (self.mode not in ("x0", "anchored") or self.decode in ("window", "midcrop")):
            lines.append("target_cache: only whole pictures in the modes x0 and anchored have a target that stays")
        if self.mode == "x0" and not self.gain_norm and self.max_level > 0.4:
            lines.append(
                "mode: 'x0' weighs the noisiest steps up to 200 times on epsilon models and blurs; set max_level = 0.3 "
                "or gain_norm = true"
            )
        return lines


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
