"""Where requests meet: the denoiser that each unmodified `pipe(...)` call sees is a door behind which one forward serves all.

Every request runs its pipeline in a greenlet of its own, on a shallow copy of the pipeline whose denoiser is a stand-in.
Calling the stand-in parks the greenlet: control goes back to whoever let it proceed, with the arguments as a `Call`. Calls
with equal keys are put together row by row, the real module runs once, and each greenlet proceeds with its own rows.

    guest = rendezvous.begin(lambda pipe: pipe(prompt, …))
    guest.proceed()                        # text encoding … up to the first step
    while guest.call:
        [output] = rendezvous.forward([guest.call])
        guest.proceed(output)              # sampler step … up to the next call, or to the end
    guest.result

The decoder has a door too, so that a picture is decoded when it suits everybody; its calls have no key and go through alone.

All of it belongs to one thread. Gradients must be off for that thread: `@torch.no_grad()` around `pipe.__call__` would
switch them on again for everybody when one request ends.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

DENOISERS = ("unet", "transformer")
DECODERS = ("vae", "movq")
_TIMES = ("timestep", "timesteps", "t")  # what denoisers call the noise level

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Call:
    """One parked call of the denoiser: `rows` along dimension 0 of every leaf in `rowwise`, the rest shared.

    Calls with equal keys may be put together: their tensors agree in everything but values and row count, and what has no
    rows (position ids, flags) is equal. Texts may differ in length too, where the denoiser takes a mask for them.
    """

    leaves: tuple[Any, ...]
    rowwise: tuple[bool, ...]  # for each leaf
    spec: TreeSpec
    rows: int
    key: Hashable
    texts: tuple[tuple[int, int], ...] = ()  # leaves [rows, length, …] with the leaf, perhaps None, that is their mask

    @property
    def arguments(self) -> dict[str, Any]:
        """As the denoiser takes them."""
        found: dict[str, Any] = tree_unflatten(self.leaves, self.spec)
        return found


@dataclass(frozen=True)
class Decode:
    """One parked call of the decoder."""

    run: Callable[[], Any]


class Guest(Generic[T]):
    """One request on its way: at a door (`call` is set) or done (`result` is set)."""

    result: T

    def __init__(self, run: Callable[[], T]) -> None:
        self._greenlet = greenlet(run)
        self.call: Call | Decode | None = None

    def proceed(self, *output: Any) -> None:
        """Runs the pipeline to its next call, or to its end. Raises what the pipeline raises."""
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


def decoders(pipe: Any) -> dict[str, Any]:
    """The components that make pictures of latents, by name."""
    found = {name: getattr(pipe, name, None) for name in DECODERS}
    return {name: decoder for name, decoder in found.items() if hasattr(decoder, "decode")}


class Rendezvous:
    """`pipe` is any diffusers pipeline; one without a denoiser of a known name runs through without ever parking."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._doors: dict[str, Any] = {}
        name = next((name for name in DENOISERS if isinstance(getattr(pipe, name, None), torch.nn.Module)), None)
        if name:
            self.denoiser: torch.nn.Module = getattr(pipe, name)
            self._doors[name] = _DenoiserDoor(self.denoiser)
        self._doors |= {name: _DecoderDoor(decoder) for name, decoder in decoders(pipe).items()}

    @property
    def has_doors(self) -> bool:
        """Whether a request ever parks."""
        return bool(self._doors)

    def begin(self, run: Callable[[Any], T]) -> Guest[T]:
        """`run` gets a pipeline of its own: private attributes, shared weights."""
        pipe = copy.copy(self._pipe)
        # Past DiffusionPipeline.__setattr__, which would record the stand-in's class as the component's.
        pipe.__dict__.update(_stateful(self._pipe) | self._doors)
        return Guest(lambda: run(pipe))

    def forward(self, calls: Sequence[Call], least_rows: int = 0) -> list[Any]:
        """One forward for all `calls`, which have equal keys, filled up to `least_rows` with rows that nobody wants; each
        call's own rows of whatever the module returns."""
        together = gathered(calls)
        if together.rows < least_rows:
            together = resized(together, least_rows)
        output = self.denoiser(**together.arguments)
        return _split(output, [call.rows for call in calls], together)


def _stateful(pipe: Any) -> dict[str, Any]:
    """Copies of what remembers steps, samplers and guiders: requests that take turns have each its own."""
    return {
        name: copy.deepcopy(part)
        for name, part in vars(pipe).items()
        if isinstance(part, ConfigMixin) and not isinstance(part, torch.nn.Module)
    }


def gathered(calls: Sequence[Call]) -> Call:
    """Calls with equal keys as one."""
    if len(calls) == 1:
        return calls[0]
    calls = _even(calls)
    first = calls[0]
    leaves = tuple(
        _joined([call.leaves[i] for call in calls]) if rowwise else first.leaves[i] for i, rowwise in enumerate(first.rowwise)
    )
    return replace(first, leaves=leaves, rows=sum(call.rows for call in calls))


def resized(call: Call, rows: int) -> Call:
    """The same with so many rows: its own over and over, from the first."""
    times = -(-rows // call.rows)
    leaves = tuple(
        _joined([leaf] * times)[:rows] if rowwise else leaf for leaf, rowwise in zip(call.leaves, call.rowwise, strict=True)
    )
    return replace(call, leaves=leaves, rows=rows)


def _even(calls: Sequence[Call]) -> Sequence[Call]:
    """With texts of one length: the shorter filled up with zeros, and masks that say so."""
    for text, mask in calls[0].texts:
        longest = max(call.leaves[text].shape[1] for call in calls)
        if any(call.leaves[text].shape[1] < longest for call in calls):
            calls = [_stretched(call, text, mask, longest) for call in calls]
    return calls


def _stretched(call: Call, text: int, mask: int, length: int) -> Call:
    leaves, rowwise = list(call.leaves), list(call.rowwise)
    missing = length - leaves[text].shape[1]
    if leaves[mask] is None:
        leaves[mask], rowwise[mask] = leaves[text].new_ones(leaves[text].shape[:2], dtype=torch.bool), True
    for i in (text, mask):
        filling = (0, 0) * (leaves[i].ndim - 2) + (0, missing)  # from the last dimension to the second
        leaves[i] = torch.nn.functional.pad(leaves[i], filling)
    return replace(call, leaves=tuple(leaves), rowwise=tuple(rowwise))


class StandIn:
    """Passes for a component of a pipeline (isinstance, attributes, context managers) in everything but the call. What others
    set on it is set on the original, but for names with an underscore, which are its own."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._original, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _park(call: Call | Decode) -> Any:
    engine = getcurrent().parent
    assert engine, "a pipeline must run in a Guest"
    return engine.switch(call)


class _DecoderDoor(StandIn):
    """The decoder as a request sees it."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return _park(Decode(lambda: self._original.decode(*args, **kwargs)))


class _DenoiserDoor(StandIn):
    """The denoiser as a request sees it: calling it parks the caller."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__(module)
        self._names = tuple(inspect.signature(module.forward).parameters)
        self._texts = tuple(name for name in self._names if f"{name}_mask" in self._names)
        # The same position ids come with every step of a request: fingerprint them once, not once a step.
        self._fingerprints: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _park(self._describe(dict(zip(self._names, args, strict=False)) | kwargs))

    def _describe(self, arguments: Mapping[str, Any]) -> Call:
        sample = arguments[self._names[0]]  # forward() takes it first in every diffusers denoiser: [rows, …] or a list of rows
        rows = len(sample)
        device = sample.device if isinstance(sample, Tensor) else sample[0].device
        times = {name: _by_row(arguments[name], rows) for name in _TIMES if name in arguments}
        masks = {f"{name}_mask": arguments.get(f"{name}_mask") for name in self._texts}
        arguments = {**arguments, **times, **masks}
        leaves, spec = tree_flatten(arguments, None if isinstance(sample, Tensor) else _list_of(rows))
        odd = {id(tensor) for value in arguments.values() if value is not sample for tensor in _unlike(value, rows)}
        rowwise = tuple(_has_rows(leaf, rows) and id(leaf) not in odd for leaf in leaves)
        parts = [self._part(leaf, by_row) for leaf, by_row in zip(leaves, rowwise, strict=True)]
        texts = tuple(self._place(arguments, name) for name in self._texts if isinstance(arguments.get(name), Tensor))
        texts = tuple((text, mask) for text, mask in texts if rowwise[text] and (rowwise[mask] or leaves[mask] is None))
        for text, mask in texts:
            parts[text], parts[mask] = (leaves[text].dtype, leaves[text].shape[2:]), getattr(leaves[mask], "dtype", None)
        key = (repr(spec), tuple(parts))
        return Call(tuple(_on(device, leaf) for leaf in leaves), rowwise, spec, rows, key, texts)

    def _place(self, arguments: Mapping[str, Any], name: str) -> tuple[int, int]:
        """Of a text and of its mask, among the leaves."""
        before = [len(tree_leaves(value)) for value in arguments.values()]
        names = list(arguments)
        text, mask = (sum(before[: names.index(each)]) for each in (name, f"{name}_mask"))
        return text, mask

    def _part(self, leaf: Any, rowwise: bool) -> Hashable:
        """What two calls must agree in to be put together."""
        if isinstance(leaf, list):  # of rows, which may differ in size: then the denoiser itself puts them together
            return (leaf[0].dtype, leaf[0].shape[-1])
        if not isinstance(leaf, Tensor):
            return leaf if isinstance(leaf, Hashable) else id(leaf)
        return (leaf.dtype, leaf.shape[1:]) if rowwise else (leaf.dtype, leaf.shape, self._fingerprint(leaf))

    def _fingerprint(self, tensor: Tensor) -> bytes:
        version = None if tensor.is_inference() else tensor._version  # counts what is written into it
        if tensor not in self._fingerprints or self._fingerprints[tensor][0] != version:
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            self._fingerprints[tensor] = version, hashlib.blake2b(data, digest_size=16).digest()
        found: bytes = self._fingerprints[tensor][1]
        return found


# ---------------------------------------------------------------- leaves with rows: tensors, and lists of a tensor for each row


def _list_of(rows: int) -> Callable[[Any], bool]:
    return lambda node: isinstance(node, list) and len(node) == rows and all(isinstance(row, Tensor) for row in node)


def _unlike(value: Any, rows: int) -> list[Tensor]:
    """The tensors of a list of which not all have rows: then none has, and where a length is right it is by chance."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)] if isinstance(value, list | tuple) else []
    return [] if all(_has_rows(tensor, rows) for tensor in tensors) else tensors


def _has_rows(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, list) or (isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == rows)


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]


def _on(device: torch.device, leaf: Any) -> Any:
    return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) and leaf.device != device else leaf


def _by_row(timestep: Any, rows: int) -> Tensor:
    """A timestep for each row, [rows]. Pipelines pass one for all: int64 or float32 by sampler, on whatever device. The
    sinusoidal embedding turns it into float32 first thing, so that calls with either can share a forward."""
    tensor = torch.as_tensor(timestep)
    if not tensor.is_floating_point():
        tensor = tensor.float()
    if tensor.ndim == 1 and 1 < len(tensor) < rows and rows % len(tensor) == 0:
        return tensor.repeat_interleave(rows // len(tensor))  # one for each half of the rows, however many
    return tensor.expand(rows) if tensor.numel() == 1 else tensor


def _split(output: Any, rows: list[int], together: Call) -> list[Any]:
    """`output` has the rows of `together`; those counted in `rows` are wanted, from the first."""
    is_leaf = _list_of(together.rows) if any(isinstance(leaf, list) for leaf in together.leaves) else None
    starts = [sum(rows[:i]) for i in range(len(rows))]

    def own(start: int, count: int) -> Callable[[Any], Any]:
        return lambda leaf: leaf[start : start + count] if _has_rows(leaf, together.rows) else leaf

    return [tree_map(own(start, count), output, is_leaf=is_leaf) for start, count in zip(starts, rows, strict=True)]
