"""The networks of a run: the frozen family, the adapter on it, and how they compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..adapters.inject import Adapter
from ..diffusion.process import Process
from ..diffusion.types import Batch, Conditioning
from ..families.family import Family
from ..losses.decode import Decoder
from ..memory.offload import Streamer


@dataclass
class Model:
    """A family with an adapter, on a device."""

    family: Family
    adapter: Adapter
    device: torch.device
    dtype: torch.dtype
    attention: str = "sdpa"
    """The attention kernel in use: part of what cached references depend on."""
    streamer: Streamer | None = None
    """Copies blocks of the denoiser to the GPU, where they do not all stay there."""
    decoder: Decoder | None = None
    """Decodes latents with gradient; None when no loss term looks at pixels."""
    trains_text: bool = field(init=False)
    """Whether a text encoder is trained, so that captions are encoded in every step."""

    def __post_init__(self) -> None:
        encoders = self.family.text_encoders.values()
        self.trains_text = any(p.requires_grad for encoder in encoders for p in encoder.parameters())

    @property
    def process(self) -> Process:
        return self.family.process

    def autocast(self) -> AbstractContextManager[Any]:
        low = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype) if low else nullcontext()

    def conditioning(self, batch: Batch) -> Conditioning:
        """Text conditioning of a batch: cached, or with a gradient from text encoders that are trained."""
        if batch.conditioning is not None:
            return replace(batch.conditioning, size=batch.size)
        with self.autocast(), nullcontext() if self.trains_text else torch.no_grad():
            return replace(self.family.encode_text(batch.captions), size=batch.size)
