"""Monitors of a run: preference training that makes winners worse, and steps that suddenly take longer.

A preference loss also falls while both pictures of a pair get worse, the loser faster: then previews decay though the
loss looks well. What shows it is the winner's error compared with the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, Protocol

DECAY, WARM_UP = 0.95, 20
"""Of the running means, about 20 steps; nothing is reported before as many steps."""
METRICS = ("accuracy", "winner", "winner_change")
LEARNED = 0.98
"""Accuracy from which the pairs count as learned."""


class Guarded(Protocol):
    """The options of an objective that has a reference."""

    winner_limit: float
    winner_stop: bool


class PreferenceMonitor:
    """Keeps running means of each term's metrics. The same on all processes; ``state`` is saved with the run."""

    def __init__(self, terms: Mapping[str, Any]):
        self.limits: dict[str, Guarded] = {name: o for name, o in terms.items() if hasattr(o, "winner_limit")}
        self.state: dict[str, float] = {}
        self.stop = False
        """Whether ``winner_stop`` asks to stop the run."""

    def update(self, metrics: Mapping[str, float]) -> list[str]:
        """Take a step's means, ``term/metric``; returns warnings, each once until its cause is over."""
        self.stop = False
        for name, value in metrics.items():
            if name.rpartition("/")[2] in METRICS and value - value == 0:
                weight = self.state.get(f"{name}.weight", 0.0)
                self.state[f"{name}.weight"] = weight * DECAY + 1 - DECAY
                self.state[name] = self.state.get(name, 0.0) * DECAY + value * (1 - DECAY)
                self.state[f"{name}.count"] = self.state.get(f"{name}.count", 0.0) + 1
        terms = dict.fromkeys(name.partition("/")[0] for name in metrics)
        return [line for term in terms for line in (self._winner(term), self._learned(term)) if line]

    def _mean(self, name: str) -> float | None:
        enough = self.state.get(f"{name}.count", 0.0) >= WARM_UP
        return self.state[name] / self.state[f"{name}.weight"] if enough else None

    def _once(self, name: str, now: bool, over: bool) -> bool:
        """Whether to report: when it begins, and not again before it was over."""
        reported = self.state.get(name, 0.0)
        self.state[name] = 0.0 if over else 1.0 if now else reported
        return now and not reported

    def _winner(self, term: str) -> str | None:
        options, change = self.limits.get(term), self._mean(f"{term}/winner_change")
        error = self._mean(f"{term}/winner")
        if options is None or not options.winner_limit or change is None or error is None:
            return None
        rise = change / max(error - change, 1e-12)
        above = rise > options.winner_limit
        self.stop |= above and options.winner_stop
        if not self._once(f"{term}.alarm", above, over=rise < options.winner_limit / 2):
            return None
        return (
            f"loss.{term}: the winners' error is {rise:.0%} above the reference's, so chosen pictures get worse too; "
            "lower optimizer.learning_rate, or stay closer to the reference (beta, dpop, sft_weight)"
        )

    def _learned(self, term: str) -> str | None:
        accuracy = self._mean(f"{term}/accuracy")
        if accuracy is None or not self._once(f"{term}.learned", accuracy >= LEARNED, over=accuracy < LEARNED - 0.05):
            return None
        return (
            f"loss.{term}: {accuracy:.0%} of the pairs are in the right order, so these pairs teach little more; stop "
            "here, or add pairs that are harder to tell apart"
        )


JUMP, IN_A_ROW, KNOWN = 3.0, 3, 10
"""A warning is due after 3 consecutive steps of 3 times the median time, once 10 times are known."""


class StepTimeMonitor:
    """Warns of steps that take much longer than before, and of a GPU that spills over; each once until it is over."""

    def __init__(self) -> None:
        self._usual: list[float] = []
        self._slow: list[float] = []
        self._spilled = False

    def restart(self) -> None:
        """Steps are computed in another way from now on."""
        self._usual, self._slow = [], []

    def update(self, seconds: float, spilled: tuple[float, float] | None = None) -> list[str]:
        """Returns warnings. ``spilled``: GiB used and GiB of the GPU, where the system adds its own memory."""
        warnings = []
        if spilled and not self._spilled:
            warnings.append(
                f"the GPU's memory is full ({spilled[0]:.1f} of {spilled[1]:.1f} GB) and Windows adds the "
                "computer's, which makes steps many times slower; `check --fit` makes the run smaller, and NVIDIA's "
                "control panel can forbid it (CUDA - Sysmem Fallback Policy)"
            )
        self._spilled = bool(spilled)
        known = len(self._usual) >= KNOWN
        if known and seconds > JUMP * median(self._usual):
            self._slow.append(seconds)
            if len(self._slow) == IN_A_ROW:
                warnings.append(
                    f"steps now take {median(self._slow):.2g} s, {median(self._slow) / median(self._usual):.1f} times "
                    f"as long as before ({median(self._usual):.2g} s): something else uses the machine, the GPU is "
                    "too hot, or its memory is full"
                )
        else:
            self._slow = []
            self._usual = [*self._usual[-49:], seconds]
        return warnings
