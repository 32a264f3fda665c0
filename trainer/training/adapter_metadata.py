"""The metadata of an adapter file: Kohya's ss_* names and modelspec, from a session."""

from __future__ import annotations

import json
import time
from typing import Any

from ..adapters import files
from ..data.buckets import rules
from ..objectives.options import SftOptions
from . import checkpoint
from .session import Session
from .surrogates import digests


def metadata(session: Session, step: int, started: float) -> dict[str, str]:
    """The header of the file saved after ``step`` steps of a run that began at ``started`` (seconds since 1970)."""
    config, adapter, data = session.config, session.model.adapter, session.dataset
    run, save, optimizer = config.run, config.save, config.optimizer
    report = data.report
    shared = config.data.shared()
    sft = next((o for _, o in config.terms().values() if isinstance(o, SftOptions)), None)
    name = type(session.optimization.optimizer)
    arguments = ",".join(
        f"{k}={v}" for k, v in {"weight_decay": optimizer.weight_decay, **optimizer.args}.items() if v is not None
    )
    size, low, high = data.resolution, shared.bucket_min, shared.bucket_max
    huber = config.loss.terms().get("huber")
    sets = [one for _, one in config.data.named_sets()]
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
        "num_batches_per_epoch": data.batches_per_epoch(run.accumulation),
        "num_epochs": -(-session.total // data.steps_per_epoch),
        "epoch": -(-step // data.steps_per_epoch),
        "steps": step,
        "max_train_steps": session.total,
        "gradient_checkpointing": config.memory.gradient_checkpointing,
        "gradient_accumulation_steps": run.accumulation,
        "lr_warmup_steps": config.schedule.warmup,
        "lr_scheduler": config.schedule.kind,
        "network_dropout": config.adapter.dropout or None,
        "mixed_precision": {"torch.bfloat16": "bf16", "torch.float16": "fp16"}.get(str(session.model.dtype), "no"),
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
        "face_crop_aug_range": next((one.face_crop for one in sets if one.face_crop), None),
        "prior_loss_weight": config.data.prior_loss_weight,
        "min_snr_gamma": sft and sft.min_snr_gamma,
        "scale_weight_norms": config.adapter.scale_weight_norms,
        "ip_noise_gamma": config.noise.ip_noise_gamma or None,
        "ip_noise_gamma_random_strength": config.noise.ip_noise_gamma_random_strength,
        "debiased_estimation": sft is not None and sft.debiased_estimation_loss,
        **({f"huber_{k}": getattr(huber, k) for k in ("schedule", "scale", "c")} if huber else {}),
        "loss_type": next(({"mse": "l2"}.get(n, n) for n in config.terms()), "l2"),
        "validation_seed": config.data.validation_seed,
        "validation_split": config.data.validation_split,
        "max_validation_steps": config.validation.max_batches,
        "validate_every_n_epochs": config.validation.every_epochs or None,
        "validate_every_n_steps": config.validation.every or None,
        "resize_interpolation": None if shared.interpolation == "auto" else shared.interpolation,
        "resolution": str(size),
        "enable_bucket": shared.buckets,
        "bucket_no_upscale": shared.no_upscale,
        "min_bucket_reso": low or min(size) // 2,
        "max_bucket_reso": high or 2 * max(size),
        "color_aug": any(one.color for one in sets),
        "flip_aug": any(one.flip for one in sets),
        "random_crop": any(one.random_crop for one in sets),
        "shuffle_caption": any(one.shuffle for one in sets),
        "keep_tokens": max(one.keep_tokens for one in sets),
        "batch_size_per_device": run.batch,
        "total_batch_size": run.batch * run.accumulation * session.world,
        "tag_frequency": data.tag_frequency(),
        "dataset_dirs": _folders(report, False),
        "reg_dataset_dirs": _folders(report, True),
        "bucket_info": {
            "buckets": {
                str(i): {"resolution": [b["width"], b["height"]], "count": b["samples"]}
                for i, b in enumerate(report["buckets"])
            },
            "mean_img_ar_error": report["mean_aspect_error"],
        },
        **({"pixel_surrogate": used["pixel"]} if (used := digests(session)) else {}),
        **({"datasets": _datasets(session)} if len({one.pool for one in sets}) > 1 else {}),
        **{
            k.removeprefix("ss_"): v
            for k, v in session.model.family.metadata().items()
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
        "timestep_range": _range(config.noise.min_timestep, config.noise.max_timestep),
        "usage_hint": save.usage_hint,
        "thumbnail": checkpoint.thumbnail(save),
        "merged_from": save.merged_from,
        "preprocessor": save.preprocessor,
        "is_negative_embedding": save.is_negative_embedding,
    }
    made = files.metadata(
        session.model.family.name,
        adapter.kind,
        facts,
        rank=adapter.rank,
        alpha=adapter.alpha,
        network_args=adapter.network_args(),
        spec=spec,
        config=json.loads(config.model_dump_json(exclude_none=True)),
        prediction=session.model.family.process.prediction,
        strip=save.strip,
        minimal=save.minimal,
    )
    return made | session.model.system.metadata(size)


def _folders(report: dict[str, Any], reg: bool) -> dict[str, Any]:
    """Kohya's ss_dataset_dirs; a name that two sets share is numbered."""
    found: dict[str, Any] = {}
    for one in (f for f in report["folders"] if f["is_reg"] == reg):
        name, number = one["name"], 2
        while name in found:
            name, number = f"{one['name']} ({number})", number + 1
        found[name] = {"n_repeats": one["repeats"], "img_count": one["items"]}
    return found


def _datasets(session: Session) -> list[dict[str, Any]]:
    """Kohya's ss_datasets: what each pool of sets is."""
    data, found = session.dataset, []
    tags, folders = data.tag_frequency(), data.report["folders"]
    for pool in dict.fromkeys(one.pool for one in data.scan.sets):
        mine = [(i, one) for i, one in enumerate(data.scan.sets) if one.pool == pool]
        first, shape = mine[0][1], rules(mine[0][1], data.native)
        rows = [row for row in data.plan.rows if row[4] == (pool, first.batch or 0)]
        found.append({
            "is_dreambooth": first.metadata is None,
            "batch_size_per_device": first.batch or session.config.run.batch,
            "num_train_images": sum(folders[i]["samples"] for i, one in mine if not one.is_reg),
            "num_reg_images": sum(folders[i]["samples"] for i, one in mine if one.is_reg),
            "resolution": list(shape.resolution),
            "enable_bucket": first.buckets,
            "min_bucket_reso": shape.low,
            "max_bucket_reso": shape.high,
            "tag_frequency": {data.scan.names[i]: tags.get(data.scan.names[i], {}) for i, _ in mine},
            "bucket_info": {"buckets": {str(i): {"resolution": list(r[0]), "count": r[1]} for i, r in enumerate(rows)}},
            "resize_interpolation": None if first.interpolation == "auto" else first.interpolation,
            "subsets": [
                {
                    "img_count": folders[i]["items"], "num_repeats": one.repeats, "color_aug": one.color,
                    "flip_aug": one.flip, "random_crop": one.random_crop, "shuffle_caption": one.shuffle,
                    "keep_tokens": one.keep_tokens, "keep_tokens_separator": one.keep_tokens_separator,
                    "secondary_separator": one.secondary_separator, "enable_wildcard": one.wildcards,
                    "caption_prefix": one.prefix, "caption_suffix": one.suffix, "image_dir": data.scan.names[i],
                    "class_tokens": one.caption, "is_reg": one.is_reg,
                }
                for i, one in mine
            ],
        })  # fmt: skip
    return found


def _range(low: int, high: int) -> str | None:
    return f"{low},{high}" if (low, high) != (0, 1000) else None
