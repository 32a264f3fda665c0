"""Lotus' ablation at the size of the demo: choices of a dense run compared over seeds, on rendered scenes.

    python -m bench.dense FOLDER --seeds 5 --steps 250 --batch 4

Arms of the product are the demo's preset with a few options changed. Noise prediction is none of its options and is
trained here, with diffusers and PEFT: Marigold's form (arXiv 2312.02145), where the network sees the picture's latents
and the noised map's in 8 channels and predicts the noise at a random timestep; the same base, rank, layers, optimizer,
steps and scenes, not mirrored; sampled by DDIM (trailing timesteps) in 1 and in 25 steps. Differences are paired by
seed, with Student's 95 % intervals over seeds. Cells that ``FOLDER/cells.json`` has are not run again; each seed is run
in every arm before the next seed is begun.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from pixelkiln.trainer.commands.dense_demo import FIRST_HELD_OUT
from pixelkiln.trainer.commands.dense_predict import load_adapter, measured, score
from pixelkiln.trainer.config import load
from pixelkiln.trainer.dense import maps
from pixelkiln.trainer.dense.scenes import write_scenes
from pixelkiln.trainer.dense.targets import read_target
from pixelkiln.trainer.runs.control import DONE
from pixelkiln.trainer.training.loop import train

BASE = Path(__file__).resolve().parents[1] / "presets" / "base"
UNIT, VALID = 0.001, (0.1, 20.0)
ARMS: dict[str, dict[str, Any]] = {
    "latent": {},
    "latent + decoded": {"loss.dense.weight": "auto"},
    "latent + decoded, one in four": {"loss.dense.weight": "auto", "loss.dense.probability": 0.25},
    "detail": {"dense.detail": 1.0},
    "detail, timestep": {"dense.detail": 1.0, "dense.task_switch": "timestep"},
}
NOISE = {"noise, 1 step": 1, "noise, 25 steps": 25}
PAIRS = (
    ("detail", "latent"), ("latent + decoded", "latent"),
    ("latent + decoded, one in four", "latent"), ("detail, timestep", "detail"),
    ("noise, 1 step", "latent"), ("noise, 25 steps", "latent"),
)  # fmt: skip
MEASURES = ("absrel", "delta1", "edge_f1")

Cell = dict[str, float]


def product(folder: Path, name: str, seed: int, steps: int, batch: int) -> Cell:
    """Train an arm with the product and score it on the held-out scenes."""
    flags = {
        "run.out": str(folder / "runs"), "run.name": "cell", "run.seed": seed, "run.steps": steps, "run.batch": batch,
        "data.path": str(folder / "pictures"), "data.targets": str(folder / "depth"), **ARMS[name],
    }  # fmt: skip
    shutil.rmtree(folder / "runs" / "cell", ignore_errors=True)
    began = time.process_time()
    if train(load(preset="demo_dense", flags=flags)) != DONE:
        raise SystemExit(1)
    seconds = time.process_time() - began
    model = load_adapter(folder / "runs" / "cell" / "cell.safetensors", None, lambda line: None)
    others = folder / "others"
    found = score(model, others / "pictures", others / "depth", UNIT, VALID).summary()
    return {key: one["mean"] for key, one in found.items()} | {"seconds": seconds} | {
        f"{kind}_{key}": one[kind] for key, one in found.items() for kind in ("prior", "floor")
    }  # fmt: skip


def encoded(vae: Any, folder: Path) -> tuple[Tensor, Tensor]:
    """Latents of the pictures and of their maps, [N, 4, h, w] each."""
    pictures, depths = [], []
    for path in sorted((folder / "pictures").glob("*.png")):
        with Image.open(path) as image:
            pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1)
        truth = read_target(folder / "depth" / path.name, "depth", UNIT, list(VALID))
        depths.append(maps.encode(truth, "depth"))
    with torch.no_grad():
        found = [
            torch.cat([vae.encode(one).latent_dist.mean for one in torch.stack(images).split(8)])
            for images in (pictures, depths)
        ]
    return found[0] * vae.config.scaling_factor, found[1] * vae.config.scaling_factor


def noise_prediction(folder: Path, seed: int, steps: int, batch: int) -> dict[str, Cell]:
    """Train noise prediction and score its samples. Its random numbers begin at ``seed``."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    vae: Any = AutoencoderKL.from_pretrained(BASE / "vae").requires_grad_(False)
    unet: Any = UNet2DConditionModel.from_pretrained(BASE / "unet").requires_grad_(False)
    scheduler: Any = DDIMScheduler.from_pretrained(
        BASE / "scheduler", timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    assert scheduler.config["prediction_type"] == "epsilon"
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    tokens = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        prompt = CLIPTextModel.from_pretrained(BASE / "text_encoder")(tokens)[0]
    file = folder / "latents.pt"
    if not file.is_file():
        torch.save([encoded(vae, folder), encoded(vae, folder / "others")], file)
    (pictures, depths), (others, _) = torch.load(file)
    first = unet.conv_in
    wide = torch.nn.Conv2d(8, first.out_channels, 3, padding=1)
    wide.weight.data = first.weight.data.repeat(1, 2, 1, 1) / 2
    wide.bias = first.bias
    unet.conv_in = wide.requires_grad_(False)
    config = load(preset="demo_dense", flags={"data.path": ".", "data.targets": "."})
    names = [name for name, one in unet.named_modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)]
    rank = config.adapter.rank
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    weights = [one for one in unet.parameters() if one.requires_grad]
    rate, warmup = config.optimizer.learning_rate, int(config.schedule.warmup)
    optimizer = torch.optim.AdamW(weights, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min(1, at / warmup) * (1 + math.cos(math.pi * max(0, at - warmup) / (steps - warmup))) / 2
    )

    def predicted(picture: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        both = torch.cat([picture, noisy], 1)
        return unet(both, timestep, encoder_hidden_states=prompt.expand(len(both), -1, -1)).sample

    began, order = time.process_time(), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(pictures))
        rows, order = order[:batch], order[batch:]
        noise, timestep = torch.randn_like(depths[rows]), torch.randint(1000, (batch,))
        noisy = scheduler.add_noise(depths[rows], noise, timestep)
        loss = (predicted(pictures[rows], noisy, timestep) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - began
    paths = sorted((folder / "others" / "depth").glob("*.png"))
    truths = [read_target(path, "depth", UNIT, list(VALID)) for path in paths]
    found = {}
    for name, count in NOISE.items():
        scheduler.set_timesteps(count)
        now = torch.randn(others.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                out = predicted(others, now, timestep.expand(len(now)))
                now = scheduler.step(out, int(timestep), now).prev_sample
            pixels = torch.cat([vae.decode(one / vae.config.scaling_factor).sample for one in now.split(8)])
        figures = [measured(maps.decode(one[None], "depth")[0], truth, "depth", "disparity", VALID)
                   for one, truth in zip(pixels, truths, strict=True)]  # fmt: skip
        found[name] = {key: mean(np.array([row[key] for row in figures])) for key in MEASURES}
        found[name]["seconds"] = seconds
    return found


def mean(values: np.ndarray) -> float:
    """Of those that are known."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def table(cells: dict[str, Cell], seeds: int) -> list[str]:
    """Means over seeds, then paired differences with Student's 95 % intervals over seeds."""

    def of(name: str, key: str) -> np.ndarray:
        return np.array([cells.get(f"{name}/{seed}", {}).get(key, np.nan) for seed in range(seeds)])

    lines = ["| | " + " | ".join(MEASURES) + " | training, CPU s |", "|---|" + "---|" * (len(MEASURES) + 1)]
    for kind in ("prior", "floor"):
        lines.append(f"| {kind} | " + " | ".join(f"{mean(of('latent', f'{kind}_{k}')):.3f}" for k in MEASURES) + " | |")
    for name in [*ARMS, *NOISE]:
        means = [f"{mean(of(name, key)):.3f}" for key in MEASURES]
        lines.append(f"| {name} | {' | '.join(means)} | {mean(of(name, 'seconds')):.0f} |")
    lines += ["", "| difference | seeds | " + " | ".join(MEASURES) + " |", "|---|---|" + "---|" * len(MEASURES)]
    for one, other in PAIRS:
        columns, count = [], 0
        for key in MEASURES:
            paired = of(one, key) - of(other, key)
            paired = paired[~np.isnan(paired)]
            count = len(paired)
            if count > 1:
                half = stats.t.ppf(0.975, count - 1) * paired.std(ddof=1) / math.sqrt(count)
                columns.append(f"{paired.mean():+.4f} ({paired.mean() - half:+.4f} to {paired.mean() + half:+.4f})")
        lines.append(f"| {one} - {other} | {count} | {' | '.join(columns)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=64)
    o = parser.parse_args()
    write_scenes(o.folder, o.scenes)
    write_scenes(o.folder / "others", o.held_out, first=FIRST_HELD_OUT)
    kept = o.folder / "cells.json"
    cells: dict[str, Cell] = json.loads(kept.read_text()) if kept.is_file() else {}

    def run(names: list[str], seed: int, cell: Callable[[], dict[str, Cell]]) -> None:
        if any(f"{name}/{seed}" not in cells for name in names):
            cells.update({f"{name}/{seed}": found for name, found in cell().items()})
            kept.write_text(json.dumps(cells, indent=1))
            print("\n".join(table(cells, o.seeds)), flush=True)

    for seed in range(o.seeds):
        for name in ARMS:
            run([name], seed, lambda name=name, seed=seed: {name: product(o.folder, name, seed, o.steps, o.batch)})
        run(list(NOISE), seed, lambda seed=seed: noise_prediction(o.folder, seed, o.steps, o.batch))
    print("\n".join(table(cells, o.seeds)))


if __name__ == "__main__":
    main()
