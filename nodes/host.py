"""What the nodes use of ComfyUI: its folders, progress bar, interrupt, pictures and routes. Imported by it lazily.

Whatever a workflow names stays inside the folders listed here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..trainer.errors import UserError
from ..trainer.runs import control
from ..trainer.runs.folder import safe_name

RUNS, DATA = "pixelkiln_runs", "pixelkiln_data"
"""Folder kinds that ``extra_model_paths.yaml`` may extend."""
NONE = "none"
OUTPUT_LORAS, MODELS_LORAS, RUN_ONLY = "output/loras", "models/loras", "the run's folder only"


# ------------------------------------------------------------------------------------------------------------ folders


@cache
def register() -> None:
    """Tell ComfyUI about the pack's folders; once."""
    import folder_paths

    base = Path(folder_paths.get_output_directory()) / "pixelkiln"
    folder_paths.add_model_folder_path(RUNS, str(base / "runs"))
    folder_paths.add_model_folder_path(RUNS, str(control.ROOT / "runs"))
    folder_paths.add_model_folder_path(DATA, str(base / "data"))
    # ComfyUI of today lists this folder by itself.
    folder_paths.add_model_folder_path("loras", str(Path(folder_paths.get_output_directory()) / "loras"))


def folders(kind: str) -> list[Path]:
    """The folders of a kind; of the pack's own kinds the one in ComfyUI's output first, whatever else is listed."""
    import folder_paths

    own = Path(folder_paths.get_output_directory()) / "pixelkiln" / kind.removeprefix("pixelkiln_")
    return sorted(map(Path, folder_paths.get_folder_paths(kind)), key=lambda folder: folder != own)


def inside(path: str | Path, roots: Iterable[Path]) -> Path:
    """The real path, if it lies in one of the folders. UserError otherwise: a workflow may come from anybody."""
    real = Path(os.path.realpath(path))
    allowed = list(roots)
    if not any(real.is_relative_to(os.path.realpath(root)) for root in allowed):
        places = ", ".join(str(root) for root in allowed)
        raise UserError(
            f"{path}: it lies outside of the folders that a workflow may use; move it into one of: {places}"
        )
    return real


def named(root: Path, name: str) -> Path:
    """A folder of this name directly in ``root``. UserError for a name that is a path."""
    return inside(root / safe_name(name.strip()), [root])


def place(kind: str, name: str) -> Path:
    """The folder of this name where there is one already; a new one belongs into the first folder of the kind."""
    found = [named(root, name) for root in folders(kind)]
    return next((folder for folder in found if folder.is_dir()), found[0])


def lora_folder(where: str) -> Path | None:
    """The folder, below one that ComfyUI lists adapters from, that a finished run's adapter is copied into."""
    import folder_paths

    listed = {OUTPUT_LORAS: Path(folder_paths.get_output_directory()) / "loras"}
    if where == MODELS_LORAS:
        listed[where] = next((f for f in folders("loras") if f != listed[OUTPUT_LORAS]), listed[OUTPUT_LORAS])
    return listed[where] / "pixelkiln" if where in listed else None


def gpu_gb() -> float:
    """GB of memory of the GPU that ComfyUI uses; 0 without one."""
    import comfy.model_management as management

    device = management.get_torch_device()
    return 0.0 if device.type == "cpu" else management.get_total_memory(device) / 2**30


def adapters() -> list[str]:
    """What can be chosen: none, and every adapter file that ComfyUI knows."""
    import folder_paths

    return [NONE, *folder_paths.get_filename_list("loras")]


def adapter_path(name: str, path: str | None = None) -> Path | None:
    """The chosen file; ``path``, when there is a link, comes first. None when nothing is chosen."""
    import folder_paths

    if path == "":
        raise UserError("path: the linked node has no adapter yet; wait for the run's first save and queue again")
    if path is not None:
        return inside(path, [*folders("loras"), *folders(RUNS), Path(folder_paths.get_output_directory())])
    if not name or name == NONE:
        return None
    found = folder_paths.get_full_path("loras", name)
    if found is None:
        raise UserError(f"adapter: there is no {name} in the loras folders any more; press R and choose again")
    return Path(found)


def runs() -> dict[str, Path]:
    """Run folders by what they are called in the list; the one that spoke last first."""
    found: dict[str, Path] = {}
    for root in folders(RUNS):
        for run in control.list_runs(root):
            found[run.name if run.name not in found else f"{run.name} ({root.parent.name})"] = run.path
    return found


def run_names() -> list[str]:
    return [*runs(), NONE]


def run_path(name: str) -> Path:
    known = runs()
    if name == NONE:
        raise UserError("run: none is chosen; choose one, or start a training first and press R")
    if name not in known:
        there = ", ".join(list(known)[:10]) or "none yet"
        raise UserError(f"run: there is no '{name}'; there is: {there}")
    return known[name]


def stamp(path: Path | None) -> str:
    """Changes when the file does, also under the same name."""
    if path is None:
        return ""
    try:
        found = path.stat()
    except OSError:
        return f"{path} is gone"
    return f"{path} {found.st_mtime_ns} {found.st_size}"


# ----------------------------------------------------------------------------------------------- progress, interrupt


class Bar:
    """ComfyUI's progress bar of the running node."""

    def __init__(self, total: int):
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(total)
        self._total = total

    def update(self, value: int, preview: Image.Image | None = None) -> bool:
        """Whether the user interrupted meanwhile: ComfyUI's bar raises then, and forgets it."""
        import comfy.model_management as management

        try:
            self._bar.update_absolute(value, self._total, ("JPEG", preview, 512) if preview else None)
        except management.InterruptProcessingException:
            return True
        return False


def progress_text(text: str, node_id: str) -> None:
    """Text on the running node, where this ComfyUI can show it."""
    from server import PromptServer

    send = getattr(PromptServer.instance, "send_progress_text", None)
    if send:
        send(text, node_id)


def take_interrupt() -> bool:
    """Whether the user interrupted since last asked; a second press is then seen as a second one."""
    import comfy.model_management as management

    if not management.processing_interrupted():
        return False
    management.interrupt_current_processing(False)
    return True


def interrupted() -> Exception:
    """What ComfyUI expects to be raised by a node that was interrupted."""
    import comfy.model_management as management

    return management.InterruptProcessingException()


def free_memory() -> None:
    import comfy.model_management as management

    management.unload_all_models()
    management.soft_empty_cache()


# ----------------------------------------------------------------------------------------------------------- pictures


def pictures(images: Tensor) -> list[Image.Image]:
    """IMAGE, [B, H, W, 3 or 4] in 0..1, as RGB pictures."""
    pixels = (images[..., :3].detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(one) for one in pixels]


def tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as IMAGE, [B, H, W, 3]."""
    return torch.stack([torch.from_numpy(np.asarray(p.convert("RGB"), dtype=np.float32) / 255) for p in pictures])


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=4)
    return out.getvalue()


def show(pictures: Sequence[Image.Image], prefix: str) -> list[dict[str, str]]:
    """Write pictures where the page can see them until ComfyUI restarts; what a node's ``ui`` wants to hear."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for picture in pictures:
        name = f"{prefix}_{os.urandom(8).hex()}.png"
        (folder / name).write_bytes(png(picture))
        shown.append({"filename": name, "subfolder": "", "type": "temp"})
    return shown


def text(lines: str | Sequence[str]) -> dict[str, Any]:
    """Text to show on the node."""
    return {"text": [lines if isinstance(lines, str) else "\n".join(lines)]}


def warn(message: str) -> None:
    import logging

    logging.getLogger("pixelkiln").warning(message)
