"""Does preference training work? Arms of the demo side by side.

    python -m bench.preference [--steps N] [--pictures N] [--out FOLDER]

Every arm learns the same 150 pairs (outlines preferred over colour) and is asked of 40 that it never saw, at 16 fixed
noise levels each: the share in the right order (implicit accuracy) with its 95 % interval, levels as independent;
and, of pictures drawn at fixed seeds for held-out prompts, how many lie nearer to a picture of the chosen style than to
any of the other: a vote of nearest neighbours that is not the training loss.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ROOT / "presets" / "pictures" / "pairs"
ARMS = {
    "latent DPO": {"loss.pixel.weight": 0.0},
    "pixel DPO": {"loss.mse.weight": 0.0, "loss.pixel.weight": 1.0},
    "latent + pixel DPO": {},
    "latent DPO + pixel SimPO": {"objective.pixel.kind": "simpo"},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.preference", description=__doc__)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--out", type=Path, help="keep runs and the picture here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        rows = [arm(name, flags, args, out) for name, flags in ARMS.items()]
        sheet(rows, out / "preference.png")
    print("| arm | steps | minutes | held-out accuracy | pictures in the chosen style, before | after |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        accuracy = ", ".join(f"{term} {p:.3f} ± {half:.3f}" for term, (p, half) in row["accuracy"].items())
        print(
            f"| {row['arm']} | {row['steps']} | {row['minutes']:.1f} | {accuracy} | {row['before']} | {row['after']} |"
        )


def arm(name: str, flags: dict, args: argparse.Namespace, out: Path) -> dict:
    from pixelkiln.trainer.config import load
    from pixelkiln.trainer.engine import train

    prompts = held_out_prompts(args.pictures)
    base = {"run.out": str(out), "run.name": name.replace(" ", "-"), "sample.prompts": prompts, "sample.every": 0}
    config = load(preset="demo_dpo", flags={**base, **({"run.steps": args.steps} if args.steps else {}), **flags})
    start = time.monotonic()
    assert train(config) == 0, f"the arm {name} did not end"
    folder = out / config.run.name
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    told = [e for e in events if e["kind"] == "validation"][-1]
    levels, count = told["levels"].values(), 40 * len(told["levels"])
    accuracy = {}
    for term in config.terms():
        p = sum(level[f"{term}/accuracy"] for level in levels) / len(levels)
        accuracy[term] = (p, 1.96 * math.sqrt(p * (1 - p) / count))
    steps = config.run.steps
    return {
        "arm": name,
        "steps": steps,
        "minutes": (time.monotonic() - start) / 60,
        "accuracy": accuracy,
        "before": vote(folder / "samples", 0, len(prompts)),
        "after": vote(folder / "samples", steps, len(prompts)),
        "folder": folder,
    }


def held_out_prompts(count: int) -> list[str]:
    """Prompts of pairs that validation holds out, as the trainer splits them."""
    from pixelkiln.trainer.build import scan
    from pixelkiln.trainer.config import load

    held = scan(load(preset="demo_dpo"))[1].held
    return [item.caption for item in held[:count]]


def vote(samples: Path, step: int, count: int) -> str:
    styles = {role: pictures(sorted(PAIRS.glob(f"*_{role}.png"))) for role in ("chosen", "rejected")}
    drawn = pictures([samples / f"step{step:08d}_{i:02d}.png" for i in range(count)])

    def nearest(one: np.ndarray, many: np.ndarray) -> float:
        return float(((many - one) ** 2).mean(axis=(1, 2, 3)).min())

    won = sum(nearest(one, styles["chosen"]) < nearest(one, styles["rejected"]) for one in drawn)
    return f"{won} of {count}"


def pictures(paths: list[Path]) -> np.ndarray:
    made = []
    for path in paths:
        with Image.open(path) as picture:
            made.append(np.asarray(picture.convert("RGB").resize((64, 64)), dtype=np.float32) / 255)
    return np.stack(made)


def sheet(rows: list[dict], path: Path, columns: int = 8, cell: int = 96) -> None:
    """One row of pictures before training, then one of each arm."""
    lines = [(rows[0]["folder"], 0), *((row["folder"], row["steps"]) for row in rows)]
    page = Image.new("RGB", (columns * cell, len(lines) * cell), "white")
    for y, (folder, step) in enumerate(lines):
        for x in range(columns):
            with Image.open(folder / "samples" / f"step{step:08d}_{x:02d}.png") as picture:
                page.paste(picture.convert("RGB").resize((cell, cell)), (x * cell, y * cell))
    page.save(path)


if __name__ == "__main__":
    main()
