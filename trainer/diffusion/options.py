"""[noise] and [sample], readable without torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from ..errors import UserError
from ..registry import Options, PathStr, option


class NoiseOptions(Options):
    sampling: Literal["auto", "uniform", "logit_normal", "mode"] = option("auto", label="Timestep sampling")
    """How noise levels are chosen. `auto`: uniform for SD1.5 and SDXL, logit_normal (favours the middle) for SD3."""
    logit_mean: float = option(0.0, kohya="logit_mean", label="Logit-normal mean")
    """Centre of `logit_normal`: below 0 favours little noise (detail), above 0 much noise (composition)."""
    logit_std: float = option(1.0, kohya="logit_std", label="Logit-normal width", gt=0)
    """Width of `logit_normal`; larger is closer to both ends of the schedule."""
    mode_scale: float = option(1.29, kohya="mode_scale", label="Mode scale", ge=-1, le=1.75)
    """Shape of `mode`: above 0 favours the middle, below 0 the ends (SD3 paper, section 3.1)."""
    shift: float = option(1.0, kohya="training_shift", label="Timestep shift", gt=0)
    """Moves levels towards noise: u becomes s u / (1 + (s - 1) u). 1 changes nothing, 3 suits SD3 at 1024 pixels."""
    min_timestep: int = option(0, kohya="min_timestep", label="Lowest timestep", ge=0, lt=1000)
    """Lowest timestep that is trained (0 is almost no noise)."""
    max_timestep: int = option(1000, kohya="max_timestep", label="Highest timestep", gt=0, le=1000)
    """Timesteps stay below this one (1000 is the whole schedule)."""
    integer_timesteps: bool = option(False, label="Integer timesteps", formerly="whole_timesteps")
    """SD3: round noise levels down to thousandths, as sd-scripts does."""
    noise_offset: float = option(0.0, kohya="noise_offset", label="Noise offset", ge=0)
    """Adds this much noise of one value per channel, so a model learns very dark and bright pictures; 0.05 to 0.1."""
    noise_offset_random_strength: bool = option(
        False, kohya="noise_offset_random_strength", label="Random noise offset"
    )
    """Draw each sample's offset between 0 and `noise_offset`."""
    adaptive_noise_scale: float = option(0.0, kohya="adaptive_noise_scale", label="Adaptive noise offset")
    """Adds this multiple of the mean latent of each channel to the offset's strength. Needs `noise_offset`."""
    multires_iterations: int = option(0, kohya="multires_noise_iterations", label="Multires noise levels", ge=0, le=64)
    """Adds noise at this many coarser resolutions (pyramid noise), with an effect like the offset's; 6 to 10, or 0."""
    multires_discount: float = option(0.3, kohya="multires_noise_discount", label="Multires noise discount", ge=0, le=1)
    """Strength of each coarser noise relative to the one before; 0.1 to 0.4."""
    ip_noise_gamma: float = option(0.0, kohya="ip_noise_gamma", label="Input perturbation", ge=0)
    """Disturbs the input with this much noise that the target lacks, against exposure bias; 0.05 to 0.1."""
    ip_noise_gamma_random_strength: bool = option(
        False, kohya="ip_noise_gamma_random_strength", label="Random input perturbation"
    )
    """Draw each sample's input perturbation between 0 and `ip_noise_gamma`."""

    @model_validator(mode="after")
    def _sensible(self) -> NoiseOptions:
        if self.min_timestep >= self.max_timestep:
            raise UserError(
                f"min_timestep: {self.min_timestep} is not below max_timestep {self.max_timestep}; lower it"
            )
        if self.adaptive_noise_scale and not self.noise_offset:
            raise UserError(
                "adaptive_noise_scale: it changes noise_offset, which is 0; set noise_offset, for example 0.05"
            )
        return self


Sampler = Literal[
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "ddim", "pndm", "dpmpp_2m", "dpmsingle",
]  # fmt: skip


Spacing = Literal["normal", "karras", "simple", "sgm_uniform"]


KOHYA = {
    "euler_a": "euler_ancestral", "k_euler": "euler", "k_euler_a": "euler_ancestral",
    "dpm_2_a": "dpm_2_ancestral", "k_dpm_2": "dpm_2", "k_dpm_2_a": "dpm_2_ancestral", "dpmsolver": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m",
}  # fmt: skip
"""Other names of samplers, by Kohya's tools."""


class SampleOptions(Options):
    prompts: list[str] = option([], label="Prompts")
    """What to draw; each prompt is a row of the grid. Kohya's flags may follow: ``a cat --n blurry --d 7 --w 512``."""
    file: PathStr | None = option(None, kohya="sample_prompts", label="Prompt file")
    """Prompts from a text file, one per line, ``#`` for comments, with the same flags; or from Kohya's .toml
    (``[prompt]`` and ``[[prompt.subset]]``) or .json (a list of tables or lines)."""
    pictures: list[PathStr] = option([], label="Pictures")
    """Runs with [dense]: pictures whose map is shown, as picture, prediction and truth; the truth is a file of equal
    name in one of the target folders. Up to four pictures that are held out, when not given."""
    negative: str = option("", label="Negative prompt")
    """What to steer away from, where a prompt has no ``--n`` of its own."""
    every: int = option(0, kohya="sample_every_n_steps", label="Every (steps)", ge=0)
    """Steps between previews; 0 draws only at the end."""
    every_epochs: int = option(0, kohya="sample_every_n_epochs", label="Every (epochs)", ge=0)
    """Epochs between previews, instead of ``every``."""
    at_start: bool = option(True, kohya="sample_at_first", label="At the start")
    """Draw before the first step as well: the picture to compare with."""
    sampler: Sampler = option("euler", kohya="sample_sampler", label="Sampler")
    """How the picture is integrated from noise."""
    scheduler: Spacing = option("normal", label="Scheduler")
    """How the noise levels are spaced, by ComfyUI's names; euler and SD3 only, the other samplers have their own."""
    steps: int = option(20, label="Steps", ge=1, le=1000)
    """Sampling steps."""
    guidance: float = option(7.0, label="Guidance (CFG)", ge=0.0)
    """Classifier-free guidance; 1 switches it off."""
    width: int | None = option(None, label="Width", ge=64)
    """Pixels; the training resolution when not given."""
    height: int | None = option(None, label="Height", ge=64)
    """Pixels; the training resolution when not given."""
    seed: int = option(42, label="Seed", ge=0, lt=2**64)
    """Seed of the first prompt; each following prompt takes the next."""

    @field_validator("sampler", mode="before")
    @classmethod
    def _kohya(cls, value: Any) -> Any:
        return KOHYA.get(value, value) if isinstance(value, str) else value
