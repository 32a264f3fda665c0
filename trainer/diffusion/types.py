"""The data of a training step: Batch, Draw, Conditioning, Rows, Step; and the interfaces of losses and objectives.

Shapes: B rows, C latent channels, h x w latent cells, H x W pixels (H = 8h). Latents are scaled: z = s (E(x) - m).
Pixels are in [-1, 1]. A *level* is a row's place in the noise schedule: the integer timestep (as float) of a DDPM
schedule, or sigma in (0, 1) of a rectified flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from ..errors import UserError

if TYPE_CHECKING:
    from .process import Process

Role = Literal["plain", "winner", "loser", "liked", "disliked", "reconstruction"]
"""What a row is to the objective; ``reconstruction``: the second row of a dense run's sample, whose target is its own
picture."""


ON_HOST = ("group", "preserve")
"""Fields that stay in the host's memory: what is decided by them is not waited for."""


def _pick(value: Any, rows: Tensor) -> Any:
    """Rows of a tensor, list or dataclass of those; other values unchanged."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)]
    if isinstance(value, list):
        return [value[i] for i in rows.tolist()]
    if isinstance(value, dict):
        return {key: _pick(item, rows) for key, item in value.items()}
    if isinstance(value, (Rows, Conditioning, Maps, Batch, Draw)):
        return replace(value, **{f.name: _pick(getattr(value, f.name), rows) for f in fields(value)})
    return value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (Rows, Conditioning, Maps, Batch, Draw)):
        moved = {f.name: _to(getattr(value, f.name), device) for f in fields(value) if f.name not in ON_HOST}
        return replace(value, **moved)
    return value


@dataclass(frozen=True)
class Rows:
    """What each row is to the objective. Winner and loser of one pair share a group and a Draw."""

    role: list[Role]
    weight: Tensor
    """[B] float32, the sample's own weight (1, prior_loss_weight, a pair's weight)."""
    group: Tensor
    """[B] int64, the index of the sample or pair in the effective batch: the key of its Draw."""

    def pick(self, rows: Tensor) -> Rows:
        return _pick(self, rows)

    @staticmethod
    def plain(count: int, first: int = 0) -> Rows:
        return Rows(["plain"] * count, torch.ones(count), torch.arange(first, first + count))

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Row numbers of winners and of losers, aligned pair by pair. UserError when a row has no partner."""
        at = {(role, int(g)): i for i, (role, g) in enumerate(zip(self.role, self.group.tolist(), strict=True))}
        winners = [i for i, role in enumerate(self.role) if role == "winner"]
        losers = [at.get(("loser", int(self.group[i]))) for i in winners]
        if not winners or None in losers or 2 * len(winners) != len(self.role):
            raise UserError("objective: it compares pairs, but the data holds single pictures; give [data] pairs")
        return torch.tensor(winners), torch.tensor(losers)


@dataclass(frozen=True)
class Conditioning:
    """What the network receives beside the noisy latents."""

    hidden: Tensor
    """[B, tokens, width] text-encoder states."""
    pooled: Tensor | None = None
    """[B, width] pooled text (SDXL, SD3)."""
    mask: Tensor | None = None
    """[B, tokens] attention mask over ``hidden``."""
    size: Tensor | None = None
    """[B, 6] original h, w; crop top, left; target h, w in pixels (SDXL micro-conditioning)."""
    time: Tensor | None = None
    """[B, width] what is added to a U-Net's time embedding: which of a dense run's tasks a row is."""

    def pick(self, rows: Tensor) -> Conditioning:
        return _pick(self, rows)

    def to(self, device: torch.device) -> Conditioning:
        return _to(self, device)


@dataclass(frozen=True)
class Maps:
    """The true maps of a dense run's rows, pixel by pixel; of a row that reconstructs its picture all is 0."""

    truth: Tensor
    """[B, 1 or 3, H, W] float32: what the decoded prediction should be: depth in its space between the two quantiles,
    in [0, 1]; normals of length 1; an image in [0, 1]."""
    values: Tensor
    """[B, 1 or 3, H, W] float32: depth in the file's own unit; otherwise the same as ``truth``."""
    valid: Tensor
    """[B, 1, H, W] bool."""

    def pick(self, rows: Tensor) -> Maps:
        return _pick(self, rows)


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket."""

    latents: Tensor
    """[B, C, h, w] float32, clean, scaled."""
    captions: list[str]
    """The caption of each row as drawn for this step."""
    size: Tensor
    """[B, 6] float32, as ``Conditioning.size``."""
    rows: Rows
    keys: list[str]
    """Where each row came from, for messages and for cached references."""
    conditioning: Conditioning | None = None
    """Cached text-encoder outputs of ``captions``; None when an encoder is trained."""
    mask: Tensor | None = None
    """[B, 1, H, W] in [0, 1]: what counts in the loss; None means everything. Of a dense run [B, 1, h, w]: the weights
    of cells, with a mean of 1, so that a loss is a mean over the valid ones."""
    target: Tensor | None = None
    """[B, C, h, w] clean latents to predict where they are not the input (dense prediction)."""
    maps: Maps | None = None
    """The maps behind ``target``, for losses and measures on pixels (dense prediction)."""
    preserve: Tensor | None = None
    """[B] bool: rows whose target is the network's own output without the adapter; None is none of them."""

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, rows: Tensor) -> Batch:
        return _pick(self, rows)

    def to(self, device: torch.device) -> Batch:
        return _to(self, device)


@dataclass(frozen=True)
class Draw:
    """All the randomness of one step, each row from (seed, step, group): see ``timesteps.draw``."""

    noise: Tensor
    """[B, C, h, w] float32: the noise that is predicted."""
    added: Tensor
    """[B, C, h, w] float32: the noise that is put in; differs from ``noise`` by input perturbation only."""
    level: Tensor
    """[B] float32."""
    window: Tensor
    """[B, 2] in [0, 1): top and left of the pixel window as a fraction of the room there is."""
    coin: Tensor
    """[B] in [0, 1): whether a term with a probability applies to this row."""
    jump: Tensor
    """[B] in [0, 1): how far the pixel mode ``stepped`` steps."""
    correction: Tensor
    """[B] in [0, 1): whether errors that a term estimates are corrected for this row, see ``losses.term.Estimate``."""
    copies: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)
    """(Tensor on a device, the same in the host's memory) for ``on_host``."""

    def pick(self, rows: Tensor) -> Draw:
        made = _pick(self, rows)
        return self._copied(made, lambda value: value[rows]) if rows.device.type == "cpu" else made

    def to(self, device: torch.device) -> Draw:
        if self.noise.device == device:
            return self
        return self._copied(_to(self, device), lambda value: value)

    def _copied(self, made: Draw, change: Callable[[Tensor], Tensor]) -> Draw:
        """``made``, with the host's copies of its level and coin where this draw has them."""
        here = [(getattr(made, name), self._known(getattr(self, name))) for name in ("level", "coin", "correction")]
        return replace(made, copies=tuple((there, change(own)) for there, own in here if own is not None))

    def _known(self, value: Tensor) -> Tensor | None:
        return (
            value if value.device.type == "cpu" else next((own for there, own in self.copies if there is value), None)
        )

    def on_host(self) -> tuple[Tensor, Tensor]:
        """``level`` and ``coin`` in the host's memory, where a draw begins: known there without waiting for a GPU."""
        level, coin = self._known(self.level), self._known(self.coin)
        return self.level.cpu() if level is None else level, self.coin.cpu() if coin is None else coin

    def correction_on_host(self) -> Tensor:
        """``correction``, in the same way."""
        known = self._known(self.correction)
        return self.correction.cpu() if known is None else known


Decode = Callable[[Tensor], Tensor]
"""Scaled latents [N, C, h, w] -> pixels [N, 3, H, W] in [-1, 1], differentiable."""


@dataclass(frozen=True)
class Step:
    """The network's input and output of a step. The properties are computed when first used."""

    batch: Batch
    draw: Draw
    noisy: Tensor
    out: Tensor
    """[B, C, h, w] the network's output, float32."""
    process: Process
    decoder: Any = None
    """A ``losses.pixel.Decoder``; None when no term looks at pixels."""
    base_out: Tensor | None = None
    """[B, C, h, w] the output without the adapter, where ``batch.preserve`` has rows."""

    @cached_property
    def parts(self) -> dict[str, tuple[Any, list[tuple[str, Loss, Step | bool]]]]:
        """What the terms see, once they have looked: by name the term, and for each of its measures all of it, nothing,
        or some rows (``training.step``)."""
        return {}

    @cached_property
    def clean(self) -> Tensor:
        """z0: what should be predicted, [B, C, h, w]."""
        wanted = self.batch.latents if self.batch.target is None else self.batch.target
        if self.base_out is None:
            return wanted
        return self._preserved(self.process.x0(self.noisy, self.base_out, self.draw.level), wanted)

    @cached_property
    def target(self) -> Tensor:
        wanted = self.batch.latents if self.batch.target is None else self.batch.target
        target = self.process.target(wanted, self.draw.noise, self.draw.level)
        return target if self.base_out is None else self._preserved(self.base_out, target)

    def _preserved(self, base: Tensor, wanted: Tensor) -> Tensor:
        assert self.batch.preserve is not None
        return torch.where(self.batch.preserve.to(base.device)[:, None, None, None], base.to(wanted.dtype), wanted)

    @cached_property
    def x0(self) -> Tensor:
        """The clean latents that the output implies."""
        return self.process.x0(self.noisy, self.out, self.draw.level)

    @cached_property
    def epsilon(self) -> Tensor:
        """The noise that the output implies."""
        return self.process.epsilon(self.noisy, self.out, self.draw.level)

    def pick(self, rows: Tensor) -> Step:
        """The same step for some of its rows."""
        return Step(self.batch.pick(rows), self.draw.pick(rows), self.noisy[rows], self.out[rows], self.process,
                    self.decoder, None if self.base_out is None else self.base_out[rows])  # fmt: skip


class Loss(Protocol):
    """Step -> one error per row, [B], float32."""

    def __call__(self, step: Step) -> Tensor: ...


@dataclass
class ObjectiveOutput:
    """An objective's values for some errors."""

    values: Tensor
    """[n] one value per sample or pair: their sum over the effective batch, divided by their number, is minimised."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached [n] tensors for the events; averaged over the effective batch."""


class Objective(Protocol):
    """Errors of the policy and, where it needs one, of the reference -> a value per sample or pair."""

    needs_reference: bool
    valued: Sequence[Role]
    """Roles of the rows that get a value; a pair's is its winner's."""
    state: dict[str, float]
    """What adapts during a run; saved with it."""

    def update(self, sums: dict[str, float], count: int) -> None:
        """Once per optimizer step: metrics summed over the effective batch. Used from the next step on."""
        ...

    def __call__(self, errors: Tensor, reference: Tensor | None, step: Step) -> ObjectiveOutput: ...
