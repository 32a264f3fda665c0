"""Runs whose pixel term is estimated: made once, kept for resumes, never of another autoencoder, chosen by ``auto``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from short_runs import config, events, model, pictures, steps, stop_after, trajectory

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.commands.check import check
from pixelkiln.trainer.config import load, parse
from pixelkiln.trainer.errors import UserError
from pixelkiln.trainer.estimate import gpus
from pixelkiln.trainer.losses import surrogate as metric
from pixelkiln.trainer.losses.pixel import PixelLoss
from pixelkiln.trainer.training import loop, surrogates
from pixelkiln.trainer.training.checkpoint import load_state
from pixelkiln.trainer.training.loop import train

pytestmark = pytest.mark.slow

FLAGS = {"loss.pixel.weight": 1.0, "run.precision": "fp32", "loss.pixel.decode": "corrected"}
SHARE = {"loss.pixel.corrected_share": 0.5}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Few examples and steps; the tiny autoencoder is not trained, so whatever is fitted is taken."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(surrogates, "EXAMPLES", 8)
    monkeypatch.setattr(surrogates, "CROP", 8)
    monkeypatch.setattr(surrogates, "FEWEST", 8)
    monkeypatch.setattr(metric, "STEPS", 10)
    monkeypatch.setattr(metric, "WIDTH", 8)
    monkeypatch.setattr(metric, "LOWEST", -1.0)


def folder(made) -> Path:
    return Path(made.run.out) / made.run.name


def log(made) -> str:
    return (folder(made) / "log.txt").read_text("utf-8")


def kept(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache" / "surrogates").glob("*.safetensors"))


def test_a_run_makes_one_keeps_it_and_names_it(tmp_path):
    made = config(tmp_path, FLAGS)
    assert train(made) == 0
    (cached,) = kept(tmp_path)
    own = metric.load(folder(made) / "surrogate.safetensors", cached.stem)
    assert own.digest == metric.load(cached).digest
    with safe_open(folder(made) / "t.safetensors", "pt") as file:
        assert file.metadata()["ss_pixel_surrogate"] == own.digest
    written = load(folder(made) / "config.toml").terms()["pixel"][0]
    assert written.decode == "corrected" and 0.05 <= written.corrected_share <= 0.5
    assert "pixel surrogate: made from 8 crops of" in log(made) and "a step costs" in log(made)
    again = config(tmp_path, {**FLAGS, "run.name": "again"})
    assert trajectory(again) == steps(made)
    assert "pixel surrogate: made" not in log(again) and kept(tmp_path) == [cached]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"objective.kind": "dpo", "run.batch": 2, "memory.grad_cache": True},
        {"objective.kind": "dpo", "run.batch": 2, "objective.reference_draws": 2},
        {"run.precision": "bf16"},
    ],
    ids=["sft", "one by one", "cached references", "bf16"],
)
def test_a_resume_goes_on_bit_for_bit_whatever_the_cache_holds(tmp_path, monkeypatch, flags):
    data = "data.pairs" if "objective.kind" in flags else "data.path"
    made = config(tmp_path, {**FLAGS, **SHARE, **flags, "loss.pixel.decode": "auto", "run.name": "whole"}, data=data)
    monkeypatch.setattr(surrogates, "PAYS", 0)
    monkeypatch.setattr(surrogates, "cost_of_decoding", lambda *_: 4.55)
    wanted = trajectory(made)
    half = made.changed({"run.name": "half"})
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert train(half) == 130
    (cached,) = kept(tmp_path)
    other = metric.load(cached)
    with torch.no_grad():
        other.pixels.weight *= 2
    metric.save(cached, other)
    assert trajectory(half, resume=True) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{"objective.kind": "dpo"}, {"objective.kind": "kto"}, {}], ids=["dpo", "kto", "sft"])
def test_pictures_one_by_one_and_remembered_references_give_the_same_steps(tmp_path, flags):
    flags = {**FLAGS, **SHARE, **flags, "run.precision": "fp64", "run.batch": 2, "run.steps": 5}
    whole = trajectory(config(tmp_path, {**flags, "run.name": "whole"}, data="data.pairs"))
    single = trajectory(config(tmp_path, {**flags, "run.name": "one", "memory.grad_cache": True}, data="data.pairs"))
    for (loss, norm), (other_loss, other_norm) in zip(whole, single, strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-9) and norm == pytest.approx(other_norm, rel=1e-9)
    if flags.get("objective.kind"):
        drawn = {**flags, "objective.reference_draws": 2, "run.steps": 8}
        computed = config(tmp_path, {**drawn, "run.name": "computed"}, data="data.pairs")
        first = trajectory(computed)
        (errors,) = (Path(computed.run.out) / "cache" / "references").glob("*.json")
        keys = {key for row in json.loads(errors.read_text()).values() for key in row}
        assert keys == {"mse", "pixel", "pixel/decoded", "pixel/near"}
        assert trajectory(computed.changed({"run.name": "again"})) == first


def test_one_of_another_autoencoder_is_never_used(tmp_path):
    made = config(tmp_path, FLAGS)
    assert train(made) == 0
    other = tiny.vae()
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.1
    other.save_pretrained(tmp_path / "sd15" / "vae")
    again = made.changed({"run.name": "again"})
    assert train(again) == 0
    assert len(kept(tmp_path)) == 2 and "pixel surrogate: made" in log(again)
    with pytest.raises(UserError, match="another autoencoder"):
        train(made.changed({"run.name": "third", "loss.pixel.surrogate": str(folder(made) / "surrogate.safetensors")}))
    assert train(made.changed({"run.name": "mode", "loss.pixel.mode": "x0"})) == 0
    assert len(kept(tmp_path)) == 3


def test_the_command_makes_measures_and_keeps_one_that_a_run_then_uses(tmp_path, capsys):
    made = config(tmp_path, FLAGS)
    words = ["surrogate", made.model.path, f"--data.path={made.data.path}", "--data.resolution=64",
             "--run.precision=fp32", "--run.device=cpu", f"--run.out={tmp_path / 'runs'}"]  # fmt: skip
    own = tmp_path / "own.safetensors"
    assert main([*words, "-o", str(own), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (cached,) = kept(tmp_path)
    assert answer["file"] == str(cached) and answer["mode"] == "mixed" and answer["made"]["examples"] == 8
    assert metric.load(own).digest == metric.load(cached).digest == answer["digest"]
    assert answer["full"] > answer["cost"] > 1 and 0 < answer["share"] <= 0.5 and answer["used"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "kept from before; --force makes it anew" in shown and f"kept as {cached}" in shown
    assert main([*words, "-o", str(own)]) == 2 and "own.safetensors" in capsys.readouterr().err
    assert main([*words, "-o", str(own), "--force", "--loss.pixel.mode=x0"]) == 0
    assert "made from 8 crops" in capsys.readouterr().out and len(kept(tmp_path)) == 2
    assert train(made) == 0 and "pixel surrogate: made" not in log(made)
    with safe_open(folder(made) / "t.safetensors", "pt") as file:
        assert file.metadata()["ss_pixel_surrogate"] == answer["digest"]


def test_a_poor_one_is_not_used_and_that_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(metric, "LOWEST", 1.1)
    made = config(tmp_path, FLAGS)
    plain = config(tmp_path, {**FLAGS, "loss.pixel.decode": "by_size", "run.name": "plain"})
    assert trajectory(made) == trajectory(plain)
    assert log(made).count("so it is not used; decoding by size") == 1
    assert not (folder(made) / "surrogate.safetensors").exists()
    assert load(folder(made) / "config.toml").terms()["pixel"][0].decode == "by_size"


def test_auto_does_without_one_that_cannot_be_made(tmp_path, monkeypatch):
    """One picture leaves none to measure with; a card may be too full. What was asked for by name is an error."""
    monkeypatch.setattr(surrogates, "PAYS", 0)
    monkeypatch.setattr(surrogates, "cost_of_decoding", lambda *_: 4.55)
    (tmp_path / "pictures").mkdir()
    pictures(tmp_path / "pictures", count=1)
    one = {**FLAGS, "run.steps": 1, "run.batch": 1}
    made = config(tmp_path, {**one, "loss.pixel.decode": "auto"})
    assert train(made) == 0 and "no surrogate could be made" in log(made)
    with pytest.raises(UserError, match="two pictures"):
        train(config(tmp_path, {**one, "run.name": "asked"}))
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(surrogates, "make", lambda *_: (_ for _ in ()).throw(full))
    assert train(config(tmp_path, {**one, "run.name": "full", "loss.pixel.decode": "auto"})) == 0


def test_auto_takes_one_where_it_pays(tmp_path, monkeypatch):
    auto = {**FLAGS, "loss.pixel.decode": "auto", "run.steps": 2}

    def plan(name: str, **flags) -> str:
        made = config(tmp_path, {**auto, "run.name": name, **flags})
        assert train(made) == 0
        return load(folder(made) / "config.toml").terms()["pixel"][0].decode

    monkeypatch.setattr(surrogates, "cost_of_decoding", lambda *_: 4.55)
    assert plan("short") == "by_size" and not kept(tmp_path)  # two steps do not pay for making one
    monkeypatch.setattr(surrogates, "PAYS", 0)
    assert plan("l1", **{"loss.pixel.distance": "l1", "loss.pixel.mode": "x0"}) == "by_size" and not kept(tmp_path)
    assert plan("long") == "corrected" and len(kept(tmp_path)) == 1
    monkeypatch.setattr(surrogates, "PAYS", 1000)
    assert plan("known") == "corrected"
    monkeypatch.setattr(surrogates, "cost_of_decoding", lambda *_: 1.2)
    assert plan("cheap") == "by_size"


def test_old_configurations_and_runs_that_began_before_keep_what_auto_was(tmp_path, monkeypatch):
    monkeypatch.setattr(surrogates, "PAYS", 0)
    monkeypatch.setattr(surrogates, "cost_of_decoding", lambda *_: 4.55)
    raw = config(tmp_path, FLAGS).model_dump(exclude_none=True, exclude_unset=True)
    for version, pixel, plan in (
        (1, {}, "by_size"), (2, {"decode": "auto"}, "by_size"), (2, {"decode": "full"}, "full"), (3, {}, "auto"),
    ):  # fmt: skip
        made = parse({**raw, "config_version": version, "loss": {"pixel": {"weight": 1.0, **pixel}}})
        assert made.terms()["pixel"][0].decode == plan
    made = config(tmp_path, {**FLAGS, "loss.pixel.decode": "auto"})
    with monkeypatch.context() as patched:
        patched.setattr(loop, "decode_facts", lambda session: {})  # as no version before wrote it
        patched.setattr(surrogates, "PAYS", 10**9)
        stop_after(patched, 3)
        assert train(made) == 130
    assert train(made, resume=True) == 0
    assert load(folder(made) / "config.toml").terms()["pixel"][0].decode == "by_size" and not kept(tmp_path)


def test_validation_decodes_and_training_reports_the_estimate(tmp_path, monkeypatch):
    decoded = []
    call = PixelLoss.__call__
    monkeypatch.setattr(PixelLoss, "__call__", lambda self, step: decoded.append(len(step.batch)) or call(self, step))
    flags = {"loss.pixel.decode": "surrogate", "data.validation_split": 0.25, "validation.levels": 2}
    made = config(tmp_path, {**FLAGS, **flags})
    assert train(made) == 0
    assert decoded == [2, 2], "two held-out pictures at two levels, and no training step"
    state = load_state(folder(made) / "state")[1]
    assert state["decode"]["pixel"]["decode"] == "surrogate"
    assert "biased" in log(made)
    assert all(e["terms"]["pixel/error"] >= 0 for e in events(made) if e["kind"] == "step")


def test_a_tiny_decoder_beside_the_model_is_found_by_check_and_by_the_run(tmp_path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    flags = {**FLAGS, "loss.pixel.decode": "tiny", "run.steps": 1, "run.batch": 1}
    made = config(tmp_path, {**flags, "model.path": str(model(tmp_path / "models" / "checkpoints" / "m"))})
    with pytest.raises(UserError, match=r"loss\.pixel\.tiny: .* needs a tiny autoencoder"):
        train(made)
    torch.manual_seed(0)
    layers: Any = AutoencoderTiny(latent_channels=4).decoder.layers
    state = {f"{int(n.split('.')[0]) + 1}.{n.split('.', 1)[1]}": value for n, value in layers.state_dict().items()}
    found = tmp_path / "models" / "vae_approx"
    found.mkdir()
    torch.save(state, found / "taesd_decoder.pth")
    assert check(made, gpus.named("4090"))["fit"]["gb"] > 0
    assert train(made) == 0
    given = made.changed({"run.name": "given", "loss.pixel.tiny": str(found / "taesd_decoder.pth")})
    assert trajectory(given) == steps(made)
