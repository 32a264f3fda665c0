"""A training step from batch to loss, to be read downwards. Given (batch, draw) it is a pure function.

    compute_loss     the reference's errors, the policy's errors, the objectives over both
    forward          add the noise, run the network                                -> Step
    compute_errors   each loss term measures each row                              -> errors [n]
    apply_objectives each term's objective turns errors into values, and adds up   -> StepLoss

The optimizer's part is in ``optimization.py``, the loop around it in ``loop.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..diffusion.process import widest
from ..diffusion.types import Batch, Draw, Loss, ObjectiveOutput, Role, Step
from ..losses.term import LossTerms, Term
from ..memory import device as memory
from .model import Model

Errors = dict[str, Tensor]
"""Key of ``Term.measures``, mostly a term's name -> [n] errors of the rows that it applies to in this draw."""


@dataclass
class StepLoss:
    """The loss of one micro-batch, or of several added up."""

    loss: Tensor
    """Scalar: this share of the effective batch's loss."""
    sums: dict[str, Any] = field(default_factory=dict)
    """Metrics summed over samples, ``term/metric``; divide by ``counts``. Scalars on the device until ``on_host``."""
    counts: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def zero() -> StepLoss:
        return StepLoss(torch.zeros((), dtype=torch.float64))

    def add(self, other: StepLoss) -> None:
        self.loss = self.loss.to(widest(other.loss.device)) + other.loss
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]

    def on_host(self, *others: Tensor) -> tuple[StepLoss, list[float]]:
        """The same as plain numbers, and further scalars as such: the device is waited for once."""
        device, dtype = self.loss.device, widest(self.loss.device)
        values = [self.loss.detach(), *self.sums.values(), *others]
        loss, *numbers = torch.stack([torch.as_tensor(v).to(device, dtype) for v in values]).tolist()
        sums = dict(zip(self.sums, numbers))
        return StepLoss(torch.tensor(loss, dtype=torch.float64), sums, self.counts), numbers[len(sums) :]

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.counts[name] for name, value in self.sums.items() if self.counts.get(name)}


class ReferenceErrors(Protocol):
    """Gives the errors of the reference model: cached ones, or those that ``compute`` finds now."""

    def get(
        self, model: Model, terms: LossTerms, batch: Batch, draw: Draw, compute: Callable[[], Errors]
    ) -> Errors: ...


def compute_loss(
    model: Model,
    terms: LossTerms,
    batch: Batch,
    draw: Draw,
    roles: Sequence[Role],
    seed: int,
    references: ReferenceErrors | None = None,
) -> StepLoss:
    """The loss of one micro-batch at one draw; without gradient where the caller switched it off.

    ``roles`` are those of the whole effective batch, ``seed`` is the step's, for dropout.
    """
    reference = reference_errors(model, terms, batch, draw, references)
    seed_dropout(model, batch, seed)
    step = forward(model, batch, draw)
    return apply_objectives(terms, step, compute_errors(terms.terms, step), reference, roles)


def reference_errors(
    model: Model, terms: LossTerms, batch: Batch, draw: Draw, references: ReferenceErrors | None
) -> Errors:
    """Errors of the reference model at the same draw; {} where no objective compares with one.

    It runs before the policy, so that a recomputation under gradient checkpointing never meets a disabled adapter.
    """
    if not terms.needs_reference:
        return {}

    @torch.no_grad()
    def compute() -> Errors:
        with model.adapter.reference():
            return compute_errors(terms.terms, forward(model, batch, draw))

    return references.get(model, terms, batch, draw, compute) if references else compute()


def seed_dropout(model: Model, batch: Batch, seed: int) -> None:
    """Dropout masks for the rows of a batch. They follow from the step and the row alone, however rows are batched."""
    groups = batch.rows.group.tolist()
    memory.seed(model.device, seed + groups[0])  # for the dropout inside a text encoder
    model.adapter.new_step(seed, [f"{role} {group}" for role, group in zip(batch.rows.role, groups, strict=True)])


def forward(model: Model, batch: Batch, draw: Draw) -> Step:
    """Run the network on what the system gives it (noisy latents), with its adapter as it stands."""
    base_out = None
    if batch.preserve is not None and bool(batch.preserve.any()):  # before the policy, as the reference
        with torch.no_grad(), model.adapter.reference("base"):
            base_out = forward(model, replace(batch, preserve=None), draw).out
    conditioning = model.system.conditions(batch, model.conditioning(batch))
    with model.autocast():
        noisy = model.system.input(batch, draw)
        out = model.family.predict(noisy, draw.level, conditioning)
    return Step(batch, draw, noisy, out, model.process, model.decoder, base_out)


def compute_errors(terms: Sequence[Term], step: Step) -> Errors:
    """Every term's errors. Which rows a term sees depends on the draw alone, so a reference pass sees the same."""
    return {key: loss(part) for term in terms for key, loss, part in _seen(term, step)}


def _seen(term: Term, step: Step) -> list[tuple[str, Loss, Step]]:
    """What a term measures of a step, see ``Term.measures``, where there is any; looked at once."""
    known, parts = step.parts.get(term.name, (None, []))
    if known is not term:
        parts = []
        for key, loss, active in term.measures(step.draw, step.process, step.batch.rows.role):
            some, every = bool(active.any()), bool(active.all())
            parts.append((key, loss, step.pick(active.nonzero().flatten()) if some and not every else every))
        step.parts[term.name] = term, parts  # never the step itself, which would hold on to itself
    return [(key, loss, part if isinstance(part, Step) else step) for key, loss, part in parts if part]


def apply_objectives(
    terms: LossTerms, step: Step, errors: Errors, reference: Mapping[str, Tensor], roles: Sequence[Role]
) -> StepLoss:
    """Sum over terms of weight / probability x sum of the objective's values / number of rows that get one.

    ``roles`` are those of the whole effective batch, so that micro-batches and processes add up to the same number
    however the batch was split.
    """
    total = StepLoss(step.out.new_zeros((), dtype=torch.promote_types(step.out.dtype, torch.float32)))
    for term in terms.terms:
        seen = {key: part for key, _, part in _seen(term, step)}
        part = seen.get(term.name)
        if part is None:
            continue
        own = errors[term.name]
        output = _objective(term, term.name, errors, reference, part)
        value = output.values.sum()
        if term.decoded in seen:
            value = value + _correction(term, errors, reference, seen[term.decoded])
        units = max(1, sum(role in term.objective.valued for role in roles))
        total.loss = total.loss + terms.weight(term.name) / term.options.probability * value / units
        metrics = {"error": own.detach(), "value": output.values.detach(), **output.metrics}
        for name, values in metrics.items():
            total.sums[f"{term.name}/{name}"] = values.to(widest(values.device)).sum()
            total.counts[f"{term.name}/{name}"] = len(values)
        total.counts[f"{term.name}/value"] = sum(role in term.objective.valued for role in part.batch.rows.role)
    return total


def _objective(term: Term, key: str, errors: Errors, reference: Mapping[str, Tensor], part: Step) -> ObjectiveOutput:
    own, other = errors[key], reference.get(key)
    return term.objective(own, None if other is None else other.to(own), part)


def _correction(term: Term, errors: Errors, reference: Mapping[str, Tensor], some: Step) -> Tensor:
    """The control variate of ``losses.term.Estimate``, as a number that is 0 and has its gradient: what is reported,
    and watched for spikes, is the estimate's value. A non-finite correction stays one."""
    assert term.estimate is not None
    exact, near = (_objective(term, key, errors, reference, some).values.sum() for key in (term.decoded, term.near))
    more = (exact - near) / term.estimate.share
    return more - more.detach()


def backward_row_by_row(
    model: Model,
    terms: LossTerms,
    batch: Batch,
    draw: Draw,
    roles: Sequence[Role],
    seed: int,
    scaler: torch.amp.GradScaler,
    references: ReferenceErrors | None = None,
) -> StepLoss:
    """As ``compute_loss`` with its backward pass: the same gradients from one row's activations at a time.

    This is gradient caching (arXiv 2101.06983): the slope of the objectives with respect to every row's error is taken
    from errors without gradient; then each row goes through the network again and is weighted by its slope. It costs
    one more forward pass per row, under the same dropout masks.
    """
    reference = reference_errors(model, terms, batch, draw, references)
    rows = [torch.tensor([i]) for i in range(len(batch))]

    def alone(row: Tensor) -> Step:
        one = batch.pick(row)
        seed_dropout(model, one, seed)
        return forward(model, one, draw.pick(row))

    with torch.no_grad():
        steps = [alone(row) for row in rows]
        single = [compute_errors(terms.terms, step) for step in steps]
    base_out = torch.cat([s.out if s.base_out is None else s.base_out for s in steps])
    whole = replace(
        steps[0],
        batch=batch,
        draw=draw,
        noisy=torch.cat([s.noisy for s in steps]),
        out=torch.cat([s.out for s in steps]),
        base_out=None if batch.preserve is None else base_out,
    )
    names = list(dict.fromkeys(name for errors in single for name in errors))
    leaves = {name: torch.cat([errors[name] for errors in single if name in errors]).requires_grad_() for name in names}
    total = apply_objectives(terms, whole, leaves, reference, roles)
    if total.loss.requires_grad:
        total.loss.backward()
    slopes = {
        name: iter(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)) for name, leaf in leaves.items()
    }
    for row in rows:
        errors = compute_errors(terms.terms, alone(row))
        loss = sum(
            (error.squeeze() * next(slopes[name]) for name, error in errors.items()),
            torch.zeros((), device=model.device),
        )
        if loss.requires_grad:
            scaler.scale(loss).backward()
    total.loss = total.loss.detach()
    return total


def micro_batches(batch: Batch, size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """This process's share of an effective batch, ``size`` samples or pairs at a time; a pair is never split."""
    if len(batch) <= size and world == 1:
        return [batch]
    groups = batch.rows.group
    order = groups.unique()
    return [batch.pick(torch.isin(groups, some).nonzero().flatten()) for some in order.split(size)[rank::world]]
