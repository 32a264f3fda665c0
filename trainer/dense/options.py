"""[dense]: the network turns a picture into a map of it, in one step and without noise (Lotus, arXiv 2409.18124)."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from ..errors import UserError
from ..registry import Options, option
from .header import Space, Task

CELL = 8
"""Side in pixels of a latent cell."""
WHOLE_CELLS = 0.05
"""Share of latent cells with no invalid pixel under them; a picture with fewer is left to [loss.dense]."""


class DenseOptions(Options):
    task: Task = option("depth", label="Map")
    """What a picture is turned into: its ``depth``, its surface ``normal``s, or another ``image`` of the same size."""
    space: Space = option("disparity", label="Depth as")
    """Depth is predicted as ``disparity`` (1 / depth, near is bright), as ``depth`` (far is bright), or as its
    ``log``arithm (far is bright), each up to a scale and a shift of its own in every picture."""
    quantiles: list[float] = option([0.02, 0.98], label="Darkest and brightest")
    """The shares of a picture's valid values that become the darkest and the brightest value of the map."""
    detail: float = option(1.0, label="Detail preserver", ge=0)
    """Weight of the second half of the batch, which reconstructs the picture itself to keep its outlines; 0 is off and
    takes half of the work."""
    task_switch: Literal["embedding", "timestep"] = option("embedding", label="Task switch")
    """How the network knows which of both to do. ``embedding``: Lotus' small network on the time embedding,
    folded into the saved file, for adapters of kind ``lora``. ``timestep``: the map at timestep 999, the picture at
    0."""

    @field_validator("quantiles")
    @classmethod
    def _range(cls, value: list[float]) -> list[float]:
        if len(value) != 2 or not 0 <= value[0] < value[1] <= 1:
            raise UserError(f"{value} is no range; give two shares such as [0.02, 0.98]")
        return value
