"""Each door opened with the client that people use, against a process with a socket. v2, A1111 and the page have files of
their own."""

import base64
import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import numpy as np
import openai
import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from doors import Doors
from serving import Server

SECRET = "zebra"  # in every prompt: no log may hold it
STEPS = {"num_inference_steps": 3}
LONG = {"num_inference_steps": 1000, "scheduler": "HeunDiscreteScheduler"}  # a quarter of a minute, unless it is cancelled
LONG_STEPS = 1999  # that are: Heun looks twice at every level of noise but the last
SECONDS = {"num_inference_steps": 1000, "scheduler": "EulerDiscreteScheduler"}
HALF_A_SECOND = {"num_inference_steps": 200, "scheduler": "EulerDiscreteScheduler"}


@pytest.fixture(scope="module")
def server(toy_volume):
    volume = ["--model-id", "toy/model", "--root", str(toy_volume), "--device", "cpu"]
    roomy = ["--max-steps", "5000", "--max-cost", "1000", "--timeout", "3600", "--max-queue-seconds", "3600"]
    with Server([*volume, *roomy]) as running:
        yield running.wait_until_ready()
        assert SECRET not in running.text
        assert '"level": "error"' not in running.text
        assert running.process.poll() is None


@pytest.fixture(scope="module")
def doors(server):
    return Doors(server)


@pytest.fixture(scope="module")
def client(doors):
    return doors.openai_client


@pytest.fixture(scope="module")
def hub(doors):
    return doors.hub


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int)


def same(one: bytes, other: bytes) -> bool:
    return pixels(one).shape == pixels(other).shape and np.abs(pixels(one) - pixels(other)).max() <= 1


def predicted(server: Server, prompt: str = SECRET, **parameters: object) -> bytes:
    answer = server.predict({"prompt": prompt, "parameters": STEPS | parameters})
    assert answer.status_code == 200, answer.text
    return answer.content


def events(response: httpx.Response):
    """(name, data) of server-sent events; the name of a comment is None."""
    name = None
    for line in response.iter_lines():
        if line.startswith(":"):
            yield None, line[1:].strip()
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


# ---------------------------------------------------------------- OpenAI


def test_openai_client_gets_the_pictures(server, client):
    made = client.images.generate(
        model="model", prompt=SECRET, n=2, size="24x32", extra_body=STEPS | {"seed": 5, "negative_prompt": "dots"}
    )
    assert (made.size, made.output_format, made.usage.input_tokens) == ("24x32", "png", len(SECRET) + 2)
    assert [image.seed for image in made.data] == [5, 6]
    for image in made.data:
        expected = predicted(server, seed=image.seed, width=24, negative_prompt="dots")
        assert same(base64.b64decode(image.b64_json), expected)


def test_openai_formats_and_compression(client):
    sizes = {}
    for compression in (10, 100):
        made = client.images.generate(
            prompt=SECRET, output_format="webp", output_compression=compression, extra_body=STEPS | {"seed": 5}
        )
        data = base64.b64decode(made.data[0].b64_json)
        assert (Image.open(io.BytesIO(data)).format, made.output_format) == ("WEBP", "webp")
        sizes[compression] = len(data)
    assert sizes[10] < sizes[100]


def test_openai_stream_shows_previews_before_the_end(server, client):
    stream = client.images.generate(
        prompt=SECRET, stream=True, partial_images=3, size="32x24", extra_body=HALF_A_SECOND | {"seed": 5}
    )
    told = list(stream)
    assert [event.type for event in told] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in told[:3]] == [0, 1, 2]
    assert {pixels(base64.b64decode(event.b64_json)).shape for event in told} == {(24, 32, 3)}
    expected = predicted(server, height=24, seed=5, **HALF_A_SECOND)
    off = [np.abs(pixels(base64.b64decode(event.b64_json)) - pixels(expected)).mean() for event in told]
    assert off[0] > off[2] > off[3] and off[3] <= 1


def test_the_first_preview_comes_before_half_of_the_steps_are_done(server):
    body = {"prompt": SECRET, "stream": True, "partial_images": 1, **SECONDS}
    with server.client.stream("POST", "/openai/v1/images/generations", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        request_id = response.headers["x-request-id"]
        told = events(response)
        name, _ = next(each for each in told if each[0])
        found = server.client.get(f"/v1/requests/{request_id}").json()
    assert name == "image_generation.partial_image"
    assert found["state"] == "running"
    assert 0 < found["step"] < found["of"] / 2
    assert server.wait_until_over(request_id)["state"] == "cancelled"  # the caller has left


def test_openai_errors_are_the_clients_own(server, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt=SECRET, size="33x32")
    assert refused.value.param == "size"
    assert refused.value.body["message"].startswith("size must be a multiple of 2 from 8 to 128, not 33")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt=SECRET, model="dall-e-3")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="pictures"):
        client.images.generate(prompt=SECRET, response_format="url")


def test_a_stream_that_is_cancelled_says_so(server, client):
    def cancel(request_id: str) -> None:
        server.client.delete(f"/v1/requests/{request_id}")

    stream = client.images.generate(
        prompt=SECRET, stream=True, partial_images=3, extra_body=SECONDS, extra_headers={"x-request-id": "mine"}
    )
    with pytest.raises(openai.APIError, match="cancelled"):
        for _ in stream:
            cancel("mine")


def test_openai_models(client):
    assert [model.id for model in client.models.list()] == ["model", "toy/model"]
    assert client.models.retrieve("toy/model").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


# ---------------------------------------------------------------- Hugging Face, and the plainest


def test_huggingface_client_gets_the_picture(server, hub):
    made = hub.text_to_image(SECRET, width=24, num_inference_steps=3, seed=5, guidance_scale=2.0)
    expected = Image.open(io.BytesIO(predicted(server, seed=5, width=24, guidance_scale=2.0)))
    assert made.format == "PNG"
    assert np.abs(np.asarray(made, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
    assert hub.text_to_image(SECRET, num_inference_steps=3, extra_body={"output_format": "jpeg"}).format == "JPEG"


def test_huggingface_errors_say_why(hub):
    with pytest.raises(HfHubHTTPError) as refused:
        hub.text_to_image(SECRET, width=33)
    assert refused.value.response.status_code == 400
    assert refused.value.response.json() == {"error": "parameters.width must be a multiple of 2 from 8 to 128, not 33"}


def test_generate_takes_parameters_beside_the_prompt(server):
    answer = server.client.post("/generate", json={"prompt": SECRET, "seed": 5, **STEPS})
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("image/png", "5")
    assert same(answer.content, predicted(server, seed=5))
    refused = server.client.post("/generate", json={"prompt": SECRET, "steps": 5})
    assert (refused.status_code, refused.json()["error"][:23]) == (400, 'body has no field "step')


@pytest.mark.parametrize("path", ["/v1/models/model:predict", "/generate", "/"])
def test_accept_picks_the_format(server, path):
    prompt = "inputs" if path == "/" else "prompt"
    own = STEPS if path == "/generate" else {"parameters": STEPS}
    for accept, kind in (
        ("image/webp", "WEBP"),
        ("image/jpeg", "JPEG"),
        ("image/avif, image/png;q=0.5", "PNG"),
        ("*/*", "PNG"),
    ):
        answer = server.client.post(path, json={prompt: SECRET, **own}, headers={"accept": accept})
        assert Image.open(io.BytesIO(answer.content)).format == kind
        assert answer.headers["content-type"] == f"image/{kind.lower()}"
    answer = server.client.post(path, json={prompt: SECRET, **own}, headers={"accept": "image/avif"})
    assert answer.status_code == 406
    assert "image/png, image/jpeg, image/webp" in answer.json()["error"]


# ---------------------------------------------------------------- v1: events, schema, CloudEvents


def test_v1_streams_steps_previews_and_the_answer(server):
    body = {"prompt": SECRET, "parameters": {"num_inference_steps": 20, "seed": 5}}
    path = "/v1/models/model:predict"
    with server.client.stream("POST", path, json=body, headers={"accept": "text/event-stream"}) as response:
        told = list(events(response))
        request_id = response.headers["x-request-id"]
    names = [name for name, _ in told]
    assert (names[0], names[-1]) == ("progress", "prediction")
    steps = [data["step"] for name, data in told if name == "progress"]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 20
    assert {data["request_id"] for name, data in told if name == "progress"} == {request_id}
    previews = [data for name, data in told if name == "preview"]
    assert len(previews) == 10 and previews[0]["step"] < 10
    assert Image.open(io.BytesIO(base64.b64decode(previews[0]["image"]["b64"]))).info["generation"] == '{"preview": true}'
    final = told[-1][1]
    assert same(base64.b64decode(final["image"]["b64"]), predicted(server, seed=5, num_inference_steps=20))


def test_a_stream_that_cannot_begin_is_an_ordinary_refusal(server):
    body = {"prompt": SECRET, "parameters": {"width": 33}}
    answer = server.predict(body, headers={"accept": "text/event-stream"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")


def test_the_schema_says_what_predict_takes(server):
    schema = server.client.get("/v1/models/model/schema").json()
    assert schema["title"] == "model"
    defaults = {
        name: field["default"]
        for name, field in schema["properties"]["parameters"]["properties"].items()
        if "default" in field and name != "num_inference_steps"
    }
    assert defaults.keys() >= {"width", "height", "guidance_scale", "output_format"}
    assert same(predicted(server, seed=5, **defaults), predicted(server, seed=5))


@pytest.mark.parametrize("write", [to_binary, to_structured])
@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_an_event_is_answered_with_an_event(server, write, accept):
    body = {"prompt": SECRET, "parameters": STEPS | {"seed": 5}}
    asked = CloudEvent({"type": "t", "source": "s", "datacontenttype": "application/json"}, body)
    headers, data = write(asked)
    answer = server.client.post("/v1/models/model:predict", content=data, headers={**headers, "accept": accept})
    assert answer.status_code == 200, answer.text
    event = from_http(dict(answer.headers), answer.content, lambda data: data)
    assert event["source"] == "io.kserve.inference.model"
    made = event.get_data()
    if accept == "application/json":
        made = made if isinstance(made, dict) else json.loads(made)
        made = base64.b64decode(made["predictions"][0]["image"]["b64"])
    assert same(made, predicted(server, seed=5))


# ---------------------------------------------------------------- requests by their id


def test_a_request_can_be_followed_and_cancelled_by_its_id(server):
    with ThreadPoolExecutor(1) as pool:
        body = {"prompt": SECRET, "parameters": LONG}
        work = pool.submit(server.predict, body, headers={"x-request-id": "to-cancel"})
        found = server.wait_until_running("to-cancel")
        assert (found["id"], found["of"]) == ("to-cancel", LONG_STEPS)
        cancelled = server.client.delete("/v1/requests/to-cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        assert 0 < cancelled.json()["step"] < LONG_STEPS
        assert (work.result().status_code, work.result().json()) == (499, {"error": "cancelled by the caller"})
    again = server.client.delete("/v1/requests/to-cancel")
    assert (again.status_code, again.json()) == (409, {"error": "this request is over: cancelled"})


def test_what_is_done_is_told_and_what_is_unknown_is_404(server):
    answer = server.predict({"prompt": SECRET, "parameters": STEPS})
    found = server.client.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    assert found == {"id": answer.headers["x-request-id"], "state": "done", "step": 3, "of": 3}
    for method in ("GET", "DELETE"):
        assert server.client.request(method, "/v1/requests/nobody").status_code == 404


# ---------------------------------------------------------------- all at once


def test_100_mixed_requests_over_all_doors_at_once_are_each_as_if_alone(server, doors):
    samplers = ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]
    asked = [
        {
            "prompt": f"{SECRET} {i}",
            "seed": i,
            "num_inference_steps": 4 + i % 5,
            "guidance_scale": (1.0, 4.5, 7.5)[i % 3],
            "scheduler": samplers[i % 4],
            "width": (32, 24)[i % 5 == 0],
            "height": 32,
        }
        for i in range(100)
    ]
    begin = Event()

    def ask(door, own):
        begin.wait()
        return door(own)

    with ThreadPoolExecutor(100) as pool:
        work = [pool.submit(ask, door, own) for door, own in zip(itertools.cycle(doors.all), asked, strict=False)]
        begin.set()
        together = [each.result() for each in work]
    assert len({bytes(each) for each in together}) == 100
    for own, made in zip(asked, together, strict=True):
        assert same(made, doors.predict(own)), own
