"""[save]: adapter files for hosts, and the rolling state that a run resumes from.

A state is one safetensors file: adapter and optimizer tensors, and a JSON header with everything else. One file is
written aside and renamed, so a kill at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import base64
import glob
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..registry import Options, PathStr, option
from ..runs.files import write_atomic

NO_STATE = "no state to resume from"


class SaveOptions(Options):
    every: int = option(0, kohya="save_every_n_steps", label="Save every (steps)", ge=0)
    """Steps between adapter files, ``<name>-step00000100.safetensors``; 0 keeps only the final one."""
    every_epochs: int = option(0, kohya="save_every_n_epochs", label="Save every (epochs)", ge=0)
    """Epochs between adapter files, ``<name>-000001.safetensors``."""
    times: int = option(0, kohya="save_n_epoch_ratio", label="Number of files (about)", ge=0)
    """Save at the ends of epochs, about this often over the run, instead of ``every_epochs``."""
    keep_last: int = option(0, label="Keep at most N step checkpoints", ge=0)
    """Keep this many of the latest adapter files of steps and delete older ones; 0 keeps all."""
    keep_last_steps: int = option(0, kohya="save_last_n_steps", label="Keep checkpoints of the last N steps", ge=0)
    """Delete adapter files of steps that are more steps old than this; 0 keeps all."""
    keep_last_epochs: int = option(0, kohya="save_last_n_epochs", label="Keep at most N epoch checkpoints", ge=0)
    """Keep this many of the latest adapter files of epochs and delete older ones; 0 keeps all."""
    state_every: int = option(250, label="State every (steps)", ge=0)
    """Steps between rolling states for ``--resume``; 0 keeps one only when the run ends or is stopped."""
    state_with_files: bool = option(False, kohya="save_state", label="State with every file")
    """Keep a state with every adapter file too."""
    keep_states: int = option(2, kohya="save_last_n_epochs_state", label="Keep at most N states", ge=0)
    """Keep this many of the latest states and delete older ones; 0 keeps all."""
    keep_states_steps: int = option(0, kohya="save_last_n_steps_state", label="Keep states of the last N steps", ge=0)
    """Delete states that are more steps old than this; 0 goes by ``keep_states`` alone."""
    ema: float = option(0.0, label="Moving average of the weights (EMA)", ge=0, lt=1)
    """Also keep a moving average of the weights with this decay, 0.99 to 0.9999, and save it beside every adapter file
    as NAME-ema.safetensors; 0 is off. Previews and validation show the trained adapter, not the average."""
    precision: Literal["fp16", "bf16", "fp32"] = option("fp16", kohya="save_precision", label="Saved as")
    """Of the adapter file's tensors."""
    strip: bool = option(False, label="Strip tags and folder names")
    """Keep captions' tags and folder names out of the file's metadata: they tell what was trained on."""
    minimal: bool = option(False, kohya="no_metadata", label="Minimal metadata")
    """Write only what loaders need: the base model's kind, the adapter's kind, rank and alpha, hashes and title."""
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
    usage_hint: str | None = option(None, kohya="metadata_usage_hint")
    """How to use the adapter, in the file's metadata."""
    thumbnail: PathStr | None = option(None, kohya="metadata_thumbnail", label="Thumbnail")
    """A picture in the file's metadata: the path of a small JPEG, PNG or WebP, or a data URL."""
    merged_from: str | None = option(None, kohya="metadata_merged_from")
    """What it was merged from, in the file's metadata."""
    preprocessor: str | None = option(None, kohya="metadata_preprocessor")
    """The preprocessor its input needs, in the file's metadata."""
    is_negative_embedding: str | None = option(None, kohya="metadata_is_negative_embedding")
    """Whether it is for negative prompts, in the file's metadata."""

    @property
    def dtype(self) -> torch.dtype:
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]


def thumbnail(options: SaveOptions) -> str | None:
    """The thumbnail as a data URL. ValueError when it is no picture of a kind that a URL may hold."""
    given = options.thumbnail
    if given is None or given.startswith("data:"):
        return given
    kind = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}.get(Path(given).suffix.lower())
    if kind is None:
        raise UserError(f"save.thumbnail: {given} is no JPEG, PNG or WebP; give the path of one, or a data URL")
    try:
        return f"data:image/{kind};base64,{base64.b64encode(Path(given).read_bytes()).decode()}"
    except OSError as error:
        raise UserError(f"save.thumbnail: {given} cannot be read ({error.strerror}); check the path") from None


# ------------------------------------------------------------------------------------------------------------ states


def state_path(folder: Path, step: int) -> Path:
    return folder / f"step{step:08d}.safetensors"


def save_state(
    folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int = 2, keep_steps: int = 0
) -> Path:
    """Write the state of ``step`` and drop all but the last ``keep`` (0: none), and those over ``keep_steps`` old."""
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"step": step, **facts})
    header = {"pixelkiln.state": text, "pixelkiln.crc": _crc(text, whole)}
    path = state_path(folder, step)
    write_atomic(path, save(whole, metadata=header))
    _prune(states(folder), keep, keep_steps)
    return path


def states(folder: Path) -> list[Path]:
    """The states of a run, oldest first. ``folder`` may also be a state's file, or the folder of the run."""
    if folder.is_file():
        return [folder]
    folder = folder / "state" if (folder / "state").is_dir() else folder
    return sorted(folder.glob("step????????.safetensors"))


def load_state(folder: Path, before: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest whole state, of a step below ``before``: (tensors, facts). ``facts["damaged"]`` names newer ones that
    are not whole. ValueError when there is none."""
    damaged = []
    for path in reversed(states(folder)):
        if before is not None and path >= state_path(folder, before):
            continue
        if (found := _read(path)) is not None:
            return found[0], {**found[1], "damaged": damaged}
        damaged.append(path.name)
    named = f" ({', '.join(damaged)}: damaged)" if damaged else ""
    if folder.is_file():
        raise UserError(f"run.resume_from: {folder} is no whole state; for an adapter file there is adapter.init_from")
    raise UserError(f"{folder}: {NO_STATE}{named}; start the run without --resume")


def state_facts(folder: Path) -> dict[str, Any]:
    """The facts of the newest state whose header can be read, without its tensors; {} where there is none."""
    from safetensors import SafetensorError, safe_open

    for path in reversed(states(folder)):
        try:
            with safe_open(path, "pt") as file:
                return json.loads((file.metadata() or {})["pixelkiln.state"])
        except (SafetensorError, KeyError, ValueError, OSError):
            continue
    return {}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A state, or None when it is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = header["pixelkiln.crc"] == _crc(header["pixelkiln.state"], tensors)
        return (tensors, json.loads(header["pixelkiln.state"])) if whole else None
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        return None


def _crc(text: str, tensors: dict[str, Tensor]) -> str:
    found = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return str(found)


def drop_after(folder: Path, step: int) -> None:
    """Remove the states of later steps, which a run that went back will not reach in this way."""
    for path in states(folder):
        if path > state_path(folder, step):
            path.unlink(missing_ok=True)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def prune_checkpoints(folder: Path, name: str, options: SaveOptions) -> None:
    """Delete the adapter files of a run that are too many or too old."""
    literal = glob.escape(name)
    _prune(sorted(folder.glob(f"{literal}-step????????.safetensors")), options.keep_last, options.keep_last_steps)
    _prune(sorted(folder.glob(f"{literal}-??????.safetensors")), options.keep_last_epochs)


def _prune(files: list[Path], keep: int, keep_steps: int = 0) -> None:
    """``files`` oldest first, each with its step in the last 8 digits of its name."""
    old = files[:-keep] if keep else []
    if keep_steps:
        old += [path for path in files if int(path.stem[-8:]) < int(files[-1].stem[-8:]) - keep_steps]
    for path in dict.fromkeys(old):
        path.unlink(missing_ok=True)
        averaged(path).unlink(missing_ok=True)


def averaged(path: Path) -> Path:
    """Where the average of the adapter file at ``path`` is."""
    return path.with_name(f"{path.stem}-ema{path.suffix}")
