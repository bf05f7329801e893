"""Log lines as JSON, one a line on standard error, and what may be in them.

No prompt is ever logged. Exceptions of foreign code may quote one, so their text is left out: type and place remain.
"""

from __future__ import annotations

import json
import logging
import logging.config
import threading
import traceback
import warnings
from datetime import UTC, datetime

logger = logging.getLogger("predictor")

_THEIRS = ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error", "py.warnings")
_OWN = set(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, then whatever `extra` holds; an exception as type and frames."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN and key not in ("message", "asctime")}
        if record.exc_info and record.exc_info[1]:
            line |= described(record.exc_info[1])
        return json.dumps(line, default=str)


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
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "predictor": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
                **{name: quiet for name in _THEIRS},
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
