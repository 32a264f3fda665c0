"""Names to parts. A part registers itself in its own file; the file is found because it lies in the folder.

>>> @losses.register("mse", MseOptions)
... def build(options, parts): ...
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import core_schema

from .errors import UserError

if TYPE_CHECKING:
    from .losses.options import TermOptions
    from .objectives.options import ObjectiveOptions

PathStr = Annotated[str, "path"]
"""A file or folder. In a file it is relative to that file, as a flag to the current folder; loaded, it is absolute."""


class Choices:
    """In an option's annotation: the texts that it may be, asked for when the option is validated or listed."""

    def __init__(self, names: Callable[[], list[str]]):
        self.names = names

    def check(self, value: str) -> str:
        if value not in self.names():
            raise UserError(f"there is no '{value}'; {nearest(value, self.names())}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


class Options(BaseModel):
    """A table of the configuration. Strict types, unknown keys refused; a field's docstring is its help everywhere."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, validate_default=False
    )

    def recorded_dump(self, **selection: Any) -> dict[str, Any]:
        """As ``model_dump``, under each option's first name: a digest of it outlives a renaming.

        What digests identify (cached references, remembered step times) was recorded under those names.
        """
        first = {name: old for old, name in former_names(type(self)).items()}
        dumped = self.model_dump(**selection)
        for name in dumped:
            if isinstance(value := getattr(self, name), Options):
                assert not selection, "a selection within tables is not passed on"
                dumped[name] = value.recorded_dump()
        return {first.get(name, name): value for name, value in dumped.items()}


def option(
    default: Any = ...,
    *,
    kohya: str | None = None,
    label: str | None = None,
    formerly: str | None = None,
    **bounds: Any,
) -> Any:
    """A field of an ``Options``: its default, kohya's name for it, the form's label, pydantic bounds (ge, lt, ...).

    ``formerly`` is the name that the option had before a renaming; it is accepted wherever options are read.
    """
    given = (("kohya", kohya), ("label", label), ("formerly", formerly))
    extra: dict[str, Any] = {key: value for key, value in given if value is not None}
    return Field(default, json_schema_extra=extra or None, **bounds)


@cache
def former_names(table: type[Options]) -> dict[str, str]:
    """Former name -> today's name, of the options of a table that were renamed."""
    extras = {name: info.json_schema_extra for name, info in table.model_fields.items()}
    return {str(e["formerly"]): name for name, e in extras.items() if isinstance(e, dict) and "formerly" in e}


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Entry(Generic[OptionsT]):
    """One registered part: its name, its options model, and what builds it."""

    name: str
    options: type[OptionsT]
    build: Callable[..., Any]


class Registry(Generic[OptionsT]):
    """The parts of one folder of ``trainer/``, loaded when first asked for."""

    def __init__(self, folder: str):
        self.folder = folder
        self._entries: dict[str, Entry[OptionsT]] = {}
        self._loaded = False

    def register(self, name: str, options: type[OptionsT]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def add(build: Callable[..., Any]) -> Callable[..., Any]:
            assert name not in self._entries, f"{self.folder}: {name} is registered twice"
            self._entries[name] = Entry(name, options, build)
            return build

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = f"{__package__}.{self.folder}"
        for module in pkgutil.iter_modules([str(Path(__file__).parent / self.folder)]):
            importlib.import_module(f"{package}.{module.name}")

    def tables(self) -> dict[str, type[OptionsT]]:
        """Name -> options of every part, sorted: what the folder's ``options.py`` lists, and what other packages have
        registered. Nothing that builds them is imported, so a configuration is read without torch."""
        own = importlib.import_module(f"{__package__}.{self.folder}.options").TABLES
        return dict(sorted({**own, **{entry.name: entry.options for entry in self.registered_so_far()}}.items()))

    def registered_so_far(self) -> list[Entry[OptionsT]]:
        """The parts that have registered themselves, before the folder's own are loaded perhaps none."""
        return list(self._entries.values())

    def __iter__(self) -> Iterator[Entry[OptionsT]]:
        self._load()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        return [entry.name for entry in self]

    def __getitem__(self, name: str) -> Entry[OptionsT]:
        self._load()
        if name not in self._entries:
            raise UserError(f"{self.folder}: there is no '{name}'; {nearest(name, self.names())}")
        return self._entries[name]


def nearest(name: str, known: list[str]) -> str:
    """'did you mean ...?' or the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"there is: {', '.join(known)}"


families: Registry[Options] = Registry("families")
losses: Registry[TermOptions] = Registry("losses")
objectives: Registry[ObjectiveOptions] = Registry("objectives")
