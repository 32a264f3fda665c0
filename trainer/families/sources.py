"""Where a model's weights come from: a single file, a folder, the hub; and the hashes of what was read."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..runs.files import BROKEN_PICKLE, user_cache, write_atomic

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MEMO_FROM = 64 * 2**20
"""Bytes from which a file's hash is remembered between runs."""


@dataclass(frozen=True)
class Checkpoint:
    """A single file: names and shapes are known, tensors are read when asked for."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    read: Callable[[list[str]], dict[str, Tensor]]

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.shapes)

    def tensors(self, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors below a prefix, without it, copied from the file; all floating ones as ``dtype``."""
        found = self.read([key for key in self.shapes if key.startswith(prefix)])
        return {
            key.removeprefix(prefix): value.to(dtype, copy=True) if value.is_floating_point() else value.clone()
            for key, value in found.items()
        }


def open_file(path: Path, where: str) -> Checkpoint:
    """Names and shapes of a checkpoint file. UserError when it is damaged or a pickle of more than tensors."""
    if path.suffix == ".safetensors":
        return _open_safetensors(path, where)
    return _open_pickle(path, where)


def _open_safetensors(path: Path, where: str) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where}: {path} is damaged or no safetensors file ({error}); download it again") from None

    def read(keys: list[str]) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in keys}

    return Checkpoint(path, shapes, metadata, read)


def _open_pickle(path: Path, where: str) -> Checkpoint:
    import warnings
    import zipfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another pickle protocol: it loads, or the error below is raised
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except BROKEN_PICKLE as error:
        code = re.search(r"GLOBAL (\S+)", str(error))  # torch's own words go on to advise loading it all the same
        raise UserError(
            f"{where}: {path} holds more than tensors{f' ({code[1]})' if code else ''}, or is damaged, and a pickle "
            "can run any code, so it is not loaded; give a .safetensors file"
        ) from None
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    return Checkpoint(path, shapes, {}, lambda keys: {key: tensors[key] for key in keys})


# ---------------------------------------------------------------------------------------------------- finding it


def locate(path: str, where: str, revision: str | None = None, variant: str | None = None) -> Path:
    """A file or folder on this machine for a path or hub id (downloaded if need be). UserError when there is none."""
    place = Path(path)
    if place.is_dir():
        return place
    if place.is_file():
        if place.suffix not in WEIGHTS:
            raise UserError(
                f"{where}: {path} is no checkpoint by its name; give a .safetensors file or a diffusers folder"
            )
        return place
    if HUB_ID.fullmatch(path) and place.suffix not in WEIGHTS:
        return _download(path, where, revision, variant)
    near = difflib.get_close_matches(place.name, _names(place.parent), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "give a checkpoint file, a diffusers folder or a hub id (owner/name)"
    raise UserError(f"{where}: there is no {path}; {hint}")


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _download(name: str, where: str, revision: str | None, variant: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    parts = ("unet", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    wanted = ["model_index.json", *(f"{part}*/*" for part in parts)]
    if where != "model.path":
        wanted = ["config.json", "diffusion_pytorch_model*", "model*", "vae/*"]
    left = ["*.bin", "*.msgpack", "*.onnx*", "*flax*", "*openvino*", "*non_ema*"]
    left += ["*.fp16*", "*.bf16*"] if variant is None else []
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=left))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        known = isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError)
        why = (
            f"the hub refuses it ({str(error).strip().splitlines()[0]}); check the id, and log in if the model is gated"
            if known
            else "the hub cannot be reached; download it on another machine, or give a file"
        )
        raise UserError(f"{where}: {name} is neither a file nor a folder here, and {why}") from None


# --------------------------------------------------------------------------------------------------------- hashes


@dataclass(frozen=True)
class Files:
    """The files that the parts of a model were read from."""

    path: Path
    """What the user named."""
    parts: dict[str, list[Path]] = field(default_factory=dict)
    """``denoiser``, ``vae`` and ``text`` -> files."""
    own_vae: Path | None = None
    """A separate autoencoder."""

    def digest(self, part: Literal["model", "vae", "text"], *facts: str) -> str:
        """SHA-256 over the contents of a part's files and over ``facts``."""
        files = sorted({f for p in self.parts.values() for f in p}) if part == "model" else self.parts[part]
        digests = [sha256(file) for file in files] + list(facts)
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def metadata(self) -> dict[str, str]:
        """Names and hashes as sd-scripts writes them into a LoRA's header."""
        found = {"ss_sd_model_name": self.path.name, "ss_vae_name": self.own_vae.name if self.own_vae else "None"}
        if self.path.is_file():
            found |= {"ss_sd_model_hash": short_hash(self.path), "ss_new_sd_model_hash": sha256(self.path)}
        if self.own_vae and self.own_vae.is_file():
            found |= {"ss_vae_hash": short_hash(self.own_vae), "ss_new_vae_hash": sha256(self.own_vae)}
        return found


def short_hash(path: Path) -> str:
    """8 digits of SHA-256 over 64 KiB from 1 MiB on: what A1111 once showed, and Kohya's files still carry."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def sha256(path: Path) -> str:
    """Of a file's content. Large files are remembered by path, size and time of change."""
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    memo = _memo() if state.st_size >= _MEMO_FROM else {}
    if key not in memo:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
        memo[key] = content.hexdigest()
        if state.st_size >= _MEMO_FROM:
            _remember(memo)
    return memo[key]


def _memo_file() -> Path:
    return user_cache() / "hashes.json"


def _memo() -> dict[str, str]:
    try:
        return json.loads(_memo_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _remember(memo: dict[str, str]) -> None:
    """Only a convenience: where it cannot be written, the next run hashes again."""
    with suppress(OSError):
        _memo_file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_memo_file(), json.dumps(memo), durable=False)
