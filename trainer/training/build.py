"""From a configuration to the parts of a run: model, data, adapter, terms, optimizer. Here options are unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.bake import bake_all
from ..adapters.inject import Adapter, inject, to_show
from ..data.cache import SdScriptsLatents
from ..data.loader import Dataset
from ..data.progress import Progress, silent
from ..diffusion import sampling
from ..diffusion.process import scaled_linear
from ..errors import UserError
from ..families.family import Family
from ..families.load import Found, identify, load
from ..losses.decode import Decoder, decoding_dtype
from ..losses.term import Balance, LossParts, Term
from ..memory import apply
from ..memory import device as memory
from ..objectives.common import ObjectiveOptions, ObjectiveParts, ReferenceOptions
from ..optimizers.build import build as build_optimizer
from ..optimizers.schedules import build_schedule
from ..registry import losses, objectives
from . import distributed
from .checkpoint import thumbnail
from .ema import Average
from .monitors import Watch
from .run_options import total_steps
from .session import Parts

if TYPE_CHECKING:
    from ..config import Config

PARTS = {
    "unet": "denoiser",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "te3": "text_encoder_3",
}
"""The adapter's components by the names of [optimizer]."""


# ------------------------------------------------------------------------------------------------------------- making


def scan(
    config: Config, world: int = 1, found: Found | None = None, progress: Progress = silent
) -> tuple[Found, Dataset]:
    """What the model's file says it is, and the data; no weight is read. ValueError where options contradict them.

    ``found``: the model, where it is known already.
    """
    found = found or identify(config.model)
    draws = {o.reference_draws if isinstance(o, ReferenceOptions) else 0 for _, o in config.terms().values()}
    if len(draws) > 1:
        raise UserError("objective.reference_draws: the terms have different numbers; give all the same")
    dataset = Dataset(
        config.data,
        base_seed=config.run.seed,
        native=found.spec.resolution,
        multiple=found.spec.multiple,
        cache_dir=Path(config.run.out) / "cache",
        effective_batch=config.run.batch * config.run.accumulation * world,
        shares=config.run.accumulation * world,
        fixed_draws=draws.pop() if draws else 0,
        progress=progress,
    )
    if not config.terms():
        raise UserError("loss: every term has weight 0; give one of them a weight")
    for name, (_, objective) in config.terms().items():
        _fits(f"objective ({objective.kind}, loss.{name})", objective, dataset.kind)
    if (config.validation.every or config.validation.every_epochs) and not dataset.held:
        raise UserError("validation.every: nothing is held out; set data.validation_split, for example 0.1")
    return found, dataset


def _fits(where: str, objective: ObjectiveOptions, data: str) -> None:
    wanted = objective.data
    if wanted and data not in wanted:
        raise UserError(
            f'{where}: it needs {" or ".join(wanted)}, but [data] gives {data}; set data.{wanted[0]} = "folder"'
        )


def build(
    config: Config,
    say: Callable[[str], None],
    adapter_file: str | None = None,
    data: bool = True,
    progress: Progress = silent,
) -> Parts:
    """Load the model, scan the data, inject the adapter. ``data=False`` makes what previews need and nothing else."""
    rank, world, device = distributed.join(config.run.device)
    dtype = memory.choose_precision(config.run.precision, device)
    if config.run.full and dtype == torch.float16:
        raise UserError("run.full: it needs bfloat16, which this card does not have; set full = false")
    dataset = scan(config, world, progress=progress)[1] if data else None
    for line in dataset.warnings if dataset else ():
        say(f"warning: {line}")
    vae_dtype, note = decoding_dtype(dtype, device)
    family = load(config.model, dtype, vae_dtype=vae_dtype)
    for line in [*family.notes, *([note] if note else [])]:
        say(line)
    attention, why = memory.choose_attention(device, config.memory.attention)
    say(f"training on {device}, {str(dtype).removeprefix('torch.')}, attention: {why}")
    if config.model.base_adapters:
        for line in bake_all(family, config.model.base_adapters, config.model.base_adapter_weights):
            say(line)
    streamer = apply.lighten(config.memory, family.spec, family.denoiser, family.encoder_places(device), device, say)
    family.to(device)
    if instead := memory.use_attention(family.denoiser, attention):
        attention = "sdpa"
        say(instead)
    adapter = make_adapter(config, family, dtype, adapter_file, say)
    apply.shape(config.memory, family.spec, family.denoiser, Path(config.run.out) / "cache" / "compiled")
    trains_text = any(p.requires_grad for encoder in family.text_encoders.values() for p in encoder.parameters())
    side = config.data.resolution or family.spec.resolution
    native = (side, side) if isinstance(side, int) else (side[0], side[1])
    if config.run.kohya_strict:
        config = config.model_copy(update={"noise": config.noise.model_copy(update={"whole_timesteps": True})})
    shown = sampling.prompts(config.sample, native, family.spec.multiple)
    scaler = _scaler(device, dtype)
    parts = Parts(config, family, adapter, device, dtype, rank, world, trains_text, shown, scaler, attention, streamer)
    if not trains_text:
        texts = {text for prompt in parts.prompts for text in (prompt.text, prompt.negative)}
        with torch.no_grad():
            parts.heard = {text: family.encode_text([text]).to(torch.device("cpu")) for text in sorted(texts)}
    if dataset:
        _training(parts, dataset, vae_dtype, say)
    return parts


def _scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    scaler.scale(torch.zeros((), device=device))  # it has its scale from here on, whatever the first step computes
    return scaler


def make_adapter(
    config: Config, family: Family, dtype: torch.dtype, file: str | None, say: Callable[[str], None]
) -> Adapter:
    options = config.adapter if file is None else to_show(config.adapter, file)
    own = dtype if dtype == torch.float64 or config.run.full else torch.float32
    adapter = inject(family.denoiser, family.text_encoders, family.name, options, dtype=own, seed=config.run.seed)
    if any(isinstance(o, ReferenceOptions) and o.reference == "start" for _, o in config.terms().values()):
        adapter.keep_start()
    for line in adapter.notes:
        say(line)
    return adapter


def _training(parts: Parts, dataset: Dataset, vae_dtype: torch.dtype, say: Callable[[str], None]) -> None:
    """What only training needs: encoded data, terms, optimizer, schedule."""
    config, family = parts.config, parts.family
    thumbnail(config.save)  # a wrong one is told before the run, not after it
    total = total_steps(config.run, dataset.steps_per_epoch, dataset.batches_per_epoch(config.run.accumulation))
    dataset.attach(
        family.encode_pixels,
        None if parts.trains_text else family.encode_text,
        family.fingerprints,
        sd_scripts=_sd_scripts(config, family),
        total_steps=total,
    )
    parts.dataset, parts.total = dataset, total
    make_terms(parts, vae_dtype, say)
    parts.optimizer, notes = build_optimizer(config.optimizer, groups(parts.adapter))
    if config.save.ema:
        parts.average = Average(parts.parameters(), config.save.ema)
    parts.schedule, more = build_schedule(config.schedule, parts.total, parts.optimizer)
    for line in [*notes, *more]:
        say(line)


def _sd_scripts(config: Config, family: Family) -> SdScriptsLatents | None:
    """How latents that sd-scripts cached are read; UserError where they are asked for and there are none."""
    found = family.spec.sd_scripts
    if found is None:
        if config.data.sd_scripts_cache:
            raise UserError(f"data.sd_scripts_cache: sd-scripts does not train {family.spec.title}; set it to false")
        return None
    return SdScriptsLatents(
        found.latents, found.bare_latents, family.channels, lambda z: family.scale * (z - family.shift)
    )


def make_terms(parts: Parts, vae_dtype: torch.dtype | None, say: Callable[[str], None]) -> None:
    """The loss terms with their objectives, and the decoder where one of them looks at pixels."""
    config, family = parts.config, parts.family
    terms = config.terms()
    if any(options.decodes for options, _ in terms.values()):
        parts.decoder = Decoder(family.vae, family.scale, family.shift, vae_dtype)
        apply.tune(config.memory, parts.decoder, parts.device, Path(config.run.out) / "cache" / "compiled")
    weighed = family.process
    if config.run.kohya_strict and not weighed.is_flow:
        weighed = replace(weighed, alphas=scaled_linear())
    if all(options.decodes for options, _ in terms.values()):
        for name in sorted({name for _, o in terms.values() for name in o.weighed_by}):
            say(f"warning: objective.{name}: it weighs errors of the output, but all terms decode: no effect")
    for name, (options, objective) in terms.items():
        loss = losses[name].build(options, LossParts(family.process, parts.decoder, objective.in_x0))
        judge = objectives[objective.kind].build(
            objective, ObjectiveParts(weighed, options.decodes, family.spec.dpo_beta)
        )
        parts.terms.append(Term(name, loss, judge, options))
        for line in options.warnings():
            say(f"warning: loss.{name}.{line}")
    for line in config.notes():
        say(line)
    parts.balance = Balance(parts.terms)
    parts.watch = Watch({name: objective for name, (_, objective) in terms.items()})


def groups(adapter: Adapter) -> list[dict[str, Any]]:
    """The adapter's parameter groups, by the optimizer's names for the parts."""
    made = []
    for group in adapter.parameter_groups():
        part = PARTS[group["component"]]
        suffix = group["name"].removeprefix(group["component"]).strip().replace(" ", "-")
        name = f"{part}.{suffix}" if suffix else part
        made.append({"name": name, "params": group["params"], "ratio": group["lr_scale"]})
    return made
