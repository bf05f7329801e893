import io
import json
import logging
import warnings
from pathlib import Path

import pytest

from downloader.errors import AccessDenied
from downloader.events import Events, Progress, duration, gigabytes


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_that_starts_readably() -> None:
    stream = io.StringIO()
    Events(stream).emit("ref", "main now names\nabc", revision="main")
    [line] = lines(stream)
    assert list(line) == ["time", "level", "event", "message", "revision"]
    assert line["message"] == "main now names\nabc"


def test_secrets_never_get_through() -> None:
    stream = io.StringIO()
    events = Events(stream)
    events.keep_secret("s3cret")
    events.warn("retry", "Illegal header b'Bearer s3cret'; https://cdn/x?Signature=abc; hf_" + "a" * 34, url="s3cret")
    text = stream.getvalue()
    assert "s3cret" not in text and "abc" not in text and "aaaa" not in text
    assert "https://cdn/x?…" in text


def test_the_last_error_goes_to_the_termination_log(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "log"
    Events(stream).fail(AccessDenied("no token"), log)
    assert log.read_text() == "exit 10 (access denied): no token\n"
    assert lines(stream)[0] | {"time": ""} == {
        "time": "",
        "level": "error",
        "event": "error",
        "message": "no token",
        "code": 10,
        "kind": "access denied",
    }


def test_the_termination_log_is_short_and_never_fails_the_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    Events(io.StringIO()).fail(AccessDenied("é" * 5000), log)
    assert log.stat().st_size <= 4096
    Events(io.StringIO()).fail(AccessDenied("x"), tmp_path / "absent" / "log")
    Events(io.StringIO()).fail(AccessDenied("x"), Path("/dev/no-such-termination-log"))
    assert not Path("/dev/no-such-termination-log").exists()


def test_libraries_speak_the_same_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("py.warnings"), "handlers", [])
    stream = io.StringIO()
    logging.captureWarnings(False)  # as a fresh process has it, whoever came before in this one
    Events(stream).capture_libraries()
    try:
        logging.getLogger("huggingface_hub.file_download").warning("Trying to\nresume download...")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old", stacklevel=1)
    finally:
        logging.captureWarnings(False)
    assert [line["event"] for line in lines(stream)] == ["library", "library"]
    assert lines(stream)[0]["message"] == "Trying to resume download..."


def test_progress_has_bytes_rate_and_time_left() -> None:
    stream, now, done = io.StringIO(), [0.0], [0]
    progress = Progress(Events(stream), 1_000_000_000, lambda: done[0], lambda: now[0])
    now[0], done[0] = 5.0, 250_000_000
    progress.report()
    now[0] = 10.0
    progress.report()
    now[0], done[0] = 40.0, 1_000_000_500
    progress.report()
    messages = [line["message"] for line in lines(stream)]
    assert messages[0] == "250.00 MB of 1.00 GB (25%), 50.0 MB/s, 15 s left"
    assert messages[1] == "250.00 MB of 1.00 GB (25%), 25.0 MB/s, 30 s left"
    assert str(messages[2]).startswith("1.00 GB of 1.00 GB (100%)")
    assert lines(stream)[0]["eta_seconds"] == 15


def test_progress_that_stands_still_says_so() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(Events(stream), 10, lambda: 0, lambda: now[0])
    now[0] = 1.0
    progress.report()
    assert lines(stream)[0]["message"] == "0 B of 10 B (0%), 0.0 MB/s, stalled"


def test_units() -> None:
    assert [gigabytes(size) for size in (0, 999, 1000, 6_941_000_000)] == ["0 B", "999 B", "1.00 kB", "6.94 GB"]
    assert [duration(seconds) for seconds in (0, 59, 61)] == ["0 s", "59 s", "1 min 1 s"]
