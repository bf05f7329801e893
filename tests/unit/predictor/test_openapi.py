"""The document against the codecs: what it allows they take, and what it refuses they refuse."""

import json

import jsonschema
import pytest

from fakes import LIMITS
from predictor import a1111, generate, huggingface, openai, v1, v2
from predictor.errors import InvalidRequest, ServingError
from predictor.openapi import document
from predictor.request import parse

DOCUMENT = document(LIMITS, "m", ("m", "org/m"), max_instances=2)
DECODERS = {
    "/v1/models/m:predict": lambda body: v1.decode(body, max_instances=2).requests,
    "/v2/models/m/infer": lambda body: v2.decode(body, max_requests=2).requests,
    "/openai/v1/images/generations": lambda body: [openai.decode(body, ("m", "org/m")).request],
    "/": lambda body: [huggingface.decode(body)],
    "/generate": lambda body: [generate.decode(body)],
    "/sdapi/v1/txt2img": lambda body: [a1111.decode(body, limits=LIMITS, name="m")],
}


def v2_body(**data) -> dict:
    kinds = {str: "BYTES", int: "INT64", float: "FP32"}
    inputs = [{"name": name, "datatype": kinds[type(each)], "shape": [1], "data": [each]} for name, each in data.items()]
    return {"inputs": inputs}


GOOD = [
    ("/v1/models/m:predict", {"prompt": "a", "parameters": {"seed": 1, "width": 256, "scheduler": "DDIMScheduler"}}),
    ("/v1/models/m:predict", {"instances": [{"prompt": "a"}, {"prompt": "b", "parameters": {"seed": 2}}], "parameters": {}}),
    ("/v2/models/m/infer", v2_body(prompt="a", seed=3, guidance_scale=2.5) | {"id": "x", "parameters": {"width": 256}}),
    (
        "/openai/v1/images/generations",
        {"prompt": "a", "model": "org/m", "size": "256x128", "n": 2, "seed": 1, "quality": "auto"},
    ),
    ("/openai/v1/images/generations", {"prompt": "a", "stream": True, "partial_images": 3, "size": "auto"}),
    ("/", {"inputs": "a", "parameters": {"guidance_scale": 2}}),
    ("/generate", {"prompt": "a", "negative_prompt": "", "output_format": "webp", "output_compression": 0}),
    ("/sdapi/v1/txt2img", {"prompt": "a", "steps": 3, "cfg_scale": 1.5, "seed": -1, "n_iter": 2, "sampler_name": "Euler"}),
]
BAD = [
    ("/v1/models/m:predict", {"prompt": "a", "instances": []}),
    ("/v1/models/m:predict", {"prompt": "a", "parameters": {"width": 257}}),
    ("/v1/models/m:predict", {"instances": [{"prompt": "a"}] * 3}),
    ("/v2/models/m/infer", {"inputs": []}),
    ("/v2/models/m/infer", v2_body(prompt="a") | {"other": 1}),
    ("/openai/v1/images/generations", {"prompt": "a", "size": "12"}),
    ("/openai/v1/images/generations", {"prompt": "a", "partial_images": 4, "stream": True}),
    ("/openai/v1/images/generations", {"prompt": "a", "response_format": "url"}),
    ("/", {"inputs": "a", "parameters": {"steps": 2}}),
    ("/", {"prompt": "a"}),
    ("/generate", {"prompt": "a", "num_inference_steps": 0}),
    ("/sdapi/v1/txt2img", {"prompt": "a", "steps": 0}),
    ("/sdapi/v1/txt2img", {"steps": 1}),
]


def allowed(path: str, body: dict) -> bool:
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid(body)


def parsed(path: str, body: dict) -> None:
    for request in DECODERS[path](json.dumps(body).encode()):
        parse(request, LIMITS)


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_what_it_allows_is_taken(path, body):
    assert allowed(path, body)
    parsed(path, body)


@pytest.mark.parametrize(("path", "body"), BAD)
def test_what_it_refuses_is_refused(path, body):
    assert not allowed(path, body)
    with pytest.raises((InvalidRequest, ServingError)):
        parsed(path, body)


def test_every_door_that_makes_pictures_is_in_it():
    makes = {path for path, operations in DOCUMENT["paths"].items() if "requestBody" in operations.get("post", {})}
    assert makes == DECODERS.keys()
