"""``check``: what a run would do, found without loading a model."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..adapters.inject import read_start
from ..adapters.options import AdapterOptions
from ..config import Config, ConfigError, find_preset, load, reference
from ..data.loader import Dataset
from ..errors import UserError
from ..estimate import gpus, report, reuse
from ..estimate import plan as planning
from ..families.family import FamilySpec
from ..families.load import Found, assumed, identify
from ..optimizers.build import build as build_optimizer
from ..optimizers.schedules import build_schedule
from ..registry import families
from ..runs.folder import RunFolder
from ..training import checkpoint, distributed
from ..training.build import Examined, scan
from ..training.run_options import total_steps

BUNDLED, BUNDLED_RESOLUTION = Path(__file__).resolve().parents[2] / "presets" / "base", 128


def load_without_model(path: str | None, flags: dict[str, Any], preset: str | None) -> Config:
    """As for a run, but the model may be left out where its family is given: ``model.path`` is empty then."""
    try:
        return load(path, flags, preset)
    except ConfigError as error:
        if [where for where, _ in error.problems] != ["model.path"] or "model.path" in flags:
            raise
        return load(path, {**flags, "model.path": ""}, preset)


def sources(config: Config, args: argparse.Namespace) -> list[Path]:
    """The files that the configuration came from and those that it names, which the command must not replace."""
    from ..kohya import entrance

    found = entrance.sources(args.kohya) if args.kohya else [args.config] if args.config else []
    preset = args.preset or config.preset
    tables = config.model_dump(exclude_none=True)
    named = [one for row in reference() if row["path"] for one in _values(tables, f"{row['table']}.{row['name']}")]
    paths = [Path(one) for one in (*found, *([find_preset(preset)] if preset else []), *named)]
    return [path for path in paths if path.is_file()]


def _values(tables: Any, option: str) -> list[str]:
    """The texts of an option by its dotted name, those of each table where there is a list of tables."""
    if isinstance(tables, list):
        return [found for one in tables for found in _values(one, option)]
    if isinstance(tables, str):
        return [] if option else [tables]
    name, _, rest = option.partition(".")
    return _values(tables[name], rest) if isinstance(tables, dict) and name in tables else []


def card_for(config: Config, card: str | None, memory: str | None) -> gpus.Gpu:
    """The GPU that is named, one with that much memory, or the device that the run would take here."""
    if card and memory:
        raise UserError("--card and --memory are both given; keep one of them")
    return gpus.named(card) if card else gpus.with_memory(memory) if memory else gpus.here(config.run.device)


def examine(config: Config) -> Examined:
    """Identify the model and scan the data. Without a model its family's public form is taken."""
    found = identify(config.model) if config.model.path else assumed(config.model)
    _places(config, RunFolder(Path(config.run.out) / config.run.name))
    return Examined(config, found, scan(config, found=found)[1] if _has_data(config) else None)


def planned(
    config: Config, resume: bool, examined: Examined | None, say: Callable[[str], None]
) -> tuple[Config, Examined | None]:
    """A run's configuration with what ``memory.plan = "auto"`` chooses on this machine's device, the same in all
    processes; what is examined holds for it too. UserError as ``train`` would raise it."""

    def choose() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        nonlocal examined
        examined = examined or examine(config)
        card = gpus.here(config.run.device)
        estimator = report.Estimator(config, examined.found, examined.dataset, card, say)
        plan = planning.choose(config, estimator, _kept(config, resume))
        return plan.anew, plan.once, plan.lines

    distributed.initialize(config.run.device)
    anew, once, lines = distributed.broadcast(choose)
    for line in lines:
        say(f"memory plan: {line}")
    config = config.planned(anew, once)
    return config, examined and replace(examined, config=config)


def _kept(config: Config, resume: bool) -> dict[str, Any]:
    """What the run to continue chose once."""
    start = Path(config.run.out) / config.run.name if resume else config.run.resume_from
    return planning.chosen_once(start) if start else {}


def check(
    config: Config, card: gpus.Gpu, examined: Examined | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """JSON-able: the model as its file describes it, data, steps, terms, files, and whether it fits on the GPU.

    Without a model its family's public form is taken, without data the configured resolution. UserError as ``train``
    would raise it. ``examined``: of the same configuration, where that is done already; ``say`` gets what takes long.
    """
    examined = examined or examine(config)
    found, dataset = examined.found, examined.dataset
    folder = RunFolder(Path(config.run.out) / config.run.name)
    total = _steps(config, dataset)
    _files(config, found)
    estimator = report.Estimator(config, found, dataset, card, say)
    fit = report.answer(estimator, config, total, _kept(config, False))
    _schedule(config, total)
    if dataset is not None and config.dense:
        dataset.look_at_targets()
    warnings = [*dataset.warnings] if dataset else ["no data is given; the configured resolution is taken"]
    for name, (options, _) in config.terms().items():
        warnings += [f"loss.{name}.{line}" for line in options.warnings()]
    warnings += report.not_estimated(config, distributed.rank_and_world()[1])
    return {
        "model": _model(config, found),
        "data": dataset.report if dataset else None,
        "resolution": config.data.resolution or found.spec.resolution,
        "steps": total,
        "epochs": total / dataset.steps_per_epoch if dataset and total else None,
        "terms": {
            name: {"loss": options.model_dump(), "objective": objective.kind}
            for name, (options, objective) in config.terms().items()
        },
        "files": {"run": str(folder.path), "adapter": str(folder.final)},
        "exists": folder.final.exists(),
        "resumable": any(folder.state.glob("step*.safetensors")),
        "fit": fit,
        "notes": config.notes() + fit.pop("decoding"),
        "warnings": warnings,
    }


def _places(config: Config, folder: RunFolder) -> None:
    """Raise UserError for a folder that the run could not write to. Nothing is made."""
    _writable("run.out", folder.path)
    if config.run.log_dir:
        _writable("run.log_dir", Path(config.run.log_dir))
    if config.data.cache_dir and not Path(config.data.cache_dir).is_dir():  # one that is full already may be read-only
        _writable("data.cache_dir", Path(config.data.cache_dir))


def _writable(option: str, path: Path) -> None:
    nearest = next((one for one in (path, *path.parents) if os.access(one, os.F_OK)), Path())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return
    reason = os.strerror(errno.EACCES if nearest.is_dir() else errno.ENOTDIR)
    raise UserError(f"{option}: {path} cannot be written ({reason}); choose a folder that you may write to")


def _files(config: Config, found: Found) -> None:
    """Raise UserError, as a run would, for a file that is missing or of another kind than the run needs."""
    for path in config.model.base_adapters:
        read_start(AdapterOptions(init_from=path), found.spec.name)
    if config.adapter.init_from:
        read_start(config.adapter, found.spec.name)
    checkpoint.thumbnail(config.save)
    if config.run.resume_from and not checkpoint.states(Path(config.run.resume_from)):
        checkpoint.load_state(Path(config.run.resume_from))


def _schedule(config: Config, total: int | None) -> None:
    """Raise UserError, as a run would, for an optimizer or a schedule that its options do not fit. Making them imports
    torch's compiler and diffusers, so those that were made once are kept."""

    def made() -> bool:
        groups = [{"name": name, "params": [torch.nn.Parameter(torch.zeros(1))]} for name in ("denoiser", "te")]
        build_schedule(config.schedule, total or 0, build_optimizer(config.optimizer, groups)[0])
        return True

    if total:
        reuse.once("schedules", reuse.schedule(config.schedule, config.optimizer, total), made)


def _steps(config: Config, dataset: Dataset | None) -> int | None:
    """Of the whole run; None where that depends on data that are not given."""
    if dataset is None:
        return None if config.run.epochs else config.run.steps or 1000
    return total_steps(config.run, dataset.steps_per_epoch, dataset.batches_per_epoch(config.run.accumulation))


def _has_data(config: Config) -> bool:
    return bool(config.data.named_sets())


def _model(config: Config, found: Found) -> dict[str, Any]:
    return {
        "path": config.model.path, "family": found.spec.name, "title": found.spec.title,
        "prediction": found.process.prediction, "notes": found.notes, "resolution": _trained_at(config, found),
        "presets": {family: one.presets or family for family, one in _specs().items()},
    }  # fmt: skip


def _specs() -> dict[str, FamilySpec]:
    return {name: families[name].build() for name in families.names()}


def _trained_at(config: Config, found: Found) -> int:
    """Pixels of a side that the base model was trained at; the bundled one is smaller than its family."""
    bundled = Path(config.model.path).resolve() == BUNDLED if config.model.path else False
    return BUNDLED_RESOLUTION if bundled else found.spec.resolution
