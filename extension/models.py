"""Base models on this machine: where they lie, of which family they are, and how large."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from ..trainer.runs.events import read_object
from . import words
from .hosts import Host
from .store import ROOT

BUNDLED = ROOT / "presets" / "base"
SMALLEST = 5e8
"""Bytes: a smaller file is no base model."""
HEADER_BYTES = 100_000_000
FAMILIES = {"sd15": "SD 1.5", "sdxl": "SDXL", "sd3": "SD3 / SD3.5"}
SIGNS = (
    ("sd3", re.compile(r"joint_blocks\.\d")),
    ("sdxl", re.compile(r"conditioner\.embedders\.1|text_encoder_2|add_embedding|label_emb")),
    ("sd15", re.compile(r"cond_stage_model\.|model\.diffusion_model\.input_blocks")),
)
"""The first that occurs among a file's tensor names says its family."""
PIPELINES = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3"}


@dataclass(frozen=True)
class Model:
    path: Path
    where: str
    """The program whose folder it lies in."""
    family: str = ""
    """sd15, sdxl or sd3; empty where the file does not tell."""
    gb: float = 0.0

    @property
    def title(self) -> str:
        size = f"{self.gb:.1f} GB" if self.gb >= 0.1 else ""
        parts = [words.DEMO_BASE if self.path == BUNDLED else self.path.stem, FAMILIES.get(self.family, ""), size]
        return " · ".join(filter(None, [*parts, self.where]))


def found(hosts: Iterable[Host], folders: Iterable[Path] = ()) -> list[Model]:
    """Base models to choose from, each once: the bundled one, then those of each folder."""
    out: dict[Path, Model] = {}
    if (BUNDLED / "model_index.json").is_file():
        out[BUNDLED] = Model(BUNDLED, "", "sd15")
    places = [(folder, host.name) for host in hosts for folder in host.checkpoints]
    for folder, name in [*places, *((folder, folder.name) for folder in folders)]:
        for depth in ("*", "*/*") if folder.name != "models" else ("*",):
            for path in sorted(folder.glob(depth)):
                one = look(path, name)
                if one:
                    out.setdefault(path, one)
    return list(out.values())


def look(path: Path, where: str = "") -> Model | None:
    """The model at a path: a diffusers folder or a large safetensors file; None for anything else."""
    try:
        if path.is_dir() and (path / "model_index.json").is_file():
            kind = str(read_object(path / "model_index.json").get("_class_name"))
            return Model(path, where, PIPELINES.get(kind, ""), _folder_bytes(str(path)) / 1e9)
        if path.suffix != ".safetensors" or not path.is_file():
            return None
        stat = path.stat()
        family = family_of(str(path), stat.st_mtime_ns)
        return Model(path, where, family, stat.st_size / 1e9) if family and stat.st_size > SMALLEST else None
    except OSError:
        return None


@lru_cache(maxsize=2000)
def family_of(path: str, _changed: int) -> str:
    """By the names of a safetensors file's tensors; empty when it is none, or of another kind."""
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            names = "\n".join(json.loads(file.read(length))) if length < HEADER_BYTES else ""
    except (OSError, ValueError, TypeError):
        return ""
    return next((family for family, sign in SIGNS if sign.search(names)), "")


@lru_cache(maxsize=500)
def _folder_bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


# ---------------------------------------------------------------------------------------------- preset by three choices


GOALS = ("character", "style", "concept", "detail", "preference", "depth", "normal")


@cache
def gpu() -> tuple[str, float]:
    """The first GPU's name and its GB; ("", 0) where there is none that the driver reports."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "", 0.0
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(asked, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL).stdout
        name, _, megabytes = out.strip().split("\n")[0].rpartition(",")
        return name.strip(), float(megabytes) / 1024
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "", 0.0


def preset_parts(name: str) -> tuple[str, str, int] | None:
    """``sdxl-style-12gb`` as family, goal and GB."""
    found = re.fullmatch(r"(sd15|sdxl|sd3)-([a-z]+)-(\d+)gb", name)
    return (found[1], found[2], int(found[3])) if found else None


def choose_preset(names: Iterable[str], family: str, goal: str, gb: float) -> str | None:
    """The preset of this family and goal for the largest GPU that is no larger than ``gb``, else for the smallest."""
    fitting = sorted(
        (parts[2], name) for name in names if (parts := preset_parts(name)) and parts[:2] == (family, goal)
    )
    within = [name for size, name in fitting if size <= gb + 0.6]  # a 12 GB GPU reports 11.6 GiB
    return within[-1] if within else fitting[0][1] if fitting else None
