"""One model while a GPU is measured with it: its pipeline, our engine around it, and its denoiser by itself."""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from predictor import model as model_module
from predictor import settings, snapshot
from predictor.errors import NotServing
from predictor.request import GenerateRequest, Params, parse
from predictor.service import Service

ROWS = (1, 2, 4, 8, 16)
_REPEATS = 10  # of a forward, at most
FEW = 4  # steps; some samplers cannot make fewer
_POINT = 6.0  # seconds that one row count may take
_PROMPT = "a lighthouse in a storm, oil on canvas"


@dataclass
class Subject:
    """One model while it is being measured."""

    name: str
    device: torch.device
    dtype: torch.dtype
    steps: int
    peak: float  # TFLOP/s
    pipe: Any = None
    seconds: float = 0.0  # of a picture by bare pipe()
    inputs: Inputs | None = None
    latents: torch.Tensor | None = None  # that the decoder was given
    eager: dict[int, float] = field(default_factory=dict)  # seconds of a forward by rows
    _service: Service | None = None

    @property
    def denoiser(self) -> torch.nn.Module:
        found: torch.nn.Module = getattr(self.pipe, "unet", None) or self.pipe.transformer
        return found

    @property
    def parameters(self) -> int:
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        return sum(weight.numel() for part in parts for weight in part.parameters())

    @property
    def service(self) -> Service:
        """As the predictor itself would have loaded it from a volume."""
        if not self._service:
            self._service = _loaded(self)
        return self._service

    def asked(self, seed: int, steps: int) -> Params:
        model = self.service.model
        assert model
        return parse(GenerateRequest(_PROMPT, {"seed": seed, "num_inference_steps": steps}), model.limits)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        engine = self._service and self._service._loaded and self._service._loaded.engine
        if engine:
            engine.stop(NotServing("measured"))
        self.pipe = self.inputs = self.latents = self._service = None


def _loaded(subject: Subject) -> Service:
    """The whole way of a start, but for the volume: what it would have read is there already."""
    found = snapshot.Snapshot(Path(), f"bench/{subject.name}", "0" * 40, None, type(subject.pipe).__name__, 0)
    dtype = str(subject.dtype).removeprefix("torch.")
    flags = ["--model-id", found.repo, "--device", subject.device.type, "--dtype", dtype, "--max-queue-seconds", "100000"]
    service = Service(settings.read(flags, {})[0])
    with (
        mock.patch.object(snapshot, "find", lambda *_: found),
        mock.patch.object(model_module, "_read", lambda *_: subject.pipe),
    ):
        service.load()
    return service


# ---------------------------------------------------------------- the denoiser by itself


@dataclass(frozen=True)
class Inputs:
    """What a pipeline called its denoiser with, for any number of rows."""

    leaves: tuple[Any, ...]
    spec: TreeSpec
    rows: int

    @classmethod
    def of(cls, denoiser: torch.nn.Module, run: Callable[[], object]) -> Inputs:
        """Those of the first call that `run` makes."""
        calls: list[dict[str, Any]] = []
        names = tuple(inspect.signature(denoiser.forward).parameters)

        def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(dict(zip(names, args, strict=False)) | kwargs)

        hook = denoiser.register_forward_pre_hook(note, with_kwargs=True)
        try:
            run()
        finally:
            hook.remove()
        arguments = calls[0]
        sample = arguments[names[0]]
        # One timestep for each row, on the device: a number on the host would be a copy in every forward.
        timestep = torch.as_tensor(arguments["timestep"], device=sample.device).float().flatten().expand(len(sample))
        leaves, spec = tree_flatten({**arguments, "timestep": timestep})
        return cls(tuple(leaves), spec, len(sample))

    def resized(self, rows: int) -> dict[str, Any]:
        """Every row differs from every other, and the first is the same whatever `rows` is."""
        draw = torch.Generator().manual_seed(0)
        found: dict[str, Any] = tree_unflatten([self._leaf(leaf, rows, draw) for leaf in self.leaves], self.spec)
        return found

    def _leaf(self, leaf: Any, rows: int, draw: torch.Generator) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim or len(leaf) != self.rows:
            return leaf
        first = leaf[:1].expand(rows, *leaf.shape[1:])
        if leaf.ndim == 1 or not leaf.is_floating_point():  # times, scales and masks
            return first.contiguous()
        noise = torch.randn(leaf.shape[1:], generator=draw).to(leaf)
        return torch.stack([row + noise * i / len(ROWS) for i, row in enumerate(first)])


def forward_of(subject: Subject, rows: int) -> Callable[[], Any]:
    assert subject.inputs
    arguments, denoiser = subject.inputs.resized(rows), subject.denoiser
    return lambda: denoiser(**arguments)


def timed(subject: Subject, action: Callable[[], object], limit: float = _POINT) -> float:
    """Median seconds, each waited for: what is launched slowly and what runs slowly count alike."""
    seconds: list[float] = []
    end = time.perf_counter() + limit
    for _ in range(2):  # kernels are found and loaded
        action()
    subject.finish()
    while len(seconds) < 2 or (len(seconds) < _REPEATS and time.perf_counter() < end):
        begin = time.perf_counter()
        action()
        subject.finish()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def by_rows(
    subject: Subject, left: float, make: Callable[[int], Callable[[], object]], rows: Sequence[int] = ROWS
) -> dict[int, float]:
    """Seconds by rows, as far as a forward of so many may be expected to fit."""
    found: dict[int, float] = {}
    end = time.perf_counter() + left
    for count in rows:
        expected = max((seconds * count / rows for rows, seconds in found.items()), default=0.0)
        if 4 * expected > min(_POINT * 2, end - time.perf_counter()):
            break
        try:
            found[count] = timed(subject, make(count))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    return found


def milliseconds(by_rows: dict[int, float]) -> dict[int, float]:
    return {rows: round(1000 * seconds, 3) for rows, seconds in by_rows.items()}


# ---------------------------------------------------------------- pictures


def bare(subject: Subject, steps: int) -> object:
    pipe = copy.copy(subject.pipe)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return pipe(_PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(1))


def timed_once(subject: Subject, steps: int) -> float:
    begin = time.perf_counter()
    bare(subject, steps)
    subject.finish()
    return time.perf_counter() - begin


def made(subject: Subject, steps: Sequence[int]) -> float:
    """Seconds until our engine has made a picture for each number of steps, all asked for at once."""
    engine = subject.service._loaded.engine
    assert engine
    requests = [subject.asked(seed, each) for seed, each in enumerate(steps)]
    begin = time.perf_counter()
    jobs = [job for request in requests for job in engine.submit([request], timeout=3600, request_id="bench")]
    try:
        for job in jobs:
            np.asarray(job.future.result().output.images[0])  # waits for the pixels too
        return time.perf_counter() - begin
    finally:
        for job in jobs:
            engine.cancel(job)  # of use only where the time ran out
