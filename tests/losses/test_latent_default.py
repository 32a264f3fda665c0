"""mse is added where no latent loss is given, and only there: in configurations, runs and resumed runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import short_runs as runs

from pixelkiln.trainer import config as c
from pixelkiln.trainer.registry import losses
from pixelkiln.trainer.runs import check_report
from pixelkiln.trainer.training import checkpoint
from pixelkiln.trainer.training.loop import train

LATENT = [entry.name for entry in losses if not entry.options.decodes]
DECODING = [entry.name for entry in losses if entry.options.decodes]
ADDED = "loss.mse: added, as no latent loss is given; set loss.mse.weight = 0 to train without it"
RESUMED = "loss.mse: added, as this run began with it; set loss.mse.weight = 0 to train without it"


def made(flags: dict[str, object]) -> c.Config:
    return c.load(flags={"model.path": "m", "data.path": "x", **flags})


@pytest.mark.parametrize("name", LATENT)
def test_a_latent_loss_alone_is_trained_alone(name):
    got = made({f"loss.{name}.weight": 1.0})
    assert list(got.terms()) == [name] and got.notes() == []


@pytest.mark.parametrize("name", DECODING)
def test_mse_is_added_beside_losses_that_decode_and_reported(name):
    got = made({f"loss.{name}.weight": 1.0})
    assert set(got.terms()) == {"mse", name} and got.notes() == [ADDED]
    assert set(got.changed({"loss.haar.weight": 0.5}).terms()) == {"haar", name}
    assert "[loss.mse]" in got.to_toml() and "[loss.mse]" not in got.to_toml(only_set=True)
    without = made({f"loss.{name}.weight": 1.0, "loss.mse.weight": 0.0})
    assert list(without.terms()) == [name] and without.notes() == []


def test_nothing_is_reported_where_no_loss_is_asked_for_or_mse_is():
    assert made({}).notes() == [] and list(made({}).terms()) == ["mse"]
    both = made({"loss.pixel.mode": "x0", "loss.mse.weight": 1.0})
    assert both.notes() == [] and c.parse(c.loads(both.to_toml())).notes() == []


def test_check_shows_the_note_below_the_losses():
    answer = {"terms": {"mse": {"objective": "sft"}, "pixel": {"objective": "sft"}}, "notes": [ADDED]}
    lines = check_report.lines(answer)
    at = lines.index(f"note      {ADDED}")
    assert lines[at - 1] == "loss      mse (sft), pixel (sft)"


def log(config: c.Config) -> str:
    return (Path(config.run.out) / config.run.name / "log.txt").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["haar", "focal_frequency"])
def test_a_run_that_began_with_mse_beside_another_latent_loss_goes_on_with_it(tmp_path, monkeypatch, name):
    """Such a run was started by a file without [loss.mse]; its state and trajectory are those of a file with it."""
    alone = {f"loss.{name}.weight": 1.0, "run.steps": 4, "save.keep_states": 0}
    both = alone | {"loss.mse.weight": 1.0}
    whole = runs.trajectory(runs.config(tmp_path, both | {"run.name": "whole"}))
    with monkeypatch.context() as patched:
        runs.stop_after(patched, 2)
        assert train(runs.config(tmp_path, both)) == 130
    resumed = runs.config(tmp_path, alone)
    assert runs.trajectory(resumed, resume=True) == whole
    warnings = [e["message"] for e in runs.events(resumed) if e["kind"] == "warning"]
    assert warnings == [RESUMED]
    folder = Path(resumed.run.out) / resumed.run.name
    assert set(c.load(folder / "config.toml").terms()) == {"mse", name}

    for path in checkpoint.states(folder)[1:]:  # back to step 2, and on without mse
        path.unlink()
    other = runs.config(tmp_path, both | {"loss.mse.weight": 0.0})
    assert train(other, resume=True) == 0
    assert set(checkpoint.state_facts(folder)["objectives"]) == {name}
    assert train(runs.config(tmp_path, alone | {"run.steps": 5}), resume=True) == 0
    assert len([e for e in runs.events(other) if e["kind"] == "warning" and e["message"] == RESUMED]) == 1


@pytest.mark.slow
def test_another_run_resumed_from_such_a_state_has_its_mse_too(tmp_path):
    both = {"loss.haar.weight": 1.0, "loss.mse.weight": 1.0, "run.steps": 2}
    first = runs.config(tmp_path, both)
    assert train(first) == 0
    folder = Path(first.run.out) / first.run.name
    (state,) = checkpoint.states(folder)[-1:]
    for source in (folder, state):
        flags = {"loss.haar.weight": 1.0, "run.steps": 3, "run.name": "other", "run.resume_from": str(source)}
        other = runs.config(tmp_path, flags)
        assert train(other) == 0
        assert set(checkpoint.state_facts(folder.parent / "other")["objectives"]) == {"mse", "haar"}


@pytest.mark.slow
def test_the_note_is_in_the_runs_log(tmp_path):
    config = runs.config(tmp_path, {"loss.lpl.max_level": 1.0, "run.steps": 1})
    assert train(config) == 0
    assert ADDED in log(config)
