"""[recovery]: what a run does about non-finite losses and gradients, and which losses it reports as spikes.

A step whose loss or gradient is NaN or infinite is skipped. When too many come in a row the run has diverged: it goes
back to the last state from which it still took good steps, lowers the learning rate, and continues. When that does not
help either, it stops with an error.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..registry import Options, option

WINDOW, WARM_UP = 128, 32
SIGMAS, LEAST = 6.0, 3.0


class RecoveryOptions(Options):
    max_skipped_steps: int = option(10, label="Skipped steps in a row", formerly="skip_limit", ge=1)
    """After this many consecutive steps with a non-finite loss or gradient, go back to the last good state."""
    max_rollbacks: int = option(1, label="Times to go back", formerly="rollbacks", ge=0)
    """How often a run goes back before it stops; 0 stops at once."""
    lr_factor: float = option(0.5, label="Learning rate after going back", formerly="rate_factor", gt=0, le=1)
    """What the learning rate is multiplied by each time the run goes back."""


@dataclass
class Health:
    """Counts skipped steps and watches losses. The same on all processes."""

    options: RecoveryOptions
    streak: int = 0
    """Steps skipped in a row, up to now."""
    skipped: int = 0
    """All skipped steps."""
    rolled_back: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """Logarithms of the last losses."""

    def record_step(self, loss: float) -> float | None:
        """A step was learned from. Returns the usual loss when this one is a spike."""
        self.streak = 0
        return self._spike(loss)

    def record_skip(self, counts: bool = True) -> None:
        """``counts``: it shows something of the weights, and not only of the scale of float16's gradients."""
        self.streak += counts
        self.skipped += 1

    @property
    def diverged(self) -> bool:
        return self.streak >= self.options.max_skipped_steps

    @property
    def may_roll_back(self) -> bool:
        return self.rolled_back < self.options.max_rollbacks

    def _spike(self, loss: float) -> float | None:
        """Losses of single noise levels differ by orders of magnitude, so a spike is one of their logarithms: 6 robust
        standard deviations (1.4826 times the median distance from the median) above the median of the last 128."""
        if loss <= 0:
            return None
        value, usual = math.log(loss), None
        if len(self.recent) >= WARM_UP:
            middle = statistics.median(self.recent)
            spread = 1.4826 * statistics.median(abs(x - middle) for x in self.recent)
            if value > middle + max(SIGMAS * spread, math.log(LEAST)):
                usual = math.exp(middle)
        self.recent.append(value)
        return usual

    # -- the state ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "rolled_back": self.rolled_back, "recent": list(self.recent)}

    def load(self, state: dict[str, Any]) -> None:
        self.skipped, self.rolled_back = state.get("skipped", 0), state.get("rolled_back", 0)
        self.recent = deque(state.get("recent", []), maxlen=WINDOW)
