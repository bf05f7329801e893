"""Who starts, and who shares the next forward of the denoiser. Plain Python: no torch, no asyncio, no clock.

A candidate is a request of which this module knows only how many rows it brings and, once it stands at the denoiser's
door, the key of its call: calls with equal keys can share a forward. (Not to be confused with a diffusers scheduler, the
sampler that each request brings along.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Candidate(Protocol):
    @property
    def rows(self) -> int: ...

    @property
    def key(self) -> Hashable: ...


C = TypeVar("C", bound=Candidate)


class Scheduler(Generic[C]):
    """First come, first served, as many at once as fit into `max_rows`.

    Requests whose calls cannot share a forward (another size, say) take turns: the group that holds the request served
    longest ago is next, so none starves.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._waiting: deque[C] = deque()
        self._running: deque[C] = deque()  # the one served longest ago first

    @property
    def waiting(self) -> tuple[C, ...]:
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[C, ...]:
        return tuple(self._running)

    def add(self, candidate: C) -> None:
        self._waiting.append(candidate)

    def remove(self, candidate: C) -> None:
        for queue in (self._waiting, self._running):
            if candidate in queue:
                queue.remove(candidate)

    def start_next(self) -> C | None:
        """Moves the first in the queue to the running ones if it fits. One too large to fit ever runs alone."""
        if not self._waiting:
            return None
        taken = sum(candidate.rows for candidate in self._running)
        if taken and taken + self._waiting[0].rows > self._max_rows:
            return None
        self._running.append(self._waiting.popleft())
        return self._running[-1]

    def next_batch(self) -> list[C]:
        """Running candidates with one key, at most `max_rows` rows of them (but always one). Empty when none runs."""
        batch: list[C] = []
        rows = 0
        for candidate in self._running:
            if not batch or (candidate.key == batch[0].key and rows + candidate.rows <= self._max_rows):
                batch.append(candidate)
                rows += candidate.rows
        for candidate in batch:
            self._running.remove(candidate)
        self._running.extend(batch)
        return batch
