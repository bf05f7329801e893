"""KServe's v1 protocol: bodies to requests, answers to bodies. Pure.

    {"prompt": …, "parameters": {…}}                              the picture itself, JSON, or events: what Accept prefers
    {"instances": [{"prompt": …, "parameters": {…}}, …],          {"predictions": [{"image": {"format", "b64"}, "seed", …}, …]}
     "parameters": {shared}}

Source: KServe's data plane v1 (instances, predictions); the first form is that of KServe's own diffusers example of 2022. The
events are ours: `progress`, `preview`, and at the end `prediction` or `error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from predictor import negotiation, wire
from predictor.errors import InvalidRequest, ServingError
from predictor.negotiation import EVENTS, JSON
from predictor.request import Answer, GenerateRequest, Step
from predictor.wire import Reply


@dataclass(frozen=True)
class Call:
    """`media_type`: of the answer."""

    requests: tuple[GenerateRequest, ...]
    media_type: str


def schema(fields: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """JSON Schema of a body with one prompt. `fields`: as `request.schemas` has them."""
    own = {name: each for name, each in fields.items() if name != "prompt"}
    return wire.closed({"prompt": fields["prompt"], "parameters": wire.closed(own)}, "prompt")


def schema_of_instances(fields: Mapping[str, Mapping[str, object]], max_instances: int) -> dict[str, object]:
    single = schema(fields)
    parameters = single["properties"]["parameters"]  # type: ignore[index]
    instances = {"type": "array", "minItems": 1, "maxItems": max_instances, "items": single}
    return wire.closed({"instances": instances, "parameters": parameters}, "instances")


def decode(body: bytes, accept: str = "", *, max_instances: int = 16) -> Call:
    """Raises InvalidRequest or NotAcceptable."""
    message = wire.json_object(body)
    if ("prompt" in message) == ("instances" in message):
        raise InvalidRequest('body must be an object with either "prompt" or "instances"')
    shared = wire.parameters(message)
    if "prompt" in message:
        wire.only(message, {"prompt", "parameters"}, "body")
        return _single(GenerateRequest(message["prompt"], shared), accept)
    wire.only(message, {"instances", "parameters"}, "body")
    instances = message["instances"]
    if not isinstance(instances, list) or not 1 <= len(instances) <= max_instances:
        came = f"{len(instances)}" if isinstance(instances, list) else "something else"
        raise InvalidRequest(f"instances must be an array of 1 to {max_instances} objects, not {came}", field="instances")
    return Call(tuple(_instance(item, f"instances[{i}]", shared) for i, item in enumerate(instances)), JSON)


def encode(call: Call, answers: Sequence[Answer], model_name: str) -> Reply:
    """One answer for each request, in order."""
    if call.media_type != JSON:
        return wire.picture(answers[0])
    body = {"predictions": [prediction(answer, model_name) for answer in answers]}
    return Reply(orjson.dumps(body), JSON, {"server-timing": wire.timing(answers)})


def events(told: Step | Answer | ServingError, request_id: str, model_name: str) -> bytes:
    """What one thing told makes of a stream."""
    match told:
        case Step(state, step, of, preview):
            progress = wire.event("progress", {"request_id": request_id, "state": state, "step": step, "of": of})
            if not preview:
                return progress
            image = {
                "format": preview.format.upper(),
                "b64": wire.b64(preview),
                "width": preview.width,
                "height": preview.height,
            }
            return progress + wire.event("preview", {"step": step, "of": of, "image": image})
        case Answer():
            return wire.event("prediction", prediction(told, model_name))
        case ServingError():
            retry = {"retry_after": told.retry_after} if told.retry_after else {}
            return wire.event("error", {"status": told.status, "error": told.message, **retry})


def prediction(answer: Answer, model_name: str) -> dict[str, object]:
    params = answer.params
    images = [
        {"format": image.format.upper(), "b64": wire.b64(image), "seed": seed}
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


def _single(request: GenerateRequest, accept: str) -> Call:
    """One picture is a body of its own; several are JSON, for callers who take that."""
    if not wire.several(request):
        request, media_type = negotiation.picture(request, accept, (JSON, EVENTS))
        return Call((request,), media_type)
    found = negotiation.preferred(accept, (JSON, EVENTS))
    if not found:
        name = request.name_of("num_images_per_prompt")
        raise InvalidRequest(
            f"{name} must be 1 for an answer that is a picture; with Accept: {JSON} the answer holds several", field=name
        )
    return Call((request,), found)


def _instance(item: object, where: str, shared: Mapping[str, object]) -> GenerateRequest:
    if not isinstance(item, dict):
        raise InvalidRequest(f'{where} must be an object with "prompt"', field=where)
    wire.only(item, {"prompt", "parameters"}, where)
    return GenerateRequest(item.get("prompt"), {**shared, **wire.parameters(item, where + ".")}, where + ".")
