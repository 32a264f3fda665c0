"""How the adapter files of a family name its modules, and what their headers call it: a ``KeyMapping`` per family.

Standard library only: ComfyUI nodes import this.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import UserError

Shape = tuple[int, ...]
Role = Literal["attention", "resnet", "rest", "text"]
Widths = Mapping[str, int | None]
"""Denoiser path of an adapted module -> the columns of its weight; None where the adapter's tensors do not tell."""


@dataclass(frozen=True)
class KeyMapping:
    """What adapter files of one family are called, and are recognized by. The tables are those of sd-scripts."""

    family: str
    network: Literal["unet", "mmdit"]
    """Which of Kohya's network options apply: ranks and rates by block (U-Net), or by part of a block (MMDiT)."""
    encoders: Mapping[str, str]
    """The text encoders by Kohya's names (``te``, or ``te1``, ``te2``, ``te3``), and their common names."""
    to_file: Callable[[str, int], tuple[str, int | None]]
    """(diffusers path of a denoiser module, layers_per_block) -> the dotted path in files, and which third of a fused
    q, k, v it is (None: not fused)."""
    to_model: Callable[[str], tuple[str, ...]]
    """The inverse for full-size models: one diffusers path, or those of q, k and v."""
    role: Callable[[str], Role]
    """Diffusers path -> which of Kohya's module classes it lies in."""
    kernel: Callable[[str], Shape]
    """Dotted path in files -> kernel of the convolution in a full-size model; () for a Linear."""
    block_of: Callable[[str], int | None]
    """Name in files -> Kohya's block number; None outside the blocks of a family without block lists."""
    fits: Callable[[Widths, str | None], bool | None]
    """Whether a file that adapts these modules is this family's, given the family that its header names; None where
    the modules do not tell."""
    base_version: str
    """``ss_base_model_version``."""
    architecture: str
    """``modelspec.architecture`` without ``/lora``."""
    marks: tuple[str, ...] = ()
    """Beginnings of either in the headers of other tools."""
    resolution: int = 1024
    """``modelspec.resolution``, pixels per side."""
    for_v: Mapping[str, str | int] | None = None
    """What replaces ``base_version``, ``architecture`` and ``resolution`` for a model of v-prediction."""
    implementation: str = "diffusers"
    """``modelspec.implementation``."""
    network_module: str = "networks.lora"
    """``ss_network_module`` of a plain LoRA."""
    diffusers_loader: str | None = None
    """The class of ``diffusers.loaders.lora_pipeline`` that reads a plain LoRA of a U-Net."""
    is_v2: bool = False
    """``ss_v2``."""
    is_flow: bool = False
    """Whether models predict a flow, which ``modelspec.prediction_type`` has no word for."""
    lone_encoder: str | None = None
    """The text encoder by which a file that adapts text encoders only is taken for this family's."""
    block_list: int | None = None
    """Entries of Kohya's lists by block; None where there are none."""
    rates: tuple[int, int, bool] = (12, 1, False)
    """Entries of Kohya's lists of rates: per side, in the middle, and whether one is added at either end."""
    is_swapped: Callable[[str, Shape], bool] = lambda path, shape: False
    """(diffusers path, weight shape) -> whether the model has the halves of ``out`` (scale, shift) the other way round
    than the file."""

    beginnings: tuple[str, ...] = ()
    """What paths of its denoiser begin with, beside those that ``keys`` knows."""
    compounds: tuple[str, ...] = ()
    """Names of its modules that hold an underscore themselves, beside those that ``names`` knows."""

    @property
    def denoiser(self) -> Literal["unet", "transformer"]:
        """diffusers' name of the denoiser."""
        return "unet" if self.network == "unet" else "transformer"

    def entry(self, name: Literal["base_version", "architecture", "resolution"], is_v: bool) -> str | int:
        """A header's entry for a model that predicts v, or does not."""
        plain: str | int = getattr(self, name)
        return (self.for_v or {}).get(name, plain) if is_v else plain


_mappings: dict[str, KeyMapping] = {}
_loaded: set[str] = set()


def register(*mappings: KeyMapping) -> None:
    """Make families known to adapter files; each module of this folder calls it, and one outside may."""
    for one in mappings:
        assert one.family not in _mappings, f"the key mapping of {one.family} is registered twice"
        _mappings[one.family] = one


def known() -> dict[str, KeyMapping]:
    """Family -> key mapping, of all that are registered."""
    if not _loaded:
        _loaded.add(__package__ or "")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
            importlib.import_module(f"{__package__}.{module.name}")
    return _mappings


def key_mapping(family: str) -> KeyMapping:
    """The key mapping of a family. UserError for one that has none."""
    if family not in known():
        raise UserError(f"adapter: no key mapping is known for '{family}'; there is: {', '.join(known())}")
    return known()[family]


def named_in(metadata: Mapping[str, str]) -> str | None:
    """The family that a header names."""
    base, architecture = metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")
    exact = next((one.family for one in known().values() if one.base_version == base), None)
    return exact or next(
        (one.family for text in (base, architecture) for one in known().values() if text.startswith(one.marks)), None
    )
