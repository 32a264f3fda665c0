"""What a preview tells the network about the picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from pixelkiln.trainer.diffusion import sampling
from pixelkiln.trainer.diffusion.options import SampleOptions
from pixelkiln.trainer.diffusion.sampling import prompts
from pixelkiln.trainer.diffusion.types import Conditioning
from pixelkiln.trainer.memory.options import MemoryOptions
from pixelkiln.trainer.training.previews import Previews


def test_sdxls_size_is_height_then_width_without_a_crop(monkeypatch):
    """As sd-scripts and ComfyUI order them: original h, w; crop top, left; target h, w."""
    asked: list[Any] = []

    class Family:
        channels, cell = 4, 8
        vae = torch.nn.Identity()

        def encode_text(self, texts: list[str]) -> Conditioning:
            return Conditioning(torch.full((1, 1, 1), float(len(texts[0]))))

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1, 3, latents.shape[2] * 8, latents.shape[3] * 8)

    def draw(process, predict, prompt, positive, negative, channels, device, cell):
        asked.extend([positive, negative])
        return torch.zeros(1, channels, prompt.height // cell, prompt.width // cell)

    monkeypatch.setattr(sampling, "draw", draw)
    cpu = torch.device("cpu")
    model: Any = SimpleNamespace(
        family=Family(), trains_text=False, adapter=torch.nn.Identity(), device=cpu, process=None
    )
    model.autocast = lambda: torch.autocast("cpu", enabled=False)
    options = SampleOptions(prompts=["four --n negative"], width=192, height=128)
    previews = Previews(model, prompts(options, (64, 64)), MemoryOptions())
    picture = previews.picture(previews.prompts[0])
    assert picture.size == (192, 128)
    positive, negative = asked
    assert positive.size.tolist() == negative.size.tolist() == [[128, 192, 0, 0, 128, 192]]
    assert float(positive.hidden) == 4 and float(negative.hidden) == 8
