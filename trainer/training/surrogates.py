"""The learned pixel metric of a run: made or found at its first start, kept for its resumes and in the user's cache.

``settle`` decides what ``decode = "auto"`` of [loss.pixel] is in this run. The decision is written into the run's
configuration and state, and the surrogate into its folder, so a resumed run computes what it computed before, whatever
the cache holds by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data.progress import Progress
from ..diffusion.types import Step
from ..errors import UserError
from ..losses import surrogate as metric
from ..losses.decode import Plan
from ..losses.options import PixelOptions
from ..losses.pixel import PixelLoss, plan_for
from ..losses.surrogate import Collector, Surrogate
from ..memory import device as memory
from ..runs import user_cache
from ..runs.files import user_cache as cache_folder
from . import distributed
from .session import Session
from .step import forward

if TYPE_CHECKING:
    from ..config import Config

EXAMPLES, CROP, SECONDS = 640, 32, 120.0
"""Of a fit: how many, cells per side, seconds that decoding them may take; ``FEWEST`` are made in any case. Of smaller
pictures as many more as have as many cells."""
FEWEST = 64
HELD = 8
"""One picture of so many is kept to measure with."""
PAYS = 2
"""``auto`` makes a surrogate for a run that saves by it this many times as many operations as making it takes; later
runs, for which it is kept, are not counted."""
TYPICAL = 0.2
"""Residual energy that is assumed of a surrogate before it is made."""
MADE = "its surrogate is made at the start, once for this autoencoder"
DECODES = 3.5
"""Decoding's forward passes for one picture of a loss: target, prediction, and the gradient of that."""
SEED = 1 << 40
"""Added to a run's seed, so that examples are drawn apart from its steps."""
PLANS = ("surrogate", "corrected")


def kept(key: str) -> Path:
    """Where the surrogate of a key is kept for all runs."""
    return cache_folder() / "surrogates" / f"{key}.safetensors"


def known(key: str) -> Surrogate | None:
    """The one that is kept, if it can be read."""
    try:
        return metric.load(kept(key), key)
    except UserError:
        return None


def key_of(session: Session, options: PixelOptions) -> str:
    return metric.key(session.model.family.fingerprints["vae"], options.mode)


NAME = "surrogates"
"""Of what is remembered for ``check``, which reads no weights."""


def remember(config: Config, options: PixelOptions, found: Surrogate) -> None:
    """Remember the quality of the surrogate of a configuration's autoencoder, by where that lies."""
    assert found.quality is not None
    user_cache.remember(NAME, _place(config, options), asdict(found.quality))


def _place(config: Config, options: PixelOptions) -> str:
    path = Path(config.model.vae or config.model.path or "")
    changed = path.stat().st_mtime_ns if path.exists() else 0
    return f"{path} {changed} {options.mode}"


@dataclass(frozen=True)
class Making:
    """Multiplications and additions of making a surrogate."""

    decoding: float
    """Of the network's predictions and of decoding crops of them."""
    fitting: float

    def seconds(self, rate: float) -> float:
        """At so many operations a second; both parts end early on a slow device."""
        return min(self.decoding / rate, SECONDS) + min(self.fitting / rate, metric.SECONDS)

    def pays(self, rows: int, step: float, full: float) -> bool:
        """Whether a run that sees so many pictures should make one by itself. step: operations for one picture that is
        not decoded; full: decoding all, as a multiple of that."""
        saved = full - metric.relative_cost("corrected", full, metric.share_for(full, TYPICAL))
        return rows * saved * step >= PAYS * (self.decoding + self.fitting)


def examples_of(h: int, w: int) -> tuple[int, int, int]:
    """(How many crops a surrogate is made from, their height and width in cells) of latents of that size."""
    height, width = min(CROP, h), min(CROP, w)
    return EXAMPLES * CROP**2 // (height * width), height, width


def forecast(
    config: Config, options: PixelOptions, full: float, rows: int | None, made: Making, step: float,
) -> tuple[float, list[str], bool]:  # fmt: skip
    """What a pixel term will decode, before its run: the operations of a step as a multiple of one that decodes
    nothing, a line for people, and whether a surrogate is made at the start.

    full: the same, decoding all. rows: pictures that the run sees; None where that is not known. step: operations for
    one of them that is not decoded.
    """
    if options.decode not in ("auto", *PLANS):
        return full, [], False
    kept = user_cache.known(NAME).get(_place(config, options))
    quality = metric.Quality(**kept) if kept else None
    if options.surrogate is not None:
        quality = metric.load(options.surrogate).quality
    automatic = options.decode == "auto"
    if automatic and (
        options.distance != "l2" or full <= metric.LIMIT
        or not (quality or rows is None or made.pays(rows, step, full))
    ):  # fmt: skip
        return full, [], False
    if quality and quality.cosine < metric.LOWEST:
        line = f"loss.pixel: decoding by size, as the autoencoder's surrogate has only {quality.text()}"
        return full, [line], False
    plan = "corrected" if automatic else options.decode
    share = options.corrected_share or metric.share_for(full, quality.residual if quality else TYPICAL)
    cost = metric.relative_cost(plan, full, share)
    how = f", {share:.1%} of the samples decoded" if plan == "corrected" else ", biased"
    known = f"its surrogate has {quality.text()}" if quality else MADE
    line = f"loss.pixel: {plan}{how}: {cost:.2f} times a latent step, decoding all {full:.2f}; {known}"
    return cost, [line], not quality


def attach(session: Session) -> None:
    """Give each pixel term that is estimated its surrogate; again whenever the terms are built anew."""
    made = []
    for term in session.terms.terms:
        options, loss, found = term.options, term.loss, session.surrogates.get(term.name)
        if isinstance(loss, PixelLoss) and isinstance(options, PixelOptions) and found and options.decode in PLANS:
            share = (options.corrected_share or 0.0) if options.decode == "corrected" else 0.0
            term = replace(term, estimate=loss.estimate(found, share))
        made.append(term)
    session.terms.terms = made


@dataclass
class Settler:
    """Settles the decode plans of a run."""

    session: Session
    file: Path
    """The surrogate in the run's folder."""
    resumed: Mapping[str, Any]
    """Facts of the state that the run continues; empty at its first start."""
    log: Callable[[str], None]
    warning: Callable[[str], None]
    progress: Progress

    def settle(self) -> None:
        session = self.session
        if not self.resumed and session.is_main:
            self.file.unlink(missing_ok=True)
        for term in session.terms.terms:
            if isinstance(term.loss, PixelLoss) and isinstance(term.options, PixelOptions):
                options = self._settled(term.name, term.options, term.loss)
                table = session.config.loss.model_copy(update={term.name: options})
                session.config = session.config.model_copy(update={"loss": table})
        session.terms.terms = [
            replace(term, options=session.config.loss.terms().get(term.name, term.options))
            for term in session.terms.terms
        ]
        attach(session)

    def _settled(self, name: str, options: PixelOptions, loss: PixelLoss) -> PixelOptions:
        """The term's options with a plan that is none of ``auto``, its surrogate in the session where it has one."""
        if self.resumed:
            earlier = self.resumed.get("decode", {}).get(name, {"decode": "by_size"})
            share = options.corrected_share or earlier.get("corrected_share")
            if options.decode in ("auto", earlier["decode"]):
                options = options.model_copy(update={**earlier, "corrected_share": share})
        automatic = options.decode == "auto"
        if not automatic and options.decode not in PLANS:
            return options
        by_size = options.model_copy(update={"decode": "by_size"})
        if automatic and (options.distance != "l2" or not loss.decoder.by_parts):
            return by_size
        found = self._find(options)
        if automatic and found is None and not self._may_pay(options, loss):
            return by_size
        full = cost_of_decoding(self.session, loss)
        if automatic and (full <= metric.LIMIT or (found is None and not self._pays(loss, full))):
            return by_size
        try:
            found = found or self._make(options, loss)
        except (UserError, RuntimeError) as error:  # auto does without what cannot be made here
            if not automatic or not (isinstance(error, UserError) or memory.is_out_of_memory(error)):
                raise
            memory.release(self.session.model.device)
            self.warning(
                f"loss.{name}.decode: no surrogate could be made ({str(error).splitlines()[0]}); decoding by size"
            )
            return by_size
        assert found.quality is not None
        if found.quality.cosine < metric.LOWEST:
            self.warning(
                f"loss.{name}.decode: the surrogate of this autoencoder has {found.quality.text()}, below "
                f"{metric.LOWEST}, so it is not used; decoding by size"
            )
            return by_size
        plan = "corrected" if automatic else options.decode
        share = options.corrected_share or metric.share_for(full, found.quality.residual)
        cost = metric.relative_cost(plan, full, share)
        how = f"{share:.1%} of the samples decoded" if plan == "corrected" else "biased"
        self.log(
            f"loss.{name}: {plan}, {how}: a step costs {cost:.2f} times a latent one, decoding all {full:.2f}; "
            f"{found.quality.text()}"
        )
        self.session.surrogates[name] = found
        if self.session.is_main:
            metric.save(self.file, found)
            remember(self.session.config, options, found)
        return options.model_copy(
            update={"decode": plan, **({"corrected_share": share} if plan == "corrected" else {})}
        )

    def _find(self, options: PixelOptions) -> Surrogate | None:
        """Of this run, of the option, or of the user's cache."""
        key = key_of(self.session, options)

        def read() -> Surrogate | None:
            if self.resumed and self.file.exists():
                return metric.load(self.file, key)
            if options.surrogate is not None:
                return metric.load(options.surrogate, key)
            return known(key)

        return distributed.broadcast(read)

    @property
    def _rows(self) -> int:
        return self.session.total * self.session.dataset.effective_batch

    def _may_pay(self, options: PixelOptions, loss: PixelLoss) -> bool:
        """Whether a run decodes more cells than making a surrogate does, without which it cannot pay; known without
        running the network."""
        width, height = self.session.dataset.plan.largest[0]
        cells = width * height // loss.decoder.factor**2
        return self._rows * counted(options) * cells >= PAYS * EXAMPLES * CROP**2

    def _pays(self, loss: PixelLoss, full: float) -> bool:
        session, decoder = self.session, loss.decoder
        network, size = _network(session)
        count, h, w = examples_of(*size)
        crop = _decoder(session, loss, Plan().view, h, w)
        fitting = metric.fitting_operations(session.model.family.channels, decoder.factor, h * w, count - count // HELD)
        made = Making(count * (network + DECODES * crop), fitting)
        return made.pays(self._rows, network * _passes(session), full)

    def _make(self, options: PixelOptions, loss: PixelLoss) -> Surrogate:
        def made() -> Surrogate:
            found, _ = make(self.session, loss, self.progress, self.log)
            try:
                metric.save(kept(found.key), found)
            except OSError as error:
                self.warning(f"loss.pixel: the surrogate could not be kept for other runs: {error}")
            return found

        return distributed.broadcast(made)


def decode_facts(session: Session) -> dict[str, Any]:
    """Of the state: how each pixel term decodes, and by which surrogate."""
    found: dict[str, Any] = {}
    for term in session.terms.terms:
        if isinstance(term.options, PixelOptions):
            found[term.name] = {"decode": term.options.decode, "corrected_share": term.options.corrected_share}
    return found


def digests(session: Session) -> dict[str, str]:
    """Term -> digest of the surrogate that it is estimated by."""
    return {term.name: session.surrogates[term.name].digest for term in session.terms.terms if term.estimate}


def cost_of_decoding(session: Session, loss: PixelLoss) -> float:
    """Operations of a step that decodes every row by size, as a multiple of one that decodes nothing: counted in one
    forward pass of the network and of the decoder."""
    network, (h, w) = _network(session)
    plan = plan_for(loss.options, loss.decoder, h, w)
    decoding = _decoder(session, loss, plan.view, h, w)
    return 1 + counted(loss.options) * DECODES * decoding / (_passes(session) * max(network, 1))


def counted(options: PixelOptions) -> float:
    """The share of pictures that a term decodes, by its probability and its noise levels."""
    return options.probability * (options.max_level - options.min_level)


def _passes(session: Session) -> float:
    """Forward passes of the network that a step of an adapter takes, recomputed or not."""
    return 3.0 if session.config.memory.gradient_checkpointing else 2.3


@torch.no_grad()
def _network(session: Session) -> tuple[int, tuple[int, int]]:
    """Operations of a forward pass for one picture, and the size of its latents."""
    batch, drawn = _step(session, 0, rows=1)
    with FlopCounterMode(display=False) as counter:
        forward(session.model, batch, drawn)
    h, w = batch.latents.shape[-2:]
    return counter.get_total_flops(), (h, w)


@torch.no_grad()
def _decoder(session: Session, loss: PixelLoss, view: Callable[..., Any], h: int, w: int) -> int:
    """Operations of decoding latents of that size by a plan's view."""
    z = torch.zeros(1, session.model.family.channels, h, w, device=session.model.device)
    with FlopCounterMode(display=False) as counter:
        view(loss.decoder, z, torch.full((1, 2), 0.5)).decode(z)
    return counter.get_total_flops()


def _step(session: Session, number: int, rows: int | None = None) -> tuple[Any, Any]:
    """A batch and a draw that no step of the run has."""
    batch = session.dataset.batch(number).to(session.model.device)
    session.model.adapter.train(False)
    drawn = session.model.system.draw(batch, session.config.run.seed + SEED, number)
    some = torch.arange(len(batch) if rows is None else min(rows, len(batch)))
    return batch.pick(some), drawn.pick(some)


@dataclass(frozen=True)
class Seconds:
    """What a surrogate was made from, and how long it took."""

    examples: int
    pictures: int
    decoding: float
    fitting: float

    def text(self) -> str:
        return (
            f"made from {self.examples} crops of {self.pictures} pictures, decoded in {self.decoding:.0f} s and fitted "
            f"in {self.fitting:.0f} s"
        )


def make(
    session: Session, loss: PixelLoss, progress: Progress, log: Callable[[str], None],
) -> tuple[Surrogate, Seconds]:  # fmt: skip
    """Decode crops of what the network gets wrong on the run's pictures, and fit a surrogate to them. Raises UserError
    for a single picture."""
    began, generator = time.monotonic(), torch.Generator().manual_seed(session.config.run.seed)
    collector, pictures = Collector(loss.decoder, []), dict[str, int]()
    wanted = examples_of(*_step(session, 0)[0].latents.shape[-2:])[0]

    def done() -> float:
        late = min((time.monotonic() - began) / SECONDS, collector.count / FEWEST)
        return max(collector.count / wanted, late)

    for at, _ in enumerate(metric.percents(progress, "decoding examples for the pixel surrogate", done)):
        batch, drawn = _step(session, at)
        for row in torch.arange(len(batch)).split(1):
            step = _forward(session, batch.pick(row), drawn.pick(row))
            predicted, true, _ = loss.latents(step)
            (top, bottom), (left, right) = _crop(true, generator)
            part = (..., slice(top, bottom), slice(left, right))
            number = pictures.setdefault(step.batch.keys[0], len(pictures))
            place = step.draw.level.double() / (1 if step.process.is_flow else step.process.steps)
            collector.add(predicted[part], true[part], place, torch.tensor([number % HELD == 1]))
    decoded = time.monotonic()
    try:
        made = metric.fit(collector.examples(), loss.decoder.factor, session.model.device, progress)
    except torch.cuda.OutOfMemoryError:  # the network holds the rest of the card
        made = metric.fit(collector.examples(), loss.decoder.factor, torch.device("cpu"), progress)
    made.key = key_of(session, loss.options)
    assert made.quality is not None
    seconds = Seconds(collector.count, len(pictures), decoded - began, time.monotonic() - decoded)
    log(f"pixel surrogate: {seconds.text()}; {made.quality.text()}")
    return made, seconds


@torch.no_grad()
def _forward(session: Session, batch: Any, drawn: Any) -> Step:
    return forward(session.model, batch, drawn)


def _crop(z: Tensor, generator: torch.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, bottom), (left, right) of a random crop of at most CROP cells a side."""

    def span(side: int) -> tuple[int, int]:
        size = min(CROP, side)
        start = int(torch.randint(side - size + 1, (1,), generator=generator))
        return start, start + size

    return span(z.shape[-2]), span(z.shape[-1])
