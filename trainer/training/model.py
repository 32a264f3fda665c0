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
from .system import System, TextToImage


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
    system: System = None  # pyright: ignore[reportAssignmentType]
    """What the run teaches the model; text to image, where nothing else is said."""
    trains_text: bool = field(init=False)
    """Whether a text encoder is trained, so that captions are encoded in every step."""

    def __post_init__(self) -> None:
        if self.system is None:
            self.system = TextToImage(self.family.process)
        encoders = self.family.text_encoders.values()
        self.trains_text = any(p.requires_grad for encoder in encoders for p in encoder.parameters())

    @property
    def process(self) -> Process:
        """What the network's output means in this run."""
        return self.system.process

    def autocast(self) -> AbstractContextManager[Any]:
        low = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype) if low else nullcontext()

    def conditioning(self, batch: Batch) -> Conditioning:
        """Text conditioning of a batch: cached, or with a gradient from text encoders that are trained."""
        if batch.conditioning is not None:
            return replace(batch.conditioning, size=batch.size)
        with self.autocast(), nullcontext() if self.trains_text else torch.no_grad():
            return replace(self.family.encode_text(batch.captions), size=batch.size)
