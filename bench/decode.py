"""How far each decode plan's gradient is from a full decode's, as a markdown table.

    python -m bench.decode                       # the bundled autoencoder, 512 px
    python -m bench.decode --size 768 --windows 128,256 --draws 8
    python -m bench.decode --model path/to/model # any model's autoencoder, in float32

The pictures are mosaics of the bundled ones; the residual is noise of a tenth of the latents' size. For each plan:

- *same window*: cosine and relative error between its gradient and that of a full decode scored on the same window,
  which is what the plan itself does wrong;
- *whole picture*: cosine between its gradient and the whole picture's, for one window and for the mean of all drawn,
  which is what looking at a part does, and averages out over steps.

A second table compares what plans cost with how noisy they are, around what the model really gets wrong: mode ``mixed``
at fixed levels, through the denoiser into a fresh LoRA of rank 4.

- *operations*: of target and prediction with gradient, against a full decode's;
- *second moment*: mean squared length of the gradient against the whole picture's, in the latents and in the adapter.
  A term with ``probability`` p has it divided by p, and its operations multiplied by p. So the product of the two is a
  plan's noise at equal cost, whatever the probability: the smaller the better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pixelkiln.trainer.adapters.inject import inject
from pixelkiln.trainer.adapters.options import AdapterOptions
from pixelkiln.trainer.diffusion.options import NoiseOptions
from pixelkiln.trainer.diffusion.timesteps import fixed_draw
from pixelkiln.trainer.diffusion.types import Batch, Rows, Step
from pixelkiln.trainer.estimate.fake_tensors import count_attention
from pixelkiln.trainer.families.family import Family
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.losses.decode import Decoder, Plan
from pixelkiln.trainer.losses.pixel import latents

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "presets" / "base"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--windows", default="128,256")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--levels", type=int, default=4, help="noise levels of the second table; 0 leaves it out")
    args = parser.parse_args()
    family = load(ModelOptions(path=args.model))
    decoder = Decoder(family.vae, family.scale, family.shift, torch.float32)
    true = family.encode_pixels(mosaic(args.size))
    generator = torch.Generator().manual_seed(0)
    moved = true + 0.1 * true.std() * torch.randn(true.shape, generator=generator)
    places = torch.rand(args.draws, 1, 2, generator=generator)
    print(f"{Path(args.model).name}, {args.size} px, {args.draws} windows, torch {torch.__version__}\n")
    print("| plan | cosine, same window | relative error | cosine, whole picture: one window | mean of all |")
    print("|---|---|---|---|---|")
    print("| full | 1 | 0 | 1 | 1 |")
    whole = gradient(decoder, Plan(), moved, true, places[0])
    windows = [int(size) for size in args.windows.split(",")]
    for window in windows:
        for name, plan in plans(window, decoder.factor):
            mine = [gradient(decoder, plan, moved, true, place) for place in places]
            same = [gradient(decoder, plan, moved, true, place, full=True) for place in places]
            print(f"| {name} | {' | '.join(f'{v:.3f}' for v in compare(mine, same, whole))} |", flush=True)
    if args.levels:
        named = [("full", Plan()), *(one for size in windows for one in plans(size, decoder.factor))]
        print("\n| plan | operations | second moment, latents | adapter | adapter's x operations |")
        print("|---|---|---|---|---|")
        for name, numbers in noise(family, decoder, true, named, places, args.levels):
            print(f"| {name} | {' | '.join(f'{v:.2f}' for v in numbers)} |", flush=True)


def plans(window: int, factor: int) -> list[tuple[str, Plan]]:
    cells = window // factor
    return [
        (f"midcrop {window}, own norms", Plan("midcrop", cells)),
        (f"midcrop {window}, full norms", Plan("midcrop", cells, norms="full")),
        (f"window {window}, halo 64", Plan("window", cells, 64 // factor)),
        (f"window {window}, halo 16", Plan("window", cells, 16 // factor)),
    ]


def gradient(decoder: Decoder, plan: Plan, moved: Tensor, true: Tensor, place: Tensor, full: bool = False) -> Tensor:
    """Of the mean squared difference in the plan's window, with respect to the latents; ``full``: by a full decode."""
    view = plan.view(decoder, true, place)

    def decode(z: Tensor) -> Tensor:
        return decoder(z)[..., view.rows, view.columns] if full else view.decode(z)

    with torch.no_grad():
        target = decode(true)
    leaf = moved.clone().requires_grad_()
    return torch.autograd.grad(((decode(leaf) - target) ** 2).mean(), leaf)[0].flatten()


def compare(mine: list[Tensor], same: list[Tensor], whole: Tensor) -> tuple[float, float, float, float]:
    def mean(values: list[Any]) -> float:
        return float(torch.stack(values).mean())

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return torch.cosine_similarity(a, b, dim=0)

    return (
        mean([cosine(a, b) for a, b in zip(mine, same, strict=True)]),
        mean([(a - b).norm() / b.norm() for a, b in zip(mine, same, strict=True)]),
        mean([cosine(a, whole) for a in mine]),
        float(cosine(torch.stack(mine).mean(0), whole)),
    )


def noise(
    family: Family, decoder: Decoder, true: Tensor, named: list[tuple[str, Plan]], places: Tensor, levels: int
) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    """Of each plan: operations, second moments in latents and adapter, and the product of the first and the last."""
    side = float(true.shape[-1] * decoder.factor)
    size = torch.tensor([[side, side, 0, 0, side, side]])
    with torch.no_grad():
        conditioning = replace(family.encode_text([""]), size=size)
    adapter = inject(family.denoiser, family.text_encoders, family.name, AdapterOptions(rank=4), seed=0)
    batch = Batch(true, [""], size, Rows.plain(1), ["mosaic"])
    steps: list[tuple[Tensor, Tensor]] = []
    for level in range(levels):
        chance = fixed_draw(batch, level, levels, 0, family.process, NoiseOptions())
        noisy = family.process.noisy(batch.latents, chance.added, chance.level)
        out = family.predict(noisy, chance.level, conditioning)
        steps.append(latents(Step(batch, chance, noisy, out, family.process, decoder), "mixed")[:2])
    count_attention()
    first: list[float] = []
    for name, plan in named:
        operations, sums = 0, [0.0, 0.0]
        drawn = places[:1] if plan.kind == "full" else places
        for moved, target in steps:
            for place in drawn:
                with FlopCounterMode(display=False) as counter:
                    own = gradient(decoder, plan, moved.detach(), target, place)
                operations += counter.get_total_flops()
                felt = torch.autograd.grad(moved, adapter.parameters(), own.view_as(moved), retain_graph=True)
                sums[0] += float(own.square().sum()) / len(drawn)
                sums[1] += float(sum(part.square().sum() for part in felt)) / len(drawn)
        numbers = [operations / len(drawn), *sums]
        first = first or numbers
        cost, inner, outer = (mine / whole for mine, whole in zip(numbers, first, strict=True))
        yield name, (cost, inner, outer, outer * cost)


def mosaic(size: int) -> Tensor:
    """[1, 3, size, size] in [-1, 1]: the bundled style pictures side by side."""
    files = sorted((ROOT / "presets" / "pictures" / "style").glob("*.png"))
    with Image.open(files[0]) as first:
        side = first.width
    page = Image.new("RGB", (size, size))
    for i in range((-(-size // side)) ** 2):
        row, column = divmod(i, -(-size // side))
        with Image.open(files[i % len(files)]) as picture:
            page.paste(picture.convert("RGB"), (column * side, row * side))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)[None].float() / 127.5 - 1


if __name__ == "__main__":
    main()
