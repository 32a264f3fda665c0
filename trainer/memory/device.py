"""Which device, which precision; and how much memory it took."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import UserError
from .options import MemoryOptions


def choose_device(wanted: str) -> torch.device:
    """A device of this machine; a GPU always with its number. UserError for one that is not there."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"run.device: '{wanted}' is no device; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "run.device: torch finds no CUDA GPU here; use device = 'auto', or run `python install.py doctor`"
        )
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device.index >= (count := torch.cuda.device_count()):
            raise UserError(f"run.device: there is no {device}; the last of this machine's GPUs is cuda:{count - 1}")
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).name
    return "the Apple GPU" if device.type == "mps" else "this machine's CPU"


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights and arithmetic. UserError where the device cannot do it."""
    if wanted == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.float32
    if wanted == "fp16" and device.type in ("cpu", "mps"):
        where = "a CPU" if device.type == "cpu" else "an Apple GPU"
        raise UserError(f"run.precision: fp16 does not train on {where}; use bf16 or fp32")
    if wanted == "fp64" and device.type == "mps":
        raise UserError("run.precision: Apple GPUs have no float64; use fp32 or bf16")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}[wanted]


def mps_fallback(device: torch.device) -> str | None:
    """What torch is set to do with operations that an Apple GPU lacks; torch itself warns of the first of each."""
    if device.type != "mps" or os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1":
        return None
    return "warning: PYTORCH_ENABLE_MPS_FALLBACK is set: operations that the Apple GPU lacks run slowly on the CPU"


_OUT_OF_MEMORY = re.compile(
    r"out of memory|_STATUS_\w*ALLOC|CUBLAS_STATUS_NOT_INITIALIZED|can't allocate memory|not enough memory", re.I
)
"""Of CUDA (its pinned host memory too), cuBLAS and cuDNN, MPS, and the CPU's allocator on Linux and Windows. cuBLAS
reports a handle for which there is no memory as not initialized."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch means that memory ran out; cuBLAS, cuDNN and others have no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def set_limit(device: torch.device, limit_gb: float | None) -> None:
    """Cap what this process takes of the GPU."""
    if limit_gb is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * 2**30 / total), device)
    elif limit_gb is not None and device.type == "mps":
        torch.mps.set_per_process_memory_fraction(min(2.0, limit_gb * 2**30 / torch.mps.recommended_max_memory()))


def spare_bytes(device: torch.device, limit_gb: float | None) -> int:
    """What the steps so far left free on the GPU, less a tenth of its memory for what other steps may need."""
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_reserved(device)
    most = min(free + mine, total if limit_gb is None else int(limit_gb * 2**30))
    return most - torch.cuda.max_memory_allocated(device) - most // 10


def tune_cudnn(options: MemoryOptions, device: torch.device) -> None:
    """``memory.cudnn_benchmark`` on an NVIDIA GPU; UserError where it is asked for elsewhere."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = options.cudnn_benchmark
    elif options.cudnn_benchmark:
        raise UserError(
            f"memory.cudnn_benchmark: cuDNN is for NVIDIA GPUs, not for {device_name(device)}; set it to false"
        )


def free_bytes(device: torch.device, limit_gb: float | None) -> int | None:
    """What is free on the GPU now; None on a CPU."""
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        most = most if limit_gb is None else min(most, int(limit_gb * 2**30))
        return most - torch.mps.current_allocated_memory()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free += reserved - allocated
    return free if limit_gb is None else min(free, int(limit_gb * 2**30) - allocated)


def release(device: torch.device) -> None:
    """Give back what nothing holds any more; on Linux also what the C library keeps of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def spilled(device: torch.device) -> tuple[float, float] | None:
    """(GiB used, GiB there) of a GPU that is full where the system lends it its own memory; Windows does that."""
    if device.type != "cuda" or sys.platform != "win32":
        return None
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    used = max(total - free, reserved)
    return (used / 2**30, total / 2**30) if free < total // 50 or reserved > total else None


def seed(device: torch.device, number: int) -> None:
    """For what draws without a generator of its own on the device, or on the CPU. Without a GPU torch's own function
    takes a hundred times as long: it notes where it was called from, for a GPU that may come."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def used_gb(device: torch.device) -> float:
    """GiB in use now: reserved on a GPU, resident in memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    import psutil

    return psutil.Process().memory_info().rss / 2**30


def wait(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


_mps_peak = 0.0


def reset_peak(device: torch.device) -> None:
    """From here on, where the system can: not on a CPU outside Linux."""
    global _mps_peak
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        _mps_peak = 0.0
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_gb(device: torch.device) -> float:
    """GiB: reserved on the GPU at most; on an Apple GPU the most that was found so far when this was asked; on a CPU
    the largest resident size of this process."""
    global _mps_peak
    if device.type == "mps":
        _mps_peak = max(_mps_peak, used_gb(device))
        return _mps_peak
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    if sys.platform == "linux":
        with suppress(OSError, IndexError), Path("/proc/self/status").open("rb") as facts:
            return int(facts.read().partition(b"VmHWM:")[2].split(maxsplit=1)[0]) / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
