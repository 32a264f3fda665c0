"""What making a surrogate of a full-size autoencoder takes: seconds and memory, with random weights.

    python -m bench.making --families sd15,sdxl,sd3-medium        # on a GPU, as a run makes one
    python -m bench.making --families sd15 --crop 16 --examples 2 --steps 4       # on a CPU
    python -m bench.making --tiny                                 # the bundled autoencoder's shape, small and short

Random latents stand in for a network's; nothing that decodes or fits depends on their values, so time and memory are
those of a real autoencoder. **The cosine means nothing here** and is not printed. *A whole making* is computed from the
seconds of an example and of a step; on a CPU these are what its threads computed.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from pixelkiln.trainer.losses import surrogate as metric
from pixelkiln.trainer.losses.decode import Decoder
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.registry import families
from pixelkiln.trainer.training import surrogates

from .measure import clock_of

BUNDLED = {"block_out_channels": [32, 64, 96, 96], "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4,
           "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
           "mid_block_add_attention": False}  # fmt: skip


def shape(name: str) -> dict[str, Any]:
    """AutoencoderKL's configuration of a family; ``base``: of the bundled model."""
    return BUNDLED if name == "base" else families[name].build().vae


def making(config: dict[str, Any], crop: int, examples: int, steps: int, device: torch.device) -> dict[str, float]:
    """Seconds of an example and of a step, peak memory in GiB while decoding and while fitting."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae: Any = AutoencoderKL(**config)
    vae.to(device, dtype)
    decoder, clock = Decoder(vae, 1.0), clock_of(device)
    collector, generator = metric.Collector(decoder, []), torch.Generator().manual_seed(0)
    memory.reset_peak(device)
    began = clock()
    for number in range(examples):
        true = torch.randn(1, vae.config.latent_channels, crop, crop, generator=generator).to(device)
        moved = true + 0.1 * torch.randn(true.shape, generator=generator).to(device)
        collector.add(moved, true, torch.tensor([number / examples]), torch.tensor([number == 0]))
    decoding, decoded = clock() - began, memory.peak_gb(device)
    vae.to("cpu")
    memory.reset_peak(device)
    collector.rows *= 1 + -(-metric.BATCH // (examples - 1))  # whole batches, however few examples were decoded
    began = clock()
    metric.fit(collector.examples(), decoder.factor, device, steps=steps, seconds=float("inf"))
    fitting = (clock() - began) / steps
    return {
        "example": decoding / examples,
        "step": fitting,
        "decoding_gb": decoded,
        "fitting_gb": memory.peak_gb(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.making", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default="sd15", help="sd15, sdxl, sd3-medium or base, separated by commas")
    parser.add_argument("--crop", type=int, default=surrogates.CROP, help="latent cells per side of an example")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="base, 8 cells, four examples and two steps")
    args = parser.parse_args()
    if args.tiny:
        args.families, args.crop, args.examples, args.steps = "base", 8, 4, 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}, crops of {args.crop} cells\n")
    print("| autoencoder | s an example | s a step | whole making, s | peak GiB: decoding | fitting |")
    print("|---|---|---|---|---|---|")
    for name in args.families.split(","):
        torch.manual_seed(0)
        found = making(shape(name), args.crop, args.examples, args.steps, device)
        whole = min(surrogates.EXAMPLES * found["example"], surrogates.SECONDS)
        whole += min(metric.STEPS * found["step"], metric.SECONDS)
        print(f"| {name} | {found['example']:.3f} | {found['step']:.4f} | {whole:.0f} "
              f"| {found['decoding_gb']:.2f} | {found['fitting_gb']:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
