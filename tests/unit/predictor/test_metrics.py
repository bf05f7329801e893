"""What is counted, and that nothing a caller writes becomes a label. The numbers of a server: tests/e2e/test_metrics_e2e.py."""

import ast
import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastapi import FastAPI
from prometheus_client import REGISTRY, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import scrape
from fakes import Clock, Gate, Model, params
from predictor import metrics, server, service
from predictor.border import Border
from predictor.device import Device
from predictor.engine import Engine
from predictor.errors import Cancelled, DeadlineExceeded, GenerationFailed, NotServing, QueueFull
from predictor.policy import Policy
from predictor.speed import Curve

SECRET = "zebra"
SOURCES = sorted(Path(metrics.__file__).parent.glob("*.py"))


@pytest.fixture
def counted():
    """What has been added since the test began: samples by name, as scrape.Scrape.counted has them."""
    before = scraped()

    def since(name: str) -> dict[tuple[str, ...], float]:
        after, earlier = scraped().counted(name), before.counted(name)
        added = {labels: after[labels] - earlier.get(labels, 0.0) for labels in after}
        return {labels: value for labels, value in added.items() if value}

    return since


def scraped() -> scrape.Scrape:
    return scrape.read(generate_latest(REGISTRY).decode())


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *((200, "ok"), (400, "invalid"), (404, "invalid"), (413, "invalid"), (429, "refused"), (499, "cancelled")),
        *((500, "failed"), (501, "failed"), (503, "refused"), (504, "deadline")),
    ],
)
def test_a_status_is_an_outcome(counted, status, outcome):
    metrics.request_over("v1", status, 3.0, "queue_full")
    assert counted("predictor_requests_total") == {("v1", outcome): 1}
    assert counted("predictor_request_seconds_count") == {(outcome,): 1}
    assert counted("predictor_request_seconds_sum") == {(outcome,): 3.0}
    assert counted("predictor_rejected_total") == ({("queue_full",): 1} if outcome == "refused" else {})


def test_every_counter_is_there_before_it_has_counted():
    """Or its first event would be in no increase."""
    found = scraped()
    assert len(found.samples["predictor_requests_total"]) == len(metrics.DOORS) * len(metrics.OUTCOMES)
    assert len(found.samples["predictor_rejected_total"]) == len(metrics.REASONS)
    assert len(found.samples["predictor_cancelled_total"]) == 1 + len(metrics.STAGES)


def test_every_refusal_says_why():
    """A reason that nobody gave would be counted as `other`."""
    raised = [
        node
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("QueueFull", "NotServing")
    ]
    reasons = [{each.arg: each.value for each in node.keywords}.get("reason") for node in raised]
    assert len(reasons) >= 8 and None not in reasons
    assert {each.value for each in reasons if isinstance(each, ast.Constant)} <= set(metrics.REASONS) - {"other"}


# ---------------------------------------------------------------- at the border

ERRORS = {
    "full": QueueFull("full", retry_after=7, reason="queue_full"),
    "leaving": NotServing("leaving", retry_after=2, reason="draining"),
    "unexplained": NotServing("no"),
    "late": DeadlineExceeded("late"),
    "gone": Cancelled("gone"),
    "failed": GenerationFailed("generation failed"),
    "foreign": RuntimeError(SECRET),
}


async def ask(http: Request):
    if error := ERRORS.get(http.path_params["name"]):
        raise error
    return PlainTextResponse(str(len(await http.body())))


async def stream(http: Request):
    """Breaks off midway, if it is told to."""

    async def parts():
        yield b"half"
        error = ERRORS.get(http.query_params.get("broken", ""))
        if isinstance(error, RuntimeError):
            raise error
        if error:
            http.state.broke_off = error
        yield b"end"

    return StreamingResponse(parts())


@pytest.fixture
def border():
    routes = [
        Route("/ask/{name}:predict", ask, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        Route("/elsewhere", ask, methods=["POST"]),
    ]
    doors = {"/ask/{name}:predict": "v1", "/stream": "openai"}
    return Starlette(routes=routes, middleware=[Middleware(Border, max_body_bytes=100, doors=doors)])


@pytest.fixture
def client(border):
    return TestClient(border, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("m", "ok", None),
        ("full", "refused", "queue_full"),
        ("leaving", "refused", "draining"),
        ("unexplained", "refused", "other"),
        ("late", "deadline", None),
        ("gone", "cancelled", None),
        ("failed", "failed", None),
        ("foreign", "failed", None),
    ],
)
def test_a_door_counts_how_each_request_ended(client, counted, name, outcome, reason):
    client.post(f"/ask/{name}:predict", content=b"x")
    assert counted("predictor_requests_total") == {("v1", outcome): 1}
    assert counted("predictor_rejected_total") == ({(reason,): 1} if reason else {})


def test_what_is_refused_before_it_gets_to_a_route_has_come_to_a_door(client, counted):
    assert client.post("/ask/m:predict", content=b"x" * 101).status_code == 413
    assert counted("predictor_requests_total") == {("v1", "invalid"): 1}


@pytest.mark.parametrize(
    ("broken", "outcome", "status"),
    [("", "ok", 200), ("late", "deadline", 504), ("leaving", "refused", 503), ("foreign", "failed", 500)],
)
def test_a_stream_counts_as_what_it_ended_with(client, counted, caplog, broken, outcome, status):
    with caplog.at_level("INFO", "predictor"):
        assert client.post("/stream", params={"broken": broken}).status_code == 200
    assert counted("predictor_requests_total") == {("openai", outcome): 1}
    assert [record.status for record in caplog.records if record.message == "request"] == [status]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/elsewhere"), ("POST", "/zebra"), ("GET", "/ask/m:predict"), ("ZEBRA", "/ask/m:predict")]
)
def test_what_is_no_door_is_not_counted(client, counted, method, path):
    client.request(method, path, content=b"")
    assert counted("predictor_requests_total") == {}


def test_a_caller_who_leaves_is_cancelled_in_a_body_and_in_a_stream(border, counted, caplog):
    async def exchange(path: str, *received: dict) -> None:
        """As uvicorn has it: once the caller is gone nothing that is sent arrives, and nobody says so."""
        left, to_come = asyncio.Event(), iter(received)

        async def receive():
            if message := next(to_come, None):
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message.get("body"):
                left.set()
                await asyncio.sleep(0)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "asgi": {}}
        await border(scope, receive, send)

    asyncio.run(exchange("/ask/m:predict", {"type": "http.request", "more_body": True}, {"type": "http.disconnect"}))
    with_body = {"type": "http.request", "body": b"", "more_body": False}
    asyncio.run(exchange("/stream", with_body))
    assert counted("predictor_requests_total") == {("v1", "cancelled"): 1, ("openai", "cancelled"): 1}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_every_door_is_a_route():
    app = FastAPI()
    settings = SimpleNamespace(ui=False, max_body_bytes=1, max_instances=1, model_id="org/m", embed_prompt=True)
    server.add_routes(app, SimpleNamespace(settings=settings, name="m"))
    posts = {route.path for route in app.routes if "POST" in getattr(route, "methods", ())}
    assert set(server._DOORS) <= posts
    assert {*server._DOORS.values(), "grpc"} == set(metrics.DOORS)


# ---------------------------------------------------------------- instances


def job(stage: str, *, queue: float | None = None, arrived: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(stage=stage, seconds={} if queue is None else {"queue": queue}, arrived=arrived)


def test_an_instance_is_counted_when_its_request_is_over(counted, monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    service._count([job("done", queue=2.0), job("queue", arrived=45.0)], DeadlineExceeded("late"))
    assert counted("predictor_queue_seconds_sum") == {(): 7.0}
    assert counted("predictor_cancelled_total") == {}


def test_what_is_cancelled_is_counted_where_it_stood(counted):
    jobs = [job("queue"), job("denoise", queue=1.0), job("done", queue=1.0)]
    service._count(jobs, Cancelled("gone"))
    assert counted("predictor_cancelled_total") == {("queue",): 1, ("denoise",): 1}
    assert counted("predictor_queue_seconds_count") == {(): 3}


def test_stages_of_what_was_made_are_told_apart_from_the_queue(counted):
    metrics.made(3, {"queue": 9.0, "text": 0.5, "denoise": 2.0, "decode": 0.25, "encode": 0.125})
    assert counted("predictor_images_total") == {(): 3}
    assert counted("predictor_stage_seconds_sum") == {("text",): 0.5, ("denoise",): 2.0, ("decode",): 0.25, ("encode",): 0.125}


# ---------------------------------------------------------------- the engine


def test_a_scrape_finds_the_engine_as_it_stands():
    model, clock = Model(), Clock()
    gate = Gate(model.pipe.unet)
    engine = Engine(model, Policy(Curve({1: 1.0}), row_limit=1), clock=clock)
    engine.start()
    try:
        engine.submit([params(num_inference_steps=4)], timeout=600, request_id="r")
        assert gate.entered.wait(60)
        engine.submit([params(num_inference_steps=2)] * 2, timeout=600, request_id="r")
        clock.now += 7
        found = scraped()
        assert found.value("predictor_running") == 1
        assert found.value("predictor_queue_depth") == 2
        assert found.value("predictor_accepted_work_seconds") == 8  # a forward of a row takes 1 s
        assert found.value("predictor_last_tick_seconds") == 7
        jobs = engine.open_jobs
        gate.opened.set()
        for each in jobs:
            each.future.result(60)
    finally:
        gate.opened.set()
        engine.stop(NotServing("over"))
    clock.now += 100
    found = scraped()
    state = ("predictor_running", "predictor_queue_depth", "predictor_accepted_work_seconds", "predictor_last_tick_seconds")
    assert [found.value(name) for name in state] == [0, 0, 0, 0]  # with nothing to do, silence means nothing


def test_forwards_are_counted_with_their_rows_and_seconds(counted):
    model, clock = Model(), Clock()
    model.pipe.unet.before = lambda: setattr(clock, "now", clock.now + 2)
    engine = Engine(model, Policy(Curve({1: 1.0, 4: 1.0}), row_limit=4), clock=clock)
    engine.submit([params(num_inference_steps=2), params(num_inference_steps=1)], timeout=600, request_id="r")
    while engine.open_jobs:
        engine.step()
    assert model.pipe.unet.forwards == [1, 2] or model.pipe.unet.forwards == [2, 1]
    for name in ("forwards_total", "rows_per_forward_count", "forward_seconds_count"):
        assert counted(f"predictor_{name}") == {(): 2}
    for name in ("forward_rows_total", "rows_per_forward_sum"):
        assert counted(f"predictor_{name}") == {(): 3}
    assert counted("predictor_forward_seconds_sum") == {(): 4}
    assert counted("predictor_rows_per_forward_bucket")[("1.0",)] == 1


def test_memory_is_read_from_the_books_and_a_cpu_has_none(monkeypatch):
    """No call that would wait for a device that hangs: the scrape runs where /livez is answered."""

    def waits(*_):
        raise AssertionError("the device was asked")

    for name in ("synchronize", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, waits)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 if device == torch.device("cuda:1") else 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 if device == torch.device("cuda:1") else 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=30))
    found = Device(torch.device("cuda:1"), Clock()).memory
    assert {kind: read() for kind, read in found.items()} == {"allocated": 10, "reserved": 20, "total": 30}
    assert Device(torch.device("cpu"), Clock()).memory == {}


# ---------------------------------------------------------------- names


def test_names_are_conventional_and_labels_few():
    found = scraped()
    for name, kind in found.types.items():
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith("_seconds") or name == "predictor_rows_per_forward"
    assert set().union(*found.labels.values()) <= {
        *("door", "outcome", "reason", "stage", "kind", "mode", "phase"),
        *("model", "repo", "commit", "pipeline", "dtype", "device"),
    }
