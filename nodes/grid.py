"""A/B grid: adapters x strengths as columns, prompts x seeds as rows; in lists, so that any sampler draws it.

The plan's outputs are lists of equal length: what follows runs once per cell. A label is ``column`` newline ``row``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import ceil, isfinite, sqrt
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..trainer.errors import UserError
from . import host, load, runs
from .node import In, Node, Out, Result, never_same

MOST = 400
"""Cells of a grid."""


# -------------------------------------------------------------------------------------------------- what is asked for


def strengths_of(text: str) -> list[float]:
    """``0, 0.5, 1``. UserError for anything else."""
    try:
        found = [float(word) for word in _words(text)]
    except ValueError:
        found = []
    if not found or not all(map(isfinite, found)):
        raise UserError(f"strengths: '{text}' is no list of numbers; write for example 0, 0.5, 1")
    _once("strengths", [f"{one:g}" for one in found])
    return found


def seeds(text: str) -> list[int]:
    """``1, 2``, as ComfyUI's samplers take them: below 2^64. UserError for anything else."""
    words = _words(text)
    if not words or not all(re.fullmatch("[0-9]{1,20}", word) and int(word) < 2**64 for word in words):
        raise UserError(f"seeds: '{text}' should be whole numbers from 0 on, such as 1, 2, 3")
    found = [int(word) for word in words]
    _once("seeds", found)
    return found


def prompts_of(text: str) -> list[str]:
    found = lines(text)
    if not found:
        raise UserError("prompts: none is given; write one in each line")
    _once("prompts", found)
    return found


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _words(text: str) -> list[str]:
    return text.replace(",", " ").replace(";", " ").split()


def _once(what: str, found: Sequence[object]) -> None:
    """UserError for what comes twice: its name tells pictures apart."""
    for one, count in Counter(found).items():
        if count > 1:
            raise UserError(f"{what}: '{one}' is there {count} times; give each once")


def adapters_of(text: str, path: str | None = None) -> dict[Path, str]:
    """Files and their labels. One per line: a file of the loras folders, or ``run NAME: newest, step 100, ...``.

    A file that is chosen twice, as by newest and by its step, is there once.
    """
    linked = host.adapter_path(host.NONE, path)
    found = {linked: ""} if linked else {}
    for line in lines(text):
        if line.startswith("run ") and ":" in line:
            name, _, which = line.removeprefix("run ").partition(":")
            folder = host.run_path(name.strip())
            for word in filter(None, map(str.strip, which.split(","))):
                one = runs.choose(folder, word)
                found[one.path] = f"{name.strip()} {runs.label(one)}"
        elif file := host.adapter_path(line):
            found.setdefault(file, "")
    files = [file for file, name in found.items() if not name]
    found |= zip(files, short_names(files))
    _once("adapters", list(found.values()))
    return found


def short_names(files: Sequence[Path]) -> list[str]:
    """File names without suffix, with as many of their folders as tell them apart."""

    def end(file: Path, parts: int) -> str:
        return "/".join(file.with_suffix("").parts[-parts:])

    def alone(file: Path, parts: int) -> bool:
        return sum(end(other, parts) == end(file, parts) for other in files) == 1

    return [next((end(f, n) for n in range(1, len(f.parts)) if alone(f, n)), str(f)) for f in files]


# -------------------------------------------------------------------------------------------------------- plan, picture


def _plan(
    model: Any, adapters: str, strengths: str, prompts: str, seed_list: str, check: str, clip: Any = None,
    path: str | None = None,
) -> Result:  # fmt: skip
    levels, texts, drawn = strengths_of(strengths), prompts_of(prompts), seeds(seed_list)
    chosen = adapters_of(adapters, path)
    if not chosen:
        raise UserError("adapters: none is given; write a file's name in each line, or run NAME: newest, step 100")
    columns: list[tuple[str, Any, Any]] = []
    if 0 in levels:
        columns.append(("no adapter", model, clip))
    for file, name in chosen.items():
        for level in levels:
            if level:
                done = load.apply(model, clip, file, level, level, "", check)
                columns.append((f"{name} {level:g}", done.model, done.clip))
    cells = len(columns) * len(texts) * len(drawn)
    if cells > MOST:
        raise UserError(f"grid: {cells} pictures are too many; give at most {MOST}")
    models, clips, prompts_out, seeds_out, labels = [], [], [], [], []
    for column, one_model, one_clip in columns:  # the model changes slowest: it is patched once
        for text in texts:
            for seed in drawn:
                models.append(one_model)
                clips.append(one_clip)
                prompts_out.append(text)
                seeds_out.append(seed)
                labels.append(f"{column}\n{text}, seed {seed}")
    summary = f"{len(columns)} columns x {len(texts) * len(drawn)} rows = {cells} pictures"
    return Result((models, clips, prompts_out, seeds_out, labels), host.text(summary))


def assemble(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int = 0, gap: int = 4) -> Image.Image:
    """One labelled picture. Labels of the form ``column newline row`` give the table; others are written below each."""
    if len(labels) not in (0, len(pictures)):
        raise UserError(f"labels: {len(labels)} for {len(pictures)} pictures; give one for each, or none")
    split = [label.split("\n", 1) for label in labels]
    table = bool(split) and all(len(one) == 2 for one in split) and columns == 0
    if table:
        heads, sides = ([*dict.fromkeys(one[k] for one in split)] for k in (0, 1))
        places = [(sides.index(row), heads.index(column)) for column, row in split]
        if len(set(places)) < len(places):
            raise UserError("labels: two pictures have the same label; each needs its own")
    else:
        wide = columns or ceil(sqrt(len(pictures)))
        heads, sides = [""] * wide, [""] * ceil(len(pictures) / wide)
        places = [divmod(i, wide) for i in range(len(pictures))]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    size = max(11, min(28, width // 16))
    font = ImageFont.load_default(size)
    left = min(2 * width, 12 * size) if table else 0
    top = below = 0
    if table:
        top = _height(heads, font, width, size)
    elif labels:
        below = _height(labels, font, width, size)
    whole = Image.new("RGB", (left + len(heads) * (width + gap), top + len(sides) * (height + below + gap)), "white")
    draw = ImageDraw.Draw(whole)
    for i, head in enumerate(heads):
        draw.multiline_text((left + i * (width + gap) + 2, 2), _wrapped(head, font, width - 4), "black", font)
    for i, side in enumerate(sides):
        draw.multiline_text((2, top + i * (height + below + gap) + 2), _wrapped(side, font, left - 6), "black", font)
    for i, (picture, (row, column)) in enumerate(zip(pictures, places)):
        at = left + column * (width + gap), top + row * (height + below + gap)
        whole.paste(picture, at)
        if below:
            draw.multiline_text((at[0] + 2, at[1] + height + 2), _wrapped(labels[i], font, width - 4), "black", font)
    return whole


def _height(texts: Sequence[str], font: Any, width: int, size: int) -> int:
    return max(_wrapped(text, font, width - 4).count("\n") + 1 for text in texts) * int(size * 1.4) + 6


def _wrapped(text: str, font: Any, width: int) -> str:
    """Words put into lines that fit, five at most."""
    out = [""]
    for word in text.split():
        longer = f"{out[-1]} {word}".strip()
        if out[-1] and font.getlength(longer) > width:
            out.append(word)
        else:
            out[-1] = longer
    return "\n".join(out[:5])


def _grid(images: list[Tensor], columns: list[int], labels: list[str] | None = None) -> Result:
    pictures = [picture for batch in images for picture in host.pictures(batch)]
    if not pictures:
        raise UserError("images: no picture came in; connect the pictures of the plan")
    whole = assemble(pictures, labels or [], columns[0] if columns else 0)
    shown = host.show([whole], "pixelkiln_grid")
    return Result((host.tensor([whole]),), {"images": shown})


def _check_plan(strengths: str | None = None, prompts: str | None = None, seed_list: str | None = None) -> None:
    for read, text in ((strengths_of, strengths), (prompts_of, prompts), (seeds, seed_list)):
        if text is not None:
            read(text)


def _plan_stamp(adapters: str | None = None, **others: Any) -> str:
    """Of the files in the list; of what ``path`` brings, its own node tells."""
    if adapters is None:
        return never_same()
    try:
        return "\n".join(map(host.stamp, adapters_of(adapters)))
    except UserError:
        return never_same()


PLAN = Node(
    id="PixelkilnGridPlan",
    name="A/B grid: plan (Pixelkiln)",
    about="Every adapter at every strength, for every prompt and seed, as lists: what follows runs once per picture. "
    "Strength 0 is one column without adapter.",
    run=_plan,
    inputs=(
        In("model", "MODEL", "The model without adapters."),
        In("adapters", "STRING", "One per line: a file of the loras folders, or run NAME: newest, step 100, epoch 2.",
           default="", multiline=True),
        In("strengths", "STRING", "Strengths, as in 0, 0.5, 1.", default="0, 1"),
        In("prompts", "STRING", "A prompt in each line.", default="", multiline=True),
        In("seed_list", "STRING", "Seeds, as in 1, 2.", default="1"),
        load.CHECK,
        In("clip", "CLIP", "The text encoders without adapters.", optional=True),
        load.PATH,
    ),
    outputs=(
        Out("models", "MODEL", "Model of each picture.", many=True),
        Out("clips", "CLIP", "Text encoders of each picture.", many=True),
        Out("prompts", "STRING", "Prompt of each picture.", many=True),
        Out("seeds", "INT", "Seed of each picture.", many=True),
        Out("labels", "STRING", "Label of each picture, for A/B grid.", many=True),
    ),
    group="grid",
    aliases=("xy plot", "compare", "lora test"),
    fingerprint=_plan_stamp,
    check=_check_plan,
)  # fmt: skip
GRID = Node(
    id="PixelkilnGrid",
    name="A/B grid (Pixelkiln)",
    about="One labelled picture of a list of pictures: a table when the labels come from A/B grid: plan.",
    run=_grid,
    inputs=(
        In("images", "IMAGE", "The pictures, as a list."),
        In(
            "columns",
            "INT",
            "Pictures side by side; 0: the plan's table, or nearly square.",
            default=0,
            low=0,
            high=100,
        ),
        In("labels", "STRING", "A label for each picture.", optional=True, socket=True),
    ),
    outputs=(Out("image", "IMAGE", "The whole grid."),),
    group="grid",
    aliases=("contact sheet", "xy plot"),
    output=True,
    whole_lists=True,
)
NODES = (PLAN, GRID)
