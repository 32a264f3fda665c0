"""Time and peak memory of a training step, each case beside the first, as ratios within one run.

    python -m bench                       # the bundled base: every case
    python -m bench --model sd15          # full-size SD1.5, random weights (writes about 2 GB to a temporary folder)
    python -m bench --cases latent,mixed --steps 5 --size 256 --json result.json

Every case runs in a process of its own, so that its peak memory is its own. Times are medians over the steps after one
that is not counted. Machines differ and are noisy: compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAIRS = str(ROOT / "presets" / "pictures" / "pairs")
VGG = "random VGG16"
CASES: dict[str, dict[str, Any]] = {
    "latent": {},
    "mixed": {"loss.pixel.mode": "mixed"},
    "x0": {"loss.pixel.mode": "x0", "loss.pixel.max_level": 1.0},
    "anchored": {"loss.pixel.mode": "anchored"},
    "stepped": {"loss.pixel.mode": "stepped"},
    "mixed, p = 0.25": {"loss.pixel.mode": "mixed", "loss.pixel.probability": 0.25},
    "mixed, window": {
        "loss.pixel.mode": "mixed",
        "loss.pixel.decode": "window",
        "loss.pixel.window": 64,
        "loss.pixel.halo": 32,
    },
    "mixed, midcrop": {"loss.pixel.mode": "mixed", "loss.pixel.decode": "midcrop", "loss.pixel.window": 64},
    "l1": {"loss.l1.weight": 1.0},
    "huber": {"loss.huber.weight": 1.0},
    "smooth l1": {"loss.smooth_l1.weight": 1.0},
    "haar": {"loss.mse.weight": 1.0, "loss.haar.weight": 1.0},
    "focal frequency": {"loss.mse.weight": 1.0, "loss.focal_frequency.weight": 1.0},
    "lpl": {"loss.lpl.weight": 1.0, "loss.lpl.max_level": 1.0},
    "lpips": {"loss.lpips.backbone": VGG},
    "checkpointed": {"memory.gradient_checkpointing": True},
    "checkpointed, mixed": {"memory.gradient_checkpointing": True, "loss.pixel.mode": "mixed"},
    "pairs, sft": {"data.pairs": PAIRS},
    "pairs, dpo": {"data.pairs": PAIRS, "objective.kind": "dpo"},
    "pairs, dpo, one by one": {"data.pairs": PAIRS, "objective.kind": "dpo", "memory.one_by_one": True},
    "pairs, dpo, cached reference": {"data.pairs": PAIRS, "objective.kind": "dpo", "objective.reference_draws": 1},
    "pairs, simpo": {"data.pairs": PAIRS, "objective.kind": "simpo"},
    "pairs, dpo and pixel dpo": {"data.pairs": PAIRS, "objective.kind": "dpo", "loss.pixel.mode": "mixed"},
}
"""Flags on top of a plain LoRA run."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base", help="base (bundled), sd15 (random weights), or a path")
    parser.add_argument("--cases", default=",".join(CASES), help="names, separated by commas")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(json.loads(args.one), args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.model = {"base": lambda: str(ROOT / "presets" / "base"), "sd15": lambda: random_sd15(Path(scratch))}.get(
            args.model, lambda: args.model
        )()
        rows = [{"case": name, **apart(CASES[name], args)} for name in chosen(args.cases)]
    print(table(rows, args))
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(), "settings": vars(args) | {"json": None}, "rows": rows}, indent=1), "utf-8"
        )


def chosen(text: str) -> list[str]:
    known = sorted(CASES, key=len, reverse=True)
    names, rest = [], text
    while rest:
        name = next((n for n in known if rest == n or rest.startswith(f"{n},")), None)
        if name is None:
            raise SystemExit(f"bench: there is no case '{rest.partition(',')[0]}'; there is: {'; '.join(CASES)}")
        names.append(name)
        rest = rest[len(name) + 1 :]
    return names


def apart(flags: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench",
        "--one",
        json.dumps(flags),
        "--model",
        args.model,
        "--steps",
        str(args.steps),
        "--size",
        str(args.size),
        "--batch",
        str(args.batch),
        "--precision",
        args.precision,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {flags} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(flags: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step (median), and GiB at the peak and before the first step."""
    from threading import Event

    from pixelkiln.trainer import memory
    from pixelkiln.trainer.build import build
    from pixelkiln.trainer.config import load
    from pixelkiln.trainer.engine import Loop
    from pixelkiln.trainer.report import Writer
    from pixelkiln.trainer.run import RunFolder
    from pixelkiln.trainer.score import References

    with tempfile.TemporaryDirectory() as out:
        style = {} if "data.pairs" in flags else {"data.path": str(ROOT / "presets" / "pictures" / "style")}
        base = {
            "run.out": out,
            "run.name": "bench",
            "run.steps": args.steps + 1,
            "run.batch": args.batch,
            "run.precision": args.precision,
            "model.path": args.model,
            "data.resolution": args.size,
            "data.bucket_min": 64,
        }
        if VGG in flags.values():
            flags = {**flags, "loss.lpips.backbone": random_vgg(Path(out) / "vgg16.safetensors")}
        config = load(flags={**base, **style, **flags})
        folder = RunFolder(Path(out) / "bench")
        folder.make()
        with Writer(folder.path) as writer:
            parts = build(config, lambda line: None)
            loop = Loop(parts, folder, writer, Event())
            parts.dataset.prepare()
            parts.free_encoders()
            memory.reset_peak(parts.device)
            before, seconds = memory.used_gb(parts.device), []
            if parts.dataset.fixed_draws:
                loop.references = References(parts)
            for _ in range(args.steps + 1):  # the same step again, so that a cached reference is met from the second on
                start = time.perf_counter()
                loop.step()
                memory.wait(parts.device)
                seconds.append(time.perf_counter() - start)
            peak = memory.peak_gb(parts.device)
    return {
        "seconds": statistics.median(seconds[1:]),
        "peak_gb": peak,
        "before_gb": before,
        "device": str(parts.device),
    }


def random_sd15(folder: Path) -> str:
    """A full-size SD1.5 in diffusers layout with random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from pixelkiln.trainer.families.words import clip
    from pixelkiln.trainer.registry import families

    kind = families["sd15"].build()
    torch.manual_seed(0)
    UNet2DConditionModel(**kind.config).half().save_pretrained(folder / "unet")
    AutoencoderKL(**kind.vae).half().save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**kind.encoders["te"].config)).half().save_pretrained(folder / "text_encoder")
    clip().save_pretrained(folder / "tokenizer")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**schedule).save_pretrained(folder / "scheduler")
    return str(folder)


def random_vgg(path: Path) -> str:
    """VGG16's features under torchvision's names, with random weights."""
    import torch
    from safetensors.torch import save_file

    from pixelkiln.trainer.losses.lpips import STAGES

    state, channels, at = {}, 3, 0
    for widths in STAGES:
        for width in widths:
            state[f"features.{at}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
            state[f"features.{at}.bias"] = torch.zeros(width)
            channels, at = width, at + 2
        at += 1
    save_file(state, path)
    return str(path)


def machine() -> dict[str, str]:
    import diffusers
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "card": card,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Markdown: each case and its ratio to the first."""
    first = rows[0]
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    lines = [
        f"{Path(args.model).name}, {args.size} px, batch {args.batch}, {args.steps} steps; {facts}",
        "",
        "| case | seconds a step | ratio | peak GiB | above the model |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        above = row["peak_gb"] - row["before_gb"]
        ratio = row["seconds"] / first["seconds"]
        lines.append(f"| {row['case']} | {row['seconds']:.3f} | {ratio:.2f} | {row['peak_gb']:.2f} | {above:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
