"""A task whose point is fine detail: hatched, dotted and lettered shapes with captions, drawn by this file.

    python -m bench.detail FOLDER [--count 60] [--size 128]

writes PNG pictures with captions, the same on every machine for one version of Pillow (letters are its own font), and
prints how much of their energy is in the finest octaves, beside that of the bundled outlines, and how much of it the
bundled autoencoder gives back: a task without high frequencies, or one that the autoencoder cannot carry, would say
nothing about a loss that claims them.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
FILLS = ("lines", "crossed lines", "dots", "letters", "waves")
WIDTH = 3
"""Finer strokes are lost in the bundled autoencoder."""
SPACINGS = {"narrow": 14, "medium": 18, "wide": 22}
"""Pixels from stroke to stroke: below 12 the bundled autoencoder gives back a third of the octave from 1/8 to 1/4."""


def drawn(shape: str, fill: str, spacing: str, rng: random.Random, size: int = 128) -> Image.Image:
    """A shape filled with strokes of ``WIDTH`` pixels, black on white."""
    texture = Image.new("L", (size, size), 255)
    pen, period, slope = ImageDraw.Draw(texture), SPACINGS[spacing], rng.choice((-1, 1))
    if fill in ("lines", "crossed lines"):
        for both in (1, -1) if fill == "crossed lines" else (1,):
            for at in range(-size, 2 * size, round(1.4 * period)):
                pen.line((at, 0, at + both * slope * size, size), fill=0, width=WIDTH)
    elif fill == "dots":
        for y in range(0, size, period):
            for x in range((y // period % 2) * period // 2, size, period):
                pen.ellipse((x, y, x + WIDTH, y + WIDTH), fill=0)
    elif fill == "waves":
        for y in range(-8, size + 8, period):
            points = [(x, y + 3 * math.sin(x / (0.6 * period))) for x in range(size)]
            pen.line(points, fill=0, width=WIDTH)
    else:
        font = ImageFont.load_default(2 * period)
        for y in range(0, size, 2 * period):
            pen.text((-rng.randrange(6), y), "".join(rng.choices("AEHKMNRSTXZ", k=12)), fill=0, font=font)
    inside = Image.new("L", (size, size), 0)
    mark, room = ImageDraw.Draw(inside), size // 8
    low, high, middle = room, size - room, size // 2
    match shape:
        case "circle" | "ring":
            mark.ellipse((low, low, high, high), fill=255)
            if shape == "ring":
                mark.ellipse((middle - room, middle - room, middle + room, middle + room), fill=0)
        case "square":
            mark.rectangle((low, low, high, high), fill=255)
        case "triangle":
            mark.polygon([(middle, low), (high, high), (low, high)], fill=255)
        case "diamond":
            mark.polygon([(middle, low), (high, middle), (middle, high), (low, middle)], fill=255)
        case _:
            mark.rectangle((middle - room, low, middle + room, high), fill=255)
            mark.rectangle((low, middle - room, high, middle + room), fill=255)
    ink = Image.composite(
        Image.new("RGB", (size, size), "white"), Image.new("RGB", (size, size), (20, 20, 20)), texture
    )
    return Image.composite(ink, Image.new("RGB", (size, size), "white"), inside)


def write(folder: Path, count: int = 60, size: int = 128) -> list[Path]:
    """Different combinations of shape, fill and spacing, in an order that is fixed."""
    folder.mkdir(parents=True, exist_ok=True)
    every = [(shape, fill, spacing) for shape in SHAPES for fill in FILLS for spacing in SPACINGS]
    random.Random(0).shuffle(every)
    paths = []
    for i, (shape, fill, spacing) in enumerate(every[:count]):
        path = folder / f"{i:03d}.png"
        drawn(shape, fill, spacing, random.Random(i), size).save(path, optimize=True)
        path.with_suffix(".txt").write_text(f"{shape} filled with {spacing} {fill}\n", "utf-8")
        paths.append(path)
    return paths


def pixels(paths: list[Path], size: int = 128) -> torch.Tensor:
    """[N, 3, size, size] in [-1, 1]."""
    made = []
    for path in paths:
        with Image.open(path) as picture:
            made.append(np.asarray(picture.convert("RGB").resize((size, size)), dtype=np.float32) / 127.5 - 1)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def shares(pictures: torch.Tensor) -> list[float]:
    """The share of each octave in the energy around the mean, from the finest."""
    from pixelkiln.trainer.study.spectra import octave_energy

    energy = octave_energy(pictures - pictures.mean((2, 3), keepdim=True)).mean(0)
    return (energy / energy.sum()).tolist()


@torch.no_grad()
def carried(pictures: torch.Tensor) -> list[float]:
    """For each octave 1 - (energy of the autoencoder's error) / (energy of the picture)."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from pixelkiln.trainer.study.spectra import octave_energy

    vae = AutoencoderKL.from_pretrained(ROOT / "presets" / "base" / "vae").eval()
    again = torch.cat([vae.decode(vae.encode(one).latent_dist.mode()).sample for one in pictures.split(1)])
    centred = pictures - pictures.mean((2, 3), keepdim=True)
    return (1 - octave_energy(again - pictures).mean(0) / octave_energy(centred).mean(0)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.detail", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    made = pixels(write(args.folder, args.count, args.size), args.size)
    outlines = pixels(sorted((ROOT / "presets" / "pictures" / "style").glob("*.png"))[:16], args.size)
    print("| pictures | from 1/4 | 1/8 to 1/4 | 1/16 to 1/8 | 1/32 to 1/16 | below |\n|---|---|---|---|---|---|")
    rows = {
        "these: share of energy": shares(made), "bundled outlines: share of energy": shares(outlines),
        "these: carried by the autoencoder": carried(made[:12]),
        "bundled outlines: carried by the autoencoder": carried(outlines[:12]),
    }  # fmt: skip
    for name, each in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.0%}" for value in each) + " |")


if __name__ == "__main__":
    main()
