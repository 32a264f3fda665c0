"""What every family owes, and a family from outside the tree: one file and one key mapping."""

from __future__ import annotations

import importlib
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import short_runs as runs
import tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from pixelkiln.trainer.adapters import files, keys
from pixelkiln.trainer.adapters.mappings import mapping
from pixelkiln.trainer.adapters.names import all_sites, file_path, model_paths
from pixelkiln.trainer.commands.check import card_for, check
from pixelkiln.trainer.config import ConfigError, load
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.families.family import FamilySpec
from pixelkiln.trainer.families.load import meta
from pixelkiln.trainer.kohya.names import script_of
from pixelkiln.trainer.memory.quantize import TEXT, quantizable
from pixelkiln.trainer.registry import families
from pixelkiln.trainer.training.build import build_session

NAMES = families.names()


@pytest.fixture(scope="module")
def new_family():
    """The family, registered while these tests run."""
    names = ("outside.new_family", "outside.new_family_keys")
    families.names()
    mapping.known()
    for name in names:
        importlib.import_module(name)
    yield families["new"].build()
    families._entries.pop("new")
    mapping._mappings.pop("new")
    for name in names:
        sys.modules.pop(name)


def owes(spec: FamilySpec, denoiser, encoders) -> None:
    """The contract: what the rest of the trainer takes from a family fits its own modules."""
    one = mapping.key_mapping(spec.name)
    assert all(getattr(spec, field.name) is not None for field in fields(spec) if field.name in ("quantized", "run"))
    assert set(one.encoders) == set(spec.encoders) and one.denoiser == spec.part
    assert spec.assumed in (None, *spec.predictions) and ("flow" in spec.predictions) == one.is_flow
    assert spec.blocks(denoiser) and len(list(quantizable(denoiser, spec.quantized))) > 10
    assert all(list(quantizable(encoder, TEXT)) for encoder in encoders.values())
    assert spec.resolution % spec.multiple == 0 and spec.dpo_beta > 0 and spec.sampling_shift >= 1
    sites = all_sites(spec.name, {"unet": denoiser, **encoders})
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        if site.component == "unet":
            (dotted,) = {file_path(spec.name, "unet", path)[0] for path in site.paths}
            assert set(model_paths(spec.name, "unet", dotted)) == set(site.paths)
    header = files.metadata(spec.name, "lora", {}, rank=4, alpha=4.0)
    assert mapping.named_in(header) == spec.name
    ours = dict(keys.file_keys(spec.name, {"unet": denoiser}))
    assert keys.identify(ours, header).family == spec.name


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_families(name):
    owes(families[name].build(), *meta(name))


def test_the_contract_holds_for_a_family_from_outside(new_family, folder):
    model = UNet2DConditionModel.from_pretrained(folder / "unet")
    owes(new_family, model, {"te": tiny.clip(tiny.clip_tokenizer())})


def test_families_and_key_mappings_are_the_same_set():
    assert set(families.names()) - {"new"} == set(mapping.known()) - {"new"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tiny.sd15()
    config = {key: value for key, value in made.denoiser.config.items() if not key.startswith("_")}
    torch.manual_seed(21)
    made.denoiser = UNet2DConditionModel.from_config({**config, "in_channels": 8, "out_channels": 8}).eval()
    made.vae = tiny.vae(8)
    return tiny.write(tmp_path_factory.mktemp("new") / "new", made)


def test_a_family_from_outside_trains_saves_proves_and_resumes(new_family, folder, tmp_path, capfd):
    flags = {"model.path": str(folder), "save.state_every": 1}
    config = runs.config(tmp_path, {**flags, "run.steps": 2, "memory.gradient_checkpointing": True})
    assert len(runs.trajectory(config)) == 2
    saved = Path(config.run.out) / "t" / "t.safetensors"
    assert "each has the trained effect" in capfd.readouterr().err
    tensors = load_file(saved)
    assert any(key.startswith("lora_unet_downs_") for key in tensors) and not any(
        "down_blocks" in key for key in tensors
    )
    with_header = files.read(saved)[1]
    assert with_header["ss_base_model_version"] == "new_v1" and with_header["modelspec.architecture"] == "new-v1/lora"
    assert keys.identify({key: value.shape for key, value in tensors.items()}).family == "new"
    longer = config.changed({"run.steps": 4})
    assert len(runs.trajectory(longer, resume=True)) == 4
    whole = runs.config(tmp_path, {**flags, "run.steps": 4, "run.name": "w", "memory.gradient_checkpointing": True})
    assert runs.trajectory(whole) == runs.steps(longer)
    begun = runs.config(tmp_path, {**flags, "run.steps": 1, "run.name": "c", "adapter.init_from": str(saved)})
    assert len(runs.trajectory(begun)) == 1


def test_everything_asks_the_family_from_outside(new_family, folder, tmp_path):
    flags = {"model.path": str(folder), "model.family": "new"}
    found = check(runs.config(tmp_path, flags), card_for(runs.config(tmp_path, flags), None, "8GB"))
    assert found["model"]["family"] == "new" and found["fit"]["gb"] > 0
    dpo = runs.config(tmp_path, {**flags, "objective.kind": "dpo"}, data="data.pairs")
    made = build_session(dpo, lambda line: None)
    assert made.terms.terms[0].objective.parts.beta == 700.0
    with pytest.raises(UserError, match="sd_scripts_cache: sd-scripts does not train New"):
        build_session(runs.config(tmp_path, {**flags, "data.sd_scripts_cache": True}), lambda line: None)
    with pytest.raises(UserError, match="sd-scripts does not train New"):
        script_of("new")
    with pytest.raises(ConfigError, match="prediction: new does not predict v"):
        load(flags={**flags, "model.prediction": "v"})


def test_an_unknown_family_is_an_error():
    with pytest.raises(ConfigError, match="there is no 'sd16'; did you mean 'sd15'"):
        load(flags={"model.path": "x", "model.family": "sd16"})
    with pytest.raises(UserError, match="no key mapping is known for 'sd3-huge'"):
        mapping.key_mapping("sd3-huge")
    with pytest.raises(UserError, match="families: there is no 'sd3-huge'"):
        script_of("sd3-huge")
    with pytest.raises(UserError):
        files.metadata("sd3-huge", "lora", {}, rank=1, alpha=1.0)
