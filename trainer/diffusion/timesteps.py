"""[noise]: which noise and how much of it each row gets. All randomness of a step is drawn here, row by row.

Each number comes from a generator seeded by (seed, step, group, what it is for), on the CPU. So the rows of a pair
share everything, micro-batches and processes cut an effective batch without changing it, and an option that is
switched on does not change the other numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UserError
from .options import NoiseOptions
from .process import Process
from .types import Batch, Draw


def draw(batch: Batch, seed: int, step: int, process: Process, options: NoiseOptions) -> Draw:
    """The randomness of optimizer step ``step`` for these rows, on the latents' device; float32.

    ``batch.rows.group`` is a row's place in the effective batch. Rows of one group (a pair) must be in one batch.
    """
    names = [f"{seed}/{step}/{group}" for group in batch.rows.group.tolist()]
    u = _each(names, "level", _uniform())[:, 0]
    return _draw(batch, names, level_at(u, process, options), options)


def step_correction(drawn: Draw, batch: Batch, seed: int, step: int) -> Draw:
    """A fixed draw with the ``correction`` of optimizer step ``step``, so that every visit draws it anew."""
    names = [f"{seed}/{step}/{group}" for group in batch.rows.group.tolist()]
    return replace(drawn, correction=_each(names, "correction", _uniform())[:, 0].to(drawn.correction))


def fixed_draw(
    batch: Batch, part: int | list[int], parts: int, seed: int, process: Process, options: NoiseOptions,
    jitter: bool = False,
) -> Draw:  # fmt: skip
    """A draw that belongs to the pictures, not to a step: for validation and cached references.

    part: which of ``parts`` equal shares of the level distribution a row gets, 0-based, one for all rows or one each.
    jitter: a random place inside the share, the picture's own, instead of its middle. Everything depends on ``seed``,
    the part and ``batch.keys`` alone (for a pair on both keys, in either order).
    """
    share = [part] * len(batch) if isinstance(part, int) else part
    assert len(share) == len(batch), "fixed_draw: one part for all rows or one for each"
    assert all(0 <= p < parts for p in share), f"fixed_draw: parts are 0..{parts - 1}"
    groups = batch.rows.group.tolist()
    members: dict[int, list[str]] = {}
    for group, key in zip(groups, batch.keys, strict=True):
        members.setdefault(group, []).append(key)
    names = [f"{seed}/{p}/{parts}/{sorted(members[g])}" for g, p in zip(groups, share, strict=True)]
    within = _each(names, "level", _uniform())[:, 0] if jitter else torch.full((len(batch),), 0.5)
    u = (torch.tensor(share) + within.double()) / parts
    return _draw(batch, names, level_at(u, process, options), options)


def level_at(u: Tensor, process: Process, options: NoiseOptions) -> Tensor:
    """The level at each quantile u in [0, 1] of the chosen distribution, rising with u. [n] -> [n] float32.

    SD3 paper (arXiv 2403.03206) section 3.1 for logit_normal and mode (here as u -> 1 - u, the same density), its
    equation 23 for the shift. A timestep is rounded down, a sigma is timestep / 1000 and at least 0.001.
    """
    if options.max_timestep > process.steps:
        raise UserError(f"noise.max_timestep: this model has {process.steps} timesteps; give at most that")
    u = u.double().clamp(2**-25, 1 - 2**-25)
    match options.sampling if options.sampling != "auto" else ("logit_normal" if process.is_flow else "uniform"):
        case "logit_normal":
            u = torch.sigmoid(options.logit_mean + options.logit_std * torch.special.ndtri(u))
        case "mode":
            u = u - options.mode_scale * (torch.sin(math.pi / 2 * u) ** 2 - u)
    u = options.shift * u / (1 + (options.shift - 1) * u)
    level = options.min_timestep + u * (options.max_timestep - options.min_timestep)
    if process.is_flow:
        return ((level.floor() if options.integer_timesteps else level).clamp(min=1) / 1000).float()
    return level.floor().clamp(options.min_timestep, options.max_timestep - 1).float()


def _draw(batch: Batch, names: list[str], level: Tensor, options: NoiseOptions) -> Draw:
    shape = batch.latents.shape[1:]

    def normal(generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator)

    noise = _each(names, "noise", normal)
    if options.noise_offset:
        noise = noise + _offset(batch, names, options)
    if options.multires_iterations:
        made = {name: _multires(n, _generator(name, "multires"), options) for name, n in zip(names, noise, strict=True)}
        noise = torch.stack([made[name] for name in names])
    added = noise
    if options.ip_noise_gamma:
        gamma = torch.full((len(names), 1), options.ip_noise_gamma)
        if options.ip_noise_gamma_random_strength:
            gamma = gamma * _each(names, "perturbation strength", _uniform())
        added = noise + gamma[:, :, None, None] * _each(names, "perturbation", normal)
    made = Draw(
        noise=noise, added=added, level=level, window=_each(names, "window", _uniform(2)),
        coin=_each(names, "coin", _uniform())[:, 0], jump=_each(names, "jump", _uniform())[:, 0],
        correction=_each(names, "correction", _uniform())[:, 0],
    )  # fmt: skip
    return made.to(batch.latents.device)


def _offset(batch: Batch, names: list[str], options: NoiseOptions) -> Tensor:
    """[B, C, 1, 1]; its adaptive part is the mean over a group's pictures, so that a pair keeps one noise."""
    strength = torch.full((len(names), 1), options.noise_offset)
    if options.noise_offset_random_strength:
        strength = strength * _each(names, "offset strength", _uniform())
    if options.adaptive_noise_scale:
        size = batch.latents.float().mean((2, 3)).abs().cpu()
        rows = batch.rows.group.cpu()
        size = torch.stack([size[rows == group].mean(0) for group in rows])
        strength = (strength + options.adaptive_noise_scale * size).clamp(min=0)
    channels = batch.latents.shape[1]
    value = _each(names, "offset", lambda generator: torch.randn(channels, generator=generator))
    return (strength * value)[:, :, None, None]


def _multires(noise: Tensor, generator: torch.Generator, options: NoiseOptions) -> Tensor:
    """Pyramid noise, [C, h, w]: coarser noise on top, then unit standard deviation over the sample."""
    size = noise.shape[1:]
    for i in range(options.multires_iterations):
        r = 2 + 2 * torch.rand((), generator=generator).item()
        h, w = (max(1, int(side / r**i)) for side in size)
        small = torch.randn((1, len(noise), h, w), generator=generator)
        noise = noise + functional.interpolate(small, size, mode="bilinear")[0] * options.multires_discount**i
        if 1 in (h, w):
            break
    return noise / noise.std()


def _each(names: list[str], purpose: str, make: Callable[[torch.Generator], Tensor]) -> Tensor:
    """One tensor per name, stacked; equal names share one."""
    made = {name: make(_generator(name, purpose)) for name in dict.fromkeys(names)}
    return torch.stack([made[name] for name in names])


def _uniform(count: int = 1) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.rand(count, generator=generator)


def _generator(name: str, purpose: str) -> torch.Generator:
    """The same on every machine, unlike ``hash``."""
    digest = hashlib.blake2b(f"{name}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
