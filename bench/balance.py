"""How strong a pixel term is that ``weight = "auto"`` has made as large as the latent loss; as a markdown table.

    python -m bench.detail build/detail
    python -m bench.balance build/detail [--draws 48] [--model presets/base]

``auto`` makes the means of the two losses equal, which says nothing about their gradients. For each mode, over pictures
at random noise levels, in the gradient of a fresh LoRA on the model's U-Net: the mean norm of the pixel term's gradient
over that of the latent loss's, the same of the mean gradients (what is left when noise has averaged out), the cosine
of these means, and the share of the pixel gradient's energy that comes from the noisiest third of the schedule.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.timesteps import draw
from pixelkiln.trainer.diffusion.types import Batch, Rows, Step
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.losses.decode import Decoder
from pixelkiln.trainer.losses.options import PixelOptions
from pixelkiln.trainer.losses.pixel import PixelLoss

ROOT = Path(__file__).resolve().parents[1]
TERMS = {
    "mixed": PixelOptions(mode="mixed"),
    "anchored": PixelOptions(mode="anchored"),
    "stepped": PixelOptions(mode="stepped"),
    "x0": PixelOptions(mode="x0"),
    "x0, max_level 0.3": PixelOptions(mode="x0", max_level=0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.balance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="pictures with captions beside them")
    parser.add_argument("--model", default=str(ROOT / "presets" / "base"))
    parser.add_argument("--draws", type=int, default=48)
    args = parser.parse_args()
    levels, losses, gradients = measured(args.folder, args.model, args.draws)
    report(levels, losses, gradients)


def measured(folder: Path, model: str, draws: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Shares of the schedule [draws]; for ``latent`` and each term the losses [draws] and gradients [draws, n], both 0
    where the term's gate is closed."""
    family = load(ModelOptions(path=model))
    decoder = Decoder(family.vae, family.scale, family.shift, torch.float32)
    adapter = inject(family.denoiser, family.text_encoders, family.name, AdapterOptions(rank=16), seed=0)
    paths = sorted(folder.glob("*.png"))
    levels: list[float] = []
    losses: dict[str, list[Tensor]] = {name: [] for name in ("latent", *TERMS)}
    gradients: dict[str, list[Tensor]] = {name: [] for name in ("latent", *TERMS)}
    for number in range(draws):
        path = paths[number % len(paths)]
        with Image.open(path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
        side = float(pixels.shape[-1])
        size = torch.tensor([[side, side, 0, 0, side, side]])
        caption = path.with_suffix(".txt").read_text("utf-8").strip()
        with torch.no_grad():
            text = replace(family.encode_text([caption]), size=size)
            latents = family.encode_pixels(pixels)
        batch = Batch(latents, [caption], size, Rows.plain(1), [path.name])
        chance = draw(batch, 1234, number, family.process, NoiseOptions())
        noisy = family.process.noisy(latents, chance.added, chance.level)
        step = Step(batch, chance, noisy, family.predict(noisy, chance.level, text), family.process, decoder)
        levels.append(float(chance.level) / (1 if family.process.is_flow else family.process.steps))
        values = {"latent": (step.out - step.target).square().mean((1, 2, 3))}
        values |= {name: PixelLoss(options, decoder)(step) for name, options in TERMS.items()
                   if levels[-1] < options.max_level}  # fmt: skip
        for name in losses:
            value = values.get(name, torch.zeros(1))
            losses[name].append(value.detach().sum())
            gradients[name].append(gradient(value, step.out, adapter.parameters()))
    return (torch.tensor(levels), {name: torch.stack(rows) for name, rows in losses.items()},
            {name: torch.stack(rows) for name, rows in gradients.items()})  # fmt: skip


def gradient(value: Tensor, out: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """[n] with respect to the adapter; 0 where the value follows from nothing."""
    if not value.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters))
    (towards,) = torch.autograd.grad(value.sum(), out, retain_graph=True)
    return torch.cat([g.flatten() for g in torch.autograd.grad(out, parameters, towards, retain_graph=True)])


def report(levels: Tensor, losses: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    print("| mode | norm | norm of the mean | cosine of the means | from the noisiest third |\n|---|---|---|---|---|")
    latent = gradients["latent"]
    for name in TERMS:
        own = losses["latent"].mean() / losses[name][losses[name] > 0].mean() * gradients[name]
        single = own.norm(dim=1).mean() / latent.norm(dim=1).mean()
        whole = own.mean(0).norm() / latent.mean(0).norm()
        cosine = torch.cosine_similarity(own.mean(0), latent.mean(0), 0)
        energy = own.square().sum(1)
        noisiest = energy[levels > 2 / 3].sum() / energy.sum()
        print(f"| {name} | {single:.2f} | {whole:.2f} | {cosine:.2f} | {noisiest:.0%} |")


if __name__ == "__main__":
    main()
