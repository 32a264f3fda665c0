"""Adapters at another rank, and several as one: by singular values, with what is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from . import algebra
from .names import kernel

Modules = dict[str, dict[str, Tensor]]
"""By Kohya's names: module -> tensor -> value."""
Parts = Mapping[str, Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]]
"""The same, or the tensors of q, k and v where no single adapter stands for them."""


def resize(modules: Parts, rank: int, family: str) -> tuple[Modules, float]:
    """Every module as a LoRA (or DoRA) of ``rank`` with the nearest effect, by singular values; and the share lost.

    The loss is |difference| / |effect| (Frobenius) over all modules. A larger rank is exact. A module whose weight is
    narrower than ``rank`` gets the rank that it can have; differences of biases and norms stay.
    """
    found: Modules = {}
    lost = total = 0.0
    for name, module in modules.items():
        whole = _as_one(module)
        _check_finite(name, whole)
        if algebra.method(whole) is None:
            found[name] = dict(whole)
            continue
        found[name], gone, size = _resized(whole, rank, kernel(family, name))
        lost, total = lost + gone**2, total + size**2
    return found, math.sqrt(lost / total) if total else 0.0


def _as_one(module: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """One module; of q, k and v their whole difference."""
    if isinstance(module, Mapping):
        return module
    if any("dora_scale" in part for part in module):
        raise UserError(
            "q, k and v have magnitudes of their own, which no single module can stand for; use the file as it is"
        )
    whole = {"diff": torch.cat([algebra.delta(part) for part in module])}
    biases = [part["diff_b"] for part in module if "diff_b" in part]
    return {**whole, "diff_b": torch.cat(biases)} if len(biases) == len(module) else whole


def _check_finite(name: str, module: Mapping[str, Tensor]) -> None:
    if not all(algebra.finite(tensor) for tensor in module.values()):
        raise UserError(f"{name}: it holds NaN or infinite values, so nothing is near to it; give a sound file")


def _check_range(name: str, module: Mapping[str, Tensor]) -> None:
    """UserError for a sum with values beyond the range of its type."""
    if not all(algebra.finite(tensor) for tensor in module.values()):
        raise UserError(f"merge: {name} grows larger than its type of number holds; give smaller weights")


def _check_alike(name: str, shapes: Sequence[object]) -> None:
    """UserError where files are for weights of different shapes."""
    if len(set(shapes)) > 1:
        raise UserError(f"merge: {name} is for weights of different shapes in these files; choose files for one model")


def _resized(
    module: Mapping[str, Tensor], rank: int, window: tuple[int, ...]
) -> tuple[dict[str, Tensor], float, float]:
    """(the module at ``rank``, the norm of what is lost, that of its effect); ``window`` is a convolution's kernel."""
    module, _ = algebra.as_plain(module)
    keep = {name: module[name] for name in algebra.BESIDE if name in module}
    if "lora_up.weight" not in module:
        return _from_delta(_shaped(algebra.delta(module), window), rank, _dtype(module), keep)
    up, down = module["lora_up.weight"], module["lora_down.weight"]
    scale, old = algebra.scale_of(module), down.shape[0]
    left, right = torch.linalg.qr(up.flatten(1).double()), torch.linalg.qr(down.flatten(1).double().T)
    u, s, v = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    size = abs(scale) * float(s.norm())
    if rank == old:
        return dict(module), 0.0, size
    if rank > old:
        more = down.new_empty(rank - old, *down.shape[1:])
        torch.nn.init.kaiming_uniform_(more, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
        padded = torch.cat([up, up.new_zeros(up.shape[0], rank - old, *up.shape[2:])], 1)
        made = {"lora_down.weight": torch.cat([down, more]), "lora_up.weight": padded}
        return {**made, "alpha": torch.tensor(scale * rank), **keep}, 0.0, size
    root = s[:rank].sqrt()
    new_up = (left.Q @ u[:, : len(root)] * root).reshape(up.shape[0], len(root), *up.shape[2:])
    new_down = (root[:, None] * v[: len(root)] @ right.Q.T).reshape(len(root), *down.shape[1:])
    made = {"lora_down.weight": new_down.to(down.dtype), "lora_up.weight": new_up.to(up.dtype)}
    made["alpha"] = torch.tensor(scale * len(root))  # fewer than rank where the weight is narrower
    return {**made, **keep}, _apart(module, made), size


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The norm of the difference of two LoRAs' effects on one weight, rounding included."""
    ups = [m["lora_up.weight"].flatten(1).double() * algebra.scale_of(m) for m in (one, other)]
    downs = [m["lora_down.weight"].flatten(1).double() for m in (one, other)]
    left, right = torch.cat([ups[0], -ups[1]], 1), torch.cat(downs)
    return float((torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T).norm())


def _from_delta(
    delta: Tensor, rank: int, dtype: torch.dtype, keep: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float, float]:
    """A LoRA of ``rank`` near a difference; (tensors, what is lost, its size)."""
    flat = delta.flatten(1).float()
    count = min(rank, *flat.shape)
    u, s, v = torch.svd_lowrank(flat, q=min(count + 8, *flat.shape), niter=6)
    root = s[:count].sqrt()
    up, down = u[:, :count] * root, (v[:, :count] * root).T
    up, down = up.to(dtype), down.to(dtype)
    gone = float((flat - up.float() @ down.float()).norm())
    if count < rank:
        up = torch.cat([up, up.new_zeros(len(up), rank - count)], 1)
        down = torch.cat([down, down.new_zeros(rank - count, down.shape[1])])
    ones = (1,) * (delta.dim() - 2)
    made = {
        "lora_down.weight": down.reshape(rank, *delta.shape[1:]),
        "lora_up.weight": up.reshape(len(up), rank, *ones),
        "alpha": torch.tensor(float(rank)),
    }
    return {**made, **keep}, gone, float(flat.norm())


def join(parts: Sequence[tuple[Parts, float]], rank: int | None, family: str) -> tuple[Modules, float]:
    """The weighted sum of adapters as one LoRA, cut to ``rank`` if given; and the share lost.

    LoHa and LoKr need a rank; whole differences of a weight are added without one where nothing else is in the module.
    """
    names = list(dict.fromkeys(name for modules, _ in parts for name in modules))
    joined: Modules = {}
    lost = total = 0.0
    for name in names:
        mine = [(algebra.as_plain(_as_one(modules[name]))[0], w) for modules, w in parts if name in modules]
        for module, _ in mine:
            _check_finite(name, module)
        dtype = _dtype(mine[0][0])
        made: dict[str, Tensor] = {}
        kinds = {kind for module, _ in mine if (kind := algebra.method(module))}
        weights = [(module, w) for module, w in mine if algebra.method(module)]
        if kinds == {"lora"}:
            ups = [m["lora_up.weight"].float() * (w * algebra.scale_of(m)) for m, w in weights]
            downs = [m["lora_down.weight"].float() for m, _ in weights]
            if any(one.shape != downs[0].shape for one in downs):  # a convolution of 1x1 is written flat, too
                ups, downs = [one.flatten(1) for one in ups], [one.flatten(1) for one in downs]
            _check_alike(name, [(one.shape[0], two.shape[1:]) for one, two in zip(ups, downs)])
            whole = {"lora_up.weight": torch.cat(ups, 1), "lora_down.weight": torch.cat(downs)}
            whole["alpha"] = torch.tensor(float(whole["lora_down.weight"].shape[0]))
            _check_range(name, whole)
            made, gone, size = _resized(whole, rank or whole["lora_down.weight"].shape[0], ())
            made = {key: value if key == "alpha" else value.to(dtype) for key, value in made.items()}
            gone = _apart(whole, made)
        elif kinds:
            window = kernel(family, name)
            deltas = [_shaped(algebra.delta(m), window) * w for m, w in weights]
            _check_alike(name, [one.shape for one in deltas])
            whole = {"diff": torch.stack(deltas).sum(0)}
            _check_range(name, whole)
            if rank is None:
                made, gone, size = {"diff": whole["diff"].to(dtype)}, 0.0, float(whole["diff"].norm())
            else:
                made, gone, size = _from_delta(whole["diff"], rank, dtype, {})
        else:
            gone = size = 0.0
        for part in (*algebra.SUMS, *(() if kinds else ("diff",))):
            if some := [m[part].float() * w for m, w in mine if part in m]:
                _check_alike(name, [one.shape for one in some])
                made[part] = torch.stack(some).sum(0).to(dtype)
        _check_range(name, made)
        joined[name] = made
        lost, total = lost + gone**2, total + size**2
    return joined, math.sqrt(lost / total) if total else 0.0


def _shaped(delta: Tensor, window: tuple[int, ...]) -> Tensor:
    """A difference as its weight is shaped; as it is where it has no room for the kernel."""
    if delta.flatten(1).shape[1] % math.prod(window):
        return delta
    return delta.reshape(delta.shape[0], -1, *window)


def _dtype(module: Mapping[str, Tensor]) -> torch.dtype:
    return next(value.dtype for name, value in module.items() if name != "alpha")
