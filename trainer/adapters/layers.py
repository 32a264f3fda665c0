"""One site's layers in PEFT: their tensors as the file has them, q, k and v tied as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import algebra
from .plan import Planned

NAME = "default"
"""PEFT's name of the adapter that is trained."""
START = "start"
"""PEFT's name of the frozen copy of what the run started from."""
_STORES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a",
           "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")  # fmt: skip


@dataclass(frozen=True)
class Mounted:
    """A planned adapter in place: PEFT's layer for each of the site's paths."""

    plan: Planned
    kind: str
    layers: tuple[Any, ...]

    @property
    def component(self) -> str:
        return self.plan.site.component

    def parameters(self, adapter: str = NAME) -> dict[str, nn.Parameter]:
        """Name -> parameter, each once: ``lora_up.weight``, with ``.1`` and ``.2`` behind for k and v."""
        found: dict[str, nn.Parameter] = {}
        for i, layer in enumerate(self.layers):
            for name, parameter in _parameters(layer, self.kind, adapter).items():
                if i == 0 or name in algebra.OUT_ROWS:
                    found[f"{name}.{i}" if i else name] = parameter
        return found

    def to(self, dtype: torch.dtype, adapter: str = NAME) -> None:
        for parameter in self.parameters(adapter).values():
            parameter.data = parameter.data.to(dtype)

    def tensors(self, adapter: str = NAME) -> dict[str, Tensor]:
        """What the file holds of this site, in the parameters' own type."""
        parts = [self._part(layer, adapter) for layer in self.layers]
        whole = {n: torch.cat([p[n] for p in parts]) if n in algebra.OUT_ROWS else parts[0][n] for n in parts[0]}
        whole["alpha"] = torch.tensor(self.alpha, dtype=torch.float32)
        return algebra.swap_halves(whole) if self.plan.site.swap else whole

    def _part(self, layer: Any, adapter: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {n: p.detach() for n, p in _parameters(layer, self.kind, adapter).items()}
        if "dora_scale" in found:
            found["dora_scale"] = found["dora_scale"].reshape(-1, *(1,) * (len(self.plan.site.shape) - 1))
        return found

    @property
    def alpha(self) -> float:
        layer = self.layers[0]
        return float((layer.lora_alpha if self.kind in ("lora", "dora") else layer.alpha)[NAME])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], adapter: str = NAME) -> None:
        """Put tensors in place. UserError for a name or shape that does not fit."""
        for layer, part in zip(self.layers, self._parts(tensors)):
            mine = _parameters(layer, self.kind, adapter)
            if set(part) - {"alpha"} != set(mine):
                odd = sorted(set(part) - {"alpha"} ^ set(mine))
                raise UserError(
                    f"{self.plan.site.name}: {', '.join(odd)} do not match this adapter; set [adapter] as it was"
                )
            for name, parameter in mine.items():
                if part[name].numel() != parameter.numel():
                    raise UserError(
                        f"{self.plan.site.name}.{name}: it is {list(part[name].shape)}, but the model's weight is "
                        f"{list(self.plan.site.shape)}; the file is for another model"
                    )
                parameter.copy_(part[name].reshape(parameter.shape))
            _set_alpha(layer, self.kind, adapter, algebra.alpha_of(part), algebra.scale_of(part))

    def install(self, tensors: Mapping[str, Tensor], adapter: str = NAME) -> None:
        """As ``load``, before training: factors of LoHa and LoKr may have any shapes that make up the weight's."""
        if self.kind in ("loha", "lokr"):
            for layer, part in zip(self.layers, self._parts(tensors)):
                device = layer.get_base_layer().weight.device
                for store in (getattr(layer, name) for name in _STORES if hasattr(layer, name)):
                    if adapter in store:
                        del store[adapter]
                for name, value in part.items():
                    if name != "alpha":
                        getattr(layer, name)[adapter] = nn.Parameter(value.detach().to(device, copy=True))
            self.tie(adapter)
        self.load(tensors, adapter)

    def _parts(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        site = self.plan.site
        try:
            _check(tensors, site.shape)
            return algebra.thirds(algebra.swap_halves(tensors) if site.swap else tensors, len(site.paths))
        except UserError as error:
            raise UserError(f"{site.name}: {error}") from None

    def tie(self, adapter: str = NAME) -> None:
        """Share all but the rows of q, k, v: one adapter on the fused projection, exactly."""
        first, *others = self.layers
        for layer in others:
            if self.kind in ("lora", "dora"):
                layer.lora_A[adapter] = first.lora_A[adapter]
                continue
            for name in _parameters(first, self.kind, adapter):
                if name not in algebra.OUT_ROWS:
                    getattr(layer, name)[adapter] = getattr(first, name)[adapter]

    @torch.no_grad()
    def scale_norm(self, most: float) -> Tensor:
        """Kohya's scale_weight_norms: [2], the norm afterwards and 1 where it was scaled down to ``most``, else 0."""
        matrices = {n: p for n, p in self.parameters().items() if not n.startswith("dora_scale")}
        norm = _norm(self.tensors())
        ratio = most / norm.clamp(min=most)
        shared = len({n.split(".")[0] for n in matrices})
        for parameter in matrices.values():
            parameter.mul_((ratio ** (1 / shared)).to(parameter.dtype))
        return torch.stack([norm * ratio, (ratio < 1).to(norm)])


def _parameters(layer: Any, kind: str, adapter: str) -> dict[str, nn.Parameter]:
    """One layer's parameters by the file's names."""
    if kind in ("lora", "dora"):
        found = {
            "lora_down.weight": layer.lora_A[adapter].weight,
            "lora_up.weight": layer.lora_B[adapter].weight,
        }
        return {**found, "dora_scale": layer.lora_magnitude_vector[adapter].weight} if kind == "dora" else found
    return {n: getattr(layer, n)[adapter] for n in _STORES if adapter in getattr(layer, n, ())}


def _set_alpha(layer: Any, kind: str, adapter: str, alpha: float | None, scale: float) -> None:
    if alpha is not None:
        (layer.lora_alpha if kind in ("lora", "dora") else layer.alpha)[adapter] = alpha
    layer.scaling[adapter] = scale


def _check(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    """UserError for tensors that make up another weight than one of ``shape``."""
    out, width = shape[0], torch.Size(shape[1:]).numel()
    t = {name: value.shape for name, value in tensors.items()}
    if "lora_up.weight" in t and "lora_down.weight" in t:
        found = (t["lora_up.weight"][0], t["lora_down.weight"][1:].numel())
    elif "hada_w1_a" in t and "hada_t1" in t:
        found = (t["hada_w1_a"][1], t["hada_w1_b"][1] * t["hada_t1"][2:].numel())
    elif "hada_w1_a" in t:
        found = (t["hada_w1_a"][0], t["hada_w1_b"][1])
    elif {"lokr_w1", "lokr_w1_a"} & set(t) and {"lokr_w2", "lokr_w2_a"} & set(t):
        rows = algebra.delta(algebra.on_meta(tensors))
        found = (rows.shape[0], rows[0].numel())
    else:
        raise UserError(f"tensors are missing; there are {', '.join(sorted(t))}")
    if found != (out, width):
        raise UserError(f"it adapts a weight of {found[0]} x {found[1]}, but the model's is {out} x {width}; "
                         "the file is for another model")  # fmt: skip


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Frobenius norm of the difference, without building it where that can be."""
    t = {name: value.double() for name, value in tensors.items()}
    if "lora_up.weight" in t:
        up, down = t["lora_up.weight"].flatten(1), t["lora_down.weight"].flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum()
        return square.clamp(min=0).sqrt() * algebra.scale_of(tensors)
    return algebra.delta(tensors).norm()


def unique(parameters: Iterator[nn.Parameter]) -> list[nn.Parameter]:
    """Each parameter once, in order."""
    return list({id(p): p for p in parameters}.values())
