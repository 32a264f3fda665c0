"""From a configuration to a session: model, data, adapter, terms, optimizer. Here options are unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from ..diffusion.types import Conditioning
from ..errors import UserError
from ..families.family import Family
from ..families.load import Found, identify, load
from ..losses.decode import Decoder, decoding_dtype
from ..losses.term import Balance, LossParts, LossTerms, Term
from ..losses.tiny import beside
from ..memory import apply, attention
from ..memory import device as memory
from ..objectives.common import ObjectiveParts
from ..objectives.options import ObjectiveOptions, ReferenceOptions
from ..optimizers.build import build as build_optimizer
from ..optimizers.schedules import build_schedule
from ..registry import losses, objectives
from . import dense, distributed
from .checkpoint import thumbnail
from .dense_previews import DensePreviews
from .ema import Average
from .model import Model
from .monitors import PreferenceMonitor
from .optimization import Optimization
from .previews import Previews, texts
from .refusals import refuse
from .run_options import total_steps
from .session import Session
from .system import System, TextToImage

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


@dataclass(frozen=True)
class Examined:
    """A configuration whose model is identified and whose data are scanned; no weight is read yet."""

    config: Config
    found: Found
    dataset: Dataset | None

    def found_for(self, config: Config) -> Found | None:
        """The model, where another configuration has the same."""
        return self.found if config.model == self.config.model else None

    def dataset_for(self, config: Config, world: int) -> Dataset | None:
        """The data, where another configuration and number of processes plan them in the same way."""
        mine, other = ((c.data, c.run, c.dense) for c in (self.config, config))
        same = world == 1 and mine == other
        return self.dataset if same and self.found_for(config) and config.terms() == self.config.terms() else None


def scan(
    config: Config, world: int = 1, found: Found | None = None, progress: Progress = silent, remember: bool = True
) -> tuple[Found, Dataset]:
    """Identify the model and scan the data; no weight is read. UserError where options contradict them.

    ``found``: the model, where it is identified already; ``remember``: whether the cache folder may be written to.
    """
    refuse(config)
    found = found or identify(config.model)
    if config.dense and found.process.is_flow:
        raise UserError(dense.no_flow(found.spec.title))
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
        dense=config.dense,
        progress=progress,
        remember=remember,
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


def build_session(
    config: Config,
    log: Callable[[str], None],
    progress: Progress = silent,
    examined: Examined | None = None,
    kept: Mapping[str, str] | None = None,
) -> Session:
    """Load the model, scan the data, inject the adapter, and make what trains it.

    Args:
        log: receives one line per note.
        progress: wraps what takes long, such as reading the sizes of pictures.
        examined: the model and the data of this configuration or a similar one, so that neither is read again.
        kept: the attention of the run that is resumed (``Model.attention_facts``).
    """
    rank, world, _ = distributed.initialize(config.run.device)
    found, dataset = (examined.found_for(config), examined.dataset_for(config, world)) if examined else (None, None)
    if dataset is None or found is None:
        found, dataset = scan(config, world, found=found, progress=progress)
    for line in dataset.warnings:
        log(f"warning: {line}")
    thumbnail(config.save)  # a wrong one is reported before the run, not after it
    config = _kohya_strict(config)
    total = total_steps(config.run, dataset.steps_per_epoch, dataset.batches_per_epoch(config.run.accumulation))
    prompts: dict[str, Conditioning] = {}

    def attach(family: Family, trains_text: bool) -> None:
        encode = None if trains_text else family.encode_text
        sd_scripts = _sd_scripts(config, family)
        dataset.attach(
            family.encode_pixels, encode, family.fingerprints, sd_scripts=sd_scripts, total_steps=total,
            family=family.name,
        )  # fmt: skip

    def captions(family: Family, device: torch.device) -> None:
        attach(family, False)
        wanted = texts(_prompts(config, family))
        prompts.update(zip(wanted, family.encode_in_turn(wanted, device), strict=True))
        dataset.encode_captions(lambda words: family.encode_in_turn(words, device), progress)

    alone = world == 1 and not (config.adapter.text_encoders or dataset.needs_text_encoder)
    model, vae_dtype = build_model(config, log, found=found, kept=kept, captions=captions if alone else None)
    family = model.family
    previews = build_previews(config, model, dataset, prompts)
    attach(family, model.trains_text)
    terms = build_terms(config, model, vae_dtype, log)
    optimization = _build_optimization(config, model, total, log)
    monitor = PreferenceMonitor({name: objective for name, (_, objective) in config.terms().items()})
    return Session(config, model, terms, optimization, dataset, previews, monitor, total, rank, world)


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


def build_model(
    config: Config,
    log: Callable[[str], None],
    adapter_file: str | None = None,
    found: Found | None = None,
    kept: Mapping[str, str] | None = None,
    captions: Callable[[Family, torch.device], None] | None = None,
) -> tuple[Model, torch.dtype]:
    """The networks with an adapter on them, a new one or that of a file; and the dtype in which latents are decoded.

    ``captions`` encodes all that a run needs before anything else is on a GPU, where the text encoders then are not.
    """
    _, _, device = distributed.initialize(config.run.device)
    dtype = memory.choose_precision(config.run.precision, device)
    if config.run.full_bf16 and dtype == torch.float16:
        raise UserError("run.full_bf16: it needs bfloat16, which this GPU does not have; set full_bf16 = false")
    vae_dtype, note = decoding_dtype(dtype, device, config.model.vae_precision)
    family = load(config.model, dtype, vae_dtype=vae_dtype, found=found)
    for line in [*family.notes, *([note] if note else [])]:
        log(line)
    memory.tune_cudnn(config.memory, device)
    if note := memory.mps_fallback(device):
        log(note)
    size = attention.head_size(family.denoiser)
    kernel, why = distributed.broadcast(
        lambda: attention.choose_attention(device, dtype, size, config.memory.attention, kept)
    )
    does = "training" if adapter_file is None else "running"
    log(f"{does} on {device}, {str(dtype).removeprefix('torch.')}, attention: {why}")
    if config.model.base_adapters:
        for line in bake_all(family, config.model.base_adapters, config.model.base_adapter_weights):
            log(line)
    memory.set_limit(device, config.memory.limit_gb)
    apply.quantize_text(config.memory, family.encoder_places(device), device)
    early = captions is not None and device.type != "cpu"
    if captions and early:
        captions(family, device)
    streamer = apply.quantize_and_offload(config.memory, family.spec, family.denoiser, device, log)
    (family.to_without_text if early else family.to)(device)
    if instead := attention.use_attention(family.denoiser, kernel):
        kernel = "sdpa"
        log(instead)
    system = build_system(config, family, dtype)
    adapter = build_adapter(config, family, dtype, adapter_file, log)
    apply.set_up_blocks(config.memory, family.spec, family.denoiser, compile_cache(config))
    model = Model(family, adapter, device, dtype, kernel, streamer, system=system)
    system.check(model)
    return model, vae_dtype


def build_system(config: Config, family: Family, dtype: torch.dtype) -> System:
    """What the run teaches its model."""
    if config.dense is None:
        return TextToImage(family.process, config.noise)
    device = next(family.denoiser.parameters()).device
    return dense.build(config.dense, family, config.run.seed, _own_dtype(config, dtype), device)


def _own_dtype(config: Config, dtype: torch.dtype) -> torch.dtype:
    """Of what is trained."""
    return dtype if dtype == torch.float64 or config.run.full_bf16 else torch.float32


def build_previews(
    config: Config,
    model: Model,
    dataset: Dataset | None = None,
    cached: Mapping[str, Conditioning] | None = None,
) -> Previews | DensePreviews:
    """The prompts of [sample], at the training resolution where they name none; of a dense run its pictures.

    ``cached``: the conditioning of prompts that are encoded already.
    """
    if isinstance(model.system, dense.DensePrediction):
        return DensePreviews(model, model.system, dataset, [Path(path) for path in config.sample.pictures])
    return Previews(model, _prompts(config, model.family), config.memory, cached)


def _prompts(config: Config, family: Family) -> list[sampling.Prompt]:
    side = config.data.resolution or family.spec.resolution
    native = (side, side) if isinstance(side, int) else (side[0], side[1])
    return sampling.prompts(config.sample, native, family.spec.multiple)


def build_adapter(
    config: Config, family: Family, dtype: torch.dtype, file: str | None, log: Callable[[str], None]
) -> Adapter:
    options = config.adapter if file is None else to_show(config.adapter, file)
    own, seed = _own_dtype(config, dtype), config.run.seed
    adapter = inject(family.denoiser, family.text_encoders, family.name, options, dtype=own, seed=seed)
    if any(isinstance(o, ReferenceOptions) and o.reference == "start" for _, o in config.terms().values()):
        adapter.keep_start()
    for line in adapter.notes:
        log(line)
    return adapter


def build_terms(config: Config, model: Model, vae_dtype: torch.dtype | None, log: Callable[[str], None]) -> LossTerms:
    """The loss terms with their objectives; the model gets a decoder where one of them looks at pixels."""
    family, terms = model.family, config.terms()
    if any(options.decodes for options, _ in terms.values()):
        model.decoder = Decoder(family.vae, family.scale, family.shift, vae_dtype)
        apply.set_up_decoder(config.memory, model.decoder, model.device, compile_cache(config))
    weighed = model.process
    if config.run.kohya_strict and not weighed.is_flow:
        weighed = replace(weighed, alphas=scaled_linear())
    if all(options.decodes for options, _ in terms.values()):
        for name in sorted({name for _, o in terms.values() for name in o.weighed_by}):
            log(f"warning: objective.{name}: it weighs errors of the output, but all terms decode: no effect")
    made = []
    for name, (options, objective) in terms.items():
        task = config.dense.task if config.dense else None
        parts = LossParts(
            model.process, model.decoder, objective.in_x0, task, beside(config.model.path, family.spec.name)
        )
        loss = losses[name].build(options, parts)
        given = ObjectiveParts(weighed, options.decodes, family.spec.dpo_beta)
        compare = objectives[objective.kind].build(objective, given)
        made.append(Term(name, loss, compare, options))
        for line in options.warnings():
            log(f"warning: loss.{name}.{line}")
    for line in config.notes():
        log(line)
    return LossTerms(made, Balance(made))


def compile_cache(config: Config) -> Path:
    """Where compiled code is kept for the next run."""
    return Path(config.run.out) / "cache" / "compiled"


def _build_optimization(config: Config, model: Model, total: int, log: Callable[[str], None]) -> Optimization:
    optimizer, notes = build_optimizer(config.optimizer, parameter_groups(model.adapter, model.system))
    schedule, more = build_schedule(config.schedule, total, optimizer)
    for line in [*notes, *more]:
        log(line)
    scaler = grad_scaler(model.device, model.dtype)
    made = Optimization(optimizer, schedule, scaler, config.optimizer.max_grad_norm)
    if config.save.ema:
        made.average = Average(made.parameters(), config.save.ema)
    return made


def grad_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """It has its scale from the start, whatever the first step computes."""
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    scaler.scale(torch.zeros((), device=device))
    return scaler


def _kohya_strict(config: Config) -> Config:
    if not config.run.kohya_strict:
        return config
    return config.model_copy(update={"noise": config.noise.model_copy(update={"integer_timesteps": True})})


def parameter_groups(adapter: Adapter, system: System) -> list[dict[str, Any]]:
    """The adapter's parameter groups, and what the system trains beside it, by the names of [optimizer]."""
    made = []
    for group in adapter.parameter_groups():
        part = PARTS[group["component"]]
        suffix = group["name"].removeprefix(group["component"]).strip().replace(" ", "-")
        name = f"{part}.{suffix}" if suffix else part
        made.append({"name": name, "params": group["params"], "ratio": group["lr_scale"]})
    for name, module in system.modules.items():
        made.append({"name": f"denoiser.{name}", "params": list(module.parameters()), "ratio": 1.0})
    return made
