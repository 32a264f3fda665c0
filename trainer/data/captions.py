"""From the text beside a picture to the caption of one step. The order of operations is that of sd-scripts (48d368fa):

prefix and suffix, dropout, wildcards or the first line, kept tags, warm-up, shuffle, tag dropout, secondary separator.
"""

from __future__ import annotations

import math
import random
import re

from ..runs.files import decode
from .options import PictureOptions

EXTENSIONS = (".txt", ".caption", ".cap", ".tags")


def read(data: bytes) -> str:
    """The text of a caption file: lines without their margins, empty lines left out.

    :raises UnicodeDecodeError: neither UTF-8 nor UTF-16.
    """
    lines = decode(data).replace("\r", "\n").split("\n")
    return "\n".join(line.strip() for line in lines if line.strip())


def varies(options: PictureOptions) -> bool:
    """Whether a picture's caption is drawn from many, so that its encoding is not worth keeping on disk."""
    return options.shuffle or options.wildcards or options.tag_dropout > 0 or options.token_warmup_steps > 0


def drops(options: PictureOptions) -> bool:
    """Whether the empty caption is trained too."""
    return options.caption_dropout > 0 or options.caption_dropout_every_n_epochs > 0


def tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, trimmed and in lower case, for statistics."""
    return [tag.strip().lower() for tag in caption.split(separator) if tag.strip()]


def draw(
    text: str, options: PictureOptions, rng: random.Random, epoch: int = 1, step: int = 0, total_steps: int = 0
) -> str:
    """The caption of one step.

    :param rng: makes all choices; it is asked only for options that are on.
    :param epoch: counted from 1.
    :param step: counted from 0, for the warm-up.
    :param total_steps: of the run; needed when the warm-up is a fraction of it.
    """
    text = _framed(text, options)
    every = options.caption_dropout_every_n_epochs
    dropped = options.caption_dropout > 0 and rng.random() < options.caption_dropout
    if dropped or (every > 0 and epoch % every == 0):
        return ""
    text = _wildcards(text, rng) if options.wildcards else text.split("\n")[0]
    warmup = options.token_warmup_steps
    if warmup < 1:
        warmup = math.floor(warmup * total_steps)
    if _joins(text, options):
        head, middle, tail = _parts(text, options)
        if step < warmup:
            count = math.floor(step * ((len(middle) - options.token_warmup_min) / warmup)) + options.token_warmup_min
            middle = middle[:count]
        if options.shuffle:
            rng.shuffle(middle)
        if options.tag_dropout > 0:
            middle = [tag for tag in middle if rng.random() >= options.tag_dropout]
        text = _joiner(options).join(head + middle + tail)
    return _finished(text, options)


def plain(text: str, options: PictureOptions) -> str:
    """The caption without chance: for measuring. Its tags are joined as those of training are."""
    text = _framed(text, options).split("\n")[0]
    if _joins(text, options):
        text = _joiner(options).join(tag for part in _parts(text, options) for tag in part)
    return _finished(text, options)


def _joins(text: str, options: PictureOptions) -> bool:
    """Whether the caption is taken apart into its tags and joined again."""
    return options.shuffle or options.token_warmup_steps > 0 or options.tag_dropout > 0 or _marked(text, options)


def _joiner(options: PictureOptions) -> str:
    """What stands between joined tags: the separator that they were split by, and a space."""
    return options.separator if options.separator[-1].isspace() else f"{options.separator} "


def _framed(text: str, options: PictureOptions) -> str:
    if options.prefix:
        text = f"{options.prefix} {text}"
    return f"{text} {options.suffix}" if options.suffix else text


def _finished(text: str, options: PictureOptions) -> str:
    if options.secondary_separator:
        text = text.replace(options.secondary_separator, options.separator)
    if options.trigger and not re.search(rf"(?<!\w){re.escape(options.trigger)}(?!\w)", text):
        text = f"{options.trigger}{_joiner(options)}{text}" if text else options.trigger
    return text


def _wildcards(text: str, rng: random.Random) -> str:
    if "\n" in text:
        text = rng.choice(text.split("\n"))
    opening, closing = "\x00", "\x01"
    text = text.replace("{{", opening).replace("}}", closing)
    text = re.sub(r"\{([^}]+)\}", lambda found: rng.choice(found.group(1).split("|")), text)
    return text.replace(opening, "{").replace(closing, "}")


def _marked(text: str, options: PictureOptions) -> bool:
    return bool(options.keep_tokens_separator) and options.keep_tokens_separator in text


def _parts(text: str, options: PictureOptions) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, that may change, and that stay behind."""
    if options.keep_tokens_separator and options.keep_tokens_separator in text:
        pieces = [*text.split(options.keep_tokens_separator, 2), "", ""]
        parts = [[tag.strip() for tag in piece.split(options.separator) if tag.strip()] for piece in pieces[:3]]
        return parts[0], parts[1], parts[2]
    tags = [tag.strip() for tag in text.strip().split(options.separator)]
    return tags[: options.keep_tokens], tags[options.keep_tokens :], []
