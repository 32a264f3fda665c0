"""All pictures of a folder at once, as one piece of HTML: small pictures that the browser loads when they come into
view, each a choice of a list, of which many can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from . import captions, crops, edits, images, tokens, words
from .look import HERE
from .security import Addresses

SIDE = 256
CHOSEN = """(...given) => {
  given[0] = [...document.querySelectorAll("#grid [aria-selected=true]")].map((one) => one.dataset.name).join("/");
  return given;
}"""
"""Puts the names that are chosen in the grid into the first input. No file's name holds a slash."""


@dataclass(frozen=True)
class View:
    """What is known of a folder's pictures."""

    listing: captions.Listing
    texts: Mapping[str, str | None]
    wrong: Mapping[str, list[str]]
    """Short words by picture, also for a caption that is too long."""
    later: int = 0
    """How many are still to be looked at."""
    left_out: tuple[str, ...] = ()
    targets: Mapping[str, Path] = field(default_factory=dict)
    """The map of each picture, in a dense run."""

    def kinds(self) -> dict[str, int]:
        """How many pictures each filter shows; only those that show some."""
        counted: dict[str, int] = {}
        for marks in self.wrong.values():
            for word in {kind(one) for one in marks}:
                counted[word] = counted.get(word, 0) + 1
        order = (
            words.NO_CAPTION, words.CAPTION_UNREADABLE, words.UNREADABLE, words.TOO_LONG_HERE, words.SMALL,
            words.VERY_LARGE, words.DUPLICATE,
        )  # fmt: skip
        known = {one: counted[one] for one in (*order, *sorted(set(counted) - set(order))) if one in counted}
        return known | ({words.LEFT_OUT: len(self.left_out)} if self.left_out else {})

    def kept(self, filtered: str, held: str) -> list[str]:
        """The names that a filter and a search leave. ``held``: words of the caption, or a whole tag in quotes."""
        names = self.left_out if filtered == words.LEFT_OUT else self.listing.pictures
        if filtered in self.kinds() and filtered != words.LEFT_OUT:
            names = [name for name in names if filtered in map(kind, self.wrong.get(name, ()))]
        asked = held.strip().lower()
        if len(asked) > 2 and asked[0] == asked[-1] == '"':
            tag = asked[1:-1].strip()
            return [name for name in names if tag in captions.tags((self.texts.get(name) or "").lower())]
        return [name for name in names if asked in (self.texts.get(name) or "").lower()]


def kind(mark: str) -> str:
    """The filter that a mark belongs to."""
    return words.DUPLICATE if mark.startswith(words.SAME_AS.format("")) else mark


def with_lengths(texts: Mapping[str, str | None], wrong: Mapping[str, list[str]], trigger: str, limit: int) -> Any:
    """The marks, with one for each caption that has more tokens than the text encoder reads."""
    out = {name: list(marks) for name, marks in wrong.items()}
    for name, text in texts.items():
        if text and tokens.count(f"{trigger}, {text}" if trigger else text) > limit:
            out.setdefault(name, []).append(words.TOO_LONG_HERE)
    return out


def component() -> gr.HTML:
    """The grid. Its events: ``select`` when a picture is opened, with ``{name}``."""
    return gr.HTML(elem_id="grid", js_on_load=(HERE / "grid.js").read_text(encoding="utf-8"))


def filters(view: View) -> Any:
    """What can be shown, each with how many pictures that is."""
    choices = [(f"{words.ALL} {len(view.listing.pictures)}", words.ALL)]
    return gr.update(choices=[*choices, *((f"{count} {word}", word) for word, count in view.kinds().items())])


def drawn(view: View, filtered: str, held: str, address: Addresses, rules: crops.Rules | None) -> str:
    """The pictures that a filter and a search leave, as the options of a list; of the class ``aside`` where they are
    those that were left out, which lie in a folder of their own."""
    names, aside = view.kept(filtered, held), filtered == words.LEFT_OUT
    folder = view.listing.folder / edits.LEFT_OUT if aside else view.listing.folder
    if not names:
        return f'<p class="note">{words.NOTHING_HERE}</p>'
    cells = "".join(_cell(number, name, view, folder, address, rules) for number, name in enumerate(names))
    label, classes = words.number(len(names), words.PICTURES), f"pictures{' aside' if aside else ''}"
    return (
        f'<div class="{classes}" role="listbox" aria-multiselectable="true" tabindex="0" aria-label="{label}">'
        f"{cells}</div>"
    )


def _cell(number: int, name: str, view: View, folder: Path, address: Addresses, rules: crops.Rules | None) -> str:
    path, stamp = folder / name, view.listing.stamps.get(name)
    size = images.size_of(str(path), *stamp) if stamp else images.size(path)
    fit = crops.kept(size, rules) if size and rules else None
    frame = crops.drawn(size, fit[1]) if size and fit else ""
    target = view.targets.get(name)
    beside = (
        f'<img class="map" loading="lazy" decoding="async" src="{address.target(target, SIDE)}" '
        f'alt="{escape(words.TARGET_OF.format(name))}">' if target else ""
    )  # fmt: skip
    marks = "".join(f'<span class="mark">{escape(one)}</span>' for one in view.wrong.get(name, ()))
    text = escape((view.texts.get(name) or "")[:140])
    return (
        f'<div class="one{" two" if beside else ""}" role="option" id="picture-{number}" aria-selected="false" '
        f'data-name="{escape(name)}" title="{escape(name)}"><span class="tick" aria-hidden="true"></span>'
        f'<span class="frame"><img loading="lazy" decoding="async" src="{address.url(path, SIDE)}" '
        f'alt="{escape(name)}">{frame}</span>{beside}<span class="text">{text}</span>{marks}</div>'
    )
