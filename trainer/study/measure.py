"""The measures of a cell: an adapter on its base, on held-out pictures and drawn prompts.

    held_out_errors   denoising error by noise level, in latents, in decoded pixels, by octave
    pairs_in_order    share of held-out pairs that are in the right order against the base
    drawn             prompts drawn with the adapter
    set_distances     spectrum and kernel distance of what is drawn to the held-out pictures
    nearness          of what is drawn to training pictures against held-out ones
    alignment         the base as judge of captions
    drift             neutral prompts with and without the adapter

Everything that arms are paired by is the same for all arms of a seed: pictures, prompts, noise and its levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..data.items import Item
from ..data.loader import Dataset
from ..diffusion import sampling
from ..diffusion.options import NoiseOptions
from ..diffusion.sampling import Prompt
from ..diffusion.timesteps import fixed_draw
from ..diffusion.types import Batch, Conditioning, Rows, Step
from ..training.build import build_model, build_previews, scan
from ..training.model import Model
from ..training.previews import Previews
from ..training.step import forward
from . import maps, spectra
from .models import Pictures, latent_features
from .options import MeasureOptions
from .plan import WANTED, item_id
from .values import Measure

LEVELS = NoiseOptions(sampling="uniform")
"""Noise levels of the held-out error: even over the whole schedule, whatever an arm trains on."""
JUDGED = NoiseOptions(sampling="uniform", min_timestep=100, max_timestep=900)
"""Those of the text alignment: outside of them captions hardly matter."""
SEEDS = 100_003
"""Between the picture seeds of two study seeds, so that none is drawn twice."""
Found = list[tuple[str, str, float]]
"""(measure, item, value)."""


@dataclass
class Bench:
    """A model with an adapter, the data, and what is drawn: all that a cell is measured with."""

    model: Model
    dataset: Dataset
    previews: Previews
    held: list[Item]
    seed: int
    options: MeasureOptions
    rows: int
    """How many the network sees at once."""
    untrained: bool = False
    """The adapter does not count."""

    def shown(self) -> AbstractContextManager[None]:
        """The arm as it is measured."""
        return self.base() if self.untrained else nullcontext()

    def base(self) -> AbstractContextManager[None]:
        return self.model.adapter.reference("base")

    @property
    def family(self):
        return self.model.family


def bench(
    config: Config, adapter: str | None, held: Sequence[str], prompts: Sequence[str], seed: int,
    options: MeasureOptions, log: Callable[[str], None],
) -> Bench:  # fmt: skip
    """Load the base with an adapter file (none: the base alone) and the held-out pictures."""
    texts = [*prompts, *options.neutral]
    sample = config.sample.model_copy(
        update={"prompts": [""] * len(texts), "file": None, "seed": (config.sample.seed + SEEDS * seed) % 2**63}
    )
    plain = config.adapter.model_copy(update={"init_from": None})
    config = config.model_copy(update={"sample": sample, "adapter": plain})
    found, dataset = scan(config)
    model, _ = build_model(config, log, adapter, found)
    family = model.family
    family.vae.to(model.device)
    dataset.attach(family.encode_pixels, None if model.trains_text else family.encode_text, family.fingerprints)
    model.adapter.train(False)
    asked = [replace(p, text=text) for p, text in zip(build_previews(config, model).prompts, texts, strict=True)]
    wanted = set(held)
    items = [item for item in dataset.held if item_id(item) in wanted]
    return Bench(
        model, dataset, Previews(model, asked, config.memory), items, seed, options, config.run.batch, adapter is None
    )


# ------------------------------------------------------------------------------------------------- held-out errors


def kept_rows(batch: Batch) -> list[int]:
    """The rows of pictures that are wanted: of a pair the chosen one."""
    return [i for i, role in enumerate(batch.rows.role) if role in WANTED]


def _single(one: Bench, items: Sequence[Item]) -> Iterator[tuple[Item, Batch]]:
    """Each item's own batch, on the device."""
    for item in items:
        (batch,) = one.dataset.plain_batches([item], 1)
        yield item, batch.to(one.model.device)


@torch.no_grad()
def held_out_errors(one: Bench) -> Found:
    """At fixed noise: the mean squared error of the network's output, and of decoded clean latents that it implies
    against the decoded true ones, in decibels (so that each level counts alike) and by octave."""
    found: Found = []
    every = one.options.levels // one.options.pixel_levels if one.options.pixel_levels else 0
    for item, whole in _single(one, one.held):
        batch = whole.pick(torch.tensor(kept_rows(whole)))
        true = one.family.decode(batch.latents) if every else None
        latent, pixel, octaves = [], [], []
        for part, step in _over_levels(one, batch, one.shown):
            error = float((step.out - step.target).float().square().mean())
            latent.append(error)
            level = f"{float(step.draw.level[0]):g}"
            found.append((f"latent error, level {level}", item_id(item), error))
            if true is not None and part % every == every // 2:
                difference = one.family.decode(step.x0).clamp(-2, 2).cpu() - true.cpu()
                pixel.append(float(spectra.decibels(difference.square().mean())))
                octaves.append(spectra.decibels(spectra.octave_energy(difference)[0]))
                found.append((f"pixel PSNR, level {level}", item_id(item), pixel[-1]))
        found.append(("latent error", item_id(item), float(np.mean(latent))))
        if pixel:
            found.append(("pixel PSNR", item_id(item), float(np.mean(pixel))))
            each = torch.stack(octaves).mean(0).tolist()
            found += [(f"octave PSNR {j}", item_id(item), value) for j, value in enumerate(each)]
    return found


@torch.no_grad()
def pairs_in_order(one: Bench) -> Found:
    """For each held-out pair the share of noise levels at which the chosen picture's error fell more against the base's
    than the rejected one's; ties count half (the implicit accuracy of arXiv 2311.12908)."""
    found: Found = []
    for item, batch in _single(one, one.held):
        if "loser" not in batch.rows.role:
            continue
        winner, loser = batch.rows.role.index("winner"), batch.rows.role.index("loser")
        right = []
        for before, after in zip(_errors(one, batch, one.base), _errors(one, batch, one.shown), strict=True):
            margin = float((after - before)[loser] - (after - before)[winner])
            right.append(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0)
        found.append(("pairs in order", item_id(item), float(np.mean(right))))
    return found


def _errors(one: Bench, batch: Batch, how: Callable[[], AbstractContextManager[None]]) -> list[Tensor]:
    """For each level the rows' errors."""
    return [(step.out - step.target).float().square().mean((1, 2, 3)).cpu()
            for _, step in _over_levels(one, batch, how)]  # fmt: skip


def _over_levels(
    one: Bench, batch: Batch, how: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[int, Step]]:
    """Each level's number and step. The network sees as many rows at once as it does in training; what a level's noise
    is does not depend on it."""
    rows, count = len(batch), one.options.levels
    at_once = max(1, one.rows // rows)
    for first in range(0, count, at_once):
        parts = torch.arange(first, min(first + at_once, count)).repeat_interleave(rows)
        many = batch.pick(torch.arange(rows).repeat(len(parts) // rows))
        group = many.rows.group + (1 + many.rows.group.max()) * parts.to(many.rows.group)  # each level by itself
        many = replace(many, rows=replace(many.rows, group=group))
        with how():
            step = forward(
                one.model, many, fixed_draw(many, parts.tolist(), count, one.seed, one.model.process, LEVELS)
            )
        for start in range(0, len(parts), rows):
            yield int(parts[start]), step.pick(torch.arange(start, start + rows))


# --------------------------------------------------------------------------------------------------------- pictures


def drawn(one: Bench, folder: Path, count: int, facts: dict[str, Any]) -> list[Path]:
    """The first ``count`` prompts, drawn with the adapter; what is there already is kept."""
    return _draw(one, one.previews.prompts[:count], folder, facts, one.shown)


def drawn_by_base(one: Bench, folder: Path, count: int, facts: dict[str, Any]) -> list[Path]:
    """The neutral prompts, which come after the first ``count``, drawn with the base alone."""
    return _draw(one, one.previews.prompts[count:], folder, facts, one.base)


def drawn_neutral(one: Bench, folder: Path, count: int, facts: dict[str, Any]) -> list[Path]:
    """The neutral prompts with the adapter."""
    return _draw(one, one.previews.prompts[count:], folder, facts, one.shown)


def _draw(
    one: Bench, prompts: Sequence[Prompt], folder: Path, facts: dict[str, Any],
    how: Callable[[], AbstractContextManager[None]],
) -> list[Path]:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, prompt in enumerate(prompts):
        path = folder / f"{index:04d}.png"
        if not (path.exists() and sampling.is_of(path, prompt, facts)):
            with how():
                picture = one.previews.picture(prompt)
            sampling.save_picture(picture, path, prompt, facts)
        paths.append(path)
    return paths


def read_pixels(path: Path) -> Tensor:
    """[1, 3, H, W] in [-1, 1]."""
    with Image.open(path) as picture:
        array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]


@torch.no_grad()
def latents_of(one: Bench, path: Path) -> Tensor:
    """A drawn picture as latents [1, C, h, w], on the device."""
    return one.family.encode_pixels(read_pixels(path).to(one.model.device)).to(one.model.device)


@torch.no_grad()
def real_latents(one: Bench, items: Sequence[Item]) -> list[Tensor]:
    """Latents [1, C, h, w] of pictures of the data."""
    return [batch.latents[kept_rows(batch)] for _, batch in _single(one, items)]


def some_trained(one: Bench) -> list[Item]:
    """As many training pictures as are held out, every n-th of them."""
    trained = [item for item in one.dataset.items if not item.is_reg]
    return trained[:: max(1, len(trained) // len(one.held))][: len(one.held)]


@torch.no_grad()
def against_real(one: Bench, paths: Sequence[Path], extractors: Sequence[tuple[str, Pictures]]) -> Found:
    """What is drawn against the held-out pictures as decoded by the autoencoder (what it cannot carry is no arm's
    fault): spectra, kernel distances by each kind of features, and nearness to training pictures."""
    trained, held = some_trained(one), one.held
    latents = {"trained": real_latents(one, trained), "held": real_latents(one, held)}
    real = {name: [one.family.decode(z).clamp(-1, 1).cpu() for z in some] for name, some in latents.items()}
    made = [read_pixels(path) for path in paths]
    found: Found = [("spectrum distance", "", spectra.spectrum_distance(made, real["held"]))]
    sets = {name: torch.stack([latent_features(z) for z in some]) for name, some in latents.items()}
    sets["made"] = torch.stack([latent_features(latents_of(one, path)) for path in paths])
    found += _by_features("autoencoder", sets, first=True)
    for name, net in extractors:
        pictures = {key: [sampling.to_image(x[0]) for x in some] for key, some in real.items()}
        pictures["made"] = [sampling.to_image(x[0]) for x in made]
        found += _by_features(name, {key: net.features(some) for key, some in pictures.items()}, first=False)
    return found


def _by_features(name: str, sets: dict[str, Tensor], first: bool) -> Found:
    made, trained, held = spectra.standardized(
        torch.cat([sets["trained"], sets["held"]]), sets["made"], sets["trained"], sets["held"]
    )
    near = spectra.nearness(made, trained, held).tolist()
    found: Found = [(f"kernel distance, {name}", "", spectra.kernel_distance(made, held))]
    return found + ([("nearness to training", f"prompt {i}", value) for i, value in enumerate(near)] if first else [])


# -------------------------------------------------------------------------------------------------------- alignment


@torch.no_grad()
def alignment(one: Bench, paths: Sequence[Path], texts: Sequence[str]) -> Found:
    """The base model as a diffusion classifier (arXiv 2303.16203): whether, of the picture's own caption and others,
    its own has the least denoising error, at the same noise for all captions. And by how much."""
    found: Found = []
    for index, path in enumerate(paths):
        captions = candidates(texts, index, one.options.captions)
        errors = judged(one, latents_of(one, path), captions, index)
        best = errors.min()
        ties = int((errors == best).sum())
        found.append(("text alignment", f"prompt {index}", 1 / ties if errors[0] == best else 0.0))
        margin = float((errors[1:].mean() - errors[0]) / errors.mean())
        found.append(("text alignment, margin", f"prompt {index}", 100 * margin))
    return found


def candidates(texts: Sequence[str], index: int, count: int) -> list[str]:
    """A prompt's caption, and others in an even distance from it; the same for every arm and seed."""
    others = list(dict.fromkeys(text for text in [*texts[index + 1 :], *texts[:index]] if text != texts[index]))
    wanted = min(count - 1, len(others))
    return [texts[index], *(others[i * len(others) // wanted] for i in range(wanted))]


def judged(one: Bench, latents: Tensor, captions: Sequence[str], index: int) -> Tensor:
    """[len(captions)] the base's mean error in predicting the same noise under each caption."""
    family, process, device = one.family, one.model.process, one.model.device
    many = latents.expand(len(captions), *latents.shape[1:])
    height, width = latents.shape[-2] * family.cell, latents.shape[-1] * family.cell
    size = torch.tensor([[height, width, 0, 0, height, width]] * len(captions), dtype=torch.float32)
    total = torch.zeros(len(captions), dtype=torch.float64)
    with one.base():
        conditioning = _conditioning(one, captions, size)
        for part in range(one.options.caption_levels):
            alone = _as_batch(latents, f"prompt {index}")
            draw = fixed_draw(alone, part, one.options.caption_levels, one.seed, process, JUDGED).to(device)
            level, noise = draw.level.expand(len(captions)), draw.noise.expand_as(many)
            with one.model.autocast():
                out = family.predict(process.noisy(many, noise, level), level, conditioning)
            error = (out - process.target(many, noise, level)).float().square().mean((1, 2, 3))
            total += error.double().cpu()
    return total / one.options.caption_levels


def _conditioning(one: Bench, captions: Sequence[str], size: Tensor) -> Conditioning:
    with one.model.autocast():
        found = one.family.encode_text(list(captions)).to(one.model.device)
    return replace(found, size=size.to(one.model.device))


def _as_batch(latents: Tensor, key: str) -> Batch:
    return Batch(latents.float().cpu(), [""], torch.zeros(1, 6), Rows.plain(1), [key])


@torch.no_grad()
def drift(paths: Sequence[Path], base: Sequence[Path]) -> Found:
    """Root mean square difference of each neutral prompt's pictures, in shares of the range from black to white."""
    return [
        ("drift", f"neutral {i}", float((read_pixels(one) - read_pixels(other)).square().mean().sqrt() / 2))
        for i, (one, other) in enumerate(zip(paths, base, strict=True))
    ]


def scored(name: str, net: Pictures, paths: Sequence[Path], texts: Sequence[str]) -> Found:
    """A scorer of the user's."""
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    values = net.score(pictures, texts).tolist()
    return [(f"score, {name}", f"prompt {i}", value) for i, value in enumerate(values)]


# ----------------------------------------------------------------------------------------------- what they are called


def catalogue(names: Sequence[str]) -> list[Measure]:
    """The measures of these names, in the order of the report: tested ones, then details."""
    octaves = spectra.octave_names()
    known: dict[str, Measure] = {
        m.name: m
        for m in (
            *maps.MEASURES,
            Measure("latent error", "held-out latent error", "lower",
                    "Mean squared error of the network's output on held-out pictures, over noise levels that are even "
                    "over the schedule."),
            Measure("pixel PSNR", "held-out pixel PSNR (dB)", "higher",
                    "Peak signal-to-noise ratio of the decoded clean latents that the output implies, against the true "
                    "ones decoded, as the mean in dB over noise levels."),
            Measure("octave PSNR 0", f"finest detail, PSNR (dB) {octaves[0]}", "higher",
                    "The same of the finest octave of spatial frequency alone."),
            Measure("pairs in order", "held-out pairs in order", "higher",
                    "Share of noise levels at which a chosen picture's error fell more against the base's than the "
                    "rejected one's (arXiv 2311.12908)."),
            Measure("spectrum distance", "spectrum distance (dB)", "lower",
                    "Root mean square difference of the mean log radial power spectra of drawn and held-out pictures "
                    "(arXiv 2003.01826).", per="set"),
            Measure("text alignment", "text alignment", "higher",
                    "Share of drawn pictures for which, of several captions, the base model's denoising error is least "
                    "under its own (arXiv 2303.16203)."),
            Measure("nearness to training", "nearness to training pictures", "lower",
                    "log2 of the distance to the nearest held-out picture over that to the nearest of as many training "
                    "pictures: above 0, drawn pictures lean towards what was trained on."),
            Measure("drift", "drift of neutral prompts", "lower",
                    "Root mean square difference to the base's picture of the same noise, for prompts on other things "
                    "than were trained."),
            Measure("votes", "people's votes", "higher",
                    "Votes won less votes lost against the first arm, per prompt, sides hidden."),
        )
    }  # fmt: skip
    for name in names:
        if name.startswith("kernel distance, "):
            features = name.removeprefix("kernel distance, ")
            known.setdefault(name, Measure(name, f"kernel distance ({features})", "lower",
                             f"KID (arXiv 1801.01401) of drawn and held-out pictures by features of: {features}.",
                             per="set"))  # fmt: skip
        elif name.startswith("score, "):
            known.setdefault(name, Measure(name, f"score of {name.removeprefix('score, ')}", "higher",
                             "100 times the cosine of a picture's and its prompt's embeddings."))  # fmt: skip
        elif name not in known and not name.startswith(maps.KINDS):
            octave = name.removeprefix("octave PSNR ")
            title = f"PSNR (dB) {octaves[int(octave)]}" if octave.isdigit() else name
            lower = name.startswith("latent error")
            known[name] = Measure(name, title, "lower" if lower else "higher", "A part of the measure above.", False)
    there = {name for name in names if not name.startswith(maps.KINDS)}
    return sorted((m for m in known.values() if m.name in there), key=lambda m: not m.tested)
