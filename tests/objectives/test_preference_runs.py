"""Preference training as a whole: remembered references, pictures one by one, every objective and family."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import tiny
import torch
from short_runs import DROPOUT, config, events, steps, stop_after, trajectory

from pixelkiln.trainer.config import merge, parse
from pixelkiln.trainer.registry import objectives
from pixelkiln.trainer.training import step
from pixelkiln.trainer.training.loop import train
from pixelkiln.trainer.training.reference_cache import ReferenceCache

DPO = {"objective.kind": "dpo", "loss.pixel.mode": "anchored", "loss.pixel.weight": 1.0}


def run(root, name, **flags):
    return config(root, {**DPO, "run.name": name, "run.steps": 8, "run.batch": 2, **flags}, data="data.pairs")


@pytest.mark.slow
def test_a_remembered_reference_is_the_reference(tmp_path, monkeypatch):
    flags = {"objective.reference_draws": 2, "adapter.dropout": 0.1, "data.flip": True, "data.caption_dropout": 0.3}
    remembered = run(tmp_path, "remembered", **flags)
    asked = []
    compute = ReferenceCache.get

    def counted(self, model, terms, batch, draw, make):
        return compute(self, model, terms, batch, draw, lambda: asked.append(1) or make())

    monkeypatch.setattr(ReferenceCache, "get", counted)
    first = trajectory(remembered)
    assert 0 < len(asked) < 8  # 6 pairs, 3 steps an epoch, 2 draws each: all known after 6 steps
    count = len(asked)
    again = trajectory(run(tmp_path, "again", **flags))
    assert again == first
    assert len(asked) == count  # found on the disk
    monkeypatch.setattr(ReferenceCache, "get", lambda self, model, terms, batch, draw, make: make())
    assert trajectory(run(tmp_path, "computed", **flags)) == first


@pytest.mark.slow
def test_another_schedule_of_noise_has_its_own_references(tmp_path, monkeypatch):
    tiny.tiny_sd15(tmp_path / "sd15", "v")
    flags = {"objective.reference_draws": 1, "run.steps": 2, "loss.pixel.weight": 0.0}
    trajectory(run(tmp_path, "before", **flags))
    stretched = {**flags, "model.zero_terminal_snr": True}
    remembered = trajectory(run(tmp_path, "remembered", **stretched))
    monkeypatch.setattr(ReferenceCache, "get", lambda self, model, terms, batch, draw, make: make())
    assert trajectory(run(tmp_path, "computed", **stretched)) == remembered


@pytest.mark.slow
@pytest.mark.parametrize("flags", [DPO | DROPOUT, {"objective.kind": "sft"}], ids=["dpo", "sft"])
def test_one_by_one_gives_the_same_steps(tmp_path, flags):
    whole = trajectory(run(tmp_path, "whole", **flags))
    single = trajectory(run(tmp_path, "single", **flags, **{"memory.grad_cache": True}))
    for (loss, norm), (other_loss, other_norm) in zip(whole, single, strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-9)
        assert norm == pytest.approx(other_norm, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind, data", [("kto", "pairs"), ("kto", "ratings"), ("sft", "ratings")])
def test_the_loss_is_the_mean_over_what_gets_a_value(tmp_path, kind, data):
    """Both pictures of a pair for KTO, only the liked for supervised training; over the whole effective batch."""
    flags = {"objective.kind": kind, "loss.pixel.weight": 0.0, "run.steps": 3, "run.batch": 1, "run.accumulation": 4}
    made = run(tmp_path, kind, **flags)
    folder = tmp_path / "pairs"
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    liked = [
        {"image": row[k], "prompt": "a cat", "liked": k == "chosen"} for row in rows for k in ("chosen", "rejected")
    ]
    (folder / "ratings.jsonl").write_text("\n".join(map(json.dumps, liked)), "utf-8")
    made = parse(merge(made.model_dump(exclude_unset=True), {"data": {"pairs": None, data: str(folder)}}))
    trajectory(made)
    means = [(e["loss"], e["terms"]["mse/value"]) for e in events(made) if e["kind"] == "step"]
    assert len(means) == 3
    for loss, mean in means:
        assert loss == pytest.approx(mean, rel=1e-9) and loss > 0


def test_dpo_begins_at_ln_2_and_learns_the_pairs(tmp_path):
    flags = {
        "run.steps": 40,
        "run.precision": "fp32",
        "optimizer.learning_rate": 5e-3,
        "objective.reference_draws": 1,
        "data.validation_split": 0.34,
        "loss.pixel.weight": 0.0,
    }
    done = run(tmp_path, "learns", **flags)
    losses = [loss for loss, _ in trajectory(done)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    terms = [e["terms"] for e in events(done) if e["kind"] == "step"]
    assert terms[0]["mse/accuracy"] == 0.5
    assert sum(t["mse/margin"] for t in terms[-20:]) > 0
    (held_out,) = [e for e in events(done) if e["kind"] == "validation"]
    assert all("mse/accuracy" in level for level in held_out["levels"].values())


@pytest.mark.slow
@pytest.mark.parametrize("redrawn", [False, True], ids=["the same noise", "noise drawn anew"])
@pytest.mark.parametrize(("family", "prediction"), [("sd15", "epsilon"), ("sd15", "v"), ("sd3.5-medium", "flow")])
def test_the_reference_sees_the_same_noise(tmp_path, monkeypatch, family, prediction, redrawn):
    """While the adapter adds nothing every margin is exactly 0; with noise of its own, a published bug, it is not."""
    tiny.write(tmp_path / family, tiny.parts(family, **({} if prediction == "flow" else {"prediction": prediction})))
    forward = step.forward

    def redrawing(model, batch, draw):
        noise = draw.noise if torch.is_grad_enabled() else torch.randn_like(draw.noise)
        return forward(model, batch, replace(draw, noise=noise, added=noise))

    if redrawn:
        monkeypatch.setattr(step, "forward", redrawing)
    flags = {**DPO, "run.name": "first", "run.steps": 1, "run.batch": 2, "run.precision": "fp32"}
    done = config(tmp_path, flags, name=family, data="data.pairs")
    trajectory(done)
    (terms,) = [e["terms"] for e in events(done) if e["kind"] == "step"]
    assert (terms["mse/margin"] == terms["pixel/margin"] == 0.0) is not redrawn


@pytest.mark.parametrize("objective", [entry.name for entry in objectives if entry.options.data])
def test_every_objective_trains(tmp_path, objective):
    done = run(tmp_path, objective, **{"objective.kind": objective, "run.steps": 2})
    assert all(math.isfinite(loss) and norm > 0 for loss, norm in trajectory(done))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "sd3.5-medium"])
def test_every_family_trains_pairs(tmp_path, family):
    flags = {**DPO, "run.name": family, "run.steps": 2, "run.batch": 2}
    done = config(tmp_path, flags, name=family, data="data.pairs")
    assert all(math.isfinite(loss) and norm > 0 for loss, norm in trajectory(done))


@pytest.mark.slow
def test_the_adapter_that_training_started_from_can_be_the_reference(tmp_path):
    first = config(tmp_path, {"run.name": "first", "run.steps": 3, "run.precision": "fp32"})
    assert train(first) == 0
    start = str(tmp_path / "runs" / "first" / "first.safetensors")
    flags = {"adapter.init_from": start, "run.precision": "fp32", "loss.pixel.weight": 0.0, "run.steps": 2}
    anchored = run(tmp_path, "anchored", **flags, **{"objective.reference": "start"})
    assert trajectory(anchored)[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert trajectory(run(tmp_path, "base", **flags))[0][0] != pytest.approx(math.log(2), abs=1e-9)
    assert len(steps(anchored)) == 2


RESUMED = {
    "dpo, automatic beta, remembered": {"objective.beta": "auto", "objective.reference_draws": 2},
    "simpo, automatic beta": {"objective.kind": "simpo"},
    "kto, running KL": {"objective.kind": "kto"},
    "latent dpo and pixel simpo": {"objective.pixel.kind": "simpo", "loss.pixel.weight": "auto"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_stopped_and_resumed_is_never_stopped(tmp_path, monkeypatch, name):
    flags = {"run.precision": "fp32", "adapter.dropout": 0.1, "data.flip": True, **RESUMED[name]}
    whole = trajectory(run(tmp_path, "never", **flags))
    stopped = run(tmp_path, "stopped", **flags)
    stop_after(monkeypatch, 5)
    assert train(stopped) == 130
    monkeypatch.undo()
    assert trajectory(stopped, resume=True) == whole  # bit for bit


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_every_kind_of_adapter_is_its_own_reference(tmp_path, kind):
    flags = {"adapter.kind": kind, "run.precision": "fp32", "run.steps": 2, "loss.pixel.weight": 0.0}
    (first, norm), (later, _) = trajectory(run(tmp_path, kind, **flags, **{"optimizer.learning_rate": 0.02}))
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert norm > 0
    assert later != pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.slow
def test_a_step_that_is_no_number_is_skipped_and_the_pairs_go_on(tmp_path, monkeypatch):
    errors = step.compute_errors
    calls = []

    def broken(terms, seen):
        calls.append(1)
        return {name: e * math.nan if len(calls) in (3, 4) else e for name, e in errors(terms, seen).items()}

    monkeypatch.setattr(step, "compute_errors", broken)  # the second step: its reference, then its policy
    done = run(tmp_path, "nan", **{"run.precision": "fp32", "run.steps": 4, "objective.beta": "auto"})
    assert train(done) == 0
    assert [math.isfinite(loss or math.nan) for loss, _ in steps(done)] == [True, False, True, True]
