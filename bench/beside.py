"""A latent step here beside the same step of plain diffusers and PEFT, in turns in one process.

    python -m bench.beside --sizes 64,128 --steps 40       # on a CPU: the time that one thread computed
    python -m bench.beside --model sd15 --sizes 512 --precision bf16

Turn by turn, what else the machine does meets both. The ratio is that of the medians; its range is that of ten parts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from threading import Event

import torch

from pixelkiln.trainer.config import load
from pixelkiln.trainer.memory import device as memory
from pixelkiln.trainer.runs.folder import RunFolder
from pixelkiln.trainer.training.build import build_session
from pixelkiln.trainer.training.loop import Loop
from pixelkiln.trainer.training.progress_writer import ProgressWriter

from .__main__ import place
from .measure import ROOT, clock_of
from .plain import Plain


def beside(model: str, size: int, steps: int, precision: str, checkpointing: bool) -> tuple[list[float], list[float]]:
    """Seconds of each step: ours, plain."""
    with tempfile.TemporaryDirectory() as out:
        flags = {
            "run.out": out, "run.name": "bench", "run.steps": steps + 2, "run.precision": precision,
            "model.path": model, "data.path": str(ROOT / "presets" / "pictures" / "style"), "data.resolution": size,
            "data.bucket_min": 64, "adapter.rank": 16, "save.state_every": 0,
            "memory.gradient_checkpointing": checkpointing,
        }  # fmt: skip
        config = load(flags=flags)
        folder = RunFolder(Path(out) / "bench")
        folder.make()
        with ProgressWriter(folder.path) as writer:
            session, other = (build_session(config, lambda line: None) for _ in range(2))
            for one in (session, other):
                one.prepare()
                one.offload_encoders()
            loop, plain = Loop(session, folder, writer, Event()), Plain(other, checkpointing, session.model.dtype)
            device = session.model.device
            clock, took = clock_of(device), ([], [])
            for step in range(steps + 2):
                for turn, run in ((0, loop.step), (1, lambda step=step: plain.step(step))):
                    memory.wait(device)
                    start = clock()
                    run()
                    memory.wait(device)
                    took[turn].append(clock() - start)
                loop.steps_done += 1
    return took[0][2:], took[1][2:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.beside", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="base", help="base, sd15, sdxl, sd3-medium (random weights) or a path")
    parser.add_argument("--sizes", default="64,128", help="pixels per side, separated by commas")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    print(f"{args.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| size | ours, ms | plain, ms | ratio | range |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        compare(args, str(place(args.model, Path(scratch) / "model")))


def compare(args: argparse.Namespace, model: str) -> None:
    for size in map(int, args.sizes.split(",")):
        ours, plain = beside(model, size, args.steps, args.precision, args.checkpointing)
        part = max(1, args.steps // 10)
        parts = [
            statistics.median(ours[i : i + part]) / statistics.median(plain[i : i + part])
            for i in range(0, args.steps - part + 1, part)
        ]
        a, b = statistics.median(ours), statistics.median(plain)
        print(f"| {size} | {1e3 * a:.1f} | {1e3 * b:.1f} | {a / b:.3f} | {min(parts):.2f} to {max(parts):.2f} |")


if __name__ == "__main__":
    main()
