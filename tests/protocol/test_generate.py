"""Golden bodies of the plainest door."""

import pytest

from predictor.errors import InvalidRequest
from predictor.generate import decode


def test_parameters_stand_beside_the_prompt():
    request = decode(b'{"prompt": "a cat", "seed": 7, "guidance_scale": 2.5}', "image/webp")
    assert request.prompt == "a cat"
    assert request.parameters == {"seed": 7, "guidance_scale": 2.5, "output_format": "webp"}
    assert request.name_of("seed") == "seed"


def test_no_prompt_is_left_for_the_check_of_prompts():
    assert decode(b"{}").prompt is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "body must be a JSON object"),
        (b'{"prompt": "a", "num_images_per_prompt": 2}', "num_images_per_prompt must be 1"),
    ],
)
def test_bad_bodies_are_named(body, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(body)
    assert message in refused.value.message
