"""What the readers of other trainers' files share: a typed look into nested tables, and notes for what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .read import Values, Wrong, number

MISSING = object()


class Source:
    """A foreign configuration on its way into arguments of sd-scripts, and into options where there is no argument."""

    def __init__(self, values: Values, raw: Mapping[str, Any], path: Path):
        self.values, self.raw, self.path = values, raw, path

    def get(self, name: str, default: Any = None) -> Any:
        """A value by its dotted name; the default where it, or a table on the way, is missing or null."""
        at: Any = self.raw
        for piece in name.split("."):
            at = at.get(piece, MISSING) if isinstance(at, Mapping) else MISSING
        return default if at is MISSING or at is None else at

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        try:
            return number(value)
        except Wrong as wrong:
            self.values.problems.append((f"{self.path.name}: {name}", str(wrong)))
            return default

    def on(self, name: str, default: bool = False) -> bool:
        """A switch, also as the texts "ON" and "true"."""
        value = self.get(name, default)
        return value.lower() in ("on", "true", "yes", "cpu_offloaded") if isinstance(value, str) else bool(value)

    def table(self, name: str) -> Mapping[str, Any]:
        value = self.get(name, {})
        return value if isinstance(value, Mapping) else {}

    def rows(self, name: str) -> list[Mapping[str, Any]]:
        """A list of tables; a single table counts as one row."""
        value = self.get(name, [])
        rows = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return [one for one in rows if isinstance(one, Mapping)]

    def set(self, argument: str, value: Any, name: str = "") -> None:
        """An argument, with the name that it has in the file."""
        self.values.set(argument, value, f"{self.path.name}{f', {name}' if name else ''}")

    def option(self, option: str, value: Any) -> None:
        """An option of ours that no argument of sd-scripts says."""
        self.values.options[option] = value

    def note(self, name: str, what: str) -> None:
        self.values.notes.append(f"{self.path.name}: {name}: {what}")

    def left_out(self, *names: str, why: str = "it is not here; left out") -> None:
        """A note for each of these that is given and not empty, zero or off."""
        for name in names:
            value = self.get(name)
            if value not in (None, "", 0, False, [], {}, "NONE", "none"):
                self.note(f"{name} = {value}", why)


def prompt_line(text: str, flags: Mapping[str, Any]) -> str:
    """A prompt with the flags that it has: ``a cat --n blurry --d 7``."""
    words = (f" --{flag} {value}" for flag, value in flags.items() if value not in (None, ""))
    return " ".join(text.split()) + "".join(words)
