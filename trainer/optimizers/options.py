"""[optimizer] and [schedule]: what may be written there."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, field_validator, model_validator

from ..errors import UserError
from ..registry import Options, nearest, option
from .names import NAMED, find

USES = {
    "constant": set(),
    "constant_with_warmup": {"warmup"},
    "linear": {"warmup"},
    "cosine": {"warmup"},
    "cosine_with_restarts": {"warmup", "cycles"},
    "cosine_with_min_lr": {"warmup", "cycles", "min_lr_ratio"},
    "polynomial": {"warmup", "power"},
    "inverse_sqrt": {"warmup", "timescale"},
    "warmup_stable_decay": {"warmup", "decay", "cycles", "min_lr_ratio"},
    "piecewise_constant": set(),
    "adafactor": set(),
}
"""Schedules with a short name, and the options of [schedule] that each uses."""

if TYPE_CHECKING:
    OptimizerKind = ScheduleKind = str
else:
    OptimizerKind, ScheduleKind = Literal[tuple(NAMED)], Literal[tuple(USES)]


def _else(right: str) -> WrapValidator:
    """One line for a value that fits none of a union's types, instead of a line for each."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise UserError(f"{value!r} does not fit; {right}") from None

    return WrapValidator(check)


Rate = Annotated[float, Field(ge=0)]
STEPS = 'write steps such as 100, a ratio below 1 such as 0.1, or "10%"'
Steps = Annotated[int | float | str, _else(STEPS)]
"""A number of steps, a ratio of the run below 1, or a percentage such as "10%"."""


def steps_of(value: int | float | str, total: int) -> int:
    """Steps as a number: 100 -> 100; 0.1 and "10%" -> a tenth of ``total``, rounded down. Otherwise UserError."""
    if isinstance(value, int) and value >= 0:
        return value
    number, percent, rest = str(value).strip().partition("%")
    try:
        ratio = float(number) / (100 if percent else 1)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio < 1 or rest or isinstance(value, str) != bool(percent):
        raise UserError(f"{value!r} does not fit; {STEPS}")
    return int(ratio * total)


class OptimizerOptions(Options):
    kind: Annotated[OptimizerKind | str, _else("give the name of an optimizer, such as 'AdamW'")] = option(
        "AdamW", kohya="optimizer_type", label="Optimizer"
    )
    """Which optimizer, in any case; also a class of torch.optim or a dotted path (``bitsandbytes.optim.LAMB``).
    AdamW8bit needs the least memory of the usual ones; Prodigy finds its own step size from learning_rate 1."""
    learning_rate: float = option(1e-4, kohya="learning_rate", label="Learning rate", ge=0)
    """Step size of everything that has none of its own. About 1e-4 for Adam's kin, a third of that for Lion, 1 for
    Prodigy and D-Adaptation, 2.5e-3 for schedule-free AdamW."""
    denoiser_lr: float | None = option(None, kohya="unet_lr", label="Learning rate of the U-Net", ge=0)
    """Step size of the U-Net or transformer instead of learning_rate; 0 leaves it as it is."""
    text_encoder_lr: Annotated[Rate | list[Rate] | None, _else("give a number from 0 up, or a list of them")] = option(
        None, kohya="text_encoder_lr", label="Learning rate of the text encoders"
    )
    """Step size of the text encoders instead of learning_rate, or a list with one for each; 0 leaves an encoder as it
    is. Only where the adapter trains them."""
    weight_decay: float | None = option(None, label="Weight decay", ge=0)
    """Pull of the weights towards zero. Not given: the optimizer's own default (0.01 for AdamW, 0 for most)."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = option(None, label="Betas", min_length=1)
    """Memory of the running averages, such as [0.9, 0.999]. Not given: the optimizer's own default."""
    max_grad_norm: float = option(1.0, kohya="max_grad_norm", label="Gradient clipping", ge=0)
    """Gradients are scaled down to this norm at most, over all parameters together; 0 leaves them as they are."""
    args: dict[str, Any] = option({}, kohya="optimizer_args", label="Further arguments")
    """Arguments of the optimizer's class by name, such as { eps = 1e-7 }. "None" stands for Python's None."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        find(kind)
        return kind

    @model_validator(mode="after")
    def _once(self) -> OptimizerOptions:
        if "lr" in self.args:
            raise UserError("args.lr is the option learning_rate; set that")
        for name in ("weight_decay", "betas"):
            if name in self.args and getattr(self, name) is not None:
                raise UserError(f"{name} and args.{name} are both given; keep one of them")
        return self


WAITS = "it waits for a loss that stops falling, which a diffusion loss does not show"
REFUSED = {
    "reduce_lr_on_plateau": WAITS,
    "ReduceLROnPlateau": WAITS,
    "greedy": WAITS,
    "cosine_warmup_with_min_lr": "it is not supported",
}


class ScheduleOptions(Options):
    kind: Annotated[ScheduleKind | str, _else("give the name of a schedule, such as 'cosine'")] = option(
        "constant", kohya="lr_scheduler", label="Learning rate schedule"
    )
    """How the learning rate moves over the run; also a class of torch.optim.lr_scheduler or a dotted path, with args.
    constant and cosine are the usual ones."""
    warmup: Steps = option(0, kohya="lr_warmup_steps", label="Warm-up")
    """Steps in which the rate rises from 0: a number, a ratio below 1, or a percentage such as "10%"."""
    decay: Steps = option(0, kohya="lr_decay_steps", label="Decay")
    """Steps of the fall at the end of warmup_stable_decay: a number, a ratio below 1, or "10%"."""
    cycles: int = option(1, kohya="lr_scheduler_num_cycles", label="Cycles", ge=1)
    """How often cosine_with_restarts falls; half-waves of cosine_with_min_lr and of warmup_stable_decay."""
    power: float = option(1.0, kohya="lr_scheduler_power", label="Power", gt=0)
    """Exponent of polynomial: 1 falls in a straight line."""
    min_lr_ratio: float | None = option(None, kohya="lr_scheduler_min_lr_ratio", label="Lowest rate", ge=0, le=1)
    """Where cosine_with_min_lr and warmup_stable_decay end, as a share of the learning rate."""
    timescale: int | None = option(None, kohya="lr_scheduler_timescale", label="Time scale", ge=1)
    """Steps after which inverse_sqrt begins to fall noticeably; the warm-up, or 10,000, when not given."""
    args: dict[str, Any] = option({}, kohya="lr_scheduler_args", label="Further arguments")
    """Arguments of the schedule by name, such as { step_rules = "1:500,0.1:800,0.01" } for piecewise_constant."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind.rpartition(".")[2] in REFUSED:
            why = REFUSED[kind.rpartition(".")[2]]
            raise UserError(f"{kind} cannot be used: {why}; use cosine, or cosine_with_min_lr")
        if kind in USES or "." in kind:
            return kind
        from torch.optim import lr_scheduler

        if hasattr(lr_scheduler, kind):
            return kind
        raise UserError(f"there is no '{kind}'; {nearest(kind, list(USES))}")

    @field_validator("warmup", "decay")
    @classmethod
    def _steps(cls, value: int | float | str) -> int | float | str:
        steps_of(value, 1)
        return value

    @model_validator(mode="after")
    def _agree(self) -> ScheduleOptions:
        if "warmup" not in USES.get(self.kind, set()) and self.warmup not in (0, 0.0, "0%"):
            other = "constant_with_warmup" if self.kind == "constant" else "cosine"
            raise UserError(f"{self.kind} has no warm-up; use kind = '{other}', or warmup = 0")
        given = self.min_lr_ratio is not None or not {"min_lr", "min_lr_rate"}.isdisjoint(self.args)
        if self.kind == "cosine_with_min_lr" and not given:
            raise UserError("cosine_with_min_lr needs min_lr_ratio; set it, such as 0.1")
        if self.kind == "piecewise_constant" and "step_rules" not in self.args:
            raise UserError('piecewise_constant needs its rules; set args = { step_rules = "1:500,0.1:800,0.01" }')
        return self


def parse_args(words: Sequence[str]) -> dict[str, Any]:
    """Kohya's ``["betas=0.9,0.99", "eps=1e-7"]`` as a table: {"betas": [0.9, 0.99], "eps": 1e-7}. Raises UserError."""
    table: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            table[name.strip()] = _toml_value(ast.literal_eval(text.strip()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            equals = ""
        if not (equals and name.strip()):
            values = "a number, 'text', True, False, None or a list of them"
            raise UserError(f"{word[:80]!r} does not fit; write name=value with {values}")
    return table


def _toml_value(value: Any) -> Any:
    """A literal in TOML's terms: tuples as lists, None as "None"."""
    if isinstance(value, (list, tuple)):
        return [_toml_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _toml_value(item) for key, item in value.items()}
    if value is None:
        return "None"
    if isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} is not for TOML")
