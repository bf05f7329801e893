"""Where requests meet: the denoiser that each unmodified `pipe(...)` call sees is a door behind which one forward serves all.

Every request runs its pipeline in a greenlet of its own, on a shallow copy of the pipeline whose denoiser is a stand-in.
Calling the stand-in parks the greenlet: control goes back to whoever let it proceed, with the arguments as a `Call`. Calls
with equal keys are put together row by row, the real module runs once, and each greenlet proceeds with its own rows.

    guest = rendezvous.begin(lambda pipe: pipe(prompt, …))
    guest.proceed()                        # text encoding … up to the first step
    while guest.call:
        [output] = rendezvous.forward([guest.call])
        guest.proceed(output)              # scheduler step … up to the next, or VAE decode and the end
    guest.result

All of it belongs to one thread. Gradients must be off for that thread: `@torch.no_grad()` around `pipe.__call__` would
switch them on again for everybody when one request ends.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

DENOISERS = ("unet", "transformer")

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One parked call of the denoiser: `rows` along dimension 0 of every tensor in `rowwise`, the rest shared.

    Calls with equal keys may be put together: their tensors agree in everything but values and row count, and what has no
    rows (position ids, flags) is equal.
    """

    leaves: tuple[Any, ...]
    rowwise: tuple[bool, ...]  # for each leaf
    spec: TreeSpec
    rows: int
    key: Hashable


class Guest(Generic[T]):
    """One request on its way: at the door (`call` is set) or done (`result` is set)."""

    result: T

    def __init__(self, run: Callable[[], T]) -> None:
        self._greenlet = greenlet(run)
        self.call: Call | None = None

    def proceed(self, *output: Any) -> None:
        """Runs the pipeline to its next call of the denoiser, or to its end. Raises what the pipeline raises."""
        self.call = None
        came = self._greenlet.switch(*output)
        if self._greenlet.dead:
            self.result = came
        else:
            self.call = came

    def leave(self) -> None:
        """Unwinds the pipeline where it stands; harmless when it has ended or never began."""
        if not self._greenlet.dead:
            self._greenlet.throw()


class Rendezvous:
    """`pipe` is any diffusers pipeline; one without a denoiser of a known name runs through without ever parking."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._name = next((name for name in DENOISERS if isinstance(getattr(pipe, name, None), torch.nn.Module)), None)
        if self._name:
            self._module: torch.nn.Module = getattr(pipe, self._name)
            self._door = _Door(self._module)

    def begin(self, run: Callable[[Any], T]) -> Guest[T]:
        """`run` gets a pipeline of its own: private attributes, shared weights."""
        pipe = copy.copy(self._pipe)
        if self._name:
            # Past DiffusionPipeline.__setattr__, which would record the stand-in's class as the component's.
            pipe.__dict__[self._name] = self._door
        return Guest(lambda: run(pipe))

    def forward(self, calls: Sequence[Call]) -> list[Any]:
        """One forward for all `calls`, which have equal keys; each one's own rows of whatever the module returns."""
        first = calls[0]
        leaves = [
            torch.cat([call.leaves[i] for call in calls]) if rowwise and len(calls) > 1 else first.leaves[i]
            for i, rowwise in enumerate(first.rowwise)
        ]
        output = self._module(**tree_unflatten(leaves, first.spec))
        return _split(output, [call.rows for call in calls])


class StandIn:
    """Passes for a component of a pipeline (isinstance, attributes, context managers) in everything but the call."""

    def __init__(self, original: Any) -> None:
        self._original = original

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class _Door(StandIn):
    """The denoiser as a request sees it: calling it parks the caller."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self._names = tuple(inspect.signature(module.forward).parameters)
        # The same position ids come with every step of a request: fingerprint them once, not once a step.
        self._fingerprints: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._describe(dict(zip(self._names, args, strict=False)) | kwargs)
        engine = getcurrent().parent
        assert engine, "a pipeline must run in a Guest"
        return engine.switch(call)

    def _describe(self, arguments: Mapping[str, Any]) -> Call:
        sample = arguments[self._names[0]]  # [rows, …]; forward() takes it first in every diffusers denoiser
        rows = len(sample)
        arguments = {**arguments, "timestep": _by_row(arguments["timestep"], sample)} if "timestep" in arguments else arguments
        leaves, spec = tree_flatten(dict(arguments))
        rowwise = tuple(isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows for leaf in leaves)
        parts = tuple(self._part(leaf, by_row) for leaf, by_row in zip(leaves, rowwise, strict=True))
        return Call(tuple(leaves), rowwise, spec, rows, (repr(spec), parts))

    def _part(self, leaf: Any, rowwise: bool) -> Hashable:
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, Hashable) else id(leaf)
        kind = (leaf.dtype, leaf.device)
        return (*kind, leaf.shape[1:]) if rowwise else (*kind, leaf.shape, self._fingerprint(leaf))

    def _fingerprint(self, tensor: Tensor) -> bytes:
        if tensor not in self._fingerprints:
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            self._fingerprints[tensor] = hashlib.blake2b(data, digest_size=16).digest()
        found: bytes = self._fingerprints[tensor]
        return found


def _by_row(timestep: Any, sample: Tensor) -> Tensor:
    """A timestep for each row, [rows]. Pipelines pass one for all: int64 or float32 by scheduler, on whatever device. The
    sinusoidal embedding turns it into float32 first thing, so that calls with either can share a forward."""
    tensor = torch.as_tensor(timestep, device=sample.device)
    if not tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.expand(len(sample)) if tensor.numel() == 1 else tensor


def _split(output: Any, rows: list[int]) -> list[Any]:
    total = sum(rows)
    starts = [sum(rows[:i]) for i in range(len(rows))]

    def own(start: int, count: int) -> Callable[[Any], Any]:
        return lambda leaf: (
            leaf[start : start + count] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == total else leaf
        )

    return [tree_map(own(start, count), output) for start, count in zip(starts, rows, strict=True)]
