"""Captions in sentences by a model of the BLIP or Florence kind, from a transformers folder on this machine. Nothing is
fetched.

``models/captioner`` holds what the model's authors publish: config.json, the processor's and tokenizer's files, the
weights as safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainer.errors import UserError
from ..trainer.runs.events import read_object
from . import images, words
from .store import ROOT, Home

FOLDER = ROOT / "models" / "captioner"
TASKS = {"blip": "", "blip-2": "", "git": "", "florence2": "<DETAILED_CAPTION>"}
"""Kind of model in config.json -> the text that asks it for a caption."""
LONGEST = 96
"""Tokens of a caption at most."""


@dataclass(frozen=True)
class Captioner:
    model: Any
    processor: Any
    task: str

    def caption(self, path: Path) -> str:
        """One sentence, or a few. UserError: the picture cannot be read."""
        import torch

        asked = {"text": self.task} if self.task else {}
        given = self.processor(
            images=images.opened(path, words.NO_CAPTION_KEPT).convert("RGB"), return_tensors="pt", **asked
        ).to(self.model.device)
        with torch.inference_mode():
            found = self.model.generate(**given, max_new_tokens=LONGEST, num_beams=3, do_sample=False)
        return " ".join(self.processor.batch_decode(found, skip_special_tokens=True)[0].split())


def folder(home: Home) -> Path:
    """Where a captioner lies: beside the program, else beside the models that the page fetched."""
    return FOLDER if there(FOLDER) else home.models / "captioner"


def there(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def load(folder: Path) -> Captioner:
    """On the GPU, where there is one. UserError: the files are not there, or are no captioner."""
    kind = str(read_object(folder / "config.json").get("model_type", ""))
    if kind not in TASKS:
        raise UserError(words.NO_CAPTIONER.format(folder, kind, ", ".join(TASKS)))
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(words.CAPTIONER_UNREADABLE.format(folder, first)) from None
    return Captioner(torch.nn.Module.to(model.eval(), device), processor, TASKS[kind])
