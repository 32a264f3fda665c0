"""Dense prediction: the depth, the normals or another map of a picture, by an adapter that was trained to give it.

The network runs once, at timestep 999, on the latents of the picture alone and under the empty prompt, as it was
trained (Lotus, arXiv 2409.18124). A sampler node would add noise to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..trainer.dense import colours, header, maps, tiles
from ..trainer.dense.header import TASKS, DenseHeader
from ..trainer.errors import UserError
from . import host
from .node import In, Node, Out, Result

FROM_ADAPTER = "from the adapter"
WHOLE, TILES = "whole", "tiles"
UNSURE = 0.25
"""A depth is trusted where its three channels, which should be equal, differ by less than this part of their range."""
SHORT = 0.5
"""A normal is trusted where its vector was longer than this before it was made 1."""


def remark(metadata: Mapping[str, str] | None, strength: float) -> list[str]:
    """What the loader says of an adapter that predicts maps."""
    found = header.read(metadata)
    if found is None:
        return []
    lines = [f"it predicts {found.shown}: use Dense prediction (Pixelkiln); a sampler with noise draws nothing useful"]
    if strength != 1:
        lines.append(f"it is exact at strength 1 only, and is at {strength:g}")
    return lines


# ------------------------------------------------------------------------------------------------------ the prediction


class Network:
    """The model as the sampler of one step: a picture [3, H, W] in [-1, 1] to decoded pixels [3, H, W]."""

    def __init__(self, model: Any, clip: Any, vae: Any, tokens: int):
        import comfy.samplers
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

        patch = ModelSamplingDiscrete()
        patched = getattr(patch, "patch", None) or patch.execute
        self.model, self.vae = _first(patched(model, "img_to_img", False)), vae
        hidden, pooled = clip.encode_from_tokens(clip.tokenize(""), return_pooled=True)
        self.prompt = [[hidden[:, :tokens], {"pooled_output": pooled}]]
        sampling = self.model.get_model_object("model_sampling")
        self.sigmas = torch.tensor([float(sampling.sigma_max), 0.0])
        self.sampler = comfy.samplers.sampler_object("euler")

    def __call__(self, picture: Tensor) -> Tensor:
        import comfy.sample

        pixels = (picture.movedim(0, -1)[None] + 1) / 2
        latents = self.vae.encode(pixels)
        nothing = torch.zeros_like(latents)
        found = comfy.sample.sample_custom(
            self.model, nothing, 1.0, self.sampler, self.sigmas, self.prompt, self.prompt, latents, disable_pbar=True
        )
        return self._decode(found)

    def _decode(self, latents: Tensor) -> Tensor:
        """As the autoencoder gives it: what ``VAE.decode`` cuts off at 0 and 1 is kept, where this ComfyUI can."""
        before = getattr(self.vae, "process_output", None)
        if before is None:
            return self.vae.decode(latents)[0].movedim(-1, 0) * 2 - 1
        try:
            self.vae.process_output = lambda pixels: pixels.add_(1.0).div_(2.0)  # in place, as its own is
            return self.vae.decode(latents)[0].movedim(-1, 0) * 2 - 1
        finally:
            self.vae.process_output = before


def _first(result: Any) -> Any:
    """The first output of a core node of either kind."""
    return getattr(result, "result", result)[0]


def predict(network: Any, picture: Tensor, found: DenseHeader, how: str) -> tuple[Tensor, Tensor]:
    """(map, bool [H, W] where it is trusted) of a picture [3, H, W] in [-1, 1], at its own size.

    Depth [H, W] from 0 to 1; normals [3, H, W] in [-1, 1]; an image [3, H, W] in [0, 1].
    """
    size = (picture.shape[-2], picture.shape[-1])
    trusted = []

    def one(part: Tensor) -> Tensor:
        pixels = network(part).float().cpu()
        if found.task == "depth":
            sure = (pixels.amax(0) - pixels.amin(0)) / 2 < UNSURE
        elif found.task == "normal":
            sure = pixels.norm(dim=0) > SHORT
        else:
            sure = torch.ones(pixels.shape[-2:], dtype=torch.bool)
        trusted.append(sure)
        return maps.decode(pixels[None], found.task)[0]

    run = tiles.tiled if how == TILES else tiles.whole
    whole = run(one, picture, found.size if all(found.size) else size, found.task)
    known = torch.nn.functional.interpolate(trusted[0][None, None].float(), size, mode="nearest")[0, 0] > 0
    return whole, known


def _predict(
    model: Any, clip: Any, vae: Any, image: Tensor, task: str, how: str, side: int, near_is: str,
) -> Result:  # fmt: skip
    found = header.read(_metadata(model))
    if found is None and task == FROM_ADAPTER:
        raise UserError(
            "model: no adapter that predicts maps is on it; put Load adapter before this node, or choose the task"
        )
    if found is not None and task not in (FROM_ADAPTER, found.task):
        raise UserError(f"task: the adapter predicts {found.shown}, not {task}; set it to '{FROM_ADAPTER}'")
    use = found or DenseHeader(next(one for one in TASKS if one == task))
    if side:
        use = replace(use, resolution=(side, side))
    network = Network(model, clip, vae, use.tokens)
    previews, raw, sure = [], [], []
    bar = host.Bar(len(image))
    for number, one in enumerate(image):
        values, known = predict(network, 2 * one[..., :3].movedim(-1, 0).float().cpu() - 1, use, how)
        shown = torch.from_numpy(colours.colour(values, use.task, use.space)).float() / 255
        if use.task == "depth" and (near_is == BRIGHT) != (use.space == "disparity"):
            values = 1 - values
        previews.append(shown)
        raw.append(values[..., None].expand(-1, -1, 3) if use.task == "depth" else values.movedim(0, -1))
        sure.append(known.float())
        if bar.update(number + 1):
            raise host.interrupted()
    line = f"{use.shown} of {len(image)} picture{'s' * (len(image) != 1)}"
    return Result((torch.stack(previews), torch.stack(raw), torch.stack(sure)), host.text(line))


def _metadata(model: Any) -> Mapping[str, str] | None:
    """The header of the adapter that Load adapter put on the model."""
    read = getattr(model, "get_attachment", None)
    return read("lora_metadata") if read else None


BRIGHT, DARK = "near is bright", "near is dark"

DENSE = Node(
    id="PixelkilnDensePrediction",
    name="Dense prediction (Pixelkiln)",
    about="The depth, the normals or another map of each picture, by an adapter of a dense run: one step without noise "
    "under the empty prompt. The frames of a video are a batch, and the same picture always gives the same map.",
    run=_predict,
    inputs=(
        In("model", "MODEL", "The model with the adapter, at strength 1."),
        In("clip", "CLIP", "The model's text encoders: they read the empty prompt."),
        In("vae", "VAE", "The model's autoencoder."),
        In("image", "IMAGE", "One picture, or frames."),
        In("task", "COMBO", "What the adapter predicts; its header says so, where Load adapter (Pixelkiln) read it.",
           default=FROM_ADAPTER, options=(FROM_ADAPTER, *TASKS)),
        In("how", "COMBO", "The whole picture at the trained size, or tiles of it with one scale, for more detail.",
           default=WHOLE, options=(WHOLE, TILES)),
        In("side", "INT", "Side in pixels at which the network sees a square picture; 0: as it was trained.", default=0,
           low=0, high=4096),
        In("near_is", "COMBO", "Which end of depth is 1 in the raw map: ControlNet takes bright as near.",
           default=BRIGHT, options=(BRIGHT, DARK), advanced=True),
    ),
    outputs=(
        Out("preview", "IMAGE", "Depth in colours (near is yellow, far is blue), normals as RGB."),
        Out("map", "IMAGE", "The raw map: depth from 0 to 1, normals from -1 to 1, as numbers and not cut off."),
        Out("trusted", "MASK", "1 where the network agrees with itself: equal channels of depth, normals not short."),
    ),
    group="dense",
    aliases=("depth", "normal map", "lotus", "marigold", "depth anything", "image to depth"),
)  # fmt: skip
NODES = (DENSE,)
