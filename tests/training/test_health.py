"""Numbers that are none: skipped, counted, gone back from, and the end if that does not help. Spikes are noted."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import short_runs as runs
import torch
from short_runs import stop_after

from pixelkiln.trainer.cli import main
from pixelkiln.trainer.training import checkpoint
from pixelkiln.trainer.training.ema import Average
from pixelkiln.trainer.training.health import Health, RecoveryOptions
from pixelkiln.trainer.training.loop import train
from pixelkiln.trainer.training.optimization import Optimization
from pixelkiln.trainer.training.session import Session

RATE = 1e-3


def broken(monkeypatch, steps: set[int], lowered_helps: bool = True) -> None:
    """The loss of these steps (from 1) is NaN, until the rate was lowered where that helps."""
    reduce, set_rate, now = Session.reduce, Optimization.set_learning_rate, [0, 0.0]

    def at(self, step):
        now[:] = [step + 1, set_rate(self, step)]
        return now[1]

    def reduced(self, local):
        total = reduce(self, local)
        bad = now[0] in steps and not (lowered_helps and now[1] < RATE)
        return replace(total, loss=torch.tensor(math.nan)) if bad else total

    monkeypatch.setattr(Optimization, "set_learning_rate", at)
    monkeypatch.setattr(Session, "reduce", reduced)


def made(root: Path, **more: object):
    flags = {
        "run.steps": 12,
        "run.batch": 2,
        "save.state_every": 2,
        "recovery.max_skipped_steps": 3,
        "schedule.kind": "constant",
    }
    return runs.config(root, {**flags, **{k.replace("__", "."): v for k, v in more.items()}})


def of_kind(config, kind: str) -> list[dict]:
    return [e for e in runs.events(config) if e["kind"] == kind]


@pytest.mark.slow
def test_a_step_without_a_number_is_skipped_and_counted(tmp_path, monkeypatch):
    config = made(tmp_path)
    broken(monkeypatch, {4, 5, 9})
    assert train(config) == 0
    reported = [e["message"] for e in of_kind(config, "warning")]
    assert [m.partition(":")[0] for m in reported if "is skipped" in m] == ["step 4", "step 5", "step 9"]
    assert not of_kind(config, "rollback")
    (end,) = of_kind(config, "end")
    assert end["message"].startswith("12 steps (3 skipped) in ")
    losses = [e["loss"] for e in of_kind(config, "step")]
    assert len(losses) == 12 and losses[3] is None and losses[5] is not None


@pytest.mark.slow
def test_a_run_goes_back_and_lowers_its_rate(tmp_path, monkeypatch):
    config = made(tmp_path)
    broken(monkeypatch, {6, 7, 8, 9})
    assert train(config) == 0
    (back,) = of_kind(config, "rollback")
    assert (back["step"], back["failed"]) == (4, 6), "the state of step 5 leads straight to step 6, that of 4 does not"
    messages = [e["message"] for e in of_kind(config, "warning") if "diverged" in e["message"]]
    assert messages == [
        "train: 3 steps in a row, from 6 on, had a non-finite loss or gradient: the run diverged. Back to step 4, from "
        "where the learning rate is 0.5 times the earlier one; if this happens again, the run stops"
    ]
    taken = [(e["step"], e["lr"]) for e in of_kind(config, "step")]
    assert taken == [(i, RATE) for i in range(1, 9)] + [(i, RATE / 2) for i in range(5, 13)]


@pytest.mark.slow
def test_an_optimizer_that_finds_its_own_rate_goes_back_too(tmp_path, monkeypatch):
    config = made(tmp_path, optimizer__kind="Adafactor", run__steps=5, recovery__max_skipped_steps=1)
    broken(monkeypatch, {4, 5}, lowered_helps=False)
    with pytest.raises(ValueError, match="again, although the run went back; "):
        train(config)
    (back,) = of_kind(config, "rollback")
    assert (back["step"], back["rate_factor"]) == (2, 1.0)
    assert any("the learning rate is the optimizer's own as before" in e["message"] for e in of_kind(config, "warning"))


@pytest.mark.slow
def test_going_back_is_exact_and_the_lower_rate_is_resumed(tmp_path, monkeypatch):
    """After a rollback to step 4 the run is one that was stopped at 4 and resumed with half the rate."""
    config = made(tmp_path, optimizer__kind="AdamW", save__ema=0.5)
    with monkeypatch.context() as patched:
        broken(patched, {6, 7, 8})
        assert train(config) == 0
    healed = [(e["loss"], e["grad_norm"]) for e in of_kind(config, "step")][8:]
    other = made(tmp_path, run__name="other", optimizer__kind="AdamW", save__ema=0.5)

    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        assert train(other) == 130
    slower = made(
        tmp_path, run__name="other", optimizer__kind="AdamW", save__ema=0.5, optimizer__learning_rate=RATE / 2
    )
    assert train(slower, resume=True) == 0
    assert [(e["loss"], e["grad_norm"]) for e in of_kind(other, "step")][4:] == healed
    # and resumed after the rollback, the rate stays lower
    again = made(tmp_path, run__steps=14, optimizer__kind="AdamW", save__ema=0.5)
    assert train(again, resume=True) == 0
    assert [e["lr"] for e in of_kind(again, "step")][-2:] == [RATE / 2, RATE / 2]


@pytest.mark.slow
def test_what_comes_back_ends_the_run_and_keeps_the_good_state(tmp_path, monkeypatch, capsys):
    config = made(tmp_path)
    broken(monkeypatch, set(range(6, 13)), lowered_helps=False)
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml(), "utf-8")
    assert main(["train", str(file)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: train: 3 steps in a row, from 6 on, had a non-finite loss or gradient again, although the run "
        "went back; lower optimizer.learning_rate, or use bf16 or fp32, then continue with --resume"
    )
    kept = checkpoint.states(Path(config.run.out) / "t" / "state")
    assert [path.stem for path in kept] == ["step00000002", "step00000004"]


@pytest.mark.slow
def test_without_a_state_from_before_there_is_nothing_to_go_back_to(tmp_path, monkeypatch):
    config = made(tmp_path, save__state_every=0)
    broken(monkeypatch, set(range(1, 13)))
    with pytest.raises(ValueError, match="there is no state from before; lower"):
        train(config)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "code"), [(1e-18, 0), pytest.param(0.5, 2, marks=pytest.mark.nightly)])
def test_a_rate_that_makes_the_weights_run_away(tmp_path, factor, code):
    """No stand-in: AdamW at 1e15 moves every weight by 1e15, whose products overflow."""
    config = made(
        tmp_path, optimizer__learning_rate=1e15, run__precision="fp32", recovery__lr_factor=factor, run__steps=8
    )
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml(), "utf-8")
    assert main(["train", str(file)]) == code
    assert len(of_kind(config, "rollback")) == 1


# ------------------------------------------------------------------------------------------------------------ spikes


def test_spikes_stand_out_and_ordinary_losses_do_not():
    """Losses of batch 1 are spread like their noise levels: lognormal with a deviation of 1 here, e^6 is 6 of them."""
    rng, health = random.Random(1), Health(RecoveryOptions())
    noted = [health.record_step(math.exp(rng.gauss(-2, 1))) for _ in range(20000)]
    assert noted.count(None) == 20000
    usual = health.record_step(math.exp(-2 + 9))
    assert usual is not None and math.exp(-2.4) < usual < math.exp(-1.6)


def test_losses_that_hardly_vary_need_a_factor_of_three():
    health = Health(RecoveryOptions())
    assert all(health.record_step(0.5) is None for _ in range(40))
    assert health.record_step(1.4) is None
    assert health.record_step(1.6) == pytest.approx(0.5)
    assert health.record_step(-1.0) is None


# --------------------------------------------------------------------------------------------------------------- ema


def test_the_average_is_diffusers():
    from diffusers.training_utils import EMAModel

    parameter = torch.nn.Parameter(torch.randn(5, 3))
    mine, theirs = Average([parameter], 0.95), EMAModel([parameter], decay=0.95)
    for _ in range(300):
        with torch.no_grad():
            parameter.add_(torch.randn(5, 3))
        mine.update()
        theirs.step([parameter])
    torch.testing.assert_close(mine.values[0], theirs.shadow_params[0], rtol=1e-6, atol=1e-6)
    before = parameter.detach().clone()
    with mine.shown():
        torch.testing.assert_close(parameter.detach(), mine.values[0])
    assert torch.equal(parameter, before)


def test_a_resumed_average_goes_on_with_its_own_decay():
    parameter = torch.nn.Parameter(torch.zeros(4))
    whole = resumed = Average([parameter], 0.999)
    for step in range(6):
        if step == 3:
            resumed = Average([parameter], 0.999)
            tensors, facts = whole.state()
            assert resumed.load({name: value.clone() for name, value in tensors.items()}, facts) == []
        with torch.no_grad():
            parameter.add_(1)
        for one in {id(one): one for one in (whole, resumed)}.values():
            one.update()
    assert torch.equal(resumed.values[0], whole.values[0]) and resumed.updates == whole.updates == 6


@pytest.mark.slow
def test_the_average_is_saved_beside_the_adapter(tmp_path):
    from safetensors.torch import load_file

    config = made(tmp_path, save__ema=0.9, save__every=4, save__keep_last=1, run__steps=12)
    assert train(config) == 0
    folder = Path(config.run.out) / "t"
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["t-step00000008-ema.safetensors", "t-step00000008.safetensors"]
    own, average = (load_file(folder / f"t{end}.safetensors") for end in ("", "-ema"))
    assert own.keys() == average.keys()
    ups = [name for name in own if "lora_up" in name]
    assert all(average[n].float().norm() < own[n].float().norm() for n in ups), "it lags behind weights that grow"


@pytest.mark.slow
def test_an_average_that_is_switched_on_later_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        assert train(made(tmp_path)) == 130
    config = made(tmp_path, save__ema=0.9)
    assert train(config, resume=True) == 0
    assert any("the average (save.ema) begins with this step" in e["message"] for e in of_kind(config, "warning"))
