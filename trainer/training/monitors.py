"""Guard rails of preference training: is the winner getting worse, and is there still something to learn?

A preference loss also falls while both pictures of a pair get worse, the loser faster: then previews decay though the
numbers look well. What tells it is the winner's error over the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

DECAY, ENOUGH = 0.95, 20
"""Of the running means, about 20 steps; nothing is said before so many."""
WATCHED = ("accuracy", "winner", "winner_change")
LEARNED = 0.98
"""Accuracy from which on the pairs are taken as learned."""


class Guarded(Protocol):
    """The options of an objective that has a reference."""

    winner_limit: float
    winner_stop: bool


class Watch:
    """Running means of each term's metrics. The same on all processes; ``state`` is saved with the run."""

    def __init__(self, terms: Mapping[str, Any]):
        self.limits: dict[str, Guarded] = {name: o for name, o in terms.items() if hasattr(o, "winner_limit")}
        self.state: dict[str, float] = {}
        self.stop = False
        """Whether the options ask to stop for what was seen."""

    def see(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in a step's means, ``term/metric``; -> what is to be said about it, each thing once until it is over."""
        self.stop = False
        for name, value in metrics.items():
            if name.rpartition("/")[2] in WATCHED and value - value == 0:
                weight = self.state.get(f"{name}.weight", 0.0)
                self.state[f"{name}.weight"] = weight * DECAY + 1 - DECAY
                self.state[name] = self.state.get(name, 0.0) * DECAY + value * (1 - DECAY)
                self.state[f"{name}.count"] = self.state.get(f"{name}.count", 0.0) + 1
        terms = dict.fromkeys(name.partition("/")[0] for name in metrics)
        return [line for term in terms for line in (self._winner(term), self._learned(term)) if line]

    def _mean(self, name: str) -> float | None:
        enough = self.state.get(f"{name}.count", 0.0) >= ENOUGH
        return self.state[name] / self.state[f"{name}.weight"] if enough else None

    def _once(self, name: str, now: bool, over: bool) -> bool:
        """Whether to speak: when it begins, and not again before it was over."""
        said = self.state.get(name, 0.0)
        self.state[name] = 0.0 if over else 1.0 if now else said
        return now and not said

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
            "lower optimizer.learning_rate, or hold closer to the reference (beta, dpop, sft_weight)"
        )

    def _learned(self, term: str) -> str | None:
        accuracy = self._mean(f"{term}/accuracy")
        if accuracy is None or not self._once(f"{term}.learned", accuracy >= LEARNED, over=accuracy < LEARNED - 0.05):
            return None
        return (
            f"loss.{term}: {accuracy:.0%} of the pairs are in the right order, so these pairs teach little more; stop "
            "here, or add pairs that are harder to tell apart"
        )
