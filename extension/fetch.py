"""Models by name from the hub: a base model, a tagger. A process of its own fetches, so that it outlives the page; what
was fetched before is not fetched again, and a fetch that was ended goes on where it was.

``python -m pixelkiln.extension.fetch FOLDER NAME``
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..trainer.errors import UserError
from ..trainer.runs import control, process
from ..trainer.runs.events import read_object
from . import findings, words
from .store import ROOT, Home, write_json

MARK = "start.json"
"""Names the process as a run's folder does, so that ``control`` can watch and end it."""


@dataclass(frozen=True)
class Source:
    """What is fetched under a name."""

    title: str
    repository: str
    files: tuple[str, ...]
    licence: str
    gb: float
    gated: bool = False
    """Only for who is logged in at the hub and has accepted the licence there."""


BASES = {
    "sd15": Source("SD 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", ("v1-5-pruned-emaonly.safetensors",),
                   "CreativeML Open RAIL-M", 4.3),
    "sdxl": Source("SDXL 1.0", "stabilityai/stable-diffusion-xl-base-1.0", ("sd_xl_base_1.0.safetensors",),
                   "CreativeML Open RAIL++-M", 6.9),
    "sd35m": Source(
        "SD3.5 medium", "stabilityai/stable-diffusion-3.5-medium",
        ("sd3.5_medium.safetensors", "text_encoders/clip_l.safetensors", "text_encoders/clip_g.safetensors"),
        "Stability AI Community", 6.9, gated=True,
    ),
}  # fmt: skip
TAGGERS = {
    "tagger": Source("WD tagger v3", "SmilingWolf/wd-vit-tagger-v3", ("model.onnx", "selected_tags.csv"), "Apache 2.0",
                     0.4),
}  # fmt: skip
SOURCES = {**BASES, **TAGGERS}


@dataclass(frozen=True)
class State:
    """How a fetch stands."""

    live: bool
    done: bool
    gb: float
    message: str = ""


def place(home: Home, name: str) -> Path:
    return home.models / name


def state(home: Home, name: str) -> State:
    """By what lies in the folder; a process that is gone leaves its last line."""
    folder, source = place(home, name), SOURCES[name]
    done = all((folder / file).is_file() for file in source.files)
    now = control.status(folder)
    message = "" if now.live or done else _failed(folder, SOURCES[name]) or now.message  # it crashed; "" once stopped
    return State(now.live, done and not now.live, _bytes(folder) / 1e9, message)


def _failed(folder: Path, source: Source) -> str:
    """Why the last try ended, in the language of who asks; empty where it did not fail."""
    why = read_object(folder / "failed.json").get("why")
    if not isinstance(why, str):
        return ""
    gated = words.GATED.format(source.title, source.repository)
    return words.NOT_FETCHED.format(source.title, why) if why else gated


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it is renamed when it is whole
            total += path.stat().st_size if path.is_file() else 0
    return total


def start(home: Home, name: str) -> None:
    """Fetch beside the page. UserError: it is under way, or the disk has no room for it."""
    folder, source = place(home, name), SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    now = state(home, name)
    if now.live or now.done:
        return
    free = findings.free_disk(folder)
    if free is not None and free < (source.gb - now.gb) + findings.SPARE_GB:
        raise UserError(words.NO_ROOM.format(folder, source.title, source.gb, free))
    (folder / "failed.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, str(folder), name]
    process_ = process.start_detached(command, folder / "log.txt", cwd=ROOT, env=os.environ)
    write_json(folder / MARK, {"v": 1, "job": f"{process_.pid}", **control.identity(process_.pid), "log": 0})


def stop(home: Home, name: str) -> None:
    """End it; what has come so far stays, and the next start continues."""
    folder = place(home, name)
    control.kill(folder)
    for mark in (MARK, "status.json"):
        (folder / mark).unlink(missing_ok=True)


def models(home: Home) -> list[Path]:
    """The base models that were fetched whole."""
    return [place(home, name) / source.files[0] for name, source in BASES.items() if state(home, name).done]


def run(folder: Path, name: str) -> int:
    """The process: the hub's own client, which goes on with what is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    source = SOURCES[name]
    try:
        for file in source.files:
            hf_hub_download(source.repository, file, local_dir=folder)
    except GatedRepoError:
        why = ""
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().split("\n")[0][:200]
    else:
        return 0
    write_json(folder / "failed.json", {"v": 2, "why": why})
    return 1


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), sys.argv[2]))
