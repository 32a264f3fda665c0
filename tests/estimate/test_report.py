"""The trainer's estimate as the page and the node show it."""

from __future__ import annotations

from typing import Any

from pixelkiln.extension.check import MANY, fit_report, fitting, ready

PARTS = {"weights": 4.8, "adapter": 0.2, "optimizer": 0.3, "text encoders": 0.0, "autoencoder": 0.2,
         "activations": 6.0, "decoder": 0.0, "workspace": 0.9}  # fmt: skip
REMEDIES = [
    {"label": "gradient checkpointing", "cost": "slower", "exact": True, "gb": 9.1, "fits": False,
     "changes": {"memory.gradient_checkpointing": True}},
    {"label": "optimizer AdamW8bit", "cost": "rounding", "exact": False, "gb": 7.3, "fits": True,
     "changes": {"optimizer.kind": "AdamW8bit"}},
]  # fmt: skip


def answer(fits: bool, **more: Any) -> dict[str, Any]:
    fit = {"gb": 12.4, "of_gb": 7.4, "fits": fits, "card": "RTX 3070", "at": "training step", "parts": PARTS,
           "seconds": 3600, "seconds_per_step": 3.6, "pace": "measured here",
           "remedies": [] if fits else REMEDIES}  # fmt: skip
    return {"model": {"title": "SDXL"}, "data": None, "steps": 1000, "epochs": 2.0, "fit": {**fit, **more}}


def test_the_page_offers_all_at_once_and_the_first_alone():
    offered = fitting(answer(False))
    assert [key for _, key, _ in offered] == [MANY, MANY]
    assert offered[0][2] == {"memory.gradient_checkpointing": True, "optimizer.kind": "AdamW8bit"}
    assert offered[1][2] == {"memory.gradient_checkpointing": True}
    assert fitting(answer(True)) == [] == fitting({})


def test_the_page_says_what_is_short_and_where():
    verdict, html = ready(answer(False), {}), fit_report(answer(False)["fit"])
    assert "It needs more memory than there is: about 1 h 0 min, 12.4 of 7.4 GB free on RTX 3070" in verdict
    assert "6.0 GB</b> activations" in html and "decoder" not in html
    assert ready(answer(True), {}).startswith("Ready: about 1 h") and fit_report({}) == ""
