"""What every screen shares: how events are wired, how errors are shown, small pieces of HTML."""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from ..trainer.errors import UserError
from ..trainer.runs import control
from . import draft, fields, hosts, words
from .draft import Problem
from .security import Addresses, Folders
from .store import Home

P = ParamSpec("P")
T = TypeVar("T")
Choice = TypeVar("Choice", gr.Dropdown, gr.Radio)

EVENT: dict[str, Any] = {
    "api_visibility": "private", "show_progress": "hidden", "show_progress_on": [], "concurrency_limit": None,
}  # fmt: skip
"""For every event: not offered as an API, no overlay while it works. At each message of an event gradio's page writes
the status of every component on which any event has ever shown progress, also when it is hidden, and searches its whole
tree for each of them: nothing on the page has one, but for the few places where ``SLOW`` shows it."""
SLOW: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "concurrency_limit": None}
"""As ``EVENT``, with a sign of work at its outputs: few, or ``show_progress_on`` says at which."""

FLAG = r"(?:with|use|give|without|by)?\s*--[a-z][\w.-]*(?:[ =](?:[A-Z]+|[\w./-]+))?"
"""A command-line flag in a message, with the word before it and its value."""
RENDER: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 1, "concurrency_id": "render"}
"""For what builds parts of the page again: one after another, since gradio keeps them in one table without a lock."""


@dataclass(frozen=True)
class Context:
    """What the screens work with."""

    home: Home
    addresses: Addresses
    folders: Folders

    def recipe(self) -> dict[str, Any]:
        """What the recipe says with its preset."""
        return draft.values(draft.read(self.home), self.folders)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Set keys of the recipe."""
        draft.change(self.home, changes, self.folders)


@dataclass
class Screen:
    """A built screen: what brings it up to date, and what that fills."""

    show: Callable[..., Any]
    outputs: list[Any]
    inputs: list[Any] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


def kindly(function: Callable[P, T]) -> Callable[P, T]:
    """A person's mistake, or a disk's, becomes one line on the page, and nothing else changes. A programming mistake
    becomes a general line there, and a traceback in the server's log."""

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            line = str(error)
        except OSError as error:
            line = words.DISK_FAILED.format(error.filename or words.NO_FILE, error.strerror)
        except gr.Error:
            raise
        except Exception:
            traceback.print_exc()
            line = words.INTERNAL_ERROR
        raise gr.Error(escape(fields.labelled(line)), duration=12, print_exception=False)

    return inner


def in_place(function: Callable[P, Any], outputs: Sequence[Any], at: int = -1) -> Callable[P, Any]:
    """As ``kindly``, but the error's line is shown in ``outputs[at]`` and not as a toast, until the next answer; the
    other outputs stay as they are. An answer that is one short ends in an empty line; None is an answer to no output.
    A result is shown at the same place: the answer then has its line, made by ``success``. A generator's answers are
    taken one by one."""

    def whole(answer: Any) -> Any:
        found = [] if answer is None else answer if isinstance(answer, list) else [answer]
        found = [*found, ""] if len(found) < len(outputs) else found
        return found[0] if len(outputs) == 1 else found

    def wrong(error: gr.Error) -> Any:
        shown: list[Any] = [gr.skip()] * len(outputs)
        shown[at] = alert(unescape(error.message))
        return whole(shown)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def each(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            answers = function(*args, **kwargs)
            step = kindly(lambda: next(answers, answers))
            try:
                while (answer := step()) is not answers:
                    yield whole(answer)
            except gr.Error as error:
                yield wrong(error)

        return each
    guarded = kindly(function)

    @functools.wraps(function)
    def once(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return whole(guarded(*args, **kwargs))
        except gr.Error as error:
            return wrong(error)

    return once


def alert(line: str) -> str:
    """The line of an error, to show where it arose; screen readers announce it."""
    return f'<p class="note bad" role="alert">{escape(line)}</p>'


def success(line: str) -> str:
    """The line of what an action did, to show where the action is; screen readers announce it."""
    return f'<p class="note good" role="status">{escape(line)}</p>'


CHANGING: set[str] = set()
"""The ids of lists whose choices come and go."""


def changing(component: Choice) -> Choice:
    """A list whose choices come and go. What was chosen may have left it on its way to the server, as when runs change
    between two looks: gradio's own check would end that in a traceback, and what receives it knows what is there."""
    any_list: Any = component
    assert any_list.elem_id, "it is known by its id, as gradio makes it anew with each new list of choices"
    CHANGING.add(any_list.elem_id)
    return component


def _unchecked(checked: Any) -> Any:
    return lambda self, payload: payload if self.elem_id in CHANGING else checked(self, payload)


for _kind in (gr.Dropdown, gr.Radio):
    _kind.preprocess = _unchecked(_kind.preprocess)


def newest(context: Context, show: Callable[P, T]) -> Callable[P, T]:
    """``show``, made again where the recipe changed while it was made: a click on a page that still loads is not
    overwritten by the older screen, whose answer comes last."""

    def text() -> bytes:
        return context.home.draft.read_bytes() if context.home.draft.exists() else b""

    @functools.wraps(show)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            before = text()
            made = show(*args, **kwargs)
            if text() == before:
                return made

    return inner


def note(text: str, kind: str = "quiet") -> str:
    """A line of text, with options by their labels; kind: quiet, good, warn, bad."""
    return f'<p class="note {kind}">{escape(fields.labelled(text))}</p>' if text else ""


def notes(lines: list[str], kind: str = "quiet") -> str:
    return "".join(note(line, kind) for line in lines)


def problem_list(problems: list[Problem]) -> str:
    rows = "".join(
        f"<li>{option(one.where)} {options_in(one.what)}</li>" if one.where else f"<li>{options_in(one.what)}</li>"
        for one in problems
    )
    return f'<div role="alert"><ul class="problems">{rows}</ul></div>' if rows else ""


def option(where: str) -> str:
    """A place in the recipe as the page calls it, a button that brings its field into view, and its key, which the text
    of the recipe has; the key alone where the page shows no such field."""
    key, name = fields.option_at(where), escape(fields.title(where))
    if key:
        name = f'<button type="button" class="goto" data-option="{escape(key)}">{name}</button>'
    return f"{name} <code>{escape(where)}</code>".lstrip()


def options_in(text: str) -> str:
    """A sentence as HTML, with ``option`` in the place of each key that it names."""
    return fields.labelled(escape(text), option)


def plain_message(text: str) -> str:
    """A message of the trainer without its command-line flags: the page has buttons for them."""
    return re.sub(FLAG, "", text).strip()


def bar(part: float, text: str, kind: str = "", label: str = "") -> str:
    """How much of a whole; ``part`` from 0 to 1. Kind: over, when it is more than there is."""
    width = max(0.0, min(1.0, part)) * 100
    return (
        f'<div class="bar {kind}" role="progressbar" aria-label="{escape(label or words.PROGRESS)}" '
        f'aria-valuenow="{width:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<span style="width:{width:.1f}%"></span></div><p class="note">{escape(text)}</p>'
    )


def facts(rows: list[tuple[str, Any]]) -> str:
    """A small table of names and values."""
    shown = [(escape(name), escape(str(value))) for name, value in rows if value not in (None, "")]
    cells = "".join(
        f"<div><dt>{name}</dt><dd{' class=long' if len(value) > 30 else ''}>{value}</dd></div>" for name, value in shown
    )
    return f'<dl class="facts">{cells}</dl>' if cells else ""


def grid(heads: list[str], rows: str) -> str:
    """Pictures in a table: ``heads`` over its columns, ``rows`` as HTML; fewer columns, larger pictures."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    return (
        f'<div class="grid" style="--columns: {len(heads)}"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def folder_of(home: Home, name: str | None) -> Path:
    """A run's folder, by a name that a list gave out. UserError for any other, and where none is chosen."""
    if not name:
        raise UserError(words.NO_RUN_CHOSEN)
    found = next((one.path for one in control.list_runs(home.runs) if one.name == name), None)
    if found is None:
        raise UserError(words.NO_RUN.format(name))
    return found


def choice_buttons(prefix: str) -> dict[str, gr.Button]:
    """The answers under two pictures, each with its key."""
    made: dict[str, gr.Button] = {}
    with gr.Row(elem_classes="tight keys"):
        for name, text in words.CHOICES.items():
            made[name] = gr.Button(text, elem_id=f"{prefix}-{name}", min_width=80)
        zoom = gr.Button(words.ZOOM, elem_id=f"{prefix}-zoom", min_width=80)
    zoom.click(None, None, None, js="() => window.dispatchEvent(new Event('zoom-duel'))", **EVENT)
    return made


def about(seconds: float) -> str:
    """A time that is only estimated, in words: ``40 s``, ``6 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def lora_hosts(home: Home) -> list[hosts.Host]:
    return [host for host in hosts.find(home) if host.loras]
