"""Do more pictures make steps slower? Start-up time and batches a second, from 10 to 100,000 cached pictures.

    python -m bench.data                            # 10, 100, 1,000, 10,000
    python -m bench.data --counts 100000 --side 512 # writes about 7 GB of latents to a temporary folder

Pictures are synthetic PNGs, all different; latents are random. The first start fills the cache, the second finds it
full: that is what a run's start costs. Batches are read with the thread that reads ahead, in a random order, while the
caller does something for ``--busy`` milliseconds, as a GPU would; *waited* is what of a step it spent waiting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from pathlib import Path

import torch

from pixelkiln.trainer.data.loader import Dataset
from pixelkiln.trainer.data.options import DataOptions


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", default="10,100,1000,10000")
    parser.add_argument("--side", type=int, default=64, help="pixels per side; latents are an eighth")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--busy", type=float, default=20.0)
    args = parser.parse_args()
    print("| pictures | first start (s) | start with a full cache (s) | of it a picture (ms) | waited a step (ms) |")
    print("|---|---|---|---|---|")
    for count in map(int, args.counts.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            first, again, waited = measure(Path(scratch), count, args)
        each = 1000 * again / count
        print(f"| {count:,} | {first:.2f} | {again:.2f} | {each:.2f} | {1000 * waited:.2f} |", flush=True)


def measure(root: Path, count: int, args: argparse.Namespace) -> tuple[float, float, float]:
    (root / "pictures").mkdir()
    for i in range(count):
        (root / "pictures" / f"{i:06d}.png").write_bytes(png(args.side, i))
        (root / "pictures" / f"{i:06d}.txt").write_text(f"picture {i % 100}", "utf-8")
    first, _ = start(root, args.side)
    again, dataset = start(root, args.side)
    waited = 0.0
    dataset.batch(0)
    for step in range(1, args.steps + 1):
        time.sleep(args.busy / 1000)
        began = time.perf_counter()
        dataset.batch(step)
        waited += time.perf_counter() - began
    return first, again, waited / args.steps


def start(root: Path, side: int) -> tuple[float, Dataset]:
    """Seconds until the first batch could be asked for."""

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(pixels), 4, pixels.shape[-2] // 8, pixels.shape[-1] // 8)

    began = time.perf_counter()
    options = DataOptions(path=str(root / "pictures"), resolution=side, bucket_min=64)
    dataset = Dataset(options, native=side, cache_dir=root / "cache", encode=encode, fingerprints={"vae": "random"})
    dataset.prepare()
    return time.perf_counter() - began, dataset


def png(side: int, number: int) -> bytes:
    """A grey picture whose first pixels spell a number."""
    row = b"\0" + bytes(3 * side)
    data = bytearray(row * side)
    data[1:4] = number.to_bytes(3, "big")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(bytes(data), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
