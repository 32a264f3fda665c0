"""[validation]: the loss on held-out pictures at fixed levels and fixed noise, so that two steps can be compared."""

from __future__ import annotations

from ..registry import Options, option


class ValidationOptions(Options):
    every: int = option(0, kohya="validate_every_n_steps", label="Validate every", ge=0)
    """Steps between validations; 0 validates only at the end. Needs ``data.validation_split`` above 0."""
    every_epochs: int = option(0, kohya="validate_every_n_epochs", label="Validate every (epochs)", ge=0)
    """Epochs between validations, instead of ``every``."""
    levels: int = option(4, label="Noise levels", ge=1, le=100)
    """How many noise levels, evenly spaced over the schedule, each held-out picture is tried at."""
    seed: int = option(0, kohya="validation_seed", label="Validation seed", ge=0)
    """Seed of the fixed noise."""
    max_batches: int | None = option(None, kohya="max_validation_steps", label="At most N batches", ge=1)
    """Stop after this many batches; all of them when not given."""
