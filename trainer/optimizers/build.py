"""Names to optimizers: one parameter group per part of the adapter, each with its own rate."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from ..errors import UserError
from ..registry import nearest
from .names import PACKAGES, find
from .options import OptimizerOptions


def build(options: OptimizerOptions, groups: Sequence[Mapping[str, Any]]) -> tuple[Optimizer, list[str]]:
    """The optimizer of an adapter, in training mode, and notes for the person.

    A group is {"name", "params", "ratio"}: its parameters, what multiplies their rate (1 when left out), and a name
    that begins with the part: "te", "te1", "text_encoder_2" ... is a text encoder, anything else the denoiser.
    The optimizer's groups carry "name" and "initial_lr", the full rate that ``Schedule.apply`` starts from. A group
    whose rate is 0 is left out, and reported. Raises UserError in one line.
    """
    named = find(options.kind)
    on_apple = any(p.device.type == "mps" for group in groups for p in group["params"])
    if on_apple and named.path.startswith("bitsandbytes."):
        raise UserError(
            f"optimizer.kind: {options.kind} is bitsandbytes', which has no kernels for Apple GPUs; use AdamW"
        )
    cls = load_class(named.path, Optimizer, f"optimizer.kind: {options.kind}", "AdamW")
    _check_step(cls, options.kind)
    rates = [_rate(options, group["name"]) * group.get("ratio", 1.0) for group in groups]
    notes = [f"optimizer: {g['name']} is not trained, its rate is 0" for g, r in zip(groups, rates) if not r]
    trained = [(dict(group), rate) for group, rate in zip(groups, rates) if rate and group["params"]]
    if not trained:
        raise UserError("optimizer: every learning rate is 0, so nothing would be trained; raise learning_rate")

    given = {"weight_decay": options.weight_decay, "betas": options.betas}
    args = {**named.args, **{k: v for k, v in given.items() if v is not None}, **options.args}
    args = {name: _python(value) for name, value in args.items()}
    _check_args(cls, args, options.kind)
    if "fused" in _parameters(cls) and not {"fused", "foreach"} & set(args):
        args |= {"fused": True} if all(_fuses(p) for group, _ in trained for p in group["params"]) else {}
    relative = named.path.endswith(".Adafactor") and args.get("relative_step", "relative_step" in _parameters(cls))
    if relative:
        notes.append(
            "optimizer: Adafactor with relative_step finds its own rate, so learning rates and the schedule are not "
            "used; args = { relative_step = false, scale_parameter = false } uses them"
        )
    elif named.finds_rate:
        notes += _one_rate(options.kind, [rate for _, rate in trained])
    ready = [{"params": list(g["params"]), "name": g["name"], **({} if relative else {"lr": r})} for g, r in trained]
    args["lr"] = None if relative else options.learning_rate or trained[0][1]
    optimizer = _construct(cls, ready, args, options.kind)
    if getattr(optimizer, "is_paged", False) and not any(p.is_cuda for g in ready for p in g["params"]):
        notes.append(f"optimizer: {options.kind} pages its state only on a CUDA GPU; here it stays in memory")
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    optimizer_mode(optimizer, "train")
    for group in optimizer.param_groups:
        group["born"] = deepcopy({k: v for k, v in group.items() if k not in ("params", "name")})
    return optimizer, notes


def _fuses(parameter: Any) -> bool:
    """Whether torch has one kernel for all tensors there: on CUDA GPUs and CPUs, in every precision of a run."""
    return parameter.is_cuda or parameter.device.type == "cpu"


def _rate(options: OptimizerOptions, name: str) -> float:
    """The rate of a part."""
    encoder = re.match(r"(?:te|text_encoder_?)(\d)?(?![a-z])", name)
    rate = options.text_encoder_lr if encoder else options.denoiser_lr
    if encoder and isinstance(rate, list):
        index = int(encoder[1] or 1) - 1
        if index >= len(rate):
            many = f"{len(rate)} rates for {index + 1} or more text encoders"
            raise UserError(f"optimizer.text_encoder_lr: {many}; give one rate for all, or one for each")
        rate = rate[index]
    assert not isinstance(rate, list)
    return options.learning_rate if rate is None else rate


def _one_rate(kind: str, rates: list[float]) -> list[str]:
    """Prodigy and D-Adaptation estimate one step size for everything, which the rate multiplies."""
    if len(set(rates)) > 1:
        raise UserError(
            f"optimizer: {kind} finds one rate for all parts, but they are given {', '.join(f'{r:g}' for r in rates)}; "
            "set only learning_rate"
        )
    low = f"optimizer: {kind} finds its own rate and multiplies it by learning_rate; {rates[0]:g} is low, 1 is usual"
    return [low] if rates[0] <= 0.1 else []


def load_class(path: str, base: type, where: str, usual: str) -> Any:
    """A class by its dotted path, a child of ``base``. Raises UserError, naming the package and ``usual``."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        top = module.partition(".")[0]
        package = PACKAGES.get(top)
        if package and (error.name or "").partition(".")[0] in ("", top):
            remedy = f"run `{sys.executable} -m pip install {package}`, or use {usual}, which works without"
            raise UserError(f"{where} needs the package {package}; {remedy}") from None
        raise UserError(f"{where} cannot be imported ({error}); install its package, or use {usual}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{where}: {path} is no {base.__name__} of PyTorch; give the path of one, or use {usual}")
    return found


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__init__).parameters


def _check_step(cls: type[Optimizer], kind: str) -> None:
    """Raises UserError for steps that need the loss again, or gradients of a few rows."""
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(f"optimizer.kind: {kind} computes the loss again within a step, which is not done; use AdamW")
    if issubclass(cls, torch.optim.SparseAdam):
        raise UserError(f"optimizer.kind: {kind} takes sparse gradients, an adapter's are dense; use AdamW")


def _check_args(cls: type, args: Mapping[str, Any], kind: str) -> None:
    known = _parameters(cls)
    usual = known["betas"].default if "betas" in known else None
    betas = args.get("betas", usual)
    if isinstance(usual, tuple) and not (isinstance(betas, tuple) and len(betas) == len(usual)):
        raise UserError(f"optimizer.betas: {kind} takes {len(usual)} numbers; give as many as {list(usual)}")
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for name in args:
        if name not in known:
            takes = [n for n in known if n not in ("self", "params", "lr")]
            where = f"optimizer.{name}" if name in ("weight_decay", "betas") else f"optimizer.args.{name}"
            raise UserError(f"{where}: {kind} takes no such argument; {nearest(name, takes)}")


def _python(value: Any) -> Any:
    """A TOML value as a class expects it: pairs as tuples, "None" as None."""
    if isinstance(value, list):
        return tuple(_python(item) for item in value)
    return None if value == "None" else value


def _construct(cls: Any, groups: list[Any], args: dict[str, Any], kind: str) -> Optimizer:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some of them print a greeting, and standard output may be JSON
            return cls(groups, **args)
    except (TypeError, ValueError, AssertionError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"optimizer: {kind} refuses its arguments: {reason}; see optimizer.args") from None


# ------------------------------------------------------------------------------------------------------------- modes


def bare(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's wrapper."""
    while type(optimizer).__module__.startswith("accelerate."):
        optimizer = optimizer.optimizer
    return optimizer


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether the weights that train and the weights to look at are different ones (arXiv 2405.15682)."""
    inner = bare(optimizer)
    return callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None))


def optimizer_mode(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Put the weights of a schedule-free optimizer into one of its modes; nothing happens for any other."""
    if is_schedule_free(optimizer):
        getattr(bare(optimizer), mode)()


@contextlib.contextmanager
def evaluating(optimizer: Optimizer) -> Iterator[None]:
    """The weights as they are to be saved and looked at; afterwards those that train, bit for bit.

    A schedule-free optimizer's own way there and back rounds, so that a run would depend on how often it was looked
    at. Costs a copy of the trained weights meanwhile; nothing for other optimizers.
    """
    if not is_schedule_free(optimizer):
        yield
        return
    trained = [(p, p.detach().clone()) for group in bare(optimizer).param_groups for p in group["params"]]
    optimizer_mode(optimizer, "eval")
    try:
        yield
    finally:
        optimizer_mode(optimizer, "train")
        with torch.no_grad():
            for parameter, value in trained:
                parameter.copy_(value)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The rate of the last step by group name, as used: Prodigy's times its estimate, Adafactor's own."""
    inner = bare(optimizer)
    return {group.get("name", str(i)): _used(inner, group) for i, group in enumerate(inner.param_groups)}


def _used(optimizer: Any, group: dict[str, Any]) -> float:
    if group["lr"] is None:
        state = optimizer.state.get(group["params"][0])
        return float(optimizer._get_lr(group, state)) if state else 0.0
    rate = group.get("scheduled_lr") or group["lr"]
    return float(rate) * float(group.get("d", 1.0))
