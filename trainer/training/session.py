"""A training run's parts, what they do together, and their common state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.loader import Dataset
from ..data.progress import Progress
from ..errors import UserError
from ..losses.surrogate import Surrogate
from ..losses.term import LossTerms
from ..memory import apply
from ..memory import device as memory
from . import distributed
from .checkpoint import prefixed, under
from .dense_previews import DensePreviews
from .model import Model
from .monitors import PreferenceMonitor
from .optimization import Optimization
from .previews import Previews
from .step import StepLoss

if TYPE_CHECKING:
    from ..config import Config


@dataclass
class Session:
    """Made by ``build.build_session``; the loop drives it."""

    config: Config
    """As it is now: the out-of-memory fallback changes memory and loss options."""
    model: Model
    terms: LossTerms
    optimization: Optimization
    dataset: Dataset
    previews: Previews | DensePreviews
    monitor: PreferenceMonitor
    total: int
    """Optimizer steps of the whole run."""
    rank: int = 0
    world: int = 1
    surrogates: dict[str, Surrogate] = field(default_factory=dict)
    """Of the terms whose errors are estimated."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def prepare(self, progress: Progress | None = None, share: tuple[int, int] = (0, 1)) -> None:
        """Fill the caches; text encoders leave the GPU before pictures are encoded."""
        # of several processes, each may yet have to encode what another kept to itself
        self.dataset.prepare(progress, share, self._offload_text_encoders if self.world == 1 else None)

    def offload_encoders(self) -> None:
        """After caching: encoders leave the GPU; the autoencoder stays only while a term decodes."""
        self._offload_text_encoders()
        if self.model.decoder is None and self.config.data.cache_latents != "off":
            self.model.family.vae.to("cpu")
        memory.release(self.model.device)

    def _offload_text_encoders(self) -> None:
        if not self.model.trains_text and not self.dataset.needs_text_encoder:
            for encoder in self.model.family.text_encoders.values():
                encoder.to("cpu")
            memory.release(self.model.device)

    def optimizer_step(self) -> None:
        """Change the adapter by the gradients, keep it in its bounds, and move its average."""
        self.optimization.step()
        if limit := self.config.adapter.scale_weight_norms:
            self.model.adapter.scale_weight_norms(limit)
        if self.optimization.average is not None:
            self.optimization.average.update()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The adapter as it is saved and evaluated."""
        with self.optimization.evaluating(), apply.uncompiled(self.config.memory):
            yield

    # -------------------------------------------------------------------------------------------- several processes

    def reduce(self, local: StepLoss) -> StepLoss:
        """The sum over all processes."""
        total = StepLoss.zero()
        mine = (float(local.loss), local.sums, local.counts)
        for loss, sums, counts in distributed.all_gather(mine) if self.world > 1 else [mine]:
            total.add(StepLoss(torch.tensor(loss, dtype=torch.float64), sums, counts))
        return total

    def any_rank(self, condition: bool) -> bool:
        """Whether it holds on any process, so that all act at the same step."""
        return condition if self.world == 1 else any(distributed.all_gather(condition))

    # -------------------------------------------------------------------------------------------------- the state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs, as tensors and JSON. Data order and draws follow from the step's number."""
        tensors, facts = self.optimization.state()
        for name, module in self.model.system.modules.items():
            tensors |= prefixed(f"system.{name}", module.state_dict())
        return prefixed("adapter", self.model.adapter.state_dict()) | tensors, {
            **facts,
            **self.terms.state_dict(),
            "watch": self.monitor.state,
            "model": self.model.family.fingerprints["model"],
            "family": self.model.family.name,
            "adapter": self._adapter_options(),
            "data": self.dataset.signature,
            "total": self.total,
            **({"dense": self._dense_options()} if self.config.dense else {}),
            "attention": self.model.attention_facts,
        }

    def _dense_options(self) -> dict[str, Any]:
        """What a dense run's weights mean."""
        o = self.config.dense
        return {"task": o.task, "space": o.space, "task_switch": o.task_switch} if o else {}

    def _adapter_options(self) -> dict[str, Any]:
        """What the adapter's tensors are made by; an alpha that is not given is the rank."""
        o = self.config.adapter
        alphas = {"alpha": o.alpha or o.rank, "conv_alpha": o.conv_alpha or o.conv_rank}
        return {"kind": o.kind, "rank": o.rank, "conv_rank": o.conv_rank, **alphas}

    def _require_same_task(self, state: dict[str, Any]) -> None:
        """UserError where a state's weights mean another task."""
        now = self._dense_options()
        if bool(state) != bool(now):
            of = "a run with [dense]; put that table back" if state else "a run without [dense]; leave that table out"
            raise UserError(f"--resume: the state is of {of}")
        for name, value in now.items():
            if (was := state.get(name)) != value:
                raise UserError(f"--resume: dense.{name}: the state has {was}, the configuration {value}; set it back")

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[str]:
        """Take over a saved state; returns what is different now, as sentences. UserError where it does not fit."""
        family = self.model.family
        if facts["family"] != family.name:
            raise UserError(
                f"--resume: the state is of a {facts['family']} run, the model is {family.name}; use the same"
            )
        for name, now in self._adapter_options().items():
            if (was := facts.get("adapter", {}).get(name, now)) != now:
                raise UserError(
                    f"--resume: adapter.{name}: the state has {was}, the configuration {now}; set it back, or start "
                    "over with adapter.init_from"
                )
        self._require_same_task(facts.get("dense", {}))
        notes = []
        if facts["model"] != family.fingerprints["model"]:
            notes.append("the base model is not the one that this run began with")
        if facts["total"] != self.total:
            notes.append(
                f"the run now has {self.total} steps, it began with {facts['total']}; the schedule follows the new"
            )
        self.model.adapter.load(under("adapter", tensors))
        for name, module in self.model.system.modules.items():
            module.load_state_dict(under(f"system.{name}", tensors))
        notes += self.optimization.load_state(tensors, facts)
        self.terms.load_state_dict(facts)
        self.monitor.state.update(facts.get("watch", {}))
        return notes
