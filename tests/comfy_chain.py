"""The workflow of docs/dense.md in ComfyUI's core nodes alone, for scripts that ComfyUI's own Python runs: they import
this once ComfyUI's options are read."""

from __future__ import annotations

from typing import Any

import comfy_extras.nodes_custom_sampler as core
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete


def first(made: Any) -> Any:
    """The first output of a core node of either kind."""
    return getattr(made, "result", made)[0]


def sampled(model: Any, latents: Any, conditioning: Any) -> Any:
    """What the network makes of a picture's latents {"samples": [B, C, h, w]}: ModelSamplingDiscrete img_to_img,
    BasicGuider, BasicScheduler normal with 1 step, DisableNoise, euler, SamplerCustomAdvanced."""
    patched = first(ModelSamplingDiscrete().patch(model, "img_to_img", False))
    sigmas = first(core.BasicScheduler.execute(patched, "normal", 1, 1.0))
    guider = first(core.BasicGuider.execute(patched, conditioning))
    sampler, noise = first(core.KSamplerSelect.execute("euler")), first(core.DisableNoise.execute())
    return first(core.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latents))
