"""Paired comparison of arms: intervals over seeds, sign tests over pairs, Holm's correction over all that is tested.

A training seed is the unit of evidence: pictures and prompts of one seed share one trained adapter, so their
differences are not independent, and an interval over all pairs would be too narrow (Bouthillier et al. 2021, arXiv
2103.03098). The interval is Student's over the per-seed mean differences; under the null hypothesis the two arms are
exchangeable, so these differences are symmetric around 0, where the t test keeps its level or stays below it, also for
long tails. ``tests/study/test_statistics.py`` shows coverage and the family-wise rate on simulated data.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import scipy

from .values import Measure, Value

LEVEL = 0.05
"""The family-wise rate of false findings; intervals cover 1 - LEVEL."""
POWER = 0.8
"""With which a difference as large as ``Comparison.resolution`` is found."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float | None
    """None with one seed."""
    high: float | None
    p: float | None
    """Two-sided, of a mean of 0."""


@dataclass(frozen=True)
class Comparison:
    """One arm against the first, by one measure: differences are arm minus first."""

    measure: Measure
    arm: str
    seeds: int
    """Seeds at which both have values."""
    pairs: int
    """Pairs of values of equal seed and picture or prompt."""
    first_mean: float
    arm_mean: float
    interval: Interval
    wins: int
    """Pairs in which the arm is better."""
    losses: int
    ties: int
    sign_p: float
    identical: bool = False
    """The two arms' files are bit-equal at every seed."""
    adjusted: float | None = None
    """p by Holm's correction over all that is tested; None for details, identical arms and single seeds."""
    resolution: float | None = None
    """A true difference of this size would have been found with a probability of 80 %, given the spread seen."""

    @property
    def found(self) -> bool:
        return self.adjusted is not None and self.adjusted < LEVEL

    @property
    def is_better(self) -> bool:
        return (self.interval.mean < 0) == (self.measure.better == "lower")


def student(differences: Sequence[float]) -> Interval:
    """Student's interval of the mean of per-seed differences (n - 1 degrees of freedom).

    Where all differences are equal there is no spread to go by: p is then that of the sign test over seeds, 2^(1-n),
    and 1 where they are all 0.
    """
    x = np.asarray(differences, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Interval(mean, None, None, None)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * abs(mean):
        return Interval(mean, mean, mean, 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - n)))
    width = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    return Interval(mean, mean - width, mean + width, float(2 * scipy.stats.t.sf(abs(mean) / error, n - 1)))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p of each (Holm 1979): compared with the level itself, at most that share of families has a false
    finding, however the measures depend on each other."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, running = [1.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = running
    return out


@cache
def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test without ties (Dixon and Mood 1946). Over pairs it says how uneven these adapters are on
    these pictures, not whether other seeds would repeat it."""
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def compare(
    values: Iterable[Value], measures: Sequence[Measure], arms: Sequence[str], identical: Collection[str] = ()
) -> list[Comparison]:
    """Every other arm against the first, by every measure that both have values of, in the order of the measures.

    Args:
        arms: names, the one to compare with first.
        identical: arms whose files are those of the first, bit by bit.
    """
    table: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
    for v in values:
        table.setdefault((v.measure, v.arm), {})[v.seed, v.item] = v.value
    rows: list[Comparison] = []
    for measure in measures:
        first = table.get((measure.name, arms[0]), {})
        for arm in arms[1:]:
            row = _compare(measure, arm, first, table.get((measure.name, arm), {}), arm in identical)
            rows += [row] if row else []
    return _corrected(rows)


def _compare(
    measure: Measure, arm: str, first: dict[tuple[int, str], float], other: dict[tuple[int, str], float],
    identical: bool,
) -> Comparison | None:  # fmt: skip
    keys = sorted(key for key in first.keys() & other.keys() if math.isfinite(first[key]) and math.isfinite(other[key]))
    if not keys:
        return None
    seeds = sorted({seed for seed, _ in keys})
    differences = {key: other[key] - first[key] for key in keys}

    def seed_mean(of: dict[tuple[int, str], float], seed: int) -> float:
        return float(np.mean([of[key] for key in keys if key[0] == seed]))

    signs = np.sign([differences[key] for key in keys]) * (-1 if measure.better == "lower" else 1)
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    return Comparison(
        measure, arm, len(seeds), len(keys),
        float(np.mean([seed_mean(first, seed) for seed in seeds])),
        float(np.mean([seed_mean(other, seed) for seed in seeds])),
        student([seed_mean(differences, seed) for seed in seeds]),
        wins, losses, len(keys) - wins - losses, sign_test(wins, losses), identical,
    )  # fmt: skip


def _corrected(rows: list[Comparison]) -> list[Comparison]:
    """With adjusted p and resolution where a row is part of the tested family."""
    tested = [
        i for i, row in enumerate(rows) if row.measure.tested and not row.identical and row.interval.p is not None
    ]
    for i, p in zip(tested, holm([rows[i].interval.p or 0.0 for i in tested]), strict=True):
        rows[i] = replace(rows[i], adjusted=p, resolution=_resolution(rows[i], len(tested)))
    return rows


def _resolution(row: Comparison, family: int) -> float | None:
    """The smallest true difference that is found with ``POWER`` by a test at LEVEL / ``family`` (Holm's first step)."""
    assert row.interval.low is not None
    df = row.seeds - 1
    error = (row.interval.mean - row.interval.low) / float(scipy.stats.t.ppf(1 - LEVEL / 2, df))
    return detectable(df, family) * error if error > 0 else None


@cache
def detectable(df: int, family: int) -> float:
    """As ``_resolution``, in standard errors of the mean (the non-central t distribution)."""
    wanted = float(scipy.stats.t.ppf(1 - LEVEL / (2 * family), df))
    low, high = wanted, 2 * wanted
    while scipy.stats.nct.sf(wanted, df, high) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if scipy.stats.nct.sf(wanted, df, middle) >= POWER else (middle, high)
    return high


def verdict(row: Comparison) -> str:
    """The result in words."""
    if row.identical:
        return "identical files"
    if row.interval.p is None:
        return "one seed: no interval"
    size = _size(abs(row.interval.mean), row.first_mean)
    if not row.measure.tested:
        return "detail, not tested"
    if row.found:
        side = "lower" if row.interval.mean < 0 else "higher"
        return f"{'better' if row.is_better else 'worse'}: {size} {side}"
    if row.resolution is None:
        return "no difference seen in any seed" if row.interval.mean == 0 else "too few seeds to tell"
    return f"no difference seen; one as large as {_size(row.resolution, row.first_mean)} would have been"


def _size(difference: float, base: float) -> str:
    share = difference / abs(base) if base else math.inf
    return f"{difference:.3g}" + (f" ({share:.1%})" if share < 10 else "")
