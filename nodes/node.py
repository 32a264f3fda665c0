"""What a node is. One table serves both faces: ComfyUI's V3 schema (``v3.py``) and the older V1 classes (``v1.py``)."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..trainer.errors import UserError

Options = Sequence[str] | Callable[[], Sequence[str]]
PRESET = "as in the preset"


@dataclass(frozen=True)
class In:
    """An input. ``kind`` is ComfyUI's type: MODEL, IMAGE, STRING, INT, FLOAT, BOOLEAN, COMBO."""

    name: str
    kind: str
    tip: str
    default: Any = None
    options: Options = ()
    """Of a COMBO; a function is asked again whenever the page asks for the nodes, so new files appear."""
    unset: float | None = None
    """Of a number that may be left to the preset: the value that says so where there is no text widget, and in
    workflows saved before there was one. Elsewhere the widget is a text that reads PRESET."""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    optional: bool = False
    socket: bool = False
    """Only a link may feed it: it has no widget."""
    multiline: bool = False
    advanced: bool = False
    grows: str = ""
    """Sockets of one such name appear one after another as they are linked, where ComfyUI can do that (Autogrow)."""

    def number(self, value: float | str | None) -> float | None:
        """What a number's widget or link gives; None where it is left to the preset. UserError for anything else."""
        text = str("" if value is None else value).strip()
        if text.lower() in ("", PRESET):
            return None
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        whole = self.kind == "INT"
        if not math.isfinite(found) or (whole and found != int(found)):
            example = "20" if whole else "0.0001 or 1e-4"
            kind = "whole number" if whole else "number"
            raise UserError(f"{self.name}: '{text}' is no {kind}; write for example {example}, or '{PRESET}'")
        if found == self.unset:
            return None
        low, high = self.low if self.low is not None else -math.inf, self.high if self.high is not None else math.inf
        if not low <= found <= high:
            raise UserError(f"{self.name}: {text} is out of range; write a number from {low:g} to {high:g}")
        return int(found) if whole else found

    def choices(self) -> list[str]:
        return list(self.options() if callable(self.options) else self.options)


@dataclass(frozen=True)
class Out:
    """An output; a ``many`` one is a list, and what follows runs once per item."""

    name: str
    kind: str
    tip: str
    many: bool = False


@dataclass(frozen=True)
class Result:
    """What a node gives, in the order of its outputs, and what the page shows on the node."""

    values: tuple[Any, ...] = ()
    ui: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """``run(**inputs) -> Result``. ``id`` is stored in workflows and never changes."""

    id: str
    name: str
    about: str
    run: Callable[..., Result]
    inputs: tuple[In, ...]
    outputs: tuple[Out, ...] = ()
    group: str = ""
    """Below the pack's own category."""
    aliases: tuple[str, ...] = ()
    fingerprint: Callable[..., Any] | None = None
    """Of the inputs; the node runs again when its answer changes. Linked inputs are None here."""
    check: Callable[..., None] | None = None
    """Raises ValueError before anything runs. Its parameters name the inputs that it looks at, and for those ComfyUI's
    own range and list checks are off. Linked inputs are None here."""
    output: bool = False
    """The queue runs it even when nothing follows."""
    whole_lists: bool = False
    """It receives every input as a list, once."""
    knows_graph: bool = False
    """``run`` also gets ``graph`` (the prompt being executed) and ``node_id``."""

    @property
    def category(self) -> str:
        return f"Pixelkiln/{self.group}" if self.group else "Pixelkiln"


def never_same(**inputs: Any) -> str:
    """A fingerprint like no other, of what cannot be known beforehand: the node runs each time."""
    return os.urandom(8).hex()


def validator(check: Callable[..., None]) -> Callable[..., bool | str]:
    """A check as ComfyUI's class method: True, or the message that the node shows.

    ComfyUI reads the parameters' names from the signature; with ``**inputs`` in it all built-in checks would be off.
    """

    known = inspect.signature(check).parameters

    def validate(cls: type, **inputs: Any) -> bool | str:
        # Sockets that grow come along unasked.
        try:
            check(**{name: value for name, value in inputs.items() if name in known})
        except UserError as error:
            return str(error)
        return True

    first = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([first, *known.values()])
    setattr(validate, "__signature__", signature)  # noqa: B010 (a function's type does not name it)
    return validate
