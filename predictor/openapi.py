"""The OpenAPI 3.1 document of every door over HTTP, with the limits of the model at hand. Pure.

Where a protocol's publisher has a document of its own, this one says what is served of it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from predictor import a1111, generate, huggingface, openai, request, v1, v2
from predictor.images import FORMATS
from predictor.negotiation import EVENTS, JSON
from predictor.request import Limits

_ANY = {"type": "object"}
_LIST = {"type": "array"}
_FILE = {"type": "string", "contentMediaType": "image/*"}
_PICTURE = {kind: {"schema": _FILE} for kind in FORMATS.values()}
_JSON = {JSON: {"schema": _ANY}}
_EVENTS = {EVENTS: {"schema": {"type": "string"}}}
_TENSORS = {**_JSON, "application/octet-stream": {"schema": {}}}
_REQUEST = [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}]
# Of every door that makes pictures. Only the KServe shape is told: OpenAI's and A1111's have more around the same text.
_REFUSALS = {
    "400": "a field is wrong; the text names it, with what came and what is allowed",
    "404": "no such model",
    "406": "none of what Accept allows can be had",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "the body is compressed",
    "429": "too much work is accepted already; see Retry-After",
    "499": "cancelled",
    "500": "a fault of the server; the text holds a request id",
    "503": "loading, or shutting down; see Retry-After",
    "504": "not finished in time",
}


def document(limits: Limits, name: str, models: Sequence[str], max_instances: int) -> dict[str, Any]:
    """`name`: of the model; `models`: all the names that it goes by."""
    fields: Mapping[str, Mapping[str, object]] = request.schemas(limits)
    both = {"oneOf": [v1.schema(fields), v1.schema_of_instances(fields, max_instances)]}
    model = f"/v1/models/{name}"
    by_name = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(models)}}
    paths = {
        f"{model}:predict": {"post": _makes("KServe v1", both, {**_PICTURE, **_JSON, **_EVENTS})},
        f"{model}/schema": {"get": _tells("JSON Schema of a body of :predict")},
        model: {"get": _tells("whether the model is ready")},
        "/v1/requests/{request_id}": {
            "get": _tells("where a request stands", _REQUEST, "404"),
            "delete": _tells("cancels a request", _REQUEST, "202", "404", "409"),
        },
        f"/v2/models/{name}": {"get": _tells("inputs and outputs")},
        f"/v2/models/{name}/infer": {"post": _makes("Open Inference Protocol v2", v2.schema(fields, max_instances), _TENSORS)},
        "/openai/v1/images/generations": {"post": _makes("OpenAI Images", openai.schema(fields, models), {**_JSON, **_EVENTS})},
        "/openai/v1/models": {"get": _tells("the model, by each of its names")},
        "/openai/v1/models/{name}": {"get": _tells("the model", [by_name], "404")},
        "/": {"post": _makes("Hugging Face", huggingface.schema(fields), _PICTURE)},
        "/generate": {"post": _makes("plain", generate.schema(fields), _PICTURE)},
        "/sdapi/v1/txt2img": {"post": _makes("AUTOMATIC1111", a1111.schema(fields), _JSON)},
        "/sdapi/v1/progress": {"get": _tells("the caller's oldest request over this door")},
        "/sdapi/v1/interrupt": {"post": _tells("cancels the caller's requests over this door")},
        **{f"/sdapi/v1/{each}": {"get": _tells(each, answer=_LIST)} for each in ("sd-models", "samplers", "schedulers")},
        "/sdapi/v1/options": {"get": _tells("options")},
    }
    return {"openapi": "3.1.0", "info": {"title": "text-to-image on KServe", "version": "1"}, "paths": paths}


def _makes(what: str, body: Mapping[str, object], content: Mapping[str, object]) -> dict[str, object]:
    """An operation that makes pictures."""
    refusals = {status: {"description": text, "content": _JSON} for status, text in _REFUSALS.items()}
    return {
        "summary": f"text to image: {what}",
        "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
        "responses": {"200": {"description": "made", "content": content}, **refusals},
    }


def _tells(
    what: str, parameters: Sequence[Mapping[str, object]] = (), *others: str, answer: Mapping[str, object] = _ANY
) -> dict[str, object]:
    """An operation that makes none. `answer`: the schema of what it tells."""
    refusals = {status: {"description": "the text says why", "content": _JSON} for status in ("503", *others)}
    told = {"description": what, "content": {JSON: {"schema": answer}}}
    return {"summary": what, "parameters": list(parameters), "responses": {"200": told, **refusals}}
