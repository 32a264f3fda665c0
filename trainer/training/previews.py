"""Pictures of the configuration's prompts, drawn with the model as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from ..diffusion import sampling
from ..diffusion.sampling import Prompt
from ..diffusion.types import Conditioning
from ..errors import UserError
from ..memory import apply
from ..memory.options import MemoryOptions
from .model import Model


def require_finite(values: Tensor, what: str, why: str) -> None:
    if not bool(values.isfinite().all()):
        raise UserError(f"preview: {what} are non-finite (NaN or infinite), a black picture: {why}")


def texts(prompts: list[Prompt]) -> list[str]:
    """All that has to be encoded to draw them."""
    return sorted({text for prompt in prompts for text in (prompt.text, prompt.negative)})


class Previews:
    """Prompts, and the text conditioning of each while the text encoders are not trained.

    ``cached``: conditioning that was computed before, on the CPU.
    """

    def __init__(
        self,
        model: Model,
        prompts: list[Prompt],
        memory: MemoryOptions,
        cached: Mapping[str, Conditioning] | None = None,
    ):
        self.model, self.prompts, self.memory = model, prompts, memory
        self.cached: dict[str, Conditioning] = dict(cached or {})
        if not model.trains_text:
            with torch.no_grad():
                for text in texts(prompts):
                    if text not in self.cached:
                        self.cached[text] = model.family.encode_text([text]).to(torch.device("cpu"))

    @torch.no_grad()
    def picture(self, prompt: Prompt) -> Image.Image:
        """One picture; the adapter is in evaluation mode. UserError where it is of non-finite values."""
        model, family = self.model, self.model.family
        model.adapter.train(False)

        def predict(noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
            with model.autocast():
                return family.predict(noisy, level, conditioning)

        with apply.uncompiled(self.memory):
            latents = sampling.draw(
                model.process,
                predict,
                prompt,
                self._conditioning(prompt, prompt.text),
                self._conditioning(prompt, prompt.negative),
                family.channels,
                model.device,
                family.cell,
            )
            require_finite(latents, "the model's latents", "the adapter has diverged, or the model in its precision")
            family.vae.to(model.device)
            pixels = family.decode(latents)[0]
            require_finite(pixels, "the autoencoder's pixels", "it overflows in its precision")
            return sampling.to_image(pixels)

    def _conditioning(self, prompt: Prompt, text: str) -> Conditioning:
        cached = self.cached.get(text)
        with self.model.autocast():
            found = (self.model.family.encode_text([text]) if cached is None else cached).to(self.model.device)
        size = torch.tensor([[prompt.height, prompt.width, 0, 0, prompt.height, prompt.width]], dtype=torch.float32)
        return replace(found, size=size.to(self.model.device))
