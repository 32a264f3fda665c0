"""What this machine can train with: facts gathered by small functions, reported by pure ones.

Nothing is imported at the top that may be missing or broken: the doctor has to work when little else does.

Importing every package takes 5 s, so a trial that found nothing wrong is kept for as long as no package, driver or
source file changes, with its date in the report. A GPU is tried each time, and so is whatever was wrong.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..runs import user_cache

ROOT = Path(__file__).resolve().parents[2]
SET_UP = "python install.py trainer"
FIX = f"{SET_UP} --repair"
NEEDED = ("safetensors", "pydantic", "toml", "diffusers", "transformers", "peft", "accelerate", "PIL", "numpy", "tqdm")
OPTIONAL = {
    "tensorboard": ("the curves are only in events.jsonl", FIX),
    "tomlkit": ("training works, but configurations cannot be written or imported", FIX),
    "prodigyopt": ("all optimizers but Prodigy work", FIX),
    "schedulefree": ("all optimizers but the schedule-free ones work", FIX),
    "gradio": ("training and the ComfyUI nodes work, but there is no interface in the browser", "python install.py ui"),
}
"""Optional modules: what does not work without each, and the command that installs it."""
LOW_DISK_GB = 5.0
PACKAGES = ("torch", *NEEDED, *OPTIONAL, "bitsandbytes", "xformers", "triton", "pillow")
"""Distributions whose versions a bug report needs."""
MODULES = ("torch", *NEEDED, *OPTIONAL, "bitsandbytes", "xformers")
NAME = "doctor"
OF_DEVICE = ("torch", "device", "device_name", "device_gb", "precision", "attention", "kernels", "no_kernels")
"""Facts that are kept of a trial."""
DECIDING = ("LD_LIBRARY_PATH", "BNB_CUDA_VERSION", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that a trial depends on."""


@dataclass(frozen=True)
class Facts:
    python: str
    """3.11.7"""
    torch: str = ""
    """torch's version; empty when it cannot be imported."""
    torch_error: str = ""
    device: str = "cpu"
    """cuda, mps or cpu: what training runs on."""
    device_name: str = ""
    device_gb: float = 0.0
    """Memory of the GPU in GiB; 0 on a CPU."""
    device_error: str = ""
    """Why a GPU that torch names does not compute."""
    driver: str = ""
    """A GPU that the driver names, whether torch sees it or not: "NVIDIA GeForce RTX 3060"."""
    precision: str = "fp32"
    attention: str = "SDPA"
    kernels: tuple[str, ...] = ()
    """Attention kernels that ran on the device, at the precision: output and gradients are those of the math path."""
    no_kernels: dict[str, str] = field(default_factory=dict)
    """The other attention kernels, and why not."""
    eight_bit_error: str | None = None
    """Why 8-bit optimizers do not work; None when a step with one was made."""
    missing: dict[str, str] = field(default_factory=dict)
    """Modules of NEEDED that cannot be imported, with the error."""
    missing_optional: tuple[str, ...] = ()
    """Modules of OPTIONAL that are not installed."""
    disk_gb: float = 0.0
    """Free in the folder of the project, GiB."""
    tried: str = ""
    """When all packages were imported and an 8-bit optimizer made a step, where that is kept from an earlier call."""


# ------------------------------------------------------------------------------------------------------------ reporting


def report_lines(facts: Facts) -> list[str]:
    """One line per thing to know, and at the end ``ready: ...`` or ``not ready: ...``."""
    lines = [f"Python {facts.python}, torch {facts.torch or 'missing'}, {facts.disk_gb:.0f} GB of disk free"]
    broken = facts.missing if facts.torch else {"torch": facts.torch_error, **facts.missing}
    lines += [f"missing: {name} ({error}). Without it nothing trains. Fix: {FIX}" for name, error in broken.items()]
    lines += [
        f"missing: {name}. Without it {OPTIONAL[name][0]}. Fix: {OPTIONAL[name][1]}" for name in facts.missing_optional
    ]
    if facts.torch and facts.driver and facts.device == "cpu" and not facts.device_error:
        lines.append(
            f"unused: {facts.driver}, for torch {facts.torch} does not see it. Without it training runs on the CPU, "
            f"some fifty times slower. Fix: {SET_UP}"
        )
    if facts.device_error:
        lines.append(
            f"broken: {facts.device_name or facts.driver} ({facts.device_error}). Without it training runs on the CPU, "
            f"with device = 'cpu' in [run]. Fix: update the driver, then {FIX}"
        )
    if facts.torch and facts.eight_bit_error:
        lines.append(
            f"missing: 8-bit optimizers ({facts.eight_bit_error}). Without them AdamW takes four times the optimizer "
            f"memory, and quantized bases are off. Fix: {FIX}"
        )
    if facts.device != "cpu" and (facts.kernels or facts.no_kernels):
        others = "".join(f"; {name}: {why}" for name, why in facts.no_kernels.items())
        lines.append(f"attention kernels that ran in {facts.precision}: {', '.join(facts.kernels) or 'none'}{others}")
    if facts.disk_gb < LOW_DISK_GB:
        lines.append(
            f"little disk: {facts.disk_gb:.1f} GB free. A run stops when it cannot save. Fix: make room, or set out "
            "in [run] to another disk"
        )
    if facts.tried:
        lines.append(f"tried: all packages on {facts.tried}; none has changed since. `doctor --force` tries them again")
    if broken:
        return [*lines, f"not ready: {', '.join(broken)} missing; {FIX}"]
    return [*lines, f"ready: {', '.join(_parts(facts))}"]


def _parts(facts: Facts) -> list[str]:
    card = f" {facts.device_gb:.0f} GB" if facts.device_gb else ""
    eight_bit = "no 8-bit optimizers" if facts.eight_bit_error else "8-bit optimizers ok"
    return [f"{facts.device_name}{card}", facts.precision, facts.attention, eight_bit]


# ----------------------------------------------------------------------------------------------------------- gathering


def report(again: bool = False) -> list[str]:
    """The lines to print; the last one is the verdict. ``again``: see ``gather``."""
    return report_lines(gather(again))


def report_json(version: str, again: bool = False) -> dict[str, Any]:
    """The same for programs and bug reports, with the versions of all packages that training uses."""
    facts = gather(again)
    lines = report_lines(facts)
    return {
        "version": version,
        "system": platform.platform(),
        "ready": lines[-1].startswith("ready: "),
        "lines": lines,
        "facts": asdict(facts),
        "packages": {name: installed for name in PACKAGES if (installed := _installed(name))},
    }


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def gather(again: bool = False) -> Facts:
    """``again``: try everything, whatever is kept."""
    for name in ("bitsandbytes", "xformers"):  # they report optional kernels that nothing here uses
        logging.getLogger(name).setLevel(logging.ERROR)
    card, driver_version = driver()
    bare = Facts(
        python=platform.python_version(),
        driver=card,
        missing_optional=tuple(name for name in OPTIONAL if not importlib.util.find_spec(name)),
        disk_gb=shutil.disk_usage(ROOT).free / 2**30,
    )
    key = installation(driver_version)
    kept = None if again else user_cache.known(NAME).get(key)
    if kept and (found := _as_kept(bare, kept)):
        return found
    found = _tried(bare)
    if found.torch and not (found.missing or found.device_error or found.eight_bit_error):
        now = time.strftime("%Y-%m-%d %H:%M")
        facts = {name: getattr(found, name) for name in OF_DEVICE}
        user_cache.remember(NAME, key, {"tried": now, "facts": facts}, most=5)
    return found


def installation(driver_version: str) -> str:
    """A digest of what a trial follows from: Python, every installed distribution and when it was installed, the files
    that the modules are read from, the driver, the processor, and the trainer's own source."""
    folders = [Path(one) for one in dict.fromkeys(sys.path)]
    installed = [(str(one), one.stat().st_mtime_ns) for folder in folders for one in sorted(folder.glob("*.*-info"))]
    origins = [spec and spec.origin for spec in map(importlib.util.find_spec, MODULES)]
    files = [(one, Path(one).stat().st_size, Path(one).stat().st_mtime_ns) if one else None for one in origins]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    whole = [
        sys.version, platform.platform(), installed, files, driver_version, cores,
        [os.environ.get(name) for name in DECIDING], user_cache.source_digest(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _as_kept(bare: Facts, kept: dict[str, Any]) -> Facts | None:
    """With what an earlier trial found; None where it was on another device. A GPU is tried all the same."""
    facts = {**kept["facts"], "kernels": tuple(kept["facts"]["kernels"])}
    if facts["device"] == "cpu" and facts["torch"].endswith("+cpu"):  # a build that knows no GPU
        return replace(bare, tried=kept["tried"], **facts)
    if cannot_import("torch"):
        return None
    found = replace(bare, torch=facts["torch"], **device())
    if found.device_error or (found.device, found.device_name) != (facts["device"], facts["device_name"]):
        return None
    return replace(found, tried=kept["tried"], **choices(found.device))


def _tried(bare: Facts) -> Facts:
    """Everything that training needs is imported, and an 8-bit optimizer makes a step."""
    error = cannot_import("torch")
    found = replace(bare, torch_error=error, missing={name: why for name in NEEDED if (why := cannot_import(name))})
    if error:
        return found
    found = replace(found, torch=importlib.metadata.version("torch"), **device())
    found = replace(found, eight_bit_error=no_eight_bit(found.device))
    return found if "pydantic" in found.missing else replace(found, **choices(found.device))


def cannot_import(name: str) -> str:
    """'' or why not, in one line. A package that is there but broken raises anything from ImportError to OSError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == name else _line(error)
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        return _line(error)
    return ""


def driver() -> tuple[str, str]:
    """The first GPU that NVIDIA's driver names, whatever torch thinks of it, and the driver's version; or nothing."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "", ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    if answer.returncode or not answer.stdout.strip():
        return "", ""
    name, _, version = answer.stdout.strip().splitlines()[0].rpartition(", ")
    return name, version


def device() -> dict[str, Any]:
    """What torch computes on; a GPU counts only when it has multiplied two matrices."""
    import torch

    here = {"device": "cpu", "device_name": f"CPU ({torch.get_num_threads()} threads)"}
    try:
        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            here["device_name"] = card.name
            torch.ones(8, 8, device="cuda").mm(torch.ones(8, 8, device="cuda")).sum().item()
            return {"device": "cuda", "device_name": card.name, "device_gb": card.total_memory / 2**30}
        if torch.backends.mps.is_available():
            return {"device": "mps", "device_name": "Apple GPU (MPS)"}
    except RuntimeError as error:
        return {**here, "device_error": _line(error)}
    return here


def no_eight_bit(where: str) -> str | None:
    """None, or why bitsandbytes' AdamW8bit cannot make a step on this device."""
    if error := cannot_import("bitsandbytes"):
        return f"bitsandbytes: {error}"
    import bitsandbytes
    import torch

    weight = torch.nn.Parameter(torch.ones(64, 128, device=where))
    weight.grad = torch.ones_like(weight)
    try:
        bitsandbytes.optim.AdamW8bit([weight], lr=0.1).step()
    except (RuntimeError, NotImplementedError, AttributeError, ValueError, TypeError, OSError) as error:
        return f"bitsandbytes {importlib.metadata.version('bitsandbytes')}: {_line(error)}"
    return None if bool((weight < 1).all()) else "bitsandbytes: a step did not move the weights"


def choices(where: str) -> dict[str, Any]:
    """The precision and the attention that a run on this device would take, and which attention kernels run there."""
    import torch

    from ..memory.attention import KERNELS, choose_attention, why_not
    from ..memory.device import choose_precision

    at = torch.device(where)
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    dtype = choose_precision("auto", at)
    found = {name: why_not(name, at, dtype, 64) for name in KERNELS}
    return {
        "precision": names[dtype],
        "attention": choose_attention(at, dtype)[1],
        "kernels": tuple(name for name, why in found.items() if not why),
        "no_kernels": {name: why for name, why in found.items() if why},
    }


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


if __name__ == "__main__":
    sys.stdout.write("\n".join(report()) + "\n")
