"""Step times that jump, and a card that swaps: noticed while a run goes on, and named."""

from __future__ import annotations

from statistics import median

JUMP, IN_A_ROW, ENOUGH = 3.0, 3, 10
"""So many times the usual, in so many steps one after the other, once so many are known."""


class Pulse:
    """Looks at every step; a thing is said once, and again after it was gone."""

    def __init__(self) -> None:
        self._usual: list[float] = []
        self._slow: list[float] = []
        self._spilled = False

    def restart(self) -> None:
        """Steps are done in another way from now on."""
        self._usual, self._slow = [], []

    def see(self, seconds: float, spilled: tuple[float, float] | None = None) -> list[str]:
        """Warnings. ``spilled``: GiB used and there, where the card is full and the system lends it its own memory."""
        said = []
        if spilled and not self._spilled:
            said.append(
                f"the card's memory is full ({spilled[0]:.1f} of {spilled[1]:.1f} GB) and Windows lends it the "
                "computer's, which makes steps many times slower; `check --fit` makes the run smaller, and NVIDIA's "
                "control panel can forbid it (CUDA - Sysmem Fallback Policy)"
            )
        self._spilled = bool(spilled)
        known = len(self._usual) >= ENOUGH
        if known and seconds > JUMP * median(self._usual):
            self._slow.append(seconds)
            if len(self._slow) == IN_A_ROW:
                said.append(
                    f"steps now take {median(self._slow):.2g} s, {median(self._slow) / median(self._usual):.1f} times "
                    f"as long as before ({median(self._usual):.2g} s): something else uses the machine, the card is "
                    "too hot, or its memory is full"
                )
        else:
            self._slow = []
            self._usual = [*self._usual[-49:], seconds]
        return said
