"""Everything that a training run is made of, and what its parts do together in a step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.inject import Adapter
from ..data.loader import Dataset
from ..data.progress import Progress
from ..diffusion import sampling
from ..diffusion.sampling import Prompt
from ..diffusion.types import Batch, Conditioning
from ..errors import UserError
from ..families.family import Family
from ..losses.decode import Decoder
from ..losses.term import Balance, Term
from ..memory import apply
from ..memory import device as memory
from ..memory.offload import Streamer
from ..optimizers.build import bare, evaluating, learning_rates
from ..optimizers.schedules import Schedule
from ..optimizers.state import load_optimizer_state, optimizer_state_to_tensors
from . import distributed
from .checkpoint import prefixed, under
from .ema import Average
from .monitors import Watch
from .step import Judged

if TYPE_CHECKING:
    from ..config import Config


@dataclass
class Parts:
    """Everything that a run is made of."""

    config: Config
    family: Family
    adapter: Adapter
    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int
    trains_text: bool
    prompts: list[Prompt]
    scaler: torch.amp.GradScaler
    attention: str = "sdpa"
    streamer: Streamer | None = None
    """What copies blocks of the denoiser to the card, where they do not all stay there."""
    heard: dict[str, Conditioning] = field(default_factory=dict)
    """What the network hears of each prompt of the previews, while the text encoders are not trained."""
    dataset: Dataset = field(init=False)
    """There when it trains, and not where only pictures are drawn."""
    terms: list[Term] = field(default_factory=list)
    balance: Balance = field(default_factory=lambda: Balance([]))
    watch: Watch = field(default_factory=lambda: Watch({}))
    decoder: Decoder | None = None
    optimizer: Any = None
    average: Average | None = None
    schedule: Schedule = field(default_factory=lambda: Schedule(lambda step: 1.0))
    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """How many samples each of the last step's sums is of."""

    @cached_property
    def start_digest(self) -> str:
        """Of the adapter that the reference is, where that is not the bare model."""
        path = self.config.adapter.init_from
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and self.adapter.anchor == "start" else ""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def process(self):
        return self.family.process

    # ---------------------------------------------------------------------------------------------- the forward

    def autocast(self):
        low = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype) if low else nullcontext()

    def conditioning(self, batch: Batch) -> Conditioning:
        """What the network hears of a batch: cached, or with a gradient from text encoders that are trained."""
        if batch.conditioning is not None:
            return replace(batch.conditioning, size=batch.size)
        with self.autocast(), nullcontext() if self.trains_text else torch.no_grad():
            return replace(self.family.encode_text(batch.captions), size=batch.size)

    # ------------------------------------------------------------------------------------------- the optimizer

    def set_rate(self, step: int) -> float:
        self.schedule.apply(self.optimizer, step)
        return max(learning_rates(self.optimizer).values())

    def lower_rate(self, factor: float) -> bool:
        """Of the whole schedule from here on; the optimizer's state carries it. False where it finds its own."""
        given = [group for group in bare(self.optimizer).param_groups if group["initial_lr"] is not None]
        for group in given:
            group["initial_lr"] *= factor
        return bool(given)

    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def gradient_norm(self) -> float:
        """Add up the gradients of all processes, unscale, clip; the norm before clipping."""
        if self.world > 1:
            self._sum_gradients()
        if not self.learns:
            return 0.0
        self.scaler.unscale_(self.optimizer)
        limit = self.config.optimizer.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(self.parameters(), limit or math.inf))

    @property
    def learns(self) -> bool:
        """Whether any gradient is there: not in a step at whose noise no term looks."""
        return any(p.grad is not None for p in self.parameters())

    def _sum_gradients(self) -> None:
        kept = self.parameters()
        there = torch.tensor([float(p.grad is not None) for p in kept], device=self.device)
        grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in kept]
        *sums, there = distributed.total(torch.cat([*grads, there])).split([*(p.numel() for p in kept), len(kept)])
        for p, grad, count in zip(kept, sums, there.tolist(), strict=True):
            p.grad = grad.view_as(p) if count else None

    def optimizer_step(self) -> None:
        if self.learns:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if limit := self.config.adapter.scale_weight_norms:
            self.adapter.scale_weight_norms(limit)
        if self.average is not None:
            self.average.update()

    def skip_step(self) -> None:
        """A step whose gradient is no number: fp16's scale goes down, nothing is learned."""
        if self.learns:
            self.scaler.update()

    # ----------------------------------------------------------------------------- numbers that adapt or are told

    def reduce(self, total: Judged) -> dict[str, float]:
        """Sums over all processes, with ``loss``; the counts become this object's ``counts``."""
        mine = {"loss": float(total.loss), **total.sums}
        gathered = distributed.gather((mine, total.counts)) if self.world > 1 else [(mine, total.counts)]
        sums: dict[str, float] = {}
        self.counts = {}
        for some, counts in gathered:
            for name, value in some.items():
                sums[name] = sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + counts.get(name, 0)
        return sums

    def means(self, sums: dict[str, float], counts: dict[str, int] | None = None) -> dict[str, float]:
        counts = self.counts if counts is None else counts
        return {name: value / counts[name] for name, value in sums.items() if counts.get(name)}

    def adapt(self, sums: dict[str, float]) -> None:
        """Move what adapts (automatic weights and betas) by one step's sums; used from the next step on."""
        values = {t.name: sums[f"{t.name}/value"] for t in self.terms if f"{t.name}/value" in sums}
        self.balance.update(values, {name: self.counts[f"{name}/value"] for name in values})
        for term in self.terms:
            if term.name in values:
                own = {k.partition("/")[2]: v for k, v in sums.items() if k.startswith(f"{term.name}/")}
                term.objective.update(own, self.counts[f"{term.name}/value"])

    def any_rank(self, asked: bool) -> bool:
        """Whether any process was asked, so that all stop at the same step."""
        return asked if self.world == 1 else any(distributed.gather(asked))

    # -------------------------------------------------------------------------------------------------- the state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs, as tensors and JSON. Data order and draws follow from the step's number."""
        tensors, facts = optimizer_state_to_tensors(self.optimizer)
        adaptive = {t.name: t.objective.state for t in self.terms}
        averaged, average = self.average.state() if self.average is not None else ({}, {})
        whole = prefixed("adapter", self.adapter.state_dict()) | prefixed("optimizer", tensors)
        return whole | prefixed("average", averaged), {
            "optimizer": facts,
            "average": average,
            "objectives": adaptive,
            "balance": self.balance.state,
            "watch": self.watch.state,
            "scaler": self.scaler.state_dict(),
            "model": self.family.fingerprints["model"],
            "family": self.family.name,
            "adapter": self._adapter_options(),
            "data": self.dataset.signature,
            "total": self.total,
        }

    def _adapter_options(self) -> dict[str, Any]:
        """What the adapter's tensors are made by; an alpha that is not given is the rank."""
        o = self.config.adapter
        alphas = {"alpha": o.alpha or o.rank, "conv_alpha": o.conv_alpha or o.conv_rank}
        return {"kind": o.kind, "rank": o.rank, "conv_rank": o.conv_rank, **alphas}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[str]:
        """Take up a saved state; what is different now, in sentences."""
        if facts["family"] != self.family.name:
            raise UserError(
                f"--resume: the state is of a {facts['family']} run, the model is {self.family.name}; use the same"
            )
        for name, now in self._adapter_options().items():
            if (was := facts.get("adapter", {}).get(name, now)) != now:
                raise UserError(
                    f"--resume: adapter.{name}: the state has {was}, the configuration {now}; set it back, or begin "
                    "anew with adapter.init_from"
                )
        notes = []
        if facts["model"] != self.family.fingerprints["model"]:
            notes.append("the base model is not the one that this run began with")
        if facts["total"] != self.total:
            notes.append(
                f"the run now has {self.total} steps, it began with {facts['total']}; the schedule follows the new"
            )
        self.adapter.load(under("adapter", tensors))
        notes += load_optimizer_state(self.optimizer, under("optimizer", tensors), facts["optimizer"])
        if self.average is not None:
            notes += self.average.load(under("average", tensors), facts.get("average", {}))
        for term in self.terms:
            term.objective.state.update(facts["objectives"].get(term.name, {}))
        self.balance.state.update(facts["balance"])
        self.watch.state.update(facts.get("watch", {}))
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])
        return notes

    # -------------------------------------------------------------------------------------------------- previews

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The adapter as it is saved and looked at."""
        shown = nullcontext() if self.optimizer is None else evaluating(self.optimizer)
        with shown, apply.uncompiled(self.config.memory):
            yield

    @torch.no_grad()
    def picture(self, prompt: Prompt):
        """One preview."""

        def heard(text: str) -> Conditioning:
            said = self.heard.get(text)
            with self.autocast():
                said = (self.family.encode_text([text]) if said is None else said).to(self.device)
            size = torch.tensor([[prompt.height, prompt.width, 0, 0, prompt.height, prompt.width]], dtype=torch.float32)
            return replace(said, size=size.to(self.device))

        def predict(noisy: Tensor, level: Tensor, said: Conditioning) -> Tensor:
            with self.autocast():
                return self.family.predict(noisy, level, said)

        latents = sampling.draw(
            self.process,
            predict,
            prompt,
            heard(prompt.text),
            heard(prompt.negative),
            self.family.channels,
            self.device,
            self.family.cell,
        )
        self.family.vae.to(self.device)
        return sampling.to_image(self.family.decode(latents)[0])

    def prepare(self, progress: Progress | None = None, share: tuple[int, int] = (0, 1)) -> None:
        """Fill the caches; text encoders leave the card before pictures are encoded."""
        # of several processes, each may yet have to encode what another kept to itself
        self.dataset.prepare(progress, share, self._free_text_encoders if self.world == 1 else None)

    def free_encoders(self) -> None:
        """After caching: encoders leave the card; the autoencoder stays only while a term decodes."""
        self._free_text_encoders()
        if self.decoder is None and self.config.data.cache_latents != "off":
            self.family.vae.to("cpu")
        memory.release(self.device)

    def _free_text_encoders(self) -> None:
        if not self.trains_text and not self.dataset.needs_text_encoder:
            for encoder in self.family.text_encoders.values():
                encoder.to("cpu")
            memory.release(self.device)
