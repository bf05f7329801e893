"""Hugging Face's text-to-image task: {"inputs": …, "parameters": {…}} to a picture, its type by Accept. Pure.

Source: huggingface.co/docs/inference-providers/tasks/text-to-image, and what `InferenceClient.text_to_image` sends to a URL.
"""

from __future__ import annotations

from collections.abc import Mapping

from predictor import negotiation, wire
from predictor.errors import InvalidRequest
from predictor.request import GenerateRequest


def schema(fields: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """JSON Schema of a body. `fields`: as `request.schemas` has them."""
    own = {name: each for name, each in fields.items() if name not in ("prompt", "num_images_per_prompt")}
    return wire.closed({"inputs": fields["prompt"], "parameters": wire.closed(own), "options": {"type": "object"}}, "inputs")


def decode(body: bytes, accept: str = "") -> GenerateRequest:
    """Raises InvalidRequest or NotAcceptable."""
    message = wire.json_object(body)
    # `options` tells Hugging Face's own fleet whether to wait and to cache: here every request waits and none is cached.
    wire.only(message, {"inputs", "parameters", "options"}, "body")
    request = GenerateRequest(message.get("inputs"), wire.parameters(message), names={"prompt": "inputs"})
    if wire.several(request):
        raise InvalidRequest("parameters.num_images_per_prompt must be 1: the answer is a picture")
    return negotiation.picture(request, accept)[0]
