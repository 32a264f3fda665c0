"""An optimizer's state as tensors and JSON, so that it can be saved in safetensors and nothing is pickled.

A loaded state continues bit for bit: all that an optimizer stores per parameter and per group is restored exactly, in
its own type. What a class stores elsewhere, in attributes of its own, is not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError
from .build import bare

VERSION = 1
CPU = torch.device("cpu")


def optimizer_state_to_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU by name, the rest as JSON). Take it in training mode.

    Tensors may share memory with the optimizer: write them at once. Raises UserError for a state that is neither
    tensor nor JSON.
    """
    inner = bare(optimizer)
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}
    groups = []
    for group in inner.param_groups:
        rows = [
            {
                "shape": list(p.shape),
                "state": _pack(inner.state.get(p, {}), f"{group['name']}.{index}", p.device, tensors, names),
            }
            for index, p in enumerate(group["params"])
        ]
        facts = {key: value for key, value in group.items() if key != "params"}
        groups.append({"facts": _pack(facts, group["name"], CPU, tensors, names), "params": rows})
    return tensors, {"v": VERSION, "class": _class(inner), "groups": groups}


def load_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> list[str]:
    """Put a saved state into an optimizer that was built for the same adapter; notes for the person.

    An option that was changed since the state was saved (a learning rate, say) takes its new value, and is reported.
    Raises UserError when the state belongs to another optimizer or to other parameters; nothing is changed then.
    """
    inner = bare(optimizer)
    if facts.get("v") != VERSION or facts.get("class") != _class(inner):
        raise UserError(
            f"optimizer.kind: the saved state is of {facts.get('class')}, not of {_class(inner)}; "
            "set kind as it was, or start over without --resume"
        )
    made: dict[Any, Tensor] = {}
    saved = [_unpack(group["facts"], CPU, tensors, made) for group in facts["groups"]]
    rows = [group["params"] for group in facts["groups"]]
    then = [(one["name"], [row["shape"] for row in some]) for one, some in zip(saved, rows)]
    now = [(group["name"], [list(p.shape) for p in group["params"]]) for group in inner.param_groups]
    if then != now:
        was, here = (", ".join(f"{name}: {len(shapes)}" for name, shapes in some) for some in (then, now))
        raise UserError(
            f"optimizer: the saved state is for other parameters ({was}; here {here}); "
            "set adapter and rates as they were, or start over without --resume"
        )
    states = {
        p: _unpack(row["state"], p.device, tensors, made)
        for group, some in zip(inner.param_groups, rows)
        for p, row in zip(group["params"], some)
    }
    inner.state.clear()
    for parameter, state in states.items():
        if state:
            inner.state[parameter] = {key: _paged(inner, parameter, value) for key, value in state.items()}
    for group in inner.param_groups:
        for parameter in group["params"] if group.get("fused") else ():  # its kernel wants the step count beside it
            state = inner.state.get(parameter, {})
            state |= {"step": state["step"].to(parameter.device)} if "step" in state else {}
    notes = [note for group, one in zip(inner.param_groups, saved) for note in _restore_facts(group, one)]
    return list(dict.fromkeys(notes))


def _restore_facts(group: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Restore a group's values, but for options that were changed since the saved group was created; one note each."""
    now, then = group["born"], saved["born"]
    changed = {key for key in then if key in now and now[key] != then[key]}
    for key, value in saved.items():
        if key not in changed | {"born", "name"}:
            group[key] = value
    return [
        f"optimizer: {key} was {then[key]} up to here and is {now[key]} from here on"
        for key in sorted(changed - {"initial_lr", "fused", "foreach"})
    ]


def _paged(optimizer: Any, parameter: Tensor, value: Any) -> Any:
    """A state of bitsandbytes' paged optimizers back in memory that can be paged out of the GPU."""
    paged = getattr(optimizer, "is_paged", False) and parameter.is_cuda and isinstance(value, Tensor)
    if not paged or value.shape != parameter.shape or value.dtype not in (torch.uint8, torch.float32):
        return value
    return optimizer.get_state_buffer(parameter, dtype=value.dtype).copy_(value)


def _class(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _pack(value: Any, name: str, home: torch.device, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    """A value as JSON. Its tensors go to ``tensors``, each once, however many references there are."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(item, f"{name}.{key}", home, tensors, names) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{i}", home, tensors, names) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if not isinstance(value, Tensor):
        raise UserError(f"optimizer: {name}, a {type(value).__name__}, cannot be saved; use another optimizer")
    place = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device) if value.numel() else value
    name = names.setdefault(place, name)
    if name not in tensors:
        whole = value.detach().cpu().contiguous()
        alone = whole.untyped_storage().nbytes() == whole.numel() * whole.element_size()
        tensors[name] = whole if alone else whole.clone()
    # PyTorch keeps its step counts on the CPU, also beside parameters on a GPU.
    stays = value.device != home or (name.endswith(".step") and value.device == CPU)
    return {"tensor": name, "at": "cpu" if stays else "home"}


def _unpack(node: Any, home: torch.device, tensors: dict[str, Tensor], made: dict[Any, Tensor]) -> Any:
    """The inverse of ``_pack``. A tensor that had two references is one tensor again."""
    if not isinstance(node, dict):
        return node
    if "float" in node:
        return float(node["float"])
    if "dict" in node:
        return {key: _unpack(item, home, tensors, made) for key, item in node["dict"].items()}
    if "tensor" not in node:
        items = [_unpack(item, home, tensors, made) for item in node.get("list") or node.get("tuple") or []]
        return items if "list" in node else tuple(items)
    name, device = node["tensor"], home if node["at"] == "home" else CPU
    if name not in tensors:
        raise UserError(f"optimizer: the saved state lacks {name}; it is damaged, start over without --resume")
    if (name, device) not in made:
        made[name, device] = tensors[name].to(device, copy=True)
    return made[name, device]
