"""Convert, resize and merge adapters: the trainer's commands as nodes. Files go below output/loras, under a name that
follows from what is in them, so nothing is replaced and a queue repeated makes nothing twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..trainer.adapters.keys import known
from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.folder import safe_name
from . import host
from .node import In, Node, Out, Result, never_same

FROM_FILE = "from the file"
FORMS = ("kohya", "diffusers")
ROWS = 4


def _target(name: str, about: str, *parts: object) -> Path:
    """A new file among the adapters that ComfyUI lists, named after what it is made of."""
    folder = host.lora_folder(host.OUTPUT_LORAS)
    assert folder is not None
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:8]
    return host.named(folder, f"{safe_name(name.strip()) if name.strip() else about[:60]}-{digest}.safetensors")


def _made(target: Path, command: Sequence[str]) -> Result:
    """Run the trainer's command unless the file is there; its path, and what was lost."""
    if target.is_file():
        info = f"{target.name}: made before from the same files and settings"
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        answer = control.ask(command)
        info = "\n".join([target.name, *map(str, answer.get("notes") or [])])
    return Result((str(target), info), host.text(info))


def _of(family: str) -> list[str]:
    return [] if family == FROM_FILE else ["--family", family]


def _convert(adapter: str, form: str, rank: int, family: str, name: str, path: str | None = None) -> Result:
    source = host.adapter_path(adapter, path)
    if source is None:
        raise UserError("adapter: none is chosen; choose a file, or link one")
    about = f"{source.stem}-{form}" + (f"-rank{rank}" if rank else "")
    target = _target(name, about, host.stamp(source), form, rank, family)
    more = ["--rank", str(rank)] if rank else []
    return _made(target, ["convert", str(source), str(target), "--to", form, *more, *_of(family)])


def _merge(rank: int, family: str, name: str, **rows: Any) -> Result:
    chosen: list[tuple[Path, float]] = []
    for i in range(1, ROWS + 1):
        file = host.adapter_path(rows.get(f"adapter_{i}") or host.NONE, rows.get(f"path_{i}"))
        if file is not None:
            chosen.append((file, float(rows.get(f"weight_{i}", 1.0))))
    if not chosen:
        raise UserError("adapter_1: none is chosen; choose the files to be joined, or link them")
    target = _target(name, "+".join(file.stem for file, _ in chosen), rank, family,
                     *(f"{host.stamp(file)} {weight}" for file, weight in chosen))  # fmt: skip
    more = ["--rank", str(rank)] if rank else []
    return _made(target, ["merge", str(target), *(f"{file}={weight}" for file, weight in chosen), *more, *_of(family)])


def _fingerprint(**inputs: Any) -> str:
    """Of the files in the lists; of what a link brings, its own node tells."""
    names = [value for key, value in inputs.items() if key.startswith("adapter")]
    if any(value is None for value in names):
        return never_same()
    try:
        return " ".join(host.stamp(host.adapter_path(name)) for name in names)
    except UserError as error:
        return str(error)


def _rank(without: str) -> In:
    return In("rank", "INT", f"Cut to this rank by singular values; 0: {without}.", default=0, low=0, high=4096)


_FAMILY = In("family", "COMBO", "For a file that does not show its family, such as one of text encoders only.",
             default=FROM_FILE, options=lambda: (FROM_FILE, *known()), advanced=True)  # fmt: skip
_NAME = In("name", "STRING", "How the new file is called, below output/loras/pixelkiln; empty: after its source. "
           "A short code for the files and settings is added.", default="")  # fmt: skip
_OUT = (
    Out("path", "STRING", "The new file, for Load adapter and Adapter stack."),
    Out("info", "STRING", "What was lost, and what has no form there."),
)

CONVERT = Node(
    id="PixelkilnConvertAdapter",
    name="Convert or resize adapter (Pixelkiln)",
    about="Writes an adapter at another rank, or in the names of Kohya's tools or of diffusers, and says what is lost. "
    "LoHa and LoKr become a LoRA by a rank.",
    run=_convert,
    inputs=(
        In("adapter", "COMBO", "A file from the loras folders.", options=host.adapters),
        In("form", "COMBO", "kohya: what ComfyUI, Forge and sd-scripts read. diffusers: what its pipelines read.",
           default="kohya", options=FORMS),
        _rank("as it is"), _FAMILY, _NAME,
        In("path", "STRING", "An adapter file from another node; it comes before the list.", optional=True,
           socket=True),
    ),
    outputs=_OUT,
    aliases=("resize lora", "convert lora", "lora rank", "peft", "extract", "svd"),
    fingerprint=_fingerprint,
    output=True,
)  # fmt: skip
MERGE = Node(
    id="PixelkilnMergeAdapters",
    name="Merge adapters (Pixelkiln)",
    about="Joins up to four adapters of one family into one file, each with its weight, and says what is lost. LoRA "
    "are joined exactly; LoHa and LoKr need a rank; a DoRA cannot be merged.",
    run=_merge,
    inputs=(
        *(one for i in range(1, ROWS + 1) for one in (
            In(f"adapter_{i}", "COMBO", "A file from the loras folders.", options=host.adapters, optional=i > 2),
            In(f"weight_{i}", "FLOAT", "How much of it; may be negative.", default=1.0, low=-100.0, high=100.0,
               step=0.01, optional=i > 2),
        )),
        _rank("ranks add up"), _FAMILY, _NAME,
        *(In(f"path_{i}", "STRING", "An adapter file from another node, for the row of its number; it comes before the "
             "list.", optional=True, socket=True, grows="paths") for i in range(1, ROWS + 1)),
    ),
    outputs=_OUT,
    aliases=("merge lora", "combine lora", "join loras", "add loras"),
    fingerprint=_fingerprint,
    output=True,
)  # fmt: skip
NODES = (CONVERT, MERGE)
