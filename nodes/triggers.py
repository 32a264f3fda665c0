"""Trigger words: choose among those that a file brings."""

from __future__ import annotations

import re

from ..trainer.errors import UserError
from . import adapter, host, load
from .node import In, Node, Out, Result

AUTHOR, TAGS, EITHER = "the author's", "training tags", "the author's, else training tags"
MOST_SHOWN = 40


def offered(metadata: dict[str, str], source: str) -> list[tuple[str, str]]:
    """(word, remark) of what a file brings, in the order of their numbers."""
    author = [(word.strip(), "") for word in adapter.author_words(metadata).split(",") if word.strip()]
    tags = [(tag, f"{count} times") for tag, count in adapter.tags(metadata)]
    return {AUTHOR: author, TAGS: tags, EITHER: author or tags}[source]


def chosen(which: str, words: list[str], most: int) -> list[str]:
    """``1, 3-5`` or words themselves, in the order given; nothing chooses the first ``most``. UserError otherwise."""
    if not which.strip():
        return words[:most]
    found: list[str] = []
    for part in filter(None, (one.strip() for one in re.split(r"[,;\n]", which))):
        numbers = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
        if numbers and part not in words:
            low, high = int(numbers[1]), int(numbers[2] or numbers[1])
            if not 1 <= low <= high <= len(words):
                raise UserError(f"which: there is no {part}; the file brings {len(words)} words")
            found += words[low - 1 : high]
        elif part in words:
            found.append(part)
        else:
            raise UserError(f"which: the file does not bring '{part}'; it brings: {', '.join(words[:10]) or 'none'}")
    return list(dict.fromkeys(found))


def _triggers(adapter_name: str, source: str, which: str, most: int, path: str | None) -> Result:
    file = host.adapter_path(adapter_name, path)
    if file is None:
        return Result(("", []), host.text("no adapter is chosen"))
    words = offered(adapter.metadata_of(file), source)
    taken = chosen(which, [word for word, _ in words], most)
    lines = [
        f"{'*' if word in taken else ' '} {number} {word}" + (f" ({remark})" if remark else "")
        for number, (word, remark) in enumerate(words[:MOST_SHOWN], 1)
    ]
    lines += [f"and {len(words) - MOST_SHOWN} more"] if len(words) > MOST_SHOWN else []
    return Result((", ".join(taken), taken), host.text([file.name, *(lines or ["the file brings no words"])]))


def _run(adapter: str, source: str, which: str, most: int, path: str | None = None) -> Result:
    return _triggers(adapter, source, which, most, path)


TRIGGERS = Node(
    id="PixelkilnTriggerWords",
    name="Trigger words (Pixelkiln)",
    about="The trigger words of an adapter to choose from: what its author wrote, or its training tags by how often "
    "they came. The node shows them with numbers; chosen ones go into a prompt.",
    run=_run,
    inputs=(
        In("adapter", "COMBO", "A file from the loras folders.", options=host.adapters),
        In("source", "COMBO", "Where the words come from.", default=EITHER, options=(EITHER, AUTHOR, TAGS)),
        In("which", "STRING", "Numbers as in 1, 3-5, or the words; empty takes the first ones.", default=""),
        In("most", "INT", "How many are taken when none is named.", default=5, low=1, high=100),
        load.PATH,
    ),
    outputs=(
        Out("words", "STRING", "The chosen words, with commas between."),
        Out("list", "STRING", "The chosen words one by one.", many=True),
    ),
    aliases=("lora trigger", "activation words", "tags", "lora info"),
    fingerprint=load.fingerprint,
    output=True,
)
NODES = (TRIGGERS,)
