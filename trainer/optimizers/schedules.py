"""Learning rates over a run. A schedule is a pure function of the step, so a resumed run needs only its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from ..errors import UserError
from .build import bare, is_schedule_free, load_class
from .options import USES, ScheduleOptions, steps_of

ONLY_IN_TRANSFORMERS = ("cosine_with_min_lr", "inverse_sqrt", "warmup_stable_decay")


@dataclass(frozen=True)
class Schedule:
    """What the learning rates are multiplied by."""

    factor: Callable[[int], float]
    """Of the number of optimizer steps taken: 0 before the first."""

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the rates for the step after ``step`` steps; the factor. A group's "initial_lr" is its full rate."""
        factor = self.factor(step)
        for group in bare(optimizer).param_groups:
            if group["lr"] is not None:
                group["lr"] = group["initial_lr"] * factor
        return factor


def build_schedule(options: ScheduleOptions, total: int, optimizer: Optimizer) -> tuple[Schedule, list[str]]:
    """The schedule of a run of ``total`` optimizer steps, and notes for the person. Raises UserError in one line."""
    inner, kind = bare(optimizer), options.kind
    own_rate = any(group["lr"] is None for group in inner.param_groups)
    if kind == "adafactor" and not own_rate:
        raise UserError("schedule.kind: adafactor goes with Adafactor and relative_step; use constant or cosine")
    if own_rate or is_schedule_free(inner):
        unused = kind not in ("constant", "adafactor")
        why = "finds its own rate" if own_rate else "needs none"
        note = f"schedule: {kind} is not used, {type(inner).__name__} {why}"
        return Schedule(lambda step: 1.0), [note] if unused else []
    warmup, decay = steps_of(options.warmup, total), steps_of(options.decay, total)
    notes = _unused(options)
    if warmup >= total and "warmup" in USES.get(kind, set()):
        notes.append(f"schedule.warmup: {warmup} of {total} steps: the run ends before the full rate is reached")
    if kind == "warmup_stable_decay":
        if warmup + decay > total:
            raise UserError(f"schedule: warmup {warmup} + decay {decay} exceed the run's {total} steps; lower them")
        if not decay:
            notes.append("schedule.decay: it is 0, so the rate does not fall at the end")
    try:
        factor = _factor(options, warmup, decay, total, float(inner.defaults["lr"]))
        factor(total - 1)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"schedule: {kind} refuses its options: {reason}; see schedule.args") from None
    return Schedule(factor), notes


def _unused(options: ScheduleOptions) -> list[str]:
    """Options that were changed although this kind does not look at them."""
    if options.kind not in USES:
        return []
    changed = [name for name, info in type(options).model_fields.items() if getattr(options, name) != info.default]
    idle = [name for name in changed if name not in USES[options.kind] | {"kind", "args"}]
    return [f"schedule.{name}: {options.kind} does not use it" for name in idle]


def _factor(options: ScheduleOptions, warmup: int, decay: int, total: int, rate: float) -> Callable[[int], float]:
    """The formulas are those of diffusers and transformers, taken out of the schedulers that these build."""
    from diffusers import optimization as d

    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=rate, momentum=0.9)
    ramp: dict[str, Any] = {"num_warmup_steps": warmup}
    both: dict[str, Any] = {**ramp, "num_training_steps": total}
    makers: dict[str, Callable[..., Any]] = {
        "constant": d.get_constant_schedule,
        "constant_with_warmup": partial(d.get_constant_schedule_with_warmup, **ramp),
        "linear": partial(d.get_linear_schedule_with_warmup, **both),
        "cosine": partial(d.get_cosine_schedule_with_warmup, **both),
        "cosine_with_restarts": partial(
            d.get_cosine_with_hard_restarts_schedule_with_warmup, **both, num_cycles=options.cycles
        ),
        "polynomial": partial(d.get_polynomial_decay_schedule_with_warmup, **both, power=options.power),
        "piecewise_constant": d.get_piecewise_constant_schedule,
    }
    if options.kind in ONLY_IN_TRANSFORMERS:
        makers |= _of_transformers(options, ramp, both, decay, total - warmup - decay)
    if options.kind in makers:
        return makers[options.kind](dummy, **options.args).lr_lambdas[0]
    path = options.kind if "." in options.kind else f"torch.optim.lr_scheduler.{options.kind}"
    cls = load_class(path, lr_scheduler.LRScheduler, f"schedule.kind: {options.kind}", "cosine")
    return _replayed(dummy, cls(dummy, **options.args), rate)


def _of_transformers(
    options: ScheduleOptions, ramp: dict[str, Any], both: dict[str, Any], decay: int, stable: int
) -> dict[str, Callable[..., Any]]:
    """Apart, as transformers' schedules come with its trainer, with PEFT and bitsandbytes: 2.4 s at every start."""
    from transformers import optimization as t

    waves = options.cycles / 2
    return {
        "cosine_with_min_lr": partial(
            t.get_cosine_with_min_lr_schedule_with_warmup, **both, num_cycles=waves, min_lr_rate=options.min_lr_ratio
        ),
        "inverse_sqrt": partial(t.get_inverse_sqrt_schedule, **ramp, timescale=options.timescale),
        "warmup_stable_decay": partial(
            t.get_wsd_schedule, **ramp, num_decay_steps=decay, num_stable_steps=stable, num_cycles=waves,
            min_lr_ratio=options.min_lr_ratio or 0.0,
        ),
    }  # fmt: skip


def _replayed(dummy: Optimizer, scheduler: Any, rate: float) -> Callable[[int], float]:
    """Any scheduler as a function of the step, by stepping it on a parameter of its own."""
    factors = [dummy.param_groups[0]["lr"] / rate]

    def factor(step: int) -> float:
        while len(factors) <= step:
            dummy.step()
            scheduler.step()
            factors.append(dummy.param_groups[0]["lr"] / rate)
        return factors[step]

    return factor
