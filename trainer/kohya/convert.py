"""From kohya's arguments to our options. What is only another name follows from the aliases on the fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from ..config import reference
from ..diffusion.options import KOHYA
from ..errors import UserError
from ..families.load import identify
from ..families.options import ModelOptions
from ..optimizers.options import parse_args
from .made import Made
from .names import HARMLESS, REFUSED, arguments, script_of
from .network import network
from .read import Values

SD3_IGNORES = (
    "adaptive_noise_scale", "clip_skip", "debiased_estimation_loss", "ip_noise_gamma", "ip_noise_gamma_random_strength",
    "max_token_length", "min_snr_gamma", "multires_noise_discount", "multires_noise_iterations", "noise_offset",
    "noise_offset_random_strength", "scale_v_pred_loss_like_noise_pred", "v_parameterization", "v_pred_like_loss",
    "weighted_captions", "zero_terminal_snr",
)  # fmt: skip
"""What sd3_train_network.py takes and does not use."""


@cache
def aliases() -> dict[str, str]:
    """Argument -> option, for every alias on a field that names an argument of the scripts."""
    found: dict[str, str] = {}
    for row in reference():
        if row["kohya"] in arguments() and row["table"] != "data.sets":
            found.setdefault(row["kohya"], f"{row['table']}.{row['name']}")
    return found


def treatment(name: str) -> str:
    """``mapped``, ``harmless`` or ``refused``; empty for a name that nobody has thought of."""
    if name in CONVERTED or name in aliases():
        return "mapped"
    return "harmless" if name in HARMLESS else "refused" if name in REFUSED else ""


def convert(values: Values, family: str | None) -> Made:
    """Everything but the data set."""
    made = Made()
    dropped = _unused(values, made, family)
    for name in values.given:
        if treatment(name) == "refused" and values[name] not in (False, 0, None):
            values.wrong(name, REFUSED[name])
        elif treatment(name) == "harmless" and values[name] not in (False, None):
            made.notes.append(f"{name} has no effect: {HARMLESS[name]}")
    for name, option in aliases().items():
        if name not in CONVERTED and name not in dropped:
            made.put(option, values[name], values, name)
    for step in STEPS:
        step(values, made, family)
    made.options |= values.options
    return made


def _unused(values: Values, made: Made, family: str | None) -> set[str]:
    """Arguments that the script of this family does not know or does not use."""
    if family is None:
        return set()
    script = script_of(family)
    dropped = {name for name, one in arguments().items() if script not in one.families}
    dropped |= set(SD3_IGNORES) if script == "sd3" else {"clip_skip"} if script == "sdxl" else set()
    for name in sorted(dropped & set(values.given)):
        if values.given.pop(name) not in (False, arguments()[name].default):
            made.notes.append(f"{name} is left out: sd-scripts does not use it for {family} either")
    return dropped


# -------------------------------------------------------------------------------------------------- what model it is


def find_family(values: Values, asked: str | None) -> str | None:
    """The family of the base model: as asked for, as its file says, or as the arguments hint; None when unknown."""
    path = values["pretrained_model_name_or_path"]
    if asked and asked != "auto":
        return asked
    if path and Path(path).expanduser().exists():
        try:
            given = {"path": str(Path(path).expanduser()), **{n: values.given.get(k) for n, k in _ENCODERS.items()}}
            return identify(ModelOptions.model_validate(given)).spec.name
        except (UserError, ValidationError):
            return None  # whoever loads it says what is wrong
    if values.family:
        return values.family
    module, sd3 = str(values["network_module"]), ("clip_g", "weighting_scheme", "t5xxl")
    if module.endswith("lora_sd3") or any(name in values.given for name in sd3):
        return "sd3.5-medium" if re.search(r"3[._]5[-_]?m", str(path)) else "sd3-medium"
    if re.search(r"sd_?xl|xl[-_.]|pony|illustrious|noob", Path(str(path)).name, re.IGNORECASE):
        return "sdxl"
    return "sd2" if values["v2"] else None


_ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}


# ---------------------------------------------------------------------------------------------------------- the steps


def _run(values: Values, made: Made, family: str | None) -> None:
    if "max_train_epochs" in values.given:
        made.put("run.epochs", values["max_train_epochs"], values, "max_train_epochs")
        if "max_train_steps" in values.given:
            made.notes.append("max_train_steps is left out: max_train_epochs takes precedence")
    else:
        made.put("run.steps", values["max_train_steps"], values, "max_train_steps")
    made.put("run.kohya_strict", values["kohya_strict"] or None, values, "kohya_strict")
    precision = {"no": "fp32"}.get(values["mixed_precision"], values["mixed_precision"])
    made.put("run.precision", precision, values, "mixed_precision")
    made.put("run.full_bf16", values["full_bf16"] or None, values, "full_bf16")
    if values["full_bf16"] and values["mixed_precision"] != "bf16":
        values.wrong("full_bf16", 'it needs mixed_precision = "bf16"; set that, or full_bf16 = false')
    saved = {"float": "fp32", None: "bf16" if values["full_bf16"] else "fp32"}
    precision = saved.get(values["save_precision"], values["save_precision"])
    made.put("save.precision", precision, values, "save_precision")
    if values["save_model_as"] != "safetensors":
        values.wrong("save_model_as", f'{values["save_model_as"]!r} files are not written; set "safetensors"')
    if values["log_with"] in ("wandb", "all"):
        made.notes.append("log_with: nothing is sent to Weights & Biases; the curves are TensorBoard's")


def _model(values: Values, made: Made, family: str | None) -> None:
    if values["v2"]:
        if script_of(family) == "sdxl" or "sdxl" in str(values["network_module"]):
            values.wrong("v2", "the model is SDXL; leave v2 out")
        made.put("model.family", "sd2", values, "v2")
    made.put("model.prediction", "v" if values["v_parameterization"] else None, values, "v_parameterization")
    made.put("model.zero_terminal_snr", values["zero_terminal_snr"] or None, values, "zero_terminal_snr")
    made.put("model.vae_precision", "fp32" if values["no_half_vae"] else None, values, "no_half_vae")


def _loss(values: Values, made: Made, family: str | None) -> None:
    kind = {"l2": "mse"}.get(values["loss_type"], values["loss_type"])
    if kind != "mse":
        made.put(f"loss.{kind}.weight", 1.0, values, "loss_type")
    if kind in ("huber", "smooth_l1"):
        for name, option in (("huber_c", "c"), ("huber_schedule", "schedule"), ("huber_scale", "scale")):
            made.put(f"loss.{kind}.{option}", values[name], values, name)
    if script_of(family) == "sd3":
        scheme = values["weighting_scheme"]
        sampling = scheme if scheme in ("logit_normal", "mode") else "uniform"
        weighting = scheme if scheme in ("sigma_sqrt", "cosmap") else "x0"
        made.put("noise.sampling", sampling, values, "weighting_scheme", force=True)
        made.put("objective.flow_weighting", weighting, values, "weighting_scheme", force=True)
    if values["scale_v_pred_loss_like_noise_pred"] and not values["v_parameterization"]:
        values.wrong("scale_v_pred_loss_like_noise_pred", "it is for v models; set v_parameterization, or leave it out")
    if values["v_pred_like_loss"] and values["v_parameterization"]:
        values.wrong("v_pred_like_loss", "it is for epsilon models; leave out v_parameterization, or this")
    for name in ("min_snr_gamma", "v_pred_like_loss"):
        made.put(aliases()[name], values[name] or None, values, name)
    if values["adaptive_noise_scale"] and not values["noise_offset"]:
        values.wrong("adaptive_noise_scale", "it changes noise_offset; set noise_offset = 0.05, or leave it out")
    else:
        made.put("noise.adaptive_noise_scale", values["adaptive_noise_scale"], values, "adaptive_noise_scale")


def _optimizer(values: Values, made: Made, family: str | None) -> None:
    short = {name: kind for name, kind in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion"))
             if values[name]}  # fmt: skip
    if short and values["optimizer_type"]:
        values.wrong(next(iter(short)), "optimizer_type is given too; keep one of them")
    kind = values["optimizer_type"] or next(iter(short.values()), None)
    made.put("optimizer.kind", kind, values, *short, "optimizer_type")
    made.put("schedule.kind", values["lr_scheduler_type"] or values["lr_scheduler"], values,
             "lr_scheduler_type" if values["lr_scheduler_type"] else "lr_scheduler")  # fmt: skip
    for name, option in (("optimizer_args", "optimizer.args"), ("lr_scheduler_args", "schedule.args")):
        try:
            made.put(option, parse_args(values[name] or []) or None, values, name)
        except ValueError as error:
            values.wrong(name, str(error))
    if values["lr_scheduler"] in ("constant", "adafactor") and values["lr_warmup_steps"] not in (0, "0%"):
        if not values["lr_scheduler_type"]:
            values.wrong("lr_warmup_steps", f"{values['lr_scheduler']} has no warm-up; set lr_scheduler = "
                         '"constant_with_warmup", or lr_warmup_steps = 0')  # fmt: skip
    else:
        made.put("schedule.warmup", values["lr_warmup_steps"], values, "lr_warmup_steps")


def _memory(values: Values, made: Made, family: str | None) -> None:
    attention = "xformers" if values["xformers"] else "sdpa" if values["sdpa"] else None
    made.put("memory.attention", attention, values, "xformers" if values["xformers"] else "sdpa")
    if values["fp8_base"] or values["fp8_base_unet"]:
        made.put("memory.base_weights", "fp8", values, "fp8_base", "fp8_base_unet")
        made.put("memory.text_weights", "fp8" if values["fp8_base"] else None, values, "fp8_base")
        if values["mixed_precision"] == "no":
            values.wrong("fp8_base" if values["fp8_base"] else "fp8_base_unet",
                         'it needs mixed_precision = "bf16" or "fp16"; set one of them')  # fmt: skip
    if values["blocks_to_swap"]:
        made.put("memory.blocks_on_gpu", "auto", values, "blocks_to_swap")
        made.notes.append("blocks_to_swap: as many blocks stay on the GPU as there is room for")
    if values["mem_eff_attn"] and not attention:
        made.notes.append("mem_eff_attn: torch's SDPA is used, which is as frugal and faster")


def _caches(values: Values, made: Made, family: str | None) -> None:
    latents = "disk" if values["cache_latents_to_disk"] else "memory" if values["cache_latents"] else "off"
    made.put("data.cache_latents", latents, values, "cache_latents_to_disk", "cache_latents")
    if latents == "disk":
        made.put("data.sd_scripts_cache", True, values, "cache_latents_to_disk")
    if latents != "off":
        for name in ("color_aug", "random_crop"):
            if values[name]:
                values.wrong(name, "it changes the picture each time, but latents are kept; leave out "
                                   "cache_latents and cache_latents_to_disk, or this")  # fmt: skip
    if not (values["cache_text_encoder_outputs"] or values["cache_text_encoder_outputs_to_disk"]):
        return
    kept = "disk" if values["cache_text_encoder_outputs_to_disk"] else "memory"
    made.put("data.cache_text", kept, values, "cache_text_encoder_outputs_to_disk", "cache_text_encoder_outputs")
    for name in ("shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step"):
        if values[name]:
            values.wrong(name, "it changes the caption each time, but cache_text_encoder_outputs keeps one; leave out "
                               "one of them")  # fmt: skip
    if script_of(family) == "sdxl" and not values["network_train_unet_only"]:
        values.wrong("cache_text_encoder_outputs", "on SDXL it needs network_train_unet_only = true; set that")


def _files(values: Values, made: Made, family: str | None) -> None:
    sampler = str(values["sample_sampler"]).removeprefix("k_")
    if sampler == "lms":
        made.notes.append(f"sample_sampler: {values['sample_sampler']} is not here; previews are drawn by euler")
        sampler = "euler"
    made.put("sample.sampler", KOHYA.get(sampler, sampler), values, "sample_sampler")
    if values["sample_prompts"]:
        made.put("sample.at_start", values["sample_at_first"], values, "sample_at_first")
        made.put("sample.steps", 30, values, "sample_prompts")
        made.put("sample.guidance", 7.5, values, "sample_prompts")
    if values["save_state"]:
        _states(values, made)
    state = Path(values["resume"] or "").expanduser()
    if values["resume"] and (state / "train_state.json").exists() and (state / "model.safetensors").exists():
        made.put("adapter.init_from", str(state / "model.safetensors"), values, "resume")
        made.notes.append("resume: a state of sd-scripts gives its adapter; optimizer and schedule start over")
    else:
        made.put("run.resume_from", values["resume"], values, "resume")
    if "seed" not in values.given:
        made.notes.append("seed is not given: sd-scripts draws one, here it is 0, so that a run can be repeated")


def _states(values: Values, made: Made) -> None:
    """How long states are kept. Those of steps and of epochs are alike here, so limits hold where there is one sort."""
    steps, epochs = values["save_every_n_steps"], values["save_every_n_epochs"] or values["save_n_epoch_ratio"]
    for option, alone, *limits in (
        ("save.keep_states", epochs and not steps, "save_last_n_epochs_state", "save_last_n_epochs"),
        ("save.keep_states_steps", steps and not epochs, "save_last_n_steps_state", "save_last_n_steps"),
    ):
        limit = next((values[name] for name in limits if values[name]), 0)
        made.put(option, limit if alone else 0, values, *limits)
        if limit and steps and epochs:
            made.notes.append(f"save_state: all states are kept, as there are some of steps and some of epochs; "
                              f"{option} limits both together")  # fmt: skip


STEPS: tuple[Callable[[Values, Made, str | None], None], ...] = (
    _run, _model, network, _loss, _optimizer, _memory, _caches, _files
)  # fmt: skip
_DATA = """
alpha_mask bucket_no_upscale bucket_reso_steps caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate color_aug
conditioning_data_dir dataset_config dataset_repeats enable_bucket enable_wildcard face_crop_aug_range flip_aug
in_json keep_tokens keep_tokens_separator masked_loss max_bucket_reso min_bucket_reso random_crop reg_data_dir
resize_interpolation resolution secondary_separator shuffle_caption token_warmup_min token_warmup_step
train_batch_size train_data_dir validation_seed validation_split
"""
DATA = frozenset(_DATA.split())
"""Arguments that ``dataset.py`` converts."""
_CONVERTED = """
adaptive_noise_scale blocks_to_swap cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk config_file fp8_base fp8_base_unet full_bf16 huber_c huber_scale huber_schedule
learning_rate log_with loss_type lr_scheduler lr_scheduler_args lr_scheduler_type lr_warmup_steps max_train_epochs
max_train_steps mem_eff_attn min_snr_gamma mixed_precision network_alpha network_args network_dim network_dropout
network_module network_train_text_encoder_only network_train_unet_only no_half_vae optimizer_args optimizer_type resume
sample_at_first sample_sampler save_last_n_epochs_state save_last_n_steps_state save_model_as save_precision
scale_weight_norms sdpa text_encoder_lr unet_lr use_8bit_adam use_lion_optimizer v2 v_parameterization v_pred_like_loss
weighting_scheme xformers zero_terminal_snr
"""
CONVERTED = DATA | frozenset(_CONVERTED.split())
"""Arguments that are more than another name."""
