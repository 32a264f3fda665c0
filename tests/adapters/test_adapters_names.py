"""Every module of every family in every program's names: each leads to its module, and to a name that hosts know."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import Tensor

from pixelkiln.trainer.adapters import keys
from pixelkiln.trainer.adapters.keys import Site
from pixelkiln.trainer.adapters.loading import for_host
from pixelkiln.trainer.adapters.mappings.mapping import key_mapping, known
from pixelkiln.trainer.adapters.names import DENOISER, all_sites, file_path
from pixelkiln.trainer.families.load import meta

ENCODERS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}
CLIPS = {"te": "clip_l", "te1": "clip_l", "te2": "clip_g", "te3": "t5xxl"}
FUSED = ("kohya", "trailing underscores", "comfyui", "omi")
"""Namings with the file's own network, whose q, k and v are one."""
PEFTS = ("diffusers", "peft", "both", "comfyui", "omi")
"""Namings whose matrices are called A and B."""


@cache
def sites(family: str) -> tuple[Site, ...]:
    denoiser, encoders = meta(family)
    found = all_sites(family, {DENOISER: denoiser, **encoders})
    return tuple(site for site in found if site.role in ("attention", "text", "resnet"))


def spelled(naming: str, family: str, site: Site, path: str) -> str | None:
    """What a program calls a module; None where it has no name for it."""
    flat = path.replace(".", "_")
    if site.component == DENOISER:
        part, dotted = key_mapping(family).denoiser, file_path(family, DENOISER, path)[0]
        old = re.sub(r"\.(attn\d?)\.(to_[qkv]|to_out|add_[qkv]_proj|to_add_out)(\.0)?$", r".\1.processor.\2_lora", path)
        return {
            "kohya": site.name, "trailing underscores": f"{site.name}_", "diffusers": f"{part}.{path}",
            "peft": f"base_model.model.{path}", "both": f"{part}.base_model.model.{path}",
            "comfyui": f"diffusion_model.{dotted}", "omi": f"diffusion_model.{dotted}", "lycoris": f"lycoris_{flat}",
            "onetrainer": f"lora_{part}_{flat}", "diffusers of 2023": f"{part}.{old}",
        }[naming]  # fmt: skip
    whole = path if path.startswith(("text_model", "encoder.block", "shared")) else f"text_model.{path}"
    encoder, clip = ENCODERS[site.component], CLIPS[site.component]
    return {
        "kohya": site.name, "trailing underscores": f"{site.name}_", "diffusers": f"{encoder}.{whole}",
        "both": f"{encoder}.base_model.model.{whole}", "comfyui": f"text_encoders.{clip}.transformer.{whole}",
        "omi": f"{clip}.{whole}", "onetrainer": site.name, "diffusers of 2023": f"{encoder}.{whole}",
    }.get(naming)  # fmt: skip


def written(naming: str, family: str) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of a file, and the modules that it is for."""
    tensors, modules = {}, set()
    for site in sites(family):
        paths = site.paths[:1] if naming in FUSED else site.paths
        rows, width, *window = site.shape
        for path in paths:
            name = spelled(naming, family, site, path)
            if name is None:
                continue
            modules.add(site.name)
            ab = ("lora_A", "lora_B") if naming in PEFTS else ("down", "up") if name.endswith("_lora") else (
                "lora_down", "lora_up")  # fmt: skip
            tensors[f"{name}.{ab[0]}.weight"] = torch.ones(1, width, *window)
            tensors[f"{name}.{ab[1]}.weight"] = torch.ones(rows // len(paths), 1, *(1 for _ in window))
    return tensors, modules


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["kohya", "trailing underscores", "diffusers", "peft", "both", "comfyui", "omi",
                                    "lycoris", "onetrainer", "diffusers of 2023"])  # fmt: skip
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_every_module_is_found_by_every_name(family: str, naming: str) -> None:
    assert family in known()
    tensors, modules = written(naming, family)
    facts = keys.identify({key: tuple(value.shape) for key, value in tensors.items()})
    assert facts.family == family and facts.kind == "lora" and not facts.foreign
    found = keys.read(tensors)
    assert set(found.modules) | set(found.apart) == modules and not found.left
    host = for_host(tensors, {}, {site.name for site in sites(family)})
    assert {key.split(".")[0] for key in host.tensors} == modules
    assert host.lost == [] and host.problems == []
