"""How adapter files of the family of ``new_family.py`` name its modules: ``downs``, ``middle`` and ``ups``."""

from __future__ import annotations

from dataclasses import replace

from pixelkiln.trainer.adapters.mappings.mapping import register
from pixelkiln.trainer.adapters.mappings.unet import SD15, kernel

OURS = {"down_blocks.": "downs.", "mid_block.": "middle.", "up_blocks.": "ups."}


def to_file(path: str, layers: int) -> tuple[str, int | None]:
    start = next((start for start in OURS if path.startswith(start)), "")
    return OURS.get(start, "") + path.removeprefix(start), None


def to_model(dotted: str) -> tuple[str, ...]:
    start = next((start for start, mine in OURS.items() if dotted.startswith(mine)), "")
    return (start + dotted.removeprefix(OURS.get(start, "")),)


register(replace(
    SD15, family="new", to_file=to_file, to_model=to_model, kernel=lambda dotted: kernel(to_model(dotted)[0]),
    block_of=lambda name: None, block_list=None, diffusers_loader=None,
    fits=lambda widths, named: True if any(path.startswith(tuple(OURS.values())) for path in widths) else None,
    base_version="new_v1", architecture="new-v1", marks=("new",), for_v=None, beginnings=tuple(OURS.values()),
))  # fmt: skip
