"""Reference errors of fixed draws: one number per row and term, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..diffusion.process import widest
from ..diffusion.types import Batch, Draw
from ..losses.term import LossTerms, measures
from ..memory.quantize import quantized_as
from ..runs.files import write_atomic
from .model import Model
from .session import Session
from .step import Errors
from .surrogates import digests


class ReferenceCache:
    """The cache file is named by a digest of everything that the errors depend on."""

    def __init__(self, session: Session):
        config, model = session.config, session.model
        start = config.adapter.init_from if model.adapter.anchor == "start" else None
        depends = {
            "fingerprints": model.family.fingerprints,
            "process": model.process.digest,
            "dtype": str(model.dtype),
            "attention": model.attention,
            "weights": quantized_as(model.family.denoiser),
            "seed": config.run.seed,
            "draws": session.dataset.fixed_draws,
            "noise": config.noise.recorded_dump(),
            "start": hashlib.sha256(Path(start).read_bytes()).hexdigest() if start else "",
            "terms": {name: options.recorded_dump() for name, (options, _) in config.terms().items()},
            **({"surrogates": used} if (used := digests(session)) else {}),
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
        self.path = Path(config.run.out) / "cache" / "references" / f"{digest[:24]}.json"
        try:
            self._errors: dict[str, dict[str, float]] = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):  # there is none yet, or it is torn: computed again
            self._errors = {}
        self._changed = False

    def save(self) -> None:
        if self._changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self._errors))
            self._changed = False

    def get(self, model: Model, terms: LossTerms, batch: Batch, draw: Draw, compute: Callable[[], Errors]) -> Errors:
        """The errors of these rows, from the cache where all are known."""
        rows_of = zip(batch.rows.role, batch.keys, draw.on_host()[0].tolist(), strict=True)
        keys = [f"{role} {key} {level!r}" for role, key, level in rows_of]
        measured = measures(terms.terms, draw, model.process, batch.rows.role)
        places = {key: rows.nonzero().flatten().tolist() for key, _, rows in measured}
        if not all(name in self._errors.get(keys[row], {}) for name, rows in places.items() for row in rows):
            for name, errors in compute().items():
                for row, value in zip(places[name], errors.tolist(), strict=True):
                    self._errors.setdefault(keys[row], {})[name] = value
            self._changed = True
        return {
            name: torch.tensor(
                [self._errors[keys[row]][name] for row in rows], dtype=widest(model.device), device=model.device
            )
            for name, rows in places.items()
            if rows
        }
