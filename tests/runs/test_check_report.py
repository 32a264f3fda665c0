"""What ``check`` answered, for people."""

from __future__ import annotations

import pytest

from pixelkiln.trainer.runs import check_report

ANSWER = {
    "model": {"family": "sd15", "title": "SD 1.5", "prediction": "epsilon", "notes": ["read as SD 1.5"],
              "resolution": 512, "presets": {"sd15": "sd15", "sdxl": "sdxl", "sd3-medium": "sd3"}},
    "data": {"items": 8, "kind": "pictures", "held_out": 0, "samples_per_epoch": 8, "steps_per_epoch": 4,
             "buckets": [{"width": 512, "height": 512, "samples": 8}]},
    "resolution": 512, "steps": 40, "epochs": 10.0, "terms": {"mse": {"objective": "sft"}},
    "files": {"run": "runs/a", "adapter": "runs/a/a.safetensors"}, "exists": True,
    "fit": {"gb": 5.25, "of_gb": 8.0, "card": "a GPU", "fits": False, "at": "step",
            "parts": {"weights": 2.0, "rest": 0.001},
            "pace": "measured here", "seconds_per_step": 1.5, "seconds": 60.0,
            "remedies": [{"label": "fewer samples", "cost": "slower", "gb": 4.0, "fits": True,
                          "changes": {"run.batch": 1}}]},
    "warnings": ["something odd"],
}  # fmt: skip


def test_every_figure_has_a_row():
    text = "\n".join(check_report.lines(ANSWER))
    for line in (
        "note      read as SD 1.5", "model     SD 1.5, predicts epsilon", "data      8 pictures, 8 samples an epoch",
        "buckets   512x512: 8", "steps     40 (10 epochs of 4 steps)", "loss      mse (sft)",
        "memory    5.2 GB of 8.0 free on a GPU: it does NOT fit", "at its peak (step): weights 2.0\n",
        "time      about 1 min 0 s, 1.50 s a step (measured here)",
        "remedy 1  fewer samples (slower): 4.0 GB, fits; options: run.batch = 1",
        "writes    runs/a/a.safetensors (replaces an earlier one)", "warning: something odd",
    ):  # fmt: skip
        assert line in text, line


RANGE = {**ANSWER["fit"], "seconds_per_step": None, "seconds_per_step_range": [0.5, 2.0], "seconds_beside": [30, 120],
         "seconds": None, "plan": {"lines": ["all of it", "the next takes more"]}}  # fmt: skip


def test_a_plan_and_a_range_of_times_have_rows():
    text = check_report.lines({**ANSWER, "fit": RANGE, "steps": 1, "epochs": 1.0,
                               "data": {**ANSWER["data"], "steps_per_epoch": 1, "samples_per_epoch": 1}})  # fmt: skip
    assert "plan      all of it" in text and "          the next takes more" in text
    assert "time      0.5 to 2 min, 0.5 to 2 s a step (measured here)" in text
    assert "steps     1 (1 epoch of 1 step)" in text and "data      8 pictures, 1 sample an epoch" in text


@pytest.mark.parametrize("low, high, text", [
    (0.2, 0.2, "about 1 s"), (59.6, 59.6, "about 1 min 0 s"), (7500, 7500, "about 2 h 5 min"), (8, 31, "8 to 31 s"),
    (60, 95, "1 to 1.6 min"), (720, 2400, "12 to 40 min"), (3600, 14400, "1 to 4 h"), (7000, 90000, "1.9 to 25 h"),
])  # fmt: skip
def test_a_span_of_time(low, high, text):
    assert check_report.span(low, high) == text


def test_the_same_steps_take_the_same_everywhere():
    """One function: what the command line says of a run is what the page says, for the run's steps and for others."""
    fit = {**RANGE, "seconds_per_step": 1.0, "seconds_beside": [30, 30]}
    assert check_report.duration(fit, 40) == "about 1 min 10 s"
    assert check_report.duration(RANGE, 40) == "0.8 to 3.3 min"
    assert check_report.duration({}, 40) == "" == check_report.duration({"seconds_per_step": None}, 40)


def test_an_answer_without_figures_is_told_too():
    assert check_report.lines({"model": {"family": "sd15"}}) == ["model     sd15, predicts ?"]


@pytest.mark.parametrize("preset, size, message", [
    ("sdxl-style-12gb", 512, "made for sdxl, this model is SD 1.5"), ("demo", 128, "the resolution is 128"),
    ("sdxl-style-12gb", [1024, 768], "made for sdxl"), ("mine-own", [128, 512], "the resolution is 128"),
])  # fmt: skip
def test_a_preset_for_another_family_or_size_is_a_warning(preset, size, message):
    found = check_report.preset_warnings(preset, {**ANSWER, "resolution": size})
    assert len(found) == 1
    assert message in found[0]


def test_a_preset_suits_every_family_that_says_so():
    model = {**ANSWER["model"], "family": "sd3-medium", "resolution": 1024}
    assert check_report.preset_warnings("sd3-style-24gb", {"model": model, "resolution": 1024}) == []
    assert check_report.preset_warnings("sdxl-style-12gb", {"model": model, "resolution": 1024})


@pytest.mark.parametrize("preset, size", [("sd15-style-8gb", 512), ("demo", 384), ("mine", None), ("sd-own", 512)])
def test_a_preset_that_suits_is_none(preset, size):
    assert check_report.preset_warnings(preset, {**ANSWER, "resolution": size}) == []
