"""[loss]: the options of every loss, readable without torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..errors import UserError
from ..registry import Options, PathStr, option

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TermOptions(Options):
    decodes: ClassVar[bool] = False
    """Whether the term compares what the autoencoder's decoder makes of latents, and so needs one. A term that does
    not is a latent loss: where a configuration gives none, mse is added."""
    roles: ClassVar[tuple[str, ...]] = ()
    """The rows that the term is for; all, where it names none."""

    weight: Weight | Literal["auto"] = option(1.0, label="Weight")
    """What this term is multiplied by. `auto` keeps it as large as the terms that have a number, times `auto_ratio`."""
    auto_ratio: float = option(1.0, label="Automatic weight's ratio", gt=0)
    """With `weight = "auto"`: how large this term is beside the others; 1 is as large."""
    probability: float = option(1.0, label="Share of steps", gt=0, le=1)
    """Share of the samples that this term is computed for; the rest is saved and the weight raised to match."""
    min_level: float = option(0.0, label="From noise level", ge=0, lt=1)
    """The term counts from this share of the noise schedule on (0 is the clean picture)."""
    max_level: float = option(1.0, label="Up to noise level", gt=0, le=1)
    """The term counts below this share of the noise schedule (1 is pure noise); 0.2 is timesteps below 200."""

    @model_validator(mode="after")
    def _gate(self) -> TermOptions:
        if self.min_level >= self.max_level:
            raise UserError(f"min_level: {self.min_level} is not below max_level {self.max_level}; lower it")
        return self

    def warnings(self) -> list[str]:
        """Returns one line per setting that is allowed but seldom wise."""
        if self.probability >= 0.1:
            return []
        times = f"{1 / self.probability:.0f}"
        return [f"probability: where the term counts, it counts {times} times as much, and gradient clipping cuts that "
                "down, so it is worth less than its weight; use 0.1 or more"]  # fmt: skip


class MseOptions(TermOptions):
    pass


class L1Options(TermOptions):
    pass


class HuberOptions(TermOptions):
    c: float = option(0.1, kohya="huber_c", label="Huber c", gt=0)
    """Errors well below c count squared, errors well above it count linearly."""
    schedule: Literal["constant", "exponential", "snr"] = option("snr", kohya="huber_schedule", label="Huber schedule")
    """How c changes with noise: not at all, or from 1 down to c, exponentially or by the noise's sigma (snr)."""
    scale: float = option(1.0, kohya="huber_scale", label="Huber scale", gt=0)
    """Multiplies c in the schedules `constant` and `exponential`."""


class SmoothL1Options(HuberOptions):
    pass


class HaarOptions(TermOptions):
    low: float = option(0.5, label="Coarse band", ge=0)
    """Weight of the coarse half-resolution picture."""
    edges: float = option(1.0, label="Edge bands", ge=0)
    """Weight of the horizontal and vertical details."""
    diagonal: float = option(1.0, label="Diagonal band", ge=0)
    """Weight of the diagonal details."""


class FocalFrequencyOptions(TermOptions):
    alpha: float = option(1.0, label="Focus", ge=0)
    """How much more the worst frequencies count; 0 is the plain squared error."""


class LplOptions(TermOptions):
    decodes: ClassVar[bool] = True

    max_level: float = option(0.2, label="Up to noise level", gt=0, le=1)
    """The term counts below this share of the noise schedule (0.2 is timesteps below 200, the paper's choice)."""
    blocks: int = option(3, label="Up-blocks", ge=0, le=4)
    """How many of the decoder's up-blocks are compared, besides its middle block; fewer is cheaper, 4 the paper's."""
    outliers: bool = option(True, label="Leave out outliers")
    """Leave out features of the second and later up-blocks that lie far outside their channel's range."""


Mode = Literal["mixed", "x0", "anchored", "stepped"]


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


class LpipsOptions(DecodeOptions):
    mode: Literal["anchored", "x0"] = option("anchored", label="Mode")
    """Which latents are decoded: clean ones disturbed by the prediction's error (anchored) or the implied ones (x0)."""
    backbone: PathStr | None = option(None, label="VGG16 weights")
    """File of VGG16's weights as torchvision publishes them (vgg16-397923af.pth) or the same as safetensors. Needed."""
    heads: PathStr | None = option(None, label="LPIPS heads")
    """File of the learned channel weights (weights/v0.1/vgg.pth of the lpips package); without it all count alike."""


class DenseOptions(DecodeOptions):
    roles: ClassVar[tuple[str, ...]] = ("plain",)

    weight: Weight | Literal["auto"] = option("auto", label="Weight")
    """What this term is multiplied by. `auto` keeps it as large as the latent terms, times `auto_ratio`."""


TABLES: dict[str, type[TermOptions]] = {
    "dense": DenseOptions,
    "focal_frequency": FocalFrequencyOptions,
    "haar": HaarOptions,
    "huber": HuberOptions,
    "l1": L1Options,
    "lpips": LpipsOptions,
    "lpl": LplOptions,
    "mse": MseOptions,
    "pixel": PixelOptions,
    "smooth_l1": SmoothL1Options,
}
"""Name of a loss -> its options."""
