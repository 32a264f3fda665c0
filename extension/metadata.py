"""How a picture was made, from what ComfyUI, A1111 and we ourselves write into it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .images import WRONG


@dataclass(frozen=True)
class Made:
    prompt: str
    seed: int | None = None


def read(path: Path) -> Made | None:
    """The prompt and the seed; None when the picture does not tell."""
    try:
        with Image.open(path) as picture:
            texts = {str(key): value for key, value in picture.info.items() if isinstance(value, str)}
            comment = picture.getexif().get_ifd(0x8769).get(0x9286)
    except WRONG:
        return None
    if "prompt" in texts and (made := comfyui(texts["prompt"])):
        return made
    if "parameters" in texts:
        return a1111(texts["parameters"])
    if isinstance(comment, bytes) and comment[:8] == b"UNICODE\0":  # A1111's JPEG and WebP
        return a1111(comment[8:].decode("utf-16-be", "replace"))
    return None


def a1111(text: str) -> Made | None:
    """``prompt``, ``Negative prompt: ...``, ``Steps: 20, Seed: 42, ...``"""
    prompt = re.split(r"\n(?:Negative prompt: |Steps: \d)", text, maxsplit=1)[0].strip()
    prompt = re.sub(r"\s*<(?:lora|lyco|hypernet):[^>]*>", "", prompt).strip()
    seed = re.search(r"(?:^|, |\n)Seed: (\d+)", text)
    return Made(prompt, int(seed[1]) if seed else None) if prompt else None


def comfyui(text: str) -> Made | None:
    """From the graph that ran: the seed of the sampler, and the text that leads to its positive input."""
    try:
        graph = json.loads(text)
    except ValueError:
        return None
    if not isinstance(graph, Mapping):
        return None
    nodes = {str(key): node for key, node in graph.items() if isinstance(node, Mapping)}
    for node in nodes.values():
        inputs = node.get("inputs")
        if isinstance(inputs, Mapping) and "positive" in inputs:
            prompt = _text(nodes, inputs["positive"], set())
            seed = next((inputs[k] for k in ("seed", "noise_seed") if isinstance(inputs.get(k), int)), None)
            if prompt:
                return Made(prompt, seed)
    return None


def _text(nodes: Mapping[str, Any], link: Any, seen: set[str]) -> str | None:
    """Follow a link upstream to the first text."""
    if isinstance(link, str):
        return link.strip() or None
    if not (isinstance(link, list) and link) or str(link[0]) in seen:
        return None
    seen.add(str(link[0]))
    inputs = nodes.get(str(link[0]), {}).get("inputs", {})
    order = sorted(inputs, key=lambda name: (name not in ("text", "text_g", "prompt", "string", "value"), name))
    return next((found for name in order if name != "negative" and (
        isinstance(inputs[name], list) or name in ("text", "text_g", "text_l", "prompt", "string", "value")
    ) and (found := _text(nodes, inputs[name], seen))), None)  # fmt: skip
