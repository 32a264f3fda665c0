"""OneTrainer's configurations and presets of LoRAs (config_version 11, 23df3832, 2026-08-19).

A preset holds what differs from OneTrainer's defaults, so those are written out where sd-scripts' differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .foreign import Source, prompt_line
from .names import script_of, spec_of
from .read import Values, parsed_json, read_text

FAMILIES = {
    "STABLE_DIFFUSION_15": "sd15", "STABLE_DIFFUSION_20": "sd2", "STABLE_DIFFUSION_20_BASE": "sd2",
    "STABLE_DIFFUSION_21": "sd2", "STABLE_DIFFUSION_21_BASE": "sd2", "STABLE_DIFFUSION_XL_10_BASE": "sdxl",
    "STABLE_DIFFUSION_3": "sd3-medium", "STABLE_DIFFUSION_35": "sd3.5-medium",
}  # fmt: skip
OPTIMIZERS = {
    "ADAMW": "AdamW", "ADAMW_8BIT": "AdamW8bit", "LION": "Lion", "LION_8BIT": "Lion8bit", "PRODIGY": "Prodigy",
    "ADAFACTOR": "AdaFactor", "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree", "SCHEDULE_FREE_SGD": "SGDScheduleFree",
    "DADAPT_ADA_GRAD": "DAdaptAdaGrad", "DADAPT_ADAM": "DAdaptAdam", "DADAPT_ADAN": "DAdaptAdan",
    "DADAPT_LION": "DAdaptLion", "DADAPT_SGD": "DAdaptSGD", "ADEMAMIX_8BIT": "AdEMAMix8bit", "ADAM": "Adam",
    "SGD": "SGD", "RMSPROP": "RMSprop", "ADAGRAD": "Adagrad",
}  # fmt: skip
OPTIMIZER_ARGS = ("weight_decay", "eps", "d_coef", "d0", "growth_rate", "decouple", "use_bias_correction", "momentum",
                  "safeguard_warmup", "relative_step", "scale_parameter", "warmup_init", "slice_p")  # fmt: skip
SCHEDULES = {"CONSTANT": "constant", "LINEAR": "linear", "COSINE": "cosine", "ADAFACTOR": "adafactor",
             "COSINE_WITH_RESTARTS": "cosine_with_restarts",
             "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts"}  # fmt: skip
PRECISIONS = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
WEIGHTS = {"FLOAT_8": "fp8", "FLOAT_W8A8": "fp8", "INT_8": "int8", "INT_W8A8": "int8", "NFLOAT_4": "nf4"}


def read_onetrainer(values: Values, raw: Mapping[str, Any], path: Path) -> None:
    """Take a configuration or a preset."""
    one = Source(values, raw, path)
    method, kind = str(one.get("training_method", "FINE_TUNE")), str(one.get("model_type", "STABLE_DIFFUSION_15"))
    tool = f"{path}: this is OneTrainer's configuration"
    if method != "LORA":
        what = {"EMBEDDING": "an embedding", "FINE_TUNE_VAE": "the autoencoder"}.get(method, "the whole model")
        raise UserError(f"{tool} that trains {what}, which is not here; choose LoRA")
    if kind not in FAMILIES:
        raise UserError(f"{tool} for {kind}, which is not here; there is SD 1.5, 2.x, SDXL and SD3")
    values.family, values.repairs = FAMILIES[kind], True
    _model(one)
    _network(one)
    _training(one)
    _optimizer(one)
    _loss(one)
    _concepts(one)
    _samples(one)
    one.left_out("masked_training", why='masks are read from a folder, "masks", here; name it there')
    one.left_out("additional_embeddings", "custom_conditioning_image", "force_circular_padding")


def _model(one: Source) -> None:
    one.set("pretrained_model_name_or_path", one.get("base_model_name", "stable-diffusion-v1-5/stable-diffusion-v1-5"))
    one.set("vae", one.get("vae.model_name"), "vae.model_name")
    if one.on("force_v_prediction"):
        one.option("model.prediction", "v")
    elif one.on("force_epsilon_prediction"):
        one.option("model.prediction", "epsilon")
    target = Path(str(one.get("output_model_destination", "models/model.safetensors")).replace("\\", "/"))
    one.set("output_dir", target.parent.as_posix())
    one.set("output_name", target.stem or "model")
    one.set("save_precision", PRECISIONS.get(str(one.get("output_dtype", "FLOAT_32")), "float"))
    skip = int(one.number("text_encoder_layer_skip", 0))
    if script_of(one.values.family) == "sd15":
        one.set("clip_skip", skip + 1, "text_encoder_layer_skip")
    elif skip:
        one.left_out("text_encoder_layer_skip")
    held = WEIGHTS.get(str(one.get(f"{_denoiser(one)}.weight_dtype", "FLOAT_32")).removesuffix("_COMPRESSED"))
    if held:
        one.option("memory.base_weights", held)


def _denoiser(one: Source) -> str:
    return spec_of(one.values.family).part


def _network(one: Source) -> None:
    kind = str(one.get("peft_type", "LORA"))
    if kind not in ("LORA", "LOHA", "LOKR"):
        one.values.problems.append((f"{one.path.name}: peft_type", f"{kind} is not here; choose LORA, LOHA or LOKR"))
    rank, alpha = int(one.number("lora_rank", 16)), one.number("lora_alpha", 1.0)
    args: list[str] = []
    module = {"LOHA": "networks.loha", "LOKR": "networks.lokr"}.get(kind, "networks.lora")
    if kind == "LOKR":
        rank = 4096 if one.on("lokr_full_matrix") else int(one.number("lokr_dim", 16))
        args.append(f"factor={int(one.number('lokr_decompose_factor', -1))}")
        args += ["decompose_both=True"] if one.on("lokr_decompose_both") else []
        one.left_out("lokr_use_tucker", "lokr_weight_decompose")
    elif kind == "LORA" and one.on("lora_decompose"):
        module, args = "lycoris.kohya", ["algo=lora", "dora_wd=True", "preset=attn-mlp"]
        if not one.on("lora_decompose_output_axis"):
            one.note("lora_decompose_output_axis = false", "magnitudes are per output here")
    one.set("network_module", module)
    one.set("network_dim", rank, "lora_rank")
    one.set("network_alpha", alpha, "lora_alpha")
    one.set("network_dropout", one.number("dropout_probability", 0.0) or None, "dropout_probability")
    one.set("network_weights", one.get("lora_model_name"), "lora_model_name")
    preset, own = str(one.get("layer_filter_preset", "full")), str(one.get("layer_filter", ""))
    if own or preset not in ("full", "attn-mlp", "attn-only"):
        one.note(
            f"layer_filter = {own or preset}", "attention blocks are adapted; name other modules in adapter.targets"
        )
    elif preset == "attn-only":
        one.note("layer_filter_preset = attn-only", "the feed-forward layers of the blocks are adapted as well")
    elif preset == "full" and _denoiser(one) == "unet":
        args += [f"conv_dim={rank}", f"conv_alpha={alpha:g}"]
        one.note("layer_filter_preset = full", "attention and resnet blocks are adapted, embeddings are not")
    one.set("network_args", args or None)


def _training(one: Source) -> None:
    for argument, name, default in (
        ("train_batch_size", "batch_size", 1), ("gradient_accumulation_steps", "gradient_accumulation_steps", 1),
        ("max_train_epochs", "epochs", 100), ("max_grad_norm", "clip_grad_norm", 1.0),
        ("noise_offset", "offset_noise_weight", 0.0), ("ip_noise_gamma", "perturbation_noise_weight", 0.0),
    ):  # fmt: skip
        value = one.number(name, default)
        one.set(argument, (0 if argument == "max_grad_norm" else None) if one.raw.get(name, 0) is None else value, name)
    one.set("mixed_precision", PRECISIONS.get(str(one.get("train_dtype", "FLOAT_16")), "no"))
    older = one.on("gradient_checkpointing", True)
    one.set("gradient_checkpointing", one.on(f"{_denoiser(one)}.gradient_checkpointing", older))
    one.set("xformers" if one.get("attention_mechanism") == "XFORMERS" else "sdpa", True)
    one.set("enable_bucket", one.on("aspect_ratio_bucketing", True))
    one.set("caption_extension", ".txt")
    one.set("cache_latents", one.on("latent_caching", True))
    one.set("cache_latents_to_disk", one.on("latent_caching", True))
    sizes = [word.strip() for word in str(one.get("resolution", "512")).split(",") if word.strip()]
    if len(sizes) > 1:
        one.note(f"resolution = {', '.join(sizes)}", f"each step takes one of them there; {sizes[0]} is taken")
    one.set("resolution", re.sub(r"\s*[xX×]\s*", ",", sizes[0]) if sizes else "512", "resolution")
    if one.get("ema", "OFF") not in ("OFF", False):
        one.option("save.ema", one.number("ema_decay", 0.999))
    unit, every = str(one.get("save_every_unit", "NEVER")), int(one.number("save_every", 0))
    if every and unit in ("EPOCH", "STEP"):
        one.set("save_every_n_epochs" if unit == "EPOCH" else "save_every_n_steps", every, "save_every")
    elif every and unit != "NEVER":
        one.note(f"save_every = {every} {unit}", "files are saved by steps or epochs; left out")
    low, high = one.number("min_noising_strength", 0.0), one.number("max_noising_strength", 1.0)
    one.set("min_timestep", round(1000 * low) or None, "min_noising_strength")
    one.set("max_timestep", round(1000 * high) if high < 1 else None, "max_noising_strength")
    one.set("zero_terminal_snr", one.on("rescale_noise_scheduler_to_zero_terminal_snr") or None)
    shape = str(one.get("timestep_distribution", "UNIFORM"))
    is_flow = spec_of(one.values.family).assumed == "flow"
    if is_flow:
        one.option("objective.flow_weighting", "none")
        one.option("noise.sampling", "logit_normal" if shape == "LOGIT_NORMAL" else "uniform")
        if shape == "LOGIT_NORMAL":
            one.set("weighting_scheme", "logit_normal")
            one.set("logit_mean", one.number("noising_bias", 0.0), "noising_bias")
            one.set("logit_std", one.number("noising_weight", 0.0) + 1.0, "noising_weight")
    if shape not in ("UNIFORM", *(["LOGIT_NORMAL"] if is_flow else [])):
        one.note(f"timestep_distribution = {shape}", "uniform is taken")
    one.left_out("timestep_shift" if one.number("timestep_shift", 1.0) != 1.0 else "dynamic_timestep_shifting")


def _optimizer(one: Source) -> None:
    table = one.table("optimizer")
    name = str(table.get("optimizer") or "ADAMW")
    kind = OPTIMIZERS.get(name.upper())
    if kind is None:
        one.note(f"optimizer = {name}", "it is not here; AdamW is taken, whose learning rate may have to be another")
    one.set("optimizer_type", kind or "AdamW")
    args = [f"{key}={table[key]}" for key in OPTIMIZER_ARGS if kind and table.get(key) is not None]
    betas = [table.get(f"beta{i}") for i in (1, 2)]
    if kind and None not in betas:
        args.append(f"betas={betas[0]},{betas[1]}")
    one.set("optimizer_args", args or None)
    rate = one.number("learning_rate", 3e-6)
    one.set("learning_rate", rate, "learning_rate")
    part = _denoiser(one)
    trained = {name: one.on(f"{name}.train", True) for name in _encoders(one)}
    unet = one.on(f"{part}.train", True)
    one.set("unet_lr", one.get(f"{part}.learning_rate"), f"{part}.learning_rate")
    rates = [one.number(f"{name}.learning_rate", rate) for name, on in trained.items() if on]
    if rates and rates != [rate] * len(rates):
        one.set("text_encoder_lr", rates if script_of(one.values.family) == "sd3" else rates[:1])
    one.set("network_train_unet_only", True if not rates and unet else None)
    one.set("network_train_text_encoder_only", True if rates and not unet else None)
    if rates and len(rates) != len(trained):
        one.option("adapter.text_encoders", [_ENCODERS[name] for name, on in trained.items() if on])
    for name in (part, *trained):
        if one.get(f"{name}.stop_training_after_unit", "NEVER") != "NEVER":
            one.left_out(f"{name}.stop_training_after", why="every part is trained to the end")
    one.set("caption_dropout_rate", max(one.number(f"{name}.dropout_probability", 0.0) for name in trained) or None)
    _schedule(one)


_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}


def _encoders(one: Source) -> list[str]:
    return list(_ENCODERS)[: len(spec_of(one.values.family).encoders)]


def _schedule(one: Source) -> None:
    name = str(one.get("learning_rate_scheduler", "CONSTANT"))
    if name not in SCHEDULES:
        one.note(f"learning_rate_scheduler = {name}", "it is not here; constant is taken")
    kind, warmup = SCHEDULES.get(name, "constant"), one.number("learning_rate_warmup_steps", 200.0)
    if kind == "constant" and warmup:
        kind = "constant_with_warmup"
    one.set("lr_scheduler", kind)
    one.set(
        "lr_warmup_steps", (int(warmup) if warmup > 1 else warmup) if kind not in ("constant", "adafactor") else None
    )
    if "restarts" in kind:
        one.set("lr_scheduler_num_cycles", max(1, int(one.number("learning_rate_cycles", 1.0))))
    one.left_out("learning_rate_min_factor")
    if one.get("learning_rate_scaler", "NONE") != "NONE":
        one.left_out("learning_rate_scaler", why="the learning rate is taken as it is written")


def _loss(one: Source) -> None:
    mse, mae, huber = (
        one.number(f"{name}_strength", default) for name, default in (("mse", 1), ("mae", 0), ("huber", 0))
    )
    if mae:
        one.option("loss.l1.weight", mae)
    if huber:
        one.option("loss.huber.weight", huber)
        one.option("loss.huber.c", one.number("huber_delta", 1.0))
        one.option("loss.huber.schedule", "constant")
    if mse and (mse != 1 or mae or huber):
        one.option("loss.mse.weight", mse)
    one.left_out("log_cosh_strength")
    weight, strength = str(one.get("loss_weight_fn", "CONSTANT")), one.number("loss_weight_strength", 5.0)
    if weight == "MIN_SNR_GAMMA":
        one.set("min_snr_gamma", strength, "loss_weight_strength")
    elif weight == "DEBIASED_ESTIMATION":
        one.set("debiased_estimation_loss", True)
    elif weight != "CONSTANT":
        one.note(f"loss_weight_fn = {weight}", "it is not here; the loss is not weighted")


# --------------------------------------------------------------------------------------------- concepts and samples


def _listed(one: Source, name: str, file: str, default: str) -> list[Mapping[str, Any]] | None:
    """A list in the configuration, or in the file that it names; None where that is not here."""
    if one.get(name) is not None:
        return one.rows(name)
    named = str(one.get(file, default)).replace("\\", "/")
    for path in (Path(named).expanduser(), one.path.parent / named, one.path.parent.parent / named):
        if path.is_file():
            found = parsed_json(path, read_text(path))
            return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    if file in one.raw:
        one.note(file, f"{named} is not on this machine; left out")
    return None


def _concepts(one: Source) -> None:
    concepts = _listed(one, "concepts", "concept_file_name", "training_concepts/concepts.json")
    sets: list[dict[str, Any]] = []
    for row in concepts or []:
        concept = Source(one.values, row, one.path)
        if not concept.on("enabled", True) or not concept.get("path"):
            continue
        if concept.get("type", "STANDARD") == "VALIDATION":
            concept.note(f"the concept {concept.get('name') or concept.get('path')}", "it is for validation; left out")
            continue
        sets.append(_concept(concept))
    if sets:
        one.option("data.sets", sets)
    elif concepts is None:
        one.note("concepts", "none are named here; write the folders of pictures into [[data.sets]]")


def _concept(one: Source) -> dict[str, Any]:
    found: dict[str, Any] = {"path": str(one.get("path"))}
    if one.on("include_subdirectories"):
        found["recursive"] = True
    balancing = one.number("balancing", 1.0)
    if one.get("balancing_strategy", "REPEATS") == "REPEATS":
        found["repeats"] = max(1, round(balancing))
        if balancing != found["repeats"]:
            one.note(f"balancing = {balancing:g}", f"repeats are whole here; {found['repeats']} is taken")
    else:
        one.note(f"balancing = {balancing:g} samples", "each picture is seen once an epoch")
    if one.get("type") == "PRIOR_PREDICTION":
        found["preserve"] = True
    source = str(one.get("text.prompt_source", "sample"))
    if source == "concept":
        found["caption"] = _words(one, str(one.get("text.prompt_path", "")))
    elif source == "filename":
        one.note(f"the concept {one.get('path')}", "captions from file names are not here; write them into .txt files")
    if one.on("text.enable_tag_shuffling"):
        found |= {"shuffle": True, "keep_tokens": int(one.number("text.keep_tags_count", 1))}
        found["separator"] = str(one.get("text.tag_delimiter", ",")) or ","
    if one.on("text.tag_dropout_enable"):
        found["tag_dropout"] = one.number("text.tag_dropout_probability", 0.0)
    if one.on("image.enable_random_flip"):
        found["flip"] = True
    if one.on("image.enable_resolution_override"):
        found["resolution"] = int(one.number("image.resolution_override", 512))
    if one.number("loss_weight", 1.0) != 1.0:
        one.left_out("loss_weight", why="the pictures of a set weigh 1 here")
    one.left_out(*(f"image.enable_random_{name}" for name in ("rotate", "brightness", "contrast", "saturation", "hue")))
    return found


def _words(one: Source, named: str) -> str:
    """The prompt of a concept, from its file: the first line."""
    path = Path(named).expanduser()
    if not path.is_file():
        one.note("text.prompt_path", f"{named} is not on this machine; write its text into caption")
        return ""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if len(lines) > 1:
        one.note("text.prompt_path", f"the first of {len(lines)} prompts is taken for all")
    return lines[0] if lines else ""


def _samples(one: Source) -> None:
    rows = _listed(one, "samples", "sample_definition_file_name", "training_samples/samples.json") or []
    prompts = []
    for row in rows:
        if row.get("enabled", True) and str(row.get("prompt", "")).strip():
            flags = {"n": row.get("negative_prompt"), "w": row.get("width"), "h": row.get("height"),
                     "d": None if row.get("random_seed") else row.get("seed"), "s": row.get("diffusion_steps"),
                     "l": row.get("cfg_scale")}  # fmt: skip
            prompts.append(prompt_line(str(row["prompt"]), flags))
    if prompts:
        one.option("sample.prompts", prompts)
    unit, every = str(one.get("sample_after_unit", "MINUTE")), int(one.number("sample_after", 10))
    if unit in ("EPOCH", "STEP") and every:
        one.set("sample_every_n_epochs" if unit == "EPOCH" else "sample_every_n_steps", every, "sample_after")
    elif prompts and unit not in ("NEVER", "EPOCH", "STEP"):
        one.note(f"sample_after = {every} {unit}", "previews are drawn by steps or epochs; at the end alone")
