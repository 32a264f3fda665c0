"""Time and peak memory of training steps: families x cases x memory classes, the plain way of diffusers + PEFT beside.

    python -m bench                                  # the bundled base: every case
    python -m bench --models sd15,sdxl --size 1024 --memory 8,12 --cases "latent;plain;nf4"
    python -m bench --tiny                           # what CI runs: a few cases, small and short
    python -m bench --append all.jsonl --table       # a table of what was measured, from a file that grew
    python -m bench --estimate                       # operations and GiB of the families, by check's symbolic run

Models are ``base`` (bundled), ``sd15``, ``sdxl``, ``sd3-medium`` (full size, random weights, written to a temporary
folder: 2 to 7 GB) or a path. Every case runs in a process of its own, so that its peak memory is its own. Times are
medians over the steps after two that are not counted; on a CPU they are what its threads computed, all together, so
that other work on the machine is not in them. A GPU of a smaller class is imitated by capping what the process takes
(``memory.limit_gb``, torch.cuda.set_per_process_memory_fraction); its speed stays the large GPU's. With ``--append`` a
row that the file has already, from the same machine, torch and settings, is not measured again.
Machines differ and are noisy: compare the ratios, which are to the first case of the same model, size and class.
An estimate needs neither weights nor a GPU, is for a CUDA GPU in bf16, and is marked so in rows and tables.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .estimate import columns, estimate, is_estimable
from .models import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAIRS = str(ROOT / "presets" / "pictures" / "pairs")
VGG = "random VGG16"
RECOMPUTE = {"memory.gradient_checkpointing": True}
DPO = {**RECOMPUTE, "data.pairs": PAIRS, "objective.kind": "dpo"}
LEANEST = {
    **RECOMPUTE, "memory.base_weights": "nf4", "memory.blocks_on_gpu": 0, "memory.cpu_offload_checkpointing": True,
    "optimizer.kind": "AdamW8bit",
}  # fmt: skip
PIXEL, CACHED, SINGLE = {"loss.pixel.mode": "mixed"}, {"objective.reference_draws": 1}, {"memory.grad_cache": True}
CASES: dict[str, dict[str, Any]] = {
    "latent": {},
    "plain": {"plain": True},
    "plan, auto": {"memory.plan": "auto"},
    "pixel, plan, auto": {"memory.plan": "auto", "loss.pixel.mode": "mixed"},
    "latent, checkpointed": RECOMPUTE,
    "plain, checkpointed": {**RECOMPUTE, "plain": True},
    "half checkpointed": {**RECOMPUTE, "memory.checkpointing_fraction": 0.5},
    "checkpoints in host memory": {**RECOMPUTE, "memory.cpu_offload_checkpointing": True},
    "8-bit AdamW": {**RECOMPUTE, "optimizer.kind": "AdamW8bit"},
    "sdpa": {**RECOMPUTE, "memory.attention": "sdpa"},
    "fp8": {**RECOMPUTE, "memory.base_weights": "fp8"},
    "int8": {**RECOMPUTE, "memory.base_weights": "int8"},
    "nf4": {**RECOMPUTE, "memory.base_weights": "nf4"},
    "streamed": {**RECOMPUTE, "memory.blocks_on_gpu": 0},
    "streamed, auto": {**RECOMPUTE, "memory.blocks_on_gpu": "auto"},
    "leanest": LEANEST,
    "compiled": {**RECOMPUTE, "memory.compile": "denoiser"},
    "channels last": {**RECOMPUTE, "memory.channels_last": True},
    "pixel, auto": {**RECOMPUTE, "loss.pixel.mode": "mixed"},
    "pixel, by size": {**RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "by_size"},
    "pixel, surrogate": {**RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "surrogate"},
    "pixel, corrected": {
        **RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "corrected", "loss.pixel.corrected_share": 1.0,
    },
    "pixel, full": {**RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "full"},
    **{
        f"pixel, full, {mode}": {**RECOMPUTE, "loss.pixel.mode": mode, "loss.pixel.decode": "full"}
        for mode in ("x0", "anchored", "stepped")
    },
    "pixel, midcrop": {**RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "midcrop"},
    **{
        f"pixel, midcrop {window}": {
            **RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "midcrop", "loss.pixel.window": window,
        }
        for window in (128, 384, 512)
    },
    "pixel, window": {**RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "window"},
    "pixel, by size, p = 0.25": {
        **RECOMPUTE, "loss.pixel.mode": "mixed", "loss.pixel.decode": "by_size", "loss.pixel.probability": 0.25,
    },
    "pixel, kept targets": {
        **RECOMPUTE, "loss.pixel.mode": "anchored", "loss.pixel.decode": "full", "loss.pixel.target_cache": 1.0,
    },
    "pixel, compiled decoder": {**RECOMPUTE, "loss.pixel.mode": "mixed", "memory.compile": "decoder"},
    "pixel, leanest": {**LEANEST, **PIXEL},
    "l1": {**RECOMPUTE, "loss.l1.weight": 1.0},
    "huber": {**RECOMPUTE, "loss.huber.weight": 1.0},
    "smooth l1": {**RECOMPUTE, "loss.smooth_l1.weight": 1.0},
    "haar": {**RECOMPUTE, "loss.mse.weight": 1.0, "loss.haar.weight": 1.0},
    "focal frequency": {**RECOMPUTE, "loss.mse.weight": 1.0, "loss.focal_frequency.weight": 1.0},
    "lpl": {**RECOMPUTE, "loss.lpl.weight": 1.0, "loss.lpl.max_level": 1.0},
    "lpips": {**RECOMPUTE, "loss.lpips.backbone": VGG},
    "pairs, sft": {**RECOMPUTE, "data.pairs": PAIRS},
    "dpo": DPO,
    "dpo, one by one": {**DPO, **SINGLE},
    "dpo, cached reference": {**DPO, **CACHED},
    "dpo, cached reference, one by one": {**DPO, **CACHED, **SINGLE},
    "pairs, sft, pixel": {**RECOMPUTE, "data.pairs": PAIRS, **PIXEL},
    "dpo, pixel": {**DPO, **PIXEL},
    "dpo, pixel, one by one": {**DPO, **PIXEL, **SINGLE},
    "dpo, pixel, cached reference": {**DPO, **PIXEL, **CACHED},
    "dpo, pixel, cached reference, one by one": {**DPO, **PIXEL, **CACHED, **SINGLE},
    "dpo, pixel, leanest": {**DPO, **PIXEL, **CACHED, **SINGLE, **LEANEST},
}  # fmt: skip
"""Flags on top of a plain LoRA run of rank 16. ``pixel, corrected`` corrects every row: at a share s a step takes s of
what it takes more than ``pixel, surrogate``."""
TINY = ["latent", "plain", "nf4", "streamed", "pixel, midcrop", "dpo, pixel, cached reference, one by one"]
NATIVE = {"base": 128, "sd15": 512, "sdxl": 1024, "sd3-medium": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", "--model", help="names or paths, separated by commas; base when not given")
    parser.add_argument("--cases", help="names, separated by semicolons")
    parser.add_argument("--memory", default="0", help="classes in GB, separated by commas; 0 is the whole GPU")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size", type=int, help="pixels per side; the model's own when not given")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a few cases of the bundled base at 64 px, one step each")
    parser.add_argument("--append", type=Path, help="add rows to this file of JSON lines; rows it has are not repeated")
    parser.add_argument("--json", type=Path, help="write the rows of this run here")
    parser.add_argument("--table", action="store_true", help="print the rows of --append and measure nothing")
    parser.add_argument(
        "--estimate", "--foretell", action="store_true", help="estimate the cases instead of measuring them"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        from .measure import measure

        print(json.dumps(measure(json.loads(args.one))))
        return
    if args.tiny:
        args.size, args.steps = args.size or 64, 1
        args.cases = args.cases or ";".join(TINY)
    args.precision = "bf16" if args.estimate else args.precision
    args.models = args.models or (",".join(FAMILIES) if args.estimate else "base")
    args.cases = args.cases or ";".join(name for name in CASES if not args.estimate or is_estimable(CASES[name]))
    old = read(args.append)
    rows, broken = (old, []) if args.table else run(args, old)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), "utf-8")
    if broken:
        raise SystemExit("\n".join(broken))


def run(args: argparse.Namespace, old: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and what broke: that is no result, and is measured the next time."""
    rows, broken, machine = [], [], of_machine(args.estimate)
    known = {identity(row): row for row in old}
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models.split(","):
            path = None
            for limit in map(float, args.memory.split(",")):
                for name in chosen(args.cases):
                    settings = {
                        "model": model, "case": name, "size": args.size or NATIVE.get(model, 512), "batch": args.batch,
                        "precision": args.precision, "limit_gb": limit, "machine": machine,
                    }  # fmt: skip
                    if (row := known.get(identity(settings))) is None:
                        try:
                            if args.estimate:
                                row = {**settings, **estimated(settings)}
                            else:
                                path = path or place(model, Path(scratch) / model.replace("/", "_"))
                                row = {**settings, **apart(settings, str(path), args.steps, f"{scratch}/cache")}
                        except RuntimeError as error:
                            broken.append(f"bench: {model}, {name}: {error}")
                            continue
                        result = row.get("seconds") or row.get("failed") or f"{row['flops']:.3g} operations"
                        print(f"{model} {limit:g} GB {name}: {result}", file=sys.stderr)
                        if args.append:
                            with args.append.open("a", encoding="utf-8") as file:
                                file.write(json.dumps(row) + "\n")
                    rows.append(row)
    return rows, broken


def place(model: str, scratch: Path) -> Path:
    if model == "base":
        return ROOT / "presets" / "base"
    from .models import random_model

    return random_model(model, scratch) if model in FAMILIES else Path(model)


def estimated(settings: dict[str, Any]) -> dict[str, Any]:
    """What ``check`` expects of a case: rows that are never taken for measured ones."""
    flags = flags_of(settings)
    if settings["model"] not in FAMILIES or not is_estimable(flags):
        raise SystemExit(f"bench: there is no estimate of {settings['model']}, {settings['case']}")
    own = estimate({**settings, "flags": flags})
    return {"foretold": True, "probability": flags.get("loss.pixel.probability", 1.0), **own}


def flags_of(settings: dict[str, Any]) -> dict[str, Any]:
    return {**CASES[settings["case"]], **({"model.use_t5": False} if settings["model"] == "sd3-medium" else {})}


def apart(settings: dict[str, Any], path: str, steps: int, cache: str) -> dict[str, Any]:
    """``measure`` in a process of its own; what does not fit is a result too. All cases share what is encoded.

    :raises RuntimeError: it broke.
    """
    case = {**settings, "model": path, "steps": steps, "flags": flags_of(settings), "cache": cache}
    command = [sys.executable, "-m", "bench", "--one", json.dumps(case)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.returncode:
        return json.loads(done.stdout.splitlines()[-1])
    if "out of memory" in done.stderr or done.returncode == -9:  # killed by the system
        return {"failed": "out of memory"}
    raise RuntimeError(done.stderr[-2000:] or f"exit code {done.returncode}")


def chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    for name in names:
        if name not in CASES:
            raise SystemExit(f"bench: there is no case '{name}'; there is: {'; '.join(CASES)}")
    return names


def identity(row: dict[str, Any]) -> str:
    kept = ("model", "case", "size", "batch", "precision", "limit_gb", "machine")
    return json.dumps({key: row[key] for key in kept}, sort_keys=True)


def read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def of_machine(estimate: bool = False) -> dict[str, str]:
    import diffusers
    import peft
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "card": "none" if estimate else gpu, "python": platform.python_version(), "torch": torch.__version__,
        "cuda": str(torch.version.cuda), "diffusers": diffusers.__version__, "peft": peft.__version__,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each machine, model, size and memory class; ratios to its first row."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        facts = ", ".join(f"{k} {v}" for k, v in row["machine"].items())
        cap = f"capped at {row['limit_gb']:g} GB" if row["limit_gb"] else "not capped"
        title = f"{Path(row['model']).name}, {row['size']} px, batch {row['batch']}, {row['precision']}, {cap}"
        groups.setdefault(f"{title}; {facts}", []).append(row)
    lines = []
    for title, group in groups.items():
        if group[0].get("foretold"):
            lines += [f"{title}: estimated, not measured", "", *columns(group), ""]
            continue
        head = "| case | seconds a step | ratio | peak GiB | estimated | above the model | of matmul peak |"
        lines += [title, "", head, "|---|---|---|---|---|---|---|"]
        first = next((row["seconds"] for row in group if "seconds" in row), None)
        for row in group:
            if first is None or "seconds" not in row:
                lines.append(f"| {row['case']} | {row['failed']} | | | | | |")
                continue
            above, ratio = row["peak_gb"] - row["before_gb"], row["seconds"] / first
            estimate = f"{row['foretold_gb']:.2f}" if "foretold_gb" in row else ""
            memory = f"{row['peak_gb']:.2f} | {estimate} | {above:.2f}"
            lines.append(
                f"| {row['case']} | {row['seconds']:.3f} | {ratio:.2f} | {memory} | {row['of_matmul_peak']:.0%} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
