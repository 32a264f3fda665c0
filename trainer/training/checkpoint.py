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
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..runs.files import write_atomic
from .save_options import SaveOptions

NO_STATE = "no state to resume from"


def saved_type(options: SaveOptions) -> torch.dtype:
    """Of the adapter file's tensors."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[options.precision]


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
