"""[memory] applied to a model: weights quantized or streamed, blocks recomputed or compiled, the decoder set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UserError
from . import device as memory
from . import quantize
from .activation_checkpointing import recompute
from .norms import spare_casts
from .offload import Streamer
from .options import MemoryOptions

if TYPE_CHECKING:
    from ..families.family import FamilySpec
    from ..losses.decode import Decoder

COMPILED = "TORCHINDUCTOR_CACHE_DIR"


def quantize_text(
    options: MemoryOptions, encoders: Mapping[str, tuple[nn.Module, torch.device]], device: torch.device
) -> None:
    """Make frozen text encoders small, each on the device where it will be. UserError without bitsandbytes."""
    _require_kernels("text_weights", options.text_weights, device)
    try:
        for encoder, place in encoders.values():
            quantize.quantize_module(encoder, options.text_weights, quantize.TEXT, place)
    except ImportError as error:
        raise UserError(f"memory.text_weights: int8 and nf4 need bitsandbytes ({error}); use fp8 or full") from None


def _require_kernels(name: str, kind: str, device: torch.device) -> None:
    if kind != "full" and device.type == "mps":
        raise UserError(f"memory.{name}: '{kind}' has no kernels for Apple GPUs; use full")


def quantize_and_offload(
    options: MemoryOptions, spec: FamilySpec, denoiser: nn.Module, device: torch.device, say: Callable[[str], None]
) -> Streamer | None:
    """Before an adapter is there: make the denoiser's frozen weights small, on the device; those of blocks that are
    streamed stay in the host's memory. UserError without bitsandbytes."""
    _require_kernels("base_weights", options.base_weights, device)
    resident = options.blocks_on_gpu
    streams = resident != "all" and (resident != "auto" or device.type == "cuda")
    try:
        count = quantize.quantize_module(
            denoiser, options.base_weights, spec.quantized, device, torch.device("cpu") if streams else None,
            options.int8_products,
        )  # fmt: skip
        if count:
            say(f"base weights: {count} layers in {quantize.quantized_as(denoiser)}")
    except ImportError as error:
        raise UserError(f"memory.base_weights: int8 and nf4 need bitsandbytes ({error}); use fp8 or full") from None
    if not streams:
        return None
    count = resident if isinstance(resident, int) else 0
    streamer = Streamer(spec.blocks(denoiser, resize=True), device, count, options.prefetch_blocks)
    away, count = streamer.host_bytes / 2**30, len(streamer.blocks)
    say(f"streaming: {streamer.resident} of {count} blocks stay on the GPU, {away:.2f} GiB in the host's memory")
    return streamer


def set_up_blocks(options: MemoryOptions, spec: FamilySpec, denoiser: nn.Module, cache: Path) -> None:
    """With the adapter in place: how the blocks of the denoiser run. ``cache``: where what is compiled is kept."""
    spare_casts(denoiser)
    if options.channels_last:
        denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if options.compile in ("denoiser", "both"):
        _prepare_compile(cache)
        for block in spec.blocks(denoiser):
            block.forward = torch.compile(block.forward)
    if options.gradient_checkpointing:
        recompute(spec.blocks(denoiser), options.checkpointing_fraction, options.cpu_offload_checkpointing)


def set_up_decoder(options: MemoryOptions, decoder: Decoder, device: torch.device, cache: Path) -> None:
    """The decoder of the terms that look at pixels."""
    compiled = options.compile in ("decoder", "both")
    if compiled:
        _prepare_compile(cache)
    decoder.tune(options.channels_last, compiled)
    decoder.room = memory.free_bytes(device, options.limit_gb)


def uncompiled(options: MemoryOptions) -> AbstractContextManager[Any]:
    """Inside, everything runs as it is, so that nothing is compiled for shapes that no training step has."""
    return nullcontext() if options.compile == "none" else torch.compiler.set_stance("force_eager")


def _prepare_compile(cache: Path) -> None:
    """A cache that outlives the run, and room for the variants: each block's shapes, with the adapter and without.

    Blocks of one shape share what is compiled (regional compilation), so it starts sooner than a whole network's.
    """
    import os

    import torch._dynamo
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(COMPILED) in (None, default_cache_dir()):  # torch writes its own choice there when it is imported
        os.environ[COMPILED] = str(cache.absolute())
    limits: Any = torch._dynamo.config
    limits.recompile_limit, limits.accumulated_recompile_limit = 256, 4096
