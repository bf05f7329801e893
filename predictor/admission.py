"""How much is accepted and how long it will take: the bound behind 429, and the estimate in its Retry-After.

Asked by the web, told by the engine: every method may be called from any thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from predictor.errors import InvalidRequest, QueueFull, ServingError
from predictor.job import Job

_LONGEST_RETRY = 600  # seconds; beyond that an estimate means nothing


class Admission:
    def __init__(self, max_images: int) -> None:
        """`max_images`: accepted and unfinished at any time."""
        self._max_images = max_images
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self._closed: ServingError | None = None
        self._speed: float | None = None  # cost per second while busy, moving average
        self._forwards_per_step: dict[str | None, float] = {}  # by sampler, from finished jobs: Heun's makes two

    @property
    def open_jobs(self) -> tuple[Job, ...]:
        with self._lock:
            return tuple(self._open)

    def admit(self, jobs: Sequence[Job]) -> None:
        """All of them or none. Raises what `check` raises."""
        with self._lock:
            self._check(sum(job.images for job in jobs))
            self._open.update(jobs)

    def check(self, images: int) -> None:
        """Raises QueueFull where there is no room now, InvalidRequest where there never is, or why it was closed."""
        with self._lock:
            self._check(images)

    def release(self, job: Job) -> None:
        with self._lock:
            self._open.discard(job)

    def close(self, reason: ServingError) -> None:
        """From now on nothing is admitted."""
        with self._lock:
            self._closed = self._closed or reason

    def note_forward(self, jobs: Sequence[Job], seconds: float) -> None:
        if jobs and seconds > 0:
            with self._lock:
                speed = sum(job.cost * self._share(job) for job in jobs) / seconds
                self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed

    def note_finished(self, job: Job) -> None:
        with self._lock:
            self._forwards_per_step[job.params.scheduler] = max(job.step / job.params.num_inference_steps, 0.5)

    def _check(self, images: int) -> None:
        if self._closed:
            raise self._closed.with_traceback(None)
        if images > self._max_images:
            raise InvalidRequest(f"a request must ask for at most {self._max_images} images in all, not {images}")
        taken = sum(job.images for job in self._open)
        if taken + images > self._max_images:
            raise QueueFull(
                f"{taken} of at most {self._max_images} pictures are being made or waited for; {images} more do not fit",
                retry_after=self._seconds_of_work(),
            )

    def _seconds_of_work(self) -> int:
        """Until all that is open will be done, at the speed seen so far."""
        work = sum(job.cost * max(1 - job.step * self._share(job), 0) for job in self._open)
        return min(max(math.ceil(work / self._speed), 1), _LONGEST_RETRY) if self._speed else 1

    def _share(self, job: Job) -> float:
        """Of a job's work that one forward does, as far as is known."""
        return 1 / (job.params.num_inference_steps * self._forwards_per_step.get(job.params.scheduler, 1.0))
