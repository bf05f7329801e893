"""The one thread that owns the device, and the loop that shares each forward among all who can share it.

    submit ──▶ inbox ──▶ step(): take messages → retire the late → decode and begin → one forward → resume

`Params` go in, a `Result` (or a ServingError) comes out of the job's future; what lies between is a `Job`, which belongs to
this thread alone. Other threads talk to it by messages.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from predictor import metrics, telemetry
from predictor.admission import Admission
from predictor.device import Device, Failure
from predictor.errors import Cancelled, DeadlineExceeded, GenerationFailed, NotServing, ServingError
from predictor.job import Job, Result, Watch
from predictor.messages import Cancel, Message, Replace, Stop, Submit
from predictor.policy import Policy
from predictor.rendezvous import Call, Decode, Rendezvous
from predictor.request import Params
from predictor.scheduler import Scheduler
from predictor.speed import Estimate, Speed

# A device hangs when it takes so many times longer than expected, and at least so long: a first forward of a new size, with
# kernels to load and to choose, takes seconds.
_HANGS_AFTER_TIMES = 50
_HANGS_AFTER_AT_LEAST = 20.0


class Pipeline(Protocol):
    """What the engine needs of a loaded model."""

    @property
    def pipe(self) -> Any: ...

    def generate(self, pipe: Any, params: Params, job: Job) -> Any:
        """Runs `pipe`, a private copy of the pipeline, with `params`, and tells `job` of each step."""

    def relative_size(self, params: Params) -> float:
        """Pixels of one picture, in pictures of default size."""

    def decode_in_tiles(self, decode: Callable[[], Any]) -> Any:
        """Runs `decode` with less memory, if it can be done."""


class Engine:
    def __init__(
        self,
        pipeline: Pipeline,
        policy: Policy,
        *,
        on_fault: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_fault` is called in the engine's thread, after everybody has been told, when only a new process can help."""
        self._pipeline = pipeline
        self._policy = policy
        self._on_fault = on_fault
        self._clock = clock
        self._rendezvous = Rendezvous(pipeline.pipe)
        self._device = Device(torch.device(getattr(pipeline.pipe, "device", "cpu")), clock)
        self._speed = Speed(policy.curve, policy.row_limit, fixed_rows=policy.fixed_rows)
        self._scheduler: Scheduler[Job] = Scheduler(lambda job: self._speed.most_rows(job.estimate.factor), policy.first_come)
        self._decoding: deque[Job] = deque()
        self._admission = Admission(policy.max_seconds, self._scheduler.rank)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._heartbeat = clock()
        self._patience = policy.hang_after
        metrics.row_limit.set(policy.row_limit)

    # ------------------------------------------------------------ any thread

    def start(self) -> None:
        self._thread.start()
        metrics.queue_depth.set_function(lambda: sum(job.stage == "queue" for job in self.open_jobs))
        metrics.running.set_function(lambda: sum(job.stage != "queue" for job in self.open_jobs))
        metrics.accepted_work_seconds.set_function(lambda: sum(job.load for job in self.open_jobs))
        metrics.last_tick_seconds.set_function(lambda: self.silent)
        for kind, read in self._device.memory.items():
            metrics.device_memory.labels(kind).set_function(read)

    def submit(self, requests: Sequence[Params], *, timeout: float, request_id: str, watch: Watch | None = None) -> list[Job]:
        """All of them or none. Raises QueueFull or InvalidRequest where there is no time for them, NotServing once closed; each
        job's future raises ServingErrors only."""
        jobs = self._jobs(requests, timeout, request_id)
        if not self.open_jobs:
            self._beat(self._policy.hang_after)  # it has been idle, not hung
        self._admission.admit(jobs)
        for job in jobs:
            job.watch = watch
            self._inbox.put(Submit(job))
        return jobs

    def check_room(self, requests: Sequence[Params], *, timeout: float) -> None:
        """Raises as `submit` would, for callers who have work to do before it."""
        self._admission.check(self._jobs(requests, timeout, ""))

    def cancel(self, job: Job) -> None:
        """Takes effect before the next forward; the job's future then raises Cancelled."""
        self._inbox.put(Cancel(job))

    def replace_denoiser(self, denoiser: torch.nn.Module) -> None:
        """Takes effect before the next forward."""
        self._inbox.put(Replace(denoiser))

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
        """The thread runs, is either idle or within its time, and the device has reported no fault of its own."""
        return self._thread.is_alive() and self.silent < self._patience and not self._device.broken

    @property
    def silent(self) -> float:
        """Seconds since its last sign of life. Where there is nothing to do there is nothing to tell: 0."""
        return self._clock() - self._heartbeat if self.open_jobs else 0.0

    def _jobs(self, requests: Sequence[Params], timeout: float, request_id: str) -> list[Job]:
        now = self._clock()
        estimates = [self._speed.estimate(params, self._pipeline.relative_size(params)) for params in requests]
        return [
            Job(params, estimate, request_id, arrived=now, deadline=now + timeout)
            for params, estimate in zip(requests, estimates, strict=True)
        ]

    # ------------------------------------------------------------ the engine's own thread

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        try:
            while not self._stopping and not self._device.broken:
                self.step()
        finally:
            self.close(NotServing("the engine has stopped", retry_after=5, reason="device"))
            reason: ServingError = GenerationFailed("the engine has stopped")
            if self._device.broken:
                reason = NotServing("the device of this replica has failed", retry_after=5, reason="device")
            for job in self.open_jobs:
                self._fail(job, reason)
            if not self._stopping:
                self._on_fault()

    def step(self) -> None:
        """One turn of the loop. With nothing to do it waits for a message."""
        self._take_messages()
        self._retire_late()
        self._between_forwards()
        batch = self._scheduler.next_batch() if not self._device.broken else []
        rows = sum(job.rows for job in batch)
        for job, output in zip(batch, self._forward(batch), strict=True):
            job.forwards += 1
            job.rows_shared += rows
            self._resume(job, output)

    def _take_messages(self) -> None:
        idle = not self._scheduler and not self._decoding
        while idle or not self._inbox.empty():
            match self._inbox.get():
                case Submit(job) if not job.future.done():
                    self._scheduler.add(job)
                case Cancel(job):
                    self._fail(job, Cancelled("cancelled by the caller"))
                case Replace(denoiser):
                    self._rendezvous.denoiser = denoiser
                    self._device.forward_plainly()
                case Stop(reason):
                    self._stopping = True
                    for job in self.open_jobs:
                        self._fail(job, reason)
            idle = False

    def _retire_late(self) -> None:
        now = self._clock()
        for job in (*self._scheduler, *self._decoding):
            if now >= job.deadline:
                state = "waiting" if job.stage == "queue" else "half done"
                self._fail(job, DeadlineExceeded(f"not finished {now - job.arrived:.0f} s after it came ({state})"))

    def _between_forwards(self) -> None:
        """Decoding and beginning: one at least, and as many more as take no longer together than the next forward, which they
        hold up. Where they hold up nobody there is no hurry: then messages come first."""
        begin = self._clock()
        while not self._device.broken:
            if self._decoding:
                self._decode(self._decoding.popleft())
            elif job := self._scheduler.next_start():
                self._begin(job)
            else:
                break
            waiting = self._scheduler.next_batch()
            if not waiting or self._clock() - begin >= self._expected(waiting):
                break

    def _begin(self, job: Job) -> None:
        self._beat(self._policy.hang_after)
        self._device.begin()
        job.enter("text" if self._rendezvous.has_doors else "generate", self._clock())
        job.guest = self._rendezvous.begin(lambda pipe: self._pipeline.generate(pipe, job.params, job))
        self._resume(job)
        if job.call:
            self._device.attempt(self._device.end, self._speed.note_text)

    def _decode(self, job: Job) -> None:
        assert job.guest and isinstance(job.guest.call, Decode)
        self._beat(self._policy.hang_after)
        self._device.begin()
        run = job.guest.call.run
        output = self._device.attempt(run)
        if isinstance(output, Failure) and output.out_of_memory:
            self._release_memory()
            output = self._device.attempt(self._pipeline.decode_in_tiles, run)
        self._resume(job, output)
        self._device.attempt(self._device.end, partial(self._speed.note_decode, job.params, job.estimate.factor))

    def _forward(self, batch: list[Job]) -> list[Any]:
        """An output for each job. A failing forward is made again in halves, so that it fails only those it must."""
        if not batch:
            return []
        estimate, rows = batch[0].estimate, sum(job.rows for job in batch)
        least = self._speed.least_rows(estimate.factor)
        self._beat(_HANGS_AFTER_TIMES * self._expected(batch))
        self._device.begin()
        outputs = self._device.attempt(self._device.forward, self._rendezvous.forward, [job.call for job in batch], least)
        if not isinstance(outputs, Failure):
            self._device.attempt(self._device.end, partial(self._note_forward, estimate, rows))
            return list(outputs)
        if outputs.out_of_memory:
            self._release_memory()
            if len(batch) > 1 or least > rows:
                self._lower_row_limit(max(rows, least) * estimate.factor)
        if self._device.broken or (len(batch) == 1 and self._speed.least_rows(estimate.factor) == least):
            return [outputs] * len(batch)
        half = max(len(batch) // 2, 1)
        return self._forward(batch[:half]) + self._forward(batch[half:])

    def _note_forward(self, estimate: Estimate, rows: int, seconds: float) -> None:
        self._speed.note_forward(rows, estimate.factor, estimate.size, seconds)
        self._scheduler.charge(estimate.size, seconds)
        metrics.forwards.inc()
        metrics.forward_rows.inc(rows)
        metrics.rows_per_forward.observe(rows)
        metrics.forward_seconds.observe(seconds)

    def _release_memory(self) -> None:
        metrics.out_of_memory.inc()
        self._device.attempt(self._device.release_memory)

    def _lower_row_limit(self, too_many: float) -> None:
        self._speed.row_limit = max(min(self._speed.row_limit, int(too_many / 2)), 1)
        metrics.row_limit.set(self._speed.row_limit)
        telemetry.event("out of device memory: fewer rows share a forward from now on", row_limit=self._speed.row_limit)

    def _resume(self, job: Job, *output: Any) -> None:
        """Lets the job run to its next call, or to its end."""
        assert job.guest
        outcome = next((each for each in output if isinstance(each, Failure)), None)
        outcome = outcome or self._device.attempt(self._device.flowing, job.guest.proceed, *output)
        if self._device.broken:
            return  # with all others it stays where it stands; they are told when the loop has ended
        if isinstance(outcome, Failure):
            telemetry.failure("generation failed", request_id=job.request_id, **job.trace, **outcome.described)
            self._fail(job, GenerationFailed("too little device memory" if outcome.out_of_memory else "generation failed"))
            return
        match job.guest.call:
            case Call(rows=rows):
                self._speed.note_rows(job.params, rows)
                if job.stage == "decode":  # and back: a pipeline of two passes
                    self._scheduler.add(job)
                job.enter("denoise", self._clock())
            case Decode():
                job.enter("decode", self._clock())
                self._scheduler.remove(job)
                self._decoding.append(job)
            case None:
                self._finish(job)

    def _finish(self, job: Job) -> None:
        assert job.guest
        job.enter("done", self._clock())
        self._speed.note_finished(job.params, job.forwards)
        self._retire(job)
        job.future.set_result(Result(job.guest.result, job.seconds))

    def _fail(self, job: Job, error: ServingError) -> None:
        if job.future.done():
            return
        if job.guest and not self._device.broken:
            self._device.attempt(job.guest.leave)
        self._retire(job)
        job.future.set_exception(error)

    def _retire(self, job: Job) -> None:
        self._scheduler.remove(job)
        if job in self._decoding:
            self._decoding.remove(job)
        self._admission.release(job)

    def _expected(self, batch: Sequence[Job]) -> float:
        """Seconds of a forward."""
        return self._speed.seconds(sum(job.rows for job in batch), batch[0].estimate.factor, batch[0].size)

    def _beat(self, patience: float) -> None:
        """Tells liveness that something begins now which may take so many seconds."""
        self._heartbeat = self._clock()
        self._patience = min(max(patience, _HANGS_AFTER_AT_LEAST), self._policy.hang_after)
