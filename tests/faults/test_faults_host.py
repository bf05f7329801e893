"""A host that takes away what was there before: the volume, room on disk, the right time, whoever reads the log."""

import fcntl
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from faults.faulty import SECRET, FaultyServer, few, until
from predictor import telemetry

YEARS = 365 * 86400


# ---------------------------------------------------------------- volume and disk


def test_the_volume_may_disappear_once_the_model_is_loaded(server, reference):
    root = Path(server.arguments[server.arguments.index("--root") + 1])
    shutil.rmtree(root, ignore_errors=True)
    assert not root.exists()
    assert server.predict(few()).content == reference
    other = server.predict(few(scheduler="EulerDiscreteScheduler", width=24, negative_prompt="dots"))
    assert other.status_code == 200, other.text
    assert server.client.get("/v1/models/model/schema").status_code == 200


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_disk_that_is_full_is_not_missed(server, output_format):
    """It has been since the start: the process may write to no file."""
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max file size")] == [["0", "0"]]
    assert server.predict(few(output_format=output_format)).headers["content-type"] == f"image/{output_format}"


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("jump", [10 * YEARS, -10 * YEARS])
def test_a_wall_clock_that_jumps_changes_nothing(server, reference, jump):
    """Not for who is being served, nor for how long, nor for who asks afterwards what became of it."""
    with ThreadPoolExecutor(1) as pool, server.holding("denoise") as held:
        work = pool.submit(server.predict, few(), headers={"x-request-id": f"jump{jump}"})
        held()
        server.order("clock", str(jump))
        assert server.client.get("/livez").status_code == 200
    answer, after = work.result(), server.predict(few())
    assert answer.content == after.content == reference
    for timing in (answer.headers["server-timing"], after.headers["server-timing"]):
        seconds = [float(phase.partition("dur=")[2]) / 1000 for phase in timing.split(", ")]
        assert all(0 <= each < YEARS for each in seconds)
    assert server.state(f"jump{jump}") == "done"
    made = server.client.post("/openai/v1/images/generations", json={"prompt": SECRET, "num_inference_steps": 1})
    (server.orders / "clock").unlink()
    assert made.status_code == 200
    now = server.client.post("/openai/v1/images/generations", json={"prompt": SECRET, "num_inference_steps": 1})
    assert abs(made.json()["created"] - now.json()["created"] - jump) < YEARS  # the clock was wrong indeed
    assert server.state(f"jump{jump}") == "done"


# ---------------------------------------------------------------- memory

FORGOTTEN = 1000  # requests that a replica remembers once they are over
MIX = 500  # requests that end in every way there is
MAY_GROW = 12 << 20  # bytes, over four fifths of them: a tenth of what their pictures took


def ends_well(server: FaultyServer, i: int) -> int:
    return server.predict(few(num_inference_steps=1, seed=i, guidance_scale=1.0, width=64)).status_code


def is_refused(server: FaultyServer, i: int) -> int:
    return server.predict(few(num_inference_steps=0)).status_code


def fails_in_company(server: FaultyServer, i: int) -> int:
    """Seven steps pass timestep 427, one does not."""
    good = few(num_inference_steps=1, seed=i, guidance_scale=1.0, width=64)
    return server.predict({"instances": [good, few(num_inference_steps=7, guidance_scale=1.0)]}).status_code


def is_left(server: FaultyServer, i: int) -> int:
    body, headers = few(num_inference_steps=30, width=64), {"accept": "text/event-stream"}
    with server.client.stream("POST", "/v1/models/model:predict", json=body, headers=headers) as answer:
        return next(answer.iter_bytes()) and answer.status_code


def is_one_of_several(server: FaultyServer, i: int) -> int:
    own = {"num_inference_steps": 1, "seed": i, "guidance_scale": 1.0, "width": 64, "output_format": "webp"}
    return server.predict({"instances": [few(**own)]}).status_code


ENDS = [ends_well, is_refused, fails_in_company, is_left, is_one_of_several]


def test_memory_is_flat_over_requests_that_end_in_every_way(server):
    def one(i: int) -> int:
        return ENDS[i % len(ENDS)](server, i)

    with ThreadPoolExecutor(8) as pool, server.ordered("denoise", "fail-at 427"):
        assert set(pool.map(lambda i: is_left(server, i), range(FORGOTTEN))) == {200}
        statuses = list(pool.map(one, range(MIX // 5)))
        before = server.memory()
        statuses += pool.map(one, range(MIX // 5, MIX))
        until(lambda: server.counted("predictor_running") == server.counted("predictor_queue_depth") == 0)
    assert statuses == [200, 400, 500, 200, 200] * (MIX // len(ENDS))
    assert server.memory() - before < MAY_GROW


# ---------------------------------------------------------------- the log


def test_a_log_that_nobody_reads_holds_up_nobody(server, reference):
    """It loses lines instead, and goes on when somebody reads it again."""
    fcntl.fcntl(server.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    ids = [f"unread-{i}" for i in range(100)]  # more than the pipe takes, and what Python has read of it ahead
    with server._news:  # which whoever reads the log waits for
        for request_id in ids:
            assert server.predict(few(num_inference_steps=0), headers={"x-request-id": request_id}).status_code == 400
        assert server.predict(few()).content == reference
        assert server.is_fine()
    server.wait_for(request_id=ids[0])
    until(lambda: server.predict(few(), headers={"x-request-id": "read"}).content == reference and told(server, {"read"}))
    assert 0 < len(told(server, set(ids))) < len(ids)


def told(server: FaultyServer, ids: set[str]) -> set[str]:
    return ids & {line.get("request_id") for line in server.log}


def test_a_log_that_nobody_can_read_any_more_is_no_fault(monkeypatch):
    """Not even where there is nowhere to tell that it cannot be written."""
    reading, writing = os.pipe()
    os.close(reading)
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        handler = telemetry.Stderr(stream)
        handler.handle(logging.makeLogRecord({"msg": "nobody reads this"}))
        with pytest.raises(BrokenPipeError):
            stream.flush()
