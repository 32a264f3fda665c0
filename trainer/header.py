"""What an adapter file says of its training: Kohya's ss_* names and modelspec, from the parts of a run."""

from __future__ import annotations

import json
import time
from typing import Any

from .adapters import files
from .build import Parts


def metadata(parts: Parts, step: int, started: float) -> dict[str, str]:
    """The header of the file saved after ``step`` steps of a run that began at ``started`` (seconds since 1970)."""
    config, adapter, data = parts.config, parts.adapter, parts.dataset
    run, save, optimizer = config.run, config.save, config.optimizer
    report = data.report
    shared = config.data.shared()
    sft = next((o for _, o in config.terms().values() if o.kind == "sft"), None)  # pyright: ignore[reportAttributeAccessIssue]
    name = type(parts.optimizer)
    arguments = ",".join(
        f"{k}={v}" for k, v in {"weight_decay": optimizer.weight_decay, **optimizer.args}.items() if v is not None
    )
    side = config.data.resolution or parts.family.kind.resolution
    size = (side, side) if isinstance(side, int) else tuple(side)
    facts: dict[str, Any] = {
        "session_id": int(started),
        "training_started_at": started,
        "training_finished_at": time.time(),
        "output_name": run.name,
        "learning_rate": optimizer.learning_rate,
        "unet_lr": optimizer.denoiser_lr,
        "text_encoder_lr": optimizer.text_encoder_lr,
        "num_train_images": sum(f["samples"] for f in report["folders"] if not f["is_reg"]),
        "num_validation_images": report["held_out"],
        "num_reg_images": sum(f["samples"] for f in report["folders"] if f["is_reg"]),
        "num_batches_per_epoch": data.steps_per_epoch * run.accumulation,
        "num_epochs": -(-parts.total // data.steps_per_epoch),
        "epoch": -(-step // data.steps_per_epoch),
        "steps": step,
        "max_train_steps": parts.total,
        "gradient_checkpointing": config.memory.gradient_checkpointing,
        "gradient_accumulation_steps": run.accumulation,
        "lr_warmup_steps": config.schedule.warmup,
        "lr_scheduler": config.schedule.kind,
        "network_dropout": config.adapter.dropout or None,
        "mixed_precision": {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(parts.dtype), "no"),
        "full_fp16": False,
        "clip_skip": config.model.clip_skip,
        "max_token_length": None if config.model.max_tokens == 75 else config.model.max_tokens,
        "cache_latents": config.data.cache_latents != "off",
        "seed": run.seed,
        "lowram": False,
        "noise_offset": config.noise.noise_offset or None,
        "noise_offset_random_strength": config.noise.noise_offset_random_strength,
        "multires_noise_iterations": config.noise.multires_iterations or None,
        "multires_noise_discount": config.noise.multires_discount,
        "adaptive_noise_scale": config.noise.adaptive_noise_scale or None,
        "zero_terminal_snr": bool(config.model.zero_terminal_snr),
        "training_comment": save.comment,
        "optimizer": f"{name.__module__}.{name.__name__}({arguments})",
        "max_grad_norm": optimizer.max_grad_norm,
        "caption_dropout_rate": shared.caption_dropout,
        "caption_dropout_every_n_epochs": shared.caption_dropout_every_n_epochs,
        "caption_tag_dropout_rate": shared.tag_dropout,
        "prior_loss_weight": config.data.prior_loss_weight,
        "min_snr_gamma": getattr(sft, "min_snr_gamma", None),
        "scale_weight_norms": config.adapter.scale_weight_norms,
        "ip_noise_gamma": config.noise.ip_noise_gamma or None,
        "ip_noise_gamma_random_strength": config.noise.ip_noise_gamma_random_strength,
        "debiased_estimation": getattr(sft, "debiased_estimation_loss", False),
        "loss_type": next(({"mse": "l2"}.get(n, n) for n in config.terms()), "l2"),
        "validation_seed": config.data.validation_seed,
        "validation_split": config.data.validation_split,
        "resolution": str(size),
        "enable_bucket": shared.buckets,
        "flip_aug": shared.flip,
        "shuffle_caption": shared.shuffle,
        "batch_size_per_device": run.batch,
        "total_batch_size": run.batch * run.accumulation * parts.world,
        "tag_frequency": data.tag_frequency(),
        "dataset_dirs": {f["name"]: {"n_repeats": f["repeats"], "img_count": f["items"]} for f in report["folders"]},
        "bucket_info": {
            "buckets": {
                str(i): {"resolution": [b["width"], b["height"]], "count": b["samples"]}
                for i, b in enumerate(report["buckets"])
            },
            "mean_img_ar_error": report["mean_aspect_error"],
        },
        **{
            k.removeprefix("ss_"): v
            for k, v in parts.family.metadata().items()
            if k.startswith(("ss_sd_", "ss_new_", "ss_vae_"))
        },
    }
    spec = {
        "title": save.title or run.name,
        "author": save.author,
        "description": save.description,
        "license": save.license,
        "tags": save.tags,
        "trigger_phrase": save.trigger or shared.trigger,
        "resolution": f"{size[0]}x{size[1]}",
        "encoder_layer": config.model.clip_skip,
    }
    return files.metadata(
        parts.family.name,
        adapter.kind,
        facts,
        rank=adapter.rank,
        alpha=adapter.alpha,
        network_args=adapter.network_args(),
        spec=spec,
        config=json.loads(config.model_dump_json(exclude_none=True)),
        prediction=parts.process.prediction,
        strip=save.strip,
    )
