"""Golden bodies of Hugging Face's text-to-image task."""

import pytest

from predictor.errors import InvalidRequest, NotAcceptable
from predictor.huggingface import decode


def test_inputs_and_parameters():
    request = decode(b'{"inputs": "a cat", "parameters": {"seed": 7, "scheduler": null}}', "image/jpeg")
    assert request.prompt == "a cat"
    assert request.parameters == {"seed": 7, "scheduler": None, "output_format": "jpeg"}
    assert request.name_of("prompt") == "inputs"
    assert request.name_of("seed") == "parameters.seed"


def test_what_is_meant_for_their_fleet_is_no_error():
    assert decode(b'{"inputs": "a", "options": {"wait_for_model": true}}').parameters == {"output_format": "png"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'"a"', "body must be a JSON object"),
        (b'{"prompt": "a"}', 'body has no field "prompt"; allowed: inputs, options, parameters'),
        (b'{"inputs": "a", "parameters": []}', "parameters must be an object"),
        (b'{"inputs": "a", "parameters": {"num_images_per_prompt": 2}}', "num_images_per_prompt must be 1"),
    ],
)
def test_bad_bodies_are_named(body, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(body)
    assert message in refused.value.message


def test_json_cannot_be_had():
    with pytest.raises(NotAcceptable):
        decode(b'{"inputs": "a"}', "application/json")
