"""The optimizer's part of a step: learning rate, summed and clipped gradients, the update, the moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..optimizers.build import bare, evaluating, learning_rates
from ..optimizers.schedules import Schedule
from ..optimizers.state import load_optimizer_state, optimizer_state_to_tensors
from . import distributed
from .checkpoint import prefixed, under
from .ema import Average


@dataclass
class Optimization:
    """An optimizer with everything around it."""

    optimizer: Any
    schedule: Schedule
    scaler: torch.amp.GradScaler
    """Of float16's gradients; disabled in other precisions."""
    max_grad_norm: float
    """0 does not clip."""
    average: Average | None = None
    """The moving average of the adapter's weights (``save.ema``)."""

    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def has_gradients(self) -> bool:
        """False in a step at whose noise level no term is active."""
        return any(p.grad is not None for p in self.parameters())

    def set_learning_rate(self, step: int) -> float:
        """Follow the schedule; returns the largest rate."""
        self.schedule.apply(self.optimizer, step)
        return max(self.learning_rates().values())

    def learning_rates(self) -> dict[str, float]:
        """By parameter group."""
        return learning_rates(self.optimizer)

    def scale_learning_rate(self, factor: float) -> bool:
        """Scale the whole schedule from here on; the optimizer's state carries it. False where the optimizer finds its
        own rate."""
        given = [group for group in bare(self.optimizer).param_groups if group["initial_lr"] is not None]
        for group in given:
            group["initial_lr"] *= factor
        return bool(given)

    def backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            self.scaler.scale(loss).backward()

    def clip_gradients(self) -> Tensor:
        """Add up the gradients of all processes, unscale and clip them; returns the norm before clipping, a scalar on
        the device."""
        if distributed.rank_and_world()[1] > 1:
            self._sum_gradients()
        if not self.has_gradients:
            return torch.zeros(())
        self.scaler.unscale_(self.optimizer)
        parameters, most = self.parameters(), self.max_grad_norm
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # what is below the norm would be multiplied by 1, and on a CPU the norm is known without waiting for it
        if most and (norm.device.type != "cpu" or not norm + 1e-6 <= most):
            clip_grads_with_norm_(parameters, most, norm)
        return norm

    def _sum_gradients(self) -> None:
        parameters = self.parameters()
        device = parameters[0].device
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
        sizes = [*(p.numel() for p in parameters), len(parameters)]
        *sums, there = distributed.all_reduce(torch.cat([*grads, there])).split(sizes)
        for p, grad, count in zip(parameters, sums, there.tolist(), strict=True):
            p.grad = grad.view_as(p) if count else None

    def step(self) -> None:
        if self.has_gradients:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def skip(self) -> None:
        """Skip a step whose gradient is non-finite: float16's scale goes down, nothing is learned."""
        if self.has_gradients:
            self.scaler.update()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the parameters are those to save and evaluate; schedule-free optimizers train others."""
        with evaluating(self.optimizer):
            yield

    # -------------------------------------------------------------------------------------------------- the state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON of optimizer, average and scaler."""
        tensors, facts = optimizer_state_to_tensors(self.optimizer)
        averaged, average = self.average.state() if self.average is not None else ({}, {})
        return prefixed("optimizer", tensors) | prefixed("average", averaged), {
            "optimizer": facts,
            "average": average,
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[str]:
        """Take over a saved state; returns what is different now, as sentences."""
        notes = load_optimizer_state(self.optimizer, under("optimizer", tensors), facts["optimizer"])
        if self.average is not None:
            notes += self.average.load(under("average", tensors), facts.get("average", {}))
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        return notes
