"""A first use of the page in a real Chromium, timed: from an own folder of pictures to the first preview; from the
page's start to the first preview of the demo, then to a preference run; and a picture of every screen, light and dark.

    python bench/ui_walk.py [--only own] [--steps 150] [--out build/screens]

Actions are counted as a person does them: a click, or a text in one field; a key of a vote is none. Of each screen it
says how many words it shows, how high it is, and where the button that leads on ends, below the top of a window of
1280 x 900. Needs Chromium (``--chromium PATH``).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pixelkiln.bench.ui_server import ROOT, served
from pixelkiln.extension.words import LEAST
from pixelkiln.trainer.runs import control

SHOWN_AS = "/home/you/pixelkiln"
"""What pictures for the documentation show in place of this machine's folders."""
HIDE = """([found, shown]) => {
  const hide = (text) => found.reduce((all, one) => all.split(one).join(shown), text);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) if (walk.currentNode.data.includes(found[0]) || walk.currentNode.data.includes(found[1]))
    walk.currentNode.data = hide(walk.currentNode.data);
  for (const one of document.querySelectorAll("input, textarea")) one.value = hide(one.value);
}"""

SIZE = """() => {
  const seen = [...document.querySelectorAll("[role=tabpanel]")].find((one) => one.offsetParent);
  const on = [...seen.querySelectorAll("[id^=next-], #start-training")].find((one) => one.offsetParent);
  const next = on ? Math.round(on.getBoundingClientRect().bottom) : null;
  return { words: seen.innerText.split(/\\s+/).filter(Boolean).length, pixels: seen.scrollHeight, next };
}"""
JARGON = ("rank", "alpha", "epoch", "batch", "optimizer", "latent", "unet", "learning rate", "scheduler", "network",
          "checkpointing", "precision", "token", "vram", "bucket")  # fmt: skip
"""Words that nobody has to know to train: looked for in what a person meets who opens no drawer."""
MOST_ACTIONS = 6
"""From the own folder to the first preview, over three screens."""


class Walk:
    """One person at the page."""

    def __init__(self, page: Any, begun: float, out: Path, runs: Path):
        self.page, self.begun, self.out = page, begun, out
        self.folders = [str(runs.parent), str(ROOT)]
        self.actions, self.tasks, self.screens = 0, {}, {}

    def click(self, what: str) -> None:
        self.page.click(what)
        self.actions += 1

    def type(self, what: str, text: str) -> None:
        self.page.fill(what, text)
        self.actions += 1

    def step(self, label: str) -> None:
        self.page.get_by_role("tab", name=label).click()
        self.actions += 1

    def note(self, what: str) -> None:
        self.tasks[what] = {"seconds": round(time.monotonic() - self.begun, 1), "actions": self.actions}
        print(f"{what}: {self.tasks[what]}", file=sys.stderr, flush=True)

    def measure(self, name: str) -> None:
        """The words, the height and the way on of the screen as it is, from its top."""
        self.page.evaluate("scrollTo(0, 0)")
        self.page.wait_for_timeout(500)
        self.screens[name] = self.page.evaluate(SIZE)

    def jargon(self) -> list[str]:
        """Words of the screen that only experts know; what is in a closed drawer is not on it."""
        text = self.page.locator("[role=tabpanel]:visible").first.inner_text().lower()
        assert text
        return [word for word in JARGON if re.search(rf"\b{word}", text)]

    def shoot(self, name: str, at: str = "") -> None:
        """The screen as it is, light and dark; ``at``: scrolled to this."""
        self.measure(name)
        for look in ("light", "dark"):
            self.page.evaluate("document.activeElement.blur()")
            self.page.mouse.move(0, 0)
            self.page.evaluate(HIDE, [self.folders, SHOWN_AS])
            if at:
                self.page.evaluate("(one) => document.querySelector(one).scrollIntoView({block: 'start'})", at)
            else:
                self.page.evaluate("scrollTo(0, 0)")
            self.page.wait_for_timeout(1000)
            path = self.out / f"{name}-{look}.png"
            self.page.screenshot(path=path)
            with Image.open(path) as taken:
                taken.convert("RGB").quantize(256).save(path, optimize=True)
            self.page.get_by_role("button", name="Light / dark").click()


def until(what: Any, page: Any, seconds: float = 3600) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        page.wait_for_timeout(200)


def own_folder(walk: Walk, pictures: Path, runs: Path) -> None:
    """From a folder of one's own to the first preview, as somebody who opens no drawer. AssertionError: it takes more
    than it may."""
    page, words = walk.page, {}
    page.wait_for_selector("#open-folder")
    walk.note("own folder: the page is there")
    walk.type("#folder input, #folder textarea", str(pictures))
    walk.click("#open-folder")
    page.wait_for_selector("#grid img:visible")
    walk.measure("own pictures")
    words["pictures"] = walk.jargon()
    walk.click("#next-pictures")
    page.wait_for_selector("#recipe-status .note, #recipe-status .problems")
    walk.measure("own recipe, first seen")
    walk.click("#goal label:has-text('style') >> nth=0")
    page.wait_for_timeout(1500)
    if not page.locator("#models input:checked").count():
        walk.click("#models label >> nth=0")
    page.wait_for_selector("#check-report .good.verdict")
    walk.measure("own recipe, ready")
    words["recipe"] = walk.jargon()
    walk.click("#start-training")
    page.wait_for_selector("#run-state .bar, #start-training:has-text('anyway')")
    if page.locator("#start-training:has-text('anyway')").is_visible():
        walk.click("#start-training")
    page.wait_for_selector("#gallery img")
    walk.note("own folder: first preview")
    walk.measure("own train")
    words["train"] = walk.jargon()
    (run,) = control.list_runs(runs)
    control.kill(run.path)
    walk.tasks["own folder: words of experts"] = words
    assert walk.actions <= MOST_ACTIONS, f"{walk.actions} actions"
    assert not words["pictures"] and not words["recipe"], words


def first_use(walk: Walk, steps: int, runs: Path) -> None:
    page = walk.page
    page.wait_for_selector("#demo-pictures")
    walk.note("the page is there")
    walk.click("#demo-pictures")
    page.wait_for_selector("#grid img:visible")
    page.wait_for_timeout(1500)
    walk.shoot("pictures")
    walk.click("#next-pictures")
    page.wait_for_selector("#recipe-status .good")
    if steps != 150:  # a shorter walk, for trying this out
        page.click("#all-options > button")
        page.fill("#field-run-steps input", str(steps))
        page.press("#field-run-steps input", "Tab")
        page.fill("#field-sample-every input, #field-sample-every textarea", str(max(1, steps // 2)))
        page.press("#field-sample-every input, #field-sample-every textarea", "Tab")
        page.click("#all-options > button")
        page.wait_for_timeout(1500)
    walk.shoot("recipe")
    page.wait_for_selector("#check-report .good.verdict")
    walk.shoot("check", at="#check-report")
    walk.click("#start-training")
    page.wait_for_selector("#gallery img")
    walk.note("first preview")
    until(lambda: control.status(runs / "demo").state == "done", page)
    page.wait_for_selector("#run-state >> text=done")
    walk.note("training is done")
    page.wait_for_timeout(1500)
    walk.shoot("train")


def compare_and_prefer(walk: Walk, runs: Path) -> None:
    page = walk.page
    walk.step("4 Compare")
    page.wait_for_selector("#compare-grid img")
    page.wait_for_selector("#compare-two img")
    walk.note("previews side by side")
    walk.shoot("compare")
    walk.click("#vote-blind")
    page.wait_for_selector("#vote-prompt .prompt")
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight"):
        before = page.locator("[data-showing]").get_attribute("data-showing")
        page.keyboard.press(key)
        until(lambda before=before: page.locator("[data-showing]").get_attribute("data-showing") != before, page)
    walk.shoot("vote")
    walk.click("#end-vote")
    page.wait_for_selector("#vote-result .verdict")
    walk.step("Studies")
    page.wait_for_selector("#study-plan")
    walk.shoot("studies")
    before = walk.actions
    walk.step("5 Prefer")
    until(lambda: page.input_value("#prefer-run input") == "demo", page)
    walk.click("#generate")
    page.wait_for_selector("#prefer-prompt .prompt")
    for number in range(LEAST):
        page.wait_for_selector(".duel img:visible")  # others are still being drawn
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(f"#prefer-counts >> text={number + 1} of about")
    walk.shoot("prefer")
    page.click("#stop-pairs")
    walk.click("#train-on-these")
    page.wait_for_selector("#recipe-status .good")
    walk.note(f"the recipe of a preference run, {walk.actions - before} actions from the finished run")
    page.wait_for_selector("#check-report .good.verdict")
    walk.click("#start-training")
    page.get_by_role("button", name="Start anyway").click()  # these pairs are few, and the check says so
    until(lambda: control.status(runs / "demo-dpo").step > 0, page)
    walk.note("preference training has begun")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("own", "demo"), help="one of the two walks")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "screens")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, Any] = {}
    screens: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])

        def walked(runs: Path, *parts: Any) -> None:
            begun = time.monotonic()
            with served(runs) as address:
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.set_default_timeout(300_000)
                page.goto(address)
                walk = Walk(page, begun, args.out, runs)
                try:
                    for part in parts:
                        part(walk, runs)
                finally:
                    tasks.update(walk.tasks)
                    screens.update(walk.screens)

        if args.only != "demo":
            pictures = Path(folder) / "my pictures"
            shutil.copytree(ROOT / "presets" / "pictures" / "style", pictures)
            walked(Path(folder) / "own", lambda walk, runs: own_folder(walk, pictures, runs))
        if args.only != "own":
            walked(Path(folder) / "runs", lambda walk, runs: first_use(walk, args.steps, runs), compare_and_prefer)
        browser.close()
    json.dump({"v": 1, "steps": args.steps, "walk": tasks, "screens": screens}, sys.stdout, indent=1)
    print(f"\n\n{table(screens)}")


def table(screens: dict[str, dict[str, Any]]) -> str:
    rows = ["| screen | words | height (px) | way on ends at (px) |", "|---|---|---|---|"]
    return "\n".join(
        [*rows, *(f"| {name} | {s['words']} | {s['pixels']} | {s['next'] or ''} |" for name, s in screens.items())]
    )


if __name__ == "__main__":
    main()
