"""Feature extractors and scorers from local folders: CLIP, SigLIP, PickScore, HPSv2 (transformers' form), DINO, ViT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..runs.events import read_object

BOTH = ("clip", "siglip", "siglip2", "chinese_clip", "altclip")
"""model_type of networks with a tower for pictures and one for text."""
PICTURES = ("dinov2", "dinov3_vit", "dinov2_with_registers", "vit", "ijepa")
AT_ONCE = 8


def check(folder: str, where: str, scores: bool) -> None:
    """UserError where a folder holds no model of a kind that is read here; nothing is loaded."""
    kind = read_object(Path(folder) / "config.json").get("model_type")
    known = BOTH if scores else (*BOTH, *PICTURES)
    if kind not in known:
        what = f"a model of type '{kind}'" if kind else "no config.json of transformers"
        raise UserError(f"{where}: {folder} holds {what}; give a folder of one of {', '.join(known)}")


class Pictures:
    """A network from a folder that looks at pictures, and where it can at text."""

    def __init__(self, folder: str, device: torch.device, where: str = "measures.features", scores: bool = False):
        check(folder, where, scores)
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.device = device
        self.has_text = read_object(Path(folder) / "config.json").get("model_type") in BOTH
        try:
            self.net: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
            self.process: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True) if scores else None
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{where}: {folder} cannot be loaded ({reason}); give another folder") from None

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d] float32 on the CPU: the projected embedding, or the pooled output."""
        found = []
        for first in range(0, len(pictures), AT_ONCE):
            some = [picture.convert("RGB") for picture in pictures[first : first + AT_ONCE]]
            values = self.process(images=some, return_tensors="pt")["pixel_values"].to(self.device)
            ask = self.net.get_image_features if self.has_text else self.net
            found.append(_pooled(ask(pixel_values=values)).float().cpu())
        return torch.cat(found)

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """[n]: 100 times the cosine of each picture and its text: CLIPScore (arXiv 2104.08718) without its factor of
        2.5 and its clamp. PickScore (arXiv 2305.01569) and HPSv2 (arXiv 2306.09341) are the same of other weights."""
        seen = torch.nn.functional.normalize(self.features(pictures), dim=-1)
        most = min(self.words.model_max_length, self.net.config.text_config.max_position_embeddings)
        padding = "max_length" if self.net.config.model_type.startswith("siglip") else True  # as each was trained
        tokens = self.words(list(texts), padding=padding, truncation=True, max_length=most, return_tensors="pt")
        given = {key: value.to(self.device) for key, value in tokens.items() if key in ("input_ids", "attention_mask")}
        read = torch.nn.functional.normalize(_pooled(self.net.get_text_features(**given)).float().cpu(), dim=-1)
        return 100 * (seen * read).sum(-1)


def _pooled(out: Any) -> Tensor:
    """An embedding, whatever the version of transformers wraps it in."""
    if isinstance(out, Tensor):
        return out
    pooled = getattr(out, "pooler_output", None)
    return out.last_hidden_state[:, 0] if pooled is None else pooled


def latent_features(latents: Tensor, grid: int = 4) -> Tensor:
    """Of latents [1, C, h, w]: [2 C grid^2], the mean and the spread of each channel in each cell of a grid."""
    pool = torch.nn.functional.adaptive_avg_pool2d
    mean = pool(latents.float(), grid)
    spread = (pool(latents.float().square(), grid) - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean.flatten(), spread.flatten()]).cpu()
