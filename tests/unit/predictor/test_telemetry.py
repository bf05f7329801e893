import io
import json
import logging
import warnings

import pytest

from predictor import telemetry


@pytest.fixture
def lines(monkeypatch):
    """What the process would log, parsed."""
    before = {name: logging.getLogger(name).handlers[:] for name in ("", "predictor", "kserve", "uvicorn.error")}
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    telemetry.configure()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(False)
    for name, handlers in before.items():
        logging.getLogger(name).handlers = handlers


def test_an_event_is_one_line_of_json(lines):
    telemetry.event("ready", model="m", seconds=1.5)
    [line] = lines()
    assert line["message"] == "ready"
    assert (line["level"], line["model"], line["seconds"]) == ("info", "m", 1.5)
    assert line["time"].endswith("+00:00")


def test_a_failure_tells_type_and_place_and_not_its_text(lines):
    try:
        raise ValueError("somebody's prompt")
    except ValueError as error:
        telemetry.failure("generation failed", request_id="r", **telemetry.described(error))
        logging.getLogger("kserve").error("Exception:", exc_info=error)
    ours, theirs = lines()
    for line in (ours, theirs):
        assert line["error"] == "ValueError"
        assert "test_telemetry.py" in line["at"][-1]
        assert "somebody" not in json.dumps(line)
    assert ours["request_id"] == "r"


def test_warnings_of_libraries_are_lines_of_json_too(lines):
    warnings.warn("something will change", FutureWarning, stacklevel=1)
    [line] = lines()
    assert "something will change" in line["message"]


def test_what_kserve_says_of_every_request_is_left_out(lines):
    logging.getLogger("kserve.trace").info("a line a request")
    logging.getLogger("uvicorn.access").info("and another")
    assert lines() == []
