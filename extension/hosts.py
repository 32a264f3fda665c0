"""Where models lie on this machine: the folders of ComfyUI, A1111, Forge and kohya that can be found without asking."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..trainer.errors import UserError
from ..trainer.runs.events import read_object
from ..trainer.runs.files import write_atomic
from . import words
from .store import ROOT, Home, write_json

NAMES = (
    "ComfyUI", "comfyui", "stable-diffusion-webui", "stable-diffusion-webui-forge", "sd-webui-forge-classic",
    "sd-webui-forge-neo", "forge", "kohya_ss", "sd-scripts",
)  # fmt: skip
CHECKPOINTS = ("models/checkpoints", "models/Stable-diffusion", "models/diffusion_models", "models")
LORAS = ("models/loras", "models/Lora")


@dataclass(frozen=True)
class Host:
    """A program that draws with our files."""

    name: str
    root: Path
    loras: Path | None
    checkpoints: tuple[Path, ...]


def _places() -> list[Path]:
    """Where a program may have been put: around this checkout, at home, where variables point."""
    around = [ROOT.parent, ROOT.parents[1], ROOT.parents[2]] if len(ROOT.parents) > 2 else [ROOT.parent]
    home = Path.home()
    return [*around, home, home / "Documents", home / "Desktop", home / "AI", home / "Downloads"]


def _candidates(home: Home) -> list[Path]:
    named = [os.environ.get(name) for name in ("COMFYUI_PATH", "A1111_PATH", "FORGE_PATH", "WEBUI_PATH")]
    added = read_object(home.settings).get("hosts", [])
    inside = [parent for parent in ROOT.parents if (parent / "models").is_dir()][:1]  # custom_nodes/ or extensions/
    guessed = [place / name for place in _places() for name in NAMES]
    return [Path(one) for one in [*named, *added] if isinstance(one, str) and one] + inside + guessed


def find(home: Home) -> list[Host]:
    """The programs that are there, each once."""
    out: dict[Path, Host] = {}
    for root in _candidates(home):
        try:
            if root in out or not root.is_dir():
                continue
            root = root.resolve()
            loras = next((root / name for name in LORAS if (root / name).is_dir()), None)
            models = tuple(root / name for name in CHECKPOINTS if (root / name).is_dir())
        except OSError:
            continue
        if loras or models:
            out.setdefault(root, Host(root.name, root, loras, models))
    return list(out.values())


def add(home: Home, folder: Path) -> None:
    """Remember a program's folder that was not found by itself."""
    if not any((folder / name).is_dir() for name in (*LORAS, *CHECKPOINTS)):
        raise UserError(words.NO_PROGRAM.format(folder))
    settings = read_object(home.settings)
    known = [one for one in settings.get("hosts", []) if one != str(folder)]
    write_json(home.settings, {**settings, "hosts": [*known, str(folder)]})


def model_places(home: Home) -> list[Path]:
    """Folders of base models beside those of the programs: the page's own, and those that were added."""
    added = read_object(home.settings).get("model_folders", [])
    return [home.models, *(Path(one) for one in added if isinstance(one, str))]


def add_models(home: Home, folder: Path) -> None:
    """Look for base models in this folder too."""
    settings = read_object(home.settings)
    known = [one for one in settings.get("model_folders", []) if one != str(folder)]
    write_json(home.settings, {**settings, "model_folders": [*known, str(folder)]})


def give(adapter: Path, host: Host) -> Path:
    """Copy an adapter into the program's folder; one of the same name and other content keeps its place."""
    if host.loras is None:
        raise UserError(words.NO_LORAS.format(host.name, host.root / LORAS[0]))
    target = host.loras / adapter.name
    number = 2
    while target.exists() and target.read_bytes() != adapter.read_bytes():
        target = host.loras / f"{adapter.stem}-{number}{adapter.suffix}"
        number += 1
    write_atomic(target, lambda aside: shutil.copyfile(adapter, aside))
    return target
