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
PAYS = 4
"""``auto`` makes a surrogate for a run that decodes this many times as many pictures as making it does."""
TYPICAL = 0.2
"""Residual energy that is assumed of a surrogate before it is made."""
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


def forecast(config: Config, options: PixelOptions, full: float) -> tuple[float, list[str]]:
    """What a pixel term will decode, before its run: the operations of a step as a multiple of one that decodes
    nothing, and a line for people. ``full``: the same, decoding all."""
    if options.decode not in ("auto", *PLANS):
        return full, []
    run = config.run
    rows = (run.steps or PAYS * EXAMPLES) * run.batch * run.accumulation
    kept = user_cache.known(NAME).get(_place(config, options))
    quality = metric.Quality(**kept) if kept else None
    automatic = options.decode == "auto"
    if automatic and (options.distance != "l2" or full <= metric.LIMIT or (not quality and rows < PAYS * EXAMPLES)):
        return full, []
    if quality and quality.cosine < metric.LOWEST:
        return full, [f"loss.pixel: decoding by size, as the autoencoder's surrogate has only {quality.text()}"]
    plan = "corrected" if automatic else options.decode
    share = options.corrected_share or metric.share_for(full, quality.residual if quality else TYPICAL)
    cost = metric.relative_cost(plan, full, share)
    how = f", {share:.1%} of the samples decoded" if plan == "corrected" else ", biased"
    known = f"its surrogate has {quality.text()}" if quality else "its surrogate is made at the start"
    return cost, [f"loss.pixel: {plan}{how}: {cost:.2f} times a latent step, decoding all {full:.2f}; {known}"]


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
        if automatic and found is None and not self._pays():
            return by_size
        full = cost_of_decoding(self.session, loss)
        if automatic and full <= metric.LIMIT:
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

    def _pays(self) -> bool:
        session = self.session
        return session.total * session.dataset.effective_batch >= PAYS * EXAMPLES

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


@torch.no_grad()
def cost_of_decoding(session: Session, loss: PixelLoss) -> float:
    """Operations of a step that decodes every row by size, as a multiple of one that decodes nothing: counted in one
    forward pass of the network and of the decoder. A step of an adapter takes 2.3 forward passes of the network, or 3
    with recomputation; a decoded row 3.5 of the decoder: target, prediction, and the gradient of that."""
    step = _step(session, 0, rows=1)
    with FlopCounterMode(display=False) as network:
        forward(session.model, step[0], step[1])
    z = step[0].latents
    plan = plan_for(loss.options, loss.decoder, *z.shape[-2:])
    with FlopCounterMode(display=False) as decoder:
        plan.view(loss.decoder, z, torch.full((1, 2), 0.5)).decode(z)
    passes = 3.0 if session.config.memory.gradient_checkpointing else 2.3
    counted = loss.options.probability * (loss.options.max_level - loss.options.min_level)
    return 1 + counted * 3.5 * decoder.get_total_flops() / (passes * max(network.get_total_flops(), 1))


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
    h, w = _step(session, 0)[0].latents.shape[-2:]
    wanted = EXAMPLES * CROP**2 // (min(CROP, h) * min(CROP, w))
    for at in progress(range(wanted), "decoding examples for the pixel surrogate", wanted):
        if collector.count >= wanted or (collector.count >= FEWEST and time.monotonic() - began > SECONDS):
            break
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
