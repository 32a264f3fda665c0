"""The order of a run: a pure function of the seed, with every item as often as it should be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkiln.trainer.data.batches import Plan, balanced, held_out, stream

SHAPES = [(64, 64), (64, 128), (128, 64)]
items = st.lists(st.tuples(st.sampled_from(SHAPES), st.integers(0, 4)), min_size=1, max_size=30).filter(
    lambda rows: any(repeats for _, repeats in rows)
)


def plan(rows, size=4, seed=0) -> Plan:
    return Plan([bucket for bucket, _ in rows], [repeats for _, repeats in rows], size, seed)


def epoch(made: Plan, number: int) -> list:
    first = (number - 1) * made.steps_per_epoch
    return [made.batch(step) for step in range(first, first + made.steps_per_epoch)]


@settings(deadline=None, max_examples=60)
@given(items, st.integers(1, 7), st.integers(0, 2**40))
def test_an_epoch_holds_every_item_as_often_as_its_repeats(rows, size, seed):
    made = plan(rows, size, seed)
    batches = epoch(made, 2)
    counts = Counter(one.item for batch in batches for one in batch.occurrences)
    assert counts == {i: repeats for i, (_, repeats) in enumerate(rows) if repeats}
    for batch in batches:
        assert batch.epoch == 2
        assert len({rows[one.item][0] for one in batch.occurrences}) == 1
        assert [one.index for one in batch.occurrences] == list(range(len(batch.occurrences)))
        assert len(batch.occurrences) <= size
    full = [len(batch.occurrences) == size for batch in batches]
    assert full.count(False) <= len(SHAPES)
    visits = sorted((one.item, one.visit) for batch in batches for one in batch.occurrences)
    assert visits == sorted((i, r + n) for i, (_, r) in enumerate(rows) for n in range(r))


def test_steps_are_counted_per_bucket():
    made = plan([(SHAPES[0], 5), (SHAPES[1], 4), (SHAPES[2], 1)])
    assert (made.samples, made.steps_per_epoch) == (10, 2 + 1 + 1)
    assert [row[:2] for row in made.rows] == [((64, 64), 5), ((64, 128), 4), ((128, 64), 1)]


@settings(deadline=None, max_examples=60)
@given(items, st.integers(0, 200))
def test_a_run_may_be_entered_at_any_step(rows, step):
    gone_through = plan(rows)
    for earlier in range(step % 17):
        gone_through.batch(earlier)
    assert gone_through.batch(step) == plan(rows).batch(step)


def test_epochs_and_seeds_differ():
    rows = [(SHAPES[0], 1)] * 40
    orders = [[one.item for batch in epoch(plan(rows, 4, seed), number) for one in batch.occurrences]
              for seed, number in ((0, 1), (0, 2), (1, 1))]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_the_order_is_the_same_on_every_machine():
    """Changes only when the sampler does; a stopped run could then not be resumed."""
    made = plan([(SHAPES[i % 2], 1 + i % 2) for i in range(6)], 3, seed=7)
    found = [[one.item for one in made.batch(step).occurrences] for step in range(4)]
    assert found == [[3, 1, 1], [5, 5, 3], [2, 4, 0], [5, 3, 1]]
    assert stream(7, 3, 1, "flip").random() == 0.7723525829790554


@pytest.mark.parametrize(
    ("train", "repeats", "expected"),
    [
        (10, [1] * 4, [3, 3, 2, 2]),  # too few: taken once more in turn
        (10, [2] * 8, [2, 2, 2, 2, 2, 0, 0, 0]),  # too many: the rest is left out
        (5, [3, 3, 3], [3, 3, 0]),
        (0, [1, 1], [0, 0]),
        (7, [], []),
    ],
)
def test_regularisation_pictures_are_balanced_as_sd_scripts_does(train, repeats, expected):
    assert balanced(train, repeats) == expected


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.floats(0, 0.99), st.integers(0, 100))
def test_groups_are_held_out_whole(keys, fraction, seed):
    out = held_out(keys, fraction, seed)
    inside, outside = {keys[i] for i in out}, {key for i, key in enumerate(keys) if i not in out}
    assert not inside & outside
    if keys:
        assert outside
    if fraction > 0 and len(set(keys)) > 1:
        assert inside
        assert len(out) >= round(len(keys) * fraction) or len(outside) == 1
    assert held_out(keys, fraction, seed) == out


def test_the_share_held_out():
    keys = [str(i) for i in range(200)]
    assert len(held_out(keys, 0.1, 0)) == 20
    assert held_out(keys, 0.1, 0) != held_out(keys, 0.1, 1)
    assert held_out(keys, 0.0, 0) == set()
