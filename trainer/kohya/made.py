"""What an import has made so far: our options, with where each came from, and what there is to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..config import reference
from .read import Values


@cache
def defaults() -> dict[str, Any]:
    """Option -> its default here."""
    return {f"{row['table']}.{row['name']}": row["default"] for row in reference()}


@dataclass
class Made:
    """Options by their dotted names; ``data.sets`` is a list of tables."""

    options: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Option -> the kohya argument that a problem with it is reported for."""
    comments: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def put(self, option: str, value: Any, values: Values, *names: str, force: bool = False, comment: str = "") -> None:
        """Set an option that comes from these arguments. What is our default anyway is left out, unless given."""
        given = [name for name in names if name in values.given]
        if value is None or (not given and not force and defaults().get(option) == value):
            return
        self.options[option] = value
        self.names[option] = (given or [*names, ""])[0]
        parts = [f"{name} = {shown(values.given[name])}" for name in given]
        if not given and names:
            default = values[names[0]]
            parts = [f"{names[0]} is not given" + ("" if default is None else f"; sd-scripts takes {shown(default)}")]
        self.comments[option] = comment or ", ".join(parts)


def shown(value: Any) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = "[" + ", ".join(map(shown, value)) + "]"
    else:
        text = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:66]} ..."
