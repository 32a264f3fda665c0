"""Files of the GUI of kohya_ss in all its versions, and of other trainers: read, or named as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import yaml

from pixelkiln.trainer import config as c
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.kohya.entrance import imported, load, take

SAVED: dict[str, Any] = {
    "LoRA_type": "Standard", "LyCORIS_preset": "full", "pretrained_model_name_or_path": "base.safetensors",
    "network_dim": 8, "network_alpha": 4, "learning_rate": 1e-4, "unet_lr": 1e-4, "text_encoder_lr": 5e-5, "epoch": 2,
    "optimizer": "AdamW", "lr_scheduler": "cosine", "max_resolution": "512,512", "train_batch_size": 2, "seed": 1,
    "caption_extension": ".txt", "mixed_precision": "bf16", "enable_bucket": True, "bucket_reso_steps": 64,
    "sdxl": False, "flux1_checkbox": False, "sd3_checkbox": False,
}  # fmt: skip
"""What the LoRA tab writes, shortened."""
V25 = {"flux1_cache_text_encoder_outputs": False, "img_attn_dim": "4", "img_mlp_dim": "", "img_mod_dim": "",
       "single_dim": "8", "single_mod_dim": "2", "txt_attn_dim": "", "txt_mlp_dim": "", "txt_mod_dim": "",
       "in_dims": "", "train_double_block_indices": "all", "train_single_block_indices": "all", "guidance_scale": 3.5,
       "discrete_flow_shift": 3.0, "timestep_sampling": "sigma", "model_prediction_type": "sigma_scaled",
       "t5xxl_max_token_length": 512, "apply_t5_attn_mask": True, "train_blocks": "all", "unit": 1,
       "blocks_to_swap": 18, "weighting_scheme": "logit_normal", "clip_g": "clip_g.safetensors"}  # fmt: skip
V26 = {"hunyuan_vae": "x", "hunyuan_attn_mode": "torch", "anima_vae": "y", "anima_compile": True, "lumina_ae": "z",
       "anima_compile_cache_size_limit": 8, "lumina_system_prompt": "You are", "hunyuan_image_checkbox": False,
       "anima_checkbox": False, "lumina_checkbox": False}  # fmt: skip
FUTURE = {"zimage_vae": "v", "flux2_clip_l": "c", "sd5_checkbox": False, "learning_rate_scale_mode": "fast"}


def written(folder: Path, content: Any, name: str = "saved.json") -> Path:
    path = folder / name
    text = content if isinstance(content, str) else (
        yaml.safe_dump(content) if name.endswith("ml") and "toml" not in name else
        tomlkit.dumps(content) if name.lower().endswith(".toml") else json.dumps(content))  # fmt: skip
    path.write_text(text, "utf-8")
    return path


def read(path: Path, *words: str) -> tuple[dict[str, Any], list[str]]:
    toml, notes = imported(take(list(words))[0], path)
    return c.loads(toml), notes


# ------------------------------------------------------------------------------------------------------------ the GUI


@pytest.mark.parametrize("more", [{}, V25, {**V25, **V26}, {**V25, **V26, **FUTURE}], ids=["24", "25", "26", "27"])
def test_a_file_of_any_version_of_the_gui_is_read(more, tmp_path):
    raw, notes = read(written(tmp_path, {**SAVED, **more}))
    assert raw["adapter"]["rank"] == 8
    plain, quiet = read(written(tmp_path, SAVED, "plain.json"))
    assert raw == plain, "another family's settings change nothing"
    assert [one for one in notes if one not in quiet] == (
        ["saved.json: learning_rate_scale_mode: not known here; left out"] if "zimage_vae" in more else [])  # fmt: skip


def test_a_slip_is_found_where_its_setting_is_missing(tmp_path):
    """A file that the GUI wrote holds them all; one that was written by hand may have slips."""
    slip = {name: value for name, value in SAVED.items() if name != "network_alpha"} | {"network_alhpa": 4}
    with pytest.raises(c.ConfigError, match="network_alhpa: the GUI has no such setting; did you mean network_alpha"):
        read(written(tmp_path, slip))
    assert read(written(tmp_path, {**SAVED, "network_alpha2": 4}))[0]["adapter"]["alpha"] == 4


@pytest.mark.parametrize("name", ["lowvram", "use_wandb", "hunyuan_vae", "train_double_block_indices", "flux1_ae"])
def test_what_the_gui_writes_into_its_toml_beside_arguments(name, tmp_path):
    path = written(tmp_path, {"pretrained_model_name_or_path": "m", "network_dim": 8, name: True}, "gui.toml")
    assert not any(name in note for note in read(path)[1])


def test_arguments_of_networks_that_the_gui_writes_beside_them_are_noted(tmp_path):
    path = written(tmp_path, {"network_dim": 8, "loraplus_lr_ratio": 4, "lora_network_weights": "a"}, "gui.toml")
    notes = "\n".join(read(path)[1])
    assert "loraplus_lr_ratio has no effect" in notes and "write network_weights" in notes


@pytest.mark.parametrize(
    ("given", "family", "step"), [(1, False, 64), (1, True, 32), (32, False, 64), (70, False, 64), (100, True, 96)]
)
def test_a_step_of_buckets_is_rounded_with_a_note(given, family, step, tmp_path):
    raw, notes = read(written(tmp_path, {**SAVED, "sdxl": family, "bucket_reso_steps": given}))
    assert raw["data"]["bucket_step"] == step
    assert any(f"bucket_reso_steps: {given} is no multiple of" in note for note in notes)
    data = {"datasets": [{"bucket_reso_steps": given, "enable_bucket": True, "subsets": [{"image_dir": "img"}]}]}
    path = written(tmp_path, data, "data.toml")
    flags = ["--dataset_config", str(path)]
    raw, _ = read(written(tmp_path, {**SAVED, "sdxl": family}, "b.json"), *flags)
    assert raw["data"]["sets"][0].get("bucket_step", raw["data"]["bucket_step"]) == step


@pytest.mark.parametrize(
    ("own", "tab"),
    [
        ({"learning_rate_te": 1e-5, "learning_rate_te1": 1e-5, "learning_rate_te2": 0}, "DreamBooth"),
        ({}, "DreamBooth"),
        ({"train_dir": "t", "image_folder": "i", "sdxl_checkbox": True, "learning_rate_te": 1}, "Fine-tuning"),
        ({"token_string": "x", "init_word": "y", "num_vectors_per_token": 4}, "Textual Inversion"),
        ({"leco_denoise_guidance_scale": 3, "network_dim": 4, "network_alpha": 1, "unet_lr": 1}, "LECO"),
    ],
)
def test_files_of_the_other_tabs_are_named_in_one_line(own, tab, tmp_path):
    names = {"LoRA_type", "LyCORIS_preset", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr"}
    base = {name: value for name, value in SAVED.items() if name not in names}
    with pytest.raises(UserError, match=f"is of the GUI's {tab} tab") as caught:
        read(written(tmp_path, {**base, **own}))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- other things in JSON

NAMED: dict[str, tuple[Any, str]] = {
    "captions": ({"a.png": {"caption": "a cat"}, "b.png": {"tags": "dog"}}, "these are captions"),
    "texts": ({"a.png": "a cat", "b.jpg": "a dog"}, "these are captions"),
    "npm": ({"name": "x", "version": "1.0.0", "scripts": {}}, "no settings of a training"),
    "nothing": ({}, "no settings of a training"),
    "list": ([1, 2], "it holds no settings"),
    "text": ('"text"', "it holds no settings"),
    "simpletuner": ({"--model_type": "lora", "--model_family": "sdxl", "--learning_rate": "1e-4"}, "SimpleTuner"),
    "simpletuner new": ({"model_type": "lora", "model_family": "sd1x", "pretrained_model_name_or_path": "m",
                         "learning_rate": 1e-4, "optimizer": "adamw_bf16", "train_batch_size": 1}, "SimpleTuner"),
    "simpletuner data": ([{"id": "d", "type": "local", "instance_data_dir": "i"}], "SimpleTuner's data"),
    "lycoris": ({"algo": "lokr", "linear_dim": 16, "apply_preset": {}}, "SimpleTuner's .* LyCORIS"),
    "concepts": ([{"path": "p", "text": {}, "image": {}}], "OneTrainer's concepts"),
    "workflow": ({"nodes": [], "links": [], "version": 0.4}, "ComfyUI"),
    "prompt": ({"3": {"class_type": "KSampler", "inputs": {}}}, "ComfyUI"),
    "metadata": ({"ss_network_dim": "8", "ss_sd_model_name": "x"}, "metadata of a finished adapter"),
    "data set": ({"datasets": []}, "give it as --dataset_config"),
    "onetrainer whole": ({"training_method": "FINE_TUNE", "model_type": "STABLE_DIFFUSION_15"}, "the whole model"),
    "onetrainer embedding": ({"training_method": "EMBEDDING", "model_type": "STABLE_DIFFUSION_15"}, "an embedding"),
    "onetrainer flux": ({"training_method": "LORA", "model_type": "FLUX_DEV_1"}, "OneTrainer.* FLUX_DEV_1"),
    "ai-toolkit flux": ({"job": "extension", "config": {"process": [
        {"type": "sd_trainer", "network": {"type": "lora"}, "model": {"is_flux": True}}]}}, "ai-toolkit for flux"),
    "ai-toolkit slider": ({"job": "train", "config": {"process": [{"type": "slider"}]}}, "ai-toolkit that runs slider"),
    "ai-toolkit none": ({"job": "train", "config": {"process": []}}, "ai-toolkit without a process"),
    "backslash": ('{"LoRA_type": "Standard", "output_dir": "D:\\out"}', "two backslashes"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_configuration_of_a_lora_is_named_as_what_it_is(name, tmp_path, capsys):
    content, message = NAMED[name]
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        imported(take([])[0], path)
    assert "\n" not in str(caught.value)
    assert main(["check", "--config_file", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"project": {"name": "x"}, "tool": {"ruff": {}}}, "it holds no argument of sd-scripts"),
        ({"datasets": [{"subsets": [{"image_dir": "i"}]}]}, "give it as --dataset_config"),
        ({"config_version": 1, "model": {"path": "m"}}, "a configuration of Pixelkiln already"),
        ({"flux_args": {"args": {"ae": "a"}}, "general_args": {"args": {"seed": 1}}}, "LoRA_Easy.* FLUX"),
        ({"train_mode": {"train_mode": "textual_inversion"}, "a": {"args": {}}}, "LoRA_Easy.* embedding"),
        (
            {"dataset": "d.toml", "model": {"type": "flux"}, "adapter": {"type": "lora"}},
            "diffusion-pipe",
        ),
    ],
)
def test_a_toml_of_something_else_is_named_too(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path, content, "other.toml"))


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.YML"])
def test_a_native_configuration_of_another_form_names_the_import(name, tmp_path, capsys):
    (tmp_path / name).write_text("{}", "utf-8")
    assert main(["check", str(tmp_path / name)]) == 2
    assert "import-kohya" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ LoRA_Easy_Training

EASY = {
    "subsets": [{"image_dir": "img", "num_repeats": 4, "name": "cats", "keep_tokens": 1, "caption_extension": ".txt",
                 "flip_aug": False}],
    "train_mode": {"train_mode": "lora"},
    "general_args": {"args": {"pretrained_model_name_or_path": "m", "seed": 23, "max_train_epochs": 2, "sdxl": True,
                              "mixed_precision": "bf16"},
                     "dataset_args": {"resolution": [512, 768], "batch_size": 2}},
    "network_args": {"args": {"network_dim": 8, "network_alpha": 4.0, "min_timestep": 0, "network_args": {
        "conv_dim": 4, "conv_alpha": 1.0, "algo": "locon (lycoris)", "dora_wd": "true", "preset": ""}}},
    "optimizer_args": {"args": {"optimizer_type": "AdamW8bit", "lr_scheduler": "cosine", "learning_rate": 5e-4,
                                "warmup_ratio": 0.05, "optimizer_args": {"weight_decay": "0.1", "betas": "0.9,0.99"}}},
    "saving_args": {"args": {"output_dir": "out", "output_name": "${replace}-1", "easy_name": "cat",
                             "tag_occurrence": True}},
    "bucket_args": {"dataset_args": {"enable_bucket": True, "min_bucket_reso": 256, "bucket_reso_steps": 64}},
}  # fmt: skip


def test_a_file_of_easy_scripts_is_read(tmp_path):
    raw, _ = read(written(tmp_path, EASY, "easy.toml"))
    assert raw["adapter"]["kind"] == "dora" and raw["adapter"]["rank"] == 8 and raw["adapter"]["conv_rank"] == 4
    assert raw["schedule"] == {"kind": "cosine", "warmup": 0.05}
    assert raw["optimizer"]["args"] == {"weight_decay": 0.1, "betas": [0.9, 0.99]}
    assert raw["run"]["name"] == "cat-1" and raw["run"]["batch"] == 2 and raw["run"]["epochs"] == 2
    one = raw["data"]["sets"][0]
    assert Path(one["path"]).name == "img" and one["repeats"] == 4 and one["keep_tokens"] == 1
    assert one.get("resolution", raw["data"].get("resolution")) == [512, 768]


def test_easy_scripts_modules(tmp_path):
    for args, kind in (({}, "lora"), ({"algo": "lokr"}, "lokr"), ({"algo": "loha"}, "loha"), ({"conv_dim": 4}, "lora")):
        content = {**EASY, "network_args": {"args": {"network_dim": 8, "network_args": args}}}
        assert read(written(tmp_path, content, "easy.toml"))[0]["adapter"].get("kind", "lora") == kind
    with pytest.raises(UserError, match="lora_fa"):
        read(written(tmp_path, {**EASY, "network_args": {"args": {"network_dim": 8, "fa": True}}}, "easy.toml"))


# ---------------------------------------------------------------------------------------------------------- OneTrainer

PRESET = {"base_model_name": "owner/model", "batch_size": 4, "layer_filter_preset": "attn-mlp", "learning_rate": 3e-4,
          "model_type": "STABLE_DIFFUSION_15", "output_model_destination": "models/lora.safetensors",
          "resolution": "512", "training_method": "LORA", "unet": {"weight_dtype": "FLOAT_16"}}  # fmt: skip


def test_a_preset_of_onetrainer_is_read_with_its_own_defaults(tmp_path):
    raw, notes = read(written(tmp_path, PRESET))
    assert raw["adapter"]["rank"] == 16 and raw["adapter"]["alpha"] == 1 and raw["adapter"]["text_encoders"] is True
    assert raw["run"]["epochs"] == 100 and raw["run"]["batch"] == 4 and raw["run"]["precision"] == "fp16"
    assert raw["optimizer"]["kind"] == "AdamW" and raw["optimizer"]["learning_rate"] == 3e-4
    assert raw["schedule"] == {"kind": "constant_with_warmup", "warmup": 200}
    assert raw["run"]["name"] == "lora" and any("[[data.sets]]" in note for note in notes)


def test_a_whole_configuration_of_onetrainer(tmp_path):
    (tmp_path / "img").mkdir()
    content = {
        **PRESET, "model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder": {"train": False},
        "text_encoder_2": {"train": False}, "lora_rank": 8, "lora_alpha": 8.0, "layer_filter_preset": "full",
        "optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.01, "d_coef": 2.0, "beta1": 0.9, "beta2": 0.99},
        "learning_rate_scheduler": "COSINE_WITH_RESTARTS", "learning_rate_cycles": 3.0, "resolution": "768x1024,512",
        "learning_rate_warmup_steps": 0.1, "mae_strength": 0.5, "loss_weight_fn": "MIN_SNR_GAMMA", "ema": "GPU",
        "offset_noise_weight": 0.05, "min_noising_strength": 0.1, "train_dtype": "BFLOAT_16", "epochs": 7,
        "save_every": 2, "save_every_unit": "EPOCH", "masked_training": True, "clip_grad_norm": None,
        "concepts": [
            {"path": str(tmp_path / "img"), "enabled": True, "include_subdirectories": True, "balancing": 3.0,
             "text": {"enable_tag_shuffling": True, "keep_tags_count": 2, "tag_delimiter": ";"},
             "image": {"enable_random_flip": True, "enable_random_hue": True}},
            {"path": "reg", "type": "PRIOR_PREDICTION"}, {"path": "off", "enabled": False},
            {"path": "val", "type": "VALIDATION"}],
        "samples": [{"prompt": "a cat", "negative_prompt": "blurry", "seed": 7, "width": 512, "cfg_scale": 5.5}],
        "sample_after": 1, "sample_after_unit": "EPOCH",
    }  # fmt: skip
    raw, notes = read(written(tmp_path, content))
    assert raw["adapter"]["text_encoders"] is False and raw["adapter"]["conv_rank"] == 8
    assert raw["optimizer"]["kind"] == "Prodigy" and raw["optimizer"]["max_grad_norm"] == 0
    assert raw["optimizer"]["args"] == {"weight_decay": 0.01, "d_coef": 2.0, "betas": [0.9, 0.99]}
    assert raw["schedule"]["kind"] == "cosine_with_restarts" and raw["schedule"]["cycles"] == 3
    assert raw["loss"]["l1"]["weight"] == 0.5 and raw["loss"]["mse"]["weight"] == 1 and raw["save"]["ema"] == 0.999
    assert raw["data"]["resolution"] == [768, 1024] and raw["noise"]["min_timestep"] == 100
    first, second = raw["data"]["sets"]
    assert first["repeats"] == 3 and first["separator"] == ";" and first["flip"] and first["keep_tokens"] == 2
    assert second["preserve"] is True and raw["save"]["every_epochs"] == 2
    assert raw["sample"]["prompts"] == ["a cat --n blurry --w 512 --d 7 --l 5.5"]
    shown = "\n".join(notes)
    for word in ("masked_training", "enable_random_hue", "768x1024, 512", "for validation"):
        assert word in shown, word


@pytest.mark.parametrize(("kind", "wanted"), [("LOHA", "loha"), ("LOKR", "lokr"), ("LORA", "lora")])
def test_networks_of_onetrainer(kind, wanted, tmp_path):
    assert read(written(tmp_path, {**PRESET, "peft_type": kind}))[0]["adapter"]["kind"] == wanted


def test_networks_and_words_of_onetrainer_that_are_not_here(tmp_path):
    with pytest.raises(UserError, match="OFT_2 is not here"):
        read(written(tmp_path, {**PRESET, "peft_type": "OFT_2"}))
    _, notes = read(written(tmp_path, {**PRESET, "optimizer": {"optimizer": "CAME"}, "timestep_distribution": "BETA",
                                       "learning_rate_scheduler": "REX"}))  # fmt: skip
    assert all(any(word in note for note in notes) for word in ("CAME", "BETA", "REX"))
    with pytest.raises(UserError, match="lora_rank: 'many' is no number"):
        read(written(tmp_path, {**PRESET, "lora_rank": "many"}))


def test_sd3_of_onetrainer_keeps_its_own_weighting(tmp_path):
    raw, _ = read(written(tmp_path, {**PRESET, "model_type": "STABLE_DIFFUSION_3", "noising_bias": 0.5,
                                     "timestep_distribution": "LOGIT_NORMAL"}))  # fmt: skip
    assert raw["objective"]["flow_weighting"] == "none" and raw["noise"]["sampling"] == "logit_normal"
    assert raw["noise"]["logit_mean"] == 0.5


# ---------------------------------------------------------------------------------------------------------- ai-toolkit

JOB = {"job": "extension", "config": {"name": "first", "process": [{
    "type": "sd_trainer", "training_folder": "output", "trigger_word": "p3r5on",
    "network": {"type": "lora", "linear": 16, "linear_alpha": 8, "conv": 4, "conv_alpha": 2},
    "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4},
    "datasets": [{"folder_path": "img", "caption_ext": "txt", "caption_dropout_rate": 0.05, "shuffle_tokens": True,
                  "cache_latents_to_disk": True, "resolution": [512, 768], "flip_y": True}],
    "train": {"batch_size": 2, "steps": 2000, "gradient_accumulation_steps": 2, "train_unet": True,
              "train_text_encoder": False, "optimizer": "adamw8bit", "lr": "1e-4", "dtype": "bf16",
              "optimizer_params": {"weight_decay": 0.02}, "min_snr_gamma": 5.0, "skip_first_sample": True,
              "ema_config": {"use_ema": True, "ema_decay": 0.99}, "do_cfg": True},
    "model": {"name_or_path": "owner/model", "is_xl": True},
    "sample": {"sample_every": 250, "width": 1024, "height": 1024, "prompts": ["[trigger] with red hair", "a cat"],
               "neg": "", "seed": 42, "walk_seed": True, "guidance_scale": 4, "sample_steps": 25}}]}}  # fmt: skip


@pytest.mark.parametrize("name", ["job.yaml", "job.YML", "job.json"])
def test_a_job_of_ai_toolkit_is_read(name, tmp_path):
    path = tmp_path / name
    path.write_text(json.dumps(JOB) if name.endswith("json") else yaml.safe_dump(JOB), "utf-8")
    raw, notes = read(path)
    assert raw["adapter"]["rank"] == 16 and raw["adapter"]["alpha"] == 8 and raw["adapter"]["conv_rank"] == 4
    assert raw["adapter"]["text_encoders"] is False and raw["run"]["steps"] == 2000 and raw["run"]["name"] == "first"
    assert raw["optimizer"]["kind"] == "AdamW8bit" and raw["optimizer"]["args"] == {"weight_decay": 0.02}
    assert [one["resolution"] for one in raw["data"]["sets"]] == [512, 768]
    assert all(one["trigger"] == "p3r5on" and one["shuffle"] for one in raw["data"]["sets"])
    assert raw["sample"]["prompts"][0].startswith("p3r5on with red hair --d 42 --w 1024")
    assert raw["sample"]["prompts"][1].startswith("a cat --d 43") and raw["sample"]["at_start"] is False
    assert raw["save"]["ema"] == 0.99 and raw["save"]["every"] == 250
    shown = "\n".join(notes)
    assert "flip_y" in shown and "do_cfg" in shown


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ({}, "sd15"),
        ({"is_v2": True}, "sd2"),
        ({"arch": "sdxl"}, "sdxl"),
        ({"is_v3": True}, "sd3-medium"),
        ({"arch": "sd1:x"}, "sd15"),
    ],
)
def test_families_of_ai_toolkit(model, family, tmp_path):
    from pixelkiln.trainer.kohya.formats import read_configuration
    from pixelkiln.trainer.kohya.read import Values

    process = {**JOB["config"]["process"][0], "model": {"name_or_path": "owner/model", **model}}
    values = Values()
    read_configuration(values, written(tmp_path, {"config": {"process": [process]}}, "a.yaml"))
    assert values.family == family


def test_yaml_that_is_none_is_one_line(tmp_path):
    for text in ("a: [1,", 'job: "D:\\data"\nconfig: {process: []}', "a:\n\t- b"):
        with pytest.raises(UserError, match="this is not YAML") as caught:
            read(written(tmp_path, text, "a.yaml"))
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------- one file for both, and mixed


def both(folder: Path) -> dict[str, Any]:
    (folder / "img").mkdir(exist_ok=True)
    return {"general": {"pretrained_model_name_or_path": "m", "num_repeats": 3}, "training": {"network_dim": 8},
            "datasets": [{"resolution": 512, "subsets": [{"image_dir": str(folder / "img")}]}]}  # fmt: skip


def test_a_configuration_with_datasets_is_read_whole(tmp_path):
    path = written(tmp_path, both(tmp_path), "both.toml")
    config, notes = load(take(["--config_file", str(path), "--model.family=sd15"])[0])
    assert config.adapter.rank == 8 and config.data.sets[0].repeats == 3 and config.data.sets[0].resolution == 512
    assert any("[[datasets]]" in note and "--dataset_config" in note for note in notes)


def test_a_configuration_that_is_given_as_a_data_set_is_named_in_one_line(tmp_path):
    for content in (both(tmp_path), {"training": {"network_dim": 8, "learning_rate": 1e-4}}, {"output_dir": "o"}):
        path = written(tmp_path, content, "mixed.toml")
        with pytest.raises(c.ConfigError) as caught:
            load(take(["--dataset_config", str(path), "--pretrained_model_name_or_path=m", "--model.family=sd15"])[0])
        lines = str(caught.value).splitlines()
        assert len(lines) == 1 and "give it as --config_file" in lines[0]


def test_problems_have_a_fixed_order(tmp_path):
    path = written(
        tmp_path, {"zeta": {}, "alpha": {}, "mu": {}, "datasets": [{"subsets": [{"image_dir": "i"}]}]}, "d.toml"
    )
    with pytest.raises(c.ConfigError) as caught:
        load(take(["--dataset_config", str(path), "--pretrained_model_name_or_path=m", "--model.family=sd15"])[0])
    names = [
        word for line in str(caught.value).splitlines() for word in ("alpha", "mu", "zeta") if f": {word}:" in line
    ]
    assert names == ["alpha", "mu", "zeta"]


# ------------------------------------------------------------------------------------------- what people put into them


@pytest.mark.parametrize(("text", "vae"), [
    (r"--vae D:\models\vae.pt --min_snr_gamma=5", r"D:\models\vae.pt"),
    ('--vae "C:\\my models\\v.pt" --min_snr_gamma 5', r"C:\my models\v.pt"),
    ("--vae v.pt --training_comment it's --min_snr_gamma 5", "v.pt"),
    ("\u2014vae v.pt \\\n --min_snr_gamma 5", "v.pt"), (["--vae v.pt", "--min_snr_gamma 5"], "v.pt"),
])  # fmt: skip
def test_additional_parameters_of_the_gui_keep_their_paths(text, vae, tmp_path):
    raw, _ = read(written(tmp_path, {**SAVED, "additional_parameters": text}))
    assert raw["model"]["vae"].endswith(vae) and raw["objective"]["min_snr_gamma"] == 5


def test_additional_parameters_of_our_own_count(tmp_path):
    raw, _ = read(written(tmp_path, {**SAVED, "additional_parameters": "--adapter.rank=5 --nonsense 3"}))
    assert raw["adapter"]["rank"] == 5


@pytest.mark.parametrize(("name", "value"), [("lr_warmup", "10%"), ("lr_warmup", 10), ("lr_warmup", "10")])
def test_a_warm_up_of_the_gui_is_in_per_cent(name, value, tmp_path):
    assert read(written(tmp_path, {**SAVED, name: value}))[0]["schedule"]["warmup"] == 0.1


def test_rates_of_the_gui_in_a_list(tmp_path):
    raw, _ = read(written(tmp_path, {**SAVED, "text_encoder_lr": [3e-5]}))
    assert raw["optimizer"]["text_encoder_lr"] == 3e-5


@pytest.mark.parametrize(("resolution", "low", "high"), [("128", 128, None), ("1536", None, 1536), ("512", None, None)])
def test_resolutions_outside_of_kohyas_buckets_are_repaired(resolution, low, high, tmp_path):
    """OneTrainer and ai-toolkit have no bounds such as sd-scripts asserts."""
    content = {**PRESET, "resolution": resolution, "concepts": [{"path": "img"}]}
    raw, notes = read(written(tmp_path, content))
    assert (raw["data"]["sets"][0].get("bucket_min"), raw["data"]["sets"][0].get("bucket_max")) == (low, high)
    assert any("is taken" in note and "bucket_reso" in note for note in notes) == bool(low or high)


SAVED_EASY = {"train_mode": {"train_mode": "lora"}, "subsets": [{"image_dir": "img", "num_repeats": 1}],
        "general_args": {"args": {"pretrained_model_name_or_path": "m", "sdxl": True, "max_train_epochs": 1},
                         "dataset_args": {"resolution": 512}},
        "network_args": {"args": {"network_dim": 8, "network_args": {"algo": "locon (lycoris)"}}}}  # fmt: skip
TRAINER = {**PRESET, "concepts": [{"path": "img", "text": {"prompt_source": "sample"}, "balancing": 1.0}],
           "samples": [{"prompt": "a cat", "seed": -1}], "optimizer": {"optimizer": "ADAMW", "beta1": 0.9},
           "learning_rate_scheduler": "COSINE", "save_every": 5, "save_every_unit": "EPOCH"}  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> Any:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inside:
        yield (*at, name)
        yield from _places(one, (*at, name))


@pytest.mark.parametrize(
    "whole", [SAVED, TRAINER, JOB, SAVED_EASY], ids=["gui", "onetrainer", "ai-toolkit", "easy scripts"]
)
def test_whatever_stands_at_any_place_is_read_or_reported(whole, tmp_path):
    """Empty, null, of another type, too large: at each leaf and in place of each table."""
    for at in _places(whole):
        for junk in (None, "", False, [], {}, -1, "abc", [None], {"a": 1}, 9**40):
            content = json.loads(json.dumps(whole))
            inner = content
            for name in at[:-1]:
                inner = inner[name]
            inner[at[-1]] = junk
            try:
                read(written(tmp_path, content))
            except UserError:  # one line for the person
                pass
            except Exception as error:
                raise AssertionError(f"{at} = {junk!r}") from error


def test_null_in_a_data_set_of_json_is_not_given(tmp_path):
    content = {
        "general": None,
        "datasets": [{"subsets": [{"image_dir": "img", "class_tokens": None}], "batch_size": None}],
    }
    words = ["--dataset_config", str(written(tmp_path, content, "d.json")), "--pretrained_model_name_or_path", "m"]
    assert len(c.loads(imported(take(words)[0])[0])["data"]["sets"]) == 1
    content["datasets"][0]["subsets"][0]["subsets"] = []
    words[1] = str(written(tmp_path, content, "d.json"))
    with pytest.raises(UserError, match="it may not stand here"):
        imported(take(words)[0])


OLD = {"--model_type": "lora", "--lora_rank": 16, "--pretrained_model_name_or_path": "m", "--learning_rate": 1e-4}
ALIEN = {
    "old.json": (OLD, "SimpleTuner's configuration"),
    "bare.json": ({name.lstrip("-"): value for name, value in OLD.items()}, "SimpleTuner's configuration"),
    "old.toml": ({name.lstrip("-"): value for name, value in OLD.items()}, "SimpleTuner's configuration"),
    "config.env": ("MODEL_TYPE='lora'\nexport MODEL_NAME=x\n", "paste the line that it runs"),
    "train.bat": ("@echo off\naccelerate launch train_network.py\n", "paste the line that it runs"),
    "samples.json": ([{"prompt": "a cat", "seed": 1}], "these are prompts"),
    "adapter_config.json": ({"peft_type": "LORA", "r": 8}, "PEFT's configuration"),
    "model_index.json": ({"_class_name": "StableDiffusionPipeline"}, "describes a model of diffusers"),
    "metadata.jsonl": ('{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png"}\n', "this is no configuration"),
    "musubi.toml": ({"datasets": [{"image_directory": "img"}]}, "musubi-tuner's data set"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIEN)
def test_more_files_of_others_are_named(name, tmp_path):
    content, message = ALIEN[name]
    path = written(tmp_path, content, name)
    with pytest.raises(UserError, match=message):
        read(path)
    if name.endswith((".toml", ".json")):
        with pytest.raises(UserError, match=message):
            load(take(["--dataset_config", str(path), "--pretrained_model_name_or_path", "m"])[0])
