"""CloudEvents around the v1 protocol, as KServe's eventing sends them: what they carry goes in, and the answer comes back as an
event of the same form, binary or structured. Pure but for the id and the time of the answer.

Source: github.com/cloudevents/spec 1.0, HTTP binding; KServe's names of type and source of a response. Events are read here
and not by their SDK, whose parser falls over deep JSON and quotes bodies in its errors.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent

from predictor import wire
from predictor.errors import InvalidRequest
from predictor.negotiation import JSON
from predictor.wire import Reply

_STRUCTURED = "application/cloudevents+json"
_REQUIRED = ("specversion", "id", "source", "type")


@dataclass(frozen=True)
class Event:
    data: bytes
    structured: bool


def decode(headers: Mapping[str, str], body: bytes) -> Event | None:
    """`headers`: in lower case. None where the request is no event. Raises InvalidRequest."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() == _STRUCTURED:
        message = wire.json_object(body)
        _check(message)
        return Event(_data(message), structured=True)
    if "ce-specversion" not in headers:
        return None
    _check({name: headers.get(f"ce-{name}") for name in _REQUIRED})
    return Event(body, structured=False)


def encode(event: Event, reply: Reply, model_name: str) -> Reply:
    attributes = {
        "type": "io.kserve.inference.response",
        "source": f"io.kserve.inference.{model_name}",
        "datacontenttype": reply.media_type,
    }
    if not event.structured:
        headers, body = to_binary(CloudEvent(attributes, reply.body))
        own = {name: value for name, value in headers.items() if name.startswith("ce-")}
        return Reply(body, reply.media_type, {**reply.headers, **own})
    data = orjson.loads(reply.body) if reply.media_type == JSON else reply.body
    _, body = to_structured(CloudEvent(attributes, data))
    return Reply(body, _STRUCTURED, reply.headers)


def _check(attributes: Mapping[str, object]) -> None:
    if not all(isinstance(attributes.get(name), str) and attributes[name] for name in _REQUIRED):
        raise InvalidRequest(f"a CloudEvent needs {', '.join(_REQUIRED)}: strings that are not empty")
    if attributes["specversion"] != "1.0":
        raise InvalidRequest("specversion must be 1.0", field="specversion")


def _data(message: Mapping[str, object]) -> bytes:
    """The data of a structured event, as it would be the body of a binary one."""
    encoded = message.get("data_base64")
    if encoded is None:
        return orjson.dumps(message.get("data"))
    try:
        return base64.b64decode(encoded if isinstance(encoded, str) else "?", validate=True)
    except ValueError:
        raise InvalidRequest("data_base64 must be base64", field="data_base64") from None
