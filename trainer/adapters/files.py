"""Adapter files: read whatever people have, write what everything loads, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, escaped
from ..runs.files import BROKEN_PICKLE, write_atomic
from .mappings.mapping import key_mapping

HEADER_LIMIT = 100_000_000
"""Bytes; what the safetensors library itself accepts."""
CONFIG = "pixelkiln.config"
"""Header entry of our own: the resolved configuration, as JSON."""
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# -------------------------------------------------------------------------------------------------------------- read


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an adapter: a .safetensors, a pickled file that holds tensors only, or PEFT's folder(s).

    UserError, in one line, for anything else.
    """
    if path.is_dir():
        return _read_peft(path)
    if _is_safetensors(path):
        from safetensors import SafetensorError, safe_open

        metadata, _ = read_header(path)
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
        except (SafetensorError, KeyError, AttributeError) as error:  # the latter for types that this torch lacks
            raise UserError(f"{path}: it cannot be read ({error}); copy or download it again") from None
    return _read_pickle(path), {}


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Metadata, and (type, shape) of each tensor, of a .safetensors without reading its tensors."""
    size = _size(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if length > HEADER_LIMIT:
            raise UserError(f"{path}: it is no safetensors file; give an adapter in .safetensors")
        if length + 8 > size:
            raise UserError(f"{path}: it is cut short inside its header; copy or download it again")
        raw = file.read(length)
    twice: list[str] = []

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return found

    try:
        header = json.loads(raw, object_pairs_hook=table)
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        tensors = {name: (str(item["dtype"]), tuple(map(int, item["shape"]))) for name, item in header.items()}
        end = max((int(item["data_offsets"][1]) for item in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        raise UserError(f"{path}: it is no safetensors file; give an adapter in .safetensors") from None
    if twice:
        raise UserError(f"{path}: '{escaped(twice[0])}' is in its header twice; copy or download it again")
    if end + length + 8 > size:
        raise UserError(f"{path}: it is cut short: {size:,} of {end + length + 8:,} bytes; copy or download it again")
    return metadata, tensors


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({(error.strerror or 'error').lower()}); check the path") from None


def _is_safetensors(path: Path) -> bool:
    """By content where it tells, else by name."""
    if _size(path) == 0:
        raise UserError(f"{path}: it is empty; copy or download it again")
    with path.open("rb") as file:
        start = file.read(10)
    if start[8:9] == b"{":  # a header's length may look like any other file's mark
        return True
    return start[:2] not in (b"PK", b"\x80\x02") and path.suffix.lower() not in (".pt", ".ckpt", ".bin", ".pth")


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """torch.save's file, if it loads with weights only: a pickle can run any code."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():  # not by path: torch would go by its ending
            warnings.simplefilter("ignore")  # on pickles of an age or make that it then refuses
            found = torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN_PICKLE as error:
        if "Weights only" in str(error) or "weights_only" in str(error):
            raise UserError(
                f"{path}: it holds code beside tensors, or is damaged, and is refused; give a .safetensors"
            ) from None
        raise UserError(f"{path}: it cannot be read; give an adapter in .safetensors") from None
    if isinstance(found, dict) and "string_to_param" in found:
        raise UserError(f"{path}: it is an embedding (textual inversion), no adapter; put it among the embeddings")
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    elif isinstance(found, dict) and len(found) == 1 and isinstance(inner := next(iter(found.values())), dict):
        found = inner
    if not isinstance(found, dict) or not found or not all(_is_plain(v) for v in found.values()):
        raise UserError(f"{path}: it holds no table of tensors; give an adapter in .safetensors")
    return {str(key): value for key, value in found.items()}


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor as a .safetensors can hold it: dense, not quantised, with its data."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _read_peft(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """PEFT's folder, or a folder of such, one per component (``unet``, ``transformer``, ``text_encoder``, ...)."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    parts = {name: folder / name for name in names if (folder / name / PEFT_WEIGHTS).exists()}
    if not parts and (folder / PEFT_WEIGHTS).exists():
        parts = {"": folder}
    if not parts:
        raise UserError(f"{folder}: it holds no {PEFT_WEIGHTS}; give an adapter file, or PEFT's folder")
    found: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for name, part in parts.items():
        tensors, _ = read(part / PEFT_WEIGHTS)
        found.update({f"{name}.{key}" if name else key: value for key, value in tensors.items()})
        try:
            own = json.loads((part / PEFT_CONFIG).read_text(encoding="utf-8"))
            if not isinstance(own, dict):
                raise ValueError("no table")
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{part / PEFT_CONFIG}: it cannot be read; PEFT's folder needs it for the alphas") from None
        owners = (name,) if name else names
        config.update({f"{owner}.{key}": value for owner in owners for key, value in own.items()})
    return found, {"lora_adapter_metadata": json.dumps(config)}


# ------------------------------------------------------------------------------------------------------------- write


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors with Kohya's hashes in its header; a crash or a full disk leaves the old file.

    Tensors are in the order and alignment of the safetensors library. Raises files.NotWritten (a UserError).
    """
    from safetensors.torch import save as serialise

    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = memoryview(serialise(whole, metadata=training or None))
    length = struct.unpack("<Q", content[:8])[0]
    data = content[8 + length :]
    table = json.loads(bytes(content[8 : 8 + length]))
    hashes = {"sshs_model_hash": hashlib.sha256(data).hexdigest(), "sshs_legacy_hash": legacy_hash(content)}
    table["__metadata__"] = dict(sorted({**metadata, **hashes}.items()))
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            file.write(data)

    write_atomic(path, write)


def legacy_hash(content: memoryview | bytes) -> str:
    """A1111's old hash: 64 KiB from the first MiB on, 8 digits (of nothing, for a smaller file)."""
    return hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def data_hash(path: Path) -> str:
    """sha256 of a .safetensors behind its header, as in sshs_model_hash."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while chunk := file.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------------------- metadata

ALWAYS = """
session_id training_started_at training_finished_at output_name learning_rate text_encoder_lr unet_lr
num_train_images num_validation_images num_reg_images num_batches_per_epoch num_epochs epoch steps max_train_steps
gradient_checkpointing gradient_accumulation_steps lr_warmup_steps lr_scheduler network_dropout mixed_precision
full_fp16 clip_skip max_token_length cache_latents seed lowram noise_offset noise_offset_random_strength
multires_noise_iterations multires_noise_discount adaptive_noise_scale zero_terminal_snr training_comment optimizer
max_grad_norm caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate face_crop_aug_range
prior_loss_weight min_snr_gamma scale_weight_norms ip_noise_gamma ip_noise_gamma_random_strength debiased_estimation
loss_type huber_schedule huber_scale huber_c fp8_base fp8_base_unet validation_seed validation_split
max_validation_steps validate_every_n_epochs validate_every_n_steps resize_interpolation
"""
"""What Kohya's tools write of every run, as ss_NAME; ``None`` where it does not apply."""
PRIVATE = ("tag_frequency", "dataset_dirs", "reg_dataset_dirs", "datasets", "bucket_info")
"""What tells of the training pictures."""
LEAST = ("v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args")
"""What Kohya's tools keep with no_metadata."""


def metadata(
    family: str,
    kind: str,
    facts: Mapping[str, Any],
    *,
    rank: int | None,
    alpha: float | None,
    network_args: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    prediction: str | None = None,
    strip: bool = False,
    minimal: bool = False,
) -> dict[str, str]:
    """The header that Kohya's tools, A1111 and Civitai read.

    ``facts`` are Kohya's ss_* by their names without ``ss_``; ``spec`` modelspec's entries (title, author, description,
    license, tags, trigger_phrase, usage_hint, thumbnail, merged_from, resolution, encoder_layer, timestep_range,
    implementation_version); ``config`` the resolved configuration. ``strip`` leaves out tags, folder names and the
    configuration's paths and prompts; a path's folders are never written. ``minimal`` keeps of ss_* what loaders need,
    and no configuration.
    """
    mapping, is_v = key_mapping(family), prediction == "v"
    args = {"algo": kind, **(network_args or {})} if kind in ("loha", "lokr") else dict(network_args or {})
    if kind == "dora":
        args = {"algo": "lora", "dora_wd": "True", **args}
    training: dict[str, Any] = dict.fromkeys(ALWAYS.split())
    training.update(facts)
    training.update(
        v2=mapping.is_v2,
        base_model_version=mapping.entry("base_version", is_v),
        network_module=mapping.network_module if kind == "lora" else "lycoris.kohya",
        network_dim=rank,
        network_alpha=alpha,
        **({"network_args": {k: str(v) for k, v in args.items()}} if args else {}),
    )
    if strip:
        training = {name: value for name, value in training.items() if name not in PRIVATE}
    if minimal:
        training = {name: value for name, value in training.items() if name in LEAST}
    found = {f"ss_{name}": _text(value) for name, value in training.items()}
    side = mapping.entry("resolution", is_v)
    entries: dict[str, Any] = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{mapping.entry('architecture', is_v)}/lora",
        "implementation": mapping.implementation,
        "title": facts.get("output_name"),
        "resolution": f"{side}x{side}",
        "date": datetime.now().isoformat(timespec="seconds"),
        "prediction_type": None if mapping.is_flow else ("v" if is_v else "epsilon"),
        **{name: value for name, value in (spec or {}).items() if value is not None},
    }
    found.update({f"modelspec.{name}": str(value) for name, value in entries.items() if value is not None})
    if config is not None and not minimal:
        found[CONFIG] = json.dumps(without_paths(config, strip), ensure_ascii=False, sort_keys=True, default=str)
    return found


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


_TELLING = ("data", "sample")
"""Tables of the configuration that tell of the training set."""


def without_paths(config: Mapping[str, Any], strip: bool) -> dict[str, Any]:
    """A configuration to publish: of paths the last name only; with ``strip`` no path and no table that tells more."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: c for k, v in value.items() if (c := clean(v)) is not None or v is None}
        if isinstance(value, (list, tuple)):
            return [clean(v) for v in value]
        if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
            return None if strip else PureWindowsPath(PurePosixPath(value).name).name
        return value

    return {k: clean(v) for k, v in config.items() if not (strip and k in _TELLING)}


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {escaped(str(error))}") from None
