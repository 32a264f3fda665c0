"""What one micro-batch says: the reference's errors, fresh or remembered, then the policy's, whole or row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from ..diffusion.types import Batch, Draw, Role, Step
from ..memory.quantize import held_as
from ..runs.files import write_atomic
from . import step
from .session import Parts
from .step import Errors, Judged


class Remembers(Protocol):
    """Gives the reference's errors, remembered or computed now."""

    def get(self, p: Parts, batch: Batch, chance: Draw, compute: Callable[[], Errors]) -> Errors: ...


def score(
    p: Parts, references: Remembers | None, batch: Batch, chance: Draw, roles: Sequence[Role], seed: int
) -> Judged:
    """Errors and objectives of one micro-batch at one draw. Without gradient where the caller switched it off.

    ``roles`` are those of the whole effective batch, ``seed`` is the step's.
    """
    known = _reference(p, references, batch, chance)
    _begin(p, batch, seed)
    seen = observe(p, batch, chance)
    return step.judge(p.terms, seen, step.errors(p.terms, seen), known, p.balance.weight, roles)


def _begin(p: Parts, batch: Batch, seed: int) -> None:
    """Dropout masks for the rows of a batch: of the step and the row alone, however the rows come together."""
    groups = batch.rows.group.tolist()
    torch.manual_seed(seed + groups[0])  # for what a text encoder drops of its own accord
    p.adapter.new_step(seed, [f"{role} {group}" for role, group in zip(batch.rows.role, groups, strict=True)])


def score_one_by_one(
    p: Parts, references: Remembers | None, batch: Batch, chance: Draw, roles: Sequence[Role], seed: int
) -> Judged:
    """As ``score`` and its backward, with one row's activations at a time and the same gradients.

    The objective's slope with respect to every row's error is taken from errors without gradient; then each row goes
    through the network again and is weighted by its slope. One more forward pass a row, in the same dropout masks.
    """
    known = _reference(p, references, batch, chance)
    rows = [torch.tensor([i]) for i in range(len(batch))]

    def alone(row: torch.Tensor) -> Step:
        one = batch.pick(row)
        _begin(p, one, seed)
        return observe(p, one, chance.pick(row))

    with torch.no_grad():
        parts = [alone(row) for row in rows]
        single = [step.errors(p.terms, part) for part in parts]
    whole = replace(
        parts[0],
        batch=batch,
        draw=chance,
        noisy=torch.cat([s.noisy for s in parts]),
        out=torch.cat([s.out for s in parts]),
        bare=None if batch.preserve is None else torch.cat([s.out if s.bare is None else s.bare for s in parts]),
    )
    names = list(dict.fromkeys(name for said in single for name in said))
    leaves = {name: torch.cat([said[name] for said in single if name in said]).requires_grad_() for name in names}
    judged = step.judge(p.terms, whole, leaves, known, p.balance.weight, roles)
    if judged.loss.requires_grad:
        judged.loss.backward()
    slopes = {
        name: iter(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)) for name, leaf in leaves.items()
    }
    for row in rows:
        said = step.errors(p.terms, alone(row))
        total = sum(
            (errors.squeeze() * next(slopes[name]) for name, errors in said.items()), torch.zeros((), device=p.device)
        )
        if total.requires_grad:
            p.scaler.scale(total).backward()
    judged.loss = judged.loss.detach()
    return judged


def observe(p: Parts, batch: Batch, chance: Draw) -> Step:
    """The step as the network, with its adapter as it stands, sees it."""
    bare = None
    if batch.preserve is not None and bool(batch.preserve.any()):  # before the policy, for no recompute to meet it
        with torch.no_grad(), p.adapter.reference("base"):
            bare = observe(p, replace(batch, preserve=None), chance).out
    conditioning = p.conditioning(batch)
    with p.autocast():
        seen = step.observe(p.process, p.family.predict, batch, chance, conditioning, p.decoder)
    return seen if bare is None else replace(seen, bare=bare)


def _reference(p: Parts, references: Remembers | None, batch: Batch, chance: Draw) -> Errors:
    """The errors of the model that training is held against: before the policy, for no recompute to meet it."""
    if not step.needs_reference(p.terms):
        return {}

    @torch.no_grad()
    def compute() -> Errors:
        with p.adapter.reference():
            return step.errors(p.terms, observe(p, batch, chance))

    return references.get(p, batch, chance, compute) if references else compute()


class References:
    """Reference errors of fixed draws: a number per row and term, computed once, kept by all that they depend on."""

    def __init__(self, p: Parts):
        config = p.config
        depends = {
            "fingerprints": p.family.fingerprints,
            "process": p.process.digest,
            "dtype": str(p.dtype),
            "attention": p.attention,
            "weights": held_as(p.family.denoiser),
            "seed": config.run.seed,
            "draws": p.dataset.fixed_draws,
            "noise": config.noise.model_dump(),
            "start": p.start_digest,
            "terms": {name: options.model_dump() for name, (options, _) in config.terms().items()},
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
        self.path = Path(config.run.out) / "cache" / "references" / f"{digest[:24]}.json"
        try:
            self._kept: dict[str, dict[str, float]] = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):  # none yet, or torn: computed again
            self._kept = {}
        self._new = False

    def save(self) -> None:
        if self._new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self._kept))
            self._new = False

    def get(self, p: Parts, batch: Batch, chance: Draw, compute: Callable[[], Errors]) -> Errors:
        """The errors of these rows, from memory where all are known."""
        rows_of = zip(batch.rows.role, batch.keys, chance.level.tolist(), strict=True)
        keys = [f"{role} {key} {level!r}" for role, key, level in rows_of]
        places = {t.name: t.active(chance, p.process).nonzero().flatten().tolist() for t in p.terms}
        if not all(name in self._kept.get(keys[row], {}) for name, rows in places.items() for row in rows):
            for name, errors in compute().items():
                for row, value in zip(places[name], errors.tolist(), strict=True):
                    self._kept.setdefault(keys[row], {})[name] = value
            self._new = True
        return {
            name: torch.tensor([self._kept[keys[row]][name] for row in rows], dtype=torch.float64, device=p.device)
            for name, rows in places.items()
            if rows
        }
