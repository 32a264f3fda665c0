"""Distances between two pictures or latents, as functions of their difference d [N, C, H, W] -> [N].

``degree`` is how a distance grows with d: f(k d) = k^degree f(d) (for charbonnier, far from zero). A mask m multiplies
the squared error by m, so it multiplies d by m^(1 / degree): masked places add nothing and get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distance:
    degree: int
    of: Callable[[Tensor], Tensor]

    def __call__(self, d: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: [N, 1, H, W] at d's resolution."""
        return self.of(d if mask is None else d * mask ** (1 / self.degree))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def l2(d: Tensor) -> Tensor:
    return _mean(d**2)


def l1(d: Tensor) -> Tensor:
    return _mean(d.abs())


def charbonnier(d: Tensor, c: float = 1e-3) -> Tensor:
    """sqrt(d^2 + c^2) - c: the absolute value with a round tip; zero at equality."""
    return _mean(d**2 / ((d**2 + c**2).sqrt() + c))


def gradient(d: Tensor) -> Tensor:
    """|horizontal differences| + |vertical differences|: edges. A constant offset is invisible to it."""
    return _mean(d.diff(dim=-1).abs()) + _mean(d.diff(dim=-2).abs())


def laplacian(d: Tensor, levels: int = 4) -> Tensor:
    """Sum of 2^k mean |Laplacian band k|, fine to coarse, and of what is left (compare arXiv 1707.05776, section 3)."""
    total = torch.zeros(len(d), dtype=d.dtype, device=d.device)
    for k in range(levels):
        if min(d.shape[-2:]) < 2:
            break
        coarse = functional.avg_pool2d(d, 2, ceil_mode=True)
        band = d - functional.interpolate(coarse, d.shape[-2:], mode="bilinear")
        total, d = total + 2**k * _mean(band.abs()), coarse
    return total + 2**levels * _mean(d.abs())


def haar_bands(d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of the orthonormal Haar transform: low, horizontal, vertical, diagonal detail, each at half the size.

    Orthonormal: the four bands hold exactly the energy of d. Odd sides are continued by zeros.
    """
    h, w = d.shape[-2:]
    d = functional.pad(d, (0, w % 2, 0, h % 2))
    a, b, c, e = d[..., ::2, ::2], d[..., ::2, 1::2], d[..., 1::2, ::2], d[..., 1::2, 1::2]
    return (a + b + c + e) / 2, (a - b + c - e) / 2, (a + b - c - e) / 2, (a - b - c + e) / 2


def haar(d: Tensor, levels: int = 3) -> Tensor:
    """Mean |coefficient| of a Haar pyramid. With squares it would be the plain l2 again (Parseval)."""
    count, total = d[0].numel(), torch.zeros(len(d), dtype=d.dtype, device=d.device)
    for _ in range(levels):
        if min(d.shape[-2:]) < 2:
            break
        d, *details = haar_bands(d)
        total = total + sum(band.abs().flatten(1).sum(1) for band in details)
    return (total + d.abs().flatten(1).sum(1)) / count


def focal_frequency(d: Tensor, alpha: float = 1.0) -> Tensor:
    """Focal frequency loss (arXiv 2012.12821, eq. 8-10): the squared spectrum, weighted where it is large.

    The weight |F|^alpha / max |F|^alpha is per channel and detached; the transform is orthonormal.
    """
    spectrum = torch.fft.fft2(d, norm="ortho")
    power = spectrum.real**2 + spectrum.imag**2
    size = power.detach().sqrt() ** alpha
    largest = size.amax((-2, -1), keepdim=True)
    return _mean(power * torch.where(largest > 0, size / largest, torch.zeros_like(size)))


DISTANCES = {
    "l2": Distance(2, l2), "l1": Distance(1, l1), "charbonnier": Distance(1, charbonnier),
    "gradient": Distance(1, gradient), "laplacian": Distance(1, laplacian), "haar": Distance(1, haar),
    "focal_frequency": Distance(2, focal_frequency),
}  # fmt: skip
