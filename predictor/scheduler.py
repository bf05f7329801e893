"""Who is begun, and who shares the next forward of the denoiser. Plain Python: no torch, no asyncio, no clock.

A candidate is a request of which this module knows only what stands in `Candidate`. (Not to be confused with a diffusers
scheduler, the sampler that each request brings along.)

- **Sizes take turns** by the seconds they have been served: the one served least is next, so each gets an equal share. Only
  requests of one size can share.
- **Within a size, shortest remaining work first, aged**: whoever comes later than `remaining / AGEING` seconds after a request,
  or than its patience, cannot overtake it, however short. So nobody starves.
- **As many as pay**: rows up to the size's limit. Who does not fit is passed over for who does; the first always runs.

Requests may be left standing between any two forwards, so that a short one overtakes a long one half done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

AGEING = 0.1  # seconds of remaining work that make up for a second of waiting


class Candidate(Protocol):
    @property
    def size(self) -> Hashable:
        """Only candidates of one size can share a forward."""

    @property
    def key(self) -> Hashable | None:
        """Of those, only these with equal keys can. None: not begun."""

    @property
    def rows(self) -> int:
        """That it brings to a forward."""

    @property
    def remaining(self) -> float:
        """Seconds of work left, were it alone."""

    @property
    def arrived(self) -> float:
        """Seconds of any clock."""

    @property
    def patience(self) -> float:
        """Seconds after its arrival in which others may still come and go first."""


C = TypeVar("C", bound=Candidate)


class Scheduler(Generic[C]):
    """Holds every request that still needs the denoiser."""

    def __init__(self, limit: Callable[[C], int], first_come: bool = False) -> None:
        """`limit`: the most rows that pay in a forward of this candidate's size. `first_come`: arrival alone decides, and sizes
        take no turns."""
        self._limit = limit
        self._first_come = first_come
        self._sizes: dict[Hashable, list[C]] = {}
        self._served: dict[Hashable, float] = {}  # seconds, by size; of sizes without requests only what is ahead of `_now`
        self._now = 0.0  # what a size would have been served by now that had always had requests

    def __iter__(self) -> Iterator[C]:
        return (candidate for candidates in list(self._sizes.values()) for candidate in list(candidates))

    def __len__(self) -> int:
        return sum(map(len, self._sizes.values()))

    def add(self, candidate: C) -> None:
        if candidate.size not in self._sizes:
            # A size that was away has earned nothing meanwhile, and still owes what it was served ahead of the others.
            self._served[candidate.size] = max(self._served.get(candidate.size, 0.0), self._now)
        self._sizes.setdefault(candidate.size, []).append(candidate)

    def remove(self, candidate: C) -> None:
        candidates = self._sizes.get(candidate.size, [])
        if candidate in candidates:
            candidates.remove(candidate)
        if not candidates:
            self._sizes.pop(candidate.size, None)
            self._now = self._now if self._sizes else max(self._served.values(), default=0.0)  # with nobody left, no debts
            self._served = {size: at for size, at in self._served.items() if size in self._sizes or at > self._now}

    def rank(self, candidate: Candidate) -> float:
        """Least goes first: the moment after which nobody who comes can overtake."""
        grace = 0.0 if self._first_come else min(candidate.remaining / AGEING, candidate.patience)
        return candidate.arrived + grace

    def next_start(self) -> C | None:
        """Who is to be begun for the sake of the next forward. None when all who would share it have been."""
        return next((candidate for candidate in self._company(self) if candidate.key is None), None)

    def next_batch(self) -> list[C]:
        """Who shares the next forward, of those begun. Empty when none is."""
        return self._company(candidate for candidate in self if candidate.key is not None)

    def charge(self, size: Hashable, seconds: float) -> None:
        """A forward of this size took so long; its requests may have gone meanwhile."""
        self._now += seconds / max(len(self._sizes), 1)
        if size in self._served:
            self._now = max(self._now, self._served[size])
            self._served[size] += seconds

    def _company(self, candidates: Iterable[C]) -> list[C]:
        """The first in order, of the size whose turn it is, and in order all who can share with it and fit."""
        ranked = sorted(candidates, key=self.rank)
        if not ranked:
            return []
        first = ranked[0] if self._first_come else min(ranked, key=lambda candidate: self._served[candidate.size])
        limit, rows, key = self._limit(first), 0, first.key
        company: list[C] = []
        for candidate in ranked:
            fits = not company or rows + candidate.rows <= limit
            if candidate.size == first.size and fits and candidate.key in (key, None):
                company.append(candidate)
                rows += candidate.rows
        return company
