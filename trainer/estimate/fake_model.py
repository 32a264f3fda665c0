"""A run's parts without a model: ``build`` with fake tensors, for what a run would hold. See ``symbolic``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..diffusion.types import Batch, Conditioning, Maps, Role, Rows
from ..families.family import Family
from ..families.load import Found, configs
from ..families.parts import bare
from ..families.sources import Files
from ..families.text import CHUNK, Tokens
from ..losses.term import LossTerms
from ..memory import apply
from ..training.build import build_adapter, build_system, build_terms
from ..training.model import Model
from .fake_tensors import FakeTensors

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """The batch that takes the most."""

    width: int
    height: int
    """In pixels."""
    roles: tuple[Role, ...]
    """Of the pictures of one sample: plain, or winner and loser."""
    samples: int
    """Of a micro-batch."""


class _Family(Family):
    def tokens(self, name: str, captions: list[str]) -> Tokens:
        """As many as the options ask for; which words they are makes no difference."""
        t5 = self.spec.encoders[name].model == "T5EncoderModel"
        chunks, length = (1, self.options.t5_max_tokens) if t5 else (self.options.max_tokens // CHUNK, CHUNK + 2)
        ids = torch.zeros(len(captions), chunks, length, dtype=torch.int64)
        weights = torch.ones(len(captions), chunks * CHUNK) if self.options.weighted_captions and not t5 else None
        return Tokens(ids, torch.ones_like(ids), weights, [0] * len(captions))


def family(config: Config, found: Found, dtype: torch.dtype, vae_dtype: torch.dtype) -> Family:
    """The model on the meta device; ``parts`` fills its modules once the adapter is on it."""
    how = configs(found)
    modules = bare(found.spec, how)
    for name, module in modules.items():
        for value in (p for p in module.parameters() if p.is_floating_point()):
            value.data = value.data.to(vae_dtype if name == "vae" else dtype)
        for part in module.modules():
            for name_of, value in part._buffers.items():
                if value is not None and value.is_floating_point():
                    part._buffers[name_of] = value.to(vae_dtype if name == "vae" else dtype)
    vae = modules.pop("vae")
    made = how["vae"]
    return _Family(
        found.spec, config.model, found.process, modules.pop("denoiser"), vae, modules, {}, Files(Path()),
        scale=made.get("scaling_factor", 0.18215), shift=made.get("shift_factor") or 0.0,
    )  # fmt: skip


@dataclass
class FakeSession:
    """What a step needs of a session."""

    config: Config
    model: Model
    terms: LossTerms


def session(maker: FakeTensors, config: Config, family: Family, dtype: torch.dtype) -> FakeSession:
    """What ``training.build`` makes of a configuration, without data and optimizer. UserError as there."""
    own = config.memory.model_copy(update={"compile": "none", "channels_last": False, "base_weights": "full"})
    config = config.model_copy(update={"memory": own})
    system = build_system(config, family, dtype)
    adapter = build_adapter(config, family, dtype, None, lambda line: None)
    apply.set_up_blocks(own, family.spec, family.denoiser, Path())
    for module in (family.denoiser, family.vae, *family.text_encoders.values(), *system.modules.values()):
        maker.fill(module)
    model = Model(family, adapter, CPU, dtype, system=system)
    terms = build_terms(config, model, None, lambda line: None)
    always = {"probability": 1.0, "min_level": 0.0, "max_level": 1.0}
    terms.terms = [replace(t, options=t.options.model_copy(update=always)) for t in terms.terms]
    return FakeSession(config, model, terms)


def batch(maker: FakeTensors, session: FakeSession, shape: Shape, conditioning: Conditioning | None) -> Batch:
    """A micro-batch: winners before losers, as in the data. ``conditioning``: of one caption, where it is cached."""
    samples, cell = shape.samples, session.model.family.cell
    count = samples * len(shape.roles)
    latents = maker.empty(count, session.model.family.channels, shape.height // cell, shape.width // cell)
    roles: list[Role] = [role for role in shape.roles for _ in range(samples)]
    group = torch.arange(samples).repeat(len(shape.roles))
    size = torch.tensor([[shape.height, shape.width, 0, 0, shape.height, shape.width]] * count, dtype=torch.float32)
    repeated = None if conditioning is None else _repeat(conditioning, count)
    keys = [str(i) for i in range(count)]
    rows, dense = Rows(roles, torch.ones(count), group), session.config.dense
    if dense is None:
        mask = maker.empty(count, 1, shape.height, shape.width) if masked(session.config) else None
        return Batch(latents, [""] * count, size, rows, keys, repeated, mask)
    planes = 1 if dense.task == "depth" else 3
    truth, values = (maker.empty(count, planes, shape.height, shape.width) for _ in range(2))
    maps = Maps(truth, values, maker.empty(count, 1, shape.height, shape.width).bool())
    mask, target = maker.empty(count, 1, *latents.shape[-2:]), torch.empty_like(latents)
    return Batch(latents, [""] * count, size, rows, keys, repeated, mask, target, maps)


def masked(config: Config) -> bool:
    return any(one.alpha_mask or one.masks for _, one in config.data.named_sets())


def _repeat(conditioning: Conditioning, count: int) -> Conditioning:
    def many(value: Tensor | None) -> Any:
        return None if value is None else value[:1].repeat(count, *[1] * (value.ndim - 1))

    return Conditioning(many(conditioning.hidden), many(conditioning.pooled), many(conditioning.mask))
