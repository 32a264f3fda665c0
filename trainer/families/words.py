"""Tokenizers: the model's own, the built-in CLIP, or one found on this machine or the hub."""

from __future__ import annotations

import bz2
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError
from .family import Encoder

_MERGES = Path(__file__).parent / "clip" / "merges.txt.bz2"
_COMFYUI = ("comfy/text_encoders/t5_tokenizer", "comfy/t5_tokenizer")
_FORGE = ("backend/huggingface/stabilityai/stable-diffusion-3-medium-diffusers/tokenizer_3",)


def tokenizer(encoder: Encoder, model: Path, cache_dir: str | None) -> Any:
    """The tokenizer for a text encoder of the model (file or folder) at ``model``. UserError: which files to give."""
    kind = "T5Tokenizer" if encoder.model == "T5EncoderModel" else "CLIPTokenizer"
    home = model if model.is_dir() else model.parent
    if model.is_dir() and _complete(kind, home / encoder.tokenizer):
        return _open(kind, home / encoder.tokenizer)
    places = [Path(cache_dir) / encoder.tokenizer_id.replace("/", "_")] if cache_dir else []
    if kind == "T5Tokenizer":
        places += [home / encoder.tokenizer, home / "t5_tokenizer", *_installations(model)]
    for place in places:
        if _complete(kind, place):
            found = _open(kind, place)
            found.pad_token = encoder.pad or found.pad_token
            return found
    return clip(encoder.pad) if kind == "CLIPTokenizer" else _from_hub(encoder.tokenizer_id, home / "t5_tokenizer")


@cache
def clip(pad: str | None = None) -> Any:
    """CLIP's tokenizer from the built-in merges; ``pad`` where padding is not the end mark (OpenCLIP: ``!``)."""
    from transformers import CLIPTokenizer

    lines = bz2.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    merges: list[Any] = [tuple(line.split(" ")) for line in lines]
    # The order of the bytes is CLIP's own: printable ones first, the others moved up to code points from 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad or "<|endoftext|>", model_max_length=77)


def _complete(kind: str, place: Path) -> bool:
    """Whether a folder holds a tokenizer that can be read here; T5's older form needs the library sentencepiece."""
    older = ("vocab.json", "merges.txt") if kind == "CLIPTokenizer" else ("spiece.model",)
    readable = kind == "CLIPTokenizer" or find_spec("sentencepiece") is not None
    return (place / "tokenizer.json").is_file() or (readable and all((place / name).is_file() for name in older))


def _open(kind: str, place: Path) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(place)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"model: the tokenizer in {place} cannot be read ({error}); replace its files") from None


def _installations(model: Path) -> Iterator[Path]:
    """T5 tokenizers of ComfyUI and Forge: around the model, around this package, and at COMFYUI_PATH."""
    roots = [*model.resolve().parents, *Path(__file__).resolve().parents]
    if named := os.environ.get("COMFYUI_PATH"):
        roots.insert(0, Path(named))
    yield from (root / inside for root in roots for inside in (*_COMFYUI, *_FORGE))


def _from_hub(name: str, wanted: Path) -> Any:
    """T5's, from the hub's cache on this machine, else from the hub."""
    from huggingface_hub import snapshot_download

    try:
        place = Path(snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json", "spiece.model"]))
    except OSError:
        place = wanted
    if not _complete("T5Tokenizer", place):
        raise UserError(
            f"model: T5's tokenizer ({name}) is neither on this machine nor on a hub in reach; put its tokenizer.json "
            f"and tokenizer_config.json into {wanted} (ComfyUI has them in {_COMFYUI[0]}), or set use_t5 = false"
        )
    return _open("T5Tokenizer", place)
