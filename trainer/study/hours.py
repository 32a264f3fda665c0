"""How long what is left of a study takes: by the cells that are done, or before them by an estimate of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from ..estimate import gpus, report
from ..runs.check_report import clock
from ..runs.events import read_object
from .plan import Plan
from .queue import Cell, total_steps_of


@dataclass(frozen=True)
class Hours:
    """Seconds, at least and at most."""

    least: float
    most: float
    source: str
    seed: tuple[float, float] = (0.0, 0.0)
    """Of one seed of all arms."""

    def seeds(self, budget: float, most: int) -> tuple[int, int]:
        """How many seeds fit into a time, at least and at most, of so many; one always is done."""
        few, many = (max(1, min(most, int(budget / one))) if one else most for one in reversed(self.seed))
        return few, many

    def fitting(self, budget: float, most: int) -> str:
        """``seeds`` in a sentence."""
        few, many = self.seeds(budget, most)
        span = f"{few}" if few == many else f"{few} to {many}"
        return f"budget: {span} of {most} seeds fit into {clock(budget)}"

    @property
    def line(self) -> str:
        span = clock(self.least) if self.least == self.most else f"{clock(self.least)} to {clock(self.most)}"
        return f"time: {span} ({self.source})"


def left(plan: Plan, say: Callable[[str], None]) -> Hours | None:
    """Of the cells without a measured time; None where nothing is known of this device's speed. Nothing is loaded.

    A cell of an arm takes as long as that arm's others did, or else as all others. Before the first cell it is the
    training alone, as ``check`` estimates it.
    """
    walls: dict[str, list[float]] = {}
    open_ = []
    for arm, seed in plan.cells:
        wall = read_object(Cell(plan, arm, seed).folder / "cell.json").get("wall")
        if wall:
            walls.setdefault(arm.name, []).append(wall)
        else:
            open_.append(arm)
    if walls:
        every = fmean(wall for one in walls.values() for wall in one)
        total = sum(fmean(walls[arm.name]) if arm.name in walls else every for arm in open_)
        seed = sum(fmean(walls.get(arm.name, [every])) for arm in plan.arms)
        return Hours(total, total, "by the cells that are done", (seed, seed))
    least, most, pace = 0.0, 0.0, ""
    each = dict[str, tuple[float, float]]()
    for arm in (one for one in plan.arms if one.given.trains and not one.equal_time):

        def of_arm(line: str, name: str = arm.name) -> None:
            say(f"{name}: {line}")

        estimator = report.Estimator(arm.config, plan.found, None, gpus.here(arm.config.run.device), of_arm)
        steps = total_steps_of(plan, arm)
        found = report.answer(estimator, arm.config, steps)
        if found["seconds_per_step_range"] is None:
            return None
        pace = found["pace"]
        ends = zip(found["seconds_per_step_range"], found["seconds_beside"], strict=True)
        fast, slow = (of_step * steps + beside for of_step, beside in ends)
        each[arm.name] = fast, slow
    for arm in (one for one in plan.arms if one.given.trains):
        fast, slow = each[plan.arms[0].name if arm.equal_time else arm.name]
        least, most = least + fast, most + slow
    count = len(plan.seeds)
    return Hours(least * count, most * count, f"training alone; {pace}", (least, most)) if most else None
