"""The snapshot is on its way into memory while the libraries are still being imported.

Imports keep one core busy for seconds and leave the volume idle. Then the loader maps the files and touches them page by
page, for which a volume gives a fraction of its speed. So a thread reads the files from end to end and drops the bytes:
what stays is the kernel's page cache, where the loader finds them.

Measured against the same without it: tests/bench/cold_start.py. Neither more threads nor posix_fadvise made it faster.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from predictor import snapshot, telemetry
from predictor.errors import StartupError

_CHUNK = 16 << 20  # bytes; at 1 MB a volume may give half its speed


class ReadAhead:
    def __init__(self, root: Path, model_id: str, revision: str) -> None:
        self._wanted = (root, model_id, revision)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes effect within a chunk."""
        self._stopping.set()

    def _run(self) -> None:
        # What cannot be found or read here stops the loader too, which says why.
        with suppress(StartupError, OSError, ValueError):
            begin = time.monotonic()
            path = snapshot.find(*self._wanted).path
            buffer = bytearray(_CHUNK)
            size = sum(self._read(file, buffer) for file in largest_first(path))
            telemetry.event("read ahead", bytes=size, seconds=round(time.monotonic() - begin, 2))

    def _read(self, path: Path, buffer: bytearray) -> int:
        size = 0
        with path.open("rb", buffering=0) as file:  # so that each call is one system call, without the interpreter's lock
            while not self._stopping.is_set() and (count := file.readinto(buffer)):
                size += count
        return size


def largest_first(path: Path) -> list[Path]:
    """A snapshot's files, by the size of the component that they belong to. Within it by name, as the shards are loaded;
    which component diffusers begins with is up to the order of a set."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.relative_to(path).parts[0]] += file.stat().st_size
    return sorted(files, key=lambda file: -sizes[file.relative_to(path).parts[0]])
