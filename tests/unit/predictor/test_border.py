"""The border: what any request meets before and after our routes, without a model behind them."""

import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from predictor import wire
from predictor.border import Border
from predictor.errors import Cancelled, GenerationFailed, NotServing, QueueFull

ERRORS = {
    "full": QueueFull("full", retry_after=7),
    "leaving": NotServing("leaving", retry_after=2),
    "failed": GenerationFailed("generation failed"),
    "foreign": RuntimeError("somebody's prompt"),
    "gone": Cancelled("gone"),
}


async def fail(request: Request):
    raise ERRORS[request.path_params["how"]]


async def echo(request: Request):
    return PlainTextResponse(f"{len(await request.body())} {request.state.request_id}")


async def half(request: Request):
    async def body():
        yield b"half"
        raise RuntimeError("somebody's prompt")

    return StreamingResponse(body())


@pytest.fixture
def client():
    routes = [
        Route("/fail/{how}", fail),
        Route("/echo", echo, methods=["POST"]),
        Route("/half", half),
        Route("/own/{how}", fail),
    ]
    own = {"/own/": lambda error, request_id: {"fault": [error.status, wire.public(error, request_id)]}}
    middleware = [Middleware(Border, max_body_bytes=100, shapes=own)]
    return TestClient(Starlette(routes=routes, middleware=middleware), raise_server_exceptions=False)


@pytest.mark.parametrize(("how", "status", "retry_after"), [("full", 429, "7"), ("leaving", 503, "2"), ("failed", 500, None)])
def test_our_errors_become_answers(client, how, status, retry_after):
    answer = client.get(f"/fail/{how}", headers={"x-request-id": "r-1"})
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == retry_after
    assert answer.json()["error"].startswith(ERRORS[how].message)
    assert answer.headers["x-request-id"] == "r-1"


def test_a_protocol_has_errors_of_its_own_shape(client):
    assert client.get("/own/full").json() == {"fault": [429, "full"]}
    answer = client.get("/own/foreign", headers={"x-request-id": "r-3"})
    assert answer.json() == {"fault": [500, "internal error (request id r-3)"]}


def test_foreign_errors_are_opaque_and_logged_once_with_the_id(client, caplog):
    with caplog.at_level("ERROR", "predictor"):
        answer = client.get("/fail/foreign", headers={"x-request-id": "r-2"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error (request id r-2)"}
    [record] = caplog.records
    assert (record.request_id, record.error) == ("r-2", "RuntimeError")
    assert "somebody" not in str(vars(record))


def test_an_answer_that_has_begun_is_not_begun_again(client):
    answer = client.get("/half")
    assert (answer.status_code, answer.content) == (200, b"half")


def test_a_cancelled_request_is_told_and_logged(client, caplog):
    with caplog.at_level("INFO", "predictor"):
        assert client.get("/fail/gone").json() == {"error": "gone"}
    assert [(record.status, record.path) for record in caplog.records] == [(499, "/fail/{how}")]


def test_probes_are_not_logged_and_requests_are(client, caplog):
    with caplog.at_level("INFO", "predictor"):
        client.get("/fail/leaving")
        client.post("/echo", content=b"x")
    assert [(record.method, record.path, record.status) for record in caplog.records] == [("POST", "/echo", 200)]


def test_ids_are_taken_when_well_formed_and_made_otherwise(client):
    assert client.post("/echo", headers={"x-request-id": "A-1._z"}).text == "0 A-1._z"
    for bad in ("", "a b", "x" * 65, "ü"):
        answer = client.post("/echo", headers={"x-request-id": bad.encode("latin-1")})
        assert len(answer.headers["x-request-id"]) == 32


def test_a_body_is_counted_announced_or_not(client):
    assert client.post("/echo", content=b"x" * 100).text.startswith("100 ")
    for content in (b"x" * 101, iter([b"x" * 60, b"x" * 60])):
        answer = client.post("/echo", content=content)
        assert answer.status_code == 413
        assert json.loads(answer.content) == {"error": "body must be at most 100 bytes"}


def test_a_body_must_come_in_time(client, monkeypatch):
    monkeypatch.setattr("predictor.border._UPLOAD", 0.0)
    forever = asyncio.Event

    async def scenario():
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/echo", "method": "POST", "headers": []}
        border = Border(lambda scope, receive, send: receive(), max_body_bytes=9)
        await border(scope, forever().wait, send)
        return sent

    start, body = asyncio.run(scenario())
    assert (start["status"], json.loads(body["body"])) == (408, {"error": "the body must come within 0 s"})
    assert (b"connection", b"close") in start["headers"]


def test_a_compressed_body_is_not_looked_at(client):
    answer = client.post("/echo", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["connection"]) == (415, "close")
    assert client.post("/echo", content=b"x", headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/m/load", "/v2/repository/models/m/unload"])
def test_kserve_repository_is_closed(client, path):
    assert client.post(path).status_code == 403


def test_kserve_routes_that_would_quote_the_body_are_closed(client):
    answer = client.post("/v1/models/m:explain", json={"inputs": "zebra"})
    assert answer.status_code == 501
    assert "POST /v1/models/<name>:predict" in answer.json()["error"]
    assert "zebra" not in answer.text


def test_a_path_that_nobody_declared_is_not_logged(client, caplog):
    with caplog.at_level("INFO", "predictor"):
        assert client.get("/somebody/prompt").status_code == 404
    assert [(record.path, record.status) for record in caplog.records] == [(None, 404)]
