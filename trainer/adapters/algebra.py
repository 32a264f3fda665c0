"""The arithmetic of one module's tensors, by Kohya's and LyCORIS's tensor names, without any layer. Torch only.

``tensors`` is what stands behind a module's name in a file: ``lora_down.weight``, ``hada_w1_a``, ``alpha``, ...
LoRA: arXiv:2106.09685; DoRA: 2402.09353; LoHa: 2108.06098 and LyCORIS 2309.14859; LoKr: 2212.10650, 2309.14859.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError

Tensors = Mapping[str, Tensor]
Shape = tuple[int, ...]

OUT_ROWS = (
    "lora_up.weight", "dora_scale", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "diff", "diff_b", "set_weight",
)  # fmt: skip
"""Tensors whose rows follow the rows of the weight (for LoKr: in whole blocks)."""
SUMS = ("diff_b", "w_norm", "b_norm")
"""Differences of a bias or of a norm's weight and bias."""
BESIDE = ("dora_scale", *SUMS, "set_weight", "reshape_weight")
"""Tensors that are no part of ``delta``."""


FLOATS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
"""The types of number that adapters are made of; alphas may be whole numbers."""


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """LoKr's split of a width into (smaller, larger); ``factor`` is the first where it divides, or the most it may be.

    The same numbers as PEFT's.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    most = factor if factor > 0 else dimension
    small = max(n for n in range(1, math.isqrt(dimension) + 1) if dimension % n == 0 and n <= most)
    return small, dimension // small


def shapes(
    kind: str, shape: Shape, rank: int, parts: int = 1, factor: int = -1, decompose_both: bool = False
) -> dict[str, Shape]:
    """Tensor name -> shape of an adapter on a weight of ``shape``; ``parts`` counts q, k, v of a fused weight."""
    out, width, *kernel = shape
    ones = (1,) * len(kernel)
    flat = width * math.prod(kernel)
    found: dict[str, Shape] = {"alpha": ()}
    if kind in ("lora", "dora"):
        found["lora_down.weight"] = (rank, width, *kernel)
        found["lora_up.weight"] = (out, rank, *ones)
        if kind == "dora":
            found["dora_scale"] = (out, 1, *ones)
    elif kind == "loha":
        for name in ("hada_w1", "hada_w2"):
            found[f"{name}_a"], found[f"{name}_b"] = (out, rank), (rank, flat)
    else:
        (small_out, large_out), (small_in, large_in) = factorization(out // parts, factor), factorization(width, factor)
        if decompose_both and rank < max(small_out, small_in) / 2:
            found["lokr_w1_a"], found["lokr_w1_b"] = (parts * small_out, rank), (rank, small_in)
        else:
            found["lokr_w1"] = (parts * small_out, small_in)
        if rank < max(large_out, large_in) / 2:
            found["lokr_w2_a"], found["lokr_w2_b"] = (large_out, rank), (rank, large_in * math.prod(kernel))
        else:
            found["lokr_w2"] = (large_out, large_in, *kernel)
    return found


def rank_of(tensors: Mapping[str, Tensor | Shape]) -> int | None:
    """The rank; None where there is none (a LoKr of two whole matrices, a full difference). Tensors or their shapes."""
    for name, axis in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if name in tensors:
            value = tensors[name]
            size = tuple(value.shape if isinstance(value, Tensor) else value)
            return size[axis] if len(size) > axis else None
    return None


def alpha_of(tensors: Tensors) -> float | None:
    """The alpha, whatever its type (Kohya writes int64 ones); its rank where it is missing: scale 1."""
    if "alpha" in tensors:
        return float(tensors["alpha"])
    rank = rank_of(tensors)
    return None if rank is None else float(rank)


def scale_of(tensors: Tensors) -> float:
    """alpha / rank; 1 where there is no rank."""
    rank, alpha = rank_of(tensors), alpha_of(tensors)
    return 1.0 if rank is None or alpha is None else alpha / rank


def delta(tensors: Tensors, shape: Shape | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The scaled difference that is added to the weight, as [out, in, ...] of ``shape`` or of its natural shape.

    DoRA's magnitude is left out: W' = dora_scale (W + delta) / |W + delta| per row of ``out``.
    """
    t = {name: value.to(dtype) for name, value in tensors.items()}
    if "lora_up.weight" in t:
        up, down = t["lora_up.weight"].flatten(1), t["lora_down.weight"]
        if "lora_mid.weight" in t:  # Tucker: down and up are 1x1, the kernel is in the middle
            found = torch.einsum("ij...,pi,jr->pr...", t["lora_mid.weight"], up, down.flatten(1))
        else:
            found = (up @ down.flatten(1)).reshape(-1, *down.shape[1:])
    elif "hada_w1_a" in t:
        one, two = (_product(t, f"hada_w{n}", f"hada_t{n}") for n in (1, 2))
        found = one * two
    elif "lokr_w2" in t or "lokr_w2_a" in t:
        one = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        two = t["lokr_w2"] if "lokr_w2" in t else _product(t, "lokr_w2", "lokr_t2")
        found = torch.kron(one.reshape(*one.shape, *(1,) * (two.dim() - 2)), two.contiguous())
    else:
        found = t["diff"]
    found = found * scale_of(tensors)
    return found if shape is None else found.reshape(shape)


def applied(tensors: Tensors, x: Tensor) -> Tensor:
    """``delta`` [out, in] times ``x`` [in, n], without building a LoRA's."""
    if "lora_up.weight" in tensors and "lora_mid.weight" not in tensors:
        up, down = (tensors[name].flatten(1).to(x) for name in ("lora_up.weight", "lora_down.weight"))
        return scale_of(tensors) * (up @ (down @ x))
    return delta(tensors, dtype=x.dtype).flatten(1) @ x


def on_meta(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors without their values, for shapes; alpha keeps its own."""
    return {name: value if name == "alpha" else value.to("meta") for name, value in tensors.items()}


def method(tensors: Mapping[str, Tensor | Shape]) -> str | None:
    """How a module's tensors make up the difference of its weight: lora, loha, lokr, full; None where there is none."""
    if "diff" in tensors:
        value = tensors["diff"]
        return "full" if (value.dim() if isinstance(value, Tensor) else len(value)) > 1 else None
    return next((kind for kind, mark in _METHODS if mark in tensors), None)


def missing(names: Iterable[str]) -> str:
    """The tensors that a module with ``names`` lacks to have an effect, in words; '' when it is whole."""
    have = set(names)
    wanted: list[str] = []
    if have & {"lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias"}:
        wanted = ["lora_down.weight", "lora_up.weight"]
    elif any(name.startswith("hada_") for name in have):
        wanted = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
    elif any(name.startswith("lokr_") for name in have):
        for w in ("lokr_w1", "lokr_w2"):
            wanted += [w] if w in have or not have & {f"{w}_a", f"{w}_b"} else [f"{w}_a", f"{w}_b"]
    elif "b_norm" in have:
        wanted = ["w_norm"]
    elif not have - {"alpha", "dora_scale"}:
        return "what it adds to the weight"
    return " and ".join(name for name in wanted if name not in have)


def damage(tensors: Tensors) -> str:
    """Why the tensors of a whole module are no adapter of one weight, in words; '' where they are. Values do not count.

    The magnitudes of DoRA are to be those of its rows, [out, 1, ...], or of its columns, [1, in, ...].
    """
    for name, value in tensors.items():
        if value.dtype not in FLOATS and name not in ("alpha", "reshape_weight"):
            return f"{name} holds {str(value.dtype).removeprefix('torch.')}, no numbers of an adapter"
        if not value.dim() and name != "alpha":
            return f"{name} is a single number"
    twice = [kind for kind, mark in _METHODS if mark in tensors]
    twice += ["full"] if "diff" in tensors and tensors["diff"].dim() > 1 else []
    twice += [name for name in ("lokr_w1", "lokr_w2") if {name, f"{name}_a"} <= set(tensors)]
    if len(set(twice)) > 1 and set(twice) != {"lokr"}:
        return f"it holds more than one adapter ({' and '.join(sorted(set(twice)))})"
    if not twice:
        return ""
    try:
        rows, columns = delta(on_meta(tensors)).flatten(1).shape
    except (RuntimeError, IndexError, KeyError):
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items() if value.dim())
        return f"its tensors do not make up one weight ({sizes})"
    if not rows or not columns:
        return f"it is for a weight of {rows} x {columns}"
    if "diff_b" in tensors and tensors["diff_b"].numel() != rows:
        return f"diff_b has {tensors['diff_b'].numel()} values, the weight {rows} rows"
    if "dora_scale" in tensors:
        size = tuple(tensors["dora_scale"].shape)
        ours, theirs = size[:1] == (rows,), len(size) > 1 and size[0] == 1 and (
            size[1] == columns or (size[1] > 1 and columns % size[1] == 0))  # fmt: skip
        if not (ours and set(size[1:]) <= {1}) and not (theirs and set(size[2:]) <= {1}):
            return f"dora_scale is {list(size)}, the weight {rows} x {columns}"
    return ""


_METHODS = (("lora", "lora_up.weight"), ("loha", "hada_w1_a"), ("lokr", "lokr_w1"), ("lokr", "lokr_w1_a"))


def over_inputs(tensors: Tensors) -> bool:
    """Whether DoRA's magnitudes are those of the weight's columns (LyCORIS's wd_on_output=False), not of its rows."""
    return "dora_scale" in tensors and tensors["dora_scale"].dim() > 1 and tensors["dora_scale"].shape[0] == 1


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, type included; float8 has no comparison of its own."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    small = a.is_floating_point() and a.element_size() == 1
    return (
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) if small else torch.equal(a, b)
    )


def finite(tensor: Tensor) -> bool:
    """Whether all values are; float8 has no isfinite of its own. True for types that are no adapter's (``damage``)."""
    if tensor.dtype not in FLOATS:
        return True
    small = tensor.is_floating_point() and tensor.element_size() == 1
    return bool((tensor.half() if small else tensor).isfinite().all())


def _product(t: Tensors, name: str, core: str) -> Tensor:
    """a @ b, or Tucker's core between them."""
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    return torch.einsum("ijkl,ip,jr->prkl", t[core], a, b) if core in t else a @ b


def swap_halves(tensors: Tensors) -> dict[str, Tensor]:
    """The same module with the first and second half of ``out`` exchanged."""
    swapped = dict(tensors)
    for name in OUT_ROWS:
        if name in swapped and not (name == "dora_scale" and over_inputs(tensors)):
            rows = swapped[name]
            if rows.shape[0] % 2:
                raise UserError(f"{name}: {rows.shape[0]} rows cannot be halved; a LoKr needs an even factor here")
            first, second = rows.chunk(2)
            swapped[name] = torch.cat([second, first])
    return swapped


# -------------------------------------------------------------------------------------------------- fused q, k and v


def tied(parts: Sequence[Tensors]) -> bool:
    """Whether q, k and v share all that is not their own rows: then they are one adapter on the fused weight."""
    first = parts[0]
    shared = [name for name in first if name not in OUT_ROWS]
    return all(set(part) == set(first) and all(equal(part[name], first[name]) for name in shared) for part in parts[1:])


def fuse(parts: Sequence[Tensors]) -> tuple[dict[str, Tensor], bool]:
    """One adapter on the fused q, k, v from three, with the same effect; and whether they were tied.

    Untied ones become block-diagonal: rank 3r, alpha 3 alpha (the ratio of alpha and rank stays). UserError where there
    is no such adapter: an untied LoKr, or magnitudes over the inputs.
    """
    if any("diff_b" in part for part in parts) and not all("diff_b" in part for part in parts):
        parts = [part if "diff_b" in part else {**part, "diff_b": _no_bias(part)} for part in parts]
    first = parts[0]
    if len({delta(on_meta(part)).flatten(1).shape[1] for part in parts if method(part)}) > 1:
        raise UserError("q, k and v are for weights of different widths")
    if any(over_inputs(part) for part in parts):
        raise UserError("q, k and v have magnitudes over their inputs, which no single one can stand for")
    if tied(parts):
        return {name: torch.cat([p[name] for p in parts]) if name in OUT_ROWS else first[name] for name in first}, True
    if any(set(part) - {"alpha"} != set(first) - {"alpha"} for part in parts):
        raise UserError("q, k and v hold adapters of several kinds, which no single one can stand for")
    scales = [scale_of(part) for part in parts]
    most = max(scales, key=abs)
    rank = sum(rank_of(part) or 0 for part in parts)
    fused: dict[str, Tensor] = {"alpha": torch.tensor(most * rank)}
    if "lora_up.weight" in first and "lora_mid.weight" not in first:
        ups = [p["lora_up.weight"] * (s / most if most else 1) for p, s in zip(parts, scales)]
        fused["lora_down.weight"] = torch.cat([p["lora_down.weight"] for p in parts])
        fused["lora_up.weight"] = torch.block_diag(*ups)
    elif "hada_w1_a" in first and "hada_t1" not in first and len(set(scales)) == 1:
        for name in ("hada_w1", "hada_w2"):
            fused[f"{name}_a"] = torch.block_diag(*[p[f"{name}_a"] for p in parts])
            fused[f"{name}_b"] = torch.cat([p[f"{name}_b"] for p in parts])
    else:
        raise UserError("q, k and v hold adapters of their own that no single one can stand for")
    for name in ("dora_scale", "diff_b"):
        if name in first:
            fused[name] = torch.cat([p[name] for p in parts])
    return fused, False


def _no_bias(part: Tensors) -> Tensor:
    return delta(on_meta(part)).new_zeros(delta(on_meta(part)).shape[0], device="cpu")


def thirds(tensors: Tensors, parts: int) -> list[dict[str, Tensor]]:
    """q, k and v of a fused adapter as tied ones: each its rows, and all the rest. UserError for a LoKr whose blocks
    cross them, and for magnitudes over the inputs."""
    if parts > 1 and over_inputs(tensors):
        raise UserError(
            "it has magnitudes over the inputs of q, k and v as one, which are apart here; use the file as it is"
        )
    if any(value.shape[0] % parts for name, value in tensors.items() if name in OUT_ROWS):
        raise UserError("the blocks of this LoKr cross q, k and v, which are apart here; resize it to a LoRA first")
    return [{n: v.chunk(parts)[i] if n in OUT_ROWS else v for n, v in tensors.items()} for i in range(parts)]


def split(tensors: Tensors, parts: int) -> list[dict[str, Tensor]]:
    """The inverse of ``fuse``: an adapter of its own for each of q, k, v."""
    whole = [{name: value.clone() for name, value in part.items()} for part in thirds(tensors, parts)]
    if parts > 1 and "lora_up.weight" in tensors and _is_block_diagonal(tensors["lora_up.weight"], parts):
        for i, part in enumerate(whole):
            part["lora_up.weight"] = part["lora_up.weight"].chunk(parts, 1)[i].clone()
            part["lora_down.weight"] = part["lora_down.weight"].chunk(parts)[i].clone()
            part["alpha"] = torch.tensor((alpha_of(tensors) or 0.0) / parts)
    return whole


def _is_block_diagonal(up: Tensor, parts: int) -> bool:
    if up.dim() != 2 or up.shape[1] % parts or not up.any():
        return False
    blocks = [row.chunk(parts, 1) for row in up.chunk(parts)]
    return not any(blocks[i][j].any() for i in range(parts) for j in range(parts) if i != j)


def as_plain(tensors: Tensors) -> tuple[dict[str, Tensor], bool]:
    """A LoRA whose kernel is in the middle (Tucker) as one with the kernel in the down matrix: the same function."""
    if "lora_mid.weight" not in tensors:
        return dict(tensors), False
    plain = {name: value for name, value in tensors.items() if name != "lora_mid.weight"}
    middle, down = tensors["lora_mid.weight"], tensors["lora_down.weight"]
    plain["lora_down.weight"] = torch.einsum("ij...,jr->ir...", middle.float(), down.float().flatten(1)).to(down.dtype)
    plain["alpha"] = torch.tensor(scale_of(tensors) * len(plain["lora_down.weight"]))
    return plain, True
