"""Log lines as JSON, one a line on standard error, and what may be in them.

No prompt is ever logged. Exceptions of foreign code may quote one, so their text is left out: type and place remain.
"""

from __future__ import annotations

import json
import logging
import logging.config
import select
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

logger = logging.getLogger("predictor")

_THEIRS = ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error", "py.warnings")
_OWN = set(vars(logging.makeLogRecord({})))
_SELDOM = 60.0  # seconds

# trace_id and span_id, in hexadecimal digits, of the call that the running task is part of, where it is part of a trace.
trace_ids: ContextVar[Mapping[str, str]] = ContextVar("trace_ids", default=MappingProxyType({}))


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, then whatever `extra` holds and the ids of the trace; an exception as type and frames."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN and key not in ("message", "asctime")}
        line |= trace_ids.get()
        if record.exc_info and record.exc_info[1]:
            line |= described(record.exc_info[1])
        return json.dumps(line, default=str)


class Seldom(logging.Filter):
    """For a library that says the same at every failure and quotes what failed: a line a minute from each place in it, which
    quotes nothing but numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), time.monotonic()
        if now - self._told.get(place, -_SELDOM) < _SELDOM:
            return False
        self._told[place] = now
        quoted = record.args if isinstance(record.args, tuple) else ("",)
        record.args = tuple(each if isinstance(each, int | float | None) else "…" for each in quoted) if record.args else ()
        return True


class Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Leaves out a line where the pipe is full: whoever stalls reading the log must not stall what is logged, which waiting for
    them would, with every request, probe and signal. A pipe that can be written to takes 4 kB at once, which no line has."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # a stream without a descriptor, or one that is closed
            if not select.select((), (self.stream,), (), 0)[1]:
                return
        super().emit(record)


def configure() -> None:
    """Takes over the logging of the process, KServe's and uvicorn's included."""
    logging.captureWarnings(True)
    # KServe's, at every start, about itself.
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    threading.excepthook = lambda fault: failure(
        "a thread has ended", **(described(fault.exc_value) if fault.exc_value else {})
    )
    # KServe's and uvicorn's lines a request are replaced by one of our own; their errors stay.
    quiet = {"level": "WARNING", "handlers": ["stderr"], "propagate": False}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "filters": {"seldom": {"()": Seldom}},
            "handlers": {
                "stderr": {"()": Stderr, "formatter": "json"},
                "seldom": {"()": Stderr, "formatter": "json", "filters": ["seldom"]},
            },
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "predictor": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
                **{name: quiet for name in _THEIRS},
                # A collector that is away, a caller's malformed tracestate: as often as they like, and with what they like.
                "opentelemetry": {"level": "WARNING", "handlers": ["seldom"], "propagate": False},
            },
        }
    )


def event(message: str, **fields: object) -> None:
    logger.info(message, extra=fields)


def failure(message: str, **fields: object) -> None:
    """Something broke; `fields` should hold what `described` makes of the exception."""
    logger.error(message, extra=fields)


def described(error: BaseException) -> dict[str, object]:
    """An exception by type and place, without its text and without keeping its frames alive."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
    }
