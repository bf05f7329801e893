"""Where the time goes between the start of the process and the first request: imports, read, to_device, warm_up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def since_process_start() -> float:
    """Seconds since the kernel started this process, which is before any line of Python ran in it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), in ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Phases:
    """Each phase lasts until the next begins. The first began with the process."""

    def __init__(self, first: str, clock: Callable[[], float] = since_process_start) -> None:
        self._clock = clock
        self._current = first
        self._began = 0.0
        self._seconds: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """A phase may come again: its times add up."""
        now = self._clock()
        self._seconds[self._current] = self._seconds.get(self._current, 0.0) + now - self._began
        self._current, self._began = name, now

    @property
    def seconds(self) -> dict[str, float]:
        """Of every phase that has ended, in the order in which they first began. They add up to the time until `begin` was
        called last."""
        return dict(self._seconds)
