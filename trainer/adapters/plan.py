"""Which modules get an adapter, of what rank and alpha, and at what learning rate: from options and sites alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError
from . import algebra, keys
from .mappings.mapping import key_mapping
from .names import DENOISER, Site, block_of
from .options import AdapterOptions, block_numbers, curve


@dataclass(frozen=True)
class Planned:
    """An adapter to come."""

    site: Site
    rank: int
    alpha: float
    lr: float = 1.0
    """Factor on the learning rate, of its block."""
    tensors: Mapping[str, Tensor] | None = None
    """What it starts from, where it continues a file."""


def plan(family: str, sites: Sequence[Site], options: AdapterOptions) -> list[Planned]:
    """The adapters of a fresh run. UserError for options that this model has no use for."""
    _refuse_foreign(family, options)
    rates = block_rates(family, options)
    depth = 1 + max((block_of(family, s.name) or 0 for s in sites if s.component == DENOISER), default=0)
    blocks = block_numbers(options.blocks, depth) if key_mapping(family).network == "mmdit" else None
    found = []
    for site in _chosen(sites, options):
        rank, alpha = _rank(family, site, options, blocks)
        lr = 1.0
        if rates and site.component == DENOISER:
            lr = rates[block_of(family, site.name) or 0]
        if rank and lr:
            found.append(Planned(site, rank, alpha or rank, lr))
    if not found:
        raise UserError("adapter: the options leave no module to train; check targets, blocks and ranks of 0")
    return found


def _chosen(sites: Sequence[Site], options: AdapterOptions) -> list[Site]:
    text = [site for site in sites if site.component != DENOISER and site.role == "text"]
    body = [site for site in sites if site.component == DENOISER]
    if options.targets is None:
        with_conv = options.conv_rank is not None or options.conv_block_ranks is not None
        chosen = keys.default_targets(body, with_conv)
        return [*text, *chosen, *([s for s in body if _embedder(s) is not None] if options.embedder_ranks else [])]
    chosen = [s for s in body if any(re.search(p, path) for p in options.targets for path in s.paths)]
    for pattern in options.targets:
        if body and not any(re.search(pattern, path) for s in chosen for path in s.paths):
            raise UserError(f"adapter.targets: nothing in the model has '{pattern}' in its name; see diffusers' names")
    return [*text, *chosen]


def _rank(family: str, site: Site, o: AdapterOptions, blocks: set[int] | None) -> tuple[int, float | None]:
    """Rank and alpha of a site (alpha None or 0: its rank), as Kohya's tools decide them; rank 0 leaves it out."""
    if site.component != DENOISER:
        return o.rank, o.alpha
    conv_rank, conv_alpha = (o.conv_rank, o.conv_alpha) if o.conv_rank else (o.rank, o.alpha)
    if key_mapping(family).network == "mmdit":
        embedder = _embedder(site)
        if embedder is not None:
            return (o.embedder_ranks[embedder] if o.embedder_ranks else o.rank), o.alpha
        if blocks is not None and block_of(family, site.name) not in blocks:
            return 0, None
        own = _part_rank(site, o)
        return (o.rank if own is None else own), o.alpha
    block = block_of(family, site.name) or 0
    if site.is_kxk:
        rank = o.conv_block_ranks[block] if o.conv_block_ranks else conv_rank
        return rank, o.conv_block_alphas[block] if o.conv_block_alphas else conv_alpha
    rank = o.block_ranks[block] if o.block_ranks else o.rank
    return rank, o.block_alphas[block] if o.block_alphas else o.alpha


def _part_rank(site: Site, o: AdapterOptions) -> int | None:
    side = "context" if "_context_block_" in site.name else "x"
    part = next((p for p in ("attn", "mlp", "adaLN_modulation") if p in site.name), None)
    return getattr(o, f"{side}_{'mod' if part == 'adaLN_modulation' else part}_rank") if part else None


_EMBEDDERS = ("_context_embedder", "_t_embedder_", "_x_embedder_", "_y_embedder_", "_adaLN_modulation", "_linear")


def _embedder(site: Site) -> int | None:
    """The place in Kohya's emb_dims of an SD3 module outside the blocks."""
    if site.role != "rest" or not re.match(r"lora_unet_(final_layer|\w*embedder)", site.name):
        return None
    return next((i for i, mark in enumerate(_EMBEDDERS) if mark in site.name), None)


def block_rates(family: str, options: AdapterOptions) -> list[float] | None:
    """Kohya's factor per block on the learning rate."""
    if options.down_lr is None and options.mid_lr is None and options.up_lr is None:
        return None
    side, middle, ends = key_mapping(family).rates
    low = options.lr_zero_threshold
    rates = [
        *curve(options.down_lr, side, low, "down_lr"),
        *curve(options.mid_lr, middle, low, "mid_lr"),
        *curve(options.up_lr, side, low, "up_lr"),
    ]
    return [1.0, *rates, 1.0] if ends else rates


def _refuse_foreign(family: str, options: AdapterOptions) -> None:
    """Options of another family are mistakes."""
    lists = ("block_ranks", "block_alphas", "conv_block_ranks", "conv_block_alphas")
    of_unet = (*lists, "down_lr", "mid_lr", "up_lr", "conv_rank")
    sides = [f"{side}_{part}_rank" for side in ("context", "x") for part in ("attn", "mlp", "mod")]
    of_sd3 = (*sides, "embedder_ranks")
    is_sd3 = key_mapping(family).network == "mmdit"
    for name in of_unet if is_sd3 else of_sd3:
        if getattr(options, name) is not None:
            there = "the U-Nets of SD1.5, SD2 and SDXL" if is_sd3 else "SD3"
            raise UserError(f"adapter.{name}: it is for {there}; leave it out for {family}")
    if not is_sd3 and options.blocks != "all":
        raise UserError(f"adapter.blocks: it is for SD3; use block_ranks for {family}")
    for name in lists:
        given, count = getattr(options, name), key_mapping(family).block_list
        if given is not None and len(given) != count:
            raise UserError(f"adapter.{name}: it has {len(given)} numbers; {family} has {count} blocks")


def continued(
    planned: Sequence[Planned], tensors: Mapping[str, Tensor], sites: Sequence[Site], path: str
) -> tuple[list[Planned], list[str]]:
    """The plan of a run that goes on from a file (by Kohya's names): its modules with their ranks and alphas; notes.

    UserError for a file that does not fit the model.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, tensor = key.partition(".")
        modules.setdefault(name, {})[tensor] = value
    by_name = {site.name: site for site in sites}
    wanted = {p.site.name: p for p in planned}
    strange = [name for name in modules if name not in by_name]
    mine = {site.component for site in sites}
    left_out = [name for name in strange if (m := re.match(r"lora_(unet|te\d?)_", name)) and m[1] not in mine]
    strange = [name for name in strange if name not in left_out]
    if strange:
        raise UserError(f"{path}: the model has no module for '{strange[0]}' and {len(strange) - 1} more; "
                         "the file is for another model")  # fmt: skip
    found, notes, plain = [], [], 0
    for name, module in modules.items():
        if name in left_out:
            continue
        module, was_tucker = algebra.as_plain(module)
        plain += was_tucker
        site = by_name[name]
        rank = algebra.rank_of(module) or (wanted[name].rank if name in wanted else 1)
        lr = wanted[name].lr if name in wanted else 1.0
        found.append(Planned(site, rank, algebra.alpha_of(module) or rank, lr, module))
    new = [p for name, p in wanted.items() if name not in modules]
    if left_out:
        notes.append(f"{path}: {len(left_out)} modules are of parts that are not trained here and are left out "
                     "(adapter.text_encoders, adapter.denoiser)")  # fmt: skip
    if new:
        notes.append(f"{path}: it has no adapter for {len(new)} modules; they start fresh")
    if plain:
        notes.append(f"{path}: {plain} convolutions with a kernel of their own (Tucker) become plain ones; same effect")
    if not found:
        raise UserError(f"{path}: it holds nothing for what is trained here; check adapter.text_encoders")
    return [*found, *new], notes
