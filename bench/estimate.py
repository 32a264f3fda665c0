"""One case of the bench estimated, without weights or a GPU: operations and GiB by the symbolic run of ``check``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from pixelkiln.trainer.config import nested, parse
from pixelkiln.trainer.estimate.gpus import GIB, Gpu
from pixelkiln.trainer.estimate.memory import operations
from pixelkiln.trainer.estimate.report import Estimator
from pixelkiln.trainer.families.load import assumed
from pixelkiln.trainer.training.build import scan
from pixelkiln.trainer.training.remedies import STEP

ROOMY = Gpu("a CUDA GPU", 80.0, 80.0, "cuda", True)
"""Room for every decode, so that ``auto`` goes by the picture's size alone."""
UNSEEN = {
    "plain", "memory.plan", "memory.attention", "memory.compile", "memory.channels_last", "loss.pixel.target_cache",
    "loss.lpips.backbone",
}  # fmt: skip
"""Options that a symbolic run does not see."""


def is_estimable(flags: Mapping[str, Any]) -> bool:
    """Whether an estimate of a case tells something."""
    return not UNSEEN & flags.keys() and flags.get("memory.blocks_on_gpu") != "auto"


def estimate(case: Mapping[str, Any]) -> dict[str, Any]:
    """``case``: model (a family), size, batch, flags. Operations of an average step, and GiB on a GPU in bf16."""
    with tempfile.TemporaryDirectory() as out:
        flags = {
            "run.out": out, "run.batch": case["batch"], "run.precision": "bf16", "model.path": "",
            "model.family": case["model"], "data.resolution": case["size"], "data.bucket_min": 64, "adapter.rank": 16,
            **case["flags"],
        }  # fmt: skip
        config = parse(nested(flags))
        found = assumed(config.model)
        dataset = scan(config, found=found)[1] if config.data.pairs else None
        fit = Estimator(config, found, dataset, ROOMY)(config)
    whole, decoding = operations(config, fit.measured, found.process)
    step = next(phase for phase in fit.phases if phase.name == STEP)
    return {"flops": whole, "decoding": decoding, "step_gb": step.total / GIB, "run_gb": fit.gb}


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: ratios to the first row, and to the case *latent*, which recomputes nothing. *Without decoding*: the
    step over itself without what its decodes take."""
    lines, first = [
        "| case | operations (10^12) | ratio | to `latent` | without decoding | probability for 1.3 | step GiB "
        "| ratio | run GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ], rows[0]  # fmt: skip
    plain = next((row["flops"] for row in rows if row["case"] == "latent"), None)
    for row in rows:
        bare, decoding = row["flops"] - row["decoding"], "| | "
        against = f"{row['flops'] / plain:.2f} " if plain else ""
        if row["decoding"]:
            share = min(1.0, 0.3 * bare / row["decoding"] * row["probability"])
            decoding = f"| {row['flops'] / bare:.2f} | {share:.2f} "
        lines.append(
            f"| {row['case']} | {row['flops'] / 1e12:.1f} | {row['flops'] / first['flops']:.2f} "
            f"| {against}{decoding}"
            f"| {row['step_gb']:.2f} | {row['step_gb'] / first['step_gb']:.2f} | {row['run_gb']:.2f} |"
        )
    return lines
