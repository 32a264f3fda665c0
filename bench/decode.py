"""How far each decode plan's gradient is from a full decode's, as a markdown table.

    python -m bench.decode                       # the bundled autoencoder, 512 px
    python -m bench.decode --size 768 --windows 128,256 --draws 8
    python -m bench.decode --model path/to/model # any model's autoencoder, in float32

The pictures are mosaics of the bundled ones; the residual is noise of a tenth of the latents' size. For each plan:

- *same window*: cosine and relative error between its gradient and that of a full decode scored on the same window,
  which is what the plan itself does wrong;
- *whole picture*: cosine between its gradient and the whole picture's, for one window and for the mean of all drawn,
  which is what looking at a part does, and averages out over steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.losses.decode import Decoder, Plan

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "presets" / "base"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--windows", default="128,256")
    parser.add_argument("--draws", type=int, default=6)
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
    for window in map(int, args.windows.split(",")):
        for name, plan in plans(window, decoder.factor):
            mine = [gradient(decoder, plan, moved, true, place) for place in places]
            same = [gradient(decoder, plan, moved, true, place, full=True) for place in places]
            print(f"| {name} | {' | '.join(f'{v:.3f}' for v in compare(mine, same, whole))} |", flush=True)


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
