"""Captions to tokens to states: the built-in vocabulary, chunks, emphasis, what is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from pixelkiln.trainer.families import words
from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.families.options import ModelOptions
from pixelkiln.trainer.families.text import clip_states, clip_tokens, emphasis, t5_tokens

LENGTHS = [0, 1, 74, 75, 76, 149, 150, 151, 224, 225, 226, 300]


def caption(length: int) -> str:
    """So many tokens of the tiny vocabulary."""
    return " ".join(tiny.WORDS[i % len(tiny.WORDS)] for i in range(length))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.tiny_sdxl(tmp_path_factory.mktemp("text") / "sdxl")


def test_built_in_vocabulary_is_clips():
    """Ids of CLIP's public tokenizer."""
    tokenizer = words.clip()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49406, 49407, 49407)
    assert words.clip("!").pad_token_id == 0
    text = tokenizer('Ünïcödé, emoji 🦊 & "quotes"', padding="max_length", max_length=77).input_ids
    assert len(text) == 77 and max(text) == 49407 and text[-1] == 49407


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("limit", [75, 150, 225])
def test_chunks_are_those_of_sd_scripts(pad, limit):
    """One long padded line, cut into 75s between its first and last mark; ends are repaired where padding differs."""
    tokenizer = tiny.clip_tokenizer()
    tokenizer.pad_token = pad
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    captions = [caption(n) for n in LENGTHS]
    got = clip_tokens(tokenizer, captions, limit)
    for row, text in enumerate(captions):
        line = tokenizer(text, max_length=limit + 2, padding="max_length", truncation=True).input_ids
        want = []
        for at in range(1, limit + 1, 75):
            chunk = [line[0], *line[at : at + 75], line[-1]]
            if limit > 75 and end != padding:
                if chunk[-2] not in (end, padding):
                    chunk[-1] = end
                if chunk[1] == padding:
                    chunk[1] = end
            want.append(chunk)
        assert got.ids[row].tolist() == want, LENGTHS[row]
    assert got.cut == [max(0, n - limit) for n in LENGTHS]


def test_masks_end_at_the_first_end_mark():
    tokenizer = tiny.clip_tokenizer()
    tokens = clip_tokens(tokenizer, [caption(n) for n in LENGTHS], 150)
    for row, n in enumerate(LENGTHS):
        kept = min(n, 150)
        assert tokens.mask[row].sum(1).tolist() == [2 + min(75, kept), 2 + max(0, min(75, kept - 75))]
    attention = tokenizer([caption(5)], padding="max_length", max_length=77).attention_mask
    assert clip_tokens(tokenizer, [caption(5)]).mask[0].tolist() == attention


def test_states_of_chunks_are_joined_between_one_start_and_one_end(folder):
    family = load(ModelOptions(path=str(folder), max_tokens=150))
    encoder, tokenizer = family.text_encoders["te2"], family.tokenizers["te2"]
    first, second = caption(75), caption(30)
    with torch.no_grad():
        long, pooled = clip_states(encoder, clip_tokens(tokenizer, [f"{first} {second}"], 150), 2, normed=False)
        one, pool = clip_states(encoder, clip_tokens(tokenizer, [first]), 2, normed=False)
        two, _ = clip_states(encoder, clip_tokens(tokenizer, [second]), 2, normed=False)
        text = family.encode_text([f"{first} {second}"])
    assert long.shape == (1, 152, 24)
    assert torch.allclose(long[:, :76], one[:, :76], atol=1e-6)
    assert torch.allclose(long[:, 76:], two[:, 1:], atol=1e-6)
    assert pool is not None and pooled is not None and text.pooled is not None
    assert torch.allclose(pooled, pool, atol=1e-6)
    assert text.hidden.shape == (1, 152, 40) and torch.allclose(text.pooled, pool, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("plain", [("plain", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("a [b]", [("a ", 1.0), ("b", 1 / 1.1)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("(b: 0.5 )x", [("b", 0.5), ("x", 1.0)]),
        ("((b))", [("b", 1.1 * 1.1)]),
        ("([b])", [("b", 1 / 1.1 * 1.1)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        (r"\(b\) \[c\] \\", [(r"(b) [c] " + "\\", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("shut) here]", [("shut) here]", 1.0)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
    ],
)
def test_emphasis(text, pieces):
    got = emphasis(text)
    assert [t for t, _ in got] == [t for t, _ in pieces]
    assert [w for _, w in got] == pytest.approx([w for _, w in pieces])


@pytest.mark.parametrize("limit", [75, 150])
def test_weighted_captions_multiply_states(folder, limit):
    """States of the same words times each word's weight; marks, padding and the pooled text are as they were."""
    plain = load(ModelOptions(path=str(folder), max_tokens=limit))
    weighted = load(ModelOptions(path=str(folder), max_tokens=limit, weighted_captions=True))
    with torch.no_grad():
        want = plain.encode_text(["a red cat house"])
        got = weighted.encode_text(["a (red:1.5) [cat] house"])
    weight = torch.ones(limit + 2)
    weight[2], weight[3] = 1.5, 1 / 1.1
    assert torch.allclose(got.hidden, want.hidden * weight[:, None], atol=1e-6)
    assert got.pooled is not None and want.pooled is not None and torch.equal(got.pooled, want.pooled)


def test_t5_tokens_are_the_tokenizers():
    tokenizer = tiny.t5_tokenizer()
    captions = ["", "a red cat", caption(60)]
    got = t5_tokens(tokenizer, captions, 32)
    want = tokenizer(captions, padding="max_length", max_length=32, truncation=True)
    assert got.ids[:, 0].tolist() == want.input_ids and got.mask[:, 0].tolist() == want.attention_mask
    assert got.cut[:2] == [0, 0] and got.cut[2] == len(tokenizer(caption(60)).input_ids) - 32


def test_what_is_cut_is_told(folder, tmp_path):
    family = load(ModelOptions(path=str(folder)))
    assert family.warnings() == []
    for _ in range(2):  # a caption met again is not counted again
        family.encode_text([caption(80), caption(90), "a cat"])
    assert family.truncated == {name: {caption(80): 5, caption(90): 15} for name in ("te1", "te2")}
    assert family.warnings()[0].startswith(
        "2 captions are longer than the text encoder te1 reads; the worst loses 15 tokens: 'a red blue"
    )
    # SD3's CLIP may miss what its T5 reads.
    third = load(ModelOptions(path=str(tiny.tiny_sd3(tmp_path / "sd3")), t5_max_tokens=300))
    third.encode_text([caption(80)])
    assert third.warnings() == [] and "te1" in third.truncated


def test_a_caption_does_not_depend_on_its_neighbours(folder):
    family = load(ModelOptions(path=str(folder)))
    captions = ["a red cat", caption(90), "", "the house"]
    with torch.no_grad():
        together = family.encode_text(captions)
        for i, text in enumerate(captions):
            alone, one = family.encode_text([text]), together.pick(torch.tensor([i]))
            assert torch.allclose(one.hidden, alone.hidden, atol=1e-6)
            assert one.pooled is not None and alone.pooled is not None
            assert torch.allclose(one.pooled, alone.pooled, atol=1e-6)


@pytest.mark.parametrize("name", tiny.NAMES[:3])
def test_encoders_in_turn_give_the_same_bits(tmp_path, name):
    tiny.write(tmp_path / name, tiny.parts(name))
    family = load(ModelOptions(path=str(tmp_path / name)))
    captions = ["a red cat", "", caption(40)]
    found = family.encode_in_turn(captions, torch.device("cpu"))
    with torch.no_grad():
        for text, got in zip(captions, found, strict=True):
            want = family.encode_text([text])
            assert torch.equal(got.hidden, want.hidden)
            assert (got.pooled is None and want.pooled is None) or torch.equal(got.pooled, want.pooled)
    assert family.encode_in_turn([], torch.device("cpu")) == []
