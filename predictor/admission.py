"""How much is accepted: the bound behind 429, in seconds of work, and the estimate in its Retry-After.

Asked by the web, told by the engine: every method may be called from any thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

from predictor.errors import InvalidRequest, QueueFull, ServingError
from predictor.job import Job

_LONGEST_RETRY = 600  # seconds; beyond that an estimate means nothing


class Admission:
    def __init__(self, max_seconds: float, rank: Callable[[Job], float]) -> None:
        """`max_seconds`: of work, accepted and unfinished at any time. `rank`: jobs of a lesser one go first; among equals, who
        was there before."""
        self._max_seconds = max_seconds
        self._rank = rank
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self._closed: ServingError | None = None

    @property
    def open_jobs(self) -> tuple[Job, ...]:
        with self._lock:
            return tuple(self._open)

    def admit(self, jobs: Sequence[Job]) -> None:
        """All of them or none. Raises what `check` raises."""
        with self._lock:
            self._check(jobs)
            self._open.update(jobs)

    def check(self, jobs: Sequence[Job]) -> None:
        """Raises QueueFull where there is no room now or no time before the deadline, InvalidRequest where there never would
        be, or why it was closed."""
        with self._lock:
            self._check(jobs)

    def release(self, job: Job) -> None:
        with self._lock:
            self._open.discard(job)

    def close(self, reason: ServingError) -> None:
        """From now on nothing is admitted."""
        with self._lock:
            self._closed = self._closed or reason

    def _check(self, jobs: Sequence[Job]) -> None:
        if self._closed:
            raise self._closed.with_traceback(None)
        queued, more = sum(job.load for job in self._open), sum(job.load for job in jobs)
        # Whatever the estimate says: an idle device takes any work that is allowed at all.
        if self._open and queued + more > self._max_seconds:
            raise QueueFull(
                f"about {queued:.0f} s of work are accepted, and {more:.1f} s more do not fit into {self._max_seconds:g} s",
                retry_after=_whole(queued + more - self._max_seconds),
                reason="queue_full",
            )
        for job in jobs:
            self._check_deadline(job, sum(each.load for each in jobs))

    def _check_deadline(self, job: Job, together: float) -> None:
        patience = job.deadline - job.arrived
        own = max(job.remaining, together)
        at_best = own / job.estimate.slowdown
        if at_best > patience:
            raise InvalidRequest(
                f"this would take about {at_best:.0f} s even alone, and no request may take more than {patience:.0f} s: "
                "ask for fewer steps, pictures or pixels"
            )
        ahead = sum(other.load for other in self._open if self._rank(other) <= self._rank(job))
        if ahead + own > patience:
            raise QueueFull(
                f"about {ahead:.0f} s of work come first, and {own:.1f} s more would not be done within {patience:.0f} s",
                retry_after=_whole(ahead + own - patience),
                reason="no_time",
            )


def _whole(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), _LONGEST_RETRY)
