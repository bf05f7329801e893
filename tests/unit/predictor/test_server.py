"""Routes around a service that is played, where no door's own client would see what matters."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.testclient import TestClient

from predictor.errors import GenerationFailed, QueueFull
from predictor.images import EncodedImage
from predictor.request import Answer, Params, Step
from predictor.server import _streamed, add_routes

ANSWER = Answer(Params("a", 8, 8, 2, seed=7), (EncodedImage(b"png", "png", 8, 8),), {"queue": 0.0})
PROMPT = {"prompt": "a"}


class Service:
    """Answers everything at once; remembers who asked. `told` is what a stream tells."""

    name = "m"

    def __init__(self, *told: object, **settings: object) -> None:
        given = {"ui": True, "max_body_bytes": 1000, "max_instances": 2, "model_id": "org/m", "embed_prompt": True}
        self.settings = SimpleNamespace(**given | settings)
        self.limits = SimpleNamespace(schedulers=(), supported=frozenset())
        self.told = told
        self.callers: list[object] = []
        self.closed = False

    def check_ready(self) -> None:
        pass

    async def generate(self, requests, *, request_id, gone, caller=None, previews=None, inscription=None):
        self.callers.append(caller)
        return [ANSWER] * len(requests)

    async def stream(self, request, *, request_id, previews):
        try:
            for each in self.told:
                if isinstance(each, Exception):
                    raise each
                yield each
        finally:
            self.closed = True

    async def cancel_all(self, caller) -> None:
        self.callers.append(caller)


def client(service: Service) -> TestClient:
    app = FastAPI()
    add_routes(app, service)
    return TestClient(app)


def test_a1111_takes_callers_apart_by_address_and_what_proxies_say():
    service = Service()
    http = client(service)
    http.post("/sdapi/v1/txt2img", json=PROMPT)
    http.post("/sdapi/v1/interrupt")
    http.post("/sdapi/v1/interrupt", headers={"x-forwarded-for": "10.0.0.1"})
    assert service.callers == [("testclient", ""), ("testclient", ""), ("testclient", "10.0.0.1")]


def test_other_doors_have_no_callers_that_could_be_interrupted():
    service = Service()
    http = client(service)
    for path in ("/v1/models/m:predict", "/generate", "/openai/v1/images/generations"):
        assert http.post(path, json=PROMPT).status_code == 200
    assert service.callers == [None] * 3


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/models/m:predict", {"error": "full"}),
        (
            "/openai/v1/images/generations",
            {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": None}},
        ),
    ],
)
def test_what_is_refused_before_a_stream_begins_is_no_stream(path, error):
    refusal = client(Service(QueueFull("full", retry_after=3)))
    answer = refusal.post(
        path, json=PROMPT | ({"stream": True} if "openai" in path else {}), headers={"accept": "text/event-stream"}
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json() == error


def test_what_fails_midway_is_an_event():
    service = Service(Step("queued", 0, 2), GenerationFailed("generation failed"))
    answer = client(service).post("/v1/models/m:predict", json=PROMPT, headers={"accept": "text/event-stream"})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.endswith('event: error\ndata: {"status":500,"error":"generation failed"}\n\n')


def test_openai_previews_are_counted():
    preview = Step("running", 1, 9, EncodedImage(b"png", "png", 8, 8))
    service = Service(Step("queued", 0, 9), preview, Step("running", 2, 9), preview, ANSWER)
    text = client(service).post("/openai/v1/images/generations", json=PROMPT | {"stream": True, "partial_images": 2}).text
    assert [line for line in text.splitlines() if line.startswith((":", "event"))] == [
        ": queued, step 0 of 9",
        "event: image_generation.partial_image",
        ": running, step 2 of 9",
        "event: image_generation.partial_image",
        "event: image_generation.completed",
    ]
    assert text.index('"partial_image_index":0') < text.index('"partial_image_index":1')


def test_a_stream_that_nobody_reads_to_its_end_is_closed():
    service = Service(Step("queued", 0, 2), Step("running", 1, 2), ANSWER)

    async def scenario():
        told = service.stream(None, request_id="r", previews=None)
        response = await _streamed(Request({"type": "http"}), told, lambda told: b"x")
        body = response.body_iterator
        await anext(body)
        assert not service.closed
        await body.aclose()
        assert service.closed

    asyncio.run(scenario())


def test_the_page_lets_nothing_in_from_elsewhere_and_can_be_off():
    http = client(Service())
    for path in ("/ui", "/ui/page.js", "/ui/page.css"):
        answer = http.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert client(Service(ui=False)).get("/ui").status_code == 404


def test_a_name_that_is_not_ours_is_404_at_every_door_that_has_names():
    http = client(Service())
    for method, path in (("POST", "/v1/models/x:predict"), ("GET", "/v1/models/x/schema"), ("POST", "/v2/models/x/infer")):
        answer = http.request(method, path, json=PROMPT)
        assert (answer.status_code, answer.json()["error"]) == (404, "no model of this name here; there is m")


def test_a_header_length_must_be_a_number():
    answer = client(Service()).post("/v2/models/m/infer", json={}, headers={"inference-header-content-length": "x"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/nowhere", 404, "there is nothing at this path; GET /openapi.json lists what there is"),
        ("GET", "/generate", 405, "this path is for POST, not for GET"),
    ],
)
def test_what_is_not_routed_is_told_in_the_callers_shape(method, path, status, text):
    http = client(Service())
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": text})
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
    answer = http.request(method, "/openai/v1/nowhere")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
