"""No option of [adapter] does nothing: each changes what it says, in a real step of a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_runs import config
from torch import Tensor

from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.training.loop import train

RANKS, CONV, OFF = [4] * 25, {"conv_rank": 2}, [4] * 12 + [0] + [4] * 12
ALPHAS = [2.0] * 12 + [1.0] + [2.0] * 12
TEXT = {"text_encoders": True}
CASES: dict[str, tuple[str, dict[str, Any], Any, str, str]] = {
    # option: family, other options, its value, what it changes first, and in which tensors alone
    "kind": ("sd15", {}, "loha", "names", ""),
    "rank": ("sd15", {}, 2, "shapes", "lora_(up|down)"),
    "alpha": ("sd15", {}, 1.0, "alphas", ""),
    "conv_rank": ("sd15", {}, 2, "names", "resnets|samplers"),
    "conv_alpha": ("sd15", CONV, 0.5, "alphas", r"conv\d?\.|_conv(\d|_shortcut|)\."),
    "dropout": ("sd15", {}, 0.5, "values", "lora_up"),
    "rank_dropout": ("sd15", {}, 0.5, "values", "lora_up"),
    "module_dropout": ("sd15", {}, 0.5, "values", "lora_"),
    "denoiser": ("sd15", TEXT, False, "names", "lora_unet"),
    "text_encoders": ("sdxl", {}, ["clip_g"], "names", "lora_te2"),
    "targets": ("sd15", {}, ["attn2"], "names", "(?!.*attn2)"),
    "init_from": ("sd15", {}, "", "values", ""),
    "dora_for": ("sd15", {"kind": "dora"}, "lycoris", "values", "dora_scale"),
    "factor": ("sd15", {"kind": "lokr", "rank": 64}, 2, "shapes", "lokr"),
    "decompose_both": ("sd15", {"kind": "lokr", "rank": 1}, True, "names", "lokr_w1"),
    "loraplus": ("sd15", TEXT, 16.0, "values", "lora_up"),
    "loraplus_denoiser": ("sd15", TEXT, 16.0, "values", "lora_unet.*lora_up"),
    "loraplus_text": ("sd15", TEXT, 16.0, "values", "lora_te.*lora_up"),
    "scale_weight_norms": ("sd15", {}, 1e-3, "values", "lora_"),
    "block_ranks": ("sd15", {}, OFF, "names", "mid_block"),
    "block_alphas": ("sd15", {"block_ranks": RANKS, "alpha": 2.0}, ALPHAS, "alphas", "mid_block"),
    "conv_block_ranks": ("sd15", CONV, [2] * 12 + [1] + [2] * 12, "shapes", "mid_block_resnets.*conv"),
    "conv_block_alphas": ("sd15", CONV, ALPHAS, "alphas", "mid_block_resnets.*conv"),
    "down_lr": ("sd15", {}, [0.5] * 12, "values", "lora_unet_down"),
    "mid_lr": ("sd15", {}, [0.5], "values", "lora_unet_mid"),
    "up_lr": ("sd15", {}, "zeros+0.5", "values", "lora_unet_up"),
    "lr_zero_threshold": ("sd15", {"mid_lr": [0.5]}, 0.6, "names", "lora_unet_mid"),
    "blocks": ("sd3-medium", {}, "0,2", "names", "joint_blocks_1_"),
    "context_attn_rank": ("sd3-medium", {}, 2, "shapes", "context_block_attn"),
    "context_mlp_rank": ("sd3-medium", {}, 2, "shapes", "context_block_mlp"),
    "context_mod_rank": ("sd3-medium", {}, 2, "shapes", "context_block_adaLN"),
    "x_attn_rank": ("sd3-medium", {}, 2, "shapes", "x_block_attn"),
    "x_mlp_rank": ("sd3-medium", {}, 2, "shapes", "x_block_mlp"),
    "x_mod_rank": ("sd3-medium", {}, 2, "shapes", "x_block_adaLN"),
    "embedder_ranks": ("sd3-medium", {}, [1, 2, 3, 4, 5, 6], "names", "embedder|final_layer"),
}


def file_of(root: Path, family: str, options: dict[str, Any], name: str) -> dict[str, Tensor]:
    """What one step of a run saves. At Adam's first step no module's change depends on another's rate."""
    flags = {f"adapter.{key}": value for key, value in options.items()}
    flags = {"run.steps": 1, "run.batch": 2, "save.precision": "fp32", **flags}
    made = config(root, {**flags, "run.name": name}, family)
    assert train(made) == 0
    return load_file(root / "runs" / name / f"{name}.safetensors")


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[str, set[str]]:
    """The first of names, shapes, alphas and values in which two files differ, and the tensors that do."""
    if one.keys() != other.keys():
        return "names", set(one) ^ set(other)
    found = {name for name in one if one[name].shape != other[name].shape}
    if found:
        return "shapes", found
    found = {name for name in one if not torch.equal(one[name], other[name])}
    return ("alphas" if any(name.endswith(".alpha") for name in found) else "values"), found


@pytest.mark.nightly
@pytest.mark.parametrize("option", list(AdapterOptions.model_fields))
def test_an_option_changes_what_it_says(option: str, tmp_path: Path) -> None:
    family, others, value, what, where = CASES[option]
    plain = file_of(tmp_path, family, others, "plain")
    if option == "init_from":
        value = str(tmp_path / "runs" / "plain" / "plain.safetensors")
    assert difference(plain, file_of(tmp_path, family, others, "again"))[1] == set(), "two equal runs are equal"
    kind, names = difference(plain, file_of(tmp_path, family, {**others, option: value}, "changed"))
    assert kind == what and names
    if kind == "alphas":
        names = {name for name in names if name.endswith(".alpha")}
    assert not [name for name in names if not re.search(where, name)]
