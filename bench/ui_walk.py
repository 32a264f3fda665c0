"""A first use of the page in a real Chromium, timed: from its start to the first preview of the demo, then to a
preference run; and a picture of every screen, light and dark.

    python bench/ui_walk.py [--steps 150] [--out docs/screens]

Clicks are counted as a person makes them; a key of a vote is none. Needs Chromium (``--chromium PATH``).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pixelkiln.trainer import job

ROOT = Path(__file__).resolve().parents[1]
SHOWN_AS = "/home/you/pixelkiln"
"""What pictures for the documentation show in place of this machine's folders."""
HIDE = """([found, shown]) => {
  const mend = (text) => found.reduce((all, one) => all.split(one).join(shown), text);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) if (walk.currentNode.data.includes(found[0]) || walk.currentNode.data.includes(found[1]))
    walk.currentNode.data = mend(walk.currentNode.data);
  for (const one of document.querySelectorAll("input, textarea")) one.value = mend(one.value);
}"""


class Walk:
    """One person at the page."""

    def __init__(self, page: Any, begun: float, out: Path, runs: Path):
        self.page, self.begun, self.out = page, begun, out
        self.folders = [str(runs.parent), str(ROOT)]
        self.clicks, self.told = 0, {}

    def click(self, what: str) -> None:
        self.page.click(what)
        self.clicks += 1

    def step(self, label: str) -> None:
        self.page.get_by_role("tab", name=label).click()
        self.clicks += 1

    def note(self, what: str) -> None:
        self.told[what] = {"seconds": round(time.monotonic() - self.begun, 1), "clicks": self.clicks}
        print(f"{what}: {self.told[what]}", file=sys.stderr, flush=True)

    def shoot(self, name: str, at: str = "") -> None:
        """The screen as it is, light and dark; ``at``: scrolled to this."""
        self.page.mouse.move(0, 0)
        for look in ("light", "dark"):
            self.page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", look == "dark")
            self.page.evaluate(HIDE, [self.folders, SHOWN_AS])
            if at:
                self.page.evaluate("(one) => document.querySelector(one).scrollIntoView({block: 'start'})", at)
            else:
                self.page.evaluate("scrollTo(0, 0)")
            self.page.wait_for_timeout(700)
            path = self.out / f"{name}-{look}.png"
            self.page.screenshot(path=path)
            with Image.open(path) as taken:
                taken.convert("RGB").quantize(256).save(path, optimize=True)
        self.page.evaluate("document.body.classList.remove('dark')")


def until(what: Any, page: Any, seconds: float = 3600) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        page.wait_for_timeout(200)


def first_use(walk: Walk, steps: int, runs: Path) -> None:
    page = walk.page
    page.wait_for_selector("#demo-pictures")
    walk.note("the page is there")
    walk.click("#demo-pictures")
    page.wait_for_selector(".cell img:visible")
    page.wait_for_timeout(1500)
    walk.shoot("pictures")
    walk.click("#next-pictures")
    page.wait_for_selector("#recipe-status .good")
    if steps != 150:  # a shorter walk, for trying this out
        page.fill("#field-run-steps input", str(steps))
        page.press("#field-run-steps input", "Tab")
        page.fill("#field-sample-every input, #field-sample-every textarea", str(max(1, steps // 2)))
        page.press("#field-sample-every input, #field-sample-every textarea", "Tab")
        page.wait_for_timeout(1500)
    walk.shoot("recipe")
    walk.click("#next-recipe")
    page.wait_for_selector("#check-report .good")
    walk.shoot("check")
    walk.click("#start-training")
    page.wait_for_selector("#gallery img")
    walk.note("first preview")
    until(lambda: job.status(runs / "demo").state == "done", page)
    page.wait_for_selector("#run-state >> text=done")
    walk.note("training is done")
    page.wait_for_timeout(1500)
    walk.shoot("train")


def compare_and_prefer(walk: Walk, runs: Path) -> None:
    page = walk.page
    walk.step("5 Compare")
    page.wait_for_selector("#compare-which >> text=final")
    walk.click("#draw")
    page.wait_for_selector("#vote-prompt .prompt")
    walk.note("the grid is drawn")
    for key in ("ArrowLeft", "ArrowRight", "ArrowRight"):
        before = page.locator("[data-showing]").get_attribute("data-showing")
        page.keyboard.press(key)
        until(lambda before=before: page.locator("[data-showing]").get_attribute("data-showing") != before, page)
    walk.shoot("compare")
    before = walk.clicks
    walk.step("6 Prefer")
    until(lambda: page.input_value("#prefer-run input") == "demo", page)
    walk.click("#generate")
    page.wait_for_selector("#prefer-prompt .prompt")
    for number in range(3):
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(f"#prefer-counts >> text={number + 1} of about")
    walk.shoot("prefer")
    walk.click("#train-on-these")
    page.wait_for_selector("#recipe-status .good")
    walk.note(f"the recipe of a preference run, {walk.clicks - before} clicks from the finished run")
    walk.click("#next-recipe")
    page.wait_for_selector("#check-report .good")
    walk.click("#start-training")
    until(lambda: job.status(runs / "demo-dpo").step > 0, page)
    walk.note("preference training has begun")


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        runs = Path(folder) / "runs"
        browser = play.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        command = [sys.executable, "-m", "pixelkiln.extension", "--no-browser", "--port", str(port)]
        environment = {**os.environ, "PIXELKILN_PYTHON": os.environ.get("PIXELKILN_PYTHON", sys.executable)}
        begun = time.monotonic()
        process = subprocess.Popen([*command, "--runs", str(runs)], cwd=ROOT, env=environment)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(3_600_000)
            until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, page, 120)
            page.goto(f"http://127.0.0.1:{port}")
            walk = Walk(page, begun, args.out, runs)
            first_use(walk, args.steps, runs)
            compare_and_prefer(walk, runs)
        finally:
            process.kill()
            for run in job.list_runs(runs):
                job.kill(run.path)
            browser.close()
    json.dump({"v": 1, "steps": args.steps, "walk": walk.told}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
