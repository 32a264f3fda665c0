"""What a model family is: its description (``FamilySpec``, one per file) and a loaded model of it (``Family``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..diffusion.process import Prediction, Process
from ..diffusion.types import Conditioning
from ..memory.activation_checkpointing import blocks_of
from ..memory.device import release
from ..memory.quantize import quantized_as
from .options import ModelOptions
from .sources import Files
from .text import States, Tokens, clip_tokens, t5_tokens

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder: where its parts lie in a diffusers folder and in a single file, and its public configuration."""

    folder: str
    tokenizer: str
    model: Literal["CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"]
    config: dict[str, Any]
    prefix: str
    """Of its tensors in a single file."""
    tokenizer_id: str
    """Hub id of its tokenizer: the name of its folder in a tokenizer cache."""
    pad: str | None = None
    """The padding token, where it is not the end mark."""
    option: str | None = None
    """The field of [model] that names a separate file."""
    optional: bool = False


@dataclass(frozen=True)
class SdScripts:
    """What sd-scripts does for a family."""

    script: Literal["sd15", "sdxl", "sd3"]
    """Its training script, as ``kohya`` calls it."""
    latents: str
    """The ending of its cached latents: ``NAME_0512x0512_sd.npz``."""
    bucket_step: int
    """Pixels that its ``bucket_reso_steps`` must be a multiple of."""
    bare_latents: bool = True
    """Whether its older versions wrote latents without an ending: ``NAME.npz``."""


@dataclass(frozen=True)
class FamilySpec:
    """One family: all that differs from the others. How its adapter files name modules is a ``KeyMapping`` of the same
    family (``adapters/mappings``)."""

    name: str
    title: str
    part: Literal["unet", "transformer"]
    model: Literal["UNet2DConditionModel", "SD3Transformer2DModel"]
    config: dict[str, Any]
    """Of the public denoiser, as diffusers' constructor takes it."""
    vae: dict[str, Any]
    """Of the public autoencoder."""
    encoders: dict[str, Encoder]
    """By the names of Kohya's files: ``te`` (SD 1.x, 2.x), or ``te1``, ``te2``, ``te3``."""
    predictions: tuple[Prediction, ...]
    """What models of this family predict."""
    assumed: Prediction | None
    """What a file that says nothing predicts; None where both are common and the user must say."""
    in_file: Callable[[Shapes], bool]
    """Whether the tensors of a denoiser in the public single-file layout are this family's."""
    in_folder: Callable[[Mapping[str, Any]], bool]
    """Whether the denoiser's configuration in a diffusers folder is this family's."""
    read: Callable[[Family, str, list[str]], States]
    """(family, name of a text encoder, captions) -> what that encoder makes of them."""
    join: Callable[[Family, Mapping[str, States]], Conditioning]
    """The conditioning of captions that all text encoders have read."""
    run: Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
    """(denoiser, noisy, time, conditioning) -> output."""
    check: Callable[[ModelOptions], list[str]]
    """Notes on options that have no effect here; UserError for those that the family does not have."""
    compute_blocks: tuple[str, ...]
    """Classes of the denoiser's blocks that are recomputed, compiled and streamed."""
    quantized: tuple[str, ...]
    """Children of the denoiser whose layers may be quantized; what lies before and after keeps its precision."""
    dpo_beta: float
    """DPO's beta where none is given, at mean reduction."""
    sd_scripts: SdScripts | None
    """None for a family that sd-scripts does not train."""
    resize_blocks: tuple[str, ...] = ()
    """Classes of the resampling layers between them, which are streamed too."""
    sampling_shift: float = 1.0
    """Shift of a flow's noise levels in previews, as ComfyUI samples the family; 1 for none."""
    multiple: int = 8
    """Pixels that width and height must be a multiple of."""
    resolution: int = 512
    """Pixels per side that the public model is made for."""
    presets: str = ""
    """What the names of its presets begin with, where it is not ``name``: ``sd3`` for ``sd3-style-24gb``."""

    @property
    def channels(self) -> int:
        """C of the latents."""
        return self.vae["latent_channels"]

    @property
    def t5(self) -> str | None:
        """The name of the T5 text encoder, where there is one."""
        return next((name for name, encoder in self.encoders.items() if encoder.model == "T5EncoderModel"), None)

    def blocks(self, denoiser: nn.Module, resize: bool = False) -> list[nn.Module]:
        """The compute blocks of a denoiser (with ``resize`` its resampling layers too), outermost first."""
        found = blocks_of(denoiser, self.compute_blocks + (self.resize_blocks if resize else ()))
        assert found, f"{self.name}: {type(denoiser).__name__} has none of {self.compute_blocks}"
        return found


@dataclass
class Family:
    """A loaded model. Its modules are frozen, in evaluation mode, on the CPU; whoever trains moves and changes them."""

    spec: FamilySpec
    options: ModelOptions
    process: Process
    denoiser: Any
    vae: Any
    text_encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    files: Files
    notes: list[str] = field(default_factory=list)
    """What was found, assumed or ignored, in sentences for the log."""
    truncated: dict[str, dict[str, int]] = field(default_factory=dict)
    """Text encoder -> caption -> tokens it did not read. See ``warnings``."""

    scale: float = 1.0
    """s of the latents z = s (E(x) - m)."""
    shift: float = 0.0
    """m of the latents."""
    added: str = ""
    """What adapters were added to the weights, as digests of their content."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def channels(self) -> int:
        """C of the latents."""
        return self.vae.config.latent_channels

    @property
    def cell(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The denoiser's compute blocks, outermost first."""
        return self.spec.blocks(self.denoiser)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What an adapter may sit on: ``unet`` (U-Net or MMDiT) and the text encoders."""
        return {"unet": self.denoiser, **self.text_encoders}

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> scaled latents [N, C, h, w], float32: the mean of the posterior, z = s (E(x) - m).

        One picture at a time and never under autocast, so a picture's latents depend on nothing else.
        """
        weight = next(self.vae.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            means = [self.vae.encode(one.to(weight)).latent_dist.mode() for one in pixels.split(1)]
        return self.scale * (at_least_float32(torch.cat(means)) - self.shift)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [N, C, h, w] -> pixels [N, 3, H, W], about [-1, 1], float32: D(z / s + m), one at a time."""
        weight = next(self.vae.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            z = latents.to(weight) / self.scale + self.shift
            return at_least_float32(torch.cat([self.vae.decode(one).sample for one in z.split(1)]))

    def encode_text(self, captions: list[str]) -> Conditioning:
        """The conditioning of each caption, on the first encoder's device.

        With gradient where encoders are trained. Captions longer than they read are cut, and counted in ``truncated``.
        """
        return self.spec.join(self, {name: self.spec.read(self, name, captions) for name in self.text_encoders})

    @torch.no_grad()
    def encode_in_turn(self, captions: list[str], device: torch.device) -> list[Conditioning]:
        """The conditioning of each caption, on the CPU, with one text encoder at a time on ``device``.

        The same numbers as ``encode_text`` of each gives. All text encoders are on the CPU afterwards.
        """
        states: list[dict[str, States]] = [{} for _ in captions]
        for encoder in self.text_encoders.values():
            encoder.to("cpu")
        for name, (encoder, place) in self.encoder_places(device).items() if captions else ():
            release(device)
            encoder.to(place)
            for found, caption in zip(states, captions, strict=True):
                found[name] = self.spec.read(self, name, [caption]).to(torch.device("cpu"))
            encoder.to("cpu")
        release(device)
        return [self.spec.join(self, found) for found in states]

    def tokens(self, name: str, captions: list[str]) -> Tokens:
        """The captions as one text encoder reads them; what it cannot read is counted."""
        how, words = self.options, self.tokenizers[name]
        if self.spec.encoders[name].model == "T5EncoderModel":
            tokens = t5_tokens(words, captions, how.t5_max_tokens)
        else:
            tokens = clip_tokens(words, captions, how.max_tokens, how.weighted_captions)
        for caption, cut in zip(captions, tokens.cut, strict=True):
            if cut:
                self.truncated.setdefault(name, {})[caption] = cut
        return tokens

    def predict(self, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output [B, C, h, w] for noisy latents at levels [B], float32 (float64 for a float64 model)."""
        dtype = _dtype(self.denoiser)
        pooled = None if conditioning.pooled is None else conditioning.pooled.to(dtype)
        text = replace(conditioning, hidden=conditioning.hidden.to(dtype), pooled=pooled)
        return at_least_float32(self.spec.run(self.denoiser, noisy.to(dtype), self.process.time(level), text))

    def warnings(self) -> list[str]:
        """One line per text encoder that could not read some captions whole; beside T5 the CLIPs may miss the rest."""
        lines = []
        for name, cut in self.truncated.items():
            if self.spec.t5 in self.text_encoders and name != self.spec.t5:
                continue
            caption, most = max(cut.items(), key=lambda item: item[1])
            some = f"{len(cut)} caption{'s are' if len(cut) > 1 else ' is'}"
            lines.append(
                f"{some} longer than the text encoder {name} reads; the worst loses {most} tokens: '{caption[:60]}'"
            )
        return lines

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Content hashes for cache keys: ``model``, ``vae`` (of latents) and ``text`` (of conditioning); as the
        modules are when they are first asked for, so only once adapters are added and weights are quantized."""
        how = self.options
        reading = (how.clip_skip, how.max_tokens, how.weighted_captions, how.t5_max_tokens, how.t5_mask, how.clip_mask)
        words = [_spelling(self.tokenizers[name]) for name in self.text_encoders]
        kinds = [f"{name} {_dtype(module)}{_quantization(module)}" for name, module in self.text_encoders.items()]
        return {
            "model": self.files.digest("model") + self.added,
            "vae": self.files.digest("vae", str(_dtype(self.vae)), str(self.scale), str(self.shift)),
            "text": self.files.digest("text", self.name, str(reading), *kinds, *words) + self.added,
        }

    def metadata(self) -> dict[str, str]:
        """Names and hashes of the base model and of a separate autoencoder, as Kohya's ss_* entries."""
        return self.files.metadata()

    def to(self, device: torch.device | str) -> None:
        """Move every module, except T5 where the options leave it on the CPU."""
        self.to_without_text(device)
        for module, place in self.encoder_places(device).values():
            module.to(place)

    def to_without_text(self, device: torch.device | str) -> None:
        """Move the denoiser and the autoencoder."""
        self.denoiser.to(device)
        self.vae.to(device)

    def encoder_places(self, device: torch.device | str) -> dict[str, tuple[nn.Module, torch.device]]:
        """Each text encoder and the device where it belongs when the rest is on ``device``."""
        stays = (self.spec.t5,) if self.options.t5_on_cpu else ()
        places = {name: torch.device("cpu" if name in stays else device) for name in self.text_encoders}
        return {name: (module, places[name]) for name, module in self.text_encoders.items()}


def _spelling(tokenizer: Any) -> str:
    """All of a tokenizer but its momentary padding and truncation."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    return json.dumps([kept, tokenizer.pad_token_id], sort_keys=True)


def _quantization(module: nn.Module) -> str:
    """How a module's weights are quantized; empty where they are not."""
    kind = quantized_as(module)
    return "" if kind == "full" else f" {kind}"


def at_least_float32(value: Tensor) -> Tensor:
    """In float32, or in float64 where it is that."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())
