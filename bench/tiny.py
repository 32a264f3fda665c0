"""Distil a decoder of TAESD's shape from a model's autoencoder, to measure what a tiny decoder does to the pixel loss.

    python -m bench.tiny --seconds 200,600 -o build/taesd_decoder.safetensors          # two cycles
    python -m bench.tiny --start build/taesd_decoder.safetensors --unclamped --seconds 200 -o build/plain.safetensors
    python -m bench.surrogate build/taesd_decoder.safetensors                          # how good its gradient is

The student learns the teacher's pixels by squared error, of the bundled pictures turned, zoomed, recoloured and mixed;
each new picture is decoded once and seen a few times. Each cycle of ``--seconds``, of processor time, has its own
cosine schedule, so that what a longer one adds can be seen. The PSNR (peak 2) of the ``--held`` first pictures, which
it never sees, is printed as it goes, and the file is written as ComfyUI has it. It stops at SIGTERM.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional

from pixelkiln.trainer.families.family import Family
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.losses import tiny
from pixelkiln.trainer.losses.decode import Decoder
from pixelkiln.trainer.runs.files import write_atomic

from .surrogate import ROOT, pictures

BATCH, RATE, DECAY = 4, 0.01, 0.02
"""Pictures of a step; Muon's rate and weight decay."""
FRESH = 20
"""How often a picture is used, on average, before a new one replaces it."""
FIRST, POOL = 32, 1600
"""Pictures to begin with, and at most."""
EVERY = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "presets" / "base"))
    parser.add_argument("--seconds", default="600,1800", help="of processor time, of each cycle, separated by commas")
    parser.add_argument("--held", type=int, default=40, help="pictures to measure with")
    parser.add_argument("--start", help="a file that this wrote, to go on from")
    parser.add_argument("--unclamped", action="store_true", help="train without the clamp of the latents")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    torch.manual_seed(0)
    teacher = Teacher(load(ModelOptions(path=args.model)), args.held)
    student = tiny.read(args.start) if args.start else new(teacher.family.channels)
    run = Run(teacher, student.decoder.layers.requires_grad_(True), not args.unclamped, Path(args.output))
    print("| cycle | seconds | steps | PSNR of held-out pictures, dB |\n|---|---|---|---|", flush=True)
    try:
        for number, seconds in enumerate(args.seconds.split(",")):
            run.cycle(number + 1, float(seconds))
    except KeyboardInterrupt:
        run.report("stopped")


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def new(channels: int) -> Any:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return AutoencoderTiny(latent_channels=channels)


class Teacher:
    """Augmented pictures as latents [n, C, h, w] with what the teacher decodes them to [n, 3, f h, f w]."""

    def __init__(self, family: Family, held: int):
        self.family, self.decoder = family, Decoder(family.vae, family.scale, family.shift, torch.float32)
        self.random = random.Random(0)
        paths = [path for path, _ in pictures(10_000, 0)]
        style = sorted((ROOT / "presets" / "pictures" / "style").glob("*.png"))
        self.images = [Image.open(path).convert("RGB") for path in (*paths[held:], *style)]
        self.held = self.decoded(torch.cat([_pixels(Image.open(path).convert("RGB")) for path in paths[:held]]))
        self.pool = [self.fresh() for _ in range(FIRST)]
        self.debt = 0.0

    @torch.no_grad()
    def decoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        z = self.family.encode_pixels(pixels)
        return z, torch.cat([self.decoder(one) for one in z.split(8)])

    def fresh(self) -> tuple[Tensor, Tensor]:
        z, pixels = self.decoded(_pixels(self.augmented()))
        return z, pixels.half()

    def batch(self) -> tuple[Tensor, Tensor]:
        self.debt += BATCH / FRESH
        while self.debt >= 1:
            self.debt -= 1
            if len(self.pool) == POOL:
                self.pool[self.random.randrange(POOL)] = self.fresh()
            else:
                self.pool.append(self.fresh())
        z, pixels = zip(*self.random.sample(self.pool, BATCH), strict=True)
        return torch.cat(z), torch.cat(pixels).float()

    def augmented(self) -> Image.Image:
        image = self.one()
        if self.random.random() < 0.25:
            image = Image.blend(image, self.one(), self.random.uniform(0.2, 0.8))
        return image

    def one(self) -> Image.Image:
        draw, image = self.random, self.random.choice(self.images)
        if draw.random() < 0.6:
            side = image.width * draw.uniform(0.5, 1.0)
            left, top = draw.uniform(0, image.width - side), draw.uniform(0, image.height - side)
            image = image.resize(image.size, Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        if draw.random() < 0.5:
            image = ImageOps.mirror(image)
        image = image.rotate(90 * draw.randrange(4))
        if draw.random() < 0.6:
            bands = list(image.split())
            draw.shuffle(bands)
            image = Image.merge("RGB", bands)
            if draw.random() < 0.3:
                image = ImageOps.invert(image)
            gain, bias = draw.uniform(0.6, 1.2), draw.uniform(-40, 40)
            image = image.point(lambda value: gain * (value - 128) + 128 + bias)
        return image


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _matrix(weight: Tensor) -> Tensor:
    """A convolution as [out, rest], a view of channels-last memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


class Run:
    def __init__(self, teacher: Teacher, layers: Any, clamped: bool, output: Path):
        layers.to(memory_format=torch.channels_last)
        self.teacher, self.layers, self.clamped, self.output = teacher, layers, clamped, output
        self.weights = [p for p in layers.parameters() if p.ndim > 1]
        self.matrices = [nn.Parameter(_matrix(p.detach())) for p in self.weights]  # the same memory
        biases = [p for p in layers.parameters() if p.ndim == 1]
        self.optimizers = (
            (torch.optim.Muon(self.matrices, weight_decay=DECAY), RATE),
            (torch.optim.Adam(biases), 2e-3),
        )
        self.steps, self.shown = 0, 0.0

    def decode(self, z: Tensor) -> Tensor:
        return self.layers(3 * torch.tanh(z / 3) if self.clamped else z) * 2 - 1

    def cycle(self, number: int, seconds: float) -> None:
        began = time.process_time()
        while (at := (time.process_time() - began) / seconds) < 1:
            self.step(min(1.0, (self.steps + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * at))))
            if time.process_time() - self.shown > EVERY:
                self.report(str(number))
        self.report(f"{number}, its end")

    def step(self, rate: float) -> None:
        z, pixels = (value.contiguous(memory_format=torch.channels_last) for value in self.teacher.batch())
        with torch.autocast("cpu", torch.bfloat16):
            made = self.decode(z)
        self.layers.zero_grad()
        functional.mse_loss(made.float(), pixels).backward()
        for matrix, weight in zip(self.matrices, self.weights, strict=True):
            assert weight.grad is not None
            matrix.grad = _matrix(weight.grad)
        for optimizer, most in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = most * rate
            optimizer.step()
        self.steps += 1

    @torch.no_grad()
    def report(self, cycle: str) -> None:
        from safetensors.torch import save

        z, pixels = self.teacher.held
        made = torch.cat([self.decode(one) for one in z.split(8)])
        psnr = 10 * torch.log10(4 / (made - pixels).square().flatten(1).mean(1))
        print(f"| {cycle} | {time.process_time():.0f} | {self.steps} | {float(psnr.mean()):.2f} |", flush=True)
        state = self.layers.state_dict()
        tensors = {f"{int(name.split('.')[0]) + 1}.{name.split('.', 1)[1]}": value for name, value in state.items()}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.output, save({name: value.contiguous() for name, value in tensors.items()}))
        self.shown = time.process_time()


if __name__ == "__main__":
    main()
