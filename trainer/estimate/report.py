"""Does a run fit on a GPU, how long will it take, and what would make it fit?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..data.loader import Dataset
from ..diffusion import sampling
from ..diffusion.sampling import Prompt
from ..diffusion.types import Role
from ..errors import UserError
from ..families.load import Found, configs
from ..losses.options import DecodeOptions
from ..losses.pixel import BY_SIZE
from ..runs import user_cache
from ..runs.check_report import span
from ..runs.control import gigabytes
from ..training import step_time
from ..training.build import scan
from ..training.remedies import PARTS, Phase, Remedy, ladder
from ..training.run_options import total_steps
from ..training.surrogates import MADE
from . import fake_model, reuse, speed
from . import plan as planning
from .fake_model import Shape
from .gpus import GIB, Gpu
from .memory import Decoded, Estimate, decoded, estimate, phases

NAME = "forecasts"


@dataclass(frozen=True)
class Fit:
    """A run on a GPU."""

    config: Config
    measured: Estimate
    phases: list[Phase]
    gpu: Gpu

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def gb(self) -> float:
        return self.worst.total / GIB

    @property
    def fits(self) -> bool:
        return self.gb <= self.gpu.free


def shape(config: Config, found: Found, dataset: Dataset | None) -> Shape:
    """The largest batch: of the data's buckets, or of the configured resolution where there is no data."""
    if dataset is not None:
        (width, height), samples = dataset.plan.largest
        micro = -(-samples // config.run.accumulation)
        return Shape(width, height, max((item.roles for item in dataset.items), key=len), micro)
    side = config.data.resolution or found.spec.resolution
    width, height = (side, side) if isinstance(side, int) else (side[0], side[1])
    chosen = [objective for _, objective in config.terms().values()]
    roles: tuple[Role, ...] = ("liked",) if any(objective.data for objective in chosen) else ("plain",)
    if any(objective.needs_pairs for objective in chosen):
        roles = ("winner", "loser")
    if config.dense and config.dense.detail:
        roles = ("plain", "reconstruction")
    return Shape(width, height, roles, config.run.batch)


class Estimator:
    """Estimates of one model and its data, for several configurations and one GPU."""

    def __init__(
        self, config: Config, found: Found, dataset: Dataset | None, gpu: Gpu,
        say: Callable[[str], None] = lambda line: None,
    ):  # fmt: skip
        """``say`` is called before each symbolic run, which takes seconds."""
        self.found, self.gpu, self.say = found, gpu, say
        self._data = (config.data, dataset)

    def dataset(self, config: Config) -> Dataset | None:
        """The data as a configuration arranges it."""
        options, dataset = self._data
        if dataset is not None and config.data != options:
            dataset = scan(config, found=self.found)[1]
            self._data = (config.data, dataset)
        return dataset

    def __call__(self, config: Config) -> Fit:
        dataset, device = self.dataset(config), self.gpu.device
        at, dtype, key = self._at(config)
        if cached := user_cache.known(NAME).get(key):
            cached["trained"] = [tuple(row) for row in cached["trained"]]
            measured = Estimate(**cached)
        else:
            self.say(f"estimating the memory of a step at {at.width}x{at.height}: {_named(config)}")
            measured = estimate(config, self.found, at, dtype, device, self._room(config))
            user_cache.remember(NAME, key, asdict(measured))
        change = dataset is not None and dataset.needs_text_encoder
        return Fit(config, measured, phases(config, measured, device, change), self.gpu)

    def _at(self, config: Config) -> tuple[Shape, torch.dtype, str]:
        """The largest batch, the precision, and the key that the estimate is remembered by."""
        at, dtype = shape(config, self.found, self.dataset(config)), self.gpu.dtype(config.run.precision)
        return at, dtype, _key(config, self.found, at, dtype, self.gpu.device, self._room(config))

    def remember(self, config: Config, measured: Estimate) -> None:
        """An estimate that is known to be another configuration's as well."""
        user_cache.remember(NAME, self._at(config)[2], asdict(measured))

    def _room(self, config: Config) -> int | None:
        """Bytes free for decode = "auto" before the model is loaded; in quarters of a GiB, for the cache's sake."""
        chosen = [o for o, _ in config.terms().values() if isinstance(o, DecodeOptions) and o.decode in BY_SIZE]
        return int(self.gpu.free * 4) * GIB // 4 if chosen and self.gpu.device == "cuda" else None

    def step_time(self, fit: Fit) -> step_time.StepTime | None:
        at = shape(fit.config, self.found, self.dataset(fit.config))
        dtype = self.gpu.dtype(fit.config.run.precision)
        names = (self.gpu.name, str(dtype).removeprefix("torch."))
        key = step_time.key(fit.config, fit.measured.arch, (at.width, at.height), *names)
        return step_time.expect(key, *names, self.operations(fit))

    def rates(self, fit: Fit) -> tuple[float, float, str] | None:
        """(least, most) operations a second of its steps on this GPU, and where the numbers come from: remembered
        steps, or a range of what cards reach; None where nothing is known."""
        if found := self.step_time(fit):
            rate = self.operations(fit)
            return rate / found.seconds, rate / found.seconds, found.source
        return speed.rates(self.gpu, self.gpu.dtype(fit.config.run.precision))

    def beside(self, fit: Fit, steps: int) -> float:
        """Operations of a run that are not its steps': encoding captions and pictures, previews, validation."""
        config, work, dataset = fit.config, fit.measured.work, self.dataset(fit.config)
        per_epoch = dataset.steps_per_epoch if dataset else 0

        def times(every: int, every_epochs: int) -> int:
            every = every_epochs * per_epoch if every_epochs else every
            return 1 + (max(steps - 1, 0) // every if every else 0)

        total = 0.0
        if dataset is not None:
            count = sum(len(item.roles) for item in dataset.items)
            total += count * (work["pictures"] * (config.data.cache_latents != "off") + work["captions"])
            if dataset.held:
                batches = -(-len(dataset.held) // config.run.batch)
                batches = min(config.validation.max_batches or batches, batches)
                each = batches * config.validation.levels * fit.measured.flops / 3  # forward, of forward and backward
                total += each * times(config.validation.every, config.validation.every_epochs)
        if "prediction" in work:
            drawn = times(config.sample.every, config.sample.every_epochs) + config.sample.at_start
            for prompt in _prompts(config, self.found):
                total += drawn * (prompt.steps * (1 + (prompt.guidance != 1)) * work["prediction"] + work["decode"])
        return total

    def decoded(self, fit: Fit) -> Decoded:
        """What its steps compute."""
        run, dataset = fit.config.run, self.dataset(fit.config)
        rows = run.steps and run.steps * run.batch * run.accumulation
        if dataset is not None:
            steps = total_steps(run, dataset.steps_per_epoch, dataset.batches_per_epoch(run.accumulation))
            rows = steps * dataset.effective_batch
        return decoded(fit.config, fit.measured, self.found.process, rows)

    def operations(self, fit: Fit) -> float:
        """Multiplications and additions of an average step."""
        return self.decoded(fit).step * fit.config.run.accumulation

    def computing(self, fit: Fit) -> float:
        """Operations of an average step, as a multiple of one whose terms decode nothing."""
        found = self.decoded(fit)
        return found.step / (found.step - found.decoding)

    def remedies(self, fit: Fit) -> list[tuple[Remedy, Fit]]:
        """The cheapest changes that make it fit, in their order, each with what it leads to; all that help where none
        is enough."""
        taken: list[tuple[Remedy, Fit]] = []
        for offer in ladder():
            while not fit.fits and (found := offer(fit.config, fit.worst)):
                trial = self(fit.config.changed(found.changes))
                if trial.gb > fit.gb - 0.02:
                    break
                fit = trial
                taken.append((found, fit))
        return taken


def _key(config: Config, found: Found, at: Shape, dtype: torch.dtype, device: str, room: int | None) -> str:
    drawn = [(p.width, p.height) for p in _prompts(config, found)]
    start = config.adapter.init_from
    versions = [reuse.version(name) for name in ("torch", "diffusers", "peft", "transformers")]
    tables = {
        "model": config.model.recorded_dump(exclude={"path", "vae", "clip_l", "clip_g", "t5", "t5_on_cpu"}),
        "adapter": config.adapter.recorded_dump(),
        "memory": config.memory.recorded_dump(
            exclude={"plan", "base_weights", "text_weights", "blocks_on_gpu", "prefetch_blocks", "attention"}
        ),
        "loss": _sized(config.loss.recorded_dump()),
        "objective": _sized(config.objective.recorded_dump()),
        "noise": config.noise.recorded_dump(),
        **({"dense": config.dense.recorded_dump(), "shown": config.sample.pictures} if config.dense else {}),
    }
    return reuse.digest(
        user_cache.source_digest(), versions, found.spec.name, configs(found), found.process.prediction, tables,
        config.run.accumulation > 1, config.run.full_bf16, asdict(at), str(dtype), device, room,
        max(drawn, default=None),
        config.data.validation_split > 0, fake_model.masked(config), start and [start, Path(start).stat().st_mtime_ns],
    )  # fmt: skip


STRENGTHS = ("weight", "auto_ratio", "beta", "sft_weight")
"""Of losses and objectives: memory and operations depend on whether they are 0, not on how large they are."""


def _sized(table: dict[str, Any]) -> dict[str, Any]:
    """A table of losses or objectives without the size of ``STRENGTHS``."""
    return {
        key: _sized(value) if isinstance(value, dict)
        else value > 0 if key in STRENGTHS and isinstance(value, int | float) else value
        for key, value in table.items()
    }  # fmt: skip


def _named(config: Config) -> str:
    own = config.memory
    share = own.checkpointing_fraction if own.gradient_checkpointing else 0
    return f"gradient checkpointing on {100 * share:g}% of the blocks"


def _prompts(config: Config, found: Found) -> list[Prompt]:
    side = config.data.resolution or found.spec.resolution
    native = (side, side) if isinstance(side, int) else (side[0], side[1])
    return sampling.prompts(config.sample, native, found.spec.multiple)


# ---------------------------------------------------------------------------------------------------------- answering


def answer(
    estimator: Estimator, config: Config, steps: int | None, kept: dict[str, Any] | None = None
) -> dict[str, Any]:
    """JSON-able: the ``fit`` of ``check --json``. GB are GiB. ``kept``: see ``plan.choose``."""
    plan = planning.choose(config, estimator, kept or {}) if config.memory.plan == "auto" else None
    config = plan.config if plan else config
    fit, gpu = estimator(config), estimator.gpu
    remedies = [] if fit.fits else estimator.remedies(fit)
    dtype = str(gpu.dtype(config.run.precision)).removeprefix("torch.")
    return {
        "gb": round(fit.gb, 2), "of_gb": round(gpu.free, 2), "fits": fit.fits, "card": gpu.name,
        "device": gpu.device, "precision": dtype, "at": fit.worst.name, "parts": _rounded(fit.worst),
        "phases": [{"name": one.name, "gb": round(one.total / GIB, 2), "parts": _rounded(one)} for one in fit.phases],
        **_time(estimator, fit, steps),
        "plan": plan.as_json() if plan else None,
        "computing": round(estimator.computing(fit), 2), "decoding": _decoding(estimator, fit),
        "remedies": [
            {"label": one.label, "cost": one.cost, "exact": one.exact, "changes": one.changes,
             "gb": round(after.gb, 2), "fits": after.fits}
            for one, after in remedies
        ],
    }  # fmt: skip


def _time(estimator: Estimator, fit: Fit, steps: int | None) -> dict[str, Any]:
    """What ``check_report.duration`` reads. ``seconds`` and ``seconds_per_step``: from remembered steps alone."""
    found = estimator.rates(fit)
    if found is None:
        return {"seconds": None, "seconds_per_step": None, "seconds_per_step_range": None, "seconds_beside": None,
                "pace": UNKNOWN}  # fmt: skip
    slow, fast, source = found
    step, making = estimator.operations(fit), estimator.decoded(fit).making
    each, beside = (step / fast, step / slow), estimator.beside(fit, steps or 0)
    extra, known = [beside / rate + (making.seconds(rate) if making else 0) for rate in (fast, slow)], fast == slow
    return {
        "seconds": round(each[0] * steps + extra[0]) if known and steps else None,
        "seconds_per_step": each[0] if known else None, "seconds_per_step_range": list(each),
        "seconds_beside": extra, "pace": source,
    }  # fmt: skip


def _decoding(estimator: Estimator, fit: Fit) -> list[str]:
    """A line on what is estimated instead of decoded, with the time that making its surrogate takes."""
    found, rates = estimator.decoded(fit), estimator.rates(fit)
    if not found.making or not rates:
        return found.lines
    slow, fast, _ = rates
    time = span(found.making.seconds(fast), found.making.seconds(slow))
    return [f"{line} ({time})" if line.endswith(MADE) else line for line in found.lines]


UNKNOWN = "nothing is known of this device's speed; give --card, or --calibrate, or train"


def not_estimated(config: Config, world: int) -> list[str]:
    """What a run will hold that is not in the estimate, one per line."""
    lines = []
    if config.memory.compile != "none":
        lines.append("memory.compile: what compiled code takes, and the compiler itself, is not in the estimate")
    if world > 1:
        lines.append(
            f"{world} processes: the estimate is of each GPU, which holds its own copy of everything; the sum of the "
            "gradients, twice the adapter for a moment, is not in it"
        )
    return lines


def _rounded(phase: Phase) -> dict[str, float]:
    return {part: round(phase.parts[part] / GIB, 3) for part in PARTS}


def apply(config: Config, fit: dict[str, Any], say: Callable[[str], None]) -> Config:
    """The configuration with the remedies of an answer, and what its plan chose under them. UserError when they are not
    enough."""
    if fit["remedies"] and fit["plan"]:
        config = config.changed(fit["plan"]["choices"])
    for one in fit["remedies"]:
        say(f"fit: {one['label']} ({one['cost']}): {gigabytes(one['gb'])} GB")
        config = config.changed(one["changes"])
    if not fit["fits"] and not (fit["remedies"] and fit["remedies"][-1]["fits"]):
        least = fit["remedies"][-1]["gb"] if fit["remedies"] else fit["gb"]
        raise UserError(
            f"--fit: it needs {gigabytes(least)} GB at least, and {fit['card']} has {gigabytes(fit['of_gb'])} GB free; "
            "choose a smaller model or a larger GPU"
        )
    return config
