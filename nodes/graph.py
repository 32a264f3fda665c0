"""The prompt and the seed of a picture, read from the graph that is being executed. Knows nothing of ComfyUI.

A graph is what the page sends to be executed: node id -> {class_type, inputs}; a linked input is [node id, output].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]
_SEEDS = ("seed", "noise_seed")
_TEXTS = ("text", "prompt", "text_g", "text_l", "clip_l", "t5xxl", "string", "value")


def linked(value: Any) -> str | None:
    """The node id of a link, or None for a plain value."""
    is_link = isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], int)
    return str(value[0]) if is_link else None


def upstream(graph: Graph, start: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Nodes from ``start`` on against the links, nearest first, each once."""
    waiting, seen = [start], {start}
    while waiting:
        here = waiting.pop(0)
        inputs = graph.get(here, {}).get("inputs", {})
        yield here, inputs
        for value in inputs.values():
            before = linked(value)
            if before is not None and before not in seen and before in graph:
                seen.add(before)
                waiting.append(before)


def origin(graph: Graph, node_id: str, socket: str) -> tuple[str | None, int | None]:
    """(prompt, seed) of the picture that comes in at a socket; None for what the graph does not tell."""
    start = linked(graph.get(node_id, {}).get("inputs", {}).get(socket))
    if start is None:
        return None, None
    prompt: str | None = None
    seed: int | None = None
    for _, inputs in upstream(graph, start):
        if seed is None:
            seed = next((found for key in _SEEDS if (found := _number(graph, inputs.get(key))) is not None), None)
        if prompt is None and "positive" in inputs:
            positive = linked(inputs["positive"])
            prompt = _text(graph, positive) if positive else None
        if prompt is None and "conditioning" in inputs and "cfg" not in inputs:  # a guider of SamplerCustomAdvanced
            conditioning = linked(inputs["conditioning"])
            prompt = _text(graph, conditioning) if conditioning else None
        if prompt is not None and seed is not None:
            break
    return prompt, seed


def _text(graph: Graph, start: str) -> str | None:
    """The first text upstream that is not empty."""
    for _, inputs in upstream(graph, start):
        for key in _TEXTS:
            value = inputs.get(key)
            if isinstance(value, str) and value.strip():
                return value.strip()
    return None


def _number(graph: Graph, value: Any) -> int | None:
    """A whole number, here or at the end of a link."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    before = linked(value)
    if before is None:
        return None
    for _, inputs in upstream(graph, before):
        for key in (*_SEEDS, "value", "int"):
            found = inputs.get(key)
            if isinstance(found, int) and not isinstance(found, bool):
                return found
    return None
