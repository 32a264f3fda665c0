"""Which pictures make up each step: a pure function of the seed, so that a run can be entered at any step.

An effective batch holds pictures of one bucket. How it is split over micro-batches and processes is not known here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .buckets import Size


def stream(*key: object) -> random.Random:
    """A random stream that depends on nothing but the key (numbers and strings)."""
    return random.Random(hashlib.blake2b(repr(key).encode(), digest_size=16).digest())


@dataclass(frozen=True)
class Occurrence:
    """One item in one step."""

    item: int
    index: int
    """Its place in the effective batch: the group of its rows."""
    visit: int
    """How often the item was seen before in this run."""


@dataclass(frozen=True)
class EffectiveBatch:
    step: int
    epoch: int
    """Counted from 1."""
    occurrences: list[Occurrence]


class Plan:
    """The order of a run. Each item comes ``repeats`` times an epoch; the last batch of a bucket may be short."""

    def __init__(
        self,
        buckets: Sequence[Size],
        repeats: Sequence[int],
        size: int,
        seed: int,
        pools: Sequence[Hashable] = (),
        sizes: Mapping[Any, int] | None = None,
    ):
        """``buckets[i]``, ``repeats[i]`` and ``pools[i]`` belong to item i.

        :param size: the effective batch, where ``sizes`` gives the pool of an item no other.
        :param pools: items of different pools are never in one batch; without them all are in one.
        """
        assert size > 0 and len(buckets) == len(repeats)
        self.size = size
        self.seed = seed
        self.repeats = list(repeats)
        self._sizes = dict(sizes or {})
        self._buckets: dict[tuple[Hashable, Size], list[int]] = {}
        for item in range(len(buckets)):
            if repeats[item] > 0:
                pool = pools[item] if pools else ""
                self._buckets.setdefault((pool, buckets[item]), []).append(item)
        self._buckets = dict(sorted(self._buckets.items(), key=lambda one: (one[0][1], str(one[0][0]))))
        self.rows = [
            (bucket, count := sum(repeats[i] for i in items), -(-count // self._size(pool)), self._size(pool), pool)
            for (pool, bucket), items in self._buckets.items()
        ]
        """Each bucket of each pool: its size, samples and steps per epoch, effective batch, and the pool."""
        self.samples = sum(row[1] for row in self.rows)
        self.steps_per_epoch = sum(row[2] for row in self.rows)
        self._epoch: tuple[int, list[list[tuple[int, int]]]] = (0, [])

    @property
    def largest(self) -> tuple[Size, int]:
        """Bucket and number of samples of the effective batch that has the most pixels."""
        batches = [(bucket, min(count, size)) for bucket, count, _, size, *_ in self.rows]
        return max(batches, key=lambda one: one[0][0] * one[0][1] * one[1])

    def _size(self, pool: Hashable) -> int:
        return self._sizes.get(pool, self.size)

    def _order(self, epoch: int) -> list[list[tuple[int, int]]]:
        """The batches of an epoch as (item, repeat)."""
        known, batches = self._epoch  # one look: another thread may be an epoch ahead
        if known != epoch:
            rng = stream("epoch", self.seed, epoch)
            batches = []
            for (pool, _), items in self._buckets.items():
                uses = [(item, repeat) for item in items for repeat in range(self.repeats[item])]
                rng.shuffle(uses)
                size = self._size(pool)
                batches += [uses[i : i + size] for i in range(0, len(uses), size)]
            rng.shuffle(batches)
            self._epoch = (epoch, batches)
        return batches

    def batch(self, step: int) -> EffectiveBatch:
        """The batch of a step, counted from 0 over the whole run."""
        assert self.steps_per_epoch, "nothing to train on"
        epoch = step // self.steps_per_epoch
        uses = self._order(epoch + 1)[step % self.steps_per_epoch]
        occurrences = [
            Occurrence(item, index, epoch * self.repeats[item] + repeat) for index, (item, repeat) in enumerate(uses)
        ]
        return EffectiveBatch(step, epoch + 1, occurrences)


def balanced(train: int, repeats: Sequence[int]) -> list[int]:
    """Repeats of regularisation pictures so that together they are seen as often as ``train``: taken in turn, surplus
    ones not at all, and when they are too few the first ones once more (as sd-scripts registers them)."""
    counts = [0] * len(repeats)
    seen = 0
    for i, count in enumerate(repeats):
        if seen >= train:
            return counts
        counts[i], seen = count, seen + count
    missing = max(0, train - seen) if counts else 0
    return [count + missing // len(counts) + (i < missing % len(counts)) for i, count in enumerate(counts)]


def held_out(keys: Sequence[str], fraction: float, seed: int) -> set[int]:
    """Which items are held out: whole groups of equal key, in an order that the seed chooses, until ``fraction`` is
    reached; at least one group, and never all."""
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    if fraction <= 0 or len(groups) < 2:
        return set()
    order = sorted(groups)
    stream("held out", seed).shuffle(order)
    wanted = max(1, round(len(keys) * fraction))
    chosen: set[int] = set()
    for key in order[:-1]:
        if len(chosen) >= wanted:
            break
        chosen |= set(groups[key])
    return chosen
