"""What the run shared its machine with. Linux tells; elsewhere nothing is known."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

_PROC = Path("/proc")


def processor() -> str:
    info = _PROC / "cpuinfo"
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class Others:
    """Cores that processes other than this one and `server` used since this was made."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._begin, self._used = time.monotonic(), self._seconds()

    def cores(self) -> float | None:
        used = self._seconds()
        if used is None or self._used is None:
            return None
        return max(used - self._used, 0.0) / (time.monotonic() - self._begin)

    def _seconds(self) -> float | None:
        """Of every core, since ever, less our own."""
        if not (_PROC / "stat").exists():
            return None
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, (_PROC / "stat").read_text().split()[1:9])
        # Behind the command's name, which may hold anything: fields 14 and 15 of the line are user and system time.
        server = (_PROC / str(self._server) / "stat").read_text().rpartition(")")[2].split()
        mine = sum(os.times()[:2])
        return (user + nice + system + irq + softirq + steal - int(server[11]) - int(server[12])) / tick - mine
