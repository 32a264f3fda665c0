"""GPUs: the one that is found, or one that is named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import UserError
from ..memory import device as memory

GIB = 2**30
DESKTOP = 0.6
"""GiB that a desktop and its browser are taken to hold of a GPU that is only named."""
SIZES = {
    "1050 ti": 4, "1060": 6, "1070": 8, "1070 ti": 8, "1080": 8, "1080 ti": 11, "1650": 4, "1660": 6, "1660 ti": 6,
    "1660 super": 6, "2060": 6, "2060 super": 8, "2070": 8, "2070 super": 8, "2080": 8, "2080 super": 8, "2080 ti": 11,
    "3050": 8, "3060": 12, "3060 ti": 8, "3070": 8, "3070 ti": 8, "3080": 10, "3080 ti": 12, "3090": 24, "3090 ti": 24,
    "4060": 8, "4060 ti": 8, "4070": 12, "4070 super": 12, "4070 ti": 12, "4070 ti super": 16, "4080": 16,
    "4080 super": 16, "4090": 24, "5060": 8, "5060 ti": 16, "5070": 12, "5070 ti": 16, "5080": 16, "5090": 32,
    "t4": 16, "v100": 16, "p100": 16, "l4": 24, "l40s": 48, "a10": 24, "a40": 48, "a100": 40, "h100": 80, "h200": 141,
}  # fmt: skip
"""GiB of GPUs whose name does not say it; the smaller one where there are two."""
WITHOUT_BF16 = re.compile(r"\b(gtx|10[5-8]0|16[56]0|20[678]0|t4|v100|p100|p40)\b", re.IGNORECASE)
"""GPUs that compute in float16 but not in bfloat16."""


@dataclass(frozen=True)
class Gpu:
    """Where a run would compute."""

    name: str
    total: float
    """GiB."""
    free: float
    """GiB that a new process can have."""
    device: Literal["cuda", "cpu"]
    bf16: bool
    """Whether it computes in bfloat16."""
    here: bool = False
    """Whether it is this machine's."""

    def dtype(self, wanted: str) -> torch.dtype:
        """As ``memory.choose_precision``, for a GPU that need not be here."""
        if wanted != "auto" or self.device == "cpu":
            return memory.choose_precision(wanted, torch.device(self.device))
        return torch.bfloat16 if self.bf16 else torch.float16


def here(wanted: str = "auto") -> Gpu:
    """The device that ``run.device`` chooses on this machine."""
    device = memory.choose_device(wanted)
    if device.type != "cuda":
        import psutil

        ram = psutil.virtual_memory()
        return Gpu(memory.device_name(device), ram.total / GIB, ram.available / GIB, "cpu", True, True)
    free, total = torch.cuda.mem_get_info(device)
    free = min(total, free + 0.5 * GIB)  # asking has made a context of our own, which the run then pays for itself
    name = memory.device_name(device)
    return Gpu(name, total / GIB, free / GIB, "cuda", torch.cuda.is_bf16_supported(including_emulation=False), True)


def named(text: str) -> Gpu:
    """``RTX 3060 12GB``, ``4090``, ``GTX 1660``. UserError when the memory of such a GPU is not known."""
    given = re.search(r"(\d+(?:\.\d+)?)\s*gi?b", text, re.IGNORECASE)
    known = known_name(text)
    if not given and not known:
        raise UserError(f'--card: the memory of a "{text}" is not known here; write it behind, as "RTX 3060 12GB"')
    total = float(given[1]) if given else float(SIZES[known])
    return Gpu(text.strip(), total, total - DESKTOP, "cuda", not WITHOUT_BF16.search(_without_size(text)))


def known_name(text: str) -> str:
    """The name in ``SIZES`` that a GPU's name holds; empty where there is none."""
    words = _without_size(text)
    return max((name for name in SIZES if re.search(rf"\b{name}\b", words)), key=len, default="")


def _without_size(text: str) -> str:
    return re.sub(r"\d+(?:\.\d+)?\s*gi?b", "", text, flags=re.IGNORECASE).lower()


def with_memory(text: str, device: Literal["cuda", "cpu"] = "cuda") -> Gpu:
    """``8GB`` or ``8``: a GPU of which this much is free. UserError when it is no size."""
    given = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gi?b?)?\s*", text, re.IGNORECASE)
    if not given or not float(given[1]):
        raise UserError(f"--memory: {text!r} is no size; write --memory 8GB")
    size = float(given[1])
    return Gpu(f"a GPU with {size:g} GB free", size, size, device, True)
