"""The page to vote on in a real Chromium: keys, undo, a reload in between, and the file that it saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pixelkiln.trainer.study import vote_page, votes

CHROMIUM = "/usr/bin/chromium"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium here"),
]


def test_votes_are_given_by_keys_kept_over_a_reload_and_read_by_the_study(tmp_path):
    from playwright.sync_api import sync_playwright

    duels = []
    for i in range(3):
        sources = (f"a{i}.png", f"b{i}.png")
        for source, shade in zip(sources, (40, 200), strict=True):
            Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / source)
        duels.append(vote_page.Duel("a </script>@0", "b@0", i, f"prompt {i}", sources))
    page_file = tmp_path / "vote.html"
    page_file.write_text(vote_page.page("s", duels), "utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_function("document.getElementById('left').naturalWidth == 32")

        def counts(votes):
            page.wait_for_function(f"document.getElementById('count').textContent == '{votes} of 3'")

        page.keyboard.press("ArrowDown")
        counts(1)
        page.keyboard.press("Backspace")
        counts(0)
        for votes_given in (1, 2, 3):  # always for b, on whichever side it is
            left = page.get_attribute("#left", "src")
            page.keyboard.press("ArrowLeft" if left.startswith("b") else "ArrowRight")
            counts(votes_given)
            page.reload()
            counts(votes_given)
        assert not page.is_visible("#pair") and not page.is_visible("#unkept")
        with page.expect_download() as download:
            page.click("text=save votes.jsonl")
        download.value.save_as(tmp_path / votes.FILE)
        browser.close()
    assert not errors
    rows = [json.loads(line) for line in (tmp_path / votes.FILE).read_text("utf-8").splitlines()]
    assert len({row["mark"] for row in rows}) == 3
    found = votes.values(tmp_path / votes.FILE, ["a </script>", "b"], [0], 3)
    assert {v.item: v.value for v in found if v.arm == "b"} == {f"prompt {i}": 1.0 for i in range(3)}
