"""One step, a pure function of (batch, draw): what the network says, each term's errors, and one number to minimise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diffusion.process import Process
from ..diffusion.types import Batch, Conditioning, Draw, Role, Step
from ..losses.term import Term

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
Errors = dict[str, Tensor]
"""Term name -> [n] errors of the rows that the term applies to in this draw."""


def observe(
    process: Process, predict: Predict, batch: Batch, draw: Draw, conditioning: Conditioning, decoder: Any
) -> Step:
    """Add the noise and ask the network."""
    noisy = process.noisy(batch.latents, draw.added, draw.level)
    return Step(batch, draw, noisy, predict(noisy, draw.level, conditioning), process, decoder)


def errors(terms: Sequence[Term], step: Step) -> Errors:
    """Every term's errors. Which rows a term sees depends on the draw alone, so a reference pass sees the same."""
    return {term.name: term.loss(part) for term in terms if (part := _part(term, step)) is not None}


def _part(term: Term, step: Step) -> Step | None:
    active = term.active(step.draw, step.process)
    if not bool(active.any()):
        return None
    return step if bool(active.all()) else step.pick(active.nonzero().flatten())


@dataclass
class Judged:
    """The judgement of one micro-batch."""

    loss: Tensor
    """Scalar: this micro-batch's share of the effective batch's loss."""
    sums: dict[str, float] = field(default_factory=dict)
    """Metrics summed over samples, ``term/metric``; divide by ``counts``."""
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: Judged) -> None:
        self.loss = self.loss + other.loss
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]


def judge(
    terms: Sequence[Term],
    step: Step,
    said: Errors,
    reference: Mapping[str, Tensor],
    weight: Callable[[str], float],
    roles: Sequence[Role],
) -> Judged:
    """Objectives over errors: sum over terms of weight / probability x sum of values / number of rows that get one.

    ``weight`` gives a term's weight by its name (``Balance.weight``). ``roles`` are those of the whole effective batch,
    so that micro-batches and processes add up to the same number however the batch was split.
    """
    total = Judged(step.out.new_zeros((), dtype=torch.promote_types(step.out.dtype, torch.float32)))
    for term in terms:
        part = _part(term, step)
        if part is None:
            continue
        held = reference.get(term.name)
        output = term.objective(said[term.name], None if held is None else held.to(said[term.name]), part)
        units = max(1, sum(role in term.objective.valued for role in roles))
        total.loss = total.loss + weight(term.name) / term.options.probability * output.values.sum() / units
        metrics = {"error": said[term.name].detach(), "value": output.values.detach(), **output.metrics}
        for name, values in metrics.items():
            total.sums[f"{term.name}/{name}"] = float(values.double().sum())
            total.counts[f"{term.name}/{name}"] = len(values)
    return total


def needs_reference(terms: Sequence[Term]) -> bool:
    return any(term.objective.needs_reference for term in terms)


def micro_batches(batch: Batch, size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """This process's share of an effective batch, ``size`` samples or pairs at a time; a pair is never split."""
    groups = batch.rows.group
    order = groups.unique()
    return [batch.pick(torch.isin(groups, some).nonzero().flatten()) for some in order.split(size)[rank::world]]
