"""Bring every planned file in, hash it, and refetch what is wrong."""

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from downloader.errors import DownloadError, IntegrityError, TransientError, from_volume
from downloader.events import Events, Progress, gigabytes
from downloader.heartbeat import every
from downloader.plan import File
from downloader.source import Source
from downloader.staging import tree_size
from downloader.verify import verify

_THREADS = 4
_REFETCHES = 3
_PROGRESS = 5.0  # seconds between two lines
_LONGEST_WAIT = 60.0  # seconds
_GRACE = 1.0  # second, for all threads together to end after a failure; one in a long body does not make it

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with jitter: `backoff` seconds, doubled with each try, times 0.5 to 1.5."""

    retries: int
    backoff: float
    events: Events
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, what: str, operation: Callable[[], T]) -> T:
        """Call `operation` until it no longer raises `TransientError`; the last of these is raised, `what` before it."""
        for attempt in range(self.retries + 1):
            try:
                return operation()
            except TransientError as error:
                if attempt == self.retries:
                    raise TransientError(f"{what}: {error} (gave up after {attempt + 1} tries)") from error
                wait = min(self.backoff * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.5)
                wait = max(wait, error.retry_after)
                self.events.warn("retry", f"{what}: {error}; trying again in {wait:.1f} s", attempt=attempt + 1)
                self.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")


def fetch(source: Source, commit: str, files: Iterable[File], directory: Path, retry: Retry) -> tuple[File, ...]:
    """Fetch `files` into `directory` and verify every byte.

    Returns the same files, each with its sha256. Raises `IntegrityError` when some are still wrong after three
    refetches, and whatever the source raises.
    """
    wanted, good = tuple(files), list[File]()
    if not wanted:
        return ()
    total = sum(file.size for file in wanted)
    progress = Progress(retry.events, total, lambda: tree_size(directory), time.monotonic)
    for refetch in range(_REFETCHES + 1):
        with every(_PROGRESS, progress.report):
            _fetch_all(source, commit, wanted, directory, retry)
        progress.report()
        # Reading everything back takes minutes on a slow volume: say what the silence is.
        size = sum(file.size for file in wanted)
        retry.events.emit("hashing", f"hashing {len(wanted)} files, {gigabytes(size)}", total_bytes=size)
        report = verify(directory, wanted, full=True)
        good += report.files
        if not report.faults:
            return tuple(sorted(good, key=lambda file: file.path))
        bad = {fault.path for fault in report.faults}
        wanted = tuple(file for file in wanted if file.path in bad)
        faults = "; ".join(map(str, report.faults))
        if refetch < _REFETCHES:
            retry.events.warn("corrupt", f"refetching {len(bad)} of {len(good) + len(bad)} files: {faults}")
            for file in wanted:
                source.discard(file, directory)
    raise IntegrityError(f"still wrong after {_REFETCHES} refetches: {faults}")


def _fetch_all(source: Source, commit: str, files: tuple[File, ...], directory: Path, retry: Retry) -> None:
    """Fetch on a few threads; the first failure stops the rest at their next file and is raised.

    Daemon threads and a queue, not an executor: an executor waits for its threads at exit, and SIGTERM leaves a pod
    30 seconds, less than a large file takes.
    """
    waiting: SimpleQueue[File] = SimpleQueue()
    # The largest first, so that none is left for the end.
    for file in sorted(files, key=lambda file: -file.size):
        waiting.put(file)
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        # Stays so if this thread dies of a defect: the one that waits must hear of it.
        outcome: BaseException | None = RuntimeError("a fetch thread died, see its traceback")
        try:
            while not stop.is_set():
                file = waiting.get_nowait()
                retry(file.path, partial(_fetch_one, source, commit, file, directory))
            outcome = None
        except Empty:
            outcome = None
        except DownloadError as error:
            outcome = error
        finally:
            outcomes.put(outcome)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(files)))]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            if error := outcomes.get():
                raise error
    finally:
        stop.set()
        # One at the start or end of a file would make its directories again behind the back of whoever cleans up.
        deadline = time.monotonic() + _GRACE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _fetch_one(source: Source, commit: str, file: File, directory: Path) -> None:
    try:
        source.fetch(commit, file, directory)
    except OSError as error:
        raise from_volume(error) from error
