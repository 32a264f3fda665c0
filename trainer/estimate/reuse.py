"""Computed once, and kept in the user's cache for as long as the code, the packages and the options are the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from ..optimizers.names import PACKAGES, find
from ..optimizers.options import USES, OptimizerOptions, ScheduleOptions
from ..runs import user_cache

T = TypeVar("T")
RATES = ("learning_rate", "denoiser_lr", "text_encoder_lr")


def once(name: str, key: str | None, compute: Callable[[], T]) -> T:
    """A JSON value that is kept under ``name`` and ``key``, computed where it is not; always without a key. What
    raises is not kept."""
    if key is None:
        return compute()
    if key in (values := user_cache.known(name)):
        return values[key]
    value = compute()
    user_cache.remember(name, key, value)
    return value


def digest(*what: Any) -> str:
    """Of JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]


@cache
def version(package: str) -> str:
    """Of an installed package; empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def optimizer(options: OptimizerOptions, rates: bool = False) -> str | None:
    """A key of the optimizer that these options make; None for a class that may change without a new version, since it
    is of no package that the short names are of.

    ``rates``: also of how large the learning rates are. Otherwise only of whether each is 0, which leaves a group out,
    and of more only where the optimizer refuses rates that differ.
    """
    named = find(options.kind)
    module = named.path.partition(".")[0]
    package = {"torch": "torch", **PACKAGES}.get(module)
    if package is None or not version(package):
        return None
    table = options.recorded_dump()
    if not (rates or named.finds_rate):
        table |= {name: [bool(rate) for rate in value] if isinstance(value, list) else value and bool(value)
                  for name in RATES for value in [table[name]]}  # fmt: skip
    return digest(user_cache.source_digest(), version("torch"), version(package), named.path, table)


def schedule(options: ScheduleOptions, of: OptimizerOptions, total: int) -> str | None:
    """A key of the schedule of ``total`` steps that these options make for an optimizer; None as for ``optimizer``.

    The schedules with a short name multiply the rate, whatever it is, but for polynomial, which ends at a rate.
    """
    if "." in options.kind:
        return None
    key = optimizer(of, rates=options.kind == "polynomial" or options.kind not in USES)
    return key and digest(key, version("diffusers"), version("transformers"), options.recorded_dump(), total)
