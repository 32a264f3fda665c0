"""How long a run takes before any was measured."""

from __future__ import annotations

import pytest
import torch
from estimate_checks import wanted

from pixelkiln.trainer.commands.check import check
from pixelkiln.trainer.estimate import gpus, speed
from pixelkiln.trainer.losses import surrogate as metric
from pixelkiln.trainer.runs.check_report import duration
from pixelkiln.trainer.training import surrogates


def test_every_card_whose_memory_is_known_has_a_peak():
    assert speed.PEAKS.keys() == gpus.SIZES.keys()
    assert all(low < high < 1 for low, high in speed.UTILISATION.values())


@pytest.mark.parametrize(
    "name, tera", [("RTX 4090", 165.2), ("NVIDIA GeForce RTX 3060 12GB", 25.5), ("A100 80GB", 312)]
)
def test_a_cards_rates_are_shares_of_its_peak(name, tera):
    slow, fast, why = speed.rates(gpus.named(name), torch.bfloat16) or (0, 0, "")
    assert (slow, fast) == (pytest.approx(tera * 0.1e12), pytest.approx(tera * 0.35e12))
    assert "not measured: 10% to 35% of" in why and "data sheet" in why


def test_an_amount_of_memory_has_no_speed():
    assert speed.rates(gpus.with_memory("8GB"), torch.bfloat16) is None
    assert speed.rates(gpus.named("Some Gpu 7.5 GiB"), torch.bfloat16) is None


def test_this_cpu_is_timed(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    found = speed.rates(gpus.here("cpu"), torch.float32)
    assert found and found[1] > found[0] > 1e8 and "timed here" in found[2]
    monkeypatch.setattr(torch, "randn", None)
    assert speed.rates(gpus.here("cpu"), torch.float32) == found


def test_the_best_that_this_cpu_was_seen_to_reach_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    found = []
    for now in (1e9, 4e9, 2e9):  # other programs slow the first and the last
        monkeypatch.setattr(speed, "_timed", lambda *_, now=now: now)
        found.append(speed.peak(gpus.here("cpu"), torch.float32))
    assert [most for most, _ in filter(None, found)] == [1e9, 4e9, 4e9]


def test_a_run_on_a_card_has_a_range_of_minutes(tmp_path):
    config = wanted(tmp_path, "sd15", {"sample.prompts": ["a cat"], "sample.steps": 3, "run.steps": 50})
    plain = wanted(tmp_path, "sd15", {"run.steps": 50})
    fit, without = (check(one, gpus.named("RTX 3060"))["fit"] for one in (config, plain))
    low, high = fit["seconds_per_step_range"]
    assert fit["seconds"] is None and high == pytest.approx(low * 3.5) and " to " in duration(fit, 50)
    assert fit["seconds_beside"][0] > without["seconds_beside"][0] > 0, "previews, and caches"
    unknown = check(plain, gpus.with_memory("8GB"))["fit"]
    assert unknown["seconds_per_step_range"] is None and "--card" in unknown["pace"] and duration(unknown, 50) == ""


@pytest.mark.slow
def test_the_time_of_making_a_surrogate_is_counted_where_a_run_makes_one(tmp_path, monkeypatch):
    """A short run decodes instead; a kept surrogate takes no time. The line and the seconds agree."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    card = gpus.named("4090")

    def asked(**flags) -> tuple[list[str], list[float]]:
        config = wanted(tmp_path, "sd15", {"loss.pixel.mode": "mixed", "sample.prompts": [], **flags})
        answer = check(config, card)
        notes = [line for line in answer["notes"] if line.startswith("loss.pixel: corrected")]
        return notes, answer["fit"]["seconds_beside"]

    notes, plain = asked(**{"run.steps": 10})
    assert not notes
    (line,), making = asked(**{"run.steps": 1_000_000})
    assert "its surrogate is made at the start, once for this autoencoder (" in line and line.endswith(" s)")
    assert making[0] > plain[0] and making[1] - plain[1] < 240
    config = wanted(tmp_path, "sd15", {"loss.pixel.mode": "mixed"})
    made = metric.Surrogate(4, 8)
    made.quality = metric.Quality(0.9, 0.15, [])
    surrogates.remember(config, config.terms()["pixel"][0], made)
    (line,), known = asked(**{"run.steps": 10})
    assert "its surrogate has cosine 0.90" in line and known == plain
