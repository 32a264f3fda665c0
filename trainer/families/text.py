"""Captions to tokens, tokens to states: chunks of 75, emphasis in brackets, CLIP and T5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 75
"""Tokens of text in one pass of CLIP: 77 less the marks of start and end."""


@dataclass(frozen=True)
class Tokens:
    """Captions as a text encoder takes them."""

    ids: Tensor
    """[B, chunks, length] int64."""
    mask: Tensor
    """Like ``ids``: 1 up to the end mark, 0 for padding."""
    weights: Tensor | None
    """[B, chunks * 75] emphasis of each token between the marks."""
    cut: list[int]
    """How many tokens of each caption were left out."""


def clip_tokens(tokenizer: Any, captions: list[str], limit: int = CHUNK, weighted: bool = False) -> Tokens:
    """Tokens for CLIP, ``limit`` (a multiple of 75) per caption, as sd-scripts cuts them.

    Each chunk of 75 stands between a start and an end mark. With 75 tokens that is what diffusers' pipelines do.
    """
    assert limit % CHUNK == 0
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    chunks = limit // CHUNK
    ids, masks, weights, cut = [], [], [], []
    for caption in captions:
        pieces = emphasis(caption) if weighted else [(caption, 1.0)]
        weighted_tokens = [(token, weight) for text, weight in pieces for token in _ids(tokenizer, text)]
        cut.append(max(0, len(weighted_tokens) - limit))
        tokens = [token for token, _ in weighted_tokens[:limit]]
        line = [*tokens, end, *[pad] * limit][:limit]
        for at in range(0, limit, CHUNK):
            words = line[at : at + CHUNK]
            if at > len(tokens):  # nothing is left for this chunk: it begins with its end
                words = [end, *words[1:]]
            full = len(tokens) >= at + CHUNK
            ids.append([start, *words, end if full else pad])
            real = CHUNK + 2 if full else max(0, len(tokens) - at) + 2
            masks.append([1] * real + [0] * (CHUNK + 2 - real))
        weights.append([weight for _, weight in weighted_tokens[:limit]] + [1.0] * (limit - len(tokens)))
    shape = (len(captions), chunks, CHUNK + 2)
    emphasised = torch.tensor(weights) if weighted else None
    return Tokens(torch.tensor(ids).reshape(shape), torch.tensor(masks).reshape(shape), emphasised, cut)


def t5_tokens(tokenizer: Any, captions: list[str], limit: int) -> Tokens:
    """Tokens for T5: text, end mark, padding; ``limit`` in all."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    texts = [_ids(tokenizer, caption) for caption in captions]
    cut = [max(0, len(text) + 1 - limit) for text in texts]
    texts = [[*text[: limit - 1], end] for text in texts]
    ids = torch.tensor([[*text, *[pad] * (limit - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (limit - len(text)) for text in texts])
    return Tokens(ids[:, None], mask[:, None], None, cut)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def clip_states(
    encoder: Any, tokens: Tokens, layer: int, normed: bool, masked: bool = False
) -> tuple[Tensor, Tensor | None]:
    """States [B, 75 chunks + 2, width] of the ``layer``-th layer from the end (1 is the last), and the pooled text.

    ``normed`` puts the final layer norm on them. Chunks are joined as start, texts, end; the pooled text is the first
    chunk's, None for an encoder without projection. Emphasis multiplies the states.
    """
    device = next(encoder.parameters()).device
    count, chunks, length = tokens.ids.shape
    mask = tokens.mask.to(device).flatten(0, 1) if masked else None
    out = encoder(tokens.ids.to(device).flatten(0, 1), attention_mask=mask, output_hidden_states=True)
    states = out.hidden_states[-layer]
    if normed:
        states = getattr(encoder, "text_model", encoder).final_layer_norm(states)
    states = states.reshape(count, chunks, length, -1)
    states = torch.cat([states[:, 0, :1], states[:, :, 1:-1].flatten(1, 2), states[:, -1, -1:]], 1)
    if tokens.weights is not None:
        one = tokens.weights.new_ones(count, 1)
        states = states * torch.cat([one, tokens.weights, one], 1).to(states)[..., None]
    pooled = getattr(out, "text_embeds", None)
    return states, None if pooled is None else pooled.reshape(count, chunks, -1)[:, 0]


def t5_states(encoder: Any, tokens: Tokens, masked: bool = False) -> Tensor:
    """[B, tokens, width]."""
    device = next(encoder.parameters()).device
    mask = tokens.mask[:, 0].to(device) if masked else None
    return encoder(tokens.ids[:, 0].to(device), attention_mask=mask).last_hidden_state


@dataclass(frozen=True)
class States:
    """What a text encoder makes of captions."""

    hidden: Tensor
    """[B, tokens, width]."""
    pooled: Tensor | None = None
    """[B, width]."""

    def to(self, device: torch.device) -> States:
        return States(self.hidden.to(device), None if self.pooled is None else self.pooled.to(device))


_PART = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|[\\:]")


def emphasis(caption: str) -> list[tuple[str, float]]:
    r"""A caption as (text, weight): ``(a)`` is 1.1, ``(a:1.3)`` 1.3, ``[a]`` 1 / 1.1; they multiply, \( is plain.

    The syntax of A1111, which Kohya's weighted captions follow. Brackets that are not closed count to the end.

    >>> emphasis("a (red:1.3) [cat]")
    [('a ', 1.0), ('red', 1.3), (' ', 1.0), ('cat', 0.9090909090909091)]
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        at = opened[bracket].pop()
        pieces[at:] = [(text, weight * factor) for text, weight in pieces[at:]]

    for part in _PART.finditer(caption):
        text, weight = part.group(), part.group(1)
        if text in opened:
            opened[text].append(len(pieces))
        elif weight is not None and opened["("]:
            close("(", float(weight))
        elif text == ")" and opened["("]:
            close("(", 1.1)
        elif text == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            pieces.append((text.removeprefix("\\") if len(text) == 2 and text[0] == "\\" else text, 1.0))
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        while opened[bracket]:
            close(bracket, factor)
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined
