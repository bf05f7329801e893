"""What the operator sees: JSON lines on stdout, and the last error in the termination log.

One layout for two readers. Every line is one JSON object, so a log collector can parse it; its first keys are `time`,
`level`, `event` and `message`, and the message is a whole sentence with units, so `kubectl logs -f` reads well.
"""

import json
import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from downloader.errors import DownloadError

# A CDN's signed URL opens the file for whoever holds it, and a token always starts with hf_: neither is for a log.
_SECRETS = ((re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?…"), (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "hf_…"))


class Events:
    """Writes events; any thread may call it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._secrets: list[str] = []

    def keep_secret(self, text: str) -> None:
        """Never let `text` through, whatever library spells it out in an error."""
        self._secrets.append(text)

    def emit(self, event: str, message: str, *, level: str = "info", **fields: object) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(
            {"time": time, "level": level, "event": event, "message": message, **fields}, ensure_ascii=False, default=str
        )
        with self._lock:
            self._stream.write(self.redact(line) + "\n")
            self._stream.flush()

    def warn(self, event: str, message: str, **fields: object) -> None:
        self.emit(event, message, level="warning", **fields)

    def fail(self, error: DownloadError, termination_log: Path | None) -> None:
        """Log `error` as the last line, and leave the same sentence where `kubectl describe pod` shows it."""
        self.emit("error", str(error), level="error", code=error.code, kind=error.label)
        # The kubelet makes the default file before the container starts: outside a pod there is none to fill.
        if termination_log is None or (termination_log.parent == Path("/dev") and not termination_log.exists()):
            return
        line = f"exit {error.code} ({error.label}): {error}"
        with suppress(OSError):
            # The kubelet keeps 4096 bytes of it.
            termination_log.write_bytes(self.redact(line).encode()[:4000] + b"\n")

    def redact(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, "…")
        for pattern, replacement in _SECRETS:
            line = pattern.sub(replacement, line)
        return line

    def capture_libraries(self) -> None:
        """Turn what huggingface_hub and `warnings` have to say into events: stdout stays one layout."""
        logging.captureWarnings(True)
        for name in ("huggingface_hub", "py.warnings"):
            logger = logging.getLogger(name)
            logger.handlers = [_LibraryHandler(self)]
            logger.propagate = False


class _LibraryHandler(logging.Handler):
    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        self._events.warn("library", message, logger=record.name)


class Progress:
    """Says how far a fetch is, from the bytes that are on disk. Rate and ETA look back over the last half minute.

    Args:
        total: bytes of the whole fetch.
        measure: returns the bytes that are there now.
        clock: seconds, monotonic.
    """

    def __init__(self, events: Events, total: int, measure: Callable[[], int], clock: Callable[[], float]) -> None:
        self._events, self._total, self._measure, self._clock = events, total, measure, clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), measure())], maxlen=7)

    def report(self) -> None:
        # A refetch takes bytes away again, and a retry may briefly hold a file twice.
        done = min(self._measure(), self._total)
        now = self._clock()
        since, before = self._seen[0]
        self._seen.append((now, done))
        rate = max(0.0, (done - before) / (now - since)) if now > since else 0.0
        eta = round((self._total - done) / rate) if rate else None
        self._events.emit(
            "progress",
            f"{gigabytes(done)} of {gigabytes(self._total)} ({done * 100 // max(self._total, 1)}%), "
            f"{rate / 1e6:.1f} MB/s, {'stalled' if eta is None else duration(eta) + ' left'}",
            bytes=done,
            total_bytes=self._total,
            bytes_per_second=round(rate),
            eta_seconds=eta,
        )


def gigabytes(size: int) -> str:
    """`size` in bytes as a person reads it, in decimal units as the Hub shows them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def duration(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
