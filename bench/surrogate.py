"""How good a surrogate of the decoder is where it counts, in the adapter's gradient; as markdown tables.

    python -m trainer surrogate presets/base --data.path=presets/pictures/pairs -o build/surrogate.safetensors
    python -m bench.surrogate build/surrogate.safetensors           # the bundled model, 32 pictures it did not see
    python -m bench.surrogate FILE --mode x0,anchored --draws 48 --rank 16
    python -m bench.surrogate taesd_decoder.safetensors             # a tiny decoder's single file instead

For each picture at its own noise level three gradients are taken through a fresh LoRA: of the latent loss, of the pixel
loss decoded in full, and of the pixel loss by the surrogate. The pixel loss has the weight that ``weight = "auto"``
would give it. Everything else is arithmetic on the inner products of these gradients:

- *cosine* with the full decode's, of the pixel term alone and of the total gradient; *in the latents*: before the
  network, with the error's energy of the gradient and of the decoded difference, against a full decode's;
- *second moment* of the total gradient against a full decode's: of plain ``probability``, and of ``corrected``;
- *after clipping*: a step of four rows is clipped to a multiple of the full decode's usual norm. Of the mean update
  over many coins and batches: the cosine with the mean of the full decode's, clipped alike, and its length against it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.timesteps import draw
from pixelkiln.trainer.diffusion.types import Batch, Rows, Step
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.losses.decode import Decoder, tiny_decoder
from pixelkiln.trainer.losses.options import PixelOptions
from pixelkiln.trainer.losses.pixel import PixelLoss
from pixelkiln.trainer.losses.surrogate import FORMAT
from pixelkiln.trainer.losses.surrogate import load as load_surrogate

ROOT = Path(__file__).resolve().parents[1]
ROWS, COUNT = 4, 4000
"""Rows of a step, and how many steps are drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.surrogate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--model", default=str(ROOT / "presets" / "base"))
    parser.add_argument("--mode", default="mixed", help="one or more, separated by commas")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--skip", type=int, default=0, help="pictures to leave out: those that it was fitted to")
    parser.add_argument("--unclamped", action="store_true", help="a tiny decoder without its clamp of the latents")
    args = parser.parse_args()
    for mode in args.mode.split(","):
        latent, full, estimated, near = gradients(args, mode)
        cosine, error, pixels = near
        print(f"\nmode {mode}\n\n| in the latents | |\n|---|---|")
        print(f"| cosine with a full decode's | {cosine:.3f} |\n| residual energy | {error:.3f} |")
        print(f"| of the decoded difference | {pixels:.3f} |\n")
        scale = weight(latent, full)
        gram = torch.cat([latent, scale * full, scale * estimated])
        report((gram @ gram.T).double(), args.draws)


def pictures(count: int, skip: int) -> list[tuple[Path, str]]:
    folder = ROOT / "presets" / "pictures" / "pairs"
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    named = [(folder / row[kind], row["prompt"]) for row in rows for kind in ("chosen", "rejected")]
    return named[skip : skip + count]


class Unclamped(nn.Module):
    """A tiny autoencoder that decodes latents as they are."""

    def __init__(self, vae: Any):
        super().__init__()
        self.decoder, self.config = vae.decoder, vae.config

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoder.layers(z) * 2 - 1)


Difference = Callable[[Tensor, Tensor], Tensor]
"""Predicted and true latents -> difference of their pictures."""


def stand_in(
    args: argparse.Namespace, options: PixelOptions, exact: PixelLoss
) -> tuple[Callable[..., Any], Difference]:
    """Errors of a step, and differences of pictures, by the file: a surrogate's or a tiny decoder's."""
    with safe_open(args.file, "pt") as file:
        fitted = FORMAT in (file.metadata() or {})
    if fitted:
        made = load_surrogate(args.file)
        return lambda step: exact.estimated(made, step), made
    tiny = tiny_decoder(args.file, torch.device("cpu"), torch.float32)
    if args.unclamped:
        tiny = Decoder(Unclamped(tiny.vae), 1.0)
    return PixelLoss(options, tiny), lambda predicted, true: tiny(predicted) - tiny(true)


def gradients(args: argparse.Namespace, mode: str) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """[draws, parameters] each: of the latent loss, of the pixel loss decoded and by what stands in; and how near the
    latter two are in the latents."""
    family = load(ModelOptions(path=args.model))
    decoder = Decoder(family.vae, family.scale, family.shift, torch.float32)
    options = PixelOptions(mode=mode)  # pyright: ignore[reportArgumentType]
    loss = PixelLoss(options, decoder)
    cheap, difference = stand_in(args, options, loss)
    found, near = [], []
    adapter = inject(family.denoiser, family.text_encoders, family.name, AdapterOptions(rank=args.rank), seed=0)
    losses: list[Callable[[Step], Tensor]] = [
        lambda step: ((step.out - step.target) ** 2).mean((1, 2, 3)), loss, cheap,
    ]  # fmt: skip
    for number, (path, caption) in enumerate(pictures(args.draws, args.skip)):
        with Image.open(path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
        side = float(pixels.shape[-1])
        size = torch.tensor([[side, side, 0, 0, side, side]])
        with torch.no_grad():
            text = replace(family.encode_text([caption]), size=size)
        batch = Batch(family.encode_pixels(pixels), [caption], size, Rows.plain(1), [path.name])
        chance = draw(batch, 1234, number, family.process, NoiseOptions())
        noisy = family.process.noisy(batch.latents, chance.added, chance.level)
        step = Step(batch, chance, noisy, family.predict(noisy, chance.level, text), family.process, decoder)
        each = [torch.autograd.grad(one(step).sum(), step.out, retain_graph=True)[0] for one in losses]
        with torch.no_grad():
            predicted, true, _ = loss.latents(step)
            wanted = decoder(predicted) - decoder(true)
            apart = difference(predicted, true) - wanted
        near.append([torch.cosine_similarity(each[1].flatten(), each[2].flatten(), dim=0),
                     *(x.square().sum() for x in (each[2] - each[1], each[1], apart, wanted))])  # fmt: skip
        found.append([flat(torch.autograd.grad(step.out, adapter.parameters(), g, retain_graph=True)) for g in each])
    latent, full, estimated = (torch.stack(column) for column in zip(*found, strict=True))
    cosine, error, size, apart, whole = torch.tensor(near).mean(0).tolist()
    return latent, full, estimated, [cosine, error / size, apart / whole]


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def weight(latent: Tensor, full: Tensor) -> float:
    """As large as the latent term: here by the mean norms, as errors are not at hand."""
    return float(latent.norm(dim=1).mean() / full.norm(dim=1).mean())


class Gram:
    """Vectors as coefficients over the gradients of all draws: latent, full and estimated."""

    def __init__(self, gram: Tensor, draws: int):
        self.gram, self.draws = gram, draws

    def unit(self, kind: int) -> Tensor:
        """[draws, 3 draws]: the gradient of each draw of one kind."""
        rows = torch.zeros(self.draws, 3 * self.draws, dtype=torch.float64)
        rows[torch.arange(self.draws), kind * self.draws + torch.arange(self.draws)] = 1
        return rows

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a @ self.gram) * b).sum(-1)

    def norm(self, a: Tensor) -> Tensor:
        return self.inner(a, a).clamp(min=0).sqrt()

    def cosine(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner(a, b) / (self.norm(a) * self.norm(b))


def report(matrix: Tensor, draws: int) -> None:
    space = Gram(matrix, draws)
    latent, full, estimated = (space.unit(kind) for kind in range(3))
    apart = space.inner(full - estimated, full - estimated).mean()
    whole = latent + full
    print("| adapter's gradient | pixel term | total |\n|---|---|---|")
    print(f"| cosine with a full decode's | {space.cosine(estimated, full).mean():.3f} "
          f"| {space.cosine(latent + estimated, whole).mean():.3f} |")  # fmt: skip
    energy = (apart / space.inner(full, full).mean(), apart / space.inner(whole, whole).mean())
    print(f"| residual energy | {energy[0]:.3f} | {energy[1]:.3f} |\n")
    print("| share | second moment of the total: plain probability | corrected |\n|---|---|---|")
    moment = space.inner(whole, whole).mean()
    for share in (0.05, 0.083, 0.125, 0.17, 0.25, 0.5):
        plain = space.inner(latent, latent) + 2 * space.inner(latent, full) + space.inner(full, full) / share
        print(f"| {share:g} | {plain.mean() / moment:.2f} | {1 + (1 / share - 1) * energy[1]:.2f} |")
    print("\n| clipped at | update | cosine of the mean | length of the mean | second moment |\n|---|---|---|---|---|")
    chosen = batches(draws)
    steps = _mean(whole, chosen)
    usual = float(space.norm(steps).median())
    for limit in (float("inf"), 2.0, 1.0, 0.5):
        wanted = clipped(space, steps, limit * usual)
        aim = wanted.mean(0)
        for name, made in updates(space, latent, full, estimated, chosen, limit * usual):
            mean = made.mean(0)
            moment = space.inner(made, made).mean() / space.inner(wanted, wanted).mean()
            length = space.norm(mean) / space.norm(aim)
            print(f"| {limit:g} | {name} | {space.cosine(mean, aim):.3f} | {length:.3f} | {moment:.2f} |", flush=True)


def batches(draws: int) -> Tensor:
    """[COUNT, ROWS] numbers of draws."""
    return torch.randint(draws, (COUNT, ROWS), generator=torch.Generator().manual_seed(0))


def _mean(rows: Tensor, chosen: Tensor) -> Tensor:
    return rows[chosen].mean(1)


def clipped(space: Gram, steps: Tensor, limit: float) -> Tensor:
    return steps * (limit / space.norm(steps)).clamp(max=1)[:, None]


def updates(
    space: Gram, latent: Tensor, full: Tensor, estimated: Tensor, chosen: Tensor, limit: float
) -> list[tuple[str, Tensor]]:
    """The clipped steps of each way to correct."""
    random = torch.Generator().manual_seed(1)
    base, more, plain = latent + estimated, full - estimated, latent

    def coins(share: float, per: int = ROWS) -> Tensor:
        fallen = torch.rand(COUNT, per, generator=random, dtype=torch.float64) < share
        return (fallen.double() / share).expand(COUNT, ROWS)[..., None]

    made: list[tuple[str, Any]] = [
        ("decoded in full", clipped(space, _mean(base + more, chosen), limit)),
        ("surrogate alone", clipped(space, _mean(base, chosen), limit)),
    ]
    for share in (0.083, 0.17, 0.33):
        row, batch = coins(share), coins(share, 1)
        step = _mean(base, chosen)
        corrections = (row * more[chosen]).mean(1)
        spread = sum(corrections.roll(k, 0) for k in range(8)) / 8
        apart = clipped(space, step, limit) + clipped(space, corrections, limit)
        thinned = (plain[chosen] + coins(share) * full[chosen]).mean(1)
        made += [
            (f"plain probability {share:g}", clipped(space, thinned, limit)),
            (f"corrected {share:g}, a coin per row", clipped(space, step + corrections, limit)),
            (f"corrected {share:g}, a coin per batch",
             clipped(space, step + (batch * more[chosen]).mean(1), limit)),
            (f"corrected {share:g}, spread over eight steps", clipped(space, step + spread, limit)),
            (f"corrected {share:g}, clipped apart", apart),
        ]  # fmt: skip
    return made


if __name__ == "__main__":
    main()
