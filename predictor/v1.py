"""KServe's v1 protocol: bodies to requests, answers to bodies. Pure.

    {"prompt": …, "parameters": {…}}                              the picture itself, or JSON where the caller accepts only that
    {"instances": [{"prompt": …, "parameters": {…}}, …],          {"predictions": [{"image": {"format", "b64"}, "seed", …}, …]}
     "parameters": {shared}}

Source: KServe's data plane v1 (instances, predictions); the first form is that of KServe's own diffusers example of 2022.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from predictor.errors import InvalidRequest
from predictor.request import Answer, GenerateRequest

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Call:
    requests: tuple[GenerateRequest, ...]
    wants_picture: bool


@dataclass(frozen=True)
class Reply:
    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def decode(body: bytes, accept: str = "", *, max_instances: int = 16) -> Call:
    """Whatever the content type says, the body is JSON: curl -d calls it a form. Raises InvalidRequest."""
    try:
        message = orjson.loads(body.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"body must be JSON in UTF-8: {error.msg} at byte {error.pos}") from None
    if not isinstance(message, dict) or ("prompt" in message) == ("instances" in message):
        raise InvalidRequest('body must be an object with either "prompt" or "instances"')
    shared = _parameters(message, "")
    if "prompt" in message:
        _only(message, {"prompt", "parameters"}, "body")
        return Call((GenerateRequest(message["prompt"], shared),), _wants_picture(accept, shared))
    _only(message, {"instances", "parameters"}, "body")
    instances = message["instances"]
    if not isinstance(instances, list) or not 1 <= len(instances) <= max_instances:
        came = f"{len(instances)}" if isinstance(instances, list) else "something else"
        raise InvalidRequest(f"instances must be an array of 1 to {max_instances} objects, not {came}")
    return Call(tuple(_instance(item, f"instances[{i}]", shared) for i, item in enumerate(instances)), wants_picture=False)


def encode(call: Call, answers: Sequence[Answer], model_name: str) -> Reply:
    """One answer for each request, in order."""
    if not call.wants_picture:
        body = {"predictions": [_prediction(answer, model_name) for answer in answers]}
        return Reply(orjson.dumps(body), "application/json", {"server-timing": _timing(answers)})
    (answer,) = answers
    headers = {"x-seed": str(answer.seeds[0]), "server-timing": _timing(answers)}
    if answer.dropped_tokens:
        headers["x-prompt-truncated"] = str(answer.dropped_tokens)
    if answer.flagged and answer.flagged[0]:
        headers["x-safety-flagged"] = "true"
    return Reply(answer.images[0].data, answer.images[0].media_type, headers)


def _wants_picture(accept: str, parameters: Mapping[str, object]) -> bool:
    """One picture is a body of its own; several are JSON, for callers who take that."""
    json_only = "application/json" in accept and "image/" not in accept and "*/*" not in accept
    picture_only = "image/" in accept and "application/json" not in accept and "*/*" not in accept
    count = parameters.get("num_images_per_prompt")
    if isinstance(count, int) and count > 1:
        if picture_only:
            raise InvalidRequest(
                f"parameters.num_images_per_prompt must be 1 for an answer that is a picture, not {count}; "
                "with Accept: application/json the answer holds several"
            )
        return False
    return not json_only


def _instance(item: object, where: str, shared: Mapping[str, object]) -> GenerateRequest:
    if not isinstance(item, dict):
        raise InvalidRequest(f'{where} must be an object with "prompt"')
    _only(item, {"prompt", "parameters"}, where)
    return GenerateRequest(item.get("prompt"), {**shared, **_parameters(item, where + ".")}, where + ".")


def _parameters(message: dict[str, object], where: str) -> dict[str, object]:
    parameters = message.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"{where}parameters must be an object")
    return parameters


def _only(message: dict[str, object], allowed: set[str], where: str) -> None:
    unknown = sorted(set(message) - allowed)
    if unknown:
        name = orjson.dumps(unknown[0][:40]).decode()
        raise InvalidRequest(f"{where} has no field {name}; allowed: {', '.join(sorted(allowed))}")


def _prediction(answer: Answer, model_name: str) -> dict[str, object]:
    params = answer.params
    images = [
        {"format": image.format.upper(), "b64": base64.b64encode(image.data).decode(), "seed": seed}
        for image, seed in zip(answer.images, answer.seeds, strict=True)
    ]
    made: dict[str, object] = {
        "model_name": model_name,
        "seed": params.seed,
        "width": answer.images[0].width,
        "height": answer.images[0].height,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "scheduler": params.scheduler,
    }
    if answer.dropped_tokens:
        made |= {"truncated": True, "dropped_tokens": answer.dropped_tokens}
    if answer.flagged is not None:
        made["safety_flagged"] = list(answer.flagged)
    pictures: dict[str, object] = {"images": images} if len(images) > 1 else {"image": images[0]}
    return pictures | {name: value for name, value in made.items() if value is not None}


def _timing(answers: Sequence[Answer]) -> str:
    """Milliseconds by phase, as in https://www.w3.org/TR/server-timing/. Instances run at once: the longest counts."""
    longest: dict[str, float] = {}
    for answer in answers:
        for phase, seconds in answer.seconds.items():
            longest[phase] = max(seconds, longest.get(phase, 0.0))
    return ", ".join(f"{phase};dur={1000 * seconds:.1f}" for phase, seconds in longest.items())
