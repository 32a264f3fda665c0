"""What the screen before a start says of a card that is too small."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

from pixelkiln.extension import check, words


def fit(fits: bool, *remedies: dict[str, Any]) -> dict[str, Any]:
    return {
        "gb": 7.4, "of_gb": 5.4, "fits": fits, "card": "RTX 3060 6GB", "at": "training step", "seconds_per_step": 6.0,
        "parts": {"weights": 4.8, "adapter": 0.004, "activations": 2.6}, "pace": "as run 'a'",
        "remedies": list(remedies),
    }  # fmt: skip


def remedy(label: str, key: str, gb: float, fits: bool) -> dict[str, Any]:
    return {"label": label, "cost": "slower", "gb": gb, "fits": fits, "changes": {key: True}}


def test_one_button_makes_it_fit_and_says_to_what() -> None:
    steps = remedy("checkpointing", "memory.gradient_checkpointing", 6, False), remedy("less", "run.batch", 5, True)
    (whole, _, changes), (first, _, alone) = check.fitting({"fit": fit(False, *steps)})
    assert whole == "Make it fit: checkpointing, less (5.0 GB)" and first == "checkpointing (6.0 GB)"
    assert changes == {"memory.gradient_checkpointing": True, "run.batch": True}
    assert alone == {"memory.gradient_checkpointing": True}
    html = check.fit_report(fit(False, *steps))
    assert "7.4 of 5.4 GB free on RTX 3060 6GB" in html and words.NOT_ENOUGH not in html
    assert "<b>4.8 GB</b> weights" in html and "adapter" not in html
    assert "about 10 min 0 s" in check.ready({"fit": fit(False, *steps), "steps": 100}, {})


def test_the_page_shows_the_memory_plan_in_checks_words() -> None:
    lines = ["no gradient checkpointing, AdamW: 4.9 of 7.0 GB", "the next better takes 7.4 GB"]
    html = check.fit_report({**fit(True), "plan": {"lines": lines}})
    assert words.PLAN in html and all(line in html for line in lines)
    assert words.PLAN not in check.fit_report({**fit(True), "plan": None})


def test_what_is_not_enough_is_not_said_to_fit() -> None:
    found = fit(False, remedy("less", "run.batch", 6, False))
    assert check.fitting({"fit": found})[0][0] == "Make it smaller: less (6.0 GB)"
    assert words.NOT_ENOUGH in check.fit_report(found) and words.NOT_ENOUGH in check.fit_report(fit(False))
    assert not check.fitting({"fit": fit(True)})


def test_below_a_gigabyte_a_hundredth_is_shown() -> None:
    html = check.fit_report({**fit(False), "gb": 0.64, "of_gb": 0.58, "parts": {"decoder": 0.09, "adapter": 0.006}})
    assert "0.64 of 0.58 GB free" in html
    assert "<b>0.09 GB</b> decoder" in html and "<b>0.01 GB</b> adapter" in html
