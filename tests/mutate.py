"""A seeded mutator: files and texts damaged as disks, downloads and people damage them, and a little worse."""

from __future__ import annotations

import json
import pickle
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

ODD_VALUES = [
    "nan", "inf", "-inf", "1e400", "-1", "0", "99999999999999999999", "-0.0", '""', "[]", "{}", "true", '"\\u0000"',
    '"../../../etc"', '"' + "x" * 5000 + '"', "[[[[[[[[[[]]]]]]]]]]", "1979-05-27T07:32:00Z", '"auto"', "[1, 2, 3]",
    '["", 1]', '"🦀"', '{a = 1}', "4", "0.5", "'''", '"\\', "=", "[x]",
]  # fmt: skip
ODD_JSON: list[Any] = [
    None, -1, 0, 2**63, 2**31, 1e308, float("nan"), "", "x" * 300, [], {}, [[]], True, "F99", [2**40, 2**40], [-1],
    "🦀",
]  # fmt: skip


def bytes_of(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A file with a few things wrong."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(made) + 1)
        size = rng.choice((1, 4, 8, 64, 1000))
        match rng.randrange(8):
            case 0:
                del made[at:]
            case 1:
                del made[at : at + size]
            case 2:
                made[at : at + size] = rng.randbytes(size)
            case 3:
                made[at:at] = rng.randbytes(size)
            case 4:
                made[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**63, 2**64 - 1, 2**31, len(data))))
            case 5:
                made[at:at] = made[: rng.randrange(200)]
            case 6 if others:
                other = rng.choice(others)
                made[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                for place in range(at, min(at + size, len(made))):
                    made[place] ^= 1 << rng.randrange(8)
    return bytes(made)


def text_of(rng: random.Random, text: str) -> bytes:
    """TOML, JSON lines or captions with a few things wrong."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(lines))
        key, sign, _value = lines[at].partition("=")
        match rng.randrange(9):
            case 0 | 1 | 2 if sign:
                lines[at] = f"{key}= {rng.choice(ODD_VALUES)}"
            case 3:
                lines.insert(at, rng.choice(lines))
            case 4:
                lines.pop(at) if len(lines) > 1 else None
            case 5:
                lines[at] = re.sub(r"\w", lambda m: rng.choice("aZ09_.é") if rng.random() < 0.2 else m[0], lines[at])
            case 6:
                lines[at] += rng.choice(("\0", "\r", "#", '"', "\x1b[2J", "[", "]", "{", "\u202e"))
            case 7:
                lines[at] = f"[{key.strip(' []') or 'x'}.{rng.choice(('kind', 'a.b', '', '0'))}]"
            case _:
                lines[at] = rng.choice(("", "[run]", "[[data.sets]]", "x = " + rng.choice(ODD_VALUES), "[" * 3000))
    data = "\n".join(lines).encode("utf-8", "replace")
    return bytes_of(rng, data) if rng.random() < 0.15 else data


def header_of(rng: random.Random, data: bytes) -> bytes:
    """A .safetensors whose header says something else than its tensors are."""
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 3))):
        table = _json_of(rng, table)
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _json_of(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _json_of(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], _json_of(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8, 2**33))
    return rng.choice(ODD_JSON)


def rows_of(rng: random.Random, text: str) -> bytes:
    """JSON lines whose rows say odd things."""
    rows = [json.loads(line) for line in text.splitlines()]
    at = rng.randrange(len(rows))
    rows[at] = _json_of(rng, rows[at])
    return "\n".join(json.dumps(row) for row in rows).encode()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (self.path, "w"))


def armed(marker: str, *values: Any) -> bytes:
    """A pickle that executes when it is loaded."""
    return pickle.dumps([Touch(marker), *values], protocol=2)
