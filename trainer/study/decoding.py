"""The pixel loss in a study: a further run decodes by what an earlier one settled, whatever the user's cache holds."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config, load
from ..losses.options import PixelOptions
from ..runs.folder import RunFolder
from ..training.surrogates import PLANS

Begun = tuple[Config, RunFolder]
"""A run of the study, as it was configured, and its folder."""


def as_begun(config: Config, same: Sequence[RunFolder], others: Sequence[Begun]) -> Config:
    """A run's configuration with the decode plan, the share and the surrogate of the runs that began before it.

    same: folders of runs of its arm, which settle the plan; others: runs of all arms, of which one with the same
    model, precision and mode has its surrogate. What the configuration sets is left alone.
    """
    changes = {}
    for name, options in config.loss.terms().items():
        if not isinstance(options, PixelOptions) or options.decode not in ("auto", *PLANS):
            continue
        settled = next((found for folder in same if (found := _settled(folder, name))), options)
        if options.decode == "auto":
            changes[f"loss.{name}.decode"] = settled.decode
        share = options.corrected_share or settled.corrected_share
        if settled.decode == "corrected" and share:
            changes[f"loss.{name}.corrected_share"] = share
        if settled.decode in ("auto", *PLANS) and options.surrogate is None:
            file = next((folder.surrogate for other, folder in others if _alike(config, other, name)
                         and folder.surrogate.exists()), None)  # fmt: skip
            if file is not None:
                changes[f"loss.{name}.surrogate"] = str(file.absolute())
    return config.changed(changes) if changes else config


def _settled(folder: RunFolder, name: str) -> PixelOptions | None:
    """A pixel term as a run resolved it at its start; None where it has not come so far."""
    found = load(folder.config).loss.terms().get(name) if folder.config.exists() else None
    return found if isinstance(found, PixelOptions) and found.decode != "auto" else None


def _alike(config: Config, other: Config, name: str) -> bool:
    """Whether a surrogate of one run fits the other."""
    mine, theirs = (one.loss.terms().get(name) for one in (config, other))
    return (
        isinstance(mine, PixelOptions) and isinstance(theirs, PixelOptions) and mine.mode == theirs.mode
        and (config.model, config.run.precision) == (other.model, other.run.precision)
    )  # fmt: skip
