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


def duels(folder):
    made = []
    for i in range(3):
        sources = (f"a{i}.png", f"b{i}.png")
        for source, shade in zip(sources, (40, 200), strict=True):
            Image.new("RGB", (32, 32), (shade,) * 3).save(folder / source)
        made.append(vote_page.Duel("a </script>@0", "b@0", i, f"prompt {i}", sources))
    return made


def opened(play, folder, script=""):
    """The page of three duels, its pictures loaded; its errors are collected."""
    page_file = folder / "vote.html"
    page_file.write_text(vote_page.page("s", duels(folder)), "utf-8")
    browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script(script)
    page.goto(page_file.as_uri())
    page.wait_for_function("document.getElementById('left').naturalWidth == 32")
    return page, errors


def counts(page, votes_given):
    page.wait_for_function(f"document.getElementById('count').textContent == '{votes_given} of 3'")


def test_votes_are_given_by_keys_kept_over_a_reload_and_read_by_the_study(tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        page, errors = opened(play, tmp_path)
        page.keyboard.press("ArrowDown")
        counts(page, 1)
        page.keyboard.press("Backspace")
        counts(page, 0)
        for votes_given in (1, 2, 3):  # always for b, on whichever side it is
            left = page.get_attribute("#left", "src")
            page.keyboard.press("ArrowLeft" if left.startswith("b") else "ArrowRight")
            counts(page, votes_given)
            page.reload()
            counts(page, votes_given)
        assert not page.is_visible("#pair") and not page.is_visible("#unkept")
        with page.expect_download() as download:
            page.click("text=save votes.jsonl")
        download.value.save_as(tmp_path / votes.FILE)
        page.context.browser.close()
    assert not errors
    rows = [json.loads(line) for line in (tmp_path / votes.FILE).read_text("utf-8").splitlines()]
    assert len({row["mark"] for row in rows}) == 3
    found = votes.values(tmp_path / votes.FILE, ["a </script>", "b"], [0], 3)
    assert {v.item: v.value for v in found if v.arm == "b"} == {f"prompt {i}": 1.0 for i in range(3)}


def test_a_browser_that_keeps_nothing_says_so_and_still_takes_votes(tmp_path):
    from playwright.sync_api import sync_playwright

    refuses = """IDBFactory.prototype.open = () => {
        const request = {}; setTimeout(() => request.onerror()); return request; }"""
    with sync_playwright() as play:
        page, errors = opened(play, tmp_path, refuses)
        assert page.is_visible("#unkept")
        for votes_given in (1, 2, 3):
            page.keyboard.press("ArrowLeft")
            counts(page, votes_given)
        with page.expect_download() as download:
            page.click("text=save votes.jsonl")
        download.value.save_as(tmp_path / votes.FILE)
        page.context.browser.close()
    assert not errors
    assert len((tmp_path / votes.FILE).read_text("utf-8").splitlines()) == 3
