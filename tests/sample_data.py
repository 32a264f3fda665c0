"""Pictures, folders and encoders for tests of the data layer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixelkiln.trainer.data.loader import Dataset
from pixelkiln.trainer.data.options import DataOptions
from pixelkiln.trainer.diffusion.types import Conditioning

PRINTS = {"vae": "autoencoder 1", "text": "text encoder 1"}


def noise(size: tuple[int, int], seed: int, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C]."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)


def picture(path: Path, size: tuple[int, int] = (64, 64), seed: int = 0, caption: str | None = None) -> Path:
    """A picture of noise, with a caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size, seed)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def png(size: tuple[int, int] = (64, 64), seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(size, seed)).save(stream, "PNG")
    return stream.getvalue()


def folder(path: Path, count: int = 6, size: tuple[int, int] = (64, 64), first: int = 0) -> Path:
    """Numbered pictures, each with its own caption."""
    for i in range(first, first + count):
        picture(path / f"{i:03d}.png", size, i, f"tag {i}, cat")
    return path


class Encoder:
    """A linear autoencoder and a text encoder that count what they are asked."""

    def __init__(self) -> None:
        self.pictures = 0
        self.words: list[str] = []

    def encode(self, pixels: Tensor) -> Tensor:
        self.pictures += len(pixels)
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, pixels[:, :1, ::8, ::8]], 1)

    def encode_text(self, words: list[str]) -> Conditioning:
        self.words += words
        values = torch.tensor([[float(len(word)), float(sum(map(ord, word)))] for word in words])
        return Conditioning(values[:, None].expand(-1, 3, -1).clone(), pooled=values)


def dataset(options: dict, cache: Path | None = None, encoder: Encoder | None = None, **more) -> Dataset:
    """A prepared data set of 64-pixel buckets."""
    filled = {"resolution": 64, "bucket_step": 8, **options}
    made = Dataset(DataOptions.model_validate(filled), **{"effective_batch": 4, "cache_dir": cache, **more})
    encoder = encoder or Encoder()
    made.attach(encoder.encode, encoder.encode_text, PRINTS)
    made.prepare()
    return made
