"""OpenAI's Images: bodies to a request, answers to bodies and to events. Pure.

Source: platform.openai.com/docs/api-reference/images (create) and images-streaming. Beside its fields stand those that servers
of diffusers models share: negative_prompt, num_inference_steps, guidance_scale, seed, scheduler. What asks for something that
no diffusers pipeline has (transparent background, other quality or style) is refused rather than dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import orjson

from predictor import wire
from predictor.errors import InvalidRequest, ServingError, UnknownModel
from predictor.images import EncodedImage
from predictor.request import Answer, GenerateRequest, Step
from predictor.wire import Reply

MAX_PREVIEWS = 3
# Ours by theirs; those of `size` are read apart.
_PARAMETERS = {
    "n": "num_images_per_prompt",
    "output_format": "output_format",
    "output_compression": "output_compression",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "seed": "seed",
    "scheduler": "scheduler",
}
_NAMES = {ours: theirs for theirs, ours in _PARAMETERS.items()} | {"width": "size", "height": "size"}
# Fields with few values that make sense here.
_CHOICES: dict[str, tuple[object, ...]] = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "stream": (True, False),
    "partial_images": tuple(range(MAX_PREVIEWS + 1)),
}
_ALLOWED = {"prompt", "model", "size", "response_format", "user", *_CHOICES, *_PARAMETERS}
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


@dataclass(frozen=True)
class Call:
    request: GenerateRequest
    stream: bool
    partial_images: int  # wanted on the way


def schema(fields: Mapping[str, Mapping[str, object]], models: Collection[str]) -> dict[str, object]:
    """JSON Schema of a body. `fields`: as `request.schemas` has them."""
    own = {theirs: fields[ours] for theirs, ours in _PARAMETERS.items() if ours in fields}
    choices = {name: {"enum": list(values)} for name, values in _CHOICES.items()}
    texts = {
        "model": {"enum": list(models)},
        "size": {"type": "string", "pattern": rf"^(auto|{_SIZE.pattern})$"},
        "response_format": {"enum": ["b64_json"]},
        "user": {"type": "string"},
    }
    return wire.closed({"prompt": fields["prompt"], **texts, **choices, **own}, "prompt")


def decode(body: bytes, models: Collection[str]) -> Call:
    """`models`: the names that this model goes by. Raises InvalidRequest or UnknownModel."""
    message = wire.json_object(body)
    wire.only(message, _ALLOWED, "body")
    message = {name: value for name, value in message.items() if value is not None}
    check_model(message.get("model"), models)
    for name, allowed in _CHOICES.items():
        # 1 == True in Python, and not in JSON.
        if name in message and (type(message[name]), message[name]) not in [(type(each), each) for each in allowed]:
            shown = ", ".join(orjson.dumps(each).decode() for each in allowed)
            raise InvalidRequest(f"{name} must be one of {shown}", field=name)
    if message.get("response_format", "b64_json") != "b64_json":
        raise InvalidRequest(
            'response_format must be "b64_json": pictures are answered, not kept where a URL could point to',
            field="response_format",
        )
    stream, partial_images = message.get("stream") is True, message.get("partial_images", 0)
    assert isinstance(partial_images, int)
    if partial_images and not stream:
        raise InvalidRequest("partial_images is for stream: true", field="partial_images")
    if stream and message.get("n", 1) != 1:
        raise InvalidRequest("n must be 1 with stream: true", field="n")
    parameters = {ours: message[theirs] for theirs, ours in _PARAMETERS.items() if theirs in message}
    request = GenerateRequest(message.get("prompt"), parameters | _size(message.get("size", "auto")), within="", names=_NAMES)
    return Call(request, stream, partial_images)


def check_model(name: object, models: Collection[str]) -> None:
    """Raises UnknownModel; None is whatever is served."""
    if name is not None and name not in models:
        raise UnknownModel(f"no model of this name here; there is {', '.join(models)}")


def encode(answer: Answer, created: int) -> Reply:
    """`created`: seconds since 1970. Each picture tells its seed, which OpenAI's do not."""
    data = [{"b64_json": wire.b64(image), "seed": seed} for image, seed in zip(answer.images, answer.seeds, strict=True)]
    body = {"created": created, "data": data, **_made(answer.images[0]), "usage": _usage(answer)}
    headers = {name: value for name, value in wire.picture(answer).headers.items()}
    return Reply(orjson.dumps(body), "application/json", headers)


def events(told: Step | Answer | ServingError, index: int, created: int, request_id: str) -> bytes:
    """What one thing told makes of a stream: a step without a preview is a comment, which clients skip. `index`: of the next
    preview."""
    match told:
        case Step(state, step, of, None):
            return b": %s, step %d of %d\n\n" % (state.encode(), step, of)
        case Step(preview=EncodedImage() as preview):
            return _event("image_generation.partial_image", preview, created, {"partial_image_index": index})
        case Answer():
            told_too = {"usage": _usage(told), "seed": told.seeds[0]}
            return _event("image_generation.completed", told.images[0], created, told_too)
        case ServingError():
            return wire.event("error", {"type": "error", **error(told, request_id)})
    raise TypeError(type(told).__name__)


def models(names: Collection[str], created: int) -> dict[str, object]:
    """`names`: that of the model first, then others that it goes by."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "kserve"}


def error(failure: ServingError, request_id: str) -> dict[str, object]:
    kind = "invalid_request_error" if failure.status < 500 and failure.status != 429 else "server_error"
    kind = "rate_limit_error" if failure.status == 429 else kind
    code = "model_not_found" if isinstance(failure, UnknownModel) else None
    message = wire.public(failure, request_id)
    return {"error": {"message": message, "type": kind, "param": getattr(failure, "field", None), "code": code}}


def _size(size: object) -> dict[str, int]:
    if size == "auto":
        return {}
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if not found:
        raise InvalidRequest('size must be "auto" or "WIDTHxHEIGHT" in pixels', field="size")
    return {"width": int(found[1]), "height": int(found[2])}


def _event(name: str, image: EncodedImage, created: int, told_too: dict[str, object]) -> bytes:
    return wire.event(name, {"type": name, "b64_json": wire.b64(image), "created_at": created, **_made(image), **told_too})


def _made(image: EncodedImage) -> dict[str, object]:
    return {
        "size": f"{image.width}x{image.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": image.format,
    }


def _usage(answer: Answer) -> dict[str, object]:
    """Tokens of the prompt, as the pipeline counts them. A picture has none here."""
    details = {"text_tokens": answer.prompt_tokens, "image_tokens": 0}
    tokens = answer.prompt_tokens
    return {"input_tokens": tokens, "input_tokens_details": details, "output_tokens": 0, "total_tokens": tokens}
