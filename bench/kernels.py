"""Kernels of a training step, counted on fake tensors: no weights and no GPU are needed, and nothing is computed.

    python -m bench.kernels --models sd15,sdxl            # checkpointed, bf16, as on a CUDA GPU

A kernel is an operation that is neither a view nor an allocation; a cast is a copy into another dtype. A GPU may need
more than one launch for an operation (``foreach`` over many tensors); what is compiled needs fewer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pixelkiln.trainer.config import nested, parse
from pixelkiln.trainer.diffusion.timesteps import draw
from pixelkiln.trainer.estimate import fake_model
from pixelkiln.trainer.estimate.fake_tensors import FakeTensors, MemoryTracker, cuda_autocast
from pixelkiln.trainer.families.load import assumed
from pixelkiln.trainer.training.step import compute_loss

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "device", "detach"}
"""What computes nothing, beside views."""
NATIVE = {"sd15": 512, "sdxl": 1024, "sd3-medium": 1024}


class KernelCounter(TorchDispatchMode):
    """Counts operations by name; ``casts`` are those that change a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and name not in FREE:
            self.kernels[name] += 1
            source = args[1] if name == "copy_" else args[0] if name == "_to_copy" else None
            self.casts += isinstance(source, Tensor) and source.dtype != out.dtype
        return out


def count(model: str, flags: Mapping[str, Any], size: int | None = None) -> KernelCounter:
    """The forward and backward pass of one picture in bf16, as in every step after the first."""
    with tempfile.TemporaryDirectory() as out:
        config = parse(nested({
            "run.out": out, "run.batch": 1, "run.precision": "bf16", "model.path": "", "model.family": model,
            "data.bucket_min": 64, "adapter.rank": 16, **flags,
        }))  # fmt: skip
    found, maker, side = assumed(config.model), FakeTensors(), size or NATIVE[model]
    family = fake_model.family(config, found, torch.bfloat16, torch.bfloat16)
    session = fake_model.session(maker, config, family, torch.bfloat16)
    session.model.adapter.train(True)
    counter = KernelCounter()
    with MemoryTracker(), cuda_autocast():
        with torch.no_grad():
            conditioning = family.encode_text([""])
        batch = fake_model.batch(maker, session, fake_model.Shape(side, side, ("plain",), 1), conditioning)
        for watched in (nullcontext(), counter):  # the first step makes what later ones have
            for parameter in session.model.adapter.parameters():
                parameter.grad = None
            with watched:
                random = draw(batch, 0, 0, session.model.process, config.noise)
                compute_loss(session.model, session.terms, batch, random, batch.rows.role, 0).loss.backward()
    return counter


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="sd15,sdxl,sd3-medium", help="families, separated by commas")
    parser.add_argument("--size", type=int, help="pixels per side; the model's own when not given")
    parser.add_argument("--most", type=int, default=0, help="how many of the commonest operations are listed")
    args = parser.parse_args()
    print("| model | checkpointed | kernels | casts |\n|---|---|---|---|")
    for model in args.models.split(","):
        extra = {"model.use_t5": False} if model.startswith("sd3") else {}
        for recompute in (True, False):
            found = count(model, {"memory.gradient_checkpointing": recompute, **extra}, args.size)
            print(f"| {model} | {'yes' if recompute else 'no'} | {found.kernels.total():,} | {found.casts:,} |")
            for name, times in found.kernels.most_common(args.most):
                print(f"|   {name} | | {times} | |")


if __name__ == "__main__":
    main()
