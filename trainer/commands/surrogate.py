"""``surrogate``: make and measure the learned pixel metric of an autoencoder, by hand."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import UserError
from ..losses import surrogate as metric
from ..losses.options import PixelOptions
from ..losses.pixel import PixelLoss
from ..runs.files import check_target
from ..training import surrogates
from ..training.build import build_session
from ..training.progress_writer import ProgressWriter

MODEL = (".safetensors", ".ckpt", ".pt", ".bin")


def is_model(path: str) -> bool:
    """Whether what is given is a model, not a configuration."""
    return Path(path).is_dir() or Path(path).suffix.lower() in MODEL


def surrogate(config: Config, output: str | None = None, force: bool = False) -> dict[str, Any]:
    """JSON-able: the surrogate for the configuration's model, pictures and pixel mode, kept for all runs; made anew
    with ``force`` or where none is kept. ``output``: a file for it beside that."""
    if output:
        check_target(output, force=force, name="--output")
    if "pixel" not in config.terms():
        config = config.changed({"loss.pixel.weight": "auto"})
    data = config.data.model_copy(update={"cache_dir": config.data.cache_dir or str(Path(config.run.out) / "cache")})
    with tempfile.TemporaryDirectory() as aside, ProgressWriter(Path(aside)) as writer:
        session = build_session(config.model_copy(update={"data": data}), writer.log, writer.progress)
        session.prepare(writer.progress)
        session.offload_encoders()
        (loss,) = (term.loss for term in session.terms.terms if isinstance(term.loss, PixelLoss))
        options = loss.options
        assert isinstance(options, PixelOptions)
        if not loss.decoder.by_parts:
            raise UserError("surrogate: it stands in for an AutoencoderKL's decoder; this model has none")
        key = surrogates.key_of(session, options)
        found, seconds = None if force else surrogates.known(key), None
        if found is None:
            found, seconds = surrogates.make(session, loss, writer.progress, lambda line: None)
            metric.save(surrogates.kept(key), found)
        full = surrogates.cost_of_decoding(session, loss)
    surrogates.remember(config, options, found)
    if output:
        metric.save(Path(output), found)
    assert found.quality is not None
    share = metric.share_for(full, found.quality.residual)
    return {
        "file": str(surrogates.kept(key)), "digest": found.digest, "mode": options.mode,
        "quality": asdict(found.quality),
        "used": found.quality.cosine >= metric.LOWEST, "lowest": metric.LOWEST, "made": seconds and asdict(seconds),
        "share": share, "cost": metric.relative_cost("corrected", full, share), "full": full,
    }  # fmt: skip


def lines(answer: dict[str, Any]) -> list[str]:
    """The answer for people."""
    quality = metric.Quality(**answer["quality"])
    made = answer["made"]
    return [
        f"mode {answer['mode']}: {quality.text()}",
        f"error of its gradient: {quality.residual:.0%} of the gradient's energy",
        surrogates.Seconds(**made).text() if made else "kept from before; --force makes it anew",
        f"corrected by decoding {answer['share']:.1%} of the samples, a step costs {answer['cost']:.2f} times a latent "
        f"one; decoding all, {answer['full']:.2f}"
        if answer["used"]
        else f"it is below a cosine of {answer['lowest']}, so runs decode by size instead",
        f"kept as {answer['file']}",
    ]
