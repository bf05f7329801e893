"""Hugging Face's text-to-image task: {"inputs": …, "parameters": {…}} to a picture, its type by Accept. Pure.

Source: huggingface.co/docs/inference-providers/tasks/text-to-image, and what `InferenceClient.text_to_image` sends to a URL.
"""

from __future__ import annotations

from predictor import negotiation, wire
from predictor.errors import InvalidRequest
from predictor.request import GenerateRequest


def decode(body: bytes, accept: str = "") -> GenerateRequest:
    """Raises InvalidRequest or NotAcceptable."""
    message = wire.json_object(body)
    # `options` tells Hugging Face's own fleet whether to wait and to cache: here every request waits and none is cached.
    wire.only(message, {"inputs", "parameters", "options"}, "body")
    request = GenerateRequest(message.get("inputs"), wire.parameters(message), names={"prompt": "inputs"})
    if wire.several(request):
        raise InvalidRequest("parameters.num_images_per_prompt must be 1: the answer is a picture")
    return negotiation.picture(request, accept)[0]
