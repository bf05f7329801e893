import math

import jsonschema
import pytest

from fakes import LIMITS
from predictor.errors import InvalidRequest
from predictor.request import SEEDS, GenerateRequest, Limits, Params, check_cost, parse, schemas

NAMES = {"prompt": "inputs", "num_inference_steps": "steps", "width": "size", "height": "size"}


def ask(prompt: object = "a cat", **parameters: object) -> Params:
    return parse(GenerateRequest(prompt, parameters, "instances[1]."), LIMITS)


def test_what_is_left_open_is_filled_in():
    params = ask()
    assert params.seed in range(SEEDS)
    assert params == Params(prompt="a cat", width=512, height=512, num_inference_steps=50, guidance_scale=7.5, seed=params.seed)
    assert ask().seed != params.seed


def test_everything_given_is_kept():
    given = {
        "width": 640,
        "height": 128,
        "num_inference_steps": 1,
        "guidance_scale": 0,
        "seed": SEEDS - 1,
        "num_images_per_prompt": 4,
        "negative_prompt": "a dog",
        "scheduler": "EulerDiscreteScheduler",
        "output_format": "webp",
    }
    assert ask(**given) == Params(prompt="a cat", **given)


def test_null_is_as_not_given():
    assert ask(width=None, negative_prompt=None).width == 512


def test_each_image_has_a_seed_and_they_stay_in_range():
    assert ask(seed=SEEDS - 1, num_images_per_prompt=3).seeds == (SEEDS - 1, 0, 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"width": 130}, "instances[1].parameters.width must be a multiple of 8 from 128 to 2048, not 130"),
        ({"width": 512.0}, "parameters.width must be a multiple of 8 from 128 to 2048, not 512.0"),
        ({"width": "512"}, 'parameters.width must be a multiple of 8 from 128 to 2048, not "512"'),
        ({"width": True}, "parameters.width must be a multiple of 8 from 128 to 2048, not true"),
        ({"height": -512}, "parameters.height must be"),
        ({"height": [512]}, "parameters.height must be a multiple of 8 from 128 to 2048, not a JSON array"),
        ({"width": 2048, "height": 1024}, "parameters.height must be at most 1048576 pixels, not 2048 x 1024 = 2097152"),
        ({"num_inference_steps": 0}, "parameters.num_inference_steps must be a whole number from 1 to 150, not 0"),
        ({"num_inference_steps": 151}, "num_inference_steps must be a whole number from 1 to 150, not 151"),
        ({"guidance_scale": 50.1}, "parameters.guidance_scale must be a number from 0 to 50, not 50.1"),
        ({"guidance_scale": math.inf}, "parameters.guidance_scale must be a number from 0 to 50, not Infinity"),
        ({"guidance_scale": math.nan}, "parameters.guidance_scale must be"),
        ({"guidance_scale": False}, "parameters.guidance_scale must be a number from 0 to 50, not false"),
        ({"seed": -1}, f"parameters.seed must be a whole number from 0 to {SEEDS - 1}, not -1"),
        ({"seed": SEEDS}, "parameters.seed must be"),
        ({"num_images_per_prompt": 5}, "parameters.num_images_per_prompt must be a whole number from 1 to 4, not 5"),
        ({"scheduler": "Euler"}, 'scheduler must be one of DDIMScheduler, EulerDiscreteScheduler, not "Euler"'),
        ({"output_format": "gif"}, 'output_format must be one of png, jpeg, webp, not "gif"'),
        ({"steps": 5}, 'instances[1].parameters has no field "steps"; allowed: guidance_scale, height, negative_prompt,'),
        ({"seed": "x" * 99}, 'not "' + "x" * 38 + "…"),
    ],
)
def test_bad_parameters_are_named_with_what_came_and_what_is_allowed(parameters, message):
    with pytest.raises(InvalidRequest) as refused:
        ask(**parameters)
    assert message in refused.value.message


@pytest.mark.parametrize(
    "prompt", ["  ", "z" * 101, "zzz\0byte", "zzz\ud800gate", 7, True, ["zzz"], {"zzz": 1}, 0, False, [], {}]
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_bad_prompts_are_refused_and_never_quoted(field, prompt):
    with pytest.raises(InvalidRequest) as refused:
        ask(prompt) if field == "prompt" else ask(negative_prompt=prompt)
    assert refused.value.message.startswith("instances[1].")
    assert field in refused.value.message
    assert "zzz" not in refused.value.message


@pytest.mark.parametrize("prompt", ["", None])
def test_a_prompt_is_needed_a_negative_one_is_not(prompt):
    with pytest.raises(InvalidRequest, match="prompt must be a string of 1 to 100 characters"):
        ask(prompt)
    assert ask(negative_prompt=prompt).negative_prompt == prompt


def test_what_the_pipeline_does_not_take_is_unknown():
    plain = Limits(**vars(LIMITS) | {"supported": frozenset({"prompt"}), "schedulers": ()})
    with pytest.raises(InvalidRequest, match="no field .width.; allowed: output_compression, output_format, seed$"):
        parse(GenerateRequest("a", {"width": 512}), plain)


def test_cost_is_in_default_pictures_and_bounded_for_the_whole_call():
    params = ask(width=1024, height=1024, num_inference_steps=25, num_images_per_prompt=4)
    assert LIMITS.cost(params) == pytest.approx(8.0)
    check_cost([params], LIMITS)
    with pytest.raises(InvalidRequest, match="at most 8 times a default picture .512 x 512, 50 steps., not 9.0 times"):
        check_cost([params, ask()], LIMITS)


@pytest.mark.parametrize(
    ("prompt", "parameters", "field", "message"),
    [
        (None, {}, "inputs", "inputs must be a string of 1 to 100 characters, not nothing"),
        ("a", {"num_inference_steps": 0}, "steps", "steps must be a whole number from 1 to 150, not 0"),
        ("a", {"guidance_scale": -1}, "guidance_scale", "guidance_scale must be a number from 0 to 50, not -1"),
        ("a", {"width": 2048, "height": 1024}, "size", "size must be at most 1048576 pixels, not 2048 x 1024 = 2097152"),
        ("a", {"foo": 1}, "foo", 'body has no field "foo"; allowed: guidance_scale, negative_prompt'),
        ("a", {"output_compression": 50}, "output_compression", "output_compression is for output_format jpeg and webp"),
    ],
)
def test_a_protocol_names_fields_its_own_way(prompt, parameters, field, message):
    with pytest.raises(InvalidRequest) as refused:
        parse(GenerateRequest(prompt, parameters, within="", names=NAMES), LIMITS)
    assert (refused.value.field, refused.value.message[: len(message)]) == (field, message)


def test_the_schemas_allow_what_is_parsed_and_refuse_what_is_not():
    fields = schemas(LIMITS)
    assert fields["prompt"]["maxLength"] == 100
    assert fields["width"] == {
        **{"type": "integer", "minimum": 128, "maximum": 2048, "multipleOf": 8, "default": 512},
        "description": "pixels",
    }
    own = {name: each for name, each in fields.items() if name != "prompt"}
    validator = jsonschema.Draft202012Validator({"additionalProperties": False, "properties": own})
    validator.check_schema(validator.schema)
    defaults = {name: field["default"] for name, field in own.items() if "default" in field}
    assert parse(GenerateRequest("a", defaults), LIMITS).width == 512
    assert "default" not in own["seed"] and all(field["description"] for field in own.values())
    good = [{}, {"seed": 1, "width": 512}, {"guidance_scale": 1}, {"output_format": "webp", "output_compression": 0}]
    bad = [{"width": 513}, {"guidance_scale": 51}, {"scheduler": "Euler"}, {"steps": 3}, {"seed": -1}, {"seed": "1"}]
    for parameters in good:
        parse(GenerateRequest("a", parameters), LIMITS)
        assert validator.is_valid(parameters)
    for parameters in bad:
        with pytest.raises(InvalidRequest):
            parse(GenerateRequest("a", parameters), LIMITS)
        assert not validator.is_valid(parameters)
