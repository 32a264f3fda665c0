"""ai-toolkit's configurations of LoRAs for Stable Diffusion, in YAML or JSON (27a03a91, 2026-08-21)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .foreign import Source, prompt_line
from .names import spec_of
from .read import Values, Wrong, whole

FAMILIES = {"sd1": "sd15", "sd15": "sd15", "sd2": "sd2", "sdxl": "sdxl", "sd3": "sd3-medium", "sd3.5": "sd3.5-medium"}
FLAGS = {"is_v2": "sd2", "is_xl": "sdxl", "is_v3": "sd3"}
"""Switches of [model] before there was ``arch``; other ``is_...`` switches are of other families."""
TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer", "train", "fine_tune")
OPTIMIZERS = {
    "adamw": "AdamW", "adamw8bit": "AdamW8bit", "adam": "Adam", "adam8bit": "AdamW8bit", "lion": "Lion",
    "lion8bit": "Lion8bit", "prodigy": "Prodigy", "adafactor": "AdaFactor", "dadaptation": "DAdaptation",
    "dadaptadam": "DAdaptAdam", "dadaptlion": "DAdaptLion", "adagrad": "Adagrad", "ademamix8bit": "AdEMAMix8bit",
}  # fmt: skip
SCHEDULES = ("constant", "linear", "cosine", "cosine_with_restarts", "constant_with_warmup", "polynomial")
PRECISIONS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
UNREAD_TRAIN = ("train_turbo", "learnable_snr_gos", "weight_jitter", "free_u", "adapter_assist_name_or_path",
                "do_cfg", "do_fft_loss", "do_guidance_loss", "do_differential_guidance", "blended_blur_noise",
                "random_noise_shift", "dynamic_noise_offset", "inverted_mask_prior", "prompt_saturation_chance",
                "diffusion_feature_extractor_path", "latent_feature_extractor_path", "do_prior_divergence",
                "short_and_long_captions", "standardize_images", "standardize_latents", "blank_prompt_preservation",
                "diff_output_preservation", "start_step")  # fmt: skip
UNREAD_DATA = ("flip_y", "augments", "augmentations", "control_path", "control_path_1", "inpaint_path",
               "clip_image_path", "unconditional_path", "random_scale", "random_triggers", "replacements",
               "invert_mask", "mask_min_value", "poi", "use_short_captions", "square_crop")  # fmt: skip


def read_aitoolkit(values: Values, raw: Mapping[str, Any], path: Path) -> None:
    """Take the first process of a job that trains a LoRA."""
    top = Source(values, raw, path)
    processes = top.rows("config.process")
    if not processes:
        raise UserError(f"{path}: this is a file of ai-toolkit without a process; give one that trains a LoRA")
    if len(processes) > 1:
        top.note("config.process", f"the first of {len(processes)} is taken")
    one = Source(values, processes[0], path)
    kind = str(one.get("type", ""))
    if kind not in TRAINERS or not one.table("network"):
        what = "trains the whole model" if kind in TRAINERS else f"runs {kind or 'no training'}"
        raise UserError(f"{path}: this is a file of ai-toolkit that {what}, which is not here; give one with a network")
    values.family, values.repairs = _family(one), True
    name = str(top.get("config.name", "aitoolkit"))
    one.set("output_dir", one.get("training_folder", "output"), "training_folder")
    one.set("output_name", name)
    one.set("pretrained_model_name_or_path", one.get("model.name_or_path"), "model.name_or_path")
    one.set("vae", one.get("model.vae_path"), "model.vae_path")
    if one.on("model.is_v_pred"):
        one.option("model.prediction", "v")
    if one.on("model.quantize"):
        one.option("memory.base_weights", "fp8")
        one.note("model.quantize", "the base is held in fp8")
    one.left_out("model.lora_path", "model.refiner_name_or_path", "model.assistant_lora_path", "model.unet_path")
    _network(one)
    _train(one)
    _save(one)
    _datasets(one)
    _samples(one, name)
    one.left_out("slider", "adapter", "embedding", "decorator")


def _family(one: Source) -> str:
    arch = str(one.get("model.arch", "")).partition(":")[0]
    known = [FLAGS[flag] for flag in FLAGS if one.on(f"model.{flag}")]
    others = [name for name in one.table("model") if name.startswith("is_") and name not in (*FLAGS, "is_v_pred")]
    arch = arch or next((name for name in others if one.on(f"model.{name}")), "") or (known or ["sd1"])[0]
    if arch not in FAMILIES:
        raise UserError(f"{one.path}: this is a file of ai-toolkit for {arch.removeprefix('is_')}, which is not here; "
                        "there is SD 1.5, 2.x, SDXL and SD3")  # fmt: skip
    path = str(one.get("model.name_or_path", "")).lower()
    if arch == "sd3" and "3.5" in path and "large" in path:
        raise UserError(f"{one.path}: this is a file of ai-toolkit for SD3.5 large, which is not here; there is medium")
    return "sd3.5-medium" if arch == "sd3" and "3.5" in path else FAMILIES[arch]


def _network(one: Source) -> None:
    kind = str(one.get("network.type", "lora")).lower()
    rank = one.number("network.rank", one.number("network.linear", 4))
    alpha = one.number("network.linear_alpha", one.number("network.alpha", 1.0))
    args: list[str] = []
    if kind not in ("lora", "locon", "lokr"):
        one.values.problems.append(
            (f"{one.path.name}: network.type", f"{kind} is not here; choose lora, locon or lokr")
        )
    if kind == "lokr":
        args = [f"factor={int(one.number('network.lokr_factor', -1))}"]
        if one.on("network.lokr_full_rank", True):
            rank, alpha = 4096, 4096.0
    if (conv := one.number("network.conv", 0)) and spec_of(one.values.family).part == "unet":
        args += [f"conv_dim={int(conv)}", f"conv_alpha={one.number('network.conv_alpha', conv):g}"]
    one.set("network_module", "networks.lokr" if kind == "lokr" else "networks.lora")
    one.set("network_dim", int(rank), "network.linear")
    one.set("network_alpha", alpha, "network.linear_alpha")
    one.set("network_dropout", one.number("network.dropout", 0.0) or None, "network.dropout")
    one.set("network_weights", one.get("network.pretrained_lora_path"), "network.pretrained_lora_path")
    one.set("network_args", args or None)
    one.left_out("network.lorm", "network.network_kwargs", "network.all_layers")


def _train(one: Source) -> None:
    rate = one.number("train.lr", 1e-6)
    one.set("learning_rate", rate, "train.lr")
    one.set("unet_lr", one.get("train.unet_lr"), "train.unet_lr")
    unet, text = one.on("train.train_unet", True), one.on("train.train_text_encoder")
    one.set("text_encoder_lr", one.get("train.text_encoder_lr") if text else None, "train.text_encoder_lr")
    one.set("network_train_unet_only", True if unet and not text else None)
    one.set("network_train_text_encoder_only", True if text and not unet else None)
    one.set("max_train_steps", one.number("train.steps", 1000), "train.steps")
    one.set("train_batch_size", one.number("train.batch_size", 1), "train.batch_size")
    pieces = max(one.number(f"train.{name}", 1) for name in ("gradient_accumulation_steps", "gradient_accumulation"))
    one.set("gradient_accumulation_steps", pieces, "train.gradient_accumulation_steps")
    one.set("gradient_checkpointing", one.on("train.gradient_checkpointing", True))
    one.set("mixed_precision", PRECISIONS.get(str(one.get("train.dtype", "fp32")), "no"))
    one.set("max_grad_norm", one.number("train.max_grad_norm", 1.0), "train.max_grad_norm")
    one.set("xformers" if one.on("train.xformers") else "sdpa", True)
    one.set("noise_offset", one.number("train.noise_offset", 0.0) or None, "train.noise_offset")
    one.set("min_snr_gamma", one.get("train.min_snr_gamma", one.get("train.snr_gamma")), "train.min_snr_gamma")
    low, high = one.number("train.min_denoising_steps", 0), one.number("train.max_denoising_steps", 999)
    one.set("min_timestep", int(low) or None, "train.min_denoising_steps")
    one.set("max_timestep", int(high) + 1 if high < 999 else None, "train.max_denoising_steps")
    loss = str(one.get("train.loss_type", "mse"))
    if loss == "mae":
        one.option("loss.l1.weight", 1.0)
    elif loss != "mse":
        one.note(f"train.loss_type = {loss}", "it is not here; mse is taken")
    if one.on("train.ema_config.use_ema"):
        one.option("save.ema", one.number("train.ema_config.ema_decay", 0.999))
    if one.on("train.cache_text_embeddings") and not text:
        one.set("cache_text_encoder_outputs", True)
        one.set("cache_text_encoder_outputs_to_disk", True)
    if spec_of(one.values.family).assumed == "flow":
        one.option("objective.flow_weighting", "none")
        shape = str(one.get("train.timestep_type", "sigmoid"))
        one.option("noise.sampling", "logit_normal" if shape == "sigmoid" else "uniform")
        if shape not in ("sigmoid", "linear"):
            one.note(f"train.timestep_type = {shape}", "uniform is taken")
    if one.get("train.content_or_style", "balanced") != "balanced":
        one.left_out("train.content_or_style", why="timesteps are drawn evenly")
    _optimizer(one)
    one.left_out(*(f"train.{name}" for name in UNREAD_TRAIN))


def _optimizer(one: Source) -> None:
    name = str(one.get("train.optimizer", "adamw")).lower()
    kind = OPTIMIZERS.get(name.replace("_", ""))
    if kind is None:
        one.note(
            f"train.optimizer = {name}", "it is not here; AdamW is taken, whose learning rate may have to be another"
        )
    one.set("optimizer_type", kind or "AdamW")
    params = one.table("train.optimizer_params") if kind else {}
    one.set("optimizer_args", [f"{key}={_word(value)}" for key, value in params.items()] or None)
    schedule, given = str(one.get("train.lr_scheduler", "constant")), one.table("train.lr_scheduler_params")
    if schedule not in SCHEDULES:
        one.note(f"train.lr_scheduler = {schedule}", "it is not here; constant is taken")
        schedule = "constant"
    warmup = given.get("num_warmup_steps", given.get("warmup_steps"))
    if schedule == "constant" and warmup:
        schedule = "constant_with_warmup"
    one.set("lr_scheduler", schedule)
    one.set("lr_warmup_steps", warmup if schedule not in ("constant", "adafactor") else None)


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _save(one: Source) -> None:
    precision = PRECISIONS.get(str(one.get("save.dtype", "float16")), "float")
    one.set("save_precision", precision)
    one.set("save_every_n_steps", one.number("save.save_every", 1000), "save.save_every")
    keep = int(one.number("save.max_step_saves_to_keep", 5))
    one.option("save.keep_last", keep)


def _datasets(one: Source) -> None:
    sets: list[dict[str, Any]] = []
    disk = False
    for row in one.rows("datasets"):
        data = Source(one.values, row, one.path)
        folder = data.get("folder_path") or data.get("dataset_path")
        if not folder:
            continue
        if Path(str(folder)).suffix.lower() == ".json":
            data.note(f"dataset_path = {folder}", "give it as metadata of a set, if it names pictures with captions")
            continue
        disk |= data.on("cache_latents_to_disk") or data.on("cache_latents")
        found = {"path": str(folder), **_dataset(one, data)}
        sets += [{**found, "resolution": side} for side in _sides(one, data.get("resolution", 512))]
        data.left_out(*UNREAD_DATA)
    if sets:
        one.option("data.sets", sets)
    else:
        one.note("datasets", "none are named; write the folders of pictures into [[data.sets]]")
    one.set("enable_bucket", True)
    one.set("cache_latents", disk or None)
    one.set("cache_latents_to_disk", disk or None)


def _sides(one: Source, sizes: Any) -> list[int]:
    """The resolutions of a folder: each makes a set."""
    try:
        return [whole(side) for side in (sizes if isinstance(sizes, list) else [sizes])]
    except Wrong as wrong:
        one.values.problems.append((f"{one.path.name}: datasets.resolution", str(wrong)))
        return []


def _dataset(one: Source, data: Source) -> dict[str, Any]:
    """The options of one folder."""
    ending = str(data.get("caption_ext", ".txt"))
    found: dict[str, Any] = {"caption_extension": ending if ending.startswith(".") else f".{ending}"}
    trigger = data.get("trigger_word") or one.get("trigger_word")
    numbers = (("caption_dropout", "caption_dropout_rate"), ("tag_dropout", "token_dropout_rate"))
    counts = (("repeats", "num_repeats", 1), ("keep_tokens", "keep_tokens", 0))
    found |= {option: data.number(name, 0.0) for option, name in numbers}
    found |= {option: int(data.number(name, default)) for option, name, default in counts}
    switches = (("shuffle", "shuffle_tokens"), ("flip", "flip_x"), ("is_reg", "is_reg"), ("alpha_mask", "alpha_mask"))
    found |= {option: data.on(name) for option, name in switches}
    found |= {"caption": data.get("default_caption"), "trigger": trigger, "masks": data.get("mask_path")}
    found["batch"] = data.get("batch_size")
    if not data.on("buckets", True):
        found["buckets"] = False
    if trigger:
        one.note(
            f"trigger_word = {trigger}", "it is put before captions that lack it; [trigger] in them is not replaced"
        )
    return {name: value for name, value in found.items() if value not in (None, "", 0, 0.0, False) or name == "buckets"}


def _samples(one: Source, name: str) -> None:
    table = Source(one.values, one.table("sample"), one.path)
    rows: list[Any] = table.get("samples") or table.get("prompts") or []
    trigger = str(one.get("trigger_word", ""))
    if one.on("train.disable_sampling") or not isinstance(rows, list):
        rows = []
    first, walk = int(table.number("seed", 0)), table.on("walk_seed")
    prompts = []
    for number, row in enumerate(rows):
        own = row if isinstance(row, Mapping) else {"prompt": row}
        text = str(own.get("prompt", "")).replace("[trigger]", trigger).replace("[name]", name)
        flags = {"n": own.get("neg") or table.get("neg"), "d": own.get("seed", first + (number if walk else 0)),
                 "w": own.get("width", table.get("width", 512)), "h": own.get("height", table.get("height", 512)),
                 "s": own.get("sample_steps", table.get("sample_steps", 20)),
                 "l": own.get("guidance_scale", table.get("guidance_scale", 7))}  # fmt: skip
        if text.strip():
            prompts.append(
                prompt_line(text, {flag: None if value is False else value for flag, value in flags.items()})
            )
    if prompts:
        one.option("sample.prompts", prompts)
        one.set("sample_every_n_steps", table.number("sample_every", 100), "sample.sample_every")
        one.option("sample.at_start", not one.on("train.skip_first_sample"))
