"""SIGTERM while requests are in every phase at once: what was accepted is finished, what was not is told, and the process ends
with 0. Importing and loading are in test_predictor.py."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPResponse

import pytest

from faults.faulty import SECRET, FaultyServer, few, same, until

STAGES = ["text", "denoise", "decode"]  # of the engine's thread, which is in one at a time
BODY = json.dumps(few()).encode()


@pytest.fixture(scope="module")
def doomed(toy_volume, tmp_path_factory) -> Iterator[dict[str, FaultyServer]]:
    """One for each stage, started side by side."""
    with ExitStack() as stack:
        yield {
            stage: stack.enter_context(FaultyServer(toy_volume, tmp_path_factory.mktemp(stage), "--grace-period", "100"))
            for stage in STAGES
        }


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_loses_nobody_whatever_is_going_on(doomed, stage):
    server = doomed[stage].wait_until_ready()
    right = {seed: server.predict(few(seed=seed)).content for seed in range(3)}

    def ask(request_id: str, seed: int, **headers: str):
        work = pool.submit(server.predict, few(seed=seed), headers={"x-request-id": request_id, **headers})
        until(lambda: server.state(request_id) is not None)
        return work

    with ThreadPoolExecutor(8) as pool, server.holding("encode") as held_at_encoding:
        encoding = ask("encoding", 0)
        held_at_encoding()
        with server.holding(stage) as held:
            stream = pool.submit(
                server.client.post, "/v1/models/model:predict", json=few(), headers={"accept": "text/event-stream"}
            )
            held()
            queued = [ask(f"queued-{seed}", seed) for seed in (1, 2)]
            reading = server.connect(f"POST /v1/models/model:predict HTTP/1.1\nHost: x\nContent-Length: {len(BODY)}", BODY[:9])
            server.terminate()
            assert server.wait_for(message="draining")["requests"] == 4
            assert server.client.get("/livez").status_code == 200
            for refused in (server.ready(), server.predict(few())):
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert all(not each.done() for each in (encoding, stream, *queued))
            reading.sendall(BODY[9:])
            told = HTTPResponse(reading)
            told.begin()
            assert (told.status, "draining" in told.read().decode()) == (503, True)
    answers = [work.result() for work in (encoding, *queued)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(same(answer.content, right[seed]) for seed, answer in enumerate(answers))
    assert "event: prediction" in stream.result().text
    assert server.process.wait(60) == 0
    assert SECRET not in server.text
    reading.close()
