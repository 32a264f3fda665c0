"""Captions. The results under a fixed seed were made by sd-scripts 48d368fa's process_caption."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkiln.trainer.data import captions
from pixelkiln.trainer.data.options import PictureOptions

GIRL = "1girl, red hair, sky, long coat, hat"
APPLE = "one {red|blue} apple, {{brace}}, x;;;y, z\nsecond line, w"


def options(**values) -> PictureOptions:
    return PictureOptions.model_validate(values)


@pytest.mark.parametrize(
    ("text", "values", "seed", "epoch", "step", "expected"),
    [
        ("a", {"prefix": "{x|y}", "suffix": "suf", "shuffle": True}, 7, 1, 40, "{x|y} a suf"),
        (APPLE, {"separator": ";", "secondary_separator": ";;;"}, 15, 2, 0, "one {red|blue} apple, {{brace}}, x;y, z"),
        (
            APPLE,
            {"prefix": "pre", "wildcards": True, "shuffle": True, "separator": ";", "secondary_separator": ";;;"},
            21, 1, 400, "pre one blue apple, {brace}, x; ; ; y, z",
        ),
        (
            "{a|b},{c|d|e},{{f}}, , g",
            {"caption_dropout": 0.1, "wildcards": True, "shuffle": True, "token_warmup_steps": 100,
             "token_warmup_min": 3},
            37, 1, 400, ", e, {f}, a, g",
        ),
        (
            APPLE,
            {"prefix": "a,b", "suffix": "suf", "caption_dropout": 0.5, "shuffle": True, "keep_tokens": 1},
            42, 2, 0, "a, z, {{brace}}, x;;;y, b one {red|blue} apple",
        ),
        (
            "{a|b},{c|d|e},{{f}}, , g", {"suffix": "suf", "caption_dropout": 0.5, "wildcards": True}, 46, 3, 40,
            "b,c,{f}, , g suf",
        ),
        (
            APPLE, {"token_warmup_steps": 0.5, "tag_dropout": 0.7, "keep_tokens": 1, "separator": ";"}, 47, 3, 0,
            "one {red|blue} apple, {{brace}}, x",
        ),
    ],
)  # fmt: skip
def test_the_choices_are_those_of_sd_scripts(text, values, seed, epoch, step, expected):
    assert captions.draw(text, options(**values), random.Random(seed), epoch, step, 100) == expected


def test_nothing_asked_for_nothing_changed():
    assert captions.draw(GIRL, options(), random.Random(0)) == GIRL
    assert captions.draw("first, line\nsecond", options(), random.Random(0)) == "first, line"


@pytest.mark.parametrize("step, count", [(0, 1), (25, 2), (50, 3), (99, 4), (100, 5), (1000, 5)])
def test_the_warmup_adds_tags_evenly(step, count):
    text = captions.draw(GIRL, options(token_warmup_steps=100), random.Random(0), 1, step)
    assert text == ", ".join(GIRL.split(", ")[:count])


def test_a_warmup_below_one_is_a_fraction_of_the_run():
    shown = options(token_warmup_steps=0.1)
    assert captions.draw(GIRL, shown, random.Random(0), 1, 9, 100) == "1girl, red hair, sky, long coat"
    assert captions.draw(GIRL, shown, random.Random(0), 1, 10, 100) == GIRL


def test_the_fixed_ends_stay():
    shown = options(shuffle=True, tag_dropout=0.5, keep_tokens_separator="|||")
    for seed in range(20):
        words = captions.draw("a, b ||| c, d, e, f ||| y, z", shown, random.Random(seed)).split(", ")
        assert words[:2] == ["a", "b"] and words[-2:] == ["y", "z"]


def test_the_keep_separator_never_reaches_the_model():
    assert captions.draw("a ||| b, c", options(keep_tokens_separator="|||"), random.Random(0)) == "a, b, c"
    assert captions.plain("a ||| b, c", options(keep_tokens_separator="|||")) == "a, b, c"


def test_dropout_comes_at_its_rate_and_in_its_epochs():
    dropped = [captions.draw(GIRL, options(caption_dropout=0.25), random.Random(i)) == "" for i in range(4000)]
    assert 0.22 < sum(dropped) / 4000 < 0.28
    every = options(caption_dropout_every_n_epochs=3)
    assert [captions.draw("a", every, random.Random(0), epoch) for epoch in (1, 2, 3, 4, 6)] == ["a", "a", "", "a", ""]


def test_tags_drop_at_their_rate_but_kept_ones_never():
    shown = options(tag_dropout=0.4, keep_tokens=1)
    counts = Counter(tag for i in range(2000) for tag in captions.draw(GIRL, shown, random.Random(i)).split(", "))
    assert counts["1girl"] == 2000
    assert all(0.56 < counts[tag] / 2000 < 0.64 for tag in ("red hair", "sky", "long coat", "hat"))


def test_the_trigger_is_first_and_survives_all_but_caption_dropout():
    shown = options(trigger="zwx person", shuffle=True, tag_dropout=1.0)
    assert captions.draw(GIRL, shown, random.Random(0)) == "zwx person"
    assert captions.draw("photo of zwx person, sky", options(trigger="zwx person"), random.Random(0)) == (
        "photo of zwx person, sky"
    )
    assert captions.plain("a pink cat thinking", options(trigger="ink")) == "ink, a pink cat thinking"
    for text in ("an ink cat", "ink, a cat", "a cat, (ink:1.2)"):
        assert captions.plain(text, options(trigger="ink")) == text
    assert captions.draw(GIRL, options(trigger="zwx", caption_dropout=1.0), random.Random(0)) == ""
    assert captions.plain("", options(trigger="zwx")) == "zwx"


words = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=6)
tag_lists = st.lists(words, min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(tag_lists, st.integers(0, 12), st.integers(0, 2**32))
def test_shuffling_keeps_the_tags_and_the_kept_ones_in_place(tags, keep, seed):
    drawn = captions.draw(", ".join(tags), options(shuffle=True, keep_tokens=keep), random.Random(seed)).split(", ")
    assert Counter(drawn) == Counter(tags)
    assert drawn[:keep] == tags[:keep]


@settings(deadline=None, max_examples=60)
@given(tag_lists, st.floats(0, 1), st.integers(0, 2**32))
def test_dropping_tags_keeps_their_order(tags, rate, seed):
    drawn = captions.draw(", ".join(tags), options(tag_dropout=rate), random.Random(seed))
    left = iter(tags)
    assert all(tag in left for tag in drawn.split(", ") if drawn)


@settings(deadline=None, max_examples=60)
@given(st.lists(words, min_size=1, max_size=5), st.integers(0, 2**32))
def test_a_wildcard_gives_one_of_its_words(choices, seed):
    drawn = captions.draw("a {" + "|".join(choices) + "} {{b}}", options(wildcards=True), random.Random(seed))
    assert drawn in {f"a {word} {{b}}" for word in choices}


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60), st.booleans(), st.booleans())
def test_without_chance_a_drawn_caption_is_the_plain_one(text, framed, kept):
    shown = options(**({"prefix": "p", "suffix": "s"} if framed else {}), keep_tokens_separator="|" if kept else None)
    assert captions.draw(text, shown, random.Random(0)) == captions.plain(text, shown)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80), st.integers(0, 2**32))
def test_any_text_is_a_caption(text, seed):
    everything = options(
        shuffle=True, wildcards=True, tag_dropout=0.3, token_warmup_steps=10.0, secondary_separator=";"
    )
    assert isinstance(captions.draw(text, everything, random.Random(seed), 1, 5, 100), str)


@pytest.mark.parametrize(
    "data",
    ["ein Bär, grün\n", "\ufeffein Bär, grün", "\n  ein Bär, grün  \r\n\r\n"],
    ids=["plain", "mark", "blank lines"],
)
def test_caption_files_are_read_as_utf8(data):
    assert captions.read(data.encode()) == "ein Bär, grün"
    assert captions.read("ein Bär, grün".encode("utf-16")) == "ein Bär, grün"


def test_another_encoding_is_not_guessed():
    with pytest.raises(UnicodeDecodeError):
        captions.read("ein Bär".encode("latin-1"))


def test_what_varies_and_what_drops():
    assert not captions.varies(options(prefix="a", caption_dropout=0.1))
    assert all(captions.varies(options(**{name: 1})) for name in ("tag_dropout", "token_warmup_steps"))
    assert captions.varies(options(shuffle=True)) and captions.varies(options(wildcards=True))
    assert captions.drops(options(caption_dropout=0.1)) and not captions.drops(options())
    assert captions.tags(" Red , blue,,") == ["red", "blue"]


@pytest.mark.parametrize("separator", [",", ".", ";", "|", " ", ", ", "\n"])
def test_tags_are_joined_by_what_they_were_split_by(separator):
    """In training, and as validation and previews see them; a trigger word too."""
    tags = ["b", "c", "d"]
    chosen = options(separator=separator, shuffle=True, keep_tokens=1, trigger="zz")
    text = separator.join(["a", *tags]) if separator != "\n" else "a b c d"
    joiner = separator if separator[-1].isspace() else f"{separator} "
    drawn = captions.draw(text, chosen, random.Random(1))
    plain = captions.plain(text, chosen)
    assert plain == (joiner.join(["zz", "a", *tags]) if separator != "\n" else "zz\na b c d")
    assert sorted(drawn.split(joiner)) == sorted(plain.split(joiner))
    assert captions.plain("a,b", options(separator=",", shuffle=True)) == "a, b"
    assert captions.plain("a,b", options()) == captions.draw("a,b", options(), random.Random(1)) == "a,b"
