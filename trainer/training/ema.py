"""An exponential moving average of the adapter's weights, kept beside it and saved as a second file.

Averages of SGD's iterates: Polyak and Juditsky 1992; as used for diffusion models arXiv 2006.11239. The decay rises
from 0.1 to the asked value as (1 + n) / (10 + n) after n updates, so that a short run's average is not its start.
Checked against ``diffusers.training_utils.EMAModel``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Average:
    """The average of the parameters that it was made with, on their device, at least in fp32."""

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.values = [_wide(p) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Once after each step that was learned from."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.sub_((value - parameter.to(value.dtype)) * (1 - decay))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the adapter is its average."""
        with torch.no_grad():
            trained = [p.detach().clone() for p in self.parameters]
            self._put(self.values)
            try:
                yield
            finally:
                self._put(trained)

    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    # -- the state ------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"{i:05d}": value for i, value in enumerate(self.values)}, {"updates": self.updates}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> list[str]:
        """Load a saved average; where there is none, the average begins here, which is returned as a note."""
        kept = [tensors.get(f"{i:05d}") for i in range(len(self.values))]
        if len(tensors) != len(kept) or any(k is None or k.shape != v.shape for k, v in zip(kept, self.values)):
            self.values, self.updates = [_wide(p) for p in self.parameters], 0
            return ["the average (save.ema) begins with this step, the state has none of this adapter"]
        self.values = [k.to(v) for k, v in zip(kept, self.values) if k is not None]
        self.updates = state["updates"]
        return []


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
