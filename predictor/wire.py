"""What the protocols over HTTP share: JSON objects in, replies and events out, and the reply that is the picture. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from predictor.errors import InvalidRequest, ServingError
from predictor.images import EncodedImage
from predictor.request import Answer, GenerateRequest

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Reply:
    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def json_object(body: bytes) -> dict[str, object]:
    """Whatever the content type says, the body is JSON: curl -d calls it a form. Raises InvalidRequest."""
    try:
        message = orjson.loads(body.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"body must be JSON in UTF-8: {error.msg} at byte {error.pos}") from None
    if not isinstance(message, dict):
        raise InvalidRequest("body must be a JSON object")
    return message


def only(message: Mapping[str, object], allowed: set[str], where: str) -> None:
    """Raises InvalidRequest for a field that is none of the `allowed`."""
    unknown = sorted(set(message) - allowed)
    if unknown:
        name = orjson.dumps(unknown[0][:40]).decode()
        raise InvalidRequest(f"{where} has no field {name}; allowed: {', '.join(sorted(allowed))}", field=unknown[0][:40])


def parameters(message: Mapping[str, object], where: str = "") -> dict[str, object]:
    """The object of that name; none is as good as an empty one. Raises InvalidRequest."""
    found = message.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where}parameters must be an object", field=f"{where}parameters")
    return found


def several(request: GenerateRequest) -> bool:
    """Whether more pictures are asked for than fit a body that is a picture."""
    count = request.parameters.get("num_images_per_prompt")
    return isinstance(count, int) and count > 1


def closed(properties: Mapping[str, object], *required: str) -> dict[str, object]:
    """JSON Schema of an object with these properties and no other."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": dict(properties)}


def event(name: str, data: Mapping[str, object]) -> bytes:
    """Of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


def picture(answer: Answer) -> Reply:
    """The first picture, with what there is to know about it in headers."""
    headers = {"x-seed": str(answer.seeds[0]), "server-timing": timing([answer])}
    if answer.dropped_tokens:
        headers["x-prompt-truncated"] = str(answer.dropped_tokens)
    if answer.flagged and answer.flagged[0]:
        headers["x-safety-flagged"] = "true"
    return Reply(answer.images[0].data, answer.images[0].media_type, headers)


def public(failure: ServingError, request_id: str) -> str:
    """Its text; where the fault is ours, with the id under which the log says more."""
    return f"{failure.message} (request id {request_id})" if failure.status in (500, 504) else failure.message


def error(failure: ServingError, request_id: str) -> dict[str, object]:
    """KServe's shape, of both protocols, and Hugging Face's."""
    return {"error": public(failure, request_id)}


def b64(image: EncodedImage) -> str:
    return base64.b64encode(image.data).decode()


def timing(answers: Sequence[Answer]) -> str:
    """Milliseconds by phase (https://www.w3.org/TR/server-timing/). Requests of one call run at once: the longest counts."""
    longest: dict[str, float] = {}
    for answer in answers:
        for phase, seconds in answer.seconds.items():
            longest[phase] = max(seconds, longest.get(phase, 0.0))
    return ", ".join(f"{phase};dur={1000 * seconds:.1f}" for phase, seconds in longest.items())
