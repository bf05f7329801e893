"""The one thread that owns the device, and the loop that shares each forward among all who can share it.

    submit ──▶ inbox ──▶ step(): take messages → retire the late → start who fits → one forward → resume → retire

`Params` go in, a `Result` (or a ServingError) comes out of the job's future; what lies between is a `Job`, which belongs to
this thread alone. Other threads talk to it by messages.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from predictor import telemetry
from predictor.admission import Admission
from predictor.errors import Cancelled, DeadlineExceeded, GenerationFailed, NotServing, ServingError
from predictor.job import Job, Result
from predictor.rendezvous import Rendezvous
from predictor.request import Params
from predictor.scheduler import Scheduler


class Pipeline(Protocol):
    """What the engine needs of a loaded model."""

    @property
    def pipe(self) -> Any: ...

    def generate(self, pipe: Any, params: Params) -> Any:
        """Runs `pipe`, a private copy of the pipeline, with `params`."""

    def cost(self, params: Params) -> float:
        """Work, in any unit that adds up."""


@dataclass(frozen=True)
class Submit:
    job: Job


@dataclass(frozen=True)
class Cancel:
    job: Job


@dataclass(frozen=True)
class Stop:
    """Fails what is unfinished with `reason`."""

    reason: ServingError


class Engine:
    def __init__(
        self,
        pipeline: Pipeline,
        *,
        max_rows: int,
        max_queue: int,
        hang_after: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_queue`: images accepted and unfinished, at most. `hang_after`: seconds without a step that count as hung."""
        self._pipeline = pipeline
        self._hang_after = hang_after
        self._clock = clock
        self._rendezvous = Rendezvous(pipeline.pipe)
        self._scheduler: Scheduler[Job] = Scheduler(max_rows)
        self._inbox: queue.SimpleQueue[Submit | Cancel | Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._heartbeat = clock()
        self._admission = Admission(max_queue)
        self._broken = False

    # ------------------------------------------------------------ any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Params], *, timeout: float, request_id: str) -> list[Job]:
        """All of them or none. Raises QueueFull, or NotServing once closed; each job's future raises ServingErrors only."""
        now = self._clock()
        jobs = [Job(params, self._pipeline.cost(params), now + timeout, request_id, now) for params in requests]
        self._admission.admit(jobs)
        for job in jobs:
            self._inbox.put(Submit(job))
        return jobs

    def check_room(self, images: int) -> None:
        """Raises as `submit` would, for callers who have work to do before it."""
        self._admission.check(images)

    def cancel(self, job: Job) -> None:
        """Takes effect before the next forward; the job's future then raises Cancelled."""
        self._inbox.put(Cancel(job))

    def close(self, reason: ServingError) -> None:
        """From now on nothing is accepted; what has been accepted goes on."""
        self._admission.close(reason)

    def stop(self, reason: ServingError) -> None:
        """Ends the thread; what is unfinished fails with `reason`."""
        self.close(reason)
        self._inbox.put(Stop(reason))

    @property
    def open_jobs(self) -> tuple[Job, ...]:
        """Accepted and unfinished."""
        return self._admission.open_jobs

    @property
    def alive(self) -> bool:
        """The thread runs, is either idle or has made a step of late, and the device has reported no fault of its own."""
        stepping = not self.open_jobs or self._clock() - self._heartbeat < self._hang_after
        return self._thread.is_alive() and stepping and not self._broken

    # ------------------------------------------------------------ the engine's own thread

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        try:
            while not self._stopping:
                self.step()
        finally:
            self.close(NotServing("the engine has stopped", retry_after=5))
            for job in self.open_jobs:
                self._fail(job, GenerationFailed("the engine has stopped"))

    def step(self) -> None:
        """One turn of the loop. With nothing to do it waits for a message."""
        self._take_messages()
        begin = self._heartbeat = self._clock()
        self._retire_late(begin)
        while job := self._scheduler.start_next():
            self._begin(job)
        batch = self._scheduler.next_batch()
        for job, output in zip(batch, self._forward(batch), strict=True):
            self._resume(job, output)
        self._admission.note_forward(batch, self._clock() - begin)

    def _take_messages(self) -> None:
        idle = not self._scheduler.running and not self._scheduler.waiting
        while idle or not self._inbox.empty():
            match self._inbox.get():
                case Submit(job):
                    self._scheduler.add(job)
                case Cancel(job):
                    self._fail(job, Cancelled("cancelled by the caller"))
                case Stop(reason):
                    self._stopping = True
                    for job in (*self._scheduler.running, *self._scheduler.waiting):
                        self._fail(job, reason)
            idle = False

    def _retire_late(self, now: float) -> None:
        for job in (*self._scheduler.running, *self._scheduler.waiting):
            if now >= job.deadline:
                state = "half done" if job.began else "waiting"
                self._fail(job, DeadlineExceeded(f"not finished {now - job.submitted:.0f} s after it came ({state})"))

    def _begin(self, job: Job) -> None:
        job.began = self._clock()
        job.guest = self._rendezvous.begin(lambda pipe: self._pipeline.generate(pipe, job.params))
        self._resume(job)

    def _forward(self, batch: list[Job]) -> list[Any]:
        """An output for each job. A failing forward is made again one by one, so that it fails only those it must."""
        if not batch:
            return []
        outputs = self._attempt(self._rendezvous.forward, [job.guest.call for job in batch if job.guest])
        if not isinstance(outputs, _Failure):
            return list(outputs)
        return [outputs] if len(batch) == 1 else [output for job in batch for output in self._forward([job])]

    def _resume(self, job: Job, *output: Any) -> None:
        """Lets the job run to its next call of the denoiser, or to its end."""
        assert job.guest
        job.step += len(output)
        outcome = output[0] if output and isinstance(output[0], _Failure) else self._attempt(job.guest.proceed, *output)
        if isinstance(outcome, _Failure):
            telemetry.failure("generation failed", request_id=job.request_id, **outcome.described)
            self._fail(job, GenerationFailed("generation failed"))
        elif job.guest.call is None:
            now, began = self._clock(), job.began or job.submitted
            seconds = {"queue": began - job.submitted, "generate": now - began}
            self._admission.note_finished(job)
            self._retire(job)
            job.future.set_result(Result(job.guest.result, seconds))

    def _fail(self, job: Job, error: ServingError) -> None:
        if job.future.done():
            return
        if job.guest:
            self._attempt(job.guest.leave)
        self._retire(job)
        job.future.set_exception(error)

    def _retire(self, job: Job) -> None:
        self._scheduler.remove(job)
        self._admission.release(job)

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """What a pipeline or a device may raise has no bounds; it belongs to the jobs at hand and must not end the loop."""
        try:
            return action(*arguments)
        except Exception as error:  # noqa: BLE001
            # An illegal access, say: nothing works on that device any more until the process is a new one.
            self._broken = self._broken or isinstance(error, torch.AcceleratorError)
            return _Failure(telemetry.described(error))


@dataclass(frozen=True)
class _Failure:
    """What is left of an exception: the exception itself would keep the memory of the forward that raised it."""

    described: dict[str, object]
