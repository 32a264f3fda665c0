"""What an adapter's file says of the map that it predicts: one entry of its header, JSON. ComfyUI's own Python reads it
too, so nothing is imported here that a host may lack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UserError

Task = Literal["depth", "normal", "image"]
Space = Literal["disparity", "depth", "log"]
KEY = "pixelkiln.dense"
TIMESTEP = 999
"""Where the network is asked for the map: the last timestep, which hosts' one-step schedules begin with."""
TASKS: tuple[Task, ...] = get_args(Task)
SPACES: tuple[Space, ...] = get_args(Space)


@dataclass(frozen=True)
class DenseHeader:
    """How to run an adapter that turns a picture into its map."""

    task: Task
    space: Space = "disparity"
    """What depth is predicted as."""
    quantiles: tuple[float, float] = (0.02, 0.98)
    """The shares of a picture's valid depths that are the map's darkest and brightest."""
    resolution: tuple[int, int] = (0, 0)
    """(width, height) that was trained; zeros where the file does not say."""
    tokens: int = 77
    """Of the empty prompt."""
    task_switch: str = "embedding"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that was trained."""
        return self.resolution[1], self.resolution[0]

    @property
    def shown(self) -> str:
        """What is predicted, in words."""
        return {"depth": f"depth ({self.space})", "normal": "normals", "image": "an image"}[self.task]

    def metadata(self) -> dict[str, str]:
        """The entry of a file's header."""
        of_depth = {"space": self.space, "quantiles": list(self.quantiles)} if self.task == "depth" else {}
        facts = {
            "task": self.task, **of_depth, "timestep": TIMESTEP, "prediction": "sample", "prompt": "",
            "tokens": self.tokens, "resolution": list(self.resolution), "task_switch": self.task_switch,
        }  # fmt: skip
        return {KEY: json.dumps(facts)}


def read(metadata: Mapping[str, str] | None, where: str = "adapter") -> DenseHeader | None:
    """What a header's metadata says; None where it is of no dense run.

    :param where: what the error begins with.
    :raises UserError: an entry that cannot be read.
    """
    text = (metadata or {}).get(KEY)
    if text is None:
        return None
    try:
        facts: dict[str, Any] = json.loads(text)
        low, high = map(float, facts.get("quantiles", (0.02, 0.98)))
        width, height = map(int, facts.get("resolution", (0, 0)))
        made = DenseHeader(
            facts["task"], facts.get("space", "disparity"), (low, high), (width, height),
            int(facts.get("tokens", 77)), str(facts.get("task_switch", "embedding")),
        )  # fmt: skip
        if made.task not in TASKS or made.space not in SPACES or min(width, height, made.tokens) < 0:
            raise ValueError(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{where}: its header '{KEY}' cannot be read ({text[:80]}); take the file as it was saved"
        ) from None
    return made
