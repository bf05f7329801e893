"""Stages that fail, devices that hang or run out of memory, engines that die: everybody is answered, the rest goes on, and
probes tell the truth."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from faults.faulty import SECRET, FaultyServer, few, same, until

STAGES = ["text", "denoise", "decode", "encode"]
FAILURE = "(request id "


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as callers:
        yield callers


@pytest.fixture(scope="module")
def hanging(toy_volume, tmp_path_factory):
    """Taken for hung after a second. The last of its tests ends it."""
    more = ("--hang-after", "1", "--grace-period", "0.5")
    with FaultyServer(toy_volume, tmp_path_factory.mktemp("hanging"), *more) as running:
        yield running.wait_until_ready()


@pytest.fixture(scope="module")
def dying(toy_volume, tmp_path_factory):
    """The last of its tests ends it."""
    with FaultyServer(toy_volume, tmp_path_factory.mktemp("dying")) as running:
        yield running.wait_until_ready()


def ask(pool: ThreadPoolExecutor, server: FaultyServer, request_id: str, **parameters: object):
    """Accepted when this returns, and answered some time later."""
    work = pool.submit(server.predict, few(**parameters), headers={"x-request-id": request_id})
    until(lambda: server.state(request_id) is not None)
    return work


# ---------------------------------------------------------------- a stage that fails


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails_is_one_requests_500(server, stage):
    with server.ordered(stage, "fail-once"):
        failed, next_one = server.predict(few()), server.predict(few())
    assert (failed.status_code, next_one.status_code) == (500, 200)
    request_id = failed.headers["x-request-id"]
    assert failed.json()["error"].endswith(f"{FAILURE}{request_id})")
    assert SECRET not in failed.text
    assert server.wait_for(level="error", request_id=request_id)["error"] == "RuntimeError"
    assert server.state(request_id) == "failed"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("path", ["/v1/models/model:predict", "/openai/v1/images/generations"])
def test_a_stream_that_fails_says_so_and_ends(server, path, stage):
    own = {"num_inference_steps": 3}
    body = {"prompt": SECRET, **({"parameters": own} if "predict" in path else {"stream": True, **own})}
    with server.ordered(stage, "fail"):
        answer = server.client.post(path, json=body, headers={"accept": "text/event-stream"})
    *_, last = answer.text.strip().split("\n\n")
    name, data = last.split("\n")
    assert name == "event: error"
    assert "failed" in data or "internal error" in data
    assert SECRET not in answer.text


def test_a_forward_that_fails_once_in_company_is_made_again_and_fails_nobody(server, pool, reference):
    with server.holding("denoise") as held:
        first = ask(pool, server, "company-0")
        held()
        others = [ask(pool, server, f"company-{i}", seed=i) for i in range(1, 4)]
        server.order("denoise", "fail-once")
    answers = [work.result() for work in (first, *others)]
    assert not (server.orders / "denoise").exists()  # it has failed
    assert [answer.status_code for answer in answers] == [200] * 4
    for seed, answer in enumerate(answers):
        assert same(answer.content, reference if seed == 0 else server.predict(few(seed=seed)).content)


def test_a_request_that_no_forward_can_bear_fails_alone(server, pool):
    """Seven steps pass timestep 427, three do not."""
    with server.holding("denoise") as held:
        first = ask(pool, server, "alone-0")
        held()
        bad = ask(pool, server, "alone-bad", num_inference_steps=7)
        good = [ask(pool, server, f"alone-{i}", seed=i) for i in (1, 2)]
        server.order("denoise", "fail-at 427")
    statuses = [work.result().status_code for work in (first, bad, *good)]
    (server.orders / "denoise").unlink()
    assert statuses == [200, 500, 200, 200]
    for seed, work in enumerate(good, 1):
        assert same(work.result().content, server.predict(few(seed=seed)).content)


def test_a_denoiser_that_always_fails_is_told_to_everybody(server, pool):
    with server.ordered("denoise", "fail"):
        answers = [work.result() for work in [pool.submit(server.predict, few(seed=seed)) for seed in range(8)]]
        assert server.is_fine()  # the next request may be another
    assert [answer.status_code for answer in answers] == [500] * 8
    assert server.counted("predictor_queue_depth") == server.counted("predictor_running") == 0


def test_out_of_memory_in_company_is_answered_with_pictures_and_less_company(dying, pool):
    alone = [dying.predict(few(seed=seed)).content for seed in range(4)]
    before = dying.counted("predictor_row_limit")
    with dying.holding("denoise") as held:
        first = ask(pool, dying, "memory-0", seed=0)
        held()
        others = [ask(pool, dying, f"memory-{seed}", seed=seed) for seed in (1, 2, 3)]
        dying.order("denoise", "fail-beyond 4")
    answers = [work.result() for work in (first, *others)]
    (dying.orders / "denoise").unlink()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(same(answer.content, picture) for answer, picture in zip(answers, alone, strict=True))
    assert 2 <= dying.counted("predictor_row_limit") < before
    assert dying.is_fine()
    assert dying.predict(few(seed=0)).content == alone[0]


# ---------------------------------------------------------------- a device that hangs, a process that is suspended


def test_a_device_that_hangs_is_told_to_probes_until_it_goes_on(hanging, pool):
    right = hanging.predict(few()).content
    with hanging.holding("denoise") as held:
        work = ask(pool, hanging, "hangs")
        held()
        until(lambda: hanging.client.get("/livez").status_code == 503)
        for refused in (hanging.ready(), hanging.predict(few())):
            assert refused.status_code == 503
            assert refused.json()["error"] == "model model is not ready: its device does not answer"
            assert refused.headers["retry-after"]
        assert hanging.client.get("/livez").json() == {"alive": False}
    assert work.result().content == right
    assert hanging.is_fine()
    assert hanging.predict(few()).content == right


def test_a_process_that_was_suspended_goes_on_where_it_was(hanging, pool):
    """For longer than a hang: time that nobody had is held against nobody for long."""
    right = hanging.predict(few()).content
    with hanging.holding("denoise") as held:
        work = ask(pool, hanging, "suspended")
        held()
        hanging.process.send_signal(signal.SIGSTOP)
        time.sleep(1.1)  # no event is told of time going by
        hanging.process.send_signal(signal.SIGCONT)
    assert work.result().content == right
    assert hanging.is_fine()
    assert hanging.predict(few()).content == right


def test_sigterm_while_the_device_hangs_is_obeyed_and_told(hanging, pool):
    """The last of this server."""
    with hanging.holding("denoise") as held:
        running, queued = ask(pool, hanging, "never-1"), ask(pool, hanging, "never-2")
        held()
        hanging.terminate()
        for work in (running, queued):
            answer = work.result()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert hanging.process.wait(60) == 0
    assert SECRET not in hanging.text


# ---------------------------------------------------------------- an engine that dies


def test_an_engine_that_dies_ends_the_process_after_everybody_has_been_told(dying, pool):
    """The last of this server."""
    with dying.holding("denoise") as held:
        running = ask(pool, dying, "last-running")
        held()
        queued = [ask(pool, dying, f"last-queued-{i}") for i in range(3)]
        stream = pool.submit(dying.predict, few(), headers={"accept": "text/event-stream", "x-request-id": "last-stream"})
        until(lambda: dying.state("last-stream") is not None)
        dying.order("loop", "fail")
    for work in (running, *queued):
        answer = work.result()
        assert answer.status_code == 500
        assert answer.json()["error"] == f"the engine has stopped {FAILURE}{answer.headers['x-request-id']})"
    assert "event: error" in stream.result().text
    assert dying.process.wait(60) == 24
    line = dying.wait_for(message="a thread has ended")
    assert (line["level"], line["error"]) == ("error", "RuntimeError")
    assert SECRET not in dying.text
