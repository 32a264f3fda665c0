"""Optimizers with a short name: the one place where those names are written, with all that is known of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..registry import nearest


@dataclass(frozen=True)
class Named:
    """An optimizer's class."""

    path: str
    """Its dotted path."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments that belong to the short name."""
    eight_bit: str | None = None
    """The short name of the same optimizer with a state of 8 bits."""

    @property
    def finds_rate(self) -> bool:
        """Whether it estimates one step size for all parameters, which the learning rate multiplies."""
        return self.path.startswith(("prodigyopt.", "dadaptation."))


NESTEROV = {"momentum": 0.9, "nesterov": True}
NAMED = {
    "AdamW": Named("torch.optim.AdamW", eight_bit="AdamW8bit"),
    "AdamW8bit": Named("bitsandbytes.optim.AdamW8bit"),
    "PagedAdamW": Named("bitsandbytes.optim.PagedAdamW"),
    "PagedAdamW8bit": Named("bitsandbytes.optim.PagedAdamW8bit"),
    "PagedAdamW32bit": Named("bitsandbytes.optim.PagedAdamW32bit"),
    "AdEMAMix8bit": Named("bitsandbytes.optim.AdEMAMix8bit"),
    "PagedAdEMAMix8bit": Named("bitsandbytes.optim.PagedAdEMAMix8bit"),
    "Lion": Named("lion_pytorch.Lion", eight_bit="Lion8bit"),
    "Lion8bit": Named("bitsandbytes.optim.Lion8bit"),
    "PagedLion8bit": Named("bitsandbytes.optim.PagedLion8bit"),
    "SGDNesterov": Named("torch.optim.SGD", NESTEROV, eight_bit="SGDNesterov8bit"),
    "SGDNesterov8bit": Named("bitsandbytes.optim.SGD8bit", NESTEROV),
    "Adafactor": Named("transformers.optimization.Adafactor"),
    "Prodigy": Named("prodigyopt.Prodigy"),
    "DAdaptation": Named("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdamPreprint": Named("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdaGrad": Named("dadaptation.DAdaptAdaGrad"),
    "DAdaptAdam": Named("dadaptation.DAdaptAdam"),
    "DAdaptAdan": Named("dadaptation.DAdaptAdan"),
    "DAdaptAdanIP": Named("dadaptation.experimental.DAdaptAdanIP"),
    "DAdaptLion": Named("dadaptation.DAdaptLion"),
    "DAdaptSGD": Named("dadaptation.DAdaptSGD"),
    "AdamWScheduleFree": Named("schedulefree.AdamWScheduleFree"),
    "RAdamScheduleFree": Named("schedulefree.RAdamScheduleFree"),
    "SGDScheduleFree": Named("schedulefree.SGDScheduleFree"),
}
PACKAGES = {
    module: module.replace("_", "-") for one in NAMED.values() if (module := one.path.partition(".")[0]) != "torch"
}
"""The pip packages of the short names' modules."""
_BY_LOWER_NAME = {name.lower(): named for name, named in NAMED.items()}


def short(kind: str) -> Named | None:
    """The optimizer of a short name, in any case; None where there is none of that name."""
    return _BY_LOWER_NAME.get(kind.lower())


def find(kind: str) -> Named:
    """The optimizer of a short name or a class of torch.optim, in any case, or a dotted path. Raises UserError."""
    if named := short(kind):
        return named
    if "." in kind:
        return Named(kind)
    import torch

    own = {name.lower(): name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    if kind.lower() in own:
        return Named(f"torch.optim.{own[kind.lower()]}")
    raise UserError(f"there is no '{kind}'; {nearest(kind, list(NAMED))}")
