"""The kohya entrance: every argument has its place, what is wrong is reported, and a file of ours says the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import steps
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkiln.trainer import config as c
from pixelkiln.trainer.cli import main
from pixelkiln.trainer.kohya import convert, dataset, network
from pixelkiln.trainer.kohya.entrance import imported, load, take
from pixelkiln.trainer.kohya.names import IGNORED, arguments, near
from pixelkiln.trainer.kohya.read import known
from pixelkiln.trainer.registry import families
from pixelkiln.trainer.training.build import build_terms

BASE = {"pretrained_model_name_or_path": "owner/sd_xl", "resolution": 512, "dataset_config": ""}


@pytest.fixture
def folder(tmp_path):
    """A data set of one folder, named as kohya's tools want it."""
    (tmp_path / "img" / "10_red cat").mkdir(parents=True)
    return tmp_path


def write(folder: Path, values: dict[str, Any], name: str = "kohya.toml") -> Path:
    import tomlkit

    path = folder / name
    path.write_text(tomlkit.dumps(values), "utf-8")
    return path


def read(folder: Path, *words: str, family: str = "sd15", **values: Any):
    """(configuration, notes) of a kohya file with these values and of further words of the command line."""
    base = {"pretrained_model_name_or_path": "model.safetensors", "train_data_dir": str(folder / "img")}
    path = write(folder, {**base, **values})
    return load(take(["--config_file", str(path), f"--model.family={family}", *words])[0])


def problems(folder: Path, *words: str, **values: Any) -> str:
    with pytest.raises(c.ConfigError) as caught:
        read(folder, *words, **values)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- the table


def test_every_argument_of_sd_scripts_has_its_place():
    """All 218 of the three scripts: mapped, harmless or refused."""
    assert len(arguments()) == 218
    assert {name: convert.treatment(name) for name in arguments() if not convert.treatment(name)} == {}


SAMPLES: dict[str, Any] = {
    "adaptive_noise_scale": {"adaptive_noise_scale": 0.1, "noise_offset": 0.1},
    "base_weights_multiplier": {"base_weights": ["a.safetensors"], "base_weights_multiplier": [0.5]},
    "caption_extention": {"caption_extention": ".words"},
    "clip_skip": {"clip_skip": 2},
    "color_aug": {"color_aug": True},
    "dataset_config": None,
    "dataset_repeats": None,
    "in_json": None,
    "config_file": None,
    "reg_data_dir": None,
    "conditioning_data_dir": None,
    "fp8_base": {"fp8_base": True, "mixed_precision": "bf16"},
    "fp8_base_unet": {"fp8_base_unet": True, "mixed_precision": "bf16"},
    "masked_loss": {"conditioning_data_dir": "masks", "masked_loss": True},
    "multires_noise_iterations": {"multires_noise_iterations": 6},
    "resolution": {"resolution": 768},
    "save_last_n_epochs_state": {"save_last_n_epochs_state": 3, "save_every_n_epochs": 1, "save_state": True},
    "save_last_n_steps_state": {"save_last_n_steps_state": 99, "save_every_n_steps": 9, "save_state": True},
    "face_crop_aug_range": {"face_crop_aug_range": "2,4"},
    "full_bf16": {"full_bf16": True, "mixed_precision": "bf16"},
    "huber_c": {"huber_c": 0.2, "loss_type": "huber"},
    "huber_scale": {"huber_scale": 2.0, "loss_type": "smooth_l1"},
    "huber_schedule": {"huber_schedule": "constant", "loss_type": "huber"},
    "lr_scheduler": {"lr_scheduler": "cosine"},
    "lr_scheduler_args": {"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": ["T_max=10"]},
    "cpu_offload_checkpointing": {"gradient_checkpointing": True, "cpu_offload_checkpointing": True},
    "lr_scheduler_type": {"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": ["T_max=10"]},
    "lr_warmup_steps": {"lr_warmup_steps": "10%", "lr_scheduler": "cosine"},
    "max_token_length": {"max_token_length": 225},
    "max_validation_steps": {"max_validation_steps": 3},
    "network_args": {"network_args": ["conv_dim=4"]},
    "network_module": {"network_module": "networks.loha"},
    "optimizer_args": {"optimizer_args": ["betas=0.9,0.99"]},
    "optimizer_type": {"optimizer_type": "Prodigy"},
    "pretrained_model_name_or_path": {"pretrained_model_name_or_path": "other.safetensors"},
    "resize_interpolation": {"resize_interpolation": "nearest"},
    "sample_at_first": {"sample_at_first": True, "sample_prompts": "p.txt"},
    "scale_v_pred_loss_like_noise_pred": {"v_parameterization": True, "scale_v_pred_loss_like_noise_pred": True},
    "text_encoder_lr": {"text_encoder_lr": [1e-5]},
    "train_data_dir": None,
    "v2": {"v2": True},
    "weighting_scheme": {"weighting_scheme": "logit_normal"},
    "zero_terminal_snr": {"v_parameterization": True, "zero_terminal_snr": True},
}
"""Values that show what an argument does; None where a test of its own does."""
BY_TYPE = {"flag": True, "int": 128, "float": 0.25, "str": "text", "steps": 5, "list[float]": [0.5], "list[str]": ["a"]}
TOLD_ONLY = {"cache_text_encoder_outputs_to_disk", "mem_eff_attn", "log_with", "save_model_as"}
"""What is mapped to what is the case anyway, or to a message."""


@pytest.mark.parametrize("name", sorted(n for n in arguments() if convert.treatment(n) == "mapped"))
def test_a_mapped_argument_changes_the_configuration(name, folder):
    argument = arguments()[name]
    if name in TOLD_ONLY or SAMPLES.get(name, {}) is None:
        return
    values = SAMPLES.get(name) or {name: argument.choices[-1] if argument.choices else BY_TYPE[argument.type]}
    family = {("sd3",): "sd3-medium", ("sdxl", "sd3"): "sd3-medium"}.get(argument.families, "sd15")
    with_it, _ = read(folder, family=family, **values)
    without, _ = read(folder, family=family, **{key: value for key, value in values.items() if key != name})
    if name != "v2":
        assert with_it != without, name


@pytest.mark.parametrize(
    "given, kept, shown",
    [
        ({"save_every_n_epochs": 1, "save_last_n_epochs": 2}, (2, 0), False),
        ({"save_every_n_epochs": 1, "save_last_n_epochs": 2, "save_last_n_epochs_state": 1}, (1, 0), False),
        ({"save_every_n_steps": 10, "save_last_n_steps": 100}, (0, 100), False),
        ({"save_every_n_steps": 10, "save_last_n_steps": 100, "save_last_n_steps_state": 50}, (0, 50), False),
        ({"save_every_n_steps": 10, "save_last_n_epochs": 2}, (0, 0), False),  # which limits files of epochs only
        ({"save_every_n_steps": 10, "save_every_n_epochs": 1, "save_last_n_epochs": 2}, (0, 0), True),
    ],
)  # fmt: skip
def test_states_are_kept_as_sd_scripts_keeps_them(given, kept, shown, folder):
    got, notes = read(folder, save_state=True, **given)
    assert (got.save.keep_states, got.save.keep_states_steps) == kept
    assert any(note.startswith("save_state: all states are kept") for note in notes) == shown
    files = (got.save.keep_last, got.save.keep_last_steps, got.save.keep_last_epochs)
    assert files == (0, given.get("save_last_n_steps", 0), given.get("save_last_n_epochs", 0))


@pytest.mark.parametrize("name", sorted(n for n in arguments() if convert.treatment(n) == "harmless"))
def test_a_harmless_argument_changes_nothing_and_says_why(name, folder):
    argument = arguments()[name]
    value = argument.choices[-1] if argument.choices else BY_TYPE[argument.type]
    family = "sd3-medium" if argument.families == ("sd3",) else "sd15" if "sd15" in argument.families else "sdxl"
    got, notes = read(folder, family=family, **{name: value})
    assert got == read(folder, family=family)[0]
    assert sum(note.startswith(f"{name} has no effect: ") for note in notes) == 1


@pytest.mark.parametrize("name", sorted(n for n in arguments() if convert.treatment(n) == "refused"))
def test_a_refused_argument_is_named_with_what_there_is_instead(name, folder):
    argument = arguments()[name]
    value = argument.choices[0] if argument.choices else BY_TYPE[argument.type]
    family = "sd3-medium" if "sd3" in argument.families else "sd15"
    reported = problems(folder, family=family, **{name: value})
    assert reported.startswith(f"kohya.toml, line 3: {name}: ")
    assert len(reported.partition(f"{name}: ")[2]) > 20


def test_what_the_gui_writes_and_the_scripts_ignore_is_tolerated_silently(folder):
    assert len(IGNORED) >= 44
    assert read(folder, **dict.fromkeys(IGNORED, 1)) == read(folder)


def test_what_the_family_does_not_use_is_left_out_with_a_word(folder):
    got, notes = read(folder, family="sd3-medium", min_snr_gamma=5.0, clip_skip=2)
    assert got == read(folder, family="sd3-medium")[0]
    assert {note.split()[0] for note in notes} == {"min_snr_gamma", "clip_skip", "seed"}
    assert read(folder, family="sd15", logit_mean=1.0)[0] == read(folder)[0]


@pytest.mark.parametrize("scheme", ["uniform", "sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
def test_sd3_weighs_any_loss_of_the_clean_latents(kind, scheme, folder):
    """sd3_train_network.py: pred = noisy - sigma v, conditional_loss(pred, latents), then the scheme's weight."""
    given = {"loss_type": kind, "weighting_scheme": scheme, "huber_schedule": "constant", "huber_c": 0.3}
    got, _ = read(folder, family="sd3-medium", **given)
    step = steps.step("flow", [0.1, 0.5, 0.9], rows=3)
    family = SimpleNamespace(process=step.process, spec=families["sd3-medium"].build())
    model: Any = SimpleNamespace(family=family, decoder=None, process=step.process)
    (term,) = build_terms(got, model, None, print).terms
    d, sigma = (step.x0 - step.clean).flatten(1), step.draw.level.double()
    soft = 2 * ((d**2 + 0.09).sqrt() - 0.3)
    elements = {"l2": d**2, "l1": d.abs(), "huber": 0.3 * soft, "smooth_l1": soft}[kind]
    cosmap = 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    weight = {"uniform": torch.ones(3), "sigma_sqrt": sigma**-2, "cosmap": cosmap}[scheme]
    torch.testing.assert_close(term.objective(term.loss(step), None, step).values, elements.mean(1) * weight)


# ------------------------------------------------------------------------------------------------------ the defaults


def test_kohyas_defaults_hold_where_the_file_is_silent(folder):
    got, _ = read(folder)
    assert (got.run.steps, got.run.batch, got.run.precision) == (1600, 1, "fp32")
    assert (got.adapter.rank, got.adapter.alpha, got.adapter.text_encoders) == (4, 1.0, True)
    assert (got.optimizer.learning_rate, got.optimizer.kind, got.schedule.kind) == (2e-6, "AdamW", "constant")
    assert (got.data.caption_extension, got.data.buckets, got.data.bucket_max) == (".caption", False, 1024)
    assert (got.data.cache_latents, got.save.precision) == ("off", "fp32")


def test_sd3_is_weighted_as_kohya_does(folder):
    got, _ = read(folder, family="sd3-medium")
    assert (got.noise.sampling, got.objective.flow_weighting) == ("uniform", "x0")
    got, _ = read(folder, family="sd3-medium", weighting_scheme="mode")
    assert (got.noise.sampling, got.objective.flow_weighting) == ("mode", "x0")
    got, _ = read(folder, family="sd3-medium", weighting_scheme="cosmap")
    assert (got.noise.sampling, got.objective.flow_weighting) == ("uniform", "cosmap")


def test_flags_over_file_and_native_flags_over_both(folder):
    words = ["--network_dim", "32", "--shuffle_caption", "--network_args", "conv_dim=8", "conv_alpha=4",
             "--adapter.conv_rank=6", "--learning_rate=1e-4"]  # fmt: skip
    got, _ = read(folder, *words, network_dim=16, network_alpha=8)
    assert (got.adapter.rank, got.adapter.alpha, got.adapter.conv_rank, got.adapter.conv_alpha) == (32, 8.0, 6, 4.0)
    assert (got.data.shuffle, got.optimizer.learning_rate) == (True, 1e-4)


def test_tables_of_the_file_mean_nothing_and_the_later_of_two_counts(folder):
    got, notes = read(folder, a={"network_dim": 8}, b={"network_dim": 16, "seed": 1})
    assert (got.adapter.rank, got.run.seed) == (16, 1)
    assert notes == ["kohya.toml: network_dim is 8 in [a] and 16 in [b]; the latter counts"]


@pytest.mark.parametrize(
    ("name", "value", "option", "expected"),
    [
        ("resolution", 512, "data.resolution", 512),
        ("resolution", "512,768", "data.resolution", [512, 768]),
        ("resolution", "512,512", "data.resolution", 512),
        ("learning_rate", "1e-4", "optimizer.learning_rate", 1e-4),
        ("max_token_length", 75, "model.max_tokens", 75),
        ("network_alpha", 2, "adapter.alpha", 2.0),
        ("text_encoder_lr", [1e-5, 2e-5], "optimizer.text_encoder_lr", 1e-5),
        ("optimizer_args", "eps=0.1 betas=.9,.99", "optimizer.args", {"eps": 0.1, "betas": [0.9, 0.99]}),
        ("network_weights", "", "adapter.init_from", None),
    ],
)  # fmt: skip
def test_values_that_sd_scripts_stumbles_over_are_understood(name, value, option, expected, folder):
    got = read(folder, **{name: value})[0].model_dump()
    table, _, key = option.partition(".")
    assert got[table][key] == expected


def test_a_rate_of_0_leaves_a_part_out(folder):
    got, _ = read(folder, unet_lr=1e-4, text_encoder_lr=0.0)
    assert (got.adapter.text_encoders, got.adapter.denoiser, got.optimizer.denoiser_lr) == (False, True, 1e-4)
    got, _ = read(folder, unet_lr=0, text_encoder_lr=1e-4)
    assert (got.adapter.text_encoders, got.adapter.denoiser) == (True, False)
    assert "every learning rate is 0" in problems(folder, unet_lr=0, text_encoder_lr=0)


def test_prodigy_works_with_the_first_groups_rate_as_in_sd_scripts(folder):
    got, notes = read(folder, optimizer_type="Prodigy", unet_lr=1.0, text_encoder_lr=0.5)
    assert (got.optimizer.learning_rate, got.optimizer.denoiser_lr, got.optimizer.text_encoder_lr) == (0.5, None, None)
    assert any("Prodigy works with one rate" in note for note in notes)


def test_a_state_of_sd_scripts_gives_its_adapter(folder):
    assert Path(read(folder, resume="runs/mine")[0].run.resume_from).name == "mine"
    state = folder / "at-state"
    state.mkdir()
    for name in ("model.safetensors", "train_state.json"):
        (state / name).touch()
    got, notes = read(folder, resume=str(state))
    assert (Path(got.adapter.init_from), got.run.resume_from) == (state / "model.safetensors", None)
    assert any(note.startswith("resume: a state of sd-scripts") for note in notes)


def test_samplers_of_previews(folder):
    for theirs, ours in (
        ("ddim", "ddim"),
        ("k_euler_a", "euler_ancestral"),
        ("dpmsolver++", "dpmpp_2m"),
        ("k_lms", "euler"),
    ):
        assert read(folder, sample_sampler=theirs)[0].sample.sampler == ours


# -------------------------------------------------------------------------------------------------------- networks


def test_lycoris_kinds(folder):
    def adapter(*args: str, **more: Any):
        return read(
            folder, network_module="lycoris.kohya", network_dim=8, network_alpha=4, network_args=[*args], **more
        )[0].adapter

    assert (adapter().kind, adapter().conv_rank, adapter().conv_alpha) == ("lora", 8, 4.0)
    assert (adapter("algo=locon", "dora_wd=True").kind, adapter("dora_wd=True").dora_for) == ("dora", "lycoris")
    assert (adapter("algo=lokr", "factor=8").kind, adapter("algo=lokr", "factor=8").factor) == ("lokr", 8)
    assert adapter("preset=attn-mlp", "algo=loha").conv_rank is None
    assert adapter("rs_lora=True").alpha == pytest.approx(4 * 8**0.5)


@pytest.mark.parametrize(
    ("module", "args", "reported"),
    [
        ("lycoris.kohya", ["algo=ia3"], "algo=ia3 is not here; there is lora, locon, loha, lokr"),
        ("lycoris.kohya", ["use_tucker=True"], "Tucker decomposition of convolutions is not here"),
        ("lycoris.kohya", ["algo=loha", "dora_wd=True"], "there is no loha with magnitudes"),
        ("networks.lora_fa", [], "networks.lora_fa is not here; networks.lora"),
        ("networks.lora_flux", [], "networks.lora_flux is not here"),
        ("networks.lora", ["conv_dmi=4"], "there is no conv_dmi; did you mean conv_dim?"),
        ("networks.lora", ["conv_dim=four"], "conv_dim=four: 'four' is no number"),
        ("networks.lora", ["conv_dim"], "'conv_dim' does not fit; write name=value"),
        ("networks.lora", ["down_lr_weight=wave"], "there is no curve 'wave'"),
    ],
)
def test_networks_that_are_not_here_are_named(module, args, reported, folder):
    assert reported in problems(folder, network_module=module, network_args=args)


def test_network_arguments_become_options(folder):
    args = ["conv_dim=4", "down_lr_weight=0,0.5,1,1,1,1,1,1,1,1,1,1", "up_lr_weight=cosine+.5", "rank_dropout=0.1",
            "block_dims=" + ",".join(["4"] * 25), "loraplus_lr_ratio=16"]  # fmt: skip
    got = read(folder, network_args=args)[0].adapter
    assert (got.conv_rank, got.conv_alpha, got.up_lr, got.rank_dropout, got.loraplus) == (4, 1.0, "cosine+.5", 0.1, 16)
    assert (got.down_lr[:3], got.block_ranks) == ([0, 0.5, 1], [4] * 25)


# ------------------------------------------------------------------------------------------------------- bad input


def test_all_problems_at_once_with_their_lines(folder):
    reported = problems(folder, learning_rte=1, shuffle_caption="false", network_dim="many", seed=1.5, loss_type="l3",
                    optimizer_type="AdamV", network_module="networks.lora_flux").splitlines()  # fmt: skip
    assert reported[:5] == [
        "kohya.toml, line 3: learning_rte: sd-scripts has no such argument; did you mean learning_rate?",
        "kohya.toml, line 4: shuffle_caption: 'false' is text, which sd-scripts takes for true; write true or false "
        "without quotes",
        "kohya.toml, line 5: network_dim: 'many' is no number; write one without quotes",
        "kohya.toml, line 6: seed: 1.5 is no whole number; write one, such as 1",
        "kohya.toml, line 7: loss_type: 'l3' is none of its values; did you mean l1 or l2?",
    ]
    assert reported[5].startswith("kohya.toml, line 9: network_module: networks.lora_flux is not here; ")
    assert reported[6].startswith("kohya.toml, line 8: optimizer_type: there is no 'AdamV'; did you mean")
    assert len(reported) == 7


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        ({"adaptive_noise_scale": 0.1}, "set noise_offset = 0.05"),
        ({"scale_v_pred_loss_like_noise_pred": True}, "set v_parameterization"),
        ({"v_pred_like_loss": 0.1, "v_parameterization": True}, "leave out v_parameterization"),
        ({"cache_latents": True, "color_aug": True}, "leave out cache_latents"),
        ({"cache_latents_to_disk": True, "random_crop": True}, "leave out cache_latents"),
        ({"cache_text_encoder_outputs": True, "shuffle_caption": True, "family": "sdxl"}, "leave out one of them"),
        ({"cache_text_encoder_outputs": True, "family": "sdxl"}, "set that"),
        ({"full_bf16": True, "mixed_precision": "fp16"}, 'set that, or full_bf16 = false'),
        ({"full_fp16": True}, "or leave it out"),
        ({"bucket_reso_steps": 32, "enable_bucket": True}, "no multiple of 64, which sd15 needs; set 64"),
        ({"bucket_reso_steps": 48, "enable_bucket": True, "family": "sdxl"}, "no multiple of 32"),
        ({"v2": True, "family": "sdxl"}, "leave v2 out"),
        ({"lr_warmup_steps": 10}, 'set lr_scheduler = "constant_with_warmup", or lr_warmup_steps = 0'),
        ({"lr_scheduler": "adafactor", "lr_warmup_steps": 0.1}, "adafactor has no warm-up"),
        ({"resolution": 2048, "enable_bucket": True}, "set 2048 or more"),
        ({"resolution": 192, "enable_bucket": True}, "set 192 or less"),
        ({"masked_loss": True}, "give each subset conditioning_data_dir, or alpha_mask = true"),
        ({"use_8bit_adam": True, "optimizer_type": "Lion"}, "keep one of them"),
        ({"network_train_unet_only": True, "network_train_text_encoder_only": True}, "keep one of them"),
        ({"optimizer_args": ["betas"]}, "write name=value"),
        ({"mixed_precision": "fp8"}, "there is no, fp16, bf16"),
        ({"max_grad_norm": True}, "True is no number; write one"),
        ({"output_name": ["a"]}, "is no text; write it in quotes"),
        ({"network_args": [["a"]]}, 'write ["name=value", ...]'),
        ({"face_crop_aug_range": "2"}, 'write "2.0,4.0"'),
        ({"resolution": "big"}, 'write "512" or "512,768" (width, height)'),
        ({"network_dim": 0, "network_alpha": -1}, "should be greater than or equal to 0"),
        ({"save_model_as": "pt"}, 'set "safetensors"'),
    ],
)  # fmt: skip
def test_every_check_of_sd_scripts_says_what_would_be_right(values, reported, folder):
    assert reported in problems(folder, **values)


def test_a_file_that_is_no_toml_is_told_with_its_line(folder):
    (folder / "bad.toml").write_text("network_dim = 8\nseed = \n", "utf-8")
    with pytest.raises(ValueError, match=r"bad\.toml: this is not TOML: .*line 2"):
        load(take(["--config_file", str(folder / "bad")])[0])
    with pytest.raises(ValueError, match="there is no such file"):
        load(take(["--config_file", str(folder / "none.toml")])[0])


def test_flags_that_are_wrong_are_told_together(folder):
    reported = problems(folder, "--network_dmi", "3", "--seed", "--learning_rate=fast")
    assert "--network_dmi: sd-scripts has no such argument; did you mean network_dim?" in reported
    assert "--seed: a value is missing; write --seed=VALUE" in reported
    assert "--learning_rate: 'fast' is no number" in reported


ALL_KEYS = sorted({*known(), *network.network_names(), *dataset.KEYS})
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ALL_KEYS), st.sampled_from(["change", "insert", "delete", "swap"]), st.integers(0, 40),
       st.sampled_from(LETTERS))  # fmt: skip
def test_a_typo_of_one_letter_names_the_key(key, how, place, letter):
    i = place % len(key)
    wrong = {
        "change": key[:i] + letter + key[i + 1 :],
        "insert": key[:i] + letter + key[i:],
        "delete": key[:i] + key[i + 1 :],
        "swap": key[:i] + key[i : i + 2][::-1] + key[i + 2 :],
    }[how]
    if wrong and wrong not in ALL_KEYS:
        assert key in near(wrong, ALL_KEYS).removeprefix("did you mean ").rstrip("?").split(" or ")


# ------------------------------------------------------------------------------------------------- a file of our own


NUMBERS = {
    "network_dim": st.integers(1, 256),
    "network_alpha": st.floats(0, 256),
    "seed": st.integers(0, 2**40),
    "learning_rate": st.floats(1e-7, 1),
    "max_train_steps": st.integers(1, 9999),
    "min_snr_gamma": st.floats(0.5, 9),
    "noise_offset": st.floats(0, 1),
    "output_name": st.text("abc äß'#=", min_size=1).filter(lambda t: t == t.strip()),
    "lr_warmup_steps": st.sampled_from(["10%", 0.1, 20]),
    "shuffle_caption": st.booleans(),
    "network_args": st.sampled_from([["conv_dim=4"], ["rank_dropout=0.1", "loraplus_lr_ratio=4"]]),
    "optimizer_args": st.sampled_from([["weight_decay=0.1", "betas=.9,.99"]]),
    "caption_prefix": st.text(max_size=9),
}


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({}, optional=NUMBERS))
def test_the_imported_file_is_the_same_configuration(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("import")
    (folder / "img" / "3_a cat").mkdir(parents=True)
    base = {"pretrained_model_name_or_path": "model.safetensors", "train_data_dir": str(folder / "img")}
    given = take(["--config_file", str(write(folder, {**base, "lr_scheduler": "cosine", **values}))])[0]
    config, notes = load(given)
    text, reported = imported(given)
    assert reported == notes
    (folder / "mine.toml").write_text(text, "utf-8")
    again = c.load(folder / "mine.toml")
    assert again.model_dump() == config.model_dump()
    assert c.parse(c.loads(config.to_toml())) == config


def test_import_says_what_each_value_was(folder, capsys):
    path = write(folder, {"network_dim": 8, "learning_rate": 1e-4, "train_data_dir": str(folder / "img"), "fp8": 1})
    assert main(["import-kohya", str(path), "-o", str(folder / "mine.toml"), "--network_alpha", "4"]) == 0
    text = (folder / "mine.toml").read_text("utf-8")
    assert "rank = 8 # network_dim = 8" in text
    assert "alpha = 4.0 # network_alpha = 4" in text
    assert "steps = 1600 # max_train_steps is not given; sd-scripts takes 1600" in text
    assert "# note: kohya.toml, line 4: fp8 is not an argument of sd-scripts' LoRA scripts; it is left out" in text
    assert "[[data.sets]]\npath = " in text
    assert "note: seed is not given" in capsys.readouterr().out


def test_import_as_json(folder, capsys):
    path = write(folder, {"network_dim": 8})
    assert main(["import-kohya", str(path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["v"], "rank = 8" in answer["toml"]) == (1, True)


def test_a_native_file_and_kohyas_flags_are_not_mixed(folder, capsys):
    path = str(write(folder, {"network_dim": 8}))
    assert main(["check", "--preset", "demo", "--config_file", path]) == 2
    assert "kohya's flags are given too" in capsys.readouterr().err
    assert main(["check", "--config_file", path]) == 2
    reported = capsys.readouterr().err
    assert "pretrained_model_name_or_path: it is not given; add --pretrained_model_name_or_path PATH" in reported
    assert "train_data_dir: it is not given; add --train_data_dir PATH or --dataset_config FILE" in reported
