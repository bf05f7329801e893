"""The plainest door: {"prompt": …} and parameters beside it to a picture, its type by Accept. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from predictor import negotiation, wire
from predictor.errors import InvalidRequest
from predictor.request import GenerateRequest


def schema(fields: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """JSON Schema of a body. `fields`: as `request.schemas` has them."""
    return wire.closed({name: each for name, each in fields.items() if name != "num_images_per_prompt"}, "prompt")


def decode(body: bytes, accept: str = "") -> GenerateRequest:
    """Raises InvalidRequest or NotAcceptable."""
    message = wire.json_object(body)
    request = GenerateRequest(message.pop("prompt", None), message, within="")
    if wire.several(request):
        raise InvalidRequest("num_images_per_prompt must be 1: the answer is a picture", field="num_images_per_prompt")
    return negotiation.picture(request, accept)[0]
