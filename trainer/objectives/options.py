"""[objective]: the options of every objective, readable without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..errors import UserError
from ..registry import Options, option

Data = Literal["pairs", "ratings"]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ObjectiveOptions(Options):
    """What the options of every objective have. A subclass gives ``kind`` its registered name as a Literal."""

    title: ClassVar[str] = ""
    """What a form calls the objective; its name where this is empty."""
    data: ClassVar[tuple[Data, ...]] = ()
    """The kinds of data that it can learn from, the usual one first; () is any."""

    if TYPE_CHECKING:  # the field is the subclass's own, since each has another Literal
        kind: Any = ""

    @property
    def needs_pairs(self) -> bool:
        """Whether it compares the two pictures of a pair, so that they have to be in one batch."""
        return self.data == ("pairs",)

    @property
    def in_x0(self) -> bool:
        """Whether latent losses measure the error of the implied clean latents instead of the output's."""
        return False

    @property
    def weighed_by(self) -> list[str]:
        """The options that weigh errors by noise level and are switched on."""
        return []


class ReferenceOptions(ObjectiveOptions):
    reference: Literal["base", "start"] = option("base", label="Reference")
    """The model that training is compared with: without any adapter, or with the adapter that training started from."""
    reference_draws: int = option(0, label="Cached reference draws", ge=0)
    """0 draws fresh noise each time. K gives each pair K fixed draws, whose reference errors are computed once."""
    winner_limit: float = option(0.05, label="Alarm for winners", ge=0)
    """Warn when the liked pictures' error rises above the reference's by more than this share of it (a running mean
    over about 20 steps); 0 is off."""
    winner_stop: bool = option(False, label="Stop at the alarm")
    """Save and stop as soon as `winner_limit` is passed, instead of a warning alone."""

    @model_validator(mode="after")
    def _alarm(self) -> ReferenceOptions:
        if self.winner_stop and not self.winner_limit:
            raise UserError("winner_stop: winner_limit is 0, so nothing would stop; raise it or leave winner_stop out")
        return self


class SftAnchor(ObjectiveOptions):
    sft_weight: float = option(0.0, label="Supervised weight", ge=0)
    """Adds this many times the winner's own error, so that the winner does not get worse."""


class SftOptions(ObjectiveOptions):
    title: ClassVar[str] = "Pictures: draw like these"

    kind: Literal["sft"] = "sft"
    """Supervised: learn the pictures."""
    min_snr_gamma: Positive | None = option(None, kohya="min_snr_gamma", label="Min-SNR gamma")
    """Limits how much steps with little noise count (arXiv 2303.09556); 5 is usual, none is off."""
    debiased_estimation_loss: bool = option(False, kohya="debiased_estimation_loss", label="Debiased estimation")
    """Weight 1 / sqrt(SNR), for v 1 / (SNR + 1) (arXiv 2310.08442). Not for SD3."""
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, kohya="scale_v_pred_loss_like_noise_pred", label="Scale v loss like noise loss"
    )
    """v models only: multiply by SNR / (SNR + 1)."""
    v_pred_like_loss: Positive | None = option(None, kohya="v_pred_like_loss", label="v-like loss")
    """Epsilon models only: add this many times the error in v."""
    flow_weighting: Literal["none", "x0", "sigma_sqrt", "cosmap"] = option("none", label="SD3 weighting")
    """SD3 only. none: the velocity's error, as in the SD3 paper. x0: the error in the clean latents (kohya's default;
    for mse it is sigma squared times the velocity's); cosmap and sigma_sqrt weigh that (sigma_sqrt is none for mse)."""

    @model_validator(mode="after")
    def _either(self) -> SftOptions:
        if self.scale_v_pred_loss_like_noise_pred and self.v_pred_like_loss:
            raise UserError(
                "v_pred_like_loss: this is for epsilon models, but scale_v_pred_loss_like_noise_pred for v; give one"
            )
        return self

    @property
    def in_x0(self) -> bool:
        """Only squared errors could be converted by a factor, so the loss itself measures clean latents."""
        return self.flow_weighting != "none"

    @property
    def weighed_by(self) -> list[str]:
        names = [name for name in SftOptions.model_fields if name != "kind"]
        return [name for name in names if getattr(self, name) not in (None, False, "none")]


class DpoOptions(ReferenceOptions, SftAnchor):
    title: ClassVar[str] = "Pairs (DPO): prefer the chosen picture, stay near the base"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["dpo"] = "dpo"
    """Preference pairs against a reference."""
    beta: Positive | Literal["auto"] | None = option(None, label="Beta")
    """How close training stays to the reference; larger is closer. none: the family's own (SD1.5 2000, SDXL 5000, SD3
    100). auto: follows the running size of the margins."""
    dpop: float = option(0.0, label="DPOP penalty", ge=0)
    """Weight of the penalty on winners that get worse than the reference; try 1 to 5 when winners get worse."""
    label_smoothing: float = option(0.0, label="Label smoothing", ge=0, lt=0.5)
    """Share of pairs that are assumed to be labelled the wrong way round; 0.1 for noisy votes."""


class IpoOptions(ReferenceOptions, SftAnchor):
    title: ClassVar[str] = "Pairs (IPO): like DPO, with a bounded margin"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["ipo"] = "ipo"
    """Preference pairs against a reference, with a target margin."""
    tau: float = option(250.0, label="Tau", gt=0)
    """The margin aimed at is 1 / (2 tau), in units of the error. Errors change by about 0.001, so 100 to 500."""


class SimpoOptions(SftAnchor):
    title: ClassVar[str] = "Pairs (SimPO): no reference, quicker, easier to overdo"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["simpo"] = "simpo"
    """Preference pairs without a reference."""
    beta: Positive | Literal["auto"] = option("auto", label="Beta")
    """How sharply winner and loser are separated. auto: measured on the first 100 pairs, typical |beta margin| 1."""
    gamma: float = option(0.0, label="Target margin", ge=0)
    """How much better the winner should be, in units of the sigmoid's argument; 0 is the pixel-space paper."""


class MapoOptions(ObjectiveOptions):
    title: ClassVar[str] = "Pairs (MaPO): no reference, and learns the chosen pictures too"
    data: ClassVar[tuple[Data, ...]] = ("pairs",)

    kind: Literal["mapo"] = "mapo"
    """Preference pairs without a reference: learns the winner and a margin to the loser."""
    mapo_weight: float = option(0.1, label="Margin weight", ge=0)
    """Weight of the margin beside the winner's own error."""


class KtoOptions(ReferenceOptions):
    title: ClassVar[str] = "Ratings (KTO): single pictures, liked or not"
    data: ClassVar[tuple[Data, ...]] = ("ratings", "pairs")

    kind: Literal["kto"] = "kto"
    """Liked and disliked pictures against a reference."""
    beta: float = option(1000.0, label="Beta", gt=0)
    """How close training stays to the reference; larger is closer."""
    liked_weight: float = option(1.0, label="Weight of liked", ge=0)
    """What liked pictures count. Raise it when they are few."""
    disliked_weight: float = option(1.0, label="Weight of disliked", ge=0)
    """What disliked pictures count. Raise it when they are few."""


TABLES: dict[str, type[ObjectiveOptions]] = {
    "dpo": DpoOptions,
    "ipo": IpoOptions,
    "kto": KtoOptions,
    "mapo": MapoOptions,
    "sft": SftOptions,
    "simpo": SimpoOptions,
}
"""Kind of an objective -> its options."""
