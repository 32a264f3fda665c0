"""A model without numbers, and what a run of it would hold: real code, fake tensors, every live byte counted.

Modules are built on the meta device, adapters injected there (PEFT does not run under fake tensors), and their
parameters become fake CPU tensors in the dtype of the run. Whatever follows from them is fake, and nothing is computed;
small real tensors (draws, indices) stay real. ``MemoryTracker`` sees every operation, and adds up the storages that are
alive, each once however many views there are.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

LOW = (torch.bfloat16, torch.float16)
HOST = "host"
"""The label of what lies in the host's memory, and so does not count."""


DEVICE = torch.ops.prim.device.default
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)
"""What computes on copies of its input and weight in another layout: exactly so in oneDNN, about so in cuDNN."""


class MemoryTracker(TorchDispatchMode):
    """Bytes of live storages by label, their largest sum so far, and the multiplications and additions by term."""

    def __init__(self) -> None:
        super().__init__()
        count_attention()
        self.label = "activations"
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.flops: Counter[str] = Counter()
        self.term = ""
        self._total = self._highest = 0
        self._known: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two calls of three ask for it; here it is cheaper
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count:
            self.flops[self.term] += count(*args, **(kwargs or {}), out_val=out)
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.note(value, self.label)
        if func in CONVOLUTIONS:
            scratch = sum(_blocked(value) for value in (args[0], args[2 if "backward" in func.name() else 1]))
            if self._total + scratch > self._highest:
                self._highest, self.peak = self._total + scratch, {**self.live, "workspace": scratch}
        return out

    def note(self, tensor: Tensor, label: str) -> None:
        """Count a tensor's storage until it is freed; one that is known keeps its label."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        if label == HOST:
            size = 0
        self._known[key] = (label, size)
        weakref.finalize(storage, self._freed, key)
        self.live[label] += size
        self._total += size
        if self._total > self._highest:
            self._highest, self.peak = self._total, dict(self.live)

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Storages that are counted elsewhere."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()._cdata] = ("", 0)
            weakref.finalize(tensor.untyped_storage(), self._freed, tensor.untyped_storage()._cdata)

    def relabel(self, tensor: Tensor, label: str) -> None:
        key = tensor.untyped_storage()._cdata
        old, size = self._known[key]
        self.live[old] -= size
        self.live[label] += size
        self._known[key] = (label, size)

    def _freed(self, key: int) -> None:
        label, size = self._known.pop(key)
        self.live[label] -= size
        self._total -= size

    def begin(self) -> None:
        """Forget the peak and the operations so far: a new phase begins."""
        self._highest, self.peak, self.flops = self._total, dict(self.live), Counter()

    @contextmanager
    def labelled(self, label: str, term: str = "") -> Iterator[None]:
        """New storages inside carry this label, and operations belong to this term."""
        was, (self.label, self.term) = (self.label, self.term), (label, term)
        try:
            yield
        finally:
            self.label, self.term = was


def _blocked(value: Tensor) -> int:
    """Bytes of a copy in blocks of 16 channels."""
    channels = value.shape[1]
    return value.numel() * value.element_size() // channels * (-(-channels // 16) * 16)


def count_attention() -> None:
    """Let torch count the operations of a CPU's attention too: its own list has a GPU's kernels only."""
    ops: Any = torch.ops.aten

    def of_forward(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def of_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    if ops._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        register_flop_formula(ops._scaled_dot_product_flash_attention_for_cpu)(of_forward)
        register_flop_formula(ops._scaled_dot_product_flash_attention_for_cpu_backward)(of_backward)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """What autocast does on a CUDA GPU and not on a CPU: norms and resizing run in float32.

    From torch's own list (ATen/autocast_mode.h), as far as these models meet it. Patched rather than a mode of torch's:
    modes are off inside of ``backward``, where checkpoints are computed again.
    """
    names = ("group_norm", "layer_norm", "rms_norm", "interpolate", "softmax")
    was = {name: getattr(functional, name) for name in names}

    def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map(_float32, (args, kwargs))
            return function(*args, **kwargs)

        return call

    try:
        for name, function in was.items():
            setattr(functional, name, in_float32(function))
        yield
    finally:
        for name, function in was.items():
            setattr(functional, name, function)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in LOW else value


class FakeTensors:
    """Fake tensors of one run; equal tensors become one."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        with self.mode:
            return torch.empty(shape, dtype=dtype, device="cpu")

    def fill(self, module: nn.Module) -> None:
        """Put fake tensors in the place of a module's parameters and buffers, whatever device they claim."""
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, value in tensors.items():
                    if value is not None:
                        tensors[name] = self._of(value)

    def _of(self, value: Tensor) -> Any:
        if id(value) not in self._made:
            fake = self.empty(*value.shape, dtype=value.dtype)
            made = nn.Parameter(fake, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else fake
            self._made[id(value)] = (made, value)  # the original too, so that its id stays its own
        return self._made[id(value)][0]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes, each tensor once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())
