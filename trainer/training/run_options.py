"""[run]: the options of one training run, and its length in steps."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from ..errors import UserError
from ..registry import Options, PathStr, option
from ..runs.folder import safe_name

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp64"]


class RunOptions(Options):
    name: str = option("last", kohya="output_name", label="Name")
    """What the run's folder and its adapter file are called."""
    out: PathStr = option("runs", kohya="output_dir", label="Output folder")
    """The folder that holds the runs."""
    seed: int = option(0, kohya="seed", label="Seed", ge=0, lt=2**63)
    """All randomness follows from it: the same seed gives the same noise, data order and previews."""
    steps: int | None = option(None, kohya="max_train_steps", label="Steps", ge=1)
    """How often the adapter is changed. Without ``steps`` and ``epochs``: 1000."""
    epochs: int | None = option(None, kohya="max_train_epochs", label="Epochs", ge=1)
    """Instead of ``steps``: how often all pictures are seen."""
    batch: int = option(1, kohya="train_batch_size", label="Batch size", ge=1)
    """Pictures (or pairs) on the GPU at a time."""
    accumulation: int = option(1, kohya="gradient_accumulation_steps", label="Gradient accumulation", ge=1)
    """Micro-batches per optimizer step: the effective batch is batch x accumulation x processes, of one bucket."""
    precision: Precision = option("auto", kohya="mixed_precision", label="Precision")
    """Of the frozen weights and the arithmetic; the adapter stays in fp32. ``auto``: bf16 where the GPU has it, fp16
    on older ones, fp32 on a CPU. ``fp64`` is for comparing runs exactly."""
    full_bf16: bool = option(False, kohya="full_bf16", label="Adapter in bf16", formerly="full")
    """Keep the adapter in bf16 too (only with precision bf16): less memory, rougher updates."""
    device: str = option("auto", label="Device")
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    resume_from: PathStr | None = option(None, kohya="resume", label="Resume from a state")
    """A state file of Pixelkiln, or the folder of a run: adapter, optimizer and step are taken from there. ``--resume``
    continues from this run's own."""
    log_dir: PathStr | None = option(None, kohya="logging_dir", label="TensorBoard folder")
    """Where TensorBoard's curves go, in a folder named after the time; in the run's own folder when not given."""
    log_prefix: str = option("", kohya="log_prefix", label="TensorBoard prefix")
    """What the name of that folder begins with."""
    kohya_strict: bool = option(False, kohya="kohya_strict", label="Kohya's numbers")
    """Reproduce sd-scripts' numbers where Pixelkiln differs: loss weights from the noise schedule before zero terminal
    SNR is put on it, SD3's timesteps rounded down, epochs counted over micro-batches of all buckets."""

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        try:
            return safe_name(name)
        except UserError as error:
            raise UserError(str(error).removeprefix("name: ")) from None

    @model_validator(mode="after")
    def _agree(self) -> RunOptions:
        if self.steps and self.epochs:
            raise UserError("steps and epochs are both given; keep one of them")
        if self.full_bf16 and self.precision not in ("bf16", "auto"):
            raise UserError(
                f"full_bf16 needs precision bf16, not {self.precision}; set precision = 'bf16' or full_bf16 = false"
            )
        return self


def total_steps(options: RunOptions, steps_per_epoch: int, batches_per_epoch: int) -> int:
    """Optimizer steps of the run. An effective batch is of one bucket here; sd-scripts accumulates over batches as they
    come."""
    if options.kohya_strict:
        steps_per_epoch = -(-batches_per_epoch // options.accumulation)
    return options.epochs * steps_per_epoch if options.epochs else options.steps or 1000


def epochs(total: int, steps_per_epoch: int) -> int:
    """Passes over the data in ``total`` steps, the last one perhaps partial."""
    return -(-total // steps_per_epoch)
