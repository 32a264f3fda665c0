"""Tiny autoencoders (TAESD) as people have them: ComfyUI's single files of a decoder, and where they lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..runs.files import BROKEN_PICKLE

NAMES = {"sd15": "taesd", "sd2": "taesd", "sdxl": "taesdxl", "sd3-medium": "taesd3", "sd3": "taesd3"}
"""Family -> how its tiny decoder's file begins; families whose names begin with sd3 have SD3's."""
FOLDER = "vae_approx"
"""Of ComfyUI's models: where previews find their decoders."""
ENDINGS = ("_decoder.safetensors", "_decoder.pth")


def beside(model: str | None, family: str) -> str | None:
    """The file of the family's tiny decoder in the ``vae_approx`` of the models folder that a model lies in."""
    name = "taesd3" if family.startswith("sd3") else NAMES.get(family)
    if not model or name is None:
        return None
    places = [parent / FOLDER / f"{name}{ending}" for parent in Path(model).absolute().parents for ending in ENDINGS]
    return next((str(place) for place in places if place.is_file()), None)


def read(path: str) -> Any:
    """An AutoencoderTiny with the decoder of a single file: its author's layout (``1.weight`` on, after a clamp without
    weights), or diffusers' (``decoder.layers.0.weight`` on). A pickle is read as tensors alone. UserError otherwise."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    found = {name: value for name, value in _tensors(path).items() if not re.match(r"(taesd_)?encoder\.", name)}
    named = {re.sub(r"^((taesd_)?decoder\.)?(layers\.)?", "", name): value for name, value in found.items()}
    first = next((n for n in (0, 1) if f"{n}.weight" in named), None)
    sizes = {int(n.split(".")[0]) for n in named if n.split(".")[0].isdigit()}
    weight = named.get(f"{first}.weight")
    if first is None or weight is None or weight.ndim != 4 or not sizes:
        raise UserError(
            f"loss.pixel.tiny: {path} holds no decoder of a TAESD; give taesd_decoder.safetensors or the like"
        )
    made = AutoencoderTiny(latent_channels=weight.shape[1])
    state = {_shifted(name, first): value for name, value in named.items() if name.split(".")[0].isdigit()}
    try:
        made.decoder.layers.load_state_dict(state)
    except RuntimeError:
        raise UserError(
            f"loss.pixel.tiny: {path} is a decoder of another shape than TAESD's; give taesd_decoder.safetensors, "
            "or a diffusers folder"
        ) from None
    return made


def _shifted(name: str, by: int) -> str:
    number, _, rest = name.partition(".")
    return f"{int(number) - by}.{rest}"


def _tensors(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = (
            load_file(path) if path.endswith((".safetensors", ".sft")) else torch.load(path, "cpu", weights_only=True)
        )
    except (SafetensorError, *BROKEN_PICKLE) as error:
        reason = str(error).strip().split("\n")[0] or "it ends early"
        raise UserError(f"loss.pixel.tiny: {path} cannot be loaded ({reason}); give another file") from None
    if not isinstance(found, dict):
        raise UserError(f"loss.pixel.tiny: {path} holds no weights by name; give another file")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
