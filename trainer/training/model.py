"""The networks of a run: the frozen family, the adapter on it, and how they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from ..adapters.inject import Adapter
from ..diffusion.process import Process
from ..diffusion.types import Batch, Conditioning
from ..families.family import Family
from ..losses.decode import Decoder
from ..memory import device as memory
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
    """What the run teaches the model; text to image, where nothing else is given."""
    trains_text: bool = field(init=False)
    """Whether a text encoder is trained, so that captions are encoded in every step."""

    def __post_init__(self) -> None:
        if self.system is None:
            self.system = TextToImage(self.family.process)
        encoders = self.family.text_encoders.values()
        self.trains_text = any(p.requires_grad for encoder in encoders for p in encoder.parameters())

    @property
    def attention_facts(self) -> dict[str, str]:
        """The kernel and the device that it was chosen for: what a run keeps on resume."""
        return {"kernel": self.attention, "device": memory.device_name(self.device)}

    @property
    def process(self) -> Process:
        """What the network's output means in this run."""
        return self.system.process

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """What a forward pass runs in: nothing, or 16 bits, with the adapter's weights converted once."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            yield
            return
        with torch.autocast(self.device.type, self.dtype), self.adapter.in_dtype(self.dtype):
            yield

    def conditioning(self, batch: Batch) -> Conditioning:
        """Text conditioning of a batch: cached, or with a gradient from text encoders that are trained."""
        if batch.conditioning is not None:
            return replace(batch.conditioning, size=batch.size)
        with self.autocast(), nullcontext() if self.trains_text else torch.no_grad():
            return replace(self.family.encode_text(batch.captions), size=batch.size)
