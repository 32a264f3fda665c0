"""Records for test_golden.py: the shape of JSON values, what of a record is gone, and the files of the records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent / "golden" / "contract"
RECORD = bool(os.environ.get("PIXELKILN_RECORD_GOLDEN"))
_TYPES = {str: "text", bool: "boolean", int: "number", float: "number", type(None): "null"}


def shape(*values: Any) -> Any:
    """Keys and JSON types of values: an object as its keys, a list as {"[]": items}, the rest as a list of types."""
    objects, lists = ([v for v in values if isinstance(v, kind)] for kind in (dict, list))
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in objects for key in one):
        found[key] = shape(*(one[key] for one in objects if key in one))
    if lists:
        found["[]"] = shape(*(item for one in lists for item in one))
    plain = sorted({_TYPES[type(v)] for v in values if not isinstance(v, (dict, list))})
    return {**found, "or": plain} if found and plain else plain or ([] if not (objects or lists) else found)


def missing(recorded: Any, now: Any, at: str = "") -> list[str]:
    """What of a record is gone. A list of named objects must begin with the recorded ones; of other lists every item
    must be there, in the same order. Null and an empty list are recorded where a value was not known."""
    if recorded in ([], ["null"]):
        return []
    if isinstance(recorded, dict) and isinstance(now, dict):
        gone = [f"{at}/{key}" for key in recorded if key not in now]
        return gone + [
            line for key in recorded if key in now for line in missing(recorded[key], now[key], f"{at}/{key}")
        ]
    if isinstance(recorded, list) and isinstance(now, list):
        if recorded and isinstance(recorded[0], dict):
            pairs = zip(recorded, now[: len(recorded)] + [None] * (len(recorded) - len(now)), strict=True)
            return [line for i, (a, b) in enumerate(pairs) for line in missing(a, b, f"{at}/{i}")]
        wanted = [item for item in recorded if item != "null"]
        return [] if [item for item in now if item in wanted] == wanted else [f"{at}: {recorded} became {now}"]
    return [] if recorded == now else [f"{at}: {recorded!r} became {now!r}"]


def golden(name: str, now: Any) -> None:
    """Compare with the record of this name; PIXELKILN_RECORD_GOLDEN=1 writes it first."""
    path, now = RECORDS / f"{name}.json", json.loads(json.dumps(now))
    if RECORD:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=0, ensure_ascii=False) + "\n", "utf-8")
    gone = missing(json.loads(path.read_text("utf-8")), now)
    assert gone == [], gone
