"""The answer of ``check --json`` as rows of text, the same on the command line, in the nodes and on the page.

Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .control import gigabytes

Row = tuple[str, str]


def rows(answer: Mapping[str, Any], preset: str = "") -> list[Row]:
    """(label, value) in reading order; figures that the answer lacks are left out.

    ``preset`` is the name of the preset the run starts from: a warning is added where it was made for another family
    or another picture size than the model's.
    """
    model, data = answer.get("model") or {}, answer.get("data") or {}
    found: list[Row] = [("note", str(note)) for note in model.get("notes") or []]
    found.append(
        ("model", f"{model.get('title') or model.get('family', '?')}, predicts {model.get('prediction', '?')}")
    )
    if data:
        held_out = f", {data['held_out']} held out" if data.get("held_out") else ""
        epoch = (
            f", {counted_noun(data['samples_per_epoch'], 'sample')} an epoch" if data.get("samples_per_epoch") else ""
        )
        found.append(("data", f"{data.get('items', '?')} {data.get('kind', '')}".rstrip() + held_out + epoch))
        buckets = ", ".join(f"{b['width']}x{b['height']}: {b['samples']}" for b in data.get("buckets") or [])
        found += [("buckets", buckets)] if buckets else []
    if answer.get("steps"):
        epochs, per_epoch = answer.get("epochs"), data.get("steps_per_epoch")
        length = f" of {counted_noun(per_epoch, 'step')}" if per_epoch else ""
        whole = f" ({counted_noun(round(epochs, 1), 'epoch')}{length})" if epochs else ""
        found.append(("steps", f"{answer['steps']}{whole}"))
    terms = ", ".join(f"{name} ({term['objective']})" for name, term in (answer.get("terms") or {}).items())
    found += [("loss", terms)] if terms else []
    found += [("note", str(note)) for note in answer.get("notes") or []]
    found += fit_rows(answer.get("fit") or {}, answer.get("steps"))
    if adapter := (answer.get("files") or {}).get("adapter"):
        found.append(("writes", adapter + (" (replaces an earlier one)" if answer.get("exists") else "")))
    warnings = [*preset_warnings(preset, answer), *map(str, answer.get("warnings") or [])]
    return [*found, *(("warning", line) for line in warnings)]


def lines(answer: Mapping[str, Any], preset: str = "") -> list[str]:
    """The rows as text, labels in a column of their own."""
    return aligned(rows(answer, preset))


def aligned(found: list[Row]) -> list[str]:
    return [f"{label}: {value}" if label == "warning" else f"{label:<9} {value}".rstrip() for label, value in found]


def fit_rows(fit: Mapping[str, Any], steps: int | None = None) -> list[Row]:
    """Memory and time, and what would make the run fit."""
    if not fit.get("gb"):
        return []
    verdict = "it fits" if fit.get("fits", True) else "it does NOT fit"
    free = f" of {gigabytes(fit['of_gb'])} free on {fit.get('card', 'the GPU')}" if fit.get("of_gb") else ""
    precision = f", {fit['precision']}" if fit.get("precision") else ""
    found: list[Row] = [("memory", f"{gigabytes(fit['gb'])} GB{free}{precision}: {verdict}")]
    parts = ", ".join(f"{name} {gigabytes(gb)}" for name, gb in (fit.get("parts") or {}).items() if gb >= 0.005)
    found += [("", f"at its peak ({fit.get('at', '?')}): {parts}")] if parts else []
    phases = ", ".join(f"{one['name']} {gigabytes(one['gb'])}" for one in fit.get("phases") or [])
    found += [("", f"by phase: {phases}")] if phases else []
    found += [(label, line) for label, line in zip(("plan", "", ""), (fit.get("plan") or {}).get("lines") or [])]
    found.append(("time", _time(fit, steps)))
    if fit.get("computing", 0) > 1:
        found.append(("compute", f"{fit['computing']:.2f}x a latent-only step, on average"))
    for number, one in enumerate(fit.get("remedies") or [], 1):
        end = "fits" if one.get("fits", True) else "not enough alone"
        cost = f" ({one['cost']})" if one.get("cost") else ""
        options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in one["changes"].items())
        found.append(
            (f"remedy {number}", f"{one['label']}{cost}: {gigabytes(one['gb'])} GB, {end}; options: {options}")
        )
    return found


def _time(fit: Mapping[str, Any], steps: int | None) -> str:
    source, (low, high) = fit.get("pace", "unknown"), _per_step(fit)
    known = [text] if steps and (text := duration(fit, steps)) else []
    known += [f"{low:.2g} to {high:.2g} s a step" if high > low else f"{low:.2f} s a step"] if high else []
    return f"{', '.join(known)} ({source})" if known else f"unknown: {source}"


def _per_step(fit: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of a step, the least and the most; zeros where they are not known."""
    one, both = fit.get("seconds_per_step"), fit.get("seconds_per_step_range")
    return (one, one) if one else (both[0], both[1]) if both else (0.0, 0.0)


def duration(fit: Mapping[str, Any], steps: int) -> str:
    """How long a run of so many steps takes, with its caches and previews: ``about 2 min 5 s`` from remembered steps,
    ``12 to 40 min`` before any; empty where nothing is known. Whoever tells a person a run's time asks here."""
    low, high = _per_step(fit)
    if not high:
        return ""
    beside = fit.get("seconds_beside") or (0.0, 0.0)
    return span(low * steps + beside[0], high * steps + beside[1])


def span(low: float, high: float) -> str:
    """``about 3 min 20 s`` where both are the same, else ``12 to 40 min``, in the unit of the longer one."""
    if high <= low:
        return f"about {clock(max(low, 1))}"
    unit, name = (1, "s") if high < 90 else (60, "min") if high < 90 * 60 else (3600, "h")
    return f"{_short(low / unit)} to {_short(high / unit)} {name}"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 9.5 else f"{number:.1f}".removesuffix(".0")


def preset_warnings(preset: str, answer: Mapping[str, Any]) -> list[str]:
    """What a preset does not suit. Its name begins with the family that it was made for (``sdxl-style-12gb``), as the
    answer's table of families says."""
    model = answer.get("model") or {}
    family, title = str(model.get("family", "")), model.get("title") or model.get("family")
    made_for, dash, _ = preset.partition("-")
    found = []
    families = model.get("presets") or {}
    if dash and made_for in families.values() and family in families and families[family] != made_for:
        found.append(f"the preset {preset} was made for {made_for}, this model is {title}; choose one for {family}")
    size, native = answer.get("resolution"), model.get("resolution")
    side = min(size) if isinstance(size, (list, tuple)) and size else size
    if isinstance(side, int) and isinstance(native, int) and side * 2 <= native:
        found.append(
            f"the resolution is {side}, {title} was trained at {native}: most of what it can draw is lost; choose a "
            f"preset for {family}, or set the resolution"
        )
    return found


def counted_noun(count: float, noun: str) -> str:
    """``1 step``, ``2 steps``, ``1.5 epochs``; the plural is the noun with an s."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def clock(seconds: float | None) -> str:
    """``2 h 5 min``, ``3 min 20 s`` or ``12 s``; empty for None, a negative or a non-finite number."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
