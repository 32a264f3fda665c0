"""How much memory a run will take, found before anything is loaded: the real step on fake tensors, and arithmetic.

What a symbolic run shows: the activations of the training step with its reference pass and loss terms, of previews,
validation and the encoding of pictures and captions, and the operations of a step. What is arithmetic: weights (as they
will be quantized), the optimizer's state (of the real optimizer, on one small parameter of each shape), the
verification of a saved file, and the workspace that CUDA, its libraries and the allocator take, which no symbolic run
can see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor, nn

from ..config import Config
from ..diffusion import sampling
from ..diffusion.process import Process
from ..diffusion.timesteps import level_at
from ..diffusion.types import Batch, Conditioning, Draw, Step
from ..families.family import Family
from ..families.load import Found
from ..losses import surrogate as metric
from ..losses.decode import decoding_dtype
from ..losses.options import DecodeOptions, PixelOptions
from ..losses.pixel import plan_for
from ..losses.term import LossTerms, Term, counts
from ..memory.activation_checkpointing import Host
from ..memory.options import Weights
from ..memory.quantize import TEXT, quantizable, quantized_bytes
from ..objectives.options import ReferenceOptions
from ..optimizers.build import build as build_optimizer
from ..training import step_time, surrogates
from ..training.build import parameter_groups
from ..training.model import Model
from ..training.remedies import PARTS, STEP, Phase
from ..training.step import Errors, ReferenceErrors, backward_row_by_row, compute_loss
from . import fake_model, reuse
from .fake_model import FakeSession, Shape
from .fake_tensors import HOST, FakeTensors, MemoryTracker, cuda_autocast, size_of

GIB = 2**30
CONTEXT = {"cuda": 0.5 * GIB, "cpu": 0.55 * GIB}
"""What a process takes before any tensor: CUDA's context and libraries on a GPU, Python and its libraries on a CPU."""
KINDS: tuple[Weights, ...] = ("full", "fp8", "int8", "nf4")
SLACK = 0.05
"""Share of what is allocated that the allocator reserves beside it."""


@dataclass
class Estimate:
    """What a symbolic run found, in bytes: plain numbers that can be kept in a file."""

    modules: dict[str, dict[str, int]]
    """denoiser, vae, and each text encoder, by how its weights may be quantized: full, fp8, int8, nf4."""
    blocks: dict[str, list[int]]
    """The denoiser's blocks that can be streamed, quantized in the same ways."""
    adapter: int = 0
    """Its parameters."""
    trained: list[tuple[str, list[int], str, int]] = field(default_factory=list)
    """Group of the optimizer, shape, dtype, and how many such parameters."""
    largest: int = 0
    """The largest adapted weight, in float32."""
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    """Phase -> label -> bytes beside the resident modules, at the phase's peak."""
    kept: int = 0
    """What is alive when the backward pass of a micro-batch begins."""
    flops: int = 0
    """Of one micro-batch, forward and backward, with every term on all of it."""
    decoding: dict[str, int] = field(default_factory=dict)
    """Of which this much is each decoding term's."""
    work: dict[str, int] = field(default_factory=dict)
    """Operations beside the steps: of encoding one caption and one picture, of one prediction of a preview and of
    decoding it."""
    making: dict[str, int] = field(default_factory=dict)
    """Where a pixel term may be estimated by a surrogate: pictures of a micro-batch, crops that making one decodes,
    operations of decoding one, and of the fit."""
    arch: str = ""
    """The denoiser, as ``step_time.arch`` names it."""
    trains_text: bool = False
    decodes: bool = False
    plans: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of each term whose decode plan goes by the picture's size, what it comes to for the largest: the kind, a window's
    pixels."""


def estimate(
    config: Config,
    found: Found,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    room: int | None = None,
    maker: FakeTensors | None = None,
) -> Estimate:
    """The symbolic run. UserError for options that do not fit.

    ``device``: cuda or cpu, whose autocast is followed; ``room``: bytes of the GPU for decode = "auto" to look at;
    ``maker``: of other tensors than fake ones.
    """
    maker, tracker = maker or FakeTensors(), MemoryTracker()
    vae_dtype, _ = decoding_dtype(dtype, torch.device("cpu"), config.model.vae_precision)
    model = fake_model.family(config, found, dtype, vae_dtype)
    weights, streamed = _weights(model, dtype)
    p = fake_model.session(maker, config, model, dtype)
    if p.model.decoder is not None and room is not None:
        p.model.decoder.room = room - sum(kinds["full"] for kinds in weights.values())
    mine = [*p.model.adapter.parameters(), *(q for m in p.model.system.modules.values() for q in m.parameters())]
    adapted = {id(t) for t in mine}
    modules = {"denoiser": model.denoiser, "vae": model.vae, **model.text_encoders}
    tensors = {name: [t for t in _tensors(module) if id(t) not in adapted] for name, module in modules.items()}
    result = Estimate(weights, streamed, size_of(mine))
    result.arch, result.trained = step_time.arch(model.denoiser), _trained(p)
    result.largest = 4 * max(torch.Size(one.plan.site.shape).numel() for one in p.model.adapter.mounted)
    result.trains_text, result.decodes = p.model.trains_text, p.model.decoder is not None
    tracker.leave_out([*mine, *(t for some in tensors.values() for t in some)])
    for parameter in mine:
        parameter.register_post_accumulate_grad_hook(lambda q: tracker.relabel(_grad(q), "adapter"))
    p.terms.terms = [_watched(term, tracker) for term in p.terms.terms]
    with tracker, cuda_autocast() if device == "cuda" else nullcontext(), _to_host(tracker):
        conditioning = _captions(p, tracker, result)
        _pictures(p, tracker, result, maker, shape)
        result.plans = _decode_plans(p, shape)
        _making(p, tracker, result, maker, shape)
        micro = fake_model.batch(maker, p, shape, None if p.model.trains_text else conditioning)
        _training(p, tracker, result, micro)
        result.making |= {"pictures": len(micro)} if result.making else {}
        if config.data.validation_split:
            with torch.no_grad():
                _judge(p, micro)
            result.phases["validation"] = tracker.peak
        _preview(p, tracker, result, maker, conditioning, shape)
    return result


def goes_by_size(options: DecodeOptions) -> bool:
    """Whether what is decoded follows from the picture's size and the room alone; a run settles any other ``auto``."""
    choices = get_args(type(options).model_fields["decode"].annotation)
    return options.decode == ("by_size" if "by_size" in choices else "auto")


def _decode_plans(p: FakeSession, shape: Shape) -> dict[str, tuple[str, int]]:
    decoder, found = p.model.decoder, {}
    for name, (options, _) in p.config.terms().items():
        if isinstance(options, DecodeOptions) and goes_by_size(options) and decoder is not None:
            plan = plan_for(options, decoder, shape.height // decoder.factor, shape.width // decoder.factor)
            found[name] = (plan.kind, plan.window * decoder.factor)
    return found


def _making(p: FakeSession, tracker: MemoryTracker, result: Estimate, maker: FakeTensors, shape: Shape) -> None:
    decoder, family = p.model.decoder, p.model.family
    terms = [options for options, _ in p.config.terms().values() if isinstance(options, PixelOptions)]
    estimated = any(options.decode in ("auto", *surrogates.PLANS) for options in terms)
    if decoder is None or not decoder.by_parts or not estimated:
        return
    count, h, w = surrogates.examples_of(shape.height // decoder.factor, shape.width // decoder.factor)
    tracker.begin()
    with torch.no_grad():
        decoder(maker.empty(1, family.channels, h, w))
    fitting = metric.fitting_operations(family.channels, decoder.factor, h * w, count - count // surrogates.HELD)
    result.making = {"crops": count, "crop": tracker.flops.total(), "fitting": fitting}


def _weights(model: Family, dtype: torch.dtype) -> tuple[dict[str, dict[str, int]], dict[str, list[int]]]:
    """See ``Estimate.modules`` and ``Estimate.blocks``; of a model without an adapter."""

    def layers(module: nn.Module) -> list[torch.Size]:
        return [layer.weight.shape for layer in module.modules() if type(layer) in (nn.Linear, nn.Conv2d)]  # pyright: ignore

    def total(shapes: Iterable[torch.Size], kind: Weights) -> int:
        return sum(quantized_bytes("int8" if kind == "nf4" and len(s) == 4 else kind, tuple(s), dtype) for s in shapes)

    whole: dict[str, dict[str, int]] = {}
    inside = {"denoiser": model.spec.quantized} | dict.fromkeys(model.text_encoders, TEXT)
    for name, module in {"denoiser": model.denoiser, "vae": model.vae, **model.text_encoders}.items():
        shapes = [layer.weight.shape for _, layer in quantizable(module, inside[name])] if name in inside else []
        rest = size_of(_tensors(module)) - total(shapes, "full")
        whole[name] = {kind: rest + total(shapes, kind) for kind in KINDS}
    parts = [layers(block) for block in model.spec.blocks(model.denoiser, resize=True)]
    return whole, {kind: [total(some, kind) for some in parts if some] for kind in KINDS}


@contextmanager
def _to_host(tracker: MemoryTracker) -> Iterator[None]:
    """What is offloaded goes to the same fake device here: its label tells it. It comes back as it does on a GPU, with
    that of the block that is recomputed next."""
    was = Host._sent, Host._comes_ahead, Host._copied

    def sent(self: Host, tensor: Tensor) -> Tensor:
        with tracker.labelled(HOST):
            return tensor.clone()

    Host._sent = sent
    Host._comes_ahead = lambda self, device: True
    Host._copied = lambda self, kept: (kept.away.clone(), None)
    try:
        yield
    finally:
        Host._sent, Host._comes_ahead, Host._copied = was


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _watched(term: Term, tracker: MemoryTracker) -> Term:
    """The term, with what it makes counted as the decoder's where it decodes."""
    if not term.options.decodes:
        return term

    def loss(step: Step) -> Tensor:
        with tracker.labelled("decoder", term.name):
            return term.loss(step)

    return Term(term.name, loss, term.objective, term.options)


def _captions(p: FakeSession, tracker: MemoryTracker, result: Estimate) -> Conditioning:
    with torch.no_grad(), tracker.labelled("text encoders"):
        tracker.begin()
        conditioning = p.model.family.encode_text([""])
        result.phases["captions"], result.work["captions"] = tracker.peak, tracker.flops.total()
    return conditioning


def _pictures(p: FakeSession, tracker: MemoryTracker, result: Estimate, maker: FakeTensors, shape: Shape) -> None:
    with tracker.labelled("autoencoder"):
        tracker.begin()
        p.model.family.encode_pixels(maker.empty(1, 3, shape.height, shape.width))
        result.phases["pictures"], result.work["pictures"] = tracker.peak, tracker.flops.total()


def _training(p: FakeSession, tracker: MemoryTracker, result: Estimate, batch: Batch) -> None:
    p.model.adapter.train(True)
    tracker.begin()
    with tracker.labelled("adapter"):
        for parameter in p.model.adapter.parameters() if p.config.run.accumulation > 1 else ():
            parameter.grad = torch.zeros_like(parameter)
    cached = any(isinstance(o, ReferenceOptions) and o.reference_draws for _, o in p.config.terms().values())
    remembered = _Remembered(tracker) if cached else None
    _judge(p, batch, remembered, lambda: setattr(result, "kept", sum(tracker.live.values())))
    result.phases["training step"], result.flops = tracker.peak, tracker.flops.total()
    result.decoding = {name: count for name, count in tracker.flops.items() if name}
    for parameter in p.model.adapter.parameters():
        parameter.grad = None
    p.model.adapter.train(False)
    tracker.begin()


@dataclass
class _Remembered:
    """References of fixed draws: computed on the first visit, so their operations are not a step's."""

    tracker: MemoryTracker

    def get(self, model: Model, terms: LossTerms, batch: Batch, draw: Draw, compute: Callable[[], Errors]) -> Errors:
        before = self.tracker.flops.copy()
        errors = compute()
        self.tracker.flops = before
        return errors


def _judge(
    p: FakeSession, batch: Batch, references: ReferenceErrors | None = None, between: Callable[[], None] = lambda: None
) -> None:
    """Forward and, where there are gradients, backward of a micro-batch, as the engine does it.

    A pixel window lies in the middle, where its halo is cut off by no edge: there it takes the most.
    """
    chance = p.model.system.draw(batch, 0, 0)
    chance = replace(chance, window=torch.full_like(chance.window, 0.5))
    roles = batch.rows.role
    if p.config.memory.grad_cache and torch.is_grad_enabled():
        backward_row_by_row(
            p.model, p.terms, batch, chance, roles, 0, torch.amp.GradScaler("cpu", enabled=False), references
        )
        return
    result = compute_loss(p.model, p.terms, batch, chance, roles, 0, references)
    between()
    if result.loss.requires_grad:
        result.loss.backward()


@torch.no_grad()
def _preview(
    p: FakeSession, tracker: MemoryTracker, result: Estimate, maker: FakeTensors, conditioning: Conditioning,
    shape: Shape,
) -> None:  # fmt: skip
    side = p.config.data.resolution or p.model.family.spec.resolution
    native = (side, side) if isinstance(side, int) else (side[0], side[1])
    prompts = sampling.prompts(p.config.sample, native, p.model.family.spec.multiple)
    sizes = [(prompt.height, prompt.width) for prompt in prompts]
    if p.config.dense and (p.config.sample.pictures or p.config.data.validation_split):
        sizes = [(shape.height, shape.width)]
    if not sizes:
        return
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    tracker.begin()
    z = maker.empty(1, p.model.family.channels, height // p.model.family.cell, width // p.model.family.cell)
    with p.model.autocast():
        p.model.family.predict(z, torch.full((1,), 0.5 if p.model.process.is_flow else 500.0), conditioning)
    result.work["prediction"] = tracker.flops.total()
    with tracker.labelled("decoder"):
        p.model.family.decode(z)
    result.work["decode"] = tracker.flops.total() - result.work["prediction"]
    result.phases["previews"] = tracker.peak


def _trained(p: FakeSession) -> list[tuple[str, list[int], str, int]]:
    counts = Counter(
        (group["name"], tuple(one.shape), str(one.dtype).removeprefix("torch."))
        for group in parameter_groups(p.model.adapter, p.model.system)
        for one in group["params"]
    )
    return [(name, list(shape), dtype, count) for (name, shape, dtype), count in counts.items()]


def optimizer_bytes(config: Config, trained: Iterable[tuple[str, list[int], str, int]]) -> int:
    """The state that the configured optimizer keeps: of a real step on one parameter of each shape."""
    counts: dict[int, int] = {}
    by_name: dict[str, list[torch.nn.Parameter]] = {}
    for name, shape, dtype, count in trained:
        one = torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, dtype)))
        by_name.setdefault(name, []).append(one)
        counts[id(one)] = count
    optimizer, _ = build_optimizer(config.optimizer, [{"name": n, "params": some} for n, some in by_name.items()])
    stepped = [one for group in optimizer.param_groups for one in group["params"]]
    for one in stepped:
        one.grad = torch.full_like(one, 1e-3)
    optimizer.step()
    return sum(
        counts[id(one)] * size_of(v for v in optimizer.state[one].values() if isinstance(v, Tensor) and v.numel() > 1)
        for one in stepped
    )


# ------------------------------------------------------------------------------------------------------ put together


def phases(config: Config, m: Estimate, device: str, captions_change: bool = False) -> list[Phase]:
    """What a run of this configuration holds in each of its phases. Here is the arithmetic of what stays on the GPU.

    ``captions_change``: they are encoded during the run, as they are not kept or vary.
    """
    own = config.memory
    t5_here = "te3" in m.modules and not config.model.t5_on_cpu
    encoders = [name for name in m.modules if name not in ("denoiser", "vae") and (name != "te3" or t5_here)]
    each = [m.modules[name][own.text_weights] for name in encoders]
    text = sum(each)
    stays = {"weights": weights_bytes(config, m, device), "adapter": m.adapter, "text encoders": text}
    packed = own.base_weights != "full" or own.blocks_on_gpu != "all"
    unpacked = m.largest // 2 if packed else 0  # one layer at a time, in 16 bits
    on_cpu = device == "cpu"
    vae = m.modules["vae"]["full"]
    keeps_text = m.trains_text or captions_change or on_cpu
    keeps_vae = m.decodes or config.data.cache_latents == "off" or on_cpu
    stays["autoencoder"] = vae
    in_turn = {"text encoders": max(each, default=0)}  # one at a time, before anything else is there
    made = [_phase("encoding captions", stays if keeps_text else in_turn, m.phases["captions"], device, t5_here)]
    stays["text encoders"] = text if keeps_text else 0
    made.append(_phase("encoding pictures", stays, m.phases["pictures"], device, t5_here and keeps_text))
    stays["autoencoder"] = vae if keeps_vae else 0
    key = reuse.optimizer(config.optimizer)
    stays["optimizer"] = reuse.once(
        "optimizers", key and reuse.digest(key, m.trained), lambda: optimizer_bytes(config, m.trained)
    )
    proof = {"adapter": m.adapter, "activations": 3 * m.largest}
    for name, transient in (
        (STEP, m.phases[STEP]), ("optimizer step", {"adapter": m.adapter, "optimizer": m.adapter}),
        ("validation", m.phases.get("validation")), ("previews", m.phases.get("previews")),
        ("proof of the saved file", proof),
    ):  # fmt: skip
        if transient is not None:
            here = {**stays, "workspace": unpacked} | ({"autoencoder": vae} if name == "previews" else {})
            made.append(_phase(name, here, transient, device, t5_here and keeps_text))
    return made


def weights_bytes(config: Config, m: Estimate, device: str) -> int:
    """What the frozen denoiser takes of the device: quantized, and streamed with room for a block and those ahead. From
    a CPU they are streamed to the memory that they lie in."""
    kind, resident = config.memory.base_weights, config.memory.blocks_on_gpu
    whole, parts = m.modules["denoiser"][kind], m.blocks[kind]
    if resident == "all" or (resident == "auto" and device == "cpu") or not parts:
        return whole
    share = 1 - min(0 if resident == "auto" else resident, len(parts)) / len(parts)
    away = 0 if device == "cpu" else int(share * sum(parts))
    return whole - away + ((1 + config.memory.prefetch_blocks) * max(parts) if share else 0)


def operations(config: Config, m: Estimate, process: Process, rows: int | None = None) -> tuple[float, float]:
    """Multiplications and additions of a micro-batch on average, and how many of them its decoding terms make; see
    ``decoded``."""
    found = decoded(config, m, process, rows)
    return found.step, found.decoding


@dataclass(frozen=True)
class Decoded:
    """What a run's steps compute."""

    step: float
    """Operations of a micro-batch, on average."""
    decoding: float
    """Of which its decoding terms make so many."""
    lines: list[str]
    """On what is estimated instead of decoded."""
    making: surrogates.Making | None
    """Of the surrogate that is made at the start."""


def decoded(config: Config, m: Estimate, process: Process, rows: int | None = None) -> Decoded:
    """``rows``: pictures that the run sees; None where that is not known, which is taken to be many."""
    levels = level_at((torch.arange(1000) + 0.5) / 1000, process, config.noise)
    rest, decoding, lines, made = m.flops - sum(m.decoding.values()), 0.0, list[str](), None
    for name, (options, _) in config.terms().items():
        own = m.decoding.get(name, 0) * options.probability
        own *= float(counts(options, levels, process).float().mean())
        if isinstance(options, PixelOptions) and own and m.making:
            step = rest / m.making["pictures"]
            example = step / 3 + surrogates.DECODES * m.making["crop"]  # a forward pass, of forward and backward
            making = surrogates.Making(m.making["crops"] * example, m.making["fitting"])
            cost, lines, made_here = surrogates.forecast(config, options, 1 + own / rest, rows, making, step)
            own, made = (cost - 1) * rest, making if made_here else made
        decoding += own
    return Decoded(rest + decoding, decoding, lines, made)


def _phase(name: str, resident: dict[str, int], transient: dict[str, int], device: str, t5: bool) -> Phase:
    found = {part: resident.get(part, 0) + transient.get(part, 0) for part in PARTS}
    found["workspace"] += int(CONTEXT[device] + SLACK * sum(found.values()))
    return Phase(name, found, t5)
