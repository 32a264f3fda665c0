"""How many tokens of CLIP a caption has, without loading a tokenizer library into the page's process."""

from __future__ import annotations

import bz2
import re
from functools import cache, lru_cache

from .store import ROOT

MERGES = ROOT / "trainer" / "families" / "clip" / "merges.txt.bz2"
LIMIT = 75
"""Tokens of text that CLIP sees at a time: 77 less the marks of start and end."""
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)


@cache
def _ranks() -> dict[tuple[str, str], int]:
    lines = bz2.decompress(MERGES.read_bytes()).decode().split("\n")
    pairs = (line.split(" ") for line in lines if line.count(" ") == 1 and not line.startswith("#"))
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


@cache
def _letters() -> dict[int, str]:
    """A printable sign for each byte, as GPT-2's byte-level BPE has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


@lru_cache(maxsize=50_000)
def _of_word(word: str) -> int:
    parts = [_letters()[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    ranks = _ranks()
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), len(ranks)))
        pair = (parts[best], parts[best + 1])
        if pair not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return len(parts)


def count(text: str) -> int:
    """Tokens of the text, without the marks of start and end."""
    return sum(_of_word(word) for word in WORD.findall(text.lower()))
