"""The statistics of a study on simulated data: what is claimed of them holds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pixelkiln.trainer.study.statistics import LEVEL, compare, holm, sign_test, student, verdict
from pixelkiln.trainer.study.values import Measure, Value, from_csv, to_csv

MEASURES = [Measure(f"m{i}", f"measure {i}", "lower", "a number") for i in range(9)]


def monte_carlo_limit(rate: float, count: int) -> float:
    """Above this, a rate seen in ``count`` data sets is too large with a probability of 99.9 %."""
    return float(stats.binom.ppf(0.999, count, rate)) / count


def simulated(
    rng: np.random.Generator, seeds: int, pairs: int, arms: int = 2, effect: float = 0.0, tails: str = "normal",
    measures: int = 9,
) -> list[Value]:  # fmt: skip
    """Values with an effect of the picture, of the seed and arm (shared by all pictures and half by all measures), and
    of each pair. Measure 1 is a share of 0 or 1 per picture, measure 2 one value per seed."""
    draw = {
        "normal": rng.standard_normal,
        "long": lambda shape: rng.standard_t(3, shape),
        "skewed": lambda shape: rng.exponential(1, shape),
    }[tails]
    picture = rng.standard_normal((measures, 1, 1, pairs)) * 3
    adapter = draw((1, arms, seeds, 1)) + draw((measures, arms, seeds, 1))
    table = picture + adapter + draw((measures, arms, seeds, pairs))
    table[:, 1:] += effect
    out = []
    for m in range(measures):
        for a in range(arms):
            for s in range(seeds):
                row = table[m, a, s]
                if m == 1:
                    row = (row > 0).astype(float)
                items = [("", float(row.mean()))] if m == 2 else [(str(i), float(v)) for i, v in enumerate(row)]
                out += [Value(f"m{m}", f"arm{a}", s, item, value) for item, value in items]
    return out


@pytest.mark.parametrize("tails", ["normal", "long"])
def test_the_interval_at_five_seeds_covers_95_percent(tails):
    rng = np.random.default_rng(1)
    hits = [0, 0]
    for _ in range(4000):
        adapters = rng.standard_normal((2, 5)) if tails == "normal" else rng.standard_t(5, (2, 5))
        pairs = rng.standard_normal((2, 5, 20))
        differences = (adapters[1] - adapters[0]) + (pairs[1] - pairs[0]).mean(1) + 0.7
        found = student(differences.tolist())
        hits[found.low <= 0.7 <= found.high] += 1
    assert 0.93 <= hits[1] / sum(hits) <= 0.97


def test_a_percentile_bootstrap_over_seeds_would_cover_too_little():
    """Why it is not used: at five seeds it covers about 85 %."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(1500):
        differences = rng.standard_normal(5)
        means = rng.choice(differences, (400, 5)).mean(1)
        low, high = np.quantile(means, (0.025, 0.975))
        hits += low <= 0 <= high
    assert hits / 1500 < 0.90


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "arms", "tails"), [(5, 2, "normal"), (3, 3, "long"), (2, 2, "skewed")])
def test_null_studies_have_a_false_finding_in_at_most_5_percent(seeds, arms, tails):
    rng = np.random.default_rng(3)
    names = [f"arm{a}" for a in range(arms)]
    count, false = 2000, 0
    for _ in range(count):
        rows = compare(simulated(rng, seeds, 8, arms, tails=tails, measures=5), MEASURES[:5], names)
        assert len(rows) == 5 * (arms - 1)
        false += any(row.found for row in rows)
    assert false / count <= monte_carlo_limit(LEVEL, count)


def test_without_correction_null_studies_would_have_more():
    """The simulation can fail: the same data sets, tested without Holm's correction."""
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(500):
        rows = compare(simulated(rng, 5, 8, measures=9), MEASURES, ["arm0", "arm1"])
        false += any(row.interval.p < LEVEL for row in rows)
    assert false / 500 > 2 * LEVEL


def test_the_sign_test_over_pairs_is_no_test_of_recipes():
    """Why a verdict never rests on it: with an effect per adapter, null studies often have uneven pairs."""
    rng = np.random.default_rng(4)
    uneven = sum(compare(simulated(rng, 2, 20, measures=1), MEASURES[:1], ["arm0", "arm1"])[0].sign_p < 0.05
                 for _ in range(300))  # fmt: skip
    assert uneven / 300 > 0.2


def test_a_difference_is_found_and_one_of_the_resolution_in_about_80_percent():
    rng = np.random.default_rng(5)
    rows = compare(simulated(rng, 5, 20, effect=12), MEASURES, ["arm0", "arm1"])
    assert rows[0].found and not rows[0].is_better and verdict(rows[0]).startswith("worse: ")
    sd, found, sizes = 1.0, 0, []
    for _ in range(3000):  # the family is one test, the spread is known on average
        x = rng.normal(0, sd, 5)
        values = [Value("m0", f"arm{a}", s, "", float(x[s]) * a) for a in (0, 1) for s in range(5)]
        sizes.append(compare(values, MEASURES[:1], ["arm0", "arm1"])[0].resolution / x.std(ddof=1))
    assert max(sizes) - min(sizes) < 1e-6  # it is a multiple of the spread
    for _ in range(3000):
        found += student(rng.normal(sizes[0] * sd, sd, 5).tolist()).p < LEVEL
    assert 0.77 < found / 3000 < 0.83


def test_holm_by_its_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.5, 0.9]) == [1.0, 1.0]


def test_sign_test_counts_without_ties():
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(0, 0) == 1.0


def test_equal_differences_in_all_seeds_are_not_certainty():
    assert student([0.25, 0.25]).p == 0.5
    assert student([0.25] * 5).p == 2**-4
    assert student([0.0, 0.0]).p == 1.0
    assert student([0.3]).low is None and student([0.3]).p is None


def test_pairs_are_of_equal_seed_and_picture_and_missing_ones_count_for_neither():
    values = [Value("m0", "a", 0, "x", 1.0), Value("m0", "a", 0, "y", 2.0), Value("m0", "a", 1, "x", 1.0),
              Value("m0", "b", 0, "x", 0.5), Value("m0", "b", 1, "x", 0.7), Value("m0", "b", 2, "x", 9.0),
              Value("m0", "b", 0, "y", float("nan"))]  # fmt: skip
    (row,) = compare(values, MEASURES[:1], ["a", "b"])
    assert (row.seeds, row.pairs, row.wins, row.losses) == (2, 2, 2, 0)
    assert row.interval.mean == pytest.approx(-0.4) and (row.first_mean, row.arm_mean) == (1.0, 0.6)


def test_identical_arms_and_single_seeds_are_said_to_be_so_and_not_tested():
    values = simulated(np.random.default_rng(6), 3, 4, measures=1)
    values += [Value(v.measure, "same", v.seed, v.item, v.value) for v in values if v.arm == "arm0"]
    rows = compare(values, MEASURES[:1], ["arm0", "arm1", "same"], identical={"same"})
    assert [verdict(row) for row in rows][1] == "identical files"
    assert rows[1].adjusted is None and rows[0].adjusted == rows[0].interval.p  # a family of one
    (one,) = compare([v for v in values if v.seed == 0], MEASURES[:1], ["arm0", "arm1"])
    assert verdict(one) == "one seed: no interval" and not one.found


def test_details_are_no_part_of_the_family():
    values = simulated(np.random.default_rng(7), 5, 4, measures=2)
    detail = Measure("m1", "detail", "lower", "a number", tested=False)
    rows = compare(values, [MEASURES[0], detail], ["arm0", "arm1"])
    assert rows[1].adjusted is None and rows[0].adjusted == rows[0].interval.p
    assert verdict(rows[1]) == "detail, not tested"


def test_higher_is_better_where_the_measure_says_so():
    more = Measure("m0", "score", "higher", "a number")
    values = [Value("m0", arm, s, "", s * 0.01 + (arm == "b")) for arm in "ab" for s in range(5)]
    values = [Value(v.measure, v.arm, v.seed, v.item, v.value + 0.001 * (v.arm == "b") * v.seed) for v in values]
    (row,) = compare(values, [more], ["a", "b"])
    assert row.found and row.is_better and verdict(row).startswith("better: ") and "higher" in verdict(row)


def test_values_are_read_back_exactly():
    values = simulated(np.random.default_rng(8), 2, 3, measures=3)
    values.append(Value("m0", 'an arm, with "quotes"', 0, "a\nb", 0.1 + 0.2))
    assert from_csv(to_csv(values)) == values
