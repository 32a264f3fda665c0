"""What a run teaches its model to do. Step, previews, validation, saving and refusals ask the run's *system*.

Plain text-to-image is here, prediction of a picture's map in ``dense.py``; a third system would be one more file, and a
line in ``build.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from ..diffusion import timesteps
from ..diffusion.options import NoiseOptions
from ..diffusion.process import Process
from ..diffusion.types import Batch, Conditioning, Draw

if TYPE_CHECKING:
    from ..data.loader import Dataset
    from .model import Model


class System(Protocol):
    """What differs between runs that teach different things."""

    process: Process
    """What the network's output means in this run."""
    modules: dict[str, nn.Module]
    """What is trained beside the adapter, by name; saved with the run's state, not with the adapter."""

    def check(self, model: Model) -> None:
        """UserError where the model's adapter cannot learn it."""
        ...

    def draw(self, batch: Batch, seed: int, step: int) -> Draw:
        """The randomness of an optimizer step for these rows."""
        ...

    def levels(self, wanted: int) -> int:
        """How many noise levels validation tries, where ``wanted`` are asked for."""
        ...

    def fixed_draw(self, batch: Batch, part: int, parts: int, seed: int) -> Draw:
        """A draw that belongs to the pictures, not to a step: for validation."""
        ...

    def input(self, batch: Batch, draw: Draw) -> Tensor:
        """What the network is given of the rows, [B, C, h, w]."""
        ...

    def conditions(self, batch: Batch, conditioning: Conditioning) -> Conditioning:
        """The conditioning that the rows get, from that of their captions."""
        ...

    def as_saved(self, model: Model) -> AbstractContextManager[None]:
        """Inside, the adapter is as its file has to be: all that the run has trained is in it."""
        ...

    def metadata(self, resolution: tuple[int, int]) -> dict[str, str]:
        """What the file's header says beside what every file's does."""
        ...

    def measure(self, model: Model, dataset: Dataset, held: Sequence[Batch]) -> dict[str, float]:
        """What validation measures beside the loss: means over the held-out pictures."""
        ...


@dataclass
class TextToImage:
    """A picture from noise and a prompt: the network learns what its model predicts already."""

    process: Process
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def check(self, model: Model) -> None:
        """Any adapter can."""

    def draw(self, batch: Batch, seed: int, step: int) -> Draw:
        return timesteps.draw(batch, seed, step, self.process, self.noise)

    def levels(self, wanted: int) -> int:
        return wanted

    def fixed_draw(self, batch: Batch, part: int, parts: int, seed: int) -> Draw:
        return timesteps.fixed_draw(batch, part, parts, seed, self.process, self.noise)

    def input(self, batch: Batch, draw: Draw) -> Tensor:
        return self.process.noisy(batch.latents, draw.added, draw.level)

    def conditions(self, batch: Batch, conditioning: Conditioning) -> Conditioning:
        return conditioning

    def as_saved(self, model: Model) -> AbstractContextManager[None]:
        return nullcontext()

    def metadata(self, resolution: tuple[int, int]) -> dict[str, str]:
        return {}

    def measure(self, model: Model, dataset: Dataset, held: Sequence[Batch]) -> dict[str, float]:
        return {}
