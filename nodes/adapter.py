"""An adapter file: its tensors by module, the weight shapes they are for, its trigger words and what it says of itself.

Knows nothing of ComfyUI.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..trainer.adapters import files, keys
from ..trainer.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AdapterFile:
    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: Path) -> AdapterFile:
    """The whole file: .safetensors, or a pickled one of tensors only, as core reads it. UserError: not there, damaged,
    or with code in it."""
    if not path.exists():
        raise UserError(f"{path.name}: there is no such file any more; press R and choose again")
    try:
        tensors, metadata = files.read(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from None
    return AdapterFile(path, tensors, metadata)


def metadata_of(path: Path) -> dict[str, str]:
    """What a file says of itself; its tensors are not read. UserError as ``read``."""
    return read(path).metadata


# ------------------------------------------------------------------------------------------------------------ modules

_PARTS = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "lora_A.default.weight",
    "lora_B.default.weight", "lora_A", "lora_B", "lora.down.weight", "lora.up.weight", "lora_linear_layer.down.weight",
    "lora_linear_layer.up.weight", "lora_magnitude_vector.weight", "lora_magnitude_vector", "alpha", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
    "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "rescale", "oft_diag", "a1.weight", "a2.weight",
    "b1.weight", "b2.weight", "diff", "diff_b", "set_weight", "w_norm", "b_norm", "reshape_weight", "bias", "scalar",
)  # fmt: skip
_PART = re.compile(
    rf"(?P<module>.+?)(?:\.(?P<part>{'|'.join(map(re.escape, _PARTS))})|_lora\.(?P<old>(?:down|up)\.weight))"
)
_DOWN = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora_A", "lora.down.weight",
         "lora_linear_layer.down.weight", "down.weight")  # fmt: skip
_UP = ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora_B", "lora.up.weight",
       "lora_linear_layer.up.weight", "up.weight")  # fmt: skip


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module name -> its tensors by part. A tensor that is no adapter's is a module of its own, with the part ''."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _PART.fullmatch(key)
        name, part = (match["module"], match["part"] or match["old"]) if match else (key, "")
        modules.setdefault(name, {})[part] = tensor
    return modules


_TEXT = re.compile(r"lora_(te\d?|clip_[lg]|t5|prior_te)_|(text_encoders?(_\d)?|te\d?|clip_[lgh]|t5|t5xxl)\.")


def is_text_encoder(module: str) -> bool:
    return _TEXT.match(module) is not None


def weight_shape(parts: Mapping[str, Tensor]) -> Shape | None:
    """(out, in x kernel) of the weight that a module's tensors change; None where they do not tell."""

    def first(names: Iterable[str]) -> Tensor | None:
        return next((parts[name] for name in names if name in parts), None)

    down, up, mid = first(_DOWN), first(_UP), parts.get("lora_mid.weight")
    if "reshape_weight" in parts:
        return None
    if down is not None and up is not None:
        kernel = prod(mid.shape[2:]) if mid is not None else 1
        return up.shape[0], prod(down.shape[1:]) * kernel
    if "hada_w1_a" in parts and "hada_w1_b" in parts:
        a, b = parts["hada_w1_a"], parts["hada_w1_b"]
        if "hada_t1" in parts:
            return a.shape[1], b.shape[1] * prod(parts["hada_t1"].shape[2:])
        return a.shape[0], b.shape[1]
    if any(name.startswith("lokr_") for name in parts):
        return _kronecker(parts)
    whole = first(("diff", "set_weight", "w_norm"))
    return (whole.shape[0], prod(whole.shape[1:])) if whole is not None and whole.ndim else None


def _kronecker(parts: Mapping[str, Tensor]) -> Shape | None:
    sizes = []
    for w in ("lokr_w1", "lokr_w2"):
        if w in parts:
            sizes.append((parts[w].shape[0], prod(parts[w].shape[1:])))
        elif f"{w}_a" in parts and f"{w}_b" in parts:
            a, b, core = parts[f"{w}_a"], parts[f"{w}_b"], parts.get(f"{w.replace('w', 't')}")
            sizes.append(
                (a.shape[1], b.shape[1] * prod(core.shape[2:])) if core is not None else (a.shape[0], prod(b.shape[1:]))
            )
        else:
            return None
    (out1, in1), (out2, in2) = sizes
    return out1 * out2, in1 * in2


# ------------------------------------------------------------------------------------------- what model it was made for

_WIDTHS = {768: "SD1.5", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner"}
_ATTENTION = re.compile(r".*attn2[._](?:processor[._])?to_k$")
_MMDIT = re.compile(
    r".*(joint_blocks[._]\d+"
    r"|(?<!single_)(?<!\d[._])transformer_blocks[._]\d+[._](attn[._]add_k_proj|attn2?[._]to_[qkv]_?$|norm1_context))"
)


def model_of(shapes: Mapping[str, Shape | None]) -> str:
    """What the shapes of named weights say of the network: 'SDXL (cross-attention 2048)', or ''."""
    blocks = {
        int(m[1])
        for m in (re.search(r"(?:joint|transformer)_blocks[._](\d+)", n) for n in shapes if _MMDIT.match(n))
        if m
    }
    if blocks:
        widths = [w for name, shape in shapes.items() if shape and (w := _mmdit_width(name, shape))]
        second = any(re.search(r"blocks[._]\d+[._](x_block[._])?attn2", name) for name in shapes)
        kind = "SD3.5 medium" if second else "SD3.5 large" if 2432 in widths or max(blocks) > 23 else "SD3 medium"
        return f"{kind} (MMDiT, {max(blocks) + 1} blocks{f', width {widths[0]}' if widths else ''})"
    for name, shape in shapes.items():
        if shape and _ATTENTION.fullmatch(name):
            return f"{_WIDTHS.get(shape[1], 'a network')} (cross-attention {shape[1]})"
    return ""


def _mmdit_width(name: str, shape: Shape) -> int | None:
    if re.search(r"x_block[._]attn[._]qkv$", name):
        return shape[0] // 3
    return shape[0] if re.search(r"[._]attn2?[._]to_[qkv]_?$", name) else None


_FAMILIES = {"SD1.5": "sd15", "SDXL": "sdxl", "SD3 medium": "sd3", "SD3.5 medium": "sd3", "SD3.5 large": "sd3"}


def family_of(checkpoint: Path) -> str | None:
    """The family of a checkpoint as presets are named after, by its header; None for one that cannot be trained."""
    if checkpoint.suffix.lower() not in (".safetensors", ".sft"):
        raise UserError(f"checkpoint: {checkpoint.name} is no .safetensors file; choose a preset by its name")
    try:
        with safe_open(str(checkpoint), "pt") as file:
            names = {key: key.removesuffix(".weight") for key in file.keys()}  # noqa: SIM118
            telling = {key: name for key, name in names.items() if _ATTENTION.fullmatch(name) or _MMDIT.match(name)}
            shapes = {name: tuple(file.get_slice(key).get_shape()) for key, name in telling.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint: {checkpoint.name} is no whole safetensors file ({error})") from None
    return _FAMILIES.get(model_of(shapes).partition(" (")[0])


# ----------------------------------------------------------------------------------------------------------- metadata


def author_words(metadata: Mapping[str, str]) -> str:
    """The trigger words that the file's author wrote, else ''."""
    keys_of = ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words")
    return next((text for key in keys_of if (text := metadata.get(key, "").strip()) not in ("", "None")), "")


def triggers(metadata: Mapping[str, str], most: int = 5) -> str:
    """The trigger words: what the author wrote, else the most frequent training tags, else ''."""
    return author_words(metadata) or ", ".join(tag for tag, _ in tags(metadata)[:most])


def tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """Training tags and how often they came, the most frequent first."""
    counted: Counter[str] = Counter()
    for found in _object(metadata.get("ss_tag_frequency")).values():
        if isinstance(found, dict):
            counted.update({str(tag).strip(): n for tag, n in found.items() if isinstance(n, int)})
    return counted.most_common()


def _object(text: str | None) -> dict:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


_TOLD = (
    ("title", "modelspec.title"), ("architecture", "modelspec.architecture"), ("base model", "ss_sd_model_name"),
    ("base version", "ss_base_model_version"), ("rank", "ss_network_dim"), ("alpha", "ss_network_alpha"),
    ("steps", "ss_steps"), ("epochs", "ss_epoch"), ("learning rate", "ss_learning_rate"), ("optimizer", "ss_optimizer"),
    ("trained on", "modelspec.date"), ("weights hash", "sshs_model_hash"),
)  # fmt: skip


def about(file: AdapterFile) -> list[str]:
    """The file as text, one line per fact: kind and ranks from its tensors, the rest from its own metadata."""
    facts = keys.identify({key: tuple(value.shape) for key, value in file.tensors.items()}, file.metadata)
    size = ", ".join(f"{rank} ({n} modules)" for rank, n in facts.ranks.items())
    lines = [file.path.name] + [
        f"{label}: {value}" for label, value in (("for", facts.family), ("kind", facts.kind), ("rank", size)) if value
    ]
    known = [(label, file.metadata.get(key, "").strip()) for label, key in _TOLD]
    lines += [
        f"{label}: {value}" for label, value in known if value not in ("", "None") and not (label == "rank" and size)
    ]
    return lines if file.metadata else [*lines, "the file has no metadata"]
