"""Which attention kernel a run takes: what works on its device, and what is fastest there."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..runs import user_cache
from .device import device_name, is_out_of_memory, wait

logging.getLogger("xformers").setLevel(logging.ERROR)  # without libraries that no attention needs it warns at import

NAME = "attention"
TOKENS = 4096
"""Of a picture as it is trained on: SD1.5 at 512 x 512 pixels, SDXL and SD3 at 1024 x 1024."""
SECONDS = 0.1
"""That a kernel is timed for, after it has run twice."""
NO_ROOM = "out of memory"
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 0.003}
"""Of outputs and gradients, as a part of the largest; kernels for float32 may multiply in TF32."""


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _xformers(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """With the copies that diffusers' processors make."""
    attention = importlib.import_module("xformers.ops").memory_efficient_attention
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1).contiguous() for x in (q, k, v))
    return attention(q, k, v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(q [B, tokens, heads * size], k and v [B, others, heads * size], heads) -> [B, tokens, heads * size]."""
SDPA = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
KERNELS: dict[str, Kernel] = {"xformers": _xformers, **{name: partial(_sdpa, one) for name, one in SDPA.items()}}
MATH = partial(_sdpa, SDPBackend.MATH)


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    size: int = 64,
    wanted: str = "auto",
    kept: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """(a name of ``KERNELS`` or "sdpa", why), for heads of ``size`` channels.

    ``sdpa`` is torch's own choice. ``auto`` takes the fastest on an NVIDIA GPU. ``kept``: what a run that is resumed
    took, as ``kernel`` and ``device``; it is taken again on such a device.
    """
    if wanted == "sdpa":
        return wanted, "SDPA (as configured)"
    if wanted != "auto":
        why = why_not(wanted, device, dtype, size)
        return (wanted, f"{wanted} (as configured)") if not why else ("sdpa", f"SDPA ({wanted} was asked for; {why})")
    if device.type != "cuda":
        return "sdpa", "SDPA"
    if kept and kept["device"] == device_name(device) and kept["kernel"] in KERNELS:
        if not (why := why_not(kept["kernel"], device, dtype, size)):
            return kept["kernel"], f"{kept['kernel']} (as this run began)"
        return "sdpa", f"SDPA (the run began with {kept['kernel']}; {why})"
    times, missing = _remembered(device, dtype, size)
    return _fastest(times, missing, size)


def _fastest(times: Mapping[str, float], missing: Mapping[str, str], size: int) -> tuple[str, str]:
    lacking = "; ".join(f"{name}: {why}" for name, why in missing.items())
    if not times:
        return "sdpa", f"SDPA ({lacking})"
    first, *others = sorted(times, key=lambda name: times[name])
    faster = f", {times[others[0]] / times[first]:.2f} times as fast as {others[0]}" if others else ""
    listed = ", ".join(f"{name} {times[name]:.3g} ms" for name in (first, *others))
    return (
        first,
        f"{first}{faster} (heads of {size}, forward and backward: {'; '.join(filter(None, (listed, lacking)))})",
    )


def _remembered(device: torch.device, dtype: torch.dtype, size: int) -> tuple[dict[str, float], dict[str, str]]:
    """What ``measure`` found on such a GPU, with these versions, for this precision and head size."""
    key = f"{device_name(device)}, torch {torch.__version__}, xformers {_version()}, {dtype}, {size}"
    known = user_cache.known(NAME).get(key)
    if not isinstance(known, dict) or not isinstance(known.get("times"), dict) or not {*known["times"]} <= {*KERNELS}:
        times, missing = measure(device, dtype, size)
        known = {"times": times, "missing": missing}
        if NO_ROOM not in missing.values():
            user_cache.remember(NAME, key, known)
    return known["times"], known["missing"]


def _version() -> str:
    try:
        return importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def measure(device: torch.device, dtype: torch.dtype, size: int) -> tuple[dict[str, float], dict[str, str]]:
    """({kernel: milliseconds forward and backward}, {kernel: why it cannot be used}), in about a second."""
    times, missing = {}, {}
    for name in KERNELS:
        why = why_not(name, device, dtype, size)
        if not why:
            try:
                times[name] = _milliseconds(KERNELS[name], device, dtype, size)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                why = NO_ROOM
        missing[name] = why
    return times, missing


def _milliseconds(kernel: Kernel, device: torch.device, dtype: torch.dtype, size: int) -> float:
    """The median of as many passes as ``SECONDS`` allow, three at least and a hundred at most."""
    heads = 8
    q, k, v, grad = _random((TOKENS, TOKENS, TOKENS, TOKENS), heads * size, device, dtype)
    taken: list[float] = []
    for _ in range(2):
        _pass(kernel, q, k, v, grad, heads)
    while len(taken) < 3 or (sum(taken) < SECONDS and len(taken) < 100):
        wait(device)
        start = perf_counter()
        _pass(kernel, q, k, v, grad, heads)
        wait(device)
        taken.append(perf_counter() - start)
    return sorted(taken)[len(taken) // 2] * 1000


def why_not(name: str, device: torch.device, dtype: torch.dtype, size: int) -> str:
    """'' where the kernel's output and gradients on the device are those of the math path, or why it cannot be used."""
    if name == "xformers" and _version() == "none":
        return "not installed"
    heads = 2
    q, k, v, grad = _random((64, 77, 77, 64), heads * size, device, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says there why it does not take a kernel
            found = _pass(KERNELS[name], q, k, v, grad, heads)
    except (ImportError, OSError, AttributeError, NotImplementedError, RuntimeError) as error:
        return _no_kernel(error, device)
    q, k, v = (x.detach().float().requires_grad_() for x in (q, k, v))
    wanted = _pass(MATH, q, k, v, grad.float(), heads)
    worst = max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))
    if worst <= TOLERANCE.get(dtype, 1e-4):
        return ""
    return f"wrong by {worst:.1%} on this GPU"


def _no_kernel(error: Exception, device: torch.device) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, ImportError | OSError):
        return f"cannot be imported ({line[:120]})"
    if "No operator found" in line or "No available kernel" in line or "No viable backend" in line:
        return f"no kernel for {'a CPU' if device.type == 'cpu' else 'this torch and GPU'}"
    return line[:120]


def _random(tokens: tuple[int, ...], width: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """[1, tokens, width], the same whatever was drawn before, and nothing is drawn from torch's own generator."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, count, width, generator=generator).to(device, dtype) for count in tokens]
    return [*(x.requires_grad_() for x in made[:-1]), made[-1]]


def _pass(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(output, gradients of q, k and v)."""
    out = kernel(q, k, v, heads)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))


def head_size(denoiser: Any) -> int:
    """Channels of a head of the outermost attention, which has the most tokens."""
    first = next(m for m in denoiser.modules() if hasattr(m, "heads") and hasattr(m, "to_q"))
    return first.inner_dim // first.heads


_preferred = ExitStack()


def use_attention(denoiser: Any, name: str) -> str | None:
    """Let the denoiser compute its attention by a kernel of ``KERNELS``, or by torch's choice ("sdpa").

    One of torch's own is tried first in the whole process, recomputed blocks included, and others where it does not
    take an input. Returns why it is SDPA after all, where xformers lacks a kernel for what diffusers tries first.
    """
    _preferred.close()
    if name in SDPA:
        others = (*(b for b in SDPA.values() if b != SDPA[name]), SDPBackend.MATH)
        _preferred.enter_context(sdpa_kernel([SDPA[name], *others], set_priority=True))
    if name == "xformers":
        try:
            denoiser.enable_xformers_memory_efficient_attention()
        except RuntimeError as error:  # a NotImplementedError too, as xformers says it
            reason = str(error).strip().splitlines()[0]
            return f"attention: SDPA after all (diffusers cannot use xformers here: {reason})"
    return None
