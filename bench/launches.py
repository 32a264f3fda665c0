"""Whether a GPU waits for Python: kernels of a step, and the share of its time in which the device computes nothing.

    python -m bench.launches --model sd15 --sizes 256,512,768 --precision bf16      # on a GPU
    python -m bench.launches --tiny                                 # the bundled base at 64 px, on whatever is there

Seconds of a step are medians without the profiler; what ran on the device is from torch's profiler, over as many steps.
*Waiting* is 1 - (time with a kernel on the device) / (seconds of a step): near 0 the device is the limit, and fewer
launches (a larger batch or picture, compiled blocks, less recomputation) help where it is large. Without a GPU kernels
are the outermost operations and waiting is the time between them, both within the profiled steps, which the profiler
slows down.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pixelkiln.trainer.config import load
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training.build import build_session
from pixelkiln.trainer.training.loop import Loop
from pixelkiln.trainer.training.progress_writer import ProgressWriter

from .__main__ import place
from .measure import ROOT

CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "checkpointed": {"memory.gradient_checkpointing": True}, "batch 4": {"run.batch": 4},
}  # fmt: skip


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


def launches(model: str, size: int, steps: int, precision: str, flags: dict[str, Any]) -> tuple[float, float, float]:
    """(kernels of a step, its seconds, share of them in which no kernel runs)."""
    with tempfile.TemporaryDirectory() as out:
        config = load(flags={
            "run.out": out, "run.name": "bench", "run.steps": 3 * steps + 3, "run.precision": precision,
            "model.path": model, "data.path": str(ROOT / "presets" / "pictures" / "style"), "data.resolution": size,
            "data.bucket_min": 64, "adapter.rank": 16, "save.state_every": 0, **flags,
        })  # fmt: skip
        folder = RunFolder(Path(out) / "bench")
        folder.make()
        with ProgressWriter(folder.path) as writer:
            session = build_session(config, lambda line: None)
            session.prepare()
            session.offload_encoders()
            loop, device, seconds = Loop(session, folder, writer, Event()), session.model.device, []

            def step() -> None:
                loop.step()
                memory.wait(device)
                loop.steps_done += 1

            for _ in range(3):  # the first ones allocate
                step()
            for _ in range(steps):
                began = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - began)
            took, on_gpu = statistics.median(seconds), device.type == "cuda"
            with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as watched:
                began = time.perf_counter()
                for _ in range(steps):
                    step()
                profiled = (time.perf_counter() - began) / steps
    spans = kernels(watched.events() or [], on_gpu)
    return len(spans) / steps, took, 1 - covered(spans) / 1e6 / steps / (took if on_gpu else profiled)


def kernels(events: Iterable[Any], on_gpu: bool) -> list[tuple[float, float]]:
    """Start and end in microseconds of what ran on the GPU; on a CPU of the operations that no other one called."""
    if on_gpu:
        found = [event for event in events if event.device_type == DeviceType.CUDA]
    else:
        found = [event for event in events if _operation(event) and not _within(event)]
    return [(event.time_range.start, event.time_range.end) for event in found]


def _operation(event: Any) -> bool:
    return event.name.startswith("aten::")


def _within(event: Any) -> bool:
    parent = event.cpu_parent
    return parent is not None and (_operation(parent) or _within(parent))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.launches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="base", help="base, sd15, sdxl, sd3-medium (random weights) or a path")
    parser.add_argument("--sizes", default="128", help="pixels per side, separated by commas")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tiny", action="store_true", help="64 px and two steps")
    args = parser.parse_args()
    if args.tiny:
        args.sizes, args.steps = "64", 2
    print(f"{args.model}, {args.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| size | case | kernels a step | ms a step | waiting |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        model = str(place(args.model, Path(scratch) / "model"))
        for size in map(int, args.sizes.split(",")):
            for name, flags in CASES.items():
                count, seconds, waiting = launches(model, size, args.steps, args.precision, flags)
                print(f"| {size} | {name} | {count:,.0f} | {1e3 * seconds:.1f} | {waiting:.0%} |", flush=True)


if __name__ == "__main__":
    main()
