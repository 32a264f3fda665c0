"""The forward process and its parameterisations: epsilon, v, rectified flow, and direct sample prediction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "flow", "sample"]


def scaled_linear(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    """Cumulative alphas [steps] float64 of Stable Diffusion's schedule: betas linear in their square roots."""
    return (1 - torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2).cumprod(0)


def zero_terminal_snr(alphas: Tensor) -> Tensor:
    """Shift and stretch sqrt(alphas) so that the last is 0 and the first stays (arXiv 2305.08891, algorithm 1)."""
    root = alphas.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] in the dtype and on the device of ``like``."""
    return value.to(like).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Process:
    """z_t = a z0 + s noise, with what the network predicts of it. Levels: timesteps 0..T-1, or sigma for a flow.

    The identities are those of every Stable Diffusion paper since arXiv 2202.00512 (v) and 2403.03206 (flow); each is
    checked in ``tests/diffusion/test_process.py`` against its own definition.
    """

    prediction: Prediction
    alphas: Tensor | None = None
    """[T] cumulative alphas, float64; None for a flow."""
    sampling_shift: float = 1.0
    """Shift of a flow's noise levels in previews: u -> s u / (1 + (s - 1) u)."""

    @property
    def is_flow(self) -> bool:
        return self.alphas is None

    @property
    def steps(self) -> int:
        """How many levels a network's time embedding distinguishes."""
        return 1000 if self.alphas is None else len(self.alphas)

    @property
    def digest(self) -> str:
        """Equal where all numbers are."""
        schedule = b"" if self.alphas is None else self.alphas.cpu().numpy().tobytes()
        return f"{self.prediction} {hashlib.sha256(schedule).hexdigest()}"

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each [B], in ``widest``: the amplitude of the data and of the noise."""
        dtype = widest(level.device)
        if self.alphas is None:
            return 1 - level.to(dtype), level.to(dtype)
        a, s = self._table(level.device, dtype)
        at = level.long()
        return a[at], s[at]

    def _table(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Both amplitudes of the schedule on a device, copied there once. 1 - alpha cancels, so it is taken in float64
        on the host."""
        assert self.alphas is not None
        if device not in self._tables:
            a, s = (root.to(dtype).to(device) for root in (self.alphas.sqrt(), (1 - self.alphas).sqrt()))
            self._tables[device] = a, s
        return self._tables[device]

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _ab(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a, s = self.scales(level)
        return _wide(a, like), _wide(s, like)

    def time(self, level: Tensor) -> Tensor:
        """The network's time input, [B]: the timestep, or 1000 sigma."""
        return level * 1000 if self.alphas is None else level.long()

    def snr(self, level: Tensor) -> Tensor:
        a, s = self.scales(level)
        return (a / s) ** 2

    def noisy(self, z0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        a, s = self._ab(level, z0)
        return a * z0 + s * noise

    def target(self, z0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        match self.prediction:
            case "epsilon":
                return noise
            case "v":
                a, s = self._ab(level, z0)
                return a * noise - s * z0
            case "flow":
                return noise - z0
            case "sample":
                return z0

    def x0(self, noisy: Tensor, out: Tensor, level: Tensor) -> Tensor:
        """The clean latents implied by an output."""
        a, s = self._ab(level, noisy)
        match self.prediction:
            case "epsilon":
                return (noisy - s * out) / a
            case "v":
                return a * noisy - s * out
            case "flow":
                return noisy - s * out
            case "sample":
                return out

    def epsilon(self, noisy: Tensor, out: Tensor, level: Tensor) -> Tensor:
        """The noise implied by an output."""
        a, s = self._ab(level, noisy)
        match self.prediction:
            case "epsilon":
                return out
            case "v":
                return a * out + s * noisy
            case "flow":
                return noisy + a * out
            case "sample":
                return (noisy - a * out) / s

    def gain(self, level: Tensor, of: Literal["mixed", "x0", "epsilon"] = "mixed") -> Tensor:
        """[B] in ``widest``: |residual of a view| / |out - target|. Mixed: z_t from the true z0 and predicted noise."""
        a, s = self.scales(level)
        one = torch.ones_like(a)
        epsilon, x0 = {
            "epsilon": (one, s / a),
            "v": (a, s),
            "flow": (1 - s, s),
            "sample": (a / s, one),
        }[self.prediction]
        return {"mixed": s * epsilon, "x0": x0, "epsilon": epsilon}[of]
