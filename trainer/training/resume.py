"""What a resumed run keeps from the run that it continues, whatever its configuration has by default now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..losses.options import MseOptions
from .checkpoint import state_facts

if TYPE_CHECKING:
    from ..config import Config

ONCE_WITH_MSE = {"haar", "focal_frequency"}
"""Latent losses beside which mse was once trained although the configuration did not ask for it."""


def kept_attention(state: str | Path | None) -> dict[str, str] | None:
    """The attention kernel of the run to resume and its device (``Model.attention_facts``): timings, and so the choice,
    differ from start to start. ``state``: as below."""
    return None if state is None else state_facts(Path(state)).get("attention")


def keep_trained_mse(config: Config, state: str | Path | None, report: Callable[[str], None]) -> Config:
    """``config`` with ``[loss.mse]`` added, and one line reported, where the run to resume was given haar or
    focal_frequency alone and trained mse too.

    ``state``: a state's file, the folder of the states, or that of the run; None where nothing is resumed.
    """
    latent = {name for name, options in config.loss.terms().items() if not options.decodes}
    if state is None or not latent or not latent <= ONCE_WITH_MSE:
        return config
    if "mse" not in state_facts(Path(state)).get("objectives", {}):
        return config
    report("loss.mse: added, as this run began with it; set loss.mse.weight = 0 to train without it")
    return config.model_copy(update={"loss": config.loss.model_copy(update={"mse": MseOptions()})})
