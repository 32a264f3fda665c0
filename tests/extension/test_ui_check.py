"""What the screen before a start says of a card that is too small."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

from pixelkiln.extension import captions, check, draft, findings, words
from pixelkiln.extension.page import Context
from pixelkiln.extension.security import Addresses, Folders
from pixelkiln.extension.store import Home


def event(key: str) -> Any:
    """What the page sends for a click on a finding's button."""
    return SimpleNamespace(fix=key)


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


def test_each_finding_about_pictures_has_a_button_that_settles_it(tmp_path: Path) -> None:
    import gradio as gr

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, side in (("a", 600), ("b", 600), ("tiny", 100), ("long", 601), ("bare", 602)):
        Image.new("RGB", (side, side)).save(folder / f"{name}.png")
        if name != "bare":
            captions.save(folder / f"{name}.png", "a cat" + ", ink" * (40 if name == "long" else 1))
    (folder / "broken.png").write_bytes(b"none")
    captions.save(folder / "broken.png", "a cat")
    home = Home(tmp_path / "runs")
    home.make()
    context = Context(home, Addresses.of(home), Folders())
    draft.change(home, {"data.path": str(folder), "data.resolution": 512, "model.path": "m", "run.steps": 2})
    with gr.Blocks():
        panel = check.Check(context)

    def found() -> dict[str, tuple[str, str, Any]]:
        of = findings.of_pictures(context.recipe(), [folder], 512, 9.0)
        return {one.text.partition(": ")[2]: one.remedy for one in of if one.remedy}

    assert found()[words.NO_CAPTION] == (words.SHOW_THEM, findings.SHOW, words.NO_CAPTION)
    assert found()[words.DUPLICATE][0] == "Leave out 1 picture"
    draft.change(home, {"data.trigger": "sks"})
    assert set(found()) == {words.NO_CAPTION, words.UNREADABLE, words.SMALL, words.DUPLICATE, words.TOO_LONG}
    for kind, remedy_ in found().items():
        report = panel.known(draft.read(home))
        offered = panel._view(report, {})[4]
        key = check._id_of(remedy_)
        assert f'data-fix="{key}"' in check.shown(report, context.recipe(), context, False), kind
        panel.fix(event(key), offered)
        assert kind not in found()
    assert captions.scan(folder).pictures == ("a.png", "bare.png", "long.png")
    values = context.recipe()
    assert (draft.get(values, "data.caption"), draft.get(values, "model.max_tokens")) == ("sks", 150)
    with pytest.raises(gr.Error, match=words.CHANGED_MEANWHILE.partition(";")[0]):
        panel.fix(event("gone"), [])


@pytest.mark.parametrize(
    ("more", "offered"),
    [(80, ("Read 150 tokens", "model.max_tokens", 150)), (160, ("Read 225 tokens", "model.max_tokens", 225)),
     (300, (words.SHOW_THEM, findings.SHOW, words.TOO_LONG_HERE))],
)  # fmt: skip
def test_a_long_caption_is_offered_what_reads_all_of_it(
    tmp_path: Path, more: int, offered: tuple[str, str, Any]
) -> None:
    """Words of one token each: a press that leaves a caption cut would be no remedy."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("cat " * more, encoding="utf-8")
    (one,) = findings.of_pictures({"data": {"path": str(tmp_path)}}, [tmp_path], 64, 9.0)
    assert one.remedy == offered
    if offered[1] == "model.max_tokens":
        assert not findings.of_pictures({"model": {"max_tokens": offered[2]}}, [tmp_path], 64, 9.0)
