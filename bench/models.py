"""Full-size models with random weights, in diffusers' layout: what time and memory need, and nothing to download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FAMILIES = ("sd15", "sdxl", "sd3-medium")


def random_model(name: str, folder: Path) -> Path:
    """A family's public shapes in ``folder``, in bfloat16; SD3 without T5. Made on a GPU where there is one."""
    import diffusers
    import transformers

    from pixelkiln.trainer.families.words import clip
    from pixelkiln.trainer.registry import families

    kind = families[name].build()
    torch.manual_seed(0)
    with _half():
        getattr(diffusers, kind.model)(**kind.config).save_pretrained(folder / kind.part)
        diffusers.AutoencoderKL(**kind.vae).save_pretrained(folder / "vae")
        for encoder in kind.encoders.values():
            if encoder.optional:
                continue
            made = getattr(transformers, encoder.model)
            made(made.config_class(**encoder.config)).save_pretrained(folder / encoder.folder)
            words = clip()
            if encoder.pad:
                words.pad_token = encoder.pad
            words.save_pretrained(folder / encoder.tokenizer)
    if kind.predictions == ("flow",):
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    else:
        schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        diffusers.DDIMScheduler(**schedule).save_pretrained(folder / "scheduler")
    return folder


@contextmanager
def _half() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def random_vgg(path: Path) -> str:
    """VGG16's features under torchvision's names, with random weights."""
    import torch
    from safetensors.torch import save_file

    from pixelkiln.trainer.losses.lpips import STAGES

    state, channels, at = {}, 3, 0
    for widths in STAGES:
        for width in widths:
            state[f"features.{at}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
            state[f"features.{at}.bias"] = torch.zeros(width)
            channels, at = width, at + 2
        at += 1
    save_file(state, path)
    return str(path)
