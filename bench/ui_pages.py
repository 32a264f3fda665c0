"""How long a person waits for a screen, in a real Chromium, with 2,000 captioned pictures and 50 runs.

    python bench/ui_pages.py [--pictures 2000] [--runs 50] [--rounds 5]

Each time is from the click (or the address) until what the screen is for is there and painted: its text, and every
picture in view decoded. The first visit comes with nothing remembered: no thumbnail, no size, no event read. Then
``--rounds`` further visits, of which the median and the longest are printed. Needs Chromium (``--chromium PATH``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from pixelkiln.bench.ui_server import served
from pixelkiln.extension import draws
from pixelkiln.extension.store import Home

READY = """([where, text]) => {
  const shown = document.querySelector(where);
  if (!shown || shown.offsetParent === null || !shown.innerText.includes(text)) return false;
  const within = (one, top, bottom) => {
    const box = one.getBoundingClientRect();
    return box.bottom > Math.max(0, top) && box.top < Math.min(innerHeight, bottom);
  };
  // The cells first: to ask for the place of a picture in a cell out of view makes the browser lay that cell out.
  const grid = document.querySelector("#grid .pictures");
  const box = grid && grid.offsetParent ? grid.getBoundingClientRect() : null;
  const cells = box ? [...grid.children].filter((one) => within(one, box.top, box.bottom)) : [];
  const others = [...document.querySelectorAll("img:not(#grid img)")];
  const seen = others.filter((one) => one.offsetParent !== null && within(one, 0, innerHeight));
  const pictures = [...cells.flatMap((one) => [...one.querySelectorAll("img")]), ...seen];
  return pictures.every((one) => one.complete && one.naturalWidth > 0);
}"""
TO_THE_END = "() => { const all = document.querySelector('#grid .pictures'); all.scrollTop = all.scrollHeight; }"
PROMPTS = [f"a {colour} {what}" for colour in ("red", "blue") for what in ("cat", "dog", "house")]


def make(folder: Path, count: int, runs: int) -> None:
    """Pictures with captions, a recipe that names them, and runs that have ended."""
    home = Home(folder)
    home.make()
    data = home.data / "many"
    data.mkdir(parents=True)
    for number in range(count):
        noise = Image.effect_noise((768, 512 + number % 64), 40).convert("RGB")
        noise.save(data / f"{number:05}.jpg", quality=90)
        (data / f"{number:05}.txt").write_text(f"a picture, number {number % 50}", encoding="utf-8")
    for number in range(runs):
        past_run(folder / f"run{number:02}")
    home.draft.write_text(
        f'config_version = 1\npreset = "demo"\n[data]\npath = "{data.as_posix()}"\nresolution = 512\n', encoding="utf-8"
    )


def past_run(run: Path) -> None:
    """2,000 steps, eleven checkpoints, previews; a grid that was drawn, and pairs to choose between."""
    steps = range(0, 2001, 200)
    (run / "checkpoints").mkdir(parents=True)
    events = ({"v": 1, "kind": "step", "step": step, "loss": 1 / (step + 1), "lr": 1e-4} for step in range(2000))
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    status = {"v": 1, "state": "done", "step": 2000, "total": 2000, "t": time.time(), "message": f"{run.name} is done"}
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
    (run / "config.toml").write_text(f"config_version = 1\n[sample]\nprompts = {json.dumps(PROMPTS)}\n", "utf-8")
    (run / f"{run.name}.safetensors").touch()
    for step in steps:
        (run / "checkpoints" / f"{run.name}-step{step:08d}.safetensors").touch()
        for row in range(len(PROMPTS)):
            draw(run / "samples" / f"step{step:08d}_{row:02}.png", step + row)
    candidates = [draws.Candidate("base", None), draws.Candidate("final", str(run / f"{run.name}.safetensors"))]
    sheet = draws.sheet(run, PROMPTS, candidates)
    draws.remember(run, sheet)
    for row, prompt in enumerate(PROMPTS):
        for one in candidates:
            draw(sheet.folder / one.id / draws.PICTURE.format(row), row)
        for seed in range(2):
            draw(run / "candidates" / f"{row}{seed}.png", 9 * row + seed, f"{prompt}\nSteps: 20, Seed: {seed}")


def draw(path: Path, seed: int, parameters: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters or "none")
    Image.new("RGB", (512, 512), (seed % 256, seed // 8 % 256, 90)).save(path, pnginfo=info)


class Watch:
    """A person with a stopwatch."""

    def __init__(self, page: Any, address: str):
        self.page, self.address = page, address
        self.taken: dict[str, list[float]] = {}

    def time(self, what: str, act: Callable[[], object], where: str, text: str = "") -> None:
        begun = time.perf_counter()
        act()
        self.page.wait_for_function(READY, arg=[where, text], polling=50)
        self.taken.setdefault(what, []).append(time.perf_counter() - begun)

    def step(self, label: str, where: str) -> None:
        self.time(f"switch to {label}", self.page.get_by_role("tab", name=label).click, where)

    def visit(self, run: str) -> None:
        """Every screen once. The check comes last, as its answer is the work of another process."""
        self.time("load the page", lambda: self.page.goto(self.address), "#pictures-summary", "pictures,")
        self.time("scroll to the last picture", lambda: self.page.evaluate(TO_THE_END), "#grid .one:last-child")
        self.time("open a picture", lambda: self.page.click("#grid .one:last-child .frame"), "#card figure", ".jpg")
        self.time("first verdict", self.page.get_by_role("tab", name="2 Recipe").click, "#check-report .verdict")
        self.time("and the form", lambda: None, "#recipe-status .note, #recipe-status .problems")
        self.step("3 Train", "#gallery table")
        chosen = self.page.locator("#run label", has_text=run).first
        self.time("choose another run", chosen.click, "#run-state", run)
        self.step("4 Compare", "#compare-grid table")
        self.step("5 Prefer", "#duel-right img")
        self.step("2 Recipe", "#check-report .note")
        self.time("the check's answer", lambda: None, "#check-report .good.verdict, #check-report .problems")

    def table(self) -> str:
        rows = ["| | first visit (s) | later, median (s) | later, longest (s) |", "|---|---|---|---|"]
        for what, (first, *later) in self.taken.items():
            rows.append(f"| {what} | {first:.2f} | {statistics.median(later):.2f} | {max(later):.2f} |")
        return "\n".join(rows)


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        runs = Path(folder) / "runs"
        make(runs, args.pictures, args.runs)
        browser = play.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        with served(runs) as address:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(300_000)
            watch = Watch(page, address)
            for number in range(args.rounds + 1):
                watch.visit(f"run{number % args.runs:02}")
        browser.close()
    print(f"{args.pictures} pictures, {args.runs} runs, {args.rounds} visits after the first\n\n{watch.table()}")


if __name__ == "__main__":
    main()
