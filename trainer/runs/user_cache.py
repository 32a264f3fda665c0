"""What this machine remembers between runs, by key: small JSON files in the user's cache folder, newest last."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import user_cache, write_atomic


def _file(name: str) -> Path:
    return user_cache() / f"{name}.json"


def known(name: str) -> dict[str, Any]:
    """All that is remembered under a name; empty when there is nothing, or nothing that can be read."""
    try:
        found = json.loads(_file(name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(name: str, key: str, value: Any, most: int = 300) -> None:
    """Only a convenience: what cannot be written is found out again next time."""
    kept = known(name)
    kept.pop(key, None)
    kept[key] = value
    newest = dict(list(kept.items())[-most:])
    with suppress(OSError):
        _file(name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(name), json.dumps(newest), durable=False)
