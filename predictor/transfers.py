"""Copies from the host to the device that nobody waits for.

Samplers that draw noise, and pipelines that say `torch.tensor([t], device=…)`, move a few numbers to the device at every step.
PyTorch lets the host wait for such a copy, and so for all that was launched before it: the device runs dry while the next
step is being prepared. From pinned memory it need not wait.

A mode costs a microsecond for every operation of Python's, so it is entered where it pays: around what a pipeline does between
two calls of its denoiser, and around the denoiser only if that copies too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_MAKES = (torch.tensor, torch.as_tensor)


class Transfers(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.made = 0  # copies that would have been waited for

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to:
            return self._moved(*args, **kwargs)
        if func in _MAKES and _is_cuda(kwargs.get("device")):
            device = kwargs.pop("device")
            return self._moved(func(*args, **kwargs), device)
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            # Times of a sampler, which are kept on the host, as a pipeline reckons with them for each row.
            met = self._met(args, kwargs)
            if met is None:
                raise
            return func(*met[0], **met[1])

    def _met(self, args: Any, kwargs: Any) -> Any:
        """The operands on one device; None where they are."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = next((each.device for each in tensors if each.device.type == "cuda"), None)
        if device is None or not any(each.device.type == "cpu" and each.ndim for each in tensors):
            return None
        return tree_map(lambda leaf: self._moved(leaf, device) if isinstance(leaf, Tensor) else leaf, (args, kwargs))

    def _moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `tensor.to(*args, **kwargs)`."""
        if tensor.device.type != "cpu" or tensor.is_pinned() or "copy" in kwargs:
            return tensor.to(*args, **kwargs)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if not _is_cuda(device):
            return tensor.to(*args, **kwargs)
        self.made += 1
        # Of another type it would go by way of memory that is not pinned.
        return tensor.to(dtype, memory_format=memory_format or torch.preserve_format).pin_memory().to(device, non_blocking=True)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"
