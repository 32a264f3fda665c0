"""[memory], readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..errors import UserError
from ..registry import Options, option

Weights = Literal["full", "fp8", "int8", "nf4"]


class MemoryOptions(Options):
    plan: Literal["manual", "auto"] = option("manual", label="Memory plan")
    """``auto``: the fastest combination that fits into the free memory, of gradient checkpointing, checkpoints in host
    memory, GradCache, streamed blocks, T5 on the CPU, quantized weights, the optimizer's 8-bit kind and the decode
    plan, as far as these are not set; `check` shows it. What changes the results (weights, optimizer, decode plan) is
    chosen at a run's first start and kept."""
    attention: Literal["auto", "xformers", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn"] = option(
        "auto", kohya="xformers", label="Attention"
    )
    """``auto`` takes what is fastest forward and backward on an NVIDIA GPU, xformers or a kernel of torch's SDPA,
    measured once in about a second; the log says which. ``sdpa`` leaves the choice to torch."""
    gradient_checkpointing: bool = option(False, kohya="gradient_checkpointing", label="Gradient checkpointing")
    """Recompute activations in the backward pass: about a third slower, a fraction of the memory, the same numbers."""

    checkpointing_fraction: float = option(
        1.0, label="Fraction of blocks recomputed", formerly="checkpoint_share", gt=0, le=1
    )
    """With gradient checkpointing: which fraction of the network is recomputed, from its highest resolution inwards.
    Less is faster and takes more memory."""
    cpu_offload_checkpointing: bool = option(
        False, kohya="cpu_offload_checkpointing", label="Checkpoints in host memory", formerly="offload_checkpoints"
    )
    """With gradient checkpointing: keep what blocks are recomputed from in the host's memory. The same numbers."""
    blocks_on_gpu: Literal["all", "auto"] | Annotated[int, Field(ge=0)] = option(
        "all", label="Blocks on the GPU", formerly="resident_blocks"
    )
    """How many blocks of the frozen network stay on the GPU; the others live in the host's memory and are copied to it
    ahead of use. ``auto``: none in the first two steps, then as many as there is room for. The same numbers."""
    prefetch_blocks: int = option(1, label="Blocks copied ahead", ge=1, le=16)
    """How many of the blocks that are not on the GPU are copied there ahead of use, each into room of its own: more
    where a block computes faster than the next one is copied. The same numbers."""
    cudnn_benchmark: bool = option(False, label="Try cuDNN's convolutions")
    """On an NVIDIA GPU: let cuDNN time its algorithms for each new shape of a convolution and take the fastest. For few
    buckets: each new one costs time. The choice may differ from run to run, so the same seed and a resumed run give
    the same numbers up to rounding only."""
    limit_gb: float | None = option(None, label="Memory limit (GB)", gt=0)
    """Use at most this much of the GPU's memory, and leave the rest to others."""
    channels_last: bool = option(False, label="Channels last")
    """Keep pictures in memory with their channels last, as a GPU's convolutions like it, in the U-Net and in the
    decoder. Equal up to rounding."""
    compile: Literal["none", "denoiser", "decoder", "both"] = option("none", label="Compile")
    """Let torch compile the network's blocks, the decoder's, or both, for training steps (previews and the rest run as
    they are): the first steps take minutes, the others less time. It is kept in the run's cache folder. Equal up to
    rounding; it needs a C++ compiler, on a GPU also Triton. Blocks that are streamed cannot be compiled."""
    base_weights: Weights = option("full", label="Base weights")
    """How the frozen denoiser is quantized: ``full`` is as ``run.precision``, ``fp8`` and ``int8`` take half of 16
    bits, ``nf4`` about a third (its convolutions in int8). Unpacked layer by layer as they are used; the adapter learns
    on the rounded model."""
    int8_products: bool = option(False, label="Products in 8 bits")
    """With base weights in int8: linear layers multiply 8-bit numbers by 8-bit numbers, forward and backward, and do
    not unpack their weights. Each row of an input or gradient is rounded to its own scale, so the adapter learns on a
    model that is less exact: docs/memory.md has the error."""
    text_weights: Weights = option("full", label="Text encoder weights")
    """The same for the text encoders (SD3's T5 needs 9.5 GB in 16 bits, 2.7 in nf4)."""
    grad_cache: bool = option(False, label="GradCache (one picture at a time)", formerly="one_by_one")
    """Send the rows of a micro-batch (both pictures of a pair) through the network one after the other: the activations
    of one picture at a time, for one more forward pass each, with the same gradients (GradCache, arXiv 2101.06983)."""

    @model_validator(mode="after")
    def _agree(self) -> MemoryOptions:
        if not self.gradient_checkpointing and (self.checkpointing_fraction < 1 or self.cpu_offload_checkpointing):
            name = "cpu_offload_checkpointing" if self.cpu_offload_checkpointing else "checkpointing_fraction"
            raise UserError(f"{name}: it says how gradient checkpointing is done; set gradient_checkpointing = true")
        if self.int8_products and self.base_weights != "int8":
            raise UserError('int8_products: it multiplies int8 weights as they are; set base_weights = "int8"')
        if self.prefetch_blocks > 1 and self.blocks_on_gpu == "all":
            raise UserError('prefetch_blocks: all blocks are on the GPU; set blocks_on_gpu = "auto" or a number')
        if self.compile in ("denoiser", "both"):
            if self.blocks_on_gpu != "all":
                raise UserError('compile: blocks that are streamed cannot be compiled; set blocks_on_gpu = "all"')
            if self.base_weights != "full" and not (self.gradient_checkpointing and self.checkpointing_fraction == 1):
                raise UserError(
                    f"compile: compiled blocks keep base_weights = '{self.base_weights}' unpacked until the backward "
                    "pass; set gradient_checkpointing = true with checkpointing_fraction = 1"
                )
        return self
