"""[save], readable without torch."""

from __future__ import annotations

from typing import Literal

from ..registry import Options, PathStr, option


class SaveOptions(Options):
    every: int = option(0, kohya="save_every_n_steps", label="Save every (steps)", ge=0)
    """Steps between adapter files, ``<name>-step00000100.safetensors``; 0 keeps only the final one."""
    every_epochs: int = option(0, kohya="save_every_n_epochs", label="Save every (epochs)", ge=0)
    """Epochs between adapter files, ``<name>-000001.safetensors``."""
    times: int = option(0, kohya="save_n_epoch_ratio", label="Number of files (about)", ge=0)
    """Save at the ends of epochs, about this often over the run, instead of ``every_epochs``."""
    keep_last: int = option(0, label="Keep at most N step checkpoints", ge=0)
    """Keep this many of the latest adapter files of steps and delete older ones; 0 keeps all."""
    keep_last_steps: int = option(0, kohya="save_last_n_steps", label="Keep checkpoints of the last N steps", ge=0)
    """Delete adapter files of steps that are more steps old than this; 0 keeps all."""
    keep_last_epochs: int = option(0, kohya="save_last_n_epochs", label="Keep at most N epoch checkpoints", ge=0)
    """Keep this many of the latest adapter files of epochs and delete older ones; 0 keeps all."""
    state_every: int = option(250, label="State every (steps)", ge=0)
    """Steps between rolling states for ``--resume``; 0 keeps one only when the run ends or is stopped."""
    state_with_files: bool = option(False, kohya="save_state", label="State with every file")
    """Keep a state with every adapter file too."""
    keep_states: int = option(2, kohya="save_last_n_epochs_state", label="Keep at most N states", ge=0)
    """Keep this many of the latest states and delete older ones; 0 keeps all."""
    keep_states_steps: int = option(0, kohya="save_last_n_steps_state", label="Keep states of the last N steps", ge=0)
    """Delete states that are more steps old than this; 0 goes by ``keep_states`` alone."""
    ema: float = option(0.0, label="Moving average of the weights (EMA)", ge=0, lt=1)
    """Also keep a moving average of the weights with this decay, 0.99 to 0.9999, and save it beside every adapter file
    as NAME-ema.safetensors; 0 is off. Previews and validation show the trained adapter, not the average."""
    precision: Literal["fp16", "bf16", "fp32"] = option("fp16", kohya="save_precision", label="Saved as")
    """Of the adapter file's tensors."""
    strip: bool = option(False, label="Strip tags and folder names")
    """Keep captions' tags and folder names out of the file's metadata: they tell what was trained on."""
    minimal: bool = option(False, kohya="no_metadata", label="Minimal metadata")
    """Write only what loaders need: the base model's kind, the adapter's kind, rank and alpha, hashes and title."""
    title: str | None = option(None, kohya="metadata_title")
    """Title in the file's metadata; the run's name when not given."""
    author: str | None = option(None, kohya="metadata_author")
    """Author in the file's metadata."""
    description: str | None = option(None, kohya="metadata_description")
    """Description in the file's metadata."""
    license: str | None = option(None, kohya="metadata_license")
    """Licence in the file's metadata."""
    tags: str | None = option(None, kohya="metadata_tags")
    """Tags in the file's metadata, separated by commas."""
    trigger: str | None = option(None, kohya="metadata_trigger_phrase", label="Trigger words")
    """Trigger words in the file's metadata: loaders show them."""
    comment: str | None = option(None, kohya="training_comment")
    """A comment in the file's metadata."""
    usage_hint: str | None = option(None, kohya="metadata_usage_hint")
    """How to use the adapter, in the file's metadata."""
    thumbnail: PathStr | None = option(None, kohya="metadata_thumbnail", label="Thumbnail")
    """A picture in the file's metadata: the path of a small JPEG, PNG or WebP, or a data URL."""
    merged_from: str | None = option(None, kohya="metadata_merged_from")
    """What it was merged from, in the file's metadata."""
    preprocessor: str | None = option(None, kohya="metadata_preprocessor")
    """The preprocessor its input needs, in the file's metadata."""
    is_negative_embedding: str | None = option(None, kohya="metadata_is_negative_embedding")
    """Whether it is for negative prompts, in the file's metadata."""
