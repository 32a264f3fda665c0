"""``check``: what a run would do, found without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .build import scan
from .config import Config
from .run import RunFolder, total_steps


def check(config: Config) -> dict[str, Any]:
    """JSON-able: the model as its file tells it, data, steps, terms, files. ValueError as ``train`` would raise it."""
    found, dataset = scan(config)
    total = total_steps(config.run, dataset.steps_per_epoch, dataset.batches_per_epoch(config.run.accumulation))
    folder = RunFolder(Path(config.run.out) / config.run.name)
    resolution = config.data.resolution or found.kind.resolution
    warnings = [*dataset.warnings]
    for name, (options, _) in config.terms().items():
        warnings += [f"loss.{name}.{line}" for line in options.warnings()]  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "model": {
            "path": config.model.path,
            "family": found.kind.name,
            "title": found.kind.title,
            "prediction": found.process.prediction,
            "notes": found.notes,
        },
        "data": dataset.report,
        "resolution": resolution,
        "steps": total,
        "epochs": total / dataset.steps_per_epoch,
        "terms": {
            name: {"loss": options.model_dump(), "objective": objective.kind}  # pyright: ignore[reportAttributeAccessIssue]
            for name, (options, objective) in config.terms().items()
        },
        "files": {"run": str(folder.path), "adapter": str(folder.final)},
        "exists": folder.final.exists(),
        "resumable": any(folder.state.glob("step*.safetensors")),
        "warnings": warnings,
    }


def told(answer: dict[str, Any]) -> str:
    """The answer for a person."""
    data = answer["data"]
    buckets = ", ".join(f"{b['width']}x{b['height']}: {b['samples']}" for b in data["buckets"])
    terms = ", ".join(f"{name} ({term['objective']})" for name, term in answer["terms"].items())
    held = f", {data['held_out']} held out" if data["held_out"] else ""
    lines = [
        *answer["model"]["notes"],
        f"data      {data['items']} {data['kind']}{held}, {data['samples_per_epoch']} samples an epoch",
        f"buckets   {buckets}",
        f"steps     {answer['steps']} ({answer['epochs']:.1f} epochs of {data['steps_per_epoch']} steps)",
        f"loss      {terms}",
        f"writes    {answer['files']['adapter']}" + (" (replaces an earlier one)" if answer["exists"] else ""),
        *(f"warning: {line}" for line in answer["warnings"]),
    ]
    return "\n".join(lines)
