"""Single values of a study, and what each measure is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """Something that is measured of every arm and seed."""

    name: str
    """The key of its values."""
    title: str
    better: Literal["lower", "higher"]
    what: str
    """One sentence: what the number is, and where it is defined."""
    tested: bool = True
    """Whether it is part of the family that Holm's correction is over; else it is a detail, shown without a verdict."""
    per: Literal["picture", "set"] = "picture"
    """``set``: one value per seed, as a distance between sets of pictures is."""


@dataclass(frozen=True)
class Value:
    """One number: of an arm, at a seed, for a held-out picture or a prompt."""

    measure: str
    arm: str
    seed: int
    item: str
    """The picture's or the prompt's name, what arms are paired by; empty for a measure of a set."""
    value: float


COLUMNS = ("measure", "arm", "seed", "item", "value")


def to_csv(values: Iterable[Value]) -> str:
    """Every single value, one per line, with a header; numbers are written so that they are read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((v.measure, v.arm, v.seed, v.item, repr(v.value)) for v in values)
    return text.getvalue()


def from_csv(text: str) -> list[Value]:
    """What ``to_csv`` wrote."""
    rows: Sequence[dict[str, str]] = list(csv.DictReader(io.StringIO(text)))
    return [Value(r["measure"], r["arm"], int(r["seed"]), r["item"], float(r["value"])) for r in rows]
