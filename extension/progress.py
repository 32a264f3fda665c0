"""A run's events as curves and tables, read on from where the last look ended."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..trainer.runs import control

POINTS = 400
PICTURE = re.compile(r"step(\d{8})_(\d{2,})\.png")


@dataclass
class History:
    """What the events of one run say so far."""

    offset: int = 0
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Step -> its last event; a resumed run writes a step again."""
    validation: dict[int, float] = field(default_factory=dict)
    measures: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step -> what validation measured beside the loss, such as a depth's ``absrel``, with its ``prior_absrel`` (the
    mean map, which knows nothing of the picture) and ``floor_absrel`` (the true map after the autoencoder)."""
    warnings: list[tuple[int, str]] = field(default_factory=list)
    """(step, message)."""
    spikes: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, loss, usual loss before)."""
    prompts: dict[int, str] = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)

    def read(self, run_dir: Path) -> bool:
        """Read what is new; whether there was anything."""
        before = self.offset
        found, self.offset = control.events(run_dir, self.offset)
        if self.offset < before:
            self.__init__(self.offset)
        for event in found:
            self._take(event)
        return bool(found)

    def _take(self, event: dict[str, Any]) -> None:
        step = event.get("step")
        if not isinstance(step, int):
            return
        kind = event.get("kind")
        if kind == "start":
            self.steps = {at: one for at, one in self.steps.items() if at <= step}
            self.measures = {at: one for at, one in self.measures.items() if at <= step}
        elif kind == "step":
            self.steps[step] = event
        elif kind == "validation" and isinstance(event.get("loss"), (int, float)):
            self.validation[step] = event["loss"]
            found = event.get("measures")
            if isinstance(found, dict):
                self.measures[step] = {k: float(v) for k, v in found.items() if isinstance(v, (int, float))}
        elif kind in ("warning", "oom"):
            self.warnings.append((step, str(event.get("message", kind))))
        elif kind == "spike":
            self.spikes.append((step, event.get("loss") or 0.0, event.get("usual") or 0.0))
        elif kind == "sample":
            found = PICTURE.search(str(event.get("path", "")))
            if found:
                self.prompts[int(found[2])] = str(event.get("prompt", ""))
                self.seeds[int(found[2])] = event.get("seed") or 0


_histories: dict[str, History] = {}


def history(run_dir: Path) -> History:
    """The run's history, kept between looks."""
    try:
        file = (run_dir / "events.jsonl").stat().st_ino  # another run may have taken the name
    except OSError:
        return History()
    known = _histories.setdefault(f"{file} {run_dir}", History())
    known.read(run_dir)
    if len(_histories) > 60:
        _histories.pop(next(iter(_histories)))
    return known


def names(of: History) -> list[str]:
    """What can be drawn as a curve: loss first, then the terms and the rest."""
    last = next(reversed(of.steps.values()), {})
    terms = [f"terms.{name}" for name, value in (last.get("terms") or {}).items() if isinstance(value, (int, float))]
    rest = [name for name in ("lr", "grad_norm", "seconds", "gb") if isinstance(last.get(name), (int, float))]
    return [*measured(of), "loss", *terms, *rest]


BESIDE = ("prior", "floor")


def measured(of: History) -> list[str]:
    """The names of what validation measured of the maps, without those that stand beside."""
    last = next(reversed(of.measures.values()), {})
    return [name for name in last if not name.startswith(tuple(f"{one}_" for one in BESIDE))]


def value(event: dict[str, Any], name: str) -> float | None:
    head, _, tail = name.partition(".")
    found = (event.get(head) or {}).get(tail) if tail else event.get(name)
    return float(found) if isinstance(found, (int, float)) and math.isfinite(found) else None


def curve(of: History, name: str, smooth: float, log: bool) -> list[tuple[int, float, str]]:
    """(step, value, which line) with at most ``POINTS`` a line: measured; smoothed by an exponential mean whose weight
    of the past is ``smooth`` (0 none, below 1), corrected for its start; held out. A line without points, also before
    the first step, has one that is no number, since a plot draws only the lines that it was begun with."""
    if name in measured(of):
        return _measured(of, name, log)
    raw = [(step, number) for step, event in sorted(of.steps.items()) if (number := value(event, name)) is not None]
    smoothed: list[tuple[int, float]] = []
    if 0 < smooth < 1:
        mean, weight = 0.0, 0.0
        for step, number in raw:
            mean, weight = smooth * mean + (1 - smooth) * number, smooth * weight + (1 - smooth)
            smoothed.append((step, mean / weight))
    held_out = sorted(of.validation.items()) if name == "loss" else []
    none = [(raw[0][0] if raw else 0, math.nan)]
    out = []
    for which, points in (("measured", raw or none), ("smoothed", smoothed or none), ("held out", held_out or none)):
        stride = max(1, math.ceil(len(points) / POINTS))
        kept = points[::stride] + (points[-1:] if points and (len(points) - 1) % stride else [])
        for step, number in kept:
            if not log:
                out.append((step, number, which))
            elif number > 0 or math.isnan(number):
                out.append((step, math.log10(number), which))
    return out


def _measured(of: History, name: str, log: bool) -> list[tuple[int, float, str]]:
    """What validation measured, and beside it prior and floor, which no step changes."""
    out = []
    for which, key in (("held out", name), *((one, f"{one}_{name}") for one in BESIDE)):
        for step, found in sorted(of.measures.items()):
            number = found.get(key, math.nan)
            if math.isfinite(number) and (number > 0 or not log):
                out.append((step, math.log10(number) if log else number, which))
    return out


def speed(of: History, last: int = 20) -> float | None:
    """Steps per second over the last few."""
    seconds = [
        one["seconds"] for one in list(of.steps.values())[-last:] if isinstance(one.get("seconds"), (int, float))
    ]
    return len(seconds) / sum(seconds) if seconds and sum(seconds) > 0 else None


def pictures(run_dir: Path) -> dict[int, dict[int, Path]]:
    """Previews: step -> prompt number -> file."""
    out: dict[int, dict[int, Path]] = {}
    for path in sorted((run_dir / "samples").glob("step*_*.png")):
        found = PICTURE.fullmatch(path.name)
        if found:
            out.setdefault(int(found[1]), {})[int(found[2])] = path
    return out


def columns(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
