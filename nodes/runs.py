"""Newest of a run, block strengths as a node of their own, and several adapters in one node."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.errors import UserError
from ..trainer.runs import control
from . import host, load
from .blocks import PRESETS, parse
from .node import In, Node, Out, Result, never_same

# ------------------------------------------------------------------------------------------------------ newest of a run


def choose(run: Path, which: str) -> control.Checkpoint:
    """A run's adapter: newest, final, ``step 500``, ``epoch 3``. UserError lists what there is."""
    found = control.checkpoints(run)
    wanted = parse_which(which)
    for one in reversed(found):
        if wanted == "newest" or (wanted == "final" and one.step is None and one.epoch is None):
            return one
        if wanted in (("step", one.step), ("epoch", one.epoch)):
            return one
    there = ", ".join(map(label, found)) or "nothing yet; wait for its first save"
    raise UserError(f"run '{run.name}': it has no {which.strip()}; it has: {there}")


def parse_which(which: str) -> str | tuple[str, int]:
    """UserError for other words than newest, final, step N, epoch N."""
    words = which.strip().lower()
    match = re.fullmatch(r"(step|epoch)\s*=?\s*(\d+)", words)
    if match:
        return match[1], int(match[2])
    if words not in ("newest", "final"):
        raise UserError(f"which: '{which}' is not understood; write newest, final, step 500 or epoch 3")
    return words


def label(one: control.Checkpoint) -> str:
    return f"step {one.step}" if one.step is not None else f"epoch {one.epoch}" if one.epoch is not None else "final"


def _newest(run: str, which: str) -> Result:
    folder = host.run_path(run)
    one = choose(folder, which)
    now = control.status(folder)
    info = f"{folder.name}: {label(one)} ({one.path.name}); the run is {now.state} at step {now.step} of {now.total}"
    return Result((str(one.path), f"{folder.name} {label(one)}", info), host.text(info))


def _newest_fingerprint(run: str | None = None, which: str | None = None) -> str:
    try:
        return host.stamp(choose(host.run_path(run or ""), which or "").path)
    except UserError:
        return never_same()


def _check_newest(which: str | None = None) -> None:
    parse_which(which or "newest")


NEWEST = Node(
    id="PixelkilnRunAdapter",
    name="Newest of a run (Pixelkiln)",
    about="The adapter file of a training run: the newest, the final one, or that of a step or epoch. While the run "
    "writes, queueing again takes the newer file.",
    run=_newest,
    inputs=(
        In("run", "COMBO", "A training run.", options=host.run_names),
        In("which", "STRING", "newest, final, step 500 or epoch 3.", default="newest"),
    ),
    outputs=(
        Out("path", "STRING", "The adapter file, for Load adapter and Adapter stack."),
        Out("label", "STRING", "Run and step, for captions."),
        Out("info", "STRING", "The file and how the run stands."),
    ),
    group="training",
    aliases=("latest checkpoint", "epoch"),
    fingerprint=_newest_fingerprint,
    check=_check_newest,
)


# ------------------------------------------------------------------------------------------------------ block strengths


def _blocks(preset: str, blocks: str) -> Result:
    words = " ".join(filter(None, (PRESETS[preset], blocks.strip())))
    parse(words)
    return Result((words,), host.text(words or "1 everywhere"))


BLOCK_STRENGTHS = Node(
    id="PixelkilnBlockStrengths",
    name="Block strengths (Pixelkiln)",
    about="Strengths per block of the network, in words, for Load adapter and Adapter stack. A block that the network "
    "does not have is an error there that lists those it has.",
    run=_blocks,
    inputs=(
        In("preset", "COMBO", "Where to start.", default="everything", options=tuple(PRESETS)),
        In("blocks", "STRING", "Changes to the preset: in=1 mid=0.5 out.3-5=0 te=0. Later words win.", default="",
           multiline=True),
    ),
    outputs=(Out("blocks", "STRING", "The words, checked."),),
    aliases=("lora block weight", "lbw"),
    check=load.check_blocks,
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- stack

ROWS = 6


def _stack(model: Any, check: str, clip: Any = None, **rows: Any) -> Result:
    triggers, infos = [], []
    for i in range(1, ROWS + 1):
        strength = rows.get(f"strength_{i}", 1.0)
        file = host.adapter_path(rows.get(f"adapter_{i}", host.NONE), rows.get(f"path_{i}")) if strength else None
        if file is None:
            continue
        done = load.apply(model, clip, file, strength, strength, rows.get(f"blocks_{i}") or "", check)
        model, clip = done.model, done.clip
        triggers += [done.triggers] if done.triggers else []
        infos.append(done.info)
    for row in rows_of(rows.get("rows") or ""):
        if row.on and (row.model or row.clip):
            file = host.adapter_path(row.name)
            if file is None:
                continue
            done = load.apply(model, clip, file, row.model, row.clip, row.blocks, check)
            model, clip = done.model, done.clip
            triggers += [done.triggers] if done.triggers else []
            infos.append(done.info)
    info = "\n\n".join(infos) or "no adapter is chosen: model and CLIP are unchanged"
    return Result((model, clip, ", ".join(triggers), info), host.text(info))


@dataclass(frozen=True)
class StackRow:
    """A line of the stack's list: ``name | model strength | text encoder strength | blocks``; a # before it is off."""

    on: bool
    name: str
    model: float = 1.0
    clip: float = 1.0
    blocks: str = ""


def rows_of(text: str) -> list[StackRow]:
    """The rows in their order. The text encoders' strength is the model's where it is left out. UserError per line."""
    found = []
    for line in filter(None, map(str.strip, text.split("\n"))):
        name, *more = (part.strip() for part in line.lstrip("# ").split("|"))
        if not name or len(more) > 3:
            raise UserError(f"rows: '{line}' is no row; write a line such as style.safetensors | 0.8 | 0.5 | te=0")
        model, clip, blocks = [*more, "", "", ""][:3]
        parse(blocks)
        strength = _strength(line, model) if model else 1.0
        both = strength, _strength(line, clip) if clip else strength
        found.append(StackRow(not line.startswith("#"), name, *both, blocks))
    return found


def _strength(line: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not abs(found) <= 100:
        raise UserError(f"rows: in '{line}', {text} is no strength; write a number from -100 to 100")
    return found


def _check_rows(rows: str | None = None) -> None:
    rows_of(rows or "")


def _stack_fingerprint(**inputs: Any) -> str:
    stamps = [load.fingerprint(inputs.get(f"adapter_{i}", host.NONE)) for i in range(1, ROWS + 1)]
    if "rows" in inputs and inputs["rows"] is None:
        return never_same()
    try:
        stamps += [load.fingerprint(row.name) for row in rows_of(inputs.get("rows") or "") if row.on]
    except UserError as error:
        stamps.append(str(error))
    return "\n".join(stamps)


def _row(i: int) -> tuple[In, ...]:
    later = i > 3
    return (
        In(
            f"adapter_{i}",
            "COMBO",
            "A file from the loras folders.",
            options=host.adapters,
            optional=i > 1,
            advanced=later,
        ),
        In(
            f"strength_{i}",
            "FLOAT",
            "Strength for model and text encoders; 0 is off.",
            default=1.0,
            low=-100.0,
            high=100.0,
            step=0.01,
            optional=i > 1,
            advanced=later,
        ),
        In(
            f"blocks_{i}",
            "STRING",
            "Strength per block: in=1 mid=0.5 out.3-5=0 te=0.",
            default="",
            optional=True,
            advanced=later,
        ),
    )


def _path(i: int) -> In:
    return In(f"path_{i}", "STRING", "An adapter file from another node, for the row of its number; it comes before "
              "the list.", optional=True, socket=True, grows="paths")  # fmt: skip


STACK = Node(
    id="PixelkilnAdapterStack",
    name="Adapter stack (Pixelkiln)",
    about="Several adapters, one after the other, each with its strength and blocks, checked as by Load adapter.",
    run=_stack,
    inputs=(
        In("model", "MODEL", "The model to change."),
        In("clip", "CLIP", "The text encoders to change.", optional=True),
        load.CHECK,
        *(one for i in range(1, ROWS + 1) for one in _row(i)),
        *(_path(i) for i in range(1, ROWS + 1)),
        In(
            "rows",
            "STRING",
            "More adapters, as many as wanted, applied in this order after those above. One per line: "
            "file | model strength | text encoder strength | blocks; a # before it turns it off. The node shows them "
            "as rows with buttons.",
            default="",
            multiline=True,
            optional=True,
        ),
    ),
    outputs=(load.MODEL_OUT, load.CLIP_OUT, load.TRIGGERS_OUT, load.INFO_OUT),
    aliases=("lora stack", "power lora loader", "multiple loras"),
    fingerprint=_stack_fingerprint,
    check=_check_rows,
)
NODES = (NEWEST, BLOCK_STRENGTHS, STACK)
