"""Distances between pictures and sets of pictures that need no network: spectra, octaves, kernels, neighbours.

Pure functions on tensors; the papers are named at each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

OCTAVES = 5
"""Of spatial frequency, from the finest: 1/4 cycle per pixel and above, 1/8 to 1/4, ..., and all below 1/32."""


def octave_names() -> list[str]:
    edges = [2 ** (j + 2) for j in range(OCTAVES - 1)]
    between = [f"1/{2 * edge} to 1/{edge}" for edge in edges[:-1]]
    return [f"from 1/{edges[0]} cycle per pixel", *(f"{name} cycle per pixel" for name in between),
            f"below 1/{edges[-1]} cycle per pixel"]  # fmt: skip


def _radius(height: int, width: int) -> Tensor:
    """[H, W] spatial frequency in cycles per pixel, as ``fft2`` orders it."""
    return (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width)[None] ** 2).sqrt()


def octave_energy(difference: Tensor) -> Tensor:
    """Of pictures [N, C, H, W] the mean square in each octave, [N, OCTAVES]; the octaves add up to the mean square of
    the picture (Parseval)."""
    n, c, h, w = difference.shape
    power = torch.fft.fft2(difference.double()).abs().square().sum(1) / (c * (h * w) ** 2)
    radius = _radius(h, w)
    edges = [math.inf, *(2.0 ** -(j + 2) for j in range(OCTAVES - 1)), 0.0]
    each = [power[:, (radius < high) & (radius >= low)].sum(1) for high, low in pairwise(edges)]
    return torch.stack(each, 1).reshape(n, OCTAVES)


def decibels(mean_square: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of errors of pictures in [-1, 1], whose peak to peak is 2; at most 100 dB."""
    return 10 * torch.log10(4 / mean_square.clamp(min=4e-10))


def radial_spectrum(pictures: Tensor) -> Tensor:
    """Of pictures [N, 3, H, W]: [bins] mean log power (dB) of their brightness, in half octaves of spatial frequency.

    The azimuthal integral of arXiv 2003.01826 from 1/2 cycle per pixel down, under a Hann window, so that the borders
    of a picture do not count as detail. Bins that hold no frequency at this size are left out.
    """
    grey = pictures.double().mean(1)
    h, w = grey.shape[1:]
    window = torch.hann_window(h, dtype=torch.float64)[:, None] * torch.hann_window(w, dtype=torch.float64)[None]
    grey = (grey - grey.mean((1, 2), keepdim=True)) * window
    power, radius = torch.fft.fft2(grey).abs().square() / (h * w), _radius(h, w)
    edges = [0.5 * 2 ** (-j / 2) for j in range(2 * OCTAVES + 1)]
    rings = [(radius <= high) & (radius > low) for high, low in pairwise(edges)]
    each = [10 * torch.log10(power[:, ring].mean(1) + 1e-12) for ring in rings if bool(ring.any())]
    return torch.stack(each, 1).mean(0)


def spectrum_distance(made: Sequence[Tensor], real: Sequence[Tensor]) -> float:
    """Root mean square difference (dB) of the mean radial spectra of two sets of pictures [1, 3, H, W] of any sizes."""

    def mean(some: Sequence[Tensor]) -> Tensor:
        each = [radial_spectrum(x) for x in some]
        return torch.stack([x[: min(map(len, each))] for x in each]).mean(0)

    one, other = mean(made), mean(real)
    count = min(len(one), len(other))
    return float((one[:count] - other[:count]).square().mean().sqrt())


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """KID (arXiv 1801.01401): the unbiased estimate of the squared maximum mean discrepancy of two sets of features
    [n, d] and [m, d] under the kernel (x.y / d + 1)^3. It may be below 0. Each set needs two members."""
    x, y = one.double(), other.double()
    n, m, d = len(x), len(y), x.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / d + 1) ** 3

    xx, yy = kernel(x, x), kernel(y, y)
    within_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel(x, y).mean())


def standardized(reference: Tensor, *sets: Tensor) -> list[Tensor]:
    """Sets of features by the mean and spread of ``reference`` [n, d], so that no feature counts by its unit."""
    mean, spread = reference.mean(0), reference.std(0).clamp(min=1e-6)
    return [(one - mean) / spread for one in sets]


def nearness(made: Tensor, trained: Tensor, held: Tensor) -> Tensor:
    """log2 of (distance to the nearest held-out picture / distance to the nearest training picture), [n] for features
    [n, d]: above 0, a picture is closer to what was trained on. Of the training pictures as many are looked at as are
    held out, every n-th of them, because the nearest of more is nearer."""
    some = trained[:: max(1, len(trained) // len(held))][: len(held)]
    near, far = (torch.cdist(made.double(), other.double()).amin(1).clamp(min=1e-6) for other in (some, held))
    return torch.log2(far / near)
