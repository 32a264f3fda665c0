"""Values cached between runs by key: small JSON files in the user's cache folder, newest last."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from .events import read_object
from .files import user_cache, write_atomic

TRAINER = Path(__file__).resolve().parents[1]


def _file(name: str) -> Path:
    return user_cache() / f"{name}.json"


def known(name: str) -> dict[str, Any]:
    """All that is cached under a name; empty when there is nothing, or nothing that can be read."""
    return read_object(_file(name))


def remember(name: str, key: str, value: Any, most: int = 300) -> None:
    """Cache a value; the oldest of more than ``most`` go. What cannot be written is computed again next time."""
    values = known(name)
    values.pop(key, None)
    values[key] = value
    newest = dict(list(values.items())[-most:])
    with suppress(OSError):
        _file(name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(name), json.dumps(newest), durable=False)


@cache
def source_digest() -> str:
    """A digest of the trainer's own source files, for the key of what they computed."""
    whole = b"".join(
        path.relative_to(TRAINER).as_posix().encode() + path.read_bytes() for path in sorted(TRAINER.rglob("*.py"))
    )
    return hashlib.sha256(whole).hexdigest()
