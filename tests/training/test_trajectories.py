"""Classes of runs that must agree: how a batch is split, cached or not, checkpointed or not, stopped or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_runs import DROPOUT, config, events, steps, stop_after, trajectory

from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training.loop import train

STEPS = 20
PIXEL = {"loss.pixel.mode": "mixed", "loss.pixel.probability": 0.5, "loss.pixel.weight": "auto"}
DPO = {"objective.kind": "dpo", "objective.pixel.kind": "simpo", "loss.pixel.mode": "anchored"}


def agree(first, second, tolerance: float) -> None:
    assert len(first) == len(second) == STEPS
    for (loss, norm), (other_loss, other_norm) in zip(first, second, strict=True):
        assert loss == pytest.approx(other_loss, rel=tolerance, abs=tolerance)
        assert norm == pytest.approx(other_norm, rel=tolerance, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "data"),
    [(PIXEL, "data.path"), (DPO | DROPOUT, "data.pairs")],
    ids=["sft with pixel term", "dpo with pixel simpo and dropout"],
)
def test_batch_and_accumulation_split_the_same_step(tmp_path, flags, data):
    runs = [
        trajectory(
            config(
                tmp_path,
                {**flags, "run.steps": STEPS, "run.name": f"{b}x{a}", "run.batch": b, "run.accumulation": a},
                data=data,
            )
        )
        for b, a in ((4, 1), (2, 2), (1, 4))
    ]
    assert runs[0][0] != runs[0][-1]
    agree(runs[0], runs[1], 1e-9)
    agree(runs[0], runs[2], 1e-9)


@pytest.mark.slow
def test_the_split_agrees_in_single_precision_too(tmp_path):
    flags = {"run.steps": STEPS, "run.precision": "fp32"}
    whole = trajectory(config(tmp_path, {**flags, "run.name": "whole"}))
    split = trajectory(config(tmp_path, {**flags, "run.name": "split", "run.batch": 1, "run.accumulation": 4}))
    agree(whole, split, 1e-4)


@pytest.mark.slow
def test_cached_equals_encoded_anew(tmp_path):
    kept = trajectory(config(tmp_path, {"run.steps": STEPS, "run.name": "kept", "data.flip": True}))
    anew = {"data.cache_latents": "off", "data.cache_text": "off", "data.flip": True}
    agree(kept, trajectory(config(tmp_path, {"run.steps": STEPS, "run.name": "anew", **anew})), 1e-9)


@pytest.mark.slow
def test_checkpointing_changes_nothing(tmp_path):
    plain = trajectory(config(tmp_path, {"run.steps": STEPS, "run.name": "plain", **PIXEL}))
    flags = {"memory.gradient_checkpointing": True, "run.name": "checkpointed", **PIXEL}
    agree(plain, trajectory(config(tmp_path, {"run.steps": STEPS, **flags})), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AdamW", "AdamW8bit", "Prodigy"])
def test_stopped_and_resumed_is_never_stopped(tmp_path, kind, monkeypatch):
    flags = {
        "run.steps": STEPS,
        "run.precision": "fp32",
        "optimizer.kind": kind,
        "schedule.kind": "cosine",
        "adapter.dropout": 0.1,
        "data.flip": True,
        "data.caption_dropout": 0.2,
        **PIXEL,
    }
    never = config(tmp_path, {**flags, "run.name": "never"})
    whole = trajectory(never)
    stopped = config(tmp_path, {**flags, "run.name": "stopped"})
    stop_after(monkeypatch, 7)
    assert train(stopped) == 130
    monkeypatch.undo()
    assert len(steps(stopped)) == 7
    assert train(stopped, resume=True) == 0
    assert steps(stopped) == whole  # bit for bit
    first, second = (RunFolder(Path(c.run.out) / c.run.name).final.read_bytes() for c in (never, stopped))
    assert weights(first) == weights(second)


def weights(file: bytes) -> bytes:
    return file[8 + int.from_bytes(file[:8], "little") :]


def test_training_learns_the_pictures(tmp_path):
    done = config(
        tmp_path,
        {"run.steps": 60, "optimizer.learning_rate": 1e-2, "data.validation_split": 0.25, "run.precision": "fp32"},
    )
    losses = [loss for loss, _ in trajectory(done)]
    assert sum(losses[-20:]) < 0.97 * sum(losses[:20])
    (shown,) = [e for e in events(done) if e["kind"] == "validation"]
    assert len(shown["levels"]) == 4
