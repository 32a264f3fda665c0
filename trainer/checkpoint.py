"""[save]: adapters for hosts, and the rolling state that a run resumes from.

A state is one safetensors file: adapter and optimizer tensors, and a JSON header with everything else. One file is
written aside and renamed, so a kill at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .files import write_atomic
from .registry import Options, option

KEPT_STATES = 2
NO_STATE = "no state to resume from"


class SaveOptions(Options):
    every: int = option(0, kohya="save_every_n_steps", label="Save every (steps)", ge=0)
    """Steps between adapter files; 0 keeps only the final one."""
    every_epochs: int = option(0, kohya="save_every_n_epochs", label="Save every (epochs)", ge=0)
    """Epochs between adapter files."""
    keep_last: int = option(0, kohya="save_last_n_steps", label="Keep the last", ge=0)
    """Delete older adapter files beyond so many; 0 keeps all."""
    state_every: int = option(250, kohya="save_state", label="State every (steps)", ge=0)
    """Steps between rolling states for ``--resume``; 0 keeps one only when the run ends or is stopped."""
    precision: Literal["fp16", "bf16", "fp32"] = option("fp16", kohya="save_precision", label="Saved as")
    """Of the adapter file's tensors."""
    strip: bool = option(False, kohya="no_metadata", label="Leave out tags and folder names")
    """Keep captions' tags and folder names out of the file's metadata: they tell what was trained on."""
    title: str | None = option(None, kohya="metadata_title")
    """Title in the file's metadata; the run's name when not given."""
    author: str | None = option(None, kohya="metadata_author")
    """Author in the file's metadata."""
    description: str | None = option(None, kohya="metadata_description")
    """Description in the file's metadata."""
    license: str | None = option(None, kohya="metadata_license")
    """Licence in the file's metadata."""
    tags: str | None = option(None, kohya="metadata_tags")
    """Tags in the file's metadata, separated by commas."""
    trigger: str | None = option(None, kohya="metadata_trigger_phrase", label="Trigger words")
    """Trigger words in the file's metadata: loaders show them."""
    comment: str | None = option(None, kohya="training_comment")
    """A comment in the file's metadata."""

    @property
    def dtype(self) -> torch.dtype:
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]


# ------------------------------------------------------------------------------------------------------------ states


def state_path(folder: Path, step: int) -> Path:
    return folder / f"step{step:08d}.safetensors"


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path:
    """Write the state of ``step`` and drop all but the last two."""
    from safetensors.torch import save

    header = {"pixelkiln.state": json.dumps({"step": step, **facts})}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = state_path(folder, step)
    write_atomic(path, save(whole, metadata=header))
    for old in states(folder)[:-KEPT_STATES]:
        old.unlink(missing_ok=True)
    return path


def states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted(folder.glob("step????????.safetensors"))


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest readable state: (tensors, facts). ValueError when there is none."""
    from safetensors import SafetensorError, safe_open

    for path in reversed(states(folder)):
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["pixelkiln.state"])
                return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
        except (SafetensorError, KeyError, json.JSONDecodeError, OSError):
            continue
    raise ValueError(f"{folder}: {NO_STATE}; start the run without --resume")


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def prune_checkpoints(folder: Path, keep: int) -> None:
    if keep:
        for old in sorted(folder.glob("*-step????????.safetensors"))[:-keep]:
            old.unlink(missing_ok=True)
