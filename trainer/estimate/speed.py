"""How fast a device may compute before any run of it is remembered: its peak times a range of utilisation.

The one table of peaks and utilisations. Peaks are of dense matrix products in 16 bits that add up in float32, as
training does, in 10^12 multiplications and additions a second: NVIDIA's architecture papers (Turing, Ampere GA102, Ada,
Blackwell RTX) and data sheets; GeForce cards since Ampere do twice their float32 rate, Turing's four times, cards
without tensor cores compute in float32.

Utilisations are what public reports come to by the operations that the symbolic run counts: SDXL, rank 32, 1024 pixels,
batch 1, not checkpointed (14.7 x 10^12) at 1.12 s on an RTX 3090 Ti (kohya-ss/sd-scripts issue 827): 16 %; SDXL, rank 8
(14.7 to 20.9 x 10^12) at 1.2 s on an RTX 3090 (bmaltais/kohya_ss issue 1730): 17 to 25 %; SD1.5, 512 pixels (1.8 x
10^12) at 0.3 s on an RTX 2080 Ti, 15,000 steps of four micro-batches in five hours (diffusers' documentation of its
LoRA script): 11 %. The upper end leaves room for faster kernels than theirs. None was measured here.

A CPU has no table: one large matrix product is timed (0.2 s, once a process), the best ever seen with this torch and
number of threads counts, since other programs make it slower and nothing makes it faster, and utilisations of it are
those of docs/benchmarks.md: 14 to 66 %.
"""

from __future__ import annotations

import os
import platform
import time
from functools import cache

import torch

from ..memory import device as memory
from ..runs import user_cache
from .gpus import Gpu, known_name

PEAKS = {
    "1050 ti": 2.1, "1060": 4.4, "1070": 6.5, "1070 ti": 8.2, "1080": 8.9, "1080 ti": 11.3, "1650": 3.0, "1660": 5.0,
    "1660 ti": 5.4, "1660 super": 5.0, "2060": 25.8, "2060 super": 28.7, "2070": 29.9, "2070 super": 36.3, "2080": 40.3,
    "2080 super": 44.6, "2080 ti": 53.8, "3050": 18.2, "3060": 25.5, "3060 ti": 32.4, "3070": 40.6, "3070 ti": 43.5,
    "3080": 59.5, "3080 ti": 68.2, "3090": 71.0, "3090 ti": 80.0, "4060": 30.2, "4060 ti": 44.1, "4070": 58.3,
    "4070 super": 71.0, "4070 ti": 80.2, "4070 ti super": 88.2, "4080": 97.5, "4080 super": 104.4, "4090": 165.2,
    "5060": 38.4, "5060 ti": 47.4, "5070": 61.7, "5070 ti": 87.9, "5080": 112.6, "5090": 209.5, "t4": 65.0,
    "v100": 112.0, "p100": 9.3, "l4": 121.0, "l40s": 362.0, "a10": 125.0, "a40": 149.7, "a100": 312.0, "h100": 756.0,
    "h200": 989.0,
}  # fmt: skip
"""By the names of ``gpus.SIZES``; of two variants the slower."""
UTILISATION = {"cuda": (0.10, 0.35), "cpu": (0.14, 0.66)}
MEASURED, SIDE = "matmul", {"cuda": 8192, "mps": 4096, "cpu": 1024}


def peak(gpu: Gpu, dtype: torch.dtype) -> tuple[float, str] | None:
    """(operations a second, where the number comes from) of a GPU or this machine's CPU; None where only an amount of
    memory is named. Training in float32 on a GPU is taken to reach half, by TF32."""
    name = known_name(gpu.name)
    if gpu.device == "cuda" and name in PEAKS and not (gpu.here and "laptop" in gpu.name.lower()):
        return PEAKS[name] * 1e12 * (0.5 if dtype == torch.float32 else 1), "the card's data sheet"
    if not gpu.here:
        return None
    apple = gpu.name == memory.device_name(torch.device("mps"))
    return _measured(torch.device("mps" if apple else gpu.device), dtype), "a matrix product timed here"


def rates(gpu: Gpu, dtype: torch.dtype) -> tuple[float, float, str] | None:
    """(slowest, fastest) operations a second that training may reach, and why; None where nothing is known."""
    found = peak(gpu, dtype)
    if found is None:
        return None
    low, high = UTILISATION[gpu.device]
    most, source = found
    return low * most, high * most, f"not measured: {low:.0%} to {high:.0%} of {most / 1e12:.3g} TFLOPS ({source})"


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large matrix product, the best that this machine has been seen to reach."""
    key = f"{memory.device_name(device)}, {dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads of "
    key += f"{platform.machine()} x {os.cpu_count()}"
    known, now = float(user_cache.known(MEASURED).get(key, 0)), _timed(device, dtype, torch.get_num_threads())
    if now > known:
        user_cache.remember(MEASURED, key, now)
    return max(known, now)


@cache
def _timed(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Now, on so many threads as torch is set to use; the best of five."""
    side = SIDE[device.type]
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        memory.wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        memory.wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
