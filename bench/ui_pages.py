"""How long the interface takes to fill a screen: 2,000 captioned pictures and 50 runs.

    python bench/ui_pages.py [--pictures 2000] [--runs 50]

Seconds of the server alone, first look (cold: sizes and thumbnails unknown) and again (what a page turn costs).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pixelkiln.extension import images, pictures, train
from pixelkiln.extension.page import Context
from pixelkiln.extension.security import Addresses, Folders
from pixelkiln.extension.store import Home


def make(folder: Path, count: int, runs: int) -> Context:
    home = Home(folder / "runs")
    home.make()
    data = folder / "pictures"
    data.mkdir()
    for number in range(count):
        colour = (number % 256, number // 256 * 16, 99)
        Image.new("RGB", (256 + number % 64, 256), colour).save(data / f"{number:05}.png")
        (data / f"{number:05}.txt").write_text(f"a picture, number {number % 50}", encoding="utf-8")
    for number in range(runs):
        run = home.runs / f"run{number:02}"
        (run / "samples").mkdir(parents=True)
        events = ({"v": 1, "kind": "step", "step": step, "loss": 1 / (step + 1), "lr": 1e-4} for step in range(2000))
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        status = {"v": 1, "state": "done", "step": 2000, "total": 2000}
        (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
        for step in range(0, 2000, 200):
            Image.new("RGB", (128, 128), (step // 8, 0, 0)).save(run / "samples" / f"step{step:08d}_00.png")
    home.draft.write_text(f'config_version = 1\n[data]\npath = "{data.as_posix()}"\n', encoding="utf-8")
    return Context(home, Addresses.of(home), Folders())


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return round(time.perf_counter() - begun, 3)


def main() -> None:
    import gradio as gr

    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = make(Path(folder), args.pictures, args.runs)
        with gr.Blocks():
            shown, trained = pictures.build(context), train.build(context)
        first = sorted((Path(folder) / "pictures").glob("*.png"))[: pictures.CELLS]
        measured = {
            "pictures, first look": seconds(shown.show),
            "pictures, turn the page": seconds(lambda: shown.show(None, "all", "", 5)),
            "thumbnails of a page": seconds(
                lambda: [images.thumbnail(path, pictures.SIDE, context.home.thumbnails) for path in first]
            ),
            "train, first look": seconds(lambda: trained.show(None, "loss", 0.9, False, {})),
            "train, another run": seconds(lambda: trained.show("run07", "loss", 0.9, False, {})),
            "train, a tick": seconds(lambda: trained.show("run07", "loss", 0.9, False, {})),
        }
    json.dump({"v": 1, "pictures": args.pictures, "runs": args.runs, "seconds": measured}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
