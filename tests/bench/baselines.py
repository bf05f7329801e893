"""The predictor with another engine: what it is measured against. Everything else, from socket to PNG, is the same code.

    python -m bench.baselines --mode serial   … the predictor's own arguments …
    python -m bench.baselines --mode grouped  …

serial: one pipe() at a time, as a lock around it would have it. What the public examples do.
grouped: requests with equal parameters that wait together, or come within a window, go through one pipe() call with lists
of prompts and generators; whoever comes later waits for the end of it. What request-level batching servers do.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from prometheus_client import Counter

import predictor.__main__ as process
from predictor import loading, metrics, telemetry
from predictor.errors import Cancelled, GenerationFailed, ServingError
from predictor.job import Job as TheirJob
from predictor.job import Result
from predictor.request import Params
from predictor.speed import Estimate

_FORWARDS = Counter("baseline_forwards_total", "Forwards of the denoiser.")
_NO_ESTIMATE = Estimate(size=None, factor=1.0, rows=1, forwards=0.0, alone=0.0, shared=0.0, asides=0.0)
_ROWS = Counter("baseline_forward_rows_total", "Rows in them.")


class Job(TheirJob):
    def __init__(self, params: Params) -> None:
        super().__init__(params, _NO_ESTIMATE, "", arrived=time.monotonic(), deadline=math.inf)

    @property
    def key(self) -> Hashable:
        """What one pipe() call can have only one of."""
        differs = {"prompt": None, "seed": None, "negative_prompt": None}
        own = dataclasses.replace(self.params, **differs)  # type: ignore[arg-type]
        return own, self.params.negative_prompt is None


@dataclasses.dataclass(frozen=True)
class Group(Params):
    """Several requests as one, in the form that TextToImage.generate takes: `prompt` and `negative_prompt` are lists."""

    every_seed: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.every_seed

    @classmethod
    def of(cls, members: Sequence[Params]) -> Group:
        first = members[0]
        negative = None if first.negative_prompt is None else [each.negative_prompt for each in members]
        lists: dict[str, Any] = {"prompt": [each.prompt for each in members], "negative_prompt": negative}
        return cls(**vars(first) | lists, every_seed=tuple(seed for each in members for seed in each.seeds))


class Engine:
    """The interface of predictor.engine.Engine over whole pipe() calls. Accepts whatever comes."""

    def __init__(self, model: Any, *_: object, max_batch: int, window: float, **__: object) -> None:
        """At most `max_batch` requests in a call; `window`: seconds that the first of a group waits for others."""
        self._model = model
        self._max_batch, self._window = max_batch, window
        self._queue: deque[Job] = deque()
        self._making: list[Job] = []
        self._news = threading.Condition()
        self._closed: ServingError | None = None
        self._stopped: ServingError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        _count_forwards(model.pipe)
        metrics.row_limit.set(0)  # what warming up has measured is not used

    # ------------------------------------------------------------ what the service calls

    def start(self) -> None:
        self._thread.start()

    def check_room(self, *_: object, **__: object) -> None:
        if self._closed:
            raise self._closed.with_traceback(None)

    def submit(self, requests: Sequence[Params], **_: object) -> list[Job]:
        self.check_room()
        jobs = [Job(params) for params in requests]
        with self._news:
            self._queue.extend(jobs)
            self._news.notify()
        return jobs

    def cancel(self, job: Job) -> None:
        with self._news:
            if job in self._queue:
                self._queue.remove(job)
                job.future.set_exception(Cancelled("cancelled by the caller"))

    def close(self, reason: ServingError) -> None:
        self._closed = self._closed or reason

    def stop(self, reason: ServingError) -> None:
        self.close(reason)
        with self._news:
            self._stopped = reason
            self._news.notify()

    @property
    def open_jobs(self) -> tuple[Job, ...]:
        with self._news:
            return *self._making, *self._queue

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    broken = False

    # ------------------------------------------------------------ its own thread

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        while jobs := self._next():
            self._make(jobs)
            with self._news:
                self._making = []
        for job in self._queue:
            assert self._stopped
            job.future.set_exception(self._stopped)

    def _next(self) -> list[Job]:
        """The longest waiting with those like it, once its window is over or they are enough. Empty: stop."""
        with self._news:
            while not self._stopped:
                group = [job for job in self._queue if job.key == self._queue[0].key][: self._max_batch]
                left = group[0].arrived + self._window - time.monotonic() if len(group) < self._max_batch and group else 0.0
                if group and left <= 0:
                    self._queue = deque(job for job in self._queue if job not in group)
                    self._making = group
                    return group
                self._news.wait(left if group else None)
            return []

    def _make(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.enter("generate", time.monotonic())
        params = jobs[0].params if len(jobs) == 1 else Group.of([job.params for job in jobs])
        try:
            output = self._model.generate(copy.copy(self._model.pipe), params)
        except Exception as error:  # noqa: BLE001  a pipeline may raise anything; it belongs to these jobs
            telemetry.failure("generation failed", **telemetry.described(error))
            for job in jobs:
                job.future.set_exception(GenerationFailed("generation failed"))
            return
        for i, job in enumerate(jobs):
            job.enter("done", time.monotonic())
            job.future.set_result(Result(_part(output, i, len(jobs)), job.seconds))


def _part(output: Any, i: int, count: int) -> Any:
    """The i-th of `count` equal parts of a pipeline's output: its pictures, and what is told of each."""
    total = len(output.images)
    each = total // count
    fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    own = {name: value[i * each : (i + 1) * each] if value is not None else None for name, value in fields.items()}
    return type(output)(**own)


def _count_forwards(pipe: Any) -> None:
    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        _FORWARDS.inc()
        _ROWS.inc(len(sample))

    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    denoiser.register_forward_pre_hook(note, with_kwargs=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.baselines", description="The predictor with a baseline's engine.")
    parser.add_argument("--mode", choices=("serial", "grouped"), required=True)
    parser.add_argument("--window", type=float, default=0.05, help="seconds that a group waits for more (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=8, help="most requests in one pipe() call (default: %(default)s)")
    args, rest = parser.parse_known_args()
    grouped = args.mode == "grouped"
    of_the_mode = {"max_batch": args.max_batch, "window": args.window} if grouped else {"max_batch": 1, "window": 0.0}
    loading.Engine = functools.partial(Engine, **of_the_mode)  # type: ignore[assignment,misc]
    return process.main(rest)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # as the predictor itself ends
