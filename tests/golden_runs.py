"""Golden runs: short runs of every main way to train, recorded in ``golden/trajectories`` to compare later code.

``python tests/golden_runs.py --exact [NAME ...]`` repeats them and compares bit for bit with the records: exit code 0,
or 1 with a list of differences. Only a machine like the one that made the records, with the same libraries, can pass.
The tests compare with a tolerance instead. ``python tests/golden_runs.py --record [NAME ...]`` replaces the records.

The runs happen in forked processes with one thread each, as the number of threads changes the last bits of sums.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401

import numpy as np
import safetensors.torch
import short_runs
import tiny
import torch
from fork_server import Server, file_of, together
from PIL import Image

RECORDS = Path(__file__).parent / "golden" / "trajectories"
STEPS = 10
PIXEL = {"loss.pixel.mode": "mixed", "loss.pixel.probability": 0.5, "loss.pixel.weight": "auto",
         "loss.pixel.auto_ratio": 1.0, "data.flip": True}  # fmt: skip
MANY = {
    "run.precision": "fp32",
    "run.batch": 2,
    "run.accumulation": 2,
    "adapter.conv_rank": 2,
    "adapter.dropout": 0.1,
    "adapter.rank_dropout": 0.1,
    "adapter.module_dropout": 0.1,
    "adapter.loraplus": 4.0,
    "adapter.scale_weight_norms": 1.0,
    "data.caption_dropout": 0.2,
    "data.flip": True,
    "data.cache_latents": "memory",
    "data.random_crop": False,
    "data.validation_split": 0.25,
    "loss.huber.schedule": "snr",
    "objective.min_snr_gamma": 5.0,
    "noise.noise_offset": 0.05,
    "noise.multires_iterations": 3,
    "noise.ip_noise_gamma": 0.1,
    "schedule.kind": "cosine",
    "schedule.warmup": 2,
    "memory.gradient_checkpointing": True,
    "save.ema": 0.9,
    "sample.prompts": ["a red cat", "a blue house"],
    "sample.steps": 3,
    "sample.width": 64,
    "sample.height": 64,
    "validation.every": 5,
}


@dataclass(frozen=True)
class Run:
    """One golden run: what it changes in the configuration of ``short_runs.config``."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    data: str = "data.path"
    family: str = "sd15"
    processes: int = 1

    @property
    def tolerance(self) -> float:
        """Relative, for losses and gradient norms on another machine."""
        return 1e-9 if self.flags.get("run.precision", "fp64") == "fp64" else 1e-5


DENSE = {"dense.task": "depth", "loss.mse.weight": 1.0, "loss.dense.weight": "auto", "data.flip": True}
DPO = {"objective.kind": "dpo", "objective.reference_draws": 2, "loss.pixel.mode": "anchored", "loss.pixel.weight": 1.0,
       "loss.pixel.auto_ratio": 1.0}  # fmt: skip
RUNS = {
    "sft": Run(),
    "sft_pixel": Run(PIXEL),
    "dpo_pixel_cached_reference": Run({**DPO, "run.batch": 2}, "data.pairs"),
    "kto": Run({"objective.kind": "kto"}, "data.pairs"),
    "text_encoders": Run({"adapter.text_encoders": True}),
    "nf4": Run({"run.precision": "fp32", "memory.base_weights": "nf4"}),
    "two_processes": Run({**PIXEL, "run.batch": 1, "run.accumulation": 2, "data.caption_dropout": 0.2}, processes=2),
    "sdxl_lokr": Run({"adapter.kind": "lokr", "adapter.rank_dropout": 0.2, "run.batch": 2}, family="sdxl"),
    "sd35_simpo": Run({"objective.kind": "simpo", "run.batch": 2}, "data.pairs", "sd3.5-medium"),
    "many_options": Run(MANY),
    "dense": Run({**DENSE, "run.batch": 2, "adapter.conv_rank": 2, "data.validation_split": 0.25}),
    "dense_two_processes": Run({**DENSE, "run.batch": 1, "run.accumulation": 2}, processes=2),
}
"""By the names of the records."""


def write_model(folder: Path, family: str = "sd15") -> Path:
    """A tiny model whose weights have the same bits on every machine: torch's own normal numbers have not."""
    made = tiny.parts(family)
    modules = {"denoiser": made.denoiser, "vae": made.vae, **made.text_encoders}
    with torch.no_grad():
        for number, module in enumerate(modules.values()):
            rng = np.random.default_rng(number)
            for name, parameter in sorted(module.named_parameters()):
                bound = 0.1 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
                center = float(parameter.ndim == 1 and name.endswith("weight"))
                parameter.copy_(torch.from_numpy(center + bound * (2 * rng.random(tuple(parameter.shape)) - 1)))
    return tiny.write(folder, made)


def repeat(server: Server, root: Path, name: str) -> dict[str, Any]:
    """Do the golden run ``name`` below ``root``; what is recorded of it."""
    run = RUNS[name]
    write_model(root / run.family, run.family)
    flags = {"run.name": name, "run.steps": STEPS, "save.precision": "fp32", **run.flags}
    config = short_runs.config(root, flags, run.family, run.data)
    if run.processes > 1:
        codes = [server.wait(pid) for pid in together(server, config, world=run.processes)]
    else:
        codes = [server.run(["train", file_of(config)], root / "0.log")]
    assert not any(codes), "\n".join(log.read_text("utf-8") for log in sorted(root.glob("*.log")))
    return measured(root / "runs" / name)


def measured(folder: Path) -> dict[str, Any]:
    """What is recorded of a run that has ended: floating point numbers as ``float.hex`` gives them."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    (state,) = (folder / "state").glob("*.safetensors")
    pictures = sorted([*folder.glob("samples/**/*.png"), *folder.glob("before_after.png")])
    return {
        "made_with": {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()},
        "steps": [[float(e["loss"]).hex(), float(e["grad_norm"]).hex()] for e in events if e["kind"] == "step"],
        "adapters": {
            path.name: _summary(safetensors.torch.load_file(path)) for path in sorted(folder.glob("*.safetensors"))
        },
        "state": _digest_of_tensors(state),
        "pictures": {path.relative_to(folder).as_posix(): _digest(_pixels(path)) for path in pictures},
    }


def _summary(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """One digest of all shapes, sums, norms and bytes, and the norm of each tensor."""
    rows = {}
    for key, tensor in sorted(tensors.items()):
        wide = tensor.double()
        digest = _digest(_bytes(tensor))[:32]
        rows[key] = [list(tensor.shape), float(wide.sum()).hex(), float(wide.norm()).hex(), digest]
    return summary(rows)


def summary(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """From [shape, sum, norm, digest of the bytes] of each tensor, floating point numbers as hexadecimal."""
    norms = {key: float(f"{float.fromhex(row[2]):.10g}") for key, row in rows.items()}
    return {"digest": _digest(json.dumps(rows, sort_keys=True).encode()), "norms": norms}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of_tensors(file: Path) -> str:
    """One digest of the names, types, shapes and bytes of all tensors of a file."""
    whole = hashlib.sha256()
    for key, tensor in sorted(safetensors.torch.load_file(file).items()):
        whole.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        whole.update(_bytes(tensor) if tensor.numel() else b"")
    return whole.hexdigest()


def _pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return repr(picture.size).encode() + picture.convert("RGB").tobytes()


def record_path(name: str) -> Path:
    return RECORDS / f"{name}.json.gz"


def recorded(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(record_path(name).read_bytes()))


def write_record(name: str, record: Mapping[str, Any]) -> None:
    record_path(name).parent.mkdir(parents=True, exist_ok=True)
    record_path(name).write_bytes(gzip.compress(json.dumps(record).encode(), mtime=0))


# -------------------------------------------------------------------------------------------------------- comparisons


def exact_differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    """Every place where two records are not the same bit for bit, one per line."""
    found = []
    for key in sorted({*old, *new} - {"made_with"}):
        here, a, b = f"{where}/{key}", old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += exact_differences(a, b, here)
        elif key == "steps" and isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for step, (then, now) in enumerate(zip(a, b, strict=True), 1):
                found += [
                    f"{here} {step} {what}: recorded {_shown(x)}, now {_shown(y)}"
                    for what, x, y in zip(("loss", "gradient norm"), then, now, strict=True)
                    if x != y
                ]
        elif a != b:
            found.append(f"{here}: recorded {_shown(a)}, now {_shown(b)}")
    return found


def near_differences(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[str]:
    """Every loss, gradient norm and tensor that is further off than another processor explains, one per line."""
    found = []
    if len(old["steps"]) != len(new["steps"]):
        found.append(f"recorded {len(old['steps'])} steps, now {len(new['steps'])}")
    for step, (then, now) in enumerate(zip(old["steps"], new["steps"]), 1):
        for what, x, y in zip(("loss", "gradient norm"), then, now, strict=True):
            if not math.isclose(float.fromhex(x), float.fromhex(y), rel_tol=tolerance, abs_tol=tolerance):
                found.append(f"step {step} {what}: recorded {_shown(x)}, now {_shown(y)}")
    for file in sorted({*old["adapters"], *new["adapters"]}):
        then, now = old["adapters"].get(file), new["adapters"].get(file)
        if then is None or now is None or then["norms"].keys() != now["norms"].keys():
            found.append(f"{file}: it has other tensors than recorded")
            continue
        for key, norm in then["norms"].items():  # the saved file is in single precision
            if not math.isclose(norm, now["norms"][key], rel_tol=max(1e-6, 10 * tolerance), abs_tol=1e-12):
                found.append(f"{file} {key} norm: recorded {norm!r}, now {now['norms'][key]!r}")
    return found


def _shown(value: Any) -> str:
    try:
        return repr(float.fromhex(value)) if "0x" in value else str(value)
    except (TypeError, ValueError):
        return str(value)


# -------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Repeat the golden runs.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--exact", action="store_true", help="compare bit for bit with the records")
    what.add_argument("--record", action="store_true", help="replace the records")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of: {', '.join(RUNS)}")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in RUNS]:
        parser.error(f"there is no run {', '.join(unknown)}; there is: {', '.join(RUNS)}")
    differences = []
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        for name in given.names or RUNS:
            record = repeat(server, Path(folder) / name, name)
            if given.record:
                write_record(name, record)
                print(f"{name}: recorded")
                continue
            found = exact_differences(recorded(name), record, name)
            print(f"{name}: {'the same bits' if not found else f'{len(found)} differences'}", flush=True)
            differences += found
            if found and recorded(name)["made_with"] != record["made_with"]:
                print(f"  recorded with {recorded(name)['made_with']}, now {record['made_with']}")
    print("".join(f"{line}\n" for line in differences), end="")
    return 1 if differences else 0


if __name__ == "__main__":
    if os.name == "nt":
        sys.exit("the golden runs are forked processes; Windows has none")
    sys.exit(main())
