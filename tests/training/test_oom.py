"""Memory that runs out in the middle of a run, and steps that become slow."""

from __future__ import annotations

import pytest
import short_runs as runs
import torch

from pixelkiln.trainer.families.sd15 import SD15
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training import loop
from pixelkiln.trainer.training.loop import train
from pixelkiln.trainer.training.monitors import StepTimeMonitor

STEPS = 4
PIXEL = {"loss.pixel.mode": "mixed", "loss.pixel.decode": "full", "loss.pixel.decode_batch": 4}


class Full:
    """A GPU that is full: the denoiser of a run raises torch's own error while ``too_much(denoiser, rows)``."""

    def __init__(self, monkeypatch, too_much, after: int = 0):
        self.raised, self.calls = 0, 0
        build = loop.build_session

        def built(*args, **kwargs):
            session = build(*args, **kwargs)
            denoiser = session.model.family.denoiser

            def look(_, inputs):
                self.calls += 1
                if torch.is_grad_enabled() and self.calls > after and too_much(denoiser, len(inputs[0])):
                    self.raised += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has none left.")

            denoiser.conv_in.register_forward_pre_hook(look)
            return session

        monkeypatch.setattr(loop, "build_session", built)


def recomputes(denoiser) -> bool:
    return "forward" in vars(SD15.blocks(denoiser)[0])


def ooms(config) -> list[dict]:
    return [event for event in runs.events(config) if event["kind"] == "oom"]


@pytest.mark.slow
def test_a_step_is_repeated_with_checkpoints_and_changes_nothing(tmp_path, monkeypatch):
    plain = runs.trajectory(runs.config(tmp_path, {"run.steps": STEPS, "run.name": "plain"}))
    config = runs.config(tmp_path, {"run.steps": STEPS, "run.name": "short"})
    full = Full(monkeypatch, lambda denoiser, rows: not recomputes(denoiser), after=2)
    short = runs.trajectory(config)
    assert full.raised == 1 and len(short) == STEPS
    assert short == [pytest.approx(pair, rel=1e-9) for pair in plain]
    (shown,) = ooms(config)
    assert shown["did"] == "gradient checkpointing" and shown["exact"] and shown["step"] == 2
    warnings = [e["message"] for e in runs.events(config) if e["kind"] == "warning"]
    assert any("out of memory" in w and "repeated with gradient checkpointing" in w and "same" in w for w in warnings)


@pytest.mark.slow
def test_from_a_share_of_the_blocks_it_goes_to_all(tmp_path, monkeypatch):
    """As a plan leaves it: chosen and not set."""
    plain = runs.trajectory(runs.config(tmp_path, {"run.steps": STEPS, "run.name": "plain"}))
    config = runs.config(tmp_path, {"run.steps": STEPS, "run.name": "short", "memory.plan": "auto"})
    half = {"memory.gradient_checkpointing": True, "memory.checkpointing_fraction": 0.5}
    Full(monkeypatch, lambda denoiser, rows: "forward" not in vars(SD15.blocks(denoiser)[-1]), after=2)
    short = runs.trajectory(config.planned(half, {}))
    assert short == [pytest.approx(pair, rel=1e-9) for pair in plain]
    assert [event["did"] for event in ooms(config)] == ["gradient checkpointing on all blocks"]


@pytest.mark.slow
def test_smaller_micro_batches_give_the_same_run(tmp_path, monkeypatch):
    plain = runs.trajectory(runs.config(tmp_path, {"run.steps": STEPS, "run.name": "plain", **PIXEL}))
    config = runs.config(tmp_path, {"run.steps": STEPS, "run.name": "short", **PIXEL})
    full = Full(monkeypatch, lambda denoiser, rows: rows > 1)
    short = runs.trajectory(config)
    assert short == [pytest.approx(pair, rel=1e-9) for pair in plain]
    done = [event["did"] for event in ooms(config)]
    assert done[0] == "decode one picture at a time" and done[-1] == "batch 1 with 4 times accumulation"
    assert full.raised == len(done)


@pytest.mark.slow
def test_pairs_go_one_by_one(tmp_path, monkeypatch):
    flags = {"run.steps": STEPS, "run.batch": 2, "objective.kind": "dpo"}
    plain = runs.trajectory(runs.config(tmp_path, {**flags, "run.name": "plain"}, data="data.pairs"))
    config = runs.config(tmp_path, {**flags, "run.name": "short"}, data="data.pairs")
    Full(monkeypatch, lambda denoiser, rows: rows > 1)
    assert runs.trajectory(config) == [pytest.approx(pair, rel=1e-9) for pair in plain]
    assert ooms(config)[-1]["did"] == "pictures of a pair one by one"


@pytest.mark.slow
def test_what_changes_the_numbers_is_said(tmp_path, monkeypatch):
    flags = {"run.steps": 2, "run.batch": 1, "memory.gradient_checkpointing": True, "loss.pixel.decode": "full"}
    config = runs.config(tmp_path, {**flags, "data.resolution": 128})
    Full(monkeypatch, lambda denoiser, rows: not ooms(config) or ooms(config)[-1]["exact"])
    assert train(config) == 0
    assert ooms(config)[-1]["exact"] is False
    warnings = [e["message"] for e in runs.events(config) if e["kind"] == "warning"]
    assert any("not the same numbers" in w for w in warnings)


@pytest.mark.slow
def test_nothing_left_is_one_line_and_the_state_is_kept(tmp_path, monkeypatch):
    config = runs.config(tmp_path, {"run.steps": STEPS})
    Full(monkeypatch, lambda denoiser, rows: True, after=3)
    with pytest.raises(ValueError, match=r"train: out of memory at step \d, and nothing smaller is left"):
        train(config)
    assert list(RunFolder(tmp_path / "runs" / "t").state.glob("step*.safetensors"))


def test_a_jump_is_named_once_until_it_is_over():
    monitor = StepTimeMonitor()
    assert not [line for _ in range(20) for line in monitor.update(1.0)]
    reported = [line for _ in range(10) for line in monitor.update(4.0)]
    assert len(reported) == 1 and "4.0 times as long as before" in reported[0]
    assert not monitor.update(1.0) and not monitor.update(9.0)
    assert len([line for _ in range(3) for line in monitor.update(9.0)]) == 1


def test_one_slow_step_is_nothing_and_a_new_way_has_its_own_pace():
    monitor = StepTimeMonitor()
    times = [1.0] * 12 + [30.0] + [1.0] * 5
    assert not [line for seconds in times for line in monitor.update(seconds)]
    monitor.restart()
    assert not [line for _ in range(20) for line in monitor.update(5.0)]


def test_a_full_card_is_named():
    monitor = StepTimeMonitor()
    (reported,) = monitor.update(1.0, (7.9, 8.0))
    assert "7.9 of 8.0 GB" in reported and not monitor.update(1.0, (7.9, 8.0))
