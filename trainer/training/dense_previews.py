"""Previews of a dense run: picture, prediction and truth, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.augment import window
from ..data.buckets import assign, rules
from ..data.items import Picture
from ..data.options import SetOptions
from ..data.pictures import Unreadable, header
from ..dense import colours, maps
from ..dense.targets import find_target
from ..diffusion.sampling import Prompt
from ..errors import UserError
from .dense import DensePrediction, predict_latents
from .previews import require_finite

if TYPE_CHECKING:
    from ..data.loader import Dataset
    from .model import Model

MOST = 4
"""How many pictures are shown where none are named."""


class DensePreviews:
    """Named pictures, or some of those that are held out, at the size at which such pictures are trained."""

    def __init__(self, model: Model, system: DensePrediction, dataset: Dataset | None, paths: Sequence[Path]):
        """:raises UserError: a picture cannot be read, or is too small."""
        self.model, self.system, self.dataset = model, system, dataset
        self.shown = [_named(path, dataset) for path in paths] if dataset else []
        if dataset and not paths:
            self.shown = [(item.pictures[0], dataset.set_of(item)) for item in dataset.held[:MOST]]
        self.prompts = [
            Prompt(picture.path.name, "", number, *picture.fit.bucket, 1, 1.0, "euler", "normal")
            for number, (picture, _) in enumerate(self.shown)
        ]
        """What each is of, with the one step that it takes, and its number as seed."""
        with torch.no_grad():
            self.prompt = model.family.encode_text([""]).to(torch.device("cpu")) if self.shown else None

    @torch.no_grad()
    def picture(self, prompt: Prompt) -> Image.Image:
        """The panels of one picture. UserError where the prediction is non-finite, or a file cannot be read."""
        assert self.dataset is not None and self.prompt is not None
        picture, options = self.shown[prompt.seed]
        family, task, space = self.model.family, self.system.options.task, self.system.options.space
        family.vae.to(self.model.device)
        place = window(picture.path, picture.size, picture.fit, options, None)
        try:
            image = self.dataset.shelf.pixels(picture, options, place)
        except (Unreadable, OSError) as error:
            raise UserError(f"{picture.path.as_posix()}: it cannot be read any more ({error}); restore it") from error
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = predict_latents(self.model, self.system, family.encode_pixels(pixels), self.prompt)
        require_finite(latents, "the model's latents", "the adapter has diverged, or the model in its precision")
        decoded = maps.decode(family.decode(latents), task)[0]
        require_finite(decoded, "the autoencoder's pixels", "it overflows in its precision")
        panels = [image, colours.colour(decoded, task, space)]
        if picture.target is not None:
            entry, _ = self.dataset.shelf.target(picture, options, place, flip=False, make=True)
            panels.append(colours.colour(_plain(entry["truth"]), task, space, entry["valid"][0]))
        return Image.fromarray(colours.panels(*panels))


def _plain(truth: Tensor) -> Tensor:
    return truth[0] if len(truth) == 1 else truth


def _named(path: Path, dataset: Dataset) -> tuple[Picture, SetOptions]:
    """A picture by its path, treated as the first set treats its own, with a target of equal name in any set."""
    options = dataset.scan.sets[0]
    try:
        facts = header(path)
    except (Unreadable, OSError) as error:
        raise UserError(f"sample.pictures: {path.as_posix()} cannot be read ({error}); give a picture") from error
    fit = assign(facts.size, rules(options, dataset.native))
    if fit is None:
        width, height = facts.size
        raise UserError(f"sample.pictures: {path.as_posix()} is only {width}x{height} pixels; give a larger one")
    for one in dataset.scan.sets:
        if one.targets and (target := find_target(Path(one.targets), path)):
            return Picture(path, facts.size, fit, facts.alpha, target=target), one
    return Picture(path, facts.size, fit, facts.alpha), options
