"""A GPU that is not there: tensors that report ``cuda:0`` or ``mps:0``, compute on the CPU, and refuse what it refuses.

Refused are operations over two devices, generators of another device, numpy without a copy to the host, and float64 on
Apple GPUs. ``FakeDevice`` counts what makes the host wait and what is copied, by the line of ``trainer/`` that does it,
and can fail the n-th allocation. It says nothing about kernels, speed, or memory.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
WAITS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "masked_select"}
"""Operations whose result the host has to see before it can go on."""
CROSSES = {"copy_", "_to_copy", *WAITS}
NO_SCALARS = (
    "cat", "stack", "index_select", "gather", "scatter", "embedding", "mm", "bmm", "addmm", "baddbmm", "convolution",
    "linear", "native_group_norm",
)  # fmt: skip
"""Operations that take not even a CPU tensor without dimensions beside those of a GPU."""
IMPORTED_BEFORE = ("diffusers.models.unets.unet_2d_condition", "transformers", "bitsandbytes")
"""They look for a real GPU when they are imported."""
GIB = 2**30
TOTAL = 8 * GIB
_to = Tensor.to


class FakeTensor(Tensor):
    """A wrapper of a CPU tensor, ``elem``."""

    elem: Tensor
    fake: FakeDevice

    @staticmethod
    def __new__(cls, elem: Tensor, fake: FakeDevice) -> FakeTensor:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device="cpu", requires_grad=False,
        )  # fmt: skip
        made.elem, made.fake = elem, fake
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fake = next(leaf.fake for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor))
        return fake.dispatch(func, args, kwargs or {})

    device = property(lambda self: self.fake.device)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: self.fake.kind == "cuda")  # pyright: ignore[reportAssignmentType]
    is_mps = property(lambda self: self.fake.kind == "mps")  # pyright: ignore[reportAssignmentType]
    is_cpu = property(lambda self: False)  # pyright: ignore[reportAssignmentType]

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cuda")

    def get_device(self) -> int:
        return 0

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def is_pinned(self, *_: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def untyped_storage(self) -> Any:
        return self.elem.untyped_storage()

    def record_stream(self, s: Any) -> None:
        pass

    def new_tensor(self, data: Any, *_: Any, **kwargs: Any) -> Tensor:
        return FakeTensor(torch.tensor(data, dtype=kwargs.get("dtype") or self.dtype), self.fake)

    def tolist(self) -> Any:
        self.fake.waits[_where()] += 1
        return self.elem.tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"FakeTensor({self.elem!r}, {self.device})"

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            device, dtype, layout = args[0].device, args[0].dtype, None
        else:
            plain = {name: value for name, value in kwargs.items() if name != "copy"}
            device, dtype, _, layout = torch._C._nn._parse_to(*args, **plain)  # pyright: ignore
        if device is not None and device.type == "cpu" and not _in_optimizer():
            self.fake.waits[_where()] += 1
            self.fake.to_host[_where()] += 1
            out = _ToHost.apply(self)
            return out if dtype is None else out.to(dtype)
        changes = {"dtype": dtype, "memory_format": layout, "copy": kwargs.get("copy") or None}
        changes = {name: value for name, value in changes.items() if value is not None}
        return _to(self, **changes) if changes else self

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, FakeTensor), "the data of a GPU tensor set to a CPU tensor"
        new: Any = FakeTensor(value.elem, value.fake)
        if isinstance(self, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=self.requires_grad)
        grad = self.grad
        torch.utils.swap_tensors(self, new)
        if grad is not None:
            self.grad = grad


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: FakeTensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.fake = x.fake
        return x.elem.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return FakeTensor(grad, ctx.fake)


class FakeDevice:
    """A pretended GPU of ``kind`` ``cuda`` or ``mps``."""

    def __init__(self, kind: str = "cuda", bf16: bool = True):
        self.kind, self.bf16 = kind, bf16
        self.device = torch.device(kind, 0)
        self.waits: Counter[str] = Counter()
        """Where the host waited for the device, by ``file:line`` of trainer/."""
        self.to_host: Counter[str] = Counter()
        self.to_device: Counter[str] = Counter()
        self.moments = 0
        """Allocations since ``fail``."""
        self._fail_at, self._error = 0, RuntimeError()

    def fail(self, at: int, error: Exception) -> None:
        """Let the ``at``-th allocation from now on raise ``error``, once."""
        self.moments, self._fail_at, self._error = 0, at, error

    def counts(self) -> tuple[int, int, int]:
        """(waits, copies to the host, copies to the device) so far."""
        return self.waits.total(), self.to_host.total(), self.to_device.total()

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [t for t in tensors if isinstance(t, FakeTensor)]
        others = [t for t in tensors if not isinstance(t, FakeTensor)]
        here = self._lands_here(name, args, kwargs, ours)
        self._refuse(name, args, kwargs, ours, others, here)
        if name in WAITS and ours:
            self.waits[_where()] += 1
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            if here and not isinstance(source, FakeTensor):
                self.to_device[_where()] += 1
            elif not here and isinstance(source, FakeTensor):
                self.to_host[_where()] += 1
                self.waits[_where()] += not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        args, kwargs = tree_map(_bare, args), tree_map(_bare, kwargs)
        if (device := kwargs.get("device")) is not None and torch.device(device).type == self.kind:
            kwargs["device"] = torch.device("cpu")
        for option in ("pin_memory", "non_blocking"):
            if kwargs.get(option):
                kwargs[option] = False
        result = func(*args, **kwargs)
        if name == "_local_scalar_dense":
            return result
        known = {id(t.elem): t for t in ours} | {id(t): t for t in others}
        return tree_map(lambda x: self._wrap(x, known, here, name), result)

    def _wrap(self, x: Any, known: dict[int, Tensor], here: bool, name: str) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
            return x
        if id(x) in known:
            return known[id(x)]
        if not here:
            return x
        if self.kind == "mps" and x.dtype == torch.float64:
            raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype as MPS does not support it [{name}]")
        if self.kind == "mps" and "float8" in str(x.dtype):
            raise TypeError(f"Trying to convert {x.dtype} to the MPS backend but it does not have support for it")
        self.moments += 1
        if self.moments == self._fail_at:
            raise self._error
        return FakeTensor(x, self)

    def _lands_here(self, name: str, args: Any, kwargs: dict[str, Any], ours: list[FakeTensor]) -> bool:
        """Whether the result is on this device."""
        if name in INDEXING or name == "copy_":
            return isinstance(args[0], FakeTensor)
        if name == "_to_copy" and ours:  # autograd, in C++, believes in a CPU tensor; people's copies go by ``to``
            return True
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type == self.kind
        if name.startswith("new_") or name.endswith("_like"):
            return isinstance(args[0], FakeTensor) or bool(asked)
        return bool(ours) if asked is None else asked

    def _refuse(
        self, name: str, args: Any, kwargs: dict[str, Any], ours: list[FakeTensor], others: list[Tensor], here: bool
    ) -> None:
        """RuntimeErrors as torch words them."""
        generator = kwargs.get("generator")
        if generator is not None:
            place = getattr(generator, "place", "cpu")
            if (place != "cpu") != here:
                wanted = self.kind if here else "cpu"
                raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{place}'")
        if name in INDEXING:
            indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
            if not here and any(isinstance(t, FakeTensor) for t in indices):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if here and any(isinstance(t, FakeTensor) and t.dtype == torch.bool for t in indices):
                self.waits[_where()] += 1
        elif ours and others and name not in CROSSES:
            alone = [t for t in others if t.dim() or name.startswith(NO_SCALARS)]
            if alone:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{self.device} and cpu! ({name}, {[tuple(t.shape) for t in alone]})"
                )


class _Mode(TorchDispatchMode):
    """Sends factories, which have no tensor among their arguments, to the device too."""

    def __init__(self, fake: FakeDevice):
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.fake.dispatch(func, args, kwargs or {})


class _Generator(torch.Generator):
    place: str

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls)
        made.place = torch.device(device).type
        return made


class _Stream:
    def __init__(self, *_: Any, **__: Any):
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        assert event is not None

    def record_event(self, event: Any = None) -> Any:
        return SimpleNamespace(synchronize=lambda: None, wait=lambda *_: None)

    def synchronize(self) -> None:
        pass


def _bare(x: Any) -> Any:
    return x.elem if isinstance(x, FakeTensor) else x


def _frames() -> Iterator[str]:
    frame: Any = sys._getframe(1)
    while frame is not None:
        yield f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back


def _where() -> str:
    """The innermost line of the package that runs now."""
    return next((at.partition("/trainer/")[2] for at in _frames() if "/trainer/" in at), "?")


def _in_optimizer() -> bool:
    """torch's optimizers keep their step counts on the CPU and convert them there."""
    return any("/torch/optim/" in at for at, _ in zip(_frames(), range(6)))


@contextmanager
def fake_device(monkeypatch: pytest.MonkeyPatch, kind: str = "cuda", bf16: bool = True) -> Iterator[FakeDevice]:
    """Inside, torch has one GPU of this kind."""
    for module in IMPORTED_BEFORE:
        importlib.import_module(module)
    fake = FakeDevice(kind, bf16)
    _patch_cuda(monkeypatch, fake) if kind == "cuda" else _patch_mps(monkeypatch)
    _patch_torch(monkeypatch, fake)
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Mode(fake):
            yield fake
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _patch_cuda(monkeypatch: pytest.MonkeyPatch, fake: FakeDevice) -> None:
    version = (8, 6) if fake.bf16 else (7, 5)
    facts = SimpleNamespace(name="Fake GPU", total_memory=TOTAL, major=version[0], minor=version[1])
    values: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "set_device": None,
        "is_initialized": True, "get_device_properties": facts, "get_device_capability": version,
        "get_device_name": "Fake GPU", "mem_get_info": (TOTAL * 3 // 4, TOTAL), "memory_reserved": GIB,
        "memory_allocated": GIB, "max_memory_allocated": GIB, "max_memory_reserved": GIB, "empty_cache": None,
        "set_per_process_memory_fraction": None, "synchronize": None, "reset_peak_memory_stats": None,
        "manual_seed": None, "manual_seed_all": None, "is_current_stream_capturing": False,
        "cudart": SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0),
        "current_stream": _Stream(), "stream": nullcontext(),
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: fake.bf16)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)


def _patch_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    values = {
        "driver_allocated_memory": GIB, "current_allocated_memory": GIB // 2, "recommended_max_memory": TOTAL,
        "empty_cache": None, "synchronize": None, "manual_seed": None, "set_per_process_memory_fraction": None,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(torch.mps, name, lambda *_, value=value: value)


def _patch_torch(monkeypatch: pytest.MonkeyPatch, fake: FakeDevice) -> None:
    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        other = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("other")
        if isinstance(other, FakeTensor):  # which is a CPU tensor to what reads it in C++
            return _to(self, fake.device, other.dtype, copy=kwargs.get("copy", False))
        if args and not isinstance(args[0], (Tensor, torch.dtype)):
            args = (placed(args[0]), *args[1:])
        if "device" in kwargs:
            kwargs["device"] = placed(kwargs["device"])
        return _to(self, *args, **kwargs)

    def placed(device: Any) -> Any:
        """With its number, for which torch would look at the real GPU."""
        return fake.device if device is not None and torch.device(device).type == fake.kind else device

    def made_by(factory: Callable[..., Tensor]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == fake.kind:
                fake.to_device[_where()] += 1
                source = factory(*args, **{**kwargs, "device": "cpu"})
                return source.to(fake.device).requires_grad_(bool(kwargs.get("requires_grad")))
            return args[0] if args and isinstance(args[0], FakeTensor) else factory(*args, **kwargs)

        return make

    autocast = torch.amp.autocast_mode.autocast
    begin = autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == fake.kind else device_type, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(torch, "Generator", _Generator)
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, made_by(getattr(torch, name)))
    monkeypatch.setattr(autocast, "__init__", init)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        ask = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda device=None, ask=ask: ask("cpu" if device in (None, fake.kind) else device)
        )
    switch = torch.set_autocast_enabled
    monkeypatch.setattr(
        torch, "set_autocast_enabled", lambda device, on: switch("cpu" if device == fake.kind else device, on)
    )
    monkeypatch.setattr(torch.amp.autocast_mode, "is_autocast_available", lambda *_: True)
