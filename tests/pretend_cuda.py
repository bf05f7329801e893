"""A device that computes on the CPU and has the manners of CUDA, for machines without one.

Its tensors call themselves `cuda:0`. What CUDA refuses is refused (operands on two devices), and whatever makes the host wait
for the device is noted: values that Python looks at, copies that block, shapes that depend on values. The rules are those of
PyTorch's own `torch.cuda.set_sync_debug_mode`.

It cannot show kernels, streams, memory or time.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

_DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten

# What they return, or its size, is something that only the device knows.
_LOOKS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Composites that make a tensor on the device of another, as C++ sees it.
_MADE_IN_CPP = {torch._C._nn.pad_sequence}
# They take one number from the host, as elementwise operations do.
_TAKE_NUMBERS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}


class OnDevice(Tensor):
    """`host`: its values. To Python it is on the device; PyTorch's C++, which would ask for a driver, takes it for a tensor on
    the CPU."""

    host: Tensor
    device = property(lambda self: _DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        layout = (host.shape, host.stride(), host.storage_offset())
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=host.dtype, requires_grad=False)
        made.host = host
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in (Tensor.to, Tensor.type_as, Tensor.cpu, Tensor.cuda):
                return _moved(func, *args, **kwargs)
            if func is Tensor.tolist:
                return _moved(Tensor.cpu, args[0]).tolist()
            if func is Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if func in _MADE_IN_CPP:
                return _run(func, args, kwargs)
            if func.__name__.startswith("new_"):
                kwargs = {"device": _DEVICE} | kwargs
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _moved(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What C++ would leave undone, since the tensor is where it is wanted."""
    if func in (Tensor.cpu, Tensor.cuda):
        args = ("cpu" if func is Tensor.cpu else _DEVICE, *args)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    device, dtype = device or tensor.device, dtype or tensor.dtype
    if not copy and (device.type, dtype) == (tensor.device.type, tensor.dtype):
        return tensor
    moved: Tensor = aten._to_copy.default(tensor, dtype=dtype, device=device, non_blocking=non_blocking)
    return moved


class Wait(NamedTuple):
    """The host waited for the device."""

    what: str
    where: str  # the innermost lines of Python that are not PyTorch's own


class Waits(TorchDispatchMode):
    """While it is entered, this thread may make tensors on the device; `noted` says where it waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Wait] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            where = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[-2:-8:-1])
            self.noted.append(Wait(str(func), where))
        return _run(func, args, kwargs)


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    tensors = _tensors(args, kwargs)
    here, there = ([each for each in tensors if isinstance(each, OnDevice) == on] for on in (False, True))
    if func in _COPIES:
        target = kwargs.get("device") if func is aten._to_copy.default else args[0].device
        source = args[0] if func is aten._to_copy.default else args[1]
        crosses = target is not None and torch.device(target).type != source.device.type
        waits_for_none = kwargs.get("non_blocking") or args[2:] == (True,)
        return crosses and not (waits_for_none and (isinstance(source, OnDevice) or _is_pinned(source)))
    if func in _INDEXES and there:
        masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
        spread = len(args) < 3 or args[2].numel() > 1  # one number goes wherever the mask says, without counting where
        return bool(masks and spread) or any(each is not None and not isinstance(each, OnDevice) for each in args[1])
    return bool(there and not here and func in _LOOKS) or (func is aten._local_scalar_dense.default and bool(there))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = _tensors(args, kwargs)
    there = any(isinstance(each, OnDevice) for each in tensors)
    target = kwargs.get("device")
    if target is not None and torch.device(target).type == "cuda":
        there, kwargs = True, kwargs | {"device": torch.device("cpu")}
    elif target is not None:
        there = False
    if func not in _COPIES and there:
        _refuse_two_devices(func, tensors)
    elif func is aten.copy_.default:
        there = isinstance(args[0], OnDevice)
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    result = func(*_hosts(args), **_hosts(kwargs))
    if not there:
        return result
    wrapped = tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, result)
    aliases = isinstance(func, torch._ops.OpOverload) and any(isinstance(each, OnDevice) for each in tensors)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if aliases else wrapped


def _refuse_two_devices(func: Any, tensors: list[Tensor]) -> None:
    here = [each for each in tensors if not isinstance(each, OnDevice)]
    if func in _INDEXES and tensors and isinstance(tensors[0], OnDevice):
        return
    numbers = torch.Tag.pointwise in getattr(func, "tags", ()) or func in _TAKE_NUMBERS
    if any(each.ndim or not numbers for each in here):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cpu and cuda:0")


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def _hosts(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.host if isinstance(leaf, OnDevice) else leaf, tree)


def _is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "pinned", False)


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, _: _Event) -> float:
        return 1.0  # ms


class _Factories(TorchFunctionMode):
    """As PyTorch does it too, but in C++ that asks for a driver first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device)


def _pinned(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


@contextmanager
def pretend_cuda() -> Iterator[Waits]:
    """In this thread and while it lasts, PyTorch has a device `cuda:0`."""
    replaced = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "Event": _Event,
    }
    with pytest.MonkeyPatch.context() as patch, _Factories(), Waits() as waits:
        for name, value in replaced.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(Tensor, "pin_memory", _pinned)
        patch.setattr(Tensor, "is_pinned", _is_pinned)
        # Weights that move become other tensors, instead of having their values exchanged.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        yield waits
