"""Optimizers and learning rate schedules by name, and their state without pickle."""

from .build import bare, build, evaluating, is_schedule_free, learning_rates, optimizer_mode
from .options import OptimizerOptions, ScheduleOptions, parse_args
from .schedules import Schedule, build_schedule
from .state import load_optimizer_state, optimizer_state_to_tensors

__all__ = [
    "OptimizerOptions",
    "Schedule",
    "ScheduleOptions",
    "bare",
    "build",
    "build_schedule",
    "evaluating",
    "is_schedule_free",
    "learning_rates",
    "load_optimizer_state",
    "optimizer_mode",
    "optimizer_state_to_tensors",
    "parse_args",
]
