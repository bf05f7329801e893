"""What has become of each accepted request, by its id: while it is worked on, and for some minutes after.

Lives on the event loop; only `News.tell` may be called elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress

from predictor.errors import Cancelled, ServingError, UnknownRequest
from predictor.job import Job, Progress
from predictor.pixels import Pixels

_KEPT_SECONDS = 600
_KEPT = 1000  # of those that are over


class News:
    """Progress on its way from the engine's thread. Whoever reads slowly gets the newest, and every preview."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._unread: list[Progress] = []
        self._arrived = asyncio.Event()
        self._over = False
        self.preview: Pixels | None = None  # the newest

    def tell(self, progress: Progress) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._put, progress)

    def _put(self, progress: Progress) -> None:
        if self._over:
            return
        if self._unread and self._unread[-1].preview is None:
            self._unread.pop()
        self._unread.append(progress)
        self.preview = progress.preview or self.preview
        self._arrived.set()

    async def arrival(self) -> None:
        await self._arrived.wait()

    def take(self) -> list[Progress]:
        taken, self._unread = self._unread, []
        self._arrived.clear()
        return taken

    def end(self) -> None:
        """Keeps no picture, and none of those that are still on their way."""
        self._over, self._unread, self.preview = True, [], None


class Entry:
    def __init__(self, request_id: str, jobs: Sequence[Job], news: News, caller: Hashable) -> None:
        self.request_id = request_id
        self.news = news
        self.caller = caller
        self.over = asyncio.Event()
        self._jobs: tuple[Job, ...] = tuple(jobs)
        self._failure: tuple[int, str] | None = None  # status and text
        self._done = (0, 0)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """None once it is over: they hold the pictures."""
        return self._jobs

    @property
    def state(self) -> str:
        if not self.over.is_set():
            return "queued" if all(job.stage == "queue" for job in self._jobs) else "running"
        if self._failure is None:
            return "done"
        return "cancelled" if self._failure[0] == Cancelled.status else "failed"

    @property
    def steps(self) -> tuple[int, int]:
        """Done, and of how many, over all of its pictures."""
        if self.over.is_set():
            return self._done
        return sum(job.step for job in self._jobs), sum(job.steps for job in self._jobs)

    @property
    def remaining(self) -> float:
        """Seconds of work, were it alone."""
        return sum(job.remaining for job in self._jobs)

    def end(self, error: ServingError | None) -> None:
        self._done = self.steps
        # Not the exception itself, whose frames hold body, prompts and pictures.
        self._failure = (error.status, error.message) if error else None
        self._jobs = ()
        self.news.end()
        self.over.set()

    def told(self) -> dict[str, object]:
        step, of = self.steps
        fields: dict[str, object] = {"id": self.request_id, "state": self.state, "step": step, "of": of}
        if self._failure:
            fields |= {"status": self._failure[0], "error": self._failure[1]}
        return fields


class Ledger:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, Entry] = {}
        self._over: dict[str, tuple[float, Entry]] = {}  # in the order in which they ended

    def open(self, request_id: str, jobs: Sequence[Job], news: News, caller: Hashable = None) -> Entry:
        """An id that comes again while it is in use means the newer request."""
        entry = self._open[request_id] = Entry(request_id, jobs, news, caller)
        return entry

    def end(self, entry: Entry, error: ServingError | None) -> None:
        entry.end(error)
        if self._open.get(entry.request_id) is entry:
            del self._open[entry.request_id]
        self._over.pop(entry.request_id, None)
        self._over[entry.request_id] = self._clock(), entry
        self._forget()

    def find(self, request_id: str) -> Entry:
        """Raises UnknownRequest."""
        self._forget()
        found = self._open.get(request_id) or self._over.get(request_id, (0.0, None))[1]
        if not found:
            raise UnknownRequest(
                f"no request of this id was accepted here in the last {_KEPT_SECONDS // 60} minutes; "
                "other replicas know their own only"
            )
        return found

    def under_way(self, caller: Hashable) -> list[Entry]:
        """Of one caller, the oldest first."""
        return [entry for entry in self._open.values() if entry.caller == caller]

    def _forget(self) -> None:
        while self._over:
            request_id, (ended, _) = next(iter(self._over.items()))
            if len(self._over) <= _KEPT and self._clock() - ended < _KEPT_SECONDS:
                return
            del self._over[request_id]
