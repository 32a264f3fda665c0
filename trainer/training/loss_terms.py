"""The loss terms of a run with their objectives, and everything of them that adapts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..losses.term import Balance, Term
from .monitors import PreferenceMonitor


@dataclass
class LossTerms:
    """Terms, their automatic weights, and the monitor of preference training."""

    terms: list[Term]
    balance: Balance
    monitor: PreferenceMonitor = field(default_factory=lambda: PreferenceMonitor({}))

    @property
    def needs_reference(self) -> bool:
        return any(term.objective.needs_reference for term in self.terms)

    def weight(self, name: str) -> float:
        """The weight of the term of this name in the loss."""
        return self.balance.weight(name)

    def update(self, sums: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Move automatic weights and betas by one step's sums over all processes; used from the next step on."""
        values = {t.name: sums[f"{t.name}/value"] for t in self.terms if f"{t.name}/value" in sums}
        self.balance.update(values, {name: counts[f"{name}/value"] for name in values})
        for term in self.terms:
            if term.name in values:
                own = {k.partition("/")[2]: v for k, v in sums.items() if k.startswith(f"{term.name}/")}
                term.objective.update(own, counts[f"{term.name}/value"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "objectives": {t.name: t.objective.state for t in self.terms},
            "balance": self.balance.state,
            "watch": self.monitor.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what has adapted; terms that the state does not know begin without."""
        for term in self.terms:
            term.objective.state.update(state["objectives"].get(term.name, {}))
        self.balance.state.update(state["balance"])
        self.monitor.state.update(state.get("watch", {}))
