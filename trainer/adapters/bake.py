"""Adapters added to the base model's own weights before training, so that a new one is learned on top of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import files
from .inject import as_lycoris, mount, read_start
from .layers import NAME
from .names import DENOISER, all_sites
from .options import AdapterOptions
from .plan import continued


def bake_all(model: Any, paths: Sequence[str], weights: Sequence[float]) -> list[str]:
    """Add adapter files to a loaded model (a ``Family``), each times its weight, or 1; notes. Its fingerprints tell of
    them, so that nothing that was kept of the bare model is taken for its own."""
    notes = []
    for path, weight in zip_longest(paths, weights, fillvalue=1.0):
        notes += bake(model.denoiser, model.text_encoders, model.name, str(path), float(weight))
        model.added += f" + {weight:g} {hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()}"
    return notes


@torch.no_grad()
def bake(
    denoiser: nn.Module, text_encoders: Mapping[str, nn.Module], family: str, path: str, weight: float = 1.0
) -> list[str]:
    """Add ``weight`` times an adapter file to the model's weights, which must not be quantised yet; notes.

    Modules of encoders that are not loaded are left out, and noted. UserError for a file that does not fit.
    """
    modules = {DENOISER: denoiser, **text_encoders}
    tensors, kind, notes, for_comfyui = read_start(AdapterOptions(init_from=path), family)
    planned, more = continued([], tensors, all_sites(family, modules), path)
    mounted = mount(modules, planned, kind, AdapterOptions(), NAME)
    for one in mounted:
        assert one.plan.tensors is not None
        with files.naming(path):
            one.install(one.plan.tensors)
        if for_comfyui:
            as_lycoris(one)
        for layer in one.layers:
            layer.scaling[NAME] *= weight
            layer.merge(adapter_names=[NAME])
        for where in one.plan.site.paths:
            parent, _, name = where.rpartition(".")
            owner: Any = modules[one.component].get_submodule(parent)
            setattr(owner, name, getattr(owner, name).get_base_layer())
    for module in modules.values():
        if hasattr(module, "peft_config"):
            del module.peft_config
    return [*notes, *more, f"{Path(path).name}: {len(mounted)} modules are added to the base model, times {weight:g}"]
