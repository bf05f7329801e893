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
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from predictor import telemetry
from predictor.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    NotServing,
    QueueFull,
    ServingError,
)
from predictor.rendezvous import Guest, Rendezvous
from predictor.request import Params
from predictor.scheduler import Scheduler


@dataclass(frozen=True)
class Result:
    """What a pipeline returned, and the seconds it took: `queue` before it began, `generate` after that."""

    output: Any
    seconds: dict[str, float]


class Pipeline(Protocol):
    """What the engine needs of a loaded model."""

    @property
    def pipe(self) -> Any: ...

    def generate(self, pipe: Any, params: Params) -> Any:
        """Runs `pipe`, a private copy of the pipeline, with `params`."""

    def cost(self, params: Params) -> float:
        """Work, in any unit that adds up."""


_FAILURES_OF_A_BROKEN_DEVICE = 5  # in a row, with no forward that worked between them


class Job:
    """A request on its way. `rows` is a guess until its first call of the denoiser tells."""

    def __init__(self, params: Params, cost: float, deadline: float, request_id: str, now: float) -> None:
        self.params = params
        self.cost = cost
        self.deadline = deadline
        self.request_id = request_id
        self.submitted = now
        self.began: float | None = None
        self.step = 0  # forwards so far
        self.guest: Guest[Any] | None = None
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # whoever waits may stop waiting, but only the engine ends it

    @property
    def rows(self) -> int:
        call = self.guest and self.guest.call
        return call.rows if call else self.params.num_images_per_prompt * (2 if (self.params.guidance_scale or 0) > 1 else 1)

    @property
    def key(self) -> Hashable:
        return self.guest.call.key if self.guest and self.guest.call else None


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
        self._max_queue = max_queue
        self._hang_after = hang_after
        self._clock = clock
        self._rendezvous = Rendezvous(pipeline.pipe)
        self._scheduler: Scheduler[Job] = Scheduler(max_rows)
        self._inbox: queue.SimpleQueue[Submit | Cancel | Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._heartbeat = clock()
        # What other threads read; guarded by the lock.
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self._closed: ServingError | None = None
        self._speed: float | None = None  # cost per second while busy, moving average
        self._forwards_per_step: dict[str | None, float] = {}  # by sampler, from finished jobs: Heun's makes two
        self._failures = 0  # in a row

    # ------------------------------------------------------------ any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Params], *, timeout: float, request_id: str) -> list[Job]:
        """All of them or none. Raises QueueFull, or NotServing once closed; each job's future raises ServingErrors only."""
        now = self._clock()
        jobs = [Job(params, self._pipeline.cost(params), now + timeout, request_id, now) for params in requests]
        with self._lock:
            self._check_room(sum(params.num_images_per_prompt for params in requests))
            self._open.update(jobs)
        for job in jobs:
            self._inbox.put(Submit(job))
        return jobs

    def check_room(self, images: int) -> None:
        """Raises as `submit` would, for callers who have work to do before it."""
        with self._lock:
            self._check_room(images)

    def _check_room(self, images: int) -> None:
        if self._closed:
            raise self._closed.with_traceback(None)
        if images > self._max_queue:
            raise InvalidRequest(f"a request must ask for at most {self._max_queue} images in all, not {images}")
        taken = sum(job.params.num_images_per_prompt for job in self._open)
        if taken + images > self._max_queue:
            raise QueueFull(
                f"{taken} of at most {self._max_queue} pictures are being made or waited for; {images} more do not fit",
                retry_after=self._seconds_of_work(),
            )

    def cancel(self, job: Job) -> None:
        """Takes effect before the next forward; the job's future then raises Cancelled."""
        self._inbox.put(Cancel(job))

    def close(self, reason: ServingError) -> None:
        """From now on nothing is accepted; what has been accepted goes on."""
        with self._lock:
            self._closed = self._closed or reason

    def stop(self, reason: ServingError) -> None:
        """Ends the thread; what is unfinished fails with `reason`."""
        self.close(reason)
        self._inbox.put(Stop(reason))

    @property
    def open_jobs(self) -> tuple[Job, ...]:
        """Accepted and unfinished."""
        with self._lock:
            return tuple(self._open)

    @property
    def alive(self) -> bool:
        """The thread runs, is either idle or has made a step of late, and not everything that it tries fails."""
        stepping = not self.open_jobs or self._clock() - self._heartbeat < self._hang_after
        return self._thread.is_alive() and stepping and self._failures < _FAILURES_OF_A_BROKEN_DEVICE

    def _seconds_of_work(self) -> int:
        """Until all that is open will be done, at the speed seen so far."""
        work = sum(job.cost * max(1 - job.step * self._share(job), 0) for job in self._open)
        return min(max(math.ceil(work / self._speed), 1), 600) if self._speed else 1

    def _share(self, job: Job) -> float:
        """Of a job's work that one forward does, as far as is known."""
        return 1 / (job.params.num_inference_steps * self._forwards_per_step.get(job.params.scheduler, 1.0))

    # ------------------------------------------------------------ the engine's own thread

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        try:
            while not self._stopping:
                self.step()
        finally:
            self.close(NotServing("the engine has stopped", retry_after=5))
            with self._lock:
                left = list(self._open)
            for job in left:
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
        self._note_speed(batch, self._clock() - begin)

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
            self._failures = 0
            return list(outputs)
        self._failures += len(batch) == 1
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
            self._forwards_per_step[job.params.scheduler] = max(job.step / job.params.num_inference_steps, 0.5)
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
        with self._lock:
            self._open.discard(job)

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """What a pipeline or a device may raise has no bounds; it belongs to the jobs at hand and must not end the loop."""
        try:
            return action(*arguments)
        except Exception as error:  # noqa: BLE001
            return _Failure(telemetry.described(error))

    def _note_speed(self, batch: list[Job], seconds: float) -> None:
        if batch and seconds > 0:
            speed = sum(job.cost * self._share(job) for job in batch) / seconds
            with self._lock:
                self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed


@dataclass(frozen=True)
class _Failure:
    """What is left of an exception: the exception itself would keep the memory of the forward that raised it."""

    described: dict[str, object]
