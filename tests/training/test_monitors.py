"""Guard rails of preference training: the warnings when winners get worse or nothing is left to learn, and the stop."""

from __future__ import annotations

import pytest
from short_runs import config, events

from pixelkiln.trainer.objectives.options import DpoOptions, SimpoOptions
from pixelkiln.trainer.training.loop import train
from pixelkiln.trainer.training.monitors import WARM_UP, PreferenceMonitor


def seen(monitor: PreferenceMonitor, steps: int, reference: float = 0.1, **metrics: float) -> list[str]:
    """The warnings over so many equal steps; the winner's error is the reference's plus the change."""
    change = metrics.get("winner_change", 0.0)
    shown = {f"mse/{name}": value for name, value in {**metrics, "winner": reference + change}.items()}
    return [line for _ in range(steps) for line in monitor.update(shown)]


def test_winners_that_get_worse_are_said_once_until_it_is_over():
    monitor = PreferenceMonitor({"mse": DpoOptions()})
    assert not seen(monitor, 50, winner_change=0.0049)  # 4.9 %
    (line,) = seen(monitor, 50, winner_change=0.0060)
    assert "% above the reference" in line
    assert not seen(monitor, 50, winner_change=0.0060)
    assert not seen(monitor, 100, winner_change=-0.01)
    assert len(seen(monitor, 80, winner_change=0.0060)) == 1
    assert not monitor.stop


def test_a_few_bad_steps_are_no_alarm():
    monitor = PreferenceMonitor({"mse": DpoOptions()})
    assert not seen(monitor, WARM_UP - 1, winner_change=0.05)
    monitor = PreferenceMonitor({"mse": DpoOptions()})
    seen(monitor, 50, winner_change=-0.001)
    assert not seen(monitor, 2, winner_change=0.05)


def test_the_alarm_can_stop_be_moved_and_be_switched_off():
    stops = PreferenceMonitor({"mse": DpoOptions(winner_stop=True)})
    seen(stops, 40, winner_change=0.01)
    assert stops.stop
    for options in (DpoOptions(winner_stop=True, winner_limit=0.2), DpoOptions(winner_limit=0.0)):
        monitor = PreferenceMonitor({"mse": options})
        assert not seen(monitor, 40, winner_change=0.01)
        assert not monitor.stop
    with pytest.raises(ValueError, match="winner_stop: winner_limit is 0, so nothing would stop"):
        DpoOptions(winner_stop=True, winner_limit=0.0)


def test_pairs_that_are_learned_are_said():
    monitor = PreferenceMonitor({"mse": SimpoOptions()})  # it has no reference
    assert not seen(monitor, 60, accuracy=0.9, winner_change=1.0)
    (line,) = seen(monitor, 60, accuracy=1.0)
    assert "teach little more" in line
    assert not seen(monitor, 60, accuracy=0.96)


def test_a_resumed_watch_goes_on():
    one, other = PreferenceMonitor({"mse": DpoOptions()}), PreferenceMonitor({"mse": DpoOptions()})
    seen(one, 30, winner_change=0.01)
    other.state.update(one.state)
    assert not seen(other, 30, winner_change=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_run_stops_and_says_why(tmp_path, objective):
    flags = {
        "run.steps": 60,
        "run.batch": 2,
        "run.precision": "fp32",
        "objective.kind": objective,
        "objective.beta": 1.0,
        "objective.winner_limit": 1e-4,
        "objective.winner_stop": True,
        "optimizer.learning_rate": 0.05,
    }
    stopped = config(tmp_path, flags, data="data.pairs")
    assert train(stopped) == 130
    (end,) = [e for e in events(stopped) if e["kind"] == "end"]
    assert "winner_stop" in end["message"]
    assert any("above the reference" in e["message"] for e in events(stopped) if e["kind"] == "warning")
    assert WARM_UP <= end["step"] < 60
