from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule
from pydantic import ValidationError
from torch.optim import lr_scheduler
from transformers.optimization import get_scheduler

from pixelkiln.trainer.optimizers.build import build
from pixelkiln.trainer.optimizers.options import OptimizerOptions, ScheduleOptions
from pixelkiln.trainer.optimizers.schedules import build_schedule

TOTAL, WARMUP, RATE = 40, 8, 0.01


def optimizer(kind: str = "SGD", **options: Any) -> Any:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    groups = [{"name": "te", "params": params[:1]}, {"name": "denoiser", "params": params[1:], "ratio": 2.0}]
    return build(OptimizerOptions(kind=kind, learning_rate=RATE, **options), groups)[0]


def rates(options: ScheduleOptions) -> list[list[float]]:
    """Both groups' rates over a run."""
    inner = optimizer()
    schedule, notes = build_schedule(options, TOTAL, inner)
    assert notes == []
    seen = []
    for step in range(TOTAL):
        schedule.apply(inner, step)
        seen.append([group["lr"] for group in inner.param_groups])
    return seen


def stepped(scheduler: Any) -> list[list[float]]:
    """The same by a library's scheduler, stepped after every optimizer step."""
    seen = []
    for _ in range(TOTAL):
        seen.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


WITH_WARMUP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "constant_with_warmup": ({}, {}),
    "linear": ({}, {}),
    "cosine": ({}, {}),
    "cosine_with_restarts": ({"cycles": 3}, {"num_cycles": 3}),
    "cosine_with_min_lr": ({"cycles": 3, "min_lr_ratio": 0.2}, {"num_cycles": 1.5, "min_lr_rate": 0.2}),
    "polynomial": ({"power": 2.0, "args": {"lr_end": 1e-4}}, {"power": 2.0, "lr_end": 1e-4}),
    "inverse_sqrt": ({"timescale": 5}, {"timescale": 5}),
    "warmup_stable_decay": (
        {"decay": "25%", "min_lr_ratio": 0.1, "args": {"decay_type": "1-sqrt"}},
        {"num_decay_steps": 10, "num_cycles": 0.5, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"},
    ),
}


@pytest.mark.parametrize("kind", WITH_WARMUP)
def test_as_the_library_steps_them(kind: str):
    ours, theirs = WITH_WARMUP[kind]
    seen = rates(ScheduleOptions(kind=kind, warmup=WARMUP, **ours))
    assert seen == stepped(get_scheduler(kind, optimizer(), WARMUP, TOTAL, scheduler_specific_kwargs=theirs))
    assert seen[WARMUP // 2][0] < seen[WARMUP][0] == RATE


def test_constant_and_piecewise():
    assert rates(ScheduleOptions()) == [[RATE, 2 * RATE]] * TOTAL
    rules = "1:10,0.1:20,0.01"
    seen = rates(ScheduleOptions(kind="piecewise_constant", args={"step_rules": rules}))
    assert seen == stepped(get_piecewise_constant_schedule(optimizer(), step_rules=rules))
    assert (seen[9][0], seen[10][0], seen[20][0]) == (RATE, 0.1 * RATE, 0.01 * RATE)


def test_a_class_of_pytorch_is_a_function_of_the_step_too():
    """Asked in any order, as a resumed run does."""
    options = ScheduleOptions(kind="CosineAnnealingWarmRestarts", args={"T_0": 7, "eta_min": 1e-3})
    theirs = stepped(
        lr_scheduler.CosineAnnealingWarmRestarts(torch.optim.SGD([torch.ones(1)], lr=RATE), 7, eta_min=1e-3)
    )
    schedule, _ = build_schedule(options, TOTAL, optimizer())
    assert [RATE * schedule.factor(step) for step in reversed(range(TOTAL))] == pytest.approx(
        [row[0] for row in reversed(theirs)], rel=1e-12
    )
    dotted = ScheduleOptions(kind="torch.optim.lr_scheduler.ExponentialLR", args={"gamma": 0.5})
    assert build_schedule(dotted, TOTAL, optimizer())[0].factor(3) == 0.125


def test_resumed_at_any_step():
    """Only the step's number matters: a schedule made anew gives the same rate as one that saw all steps before."""
    options = ScheduleOptions(kind="cosine_with_restarts", warmup=0.1, cycles=3)
    for step in (0, 3, 17, 39):
        fresh = optimizer()
        build_schedule(options, TOTAL, fresh)[0].apply(fresh, step)
        assert [group["lr"] for group in fresh.param_groups] == rates(options)[step]


@pytest.mark.parametrize(
    ("warmup", "steps"), [(8, 8), (0.2, 8), ("20%", 8), (" 20 %", 8), (0.99, 39), (0, 0), (0.0, 0)]
)
def test_warmup_as_steps_ratio_and_percentage(warmup: Any, steps: int):
    seen = [row[0] for row in rates(ScheduleOptions(kind="constant_with_warmup", warmup=warmup))]
    assert seen == pytest.approx([RATE * min(1.0, step / steps) if steps else RATE for step in range(TOTAL)])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"warmup": 10}, "constant has no warm-up; use kind = 'constant_with_warmup', or warmup = 0"),
        ({"kind": "piecewise_constant", "warmup": 10}, "piecewise_constant has no warm-up; use kind = 'cosine'"),
        ({"kind": "piecewise_constant"}, "piecewise_constant needs its rules; set args = { step_rules"),
        ({"kind": "cosine_with_min_lr"}, "cosine_with_min_lr needs min_lr_ratio; set it, such as 0.1"),
        (
            {"kind": "reduce_lr_on_plateau"},
            "reduce_lr_on_plateau cannot be used: it waits for a loss that stops falling",
        ),
        ({"kind": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "ReduceLROnPlateau cannot be used"),
        ({"kind": "cosine_warmup_with_min_lr"}, "cosine_warmup_with_min_lr cannot be used"),
        ({"kind": "cosin"}, "there is no 'cosin'; did you mean 'cosine'?"),
        (
            {"kind": "cosine", "warmup": 1.0},
            '1.0 does not fit; write steps such as 100, a ratio below 1 such as 0.1, or "10%"',
        ),
        ({"kind": "cosine", "warmup": "ten"}, "'ten' does not fit; write steps"),
        ({"kind": "cosine", "warmup": "0.1"}, "'0.1' does not fit; write steps"),
        ({"kind": "cosine", "warmup": "110%"}, "'110%' does not fit; write steps"),
        ({"kind": "cosine", "warmup": -1}, "-1 does not fit; write steps"),
        ({"kind": "cosine", "warmup": True}, "True does not fit; write steps"),
        ({"kind": "cosine", "decay": math.nan}, "nan does not fit; write steps"),
    ],
)
def test_mistakes_that_the_schema_finds(options: dict[str, Any], line: str):
    with pytest.raises(ValidationError) as error:
        ScheduleOptions(**options)
    assert error.value.error_count() == 1
    assert line in error.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"kind": "cosine", "args": {"cycles": 2}},
            r"cosine refuses its options: .*unexpected keyword argument 'cycles'",
        ),
        ({"kind": "adafactor"}, "adafactor goes with Adafactor and relative_step"),
        (
            {"kind": "warmup_stable_decay", "warmup": 30, "decay": 20},
            "warmup 30 [+] decay 20 exceed the run's 40 steps",
        ),
        ({"kind": "polynomial", "args": {"lr_end": 1.0}}, r"lr_end \(1.0\) must be smaller than initial lr \(0.01\)"),
        ({"kind": "os.path"}, "^schedule.kind: os.path: os.path is no LRScheduler of PyTorch; give"),
        ({"kind": "no.such.Schedule"}, r"^schedule.kind: no.such.Schedule cannot be imported .*; install"),
        ({"kind": "StepLR"}, "StepLR refuses its options: .*step_size"),
        (
            {"kind": "OneCycleLR", "args": {"max_lr": 1e-3, "total_steps": 38}},
            r"OneCycleLR refuses its options: Tried to step 39 times. The specified number of total steps is 38; see",
        ),
    ],
)
def test_mistakes_that_building_finds(options: dict[str, Any], line: str):
    with pytest.raises(ValueError, match=line) as error:
        build_schedule(ScheduleOptions(**options), TOTAL, optimizer())
    assert "\n" not in str(error.value)


def test_what_has_no_effect_is_said():
    options = ScheduleOptions(kind="cosine", power=2.0, cycles=3, min_lr_ratio=0.1, warmup=TOTAL)
    assert build_schedule(options, TOTAL, optimizer())[1] == [
        "schedule.cycles: cosine does not use it",
        "schedule.power: cosine does not use it",
        "schedule.min_lr_ratio: cosine does not use it",
        "schedule.warmup: 40 of 40 steps: the run ends before the full rate is reached",
    ]
    for inner, reason in (
        (optimizer("AdamWScheduleFree"), "AdamWScheduleFree needs none"),
        (optimizer("Adafactor"), "Adafactor finds its own rate"),
    ):
        before = [group["lr"] for group in inner.param_groups]
        schedule, notes = build_schedule(ScheduleOptions(kind="cosine"), TOTAL, inner)
        assert notes == [f"schedule: cosine is not used, {reason}"]
        schedule.apply(inner, TOTAL - 1)
        assert [group["lr"] for group in inner.param_groups] == before
