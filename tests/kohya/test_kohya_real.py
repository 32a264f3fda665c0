"""Configurations that other people have published: read, and run for two steps on tiny models.

Only the settings are kept, as far as they are quoted at the place named; folders and step counts are this test's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from short_runs import model, pictures

from pixelkiln.trainer.kohya.entrance import load, take
from pixelkiln.trainer.training.loop import train

COMMON = {"max_resolution": "1024,1024", "enable_bucket": True, "max_bucket_reso": 2048, "lr_warmup": 0, "sdxl": True,
          "caption_extension": ".txt", "sdxl_no_half_vae": True, "cache_latents": True, "prior_loss_weight": 1.0,
          "noise_offset_type": "Original", "gradient_checkpointing": True, "max_timestep": 1000,
          "max_token_length": "75", "num_cpu_threads_per_process": 2, "clip_skip": "1", "seed": ""}  # fmt: skip
"""What the GUI's files have in common."""

FOUND: dict[str, tuple[str, str, str, Any]] = {
    # name: (family, form, where it is from, settings)
    "prodigy": ("sdxl", "json", "bmaltais/kohya_ss presets/lora/SDXL - LoRA AI_Now prodigy v1.0.json", {
        **COMMON, "LoRA_type": "Standard", "optimizer": "Prodigy", "network_dim": 32, "network_alpha": 16,
        "optimizer_args": "weight_decay=0.01 decouple=True d0=0.0001 use_bias_correction=True", "learning_rate": 1.0,
        "unet_lr": 1.0, "text_encoder_lr": 1.0, "lr_scheduler": "constant", "min_snr_gamma": 5, "train_batch_size": 8,
        "scale_weight_norms": 5, "bucket_no_upscale": True, "bucket_reso_steps": 32, "mixed_precision": "bf16",
        "save_every_n_epochs": 10, "training_comment": "trigger: the queen of heart 1a", "xformers": "xformers"}),
    "lora sd15": ("sd15", "json", "bmaltais/kohya_ss presets/lora/sd15 - EDG_LoraOptiSettings.json", {
        "LoRA_type": "Standard", "bucket_no_upscale": True, "bucket_reso_steps": 64.0, "cache_latents": True,
        "caption_extension": ".txt", "clip_skip": 2, "conv_alpha": 1, "conv_dim": 1, "epoch": 1, "seed": "1234",
        "gradient_accumulation_steps": 1.0, "learning_rate": "0.0001", "lr_scheduler": "constant", "xformers": True,
        "max_data_loader_n_workers": "1", "max_resolution": "512,650", "max_token_length": "75", "mem_eff_attn": True,
        "mixed_precision": "bf16", "network_alpha": 64, "network_dim": 64, "noise_offset": "0.05",
        "optimizer": "AdamW8bit", "save_every_n_epochs": 1, "text_encoder_lr": "5e-05", "unet_lr": "0.0001",
        "train_batch_size": 3, "enable_bucket": False}),
    "loha": ("sdxl", "json", "bmaltais/kohya_ss presets/lora/SDXL - LoHA AI_Characters v1.0.json", {
        **COMMON, "LoRA_type": "LyCORIS/LoHa", "bucket_reso_steps": 32, "caption_dropout_rate": 0.05, "conv_dim": 16,
        "conv_alpha": 16, "learning_rate": 0.001, "unet_lr": 0.001, "text_encoder_lr": 0.001, "network_dim": 32,
        "network_alpha": 32, "max_train_epochs": "100", "min_snr_gamma": 5, "mixed_precision": "fp16",
        "optimizer": "AdamW8bit", "scale_weight_norms": 2.5, "train_batch_size": 8, "xformers": True, "factor": -1}),
    "adafactor": ("sdxl", "json", "bmaltais/kohya_ss presets/lora/SDXL - LoRA adafactor v1.0.json", {
        **COMMON, "LoRA_type": "Standard", "adaptive_noise_scale": 0.00357, "noise_offset": 0.0357, "keep_tokens": 1,
        "additional_parameters": "--log_prefix=xl-loha", "caption_extension": ".txt2", "learning_rate": 1.0,
        "unet_lr": 1.0, "text_encoder_lr": 1.0, "lr_scheduler": "adafactor", "optimizer": "Adafactor",
        "network_dim": 128, "network_alpha": 128, "min_bucket_reso": 64, "mixed_precision": "bf16",
        "scale_weight_norms": 1, "train_batch_size": 5, "xformers": True, "max_train_epochs": "30"}),
    "gui toml": ("sdxl", "toml", "https://github.com/bmaltais/kohya_ss/issues/2326", {
        "bucket_no_upscale": True, "bucket_reso_steps": 64, "cache_latents": True, "cache_latents_to_disk": True,
        "caption_dropout_every_n_epochs": 0, "caption_dropout_rate": 0, "caption_extension": ".txt", "clip_skip": 2,
        "debiased_estimation_loss": True, "dynamo_backend": "no", "enable_bucket": True, "epoch": 12,
        "gradient_accumulation_steps": 1, "huber_c": 0.1, "huber_schedule": "snr", "keep_tokens": 1, "loss_type": "l2",
        "learning_rate": 1.0, "logging_dir": "D:/Training/log", "lr_scheduler": "cosine", "lr_scheduler_args": [],
        "lr_scheduler_num_cycles": 1, "lr_scheduler_power": 1, "lr_warmup_steps": 0, "max_bucket_reso": 2048,
        "max_data_loader_n_workers": 0, "max_grad_norm": 1, "max_timestep": 1000, "max_token_length": 225,
        "max_train_steps": 1960, "min_bucket_reso": 512, "min_snr_gamma": 5, "mixed_precision": "bf16"}),
    "locon toml": ("sdxl", "toml", "https://github.com/bmaltais/kohya_ss/issues/1641", {
        "additional_network_arguments": {
            "no_metadata": False, "unet_lr": 0.0001, "text_encoder_lr": 5e-5, "network_module": "locon.locon_kohya",
            "network_dim": 64, "network_alpha": 32, "network_args": ["conv_dim=64", "conv_alpha=32"],
            "network_train_unet_only": False, "network_train_text_encoder_only": False},
        "optimizer_arguments": {
            "optimizer_type": "AdamW8bit", "learning_rate": 0.0001, "max_grad_norm": 1.0, "lr_scheduler": "constant",
            "optimizer_args": ["weight_decay=0.6"], "lr_warmup_steps": 0},
        "dataset_arguments": {"cache_latents": True, "debug_dataset": False},
        "training_arguments": {
            "output_name": "zoe2023", "save_precision": "fp16", "save_every_n_epochs": 1, "train_batch_size": 6,
            "max_token_length": 225, "mem_eff_attn": False, "xformers": True, "max_train_epochs": 10,
            "max_data_loader_n_workers": 8, "persistent_data_loader_workers": True, "gradient_checkpointing": True,
            "gradient_accumulation_steps": 1, "mixed_precision": "fp16", "clip_skip": 2, "noise_offset": 0.1,
            "log_prefix": "zoe2023", "lowram": True},
        "sample_prompt_arguments": {"sample_every_n_epochs": 1, "sample_sampler": "ddim"},
        "dreambooth_arguments": {"prior_loss_weight": 1.0},
        "saving_arguments": {"save_model_as": "safetensors"}}),
    "amd": ("sdxl", "json", "https://github.com/bmaltais/kohya_ss/issues/1484", {
        "LoRA_type": "Standard", "bucket_reso_steps": 64, "cache_latents": True, "cache_latents_to_disk": True,
        "caption_dropout_rate": 0.05, "caption_extension": ".txt", "clip_skip": "1", "conv_dim": 1, "epoch": 50,
        "enable_bucket": False, "gradient_accumulation_steps": "1", "gradient_checkpointing": True,
        "keep_tokens": "0", "learning_rate": 3e-05, "lora_network_weights": "", "lr_scheduler": "constant",
        "lr_scheduler_args": "", "lr_scheduler_num_cycles": "", "lr_warmup": 0, "max_bucket_reso": 2048,
        "max_data_loader_n_workers": "0", "max_resolution": "1024,1024", "max_timestep": 1000,
        "max_token_length": "75", "max_train_epochs": "50", "max_train_steps": "", "mem_eff_attn": True}),
    "2023": ("sd15", "json", "https://github.com/KohakuBlueleaf/LyCORIS/issues/28", {
        "v2": False, "v_parameterization": False, "max_resolution": "768,768", "learning_rate": "0.0001",
        "lr_scheduler": "constant", "lr_warmup": "0", "train_batch_size": 6, "epoch": 10, "save_every_n_epochs": 1,
        "mixed_precision": "bf16", "save_precision": "bf16", "seed": "", "num_cpu_threads_per_process": 4,
        "cache_latents": True, "caption_extension": "", "enable_bucket": True, "gradient_checkpointing": False,
        "full_fp16": False, "no_token_padding": False, "stop_text_encoder_training": 0, "xformers": True,
        "save_model_as": "safetensors", "shuffle_caption": True, "save_state": False, "prior_loss_weight": 1.0,
        "text_encoder_lr": "5e-5", "unet_lr": "0.0001", "network_dim": 32, "color_aug": False, "flip_aug": False,
        "clip_skip": 2, "gradient_accumulation_steps": 1.0, "mem_eff_attn": False, "output_name": "Dehya"}),
    "guide": ("sd15", "flags", "kohya-ss/sd-scripts docs/train_network.md", (
        "--output_name=my_lora --save_model_as=safetensors --network_module=networks.lora --network_dim=16 "
        "--network_alpha=1 --learning_rate=1e-4 --optimizer_type=AdamW8bit --lr_scheduler=constant --sdpa "
        "--max_train_epochs=10 --save_every_n_epochs=1 --mixed_precision=fp16 --gradient_checkpointing")),
    "sd3 guide": ("sd3", "flags", "kohya-ss/sd-scripts docs/sd3_train_network.md, without its blocks_to_swap", (
        "--output_name=my_sd3_lora --save_model_as=safetensors --network_module=networks.lora --network_dim=16 "
        "--network_alpha=1 --learning_rate=1e-4 --optimizer_type=AdamW8bit --lr_scheduler=constant --sdpa "
        "--max_train_epochs=10 --save_every_n_epochs=1 --mixed_precision=fp16 --gradient_checkpointing "
        "--weighting_scheme=uniform")),
}  # fmt: skip


def read(name: str, root: Path):
    """(configuration, notes) of a published configuration, on a tiny model and four pictures."""
    family, form, _, settings = FOUND[name]
    pictures(root / "img" / "1_cat", 4)
    flags = settings.split() if form == "flags" else ["--config_file", str(root / f"their.{form}")]
    if form == "json":
        (root / "their.json").write_text(json.dumps(settings), "utf-8")
    elif form == "toml":
        (root / "their.toml").write_text(tomlkit.dumps(settings), "utf-8")
    tiny = model(root / family, "sd3-medium" if family == "sd3" else family)
    mine = {"pretrained_model_name_or_path": tiny, "train_data_dir": root / "img", "output_dir": root / "runs",
            "output_name": "t", "resolution": 64, "min_bucket_reso": 64, "train_batch_size": 2, "seed": 1}  # fmt: skip
    flags += [f"--{key}={value}" for key, value in mine.items()]
    return load(take([*flags, "--run.device=cpu", "--run.precision=fp32"])[0])


@pytest.mark.parametrize("name", FOUND)
def test_a_published_configuration_is_read(name, tmp_path):
    config, _ = read(name, tmp_path)
    _, form, _, settings = FOUND[name]
    if form == "json" and "network_dim" in settings:
        assert config.adapter.rank == settings["network_dim"]
        assert config.adapter.alpha == settings.get("network_alpha", 1)
        assert config.optimizer.learning_rate == float(settings["learning_rate"])


@pytest.mark.nightly
@pytest.mark.parametrize("name", FOUND)
def test_a_published_configuration_trains_two_steps(name, tmp_path):
    config, _ = read(name, tmp_path)
    short = config.model_copy(update={"run": config.run.model_copy(update={"steps": 2, "epochs": None})})
    assert train(short) == 0
    assert (tmp_path / "runs" / "t" / "t.safetensors").exists()
