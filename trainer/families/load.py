"""From [model] to a ``Family``: find the files, tell what they are, check that against the options, read the parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..diffusion.process import Prediction, Process, scaled_linear, zero_terminal_snr
from ..errors import UserError
from ..registry import families
from . import parts, words
from .family import Encoder, Family, FamilySpec
from .options import ModelOptions
from .parts import Source
from .sources import Checkpoint, Files, locate, open_file

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "sample": "sample",
    "flow": "flow",
}


@dataclass(frozen=True)
class Found:
    """What a model turned out to be and where its parts lie, before any weight is read."""

    spec: FamilySpec
    source: Source
    process: Process
    vae: Source
    texts: dict[str, Source]
    """Text encoder -> where it is read from."""
    notes: list[str]


def load(
    options: ModelOptions,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    text_dtype: torch.dtype | None = None,
    found: Found | None = None,
) -> Family:
    """The model of ``options``, frozen, on the CPU. The autoencoder is float16, which overflows in
    many, only where ``vae_precision`` says so: float32 instead.

    Raises UserError, one line, for whatever is missing, damaged, of another kind, or contradicts the options.
    """
    found = found or identify(options)
    spec, source = found.spec, found.source
    if (vae_dtype or dtype) == torch.float16 and options.vae_precision != "fp16":
        vae_dtype = torch.float32

    def variant(place: Source) -> str | None:
        return options.variant if place is source else None

    with _quiet():
        home = source.path if isinstance(source, Checkpoint) else source
        tokenizers = {n: words.tokenizer(spec.encoders[n], home, options.tokenizer_cache_dir) for n in found.texts}
        denoiser = parts.read_denoiser(source, spec, dtype, options.variant)
        vae = parts.read_vae(found.vae, spec, vae_dtype or dtype, variant(found.vae))
        encoders = {
            name: parts.read_encoder(place, spec.encoders[name], text_dtype or dtype, variant(place))
            for name, place in found.texts.items()
        }
    if vae.config.latent_channels != denoiser.config.in_channels:
        raise UserError(
            f"model.vae: {options.vae or options.path} has {vae.config.latent_channels} latent channels, but the model "
            f"{denoiser.config.in_channels}; name one of its own kind"
        )
    for name, encoder in encoders.items():
        if len(tokenizers[name]) > encoder.config.vocab_size:
            raise UserError(
                f"model.path: the tokenizer of {name} has {len(tokenizers[name])} words, its encoder "
                f"{encoder.config.vocab_size}; put the model's own into {home / spec.encoders[name].tokenizer}"
            )
    for module in (denoiser, vae, *encoders.values()):
        module.requires_grad_(False).eval()
    read = {
        "denoiser": parts.files(source, spec.part),
        "vae": parts.files(found.vae, "vae"),
        "text": [f for name, place in found.texts.items() for f in parts.files(place, spec.encoders[name].folder)],
    }
    files = Files(Path(options.path), read, Path(options.vae) if options.vae else None)
    scale, shift = _latents(spec, source, vae)
    return Family(
        spec, options, found.process, denoiser, vae, encoders, tokenizers, files, found.notes, scale=scale, shift=shift
    )


def meta(name: str) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The public denoiser and text encoders of a family, on the meta device."""
    return parts.meta(families[name].build())


def configs(found: Found) -> parts.Configs:
    """The configurations of a model's parts; nothing else is read."""
    return parts.configs(found.spec, found.source, found.vae, found.texts)


def assumed(options: ModelOptions) -> Found:
    """A family's public model, where no file is named. UserError when there is no family either."""
    if options.family == "auto":
        raise UserError("model.family: neither a model nor its family is given; set model.path, or model.family")
    spec = families[options.family].build()
    prediction = spec.assumed or spec.predictions[0] if options.prediction == "auto" else options.prediction
    process = _flow(spec) if prediction == "flow" else Process(prediction, scaled_linear())
    notes = [f"{spec.title}: its public form is assumed, as no model is given", *spec.check(options)]
    nothing = Checkpoint(Path(), {}, {}, lambda keys: {})
    texts: dict[str, Source] = {n: nothing for n, e in spec.encoders.items() if options.use_t5 or not e.optional}
    return Found(spec, nothing, process, nothing, texts, notes)


def identify(options: ModelOptions) -> Found:
    """What ``options.path`` is: family, prediction, schedule, parts. Reads headers and configurations only."""
    source = _place(options.path, "model.path", options)
    if isinstance(source, Path):
        spec, evidence = _folder_spec(source), _folder_evidence(source)
    else:
        spec, evidence = _file_spec(source), _file_evidence(source)
    if options.family not in ("auto", spec.name):
        raise UserError(
            f"model.family: {options.family}, but {options.path} is {spec.title} ({spec.name}); set that or 'auto'"
        )
    notes = [f"{options.path}: {spec.title}"]
    process = _process(options, spec, evidence, notes)
    notes += [*spec.check(options), *_for_sd3(options, spec)]
    vae = source
    if options.vae:
        notes.append(f"autoencoder: {options.vae}")
        vae = _place(options.vae, "model.vae")
    parts.check_vae(vae, spec, "model.vae" if options.vae else "model.path")
    texts = {name: _encoder_source(options, encoder, source, spec, notes) for name, encoder in spec.encoders.items()}
    return Found(spec, source, process, vae, {name: place for name, place in texts.items() if place}, notes)


def _for_sd3(options: ModelOptions, spec: FamilySpec) -> list[str]:
    """Notes on what somebody changed that only SD3 looks at."""
    if spec.t5:
        return []
    changed = options.model_dump(exclude_defaults=True)
    only = ("use_t5", "t5_max_tokens", "t5_on_cpu")
    return [f"model.{name} has no effect: it is for SD3, and this is {spec.title}" for name in only if name in changed]


def _place(named: str, where: str, options: ModelOptions | None = None) -> Source:
    place = locate(named, where, options and options.revision, options and options.variant)
    return place if place.is_dir() else open_file(place, where)


# ------------------------------------------------------------------------------------------------------- what is it


@dataclass(frozen=True)
class Evidence:
    """What a source itself states about its noise process."""

    prediction: Prediction | None
    source: str
    """Where it says so, or why it is in doubt."""
    doubtful: bool
    zero_snr: bool
    alphas: torch.Tensor


def _specs() -> list[FamilySpec]:
    return [entry.build() for entry in families]


_STRANGERS = (
    (r"lora_(down|up|A|B)\b|hada_w1|lokr_w", "an adapter (LoRA), not a base model"),
    (r"^(control_model\.|controlnet_)", "a ControlNet"),
    (r"^(string_to_param|emb_params$)", "an embedding (textual inversion)"),
    (r"^(model\.diffusion_model\.)?double_blocks\.", "a Flux-like model"),
    (r"(^|\.)scaled_fp8$|\.scale_weight$", "a scaled 8-bit file made for inference only; use the fp16 or bf16 one"),
    (r"^edm_mean$|^edm_vpred\.", "a model of the EDM noise process (such as Playground v2.5)"),
)


def _file_spec(file: Checkpoint) -> FamilySpec:
    shapes = parts.net_shapes(file)
    what = next((line for pattern, line in _STRANGERS if any(re.search(pattern, key) for key in file.shapes)), None)
    channels = shapes.get("input_blocks.0.0.weight", (0, None))[1]
    spec = _of_channels([one for one in _specs() if one.in_file(shapes)], channels)
    what = what or _other_channels(channels, spec.channels if spec else 4)
    if not what and spec is None:
        what = _other_part(file, shapes)
    if what:
        raise UserError(f"model.path: {file.path} is {what}; give a text-to-image checkpoint of {_known()}")
    assert spec
    return spec


def _known() -> str:
    return ", ".join(spec.name for spec in _specs())


def _of_channels(claims: list[FamilySpec], channels: int | None) -> FamilySpec | None:
    """Of the families that claim a model the one with its number of latent channels, or else the first."""
    return next((one for one in claims if one.channels == channels), claims[0] if claims else None)


def _other_channels(channels: int | None, wanted: int) -> str | None:
    """What a denoiser with another number of input channels is; ``channels`` is None where nothing tells it."""
    if channels in (None, wanted):
        return None
    return "an inpainting model" if channels == 9 else f"a model with {channels} input channels"


def _other_part(file: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file without a denoiser of a known family is."""
    if shapes.get("label_emb.0.0.weight", (0, 0))[1] == 2560:
        return "the SDXL refiner, which is no base"
    if any(key.startswith(("input_blocks.", "joint_blocks.")) for key in shapes):
        return "no model that is known here"
    if any(key.endswith("decoder.conv_in.weight") for key in file.shapes):
        return "an autoencoder (VAE) alone"
    if any("text_model." in key or key.startswith("encoder.block.") for key in file.shapes):
        return "a text encoder alone"
    return "no model that is known here"


def _folder_spec(folder: Path) -> FamilySpec:
    net = next((p for p in ("unet", "transformer") if (folder / p / "config.json").is_file()), None)
    if net is None:
        inside = sorted(f.name for f in folder.glob("*.safetensors"))
        hint = (
            f"name one of its files ({', '.join(inside[:3])})"
            if inside
            else "name a checkpoint file or a diffusers folder"
        )
        raise UserError(f"model.path: {folder} is no diffusers folder (no unet or transformer in it); {hint}")
    config = {"_class_name": "UNet2DConditionModel", **_json(folder / net / "config.json")}
    claims = [one for one in _specs() if one.part == net and one.in_folder(config)]
    spec = _of_channels(claims, config.get("in_channels"))
    if spec is None:
        raise UserError(
            f"model.path: {folder} is a {config['_class_name']}, which is not known here; there is {_known()}"
        )
    if what := _other_channels(config.get("in_channels", spec.channels), spec.channels):
        raise UserError(f"model.path: {folder} is {what}; give a text-to-image model of {_known()}")
    return spec


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {path} cannot be read ({error}); download it again") from None


def _file_evidence(file: Checkpoint) -> Evidence:
    declared = file.metadata.get("modelspec.prediction_type", "")
    zero, name = "ztsnr" in file.shapes, file.path.stem
    prediction, source, doubtful = _PREDICTIONS.get(declared), "its modelspec.prediction_type", False
    if "v_pred" in file.shapes:
        prediction, source = "v", "its 'v_pred' key"
    elif prediction is None and re.search(r"v[-_ ]?pred", name, re.IGNORECASE):
        source, doubtful = "its name mentions v-prediction, but nothing in it does", True
    return Evidence(prediction, source, doubtful, zero, scaled_linear())


def _folder_evidence(folder: Path) -> Evidence:
    path = folder / "scheduler" / "scheduler_config.json"
    config = _json(path) if path.is_file() else {}
    if config.get("_class_name", "").startswith("FlowMatch"):
        return Evidence("flow", "its scheduler_config.json", False, False, scaled_linear())
    if config.get("beta_schedule", "scaled_linear") != "scaled_linear" or config.get("trained_betas"):
        raise UserError(
            f"model.path: {path} has beta_schedule {config.get('beta_schedule')}; only scaled_linear is known"
        )
    alphas = scaled_linear(
        config.get("beta_start", 0.00085), config.get("beta_end", 0.012), config.get("num_train_timesteps", 1000)
    )
    zero = bool(config.get("rescale_betas_zero_snr"))
    declared = _PREDICTIONS.get(config.get("prediction_type", ""))
    return Evidence(declared, "its scheduler_config.json", False, zero, alphas)


def _process(options: ModelOptions, spec: FamilySpec, evidence: Evidence, notes: list[str]) -> Process:
    prediction = _prediction(options, spec, evidence, notes)
    if prediction == "flow":
        return _flow(spec)
    zero = options.zero_terminal_snr if options.zero_terminal_snr is not None else evidence.zero_snr
    if zero and prediction == "epsilon":
        raise UserError(
            "model.zero_terminal_snr: the model predicts epsilon, which pure noise does not allow; set "
            "prediction = 'v' if it is a v model, or zero_terminal_snr = false"
        )
    if zero:
        notes.append("its schedule ends in pure noise (zero terminal SNR)")
    return Process(prediction, zero_terminal_snr(evidence.alphas) if zero else evidence.alphas)


def _flow(spec: FamilySpec) -> Process:
    return Process("flow", sampling_shift=spec.sampling_shift)


def _prediction(options: ModelOptions, spec: FamilySpec, evidence: Evidence, notes: list[str]) -> Prediction:
    """The configured, the declared or the usual prediction; UserError when they contradict or none is known."""
    asked, declared = options.prediction, evidence.prediction
    if declared and declared not in spec.predictions:
        raise UserError(
            f"model.path: {options.path} predicts {declared} by {evidence.source}, which is not known for "
            f"{spec.title}; give another model"
        )
    if asked != "auto":
        if asked not in spec.predictions:
            raise UserError(
                f"model.prediction: {asked}, but {spec.title} predicts {' or '.join(spec.predictions)}; set 'auto'"
            )
        if declared and declared != asked:
            raise UserError(
                f"model.prediction: {asked}, but {options.path} predicts {declared} by {evidence.source}; set 'auto'"
            )
        return asked
    if declared:
        notes.append(f"it predicts {declared} (by {evidence.source})")
        return declared
    if evidence.doubtful or spec.assumed is None:
        why = evidence.source if evidence.doubtful else "such files do not say what they predict"
        raise UserError(f"model.prediction: {options.path}: {why}; set prediction = 'v' or 'epsilon'")
    notes.append(
        f"it predicts {spec.assumed}" + (", as nothing in it says otherwise" if len(spec.predictions) > 1 else "")
    )
    return spec.assumed


# ---------------------------------------------------------------------------------------------------------- its parts


def _latents(spec: FamilySpec, source: Source, vae: Any) -> tuple[float, float]:
    """(s, m) that the denoiser was trained with: of the base model, whichever autoencoder is used."""
    if isinstance(source, Checkpoint):
        return spec.vae["scaling_factor"], spec.vae.get("shift_factor") or 0.0
    config = source / "vae" / "config.json"
    own = _json(config) if config.is_file() else dict(vae.config)
    return own.get("scaling_factor", 0.18215), own.get("shift_factor") or 0.0


def _encoder_source(
    options: ModelOptions, encoder: Encoder, source: Source, spec: FamilySpec, notes: list[str]
) -> Source | None:
    """Where a text encoder is read from; None for an optional one that is missing or not wanted."""
    if encoder.optional and not options.use_t5:
        notes.append("T5 is not used; the model receives zeros in its place")
        return None
    if encoder.option and (named := getattr(options, encoder.option)):
        notes.append(f"{encoder.folder}: {named}")
        return _place(named, f"model.{encoder.option}")
    if isinstance(source, Path):
        inside = (source / encoder.folder / "config.json").is_file()
    else:
        inside = source.has(encoder.prefix)
    if inside:
        return source
    if encoder.optional:
        notes.append(f"there is no T5 in {options.path}; the model receives zeros in its place (model.t5 names a file)")
        return None
    where = f"name its file in model.{encoder.option}" if encoder.option else "use a checkpoint that holds it"
    raise UserError(f"model.path: {options.path} holds no {encoder.folder} ({spec.title} needs it); {where}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the libraries' progress bars and advice while a model is read; faults are UserErrors."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [log.get_verbosity() for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            log.enable_progress_bar()
