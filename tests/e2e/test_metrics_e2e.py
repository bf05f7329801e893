"""A server's numbers against what was sent to it: known traffic over every door, then one scrape.

The denoiser stands still while a file exists. So it is no matter of luck what waits, what is late and what is refused.
"""

import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import scrape
import toys
from doors import Doors
from predictor import metrics
from scrape import Scrape
from serving import REPOSITORY, START, Server

SECRET = "zebra"  # in every prompt: no scrape may hold it
TIMEOUT = 6  # seconds, within which everything that is not held up must be done
GATED = """
import functools, os, pathlib, sys, time, diffusers, torch
from predictor.__main__ import main
folder, forward = pathlib.Path(sys.argv.pop(1)), diffusers.UNet2DConditionModel.forward
@functools.wraps(forward)
def gated(*args, **kwargs):
    while (folder / "closed").exists():
        time.sleep(0.005)
    if (folder / "full").exists():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(*args, **kwargs)
diffusers.UNet2DConditionModel.forward = gated
os._exit(main())
"""
STATE = [f"predictor_{name}" for name in ("running", "queue_depth", "accepted_work_seconds", "last_tick_seconds")]


def few(**parameters: object) -> dict:
    return {"prompt": SECRET, "parameters": {"num_inference_steps": 3} | parameters}


def scraped(server: Server) -> Scrape:
    answer = server.client.get("/metrics")
    assert answer.status_code == 200
    assert SECRET not in answer.text
    return scrape.read(answer.text)


def wait_until(server: Server, holds: Callable[[Scrape], object]) -> Scrape:
    """The first scrape of which that is true."""
    end = time.monotonic() + START
    while time.monotonic() < end:
        if holds(found := scraped(server)):
            return found
    raise AssertionError(found.samples)


def when_over(seen: SimpleNamespace, more: int) -> Scrape:
    """Once so many more requests have been counted: an answer may arrive before it is."""
    seen.over += more
    return wait_until(seen.server, lambda now: now.total("predictor_requests_total") >= seen.over)


@contextmanager
def hung_up(server: Server, path: str, body: object, accept: str = "*/*"):
    """A caller who closes the connection at the end of the block."""
    content = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as caller:
        caller.sendall((head + content).encode())
        yield caller


@pytest.fixture(scope="module")
def stages(toy_volume, tmp_path_factory):
    """One server through all that can happen to it: what it told at each point. The tests below look at that."""
    folder = tmp_path_factory.mktemp("gate")
    more = ["--timeout", str(TIMEOUT), "--max-queue-seconds", "3", "--hang-after", "3", "--max-body-bytes", "20000"]
    more += ["--max-steps", "5000", "--max-cost", "10000"]
    arguments = ["--model-id", "toy/model", "--root", str(toy_volume), "--device", "cpu", *more]
    seen = SimpleNamespace(closed=folder / "closed", full=folder / "full", over=0)
    with Server(arguments, program=("-c", GATED, str(folder))) as server, ThreadPoolExecutor(8) as pool:
        seen.server, seen.pool = server, pool
        for stage in (start, pictures, refusals, trouble, standstill, leaving):
            stage(seen)
        assert SECRET not in server.text
    return seen


def start(seen):
    seen.server.wait_until_open()
    assert seen.server.predict(few()).status_code == 503
    seen.loading = when_over(seen, 1)
    seen.server.wait_until_ready()
    seen.started = scraped(seen.server)


def pictures(seen):
    """One after the other, each in 3 steps of 2 rows; two instances of three pictures in all, the second of which has 4."""
    server, own = seen.server, {"prompt": SECRET, "num_inference_steps": 3, "seed": 7, "width": 32, "height": 32}
    doors = Doors(server)
    every = [doors.predict, doors.instances, doors.event, doors.openai, doors.openai_stream, doors.v2, doors.grpc]
    every += [doors.huggingface, doors.generate, doors.a1111]
    for door in every:
        assert door(own)
    answer = server.predict({"instances": [few(), few(num_images_per_prompt=2, width=16)]})
    assert [len(each.get("images", [1])) for each in answer.json()["predictions"]] == [1, 2]
    assert "event: prediction" in server.predict(few(), headers={"accept": "text/event-stream"}).text
    seen.sequential = when_over(seen, len(every) + 2)
    timed = server.predict(few())
    seen.timing = {name: float(ms) / 1000 for name, ms in re.findall(r"(\w+);dur=([\d.]+)", timed.headers["server-timing"])}
    seen.made = when_over(seen, 1)


def refusals(seen):
    client = seen.server.client
    statuses = [
        seen.server.predict(few(num_inference_steps=-1)).status_code,
        client.post("/v1/models/zebra:predict", json=few()).status_code,
        client.post("/generate", content=b"x" * 20001).status_code,
        client.post("/", json={"inputs": 7}).status_code,
        client.post("/openai/v1/images/generations", json={"prompt": SECRET, "n": 0}).status_code,
        client.post("/sdapi/v1/txt2img", json={"prompt": SECRET, "zebra": 1}).status_code,
        client.post("/v2/models/model/infer", json={}).status_code,
    ]
    assert statuses == [400, 404, 413, 400, 400, 400, 400]
    for method, path in (("POST", "/zebra"), ("PUT", "/generate"), ("DELETE", "/generate"), ("GET", "/v1/models/zebra")):
        assert client.request(method, path).status_code in (404, 405)
    seen.refused = when_over(seen, len(statuses))


def trouble(seen):
    """A device without memory, once; a request that is cancelled by its id."""
    seen.full.touch()
    assert seen.server.predict(few()).status_code == 500
    seen.full.unlink()
    forward = seen.server.wait_for(message="ready")["forward_ms"]["2"] / 1000
    long = few(num_inference_steps=int(TIMEOUT / 4 / forward))  # or on a busy machine it would be refused
    work = seen.pool.submit(seen.server.predict, long, headers={"x-request-id": "long"})
    seen.server.wait_until_running("long")
    assert seen.server.client.delete("/v1/requests/long").status_code == 200
    assert work.result().status_code == 499
    seen.troubled = when_over(seen, 2)


def standstill(seen):
    """A request whose forward does not end, and what comes meanwhile."""
    server, pool, begin = seen.server, seen.pool, time.monotonic()
    seen.closed.touch()
    late = [pool.submit(server.predict, few())]
    wait_until(server, lambda now: now.value("predictor_running") == 1)
    late.append(pool.submit(server.client.post, "/generate", json={"prompt": SECRET, "num_inference_steps": 3}))
    streamed = {"prompt": SECRET, "num_inference_steps": 3, "stream": True}
    late.append(pool.submit(server.client.post, "/openai/v1/images/generations", json=streamed))
    seen.waiting = wait_until(server, lambda now: now.value("predictor_queue_depth") == 2)
    all_late = TIMEOUT + time.monotonic() - begin
    many = server.predict({"instances": [few(num_inference_steps=5000)] * 16})
    assert (many.status_code, "s of work are accepted" in many.text) == (429, True)
    with hung_up(server, "/v1/models/model:predict", few()):
        wait_until(server, lambda now: now.value("predictor_queue_depth") == 3)
    with hung_up(server, "/v1/models/model:predict", few(), "text/event-stream") as caller:
        told = b""
        while b"event: progress" not in told:
            told += caller.recv(10000)
    when_over(seen, 3)
    seen.hung = wait_until(server, lambda now: now.value("predictor_last_tick_seconds") > all_late)
    assert server.client.get("/livez").status_code == 503
    assert server.predict(few()).status_code == 503
    seen.closed.unlink()
    answers = [each.result() for each in late]
    assert [answer.status_code for answer in answers] == [504, 504, 200]
    assert "event: error" in answers[2].text
    seen.after = when_over(seen, 1 + len(late))


def leaving(seen):
    """The drain finishes what was accepted, and refuses the rest."""
    server = seen.server
    seen.closed.touch()
    last = seen.pool.submit(server.predict, few())
    wait_until(server, lambda now: now.value("predictor_running") == 1)
    server.terminate()
    server.wait_for(message="draining")
    assert server.predict(few()).status_code == 503
    seen.last = when_over(seen, 1)
    seen.theirs = scrape.read(server.client.get("/metrics").text, prefix="")
    seen.closed.unlink()
    assert last.result().status_code == 200
    assert server.process.wait(60) == 0


# ---------------------------------------------------------------- what it told


def less(after: Scrape, before: Scrape, name: str) -> dict[tuple[str, ...], float]:
    """What has been added, where anything was."""
    found, earlier = after.counted(name), before.counted(name)
    added = {labels: value - earlier.get(labels, 0.0) for labels, value in found.items()}
    return {labels: value for labels, value in added.items() if value}


def test_requests_by_door_and_outcome(stages):
    assert stages.loading.counted("predictor_requests_total") == {("v1", "refused"): 1}
    assert less(stages.made, stages.started, "predictor_requests_total") == {
        ("v1", "ok"): 6,  # a picture, an instance and an event; two instances, a stream, a picture
        ("openai", "ok"): 2,
        **{(door, "ok"): 1 for door in ("v2", "grpc", "huggingface", "generate", "a1111")},
    }
    assert less(stages.refused, stages.made, "predictor_requests_total") == {
        ("v1", "invalid"): 2,
        **{(door, "invalid"): 1 for door in ("v2", "openai", "huggingface", "generate", "a1111")},
    }
    assert less(stages.troubled, stages.refused, "predictor_requests_total") == {("v1", "failed"): 1, ("v1", "cancelled"): 1}
    assert less(stages.after, stages.troubled, "predictor_requests_total") == {
        ("v1", "refused"): 2,
        ("v1", "cancelled"): 2,
        ("v1", "deadline"): 1,
        ("generate", "deadline"): 1,
        ("openai", "deadline"): 1,  # which had begun with 200
    }
    assert less(stages.last, stages.after, "predictor_requests_total") == {("v1", "refused"): 1}


def test_seconds_are_those_of_the_same_requests(stages):
    by_outcome: dict[str, float] = {}
    for (_, outcome), count in stages.last.counted("predictor_requests_total").items():
        by_outcome[outcome] = by_outcome.get(outcome, 0) + count
    counts = stages.last.counted("predictor_request_seconds_count")
    assert {outcome: count for (outcome,), count in counts.items()} == by_outcome
    assert stages.last.value("predictor_request_seconds_sum", outcome="deadline") >= 3 * TIMEOUT
    assert stages.last.value("predictor_request_seconds_bucket", outcome="deadline", le="5.0") == 0
    assert stages.last.value("predictor_request_seconds_bucket", outcome="deadline", le="300.0") == 3


def test_refusals_by_reason(stages):
    assert stages.last.counted("predictor_rejected_total") == {
        ("loading",): 1,
        ("queue_full",): 1,
        ("device",): 1,
        ("draining",): 1,
    }


def test_pictures_and_their_stages(stages):
    instances = 10 + 2 + 1 + 1
    assert stages.made.total("predictor_images_total") == instances + 1  # one instance was of two pictures
    for stage in ("text", "denoise", "decode", "encode"):
        assert stages.made.value("predictor_stage_seconds_count", stage=stage) == instances, stage
    assert stages.made.value("predictor_queue_seconds_count") == instances
    for stage in ("text", "denoise", "decode", "encode"):
        [spent] = [
            value
            for labels, value in less(stages.made, stages.sequential, "predictor_stage_seconds_sum").items()
            if labels == (stage,)
        ]
        assert spent == pytest.approx(stages.timing[stage], abs=0.0001), stage
    [waited] = less(stages.made, stages.sequential, "predictor_queue_seconds_sum").values()
    assert waited == pytest.approx(stages.timing["queue"], abs=0.0001)


def test_forwards_and_their_rows(stages):
    """Nobody shared one here: 12 instances of 3 steps with 2 rows, and one of 3 with 4."""
    before, after = stages.started, stages.sequential
    forwards = 3 * 13
    for name in ("forwards_total", "rows_per_forward_count", "forward_seconds_count"):
        assert after.total(f"predictor_{name}") - before.total(f"predictor_{name}") == forwards, name
    for name in ("forward_rows_total", "rows_per_forward_sum"):
        assert after.total(f"predictor_{name}") - before.total(f"predictor_{name}") == 3 * (12 * 2 + 4), name
    spread = less(after, before, "predictor_rows_per_forward_bucket")
    assert [spread.get((bound,), 0) for bound in ("1.0", "2.0", "4.0", "+Inf")] == [0, 36, 39, 39]


def test_cancelled_work_by_the_stage_it_was_in(stages):
    assert less(stages.troubled, stages.started, "predictor_cancelled_total") == {("denoise",): 1}
    assert less(stages.last, stages.troubled, "predictor_cancelled_total") == {("queue",): 2}


def test_memory_that_ran_out(stages):
    assert stages.refused.total("predictor_out_of_memory_total") == 0
    assert stages.last.total("predictor_out_of_memory_total") == 1
    assert "predictor_device_memory_bytes" in stages.last.types
    assert "predictor_device_memory_bytes" not in stages.last.samples  # of a CPU


def test_a_standstill_shows(stages):
    assert (stages.waiting.value("predictor_running"), stages.waiting.value("predictor_queue_depth")) == (1, 2)
    assert 0 < stages.waiting.value("predictor_accepted_work_seconds") <= 3
    assert (stages.hung.value("predictor_ready"), stages.hung.value("predictor_running")) == (0, 1)
    assert (stages.after.value("predictor_ready"), [stages.after.value(name) for name in STATE]) == (1, [0, 0, 0, 0])
    assert less(stages.after, stages.troubled, "predictor_queue_seconds_count") == {(): 5}
    waited = stages.after.total("predictor_queue_seconds_sum") - stages.troubled.total("predictor_queue_seconds_sum")
    assert waited >= 2 * TIMEOUT  # of those who were never begun


def test_the_process_and_what_it_serves(stages):
    line = stages.server.wait_for(message="ready")
    assert [each.value("predictor_ready") for each in (stages.loading, stages.started, stages.last)] == [0, 1, 0]
    assert "predictor_model_info" not in stages.loading.samples
    [(labels, one)] = stages.started.samples["predictor_model_info"].items()
    assert (one, dict(labels)) == (
        1,
        {
            **{"model": "model", "repo": "toy/model", "commit": toys.COMMIT, "pipeline": "StableDiffusionPipeline"},
            **{"dtype": "float32", "device": "cpu", "mode": "shared", "reason": line["reason"]},
        },
    )
    assert stages.started.counted("predictor_mode") == {("shared",): 1}
    assert stages.started.value("predictor_mode", mode="turns") == 0
    phases = {phase: round(spent, 2) for (phase,), spent in stages.started.counted("predictor_start_seconds").items()}
    assert phases == {phase: spent for phase, spent in line["seconds"].items() if spent}
    assert stages.started.value("predictor_row_limit") == line["row_limit"]
    assert stages.started.value("predictor_compiled") == 0
    assert stages.loading.value("predictor_timeout_seconds") == TIMEOUT
    assert stages.loading.value("predictor_accepted_work_limit_seconds") == 3


def test_labels_are_of_a_few_values_whatever_callers_write(stages):
    known = {"door": metrics.DOORS, "outcome": metrics.OUTCOMES, "reason": metrics.REASONS, "mode": ("shared", "turns")}
    known |= {"stage": ("queue", *metrics.STAGES), "phase": ("imports", "read", "to_device", "warm_up")}
    for name, samples in stages.last.samples.items():
        if name != "predictor_model_info":
            for label, value in (pair for labels in samples for pair in labels if pair[0] != "le"):
                assert value in known[label], (name, label, value)


def test_kserve_and_python_tell_what_they_always_do(stages):
    assert {"python_info", "process_start_time_seconds", "request_predict_seconds"} <= set(stages.theirs.types)


def test_the_readme_lists_what_there_is(stages):
    text = (REPOSITORY / "README.md").read_text().partition("\n## Watching\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(predictor_\w+)` \| (\w+) \|([^|]*)\|[^|]+\|", text, re.MULTILINE)
    listed = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    found = {name: (kind, stages.last.labels[name]) for name, kind in stages.last.types.items()}
    found["predictor_device_memory_bytes"] = ("gauge", frozenset(["kind"]))  # which a CPU does not show
    assert len(rows) == len(listed)
    assert listed == found
