"""What a data set says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from . import captions
from .batches import Plan
from .items import Item, Scan
from .options import SetOptions


class Reported(Protocol):
    """What a report reads of a data set."""

    scan: Scan
    items: list[Item]
    held: list[Item]
    plan: Plan
    effective_batch: int

    @property
    def kind(self) -> str: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    def set_of(self, item: Item) -> SetOptions: ...


def report(data: Reported) -> dict[str, Any]:
    """JSON-able: what there is, and how long an epoch is."""
    uses: Counter[int] = Counter()
    for item, times in zip(data.items, data.plan.repeats, strict=True):
        uses[item.set] += times
    counts = Counter(item.set for item in data.scan.items)
    shapes = [(one.size, one.fit.bucket) for item in data.items for one in item.pictures]
    errors = [abs(bucket[0] / bucket[1] - size[0] / size[1]) for size, bucket in shapes]
    return {
        "kind": data.kind,
        "items": len(data.items),
        "pictures": len({one.path for item in data.items for one in item.pictures}),
        "held_out": len(data.held),
        "samples_per_epoch": data.plan.samples,
        "effective_batch": data.effective_batch,
        "steps_per_epoch": data.steps_per_epoch,
        "folders": [
            {"name": data.scan.names[i], "path": one.path, "items": counts[i], "repeats": one.repeats,
             "samples": uses[i], "is_reg": one.is_reg}
            for i, one in enumerate(data.scan.sets)
        ],
        "buckets": [
            {"width": width, "height": height, "samples": samples, "steps": steps}
            for (width, height), samples, steps, *_ in data.plan.rows
        ],
        "mean_aspect_error": sum(errors) / len(errors),
        "captions": {
            "distinct": len({item.caption for item in data.items}),
            "change": any(captions.varies(data.set_of(item)) for item in data.items),
        },
        "warnings": data.warnings,
        "notes": data.scan.notes.as_json(),
    }  # fmt: skip


def tag_frequency(data: Reported) -> dict[str, dict[str, int]]:
    """For each folder how often each tag occurs in its captions."""
    found: dict[str, Counter[str]] = {}
    for item in data.scan.items:
        tags = captions.tags(item.caption.split("\n")[0], data.set_of(item).separator)
        found.setdefault(data.scan.names[item.set], Counter()).update(tags)
    return {name: dict(counter) for name, counter in found.items()}
