"""In which language the page speaks. ``words.py`` is the table in English, ``words_de.py`` has the same names in
German; code says ``words.OPEN`` and gets the language of the page that asks.

A page is built once for each language, since its labels are part of what is built, and each is served at an address of
its own. What an event says follows from the page that it came from, so two visitors, or two windows, may differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import Any

PATHS = {"en": "/", "de": "/de"}
"""The address of each language's page; the first answers whoever asks for none of them."""
COOKIE = "pixelkiln-language"
"""Keeps what was chosen at the page, before what the browser asks for."""
_building: ContextVar[str] = ContextVar("language", default="en")


class Table(ModuleType):
    """A module of words in English whose constants are read in the language that is spoken."""

    def __getattribute__(self, name: str) -> Any:
        if name.isupper() and (language := spoken()) != "en":
            return getattr(import_module(f"{self.__name__}_{language}"), name, super().__getattribute__(name))
        return super().__getattribute__(name)


def spoken() -> str:
    """The language of the page whose event is worked on, else of the one that is being built."""
    events = sys.modules.get("gradio.context")  # nothing is spoken for an event before gradio is imported
    blocks = events and events.LocalContext.blocks.get(None)
    return getattr(blocks, "spoken", None) or _building.get()


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """What is built within speaks this language."""
    before = _building.set(language)
    try:
        yield
    finally:
        _building.reset(before)


def wanted(headers: Mapping[str, str]) -> str:
    """The language for who asks for no page of its own: what was chosen, else the first that the browser's
    ``Accept-Language`` names and there is (RFC 9110, section 12.5.4: by weight, then by order)."""
    parts = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    cookies = {name: value for name, _, value in parts}
    if cookies.get(COOKIE) in PATHS:
        return cookies[COOKIE]
    asked: list[tuple[float, str]] = []
    for part in headers.get("accept-language", "").split(","):
        name, _, weight = part.strip().lower().partition(";q=")
        try:
            asked.append((-float(weight or 1), name.partition("-")[0]))
        except ValueError:
            continue
    return next((name for weight, name in sorted(asked, key=lambda one: one[0]) if name in PATHS and weight), "en")
