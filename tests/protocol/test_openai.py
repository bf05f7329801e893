"""Golden bodies of OpenAI's Images."""

import json

import pytest

from predictor import openai
from predictor.errors import GenerationFailed, InvalidRequest, NotServing, QueueFull, UnknownModel
from predictor.images import EncodedImage
from predictor.request import Answer, Params, Step

NAMES = ("shapes", "examples/shapes")


def decode(**fields) -> openai.Call:
    return openai.decode(json.dumps(fields).encode(), NAMES)


def answer(count: int = 1) -> Answer:
    params = Params("a cat", 64, 48, 20, seed=7, num_images_per_prompt=count)
    images = tuple(EncodedImage(b"png-%d" % i, "png", 64, 48) for i in range(count))
    return Answer(params, images, {"queue": 0.001}, prompt_tokens=4)


def test_fields_get_our_names():
    call = decode(
        model="shapes", prompt="a cat", n=2, size="640x480", output_format="webp", output_compression=80, user="somebody",
        negative_prompt="a dog", num_inference_steps=9, guidance_scale=3, seed=7, quality="auto", background="opaque",
    )  # fmt: skip
    assert (call.request.prompt, call.stream, call.partial_images) == ("a cat", False, 0)
    assert call.request.parameters == {
        **{"num_images_per_prompt": 2, "width": 640, "height": 480, "output_format": "webp", "output_compression": 80},
        **{"negative_prompt": "a dog", "num_inference_steps": 9, "guidance_scale": 3, "seed": 7},
    }
    names = {name: call.request.name_of(name) for name in ("prompt", "width", "num_images_per_prompt", "seed")}
    assert names == {"prompt": "prompt", "width": "size", "num_images_per_prompt": "n", "seed": "seed"}


def test_what_is_left_open_stays_open():
    assert decode(prompt="a", size="auto", n=None, seed=None).request.parameters == {}


def test_streams_ask_for_previews():
    assert decode(prompt="a", stream=True, partial_images=3).partial_images == 3
    assert decode(prompt="a", stream=True).stream


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"response_format": "url"}, "response_format", 'response_format must be "b64_json"'),
        ({"size": "64"}, "size", 'size must be "auto" or "WIDTHxHEIGHT" in pixels'),
        ({"size": "6４x64"}, "size", "size must be"),
        ({"size": 64}, "size", "size must be"),
        ({"size": "123456x1"}, "size", "size must be"),
        ({"quality": "hd"}, "quality", 'quality must be one of "auto", "standard"'),
        ({"background": "transparent"}, "background", "background must be one of"),
        ({"stream": 1}, "stream", "stream must be one of true, false"),
        ({"stream": True, "partial_images": 4}, "partial_images", "partial_images must be one of 0, 1, 2, 3"),
        ({"stream": True, "partial_images": True}, "partial_images", "partial_images must be one of"),
        ({"partial_images": 1}, "partial_images", "partial_images is for stream: true"),
        ({"stream": True, "n": 2}, "n", "n must be 1 with stream: true"),
        ({"style": "vivid"}, "style", 'body has no field "style"; allowed: background, guidance_scale'),
        ({"quality": ["auto"]}, "quality", "quality must be one of"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(fields, field, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(prompt="a", **fields)
    assert refused.value.field == field
    assert refused.value.message.startswith(message)


def test_the_model_goes_by_two_names_and_no_other():
    for name in (*NAMES, None):
        decode(prompt="a", model=name)
    for name in ("dall-e-3", 7, ["shapes"]):
        with pytest.raises(UnknownModel, match="there is shapes, examples/shapes"):
            decode(prompt="a", model=name)


def test_answer_golden():
    reply = openai.encode(answer(2), created=1700000000)
    assert reply.media_type == "application/json"
    assert reply.body == (
        b'{"created":1700000000,"data":[{"b64_json":"cG5nLTA=","seed":7},{"b64_json":"cG5nLTE=","seed":8}],"size":"64x48",'
        b'"quality":"auto","background":"opaque","output_format":"png","usage":{"input_tokens":4,'
        b'"input_tokens_details":{"text_tokens":4,"image_tokens":0},"output_tokens":0,"total_tokens":4}}'
    )
    assert reply.headers["x-seed"] == "7"


def test_events_golden():
    def events(told, index=0):
        return openai.events(told, index, 1700000000, "r")

    assert events(Step("running", 3, 20)) == b": running, step 3 of 20\n\n"
    assert events(Step("running", 3, 20, EncodedImage(b"png", "png", 64, 48)), 2) == (
        b'event: image_generation.partial_image\ndata: {"type":"image_generation.partial_image","b64_json":"cG5n",'
        b'"created_at":1700000000,"size":"64x48","quality":"auto","background":"opaque","output_format":"png",'
        b'"partial_image_index":2}\n\n'
    )
    assert events(answer()) == (
        b'event: image_generation.completed\ndata: {"type":"image_generation.completed","b64_json":"cG5nLTA=",'
        b'"created_at":1700000000,"size":"64x48","quality":"auto","background":"opaque","output_format":"png",'
        b'"usage":{"input_tokens":4,"input_tokens_details":{"text_tokens":4,"image_tokens":0},"output_tokens":0,'
        b'"total_tokens":4},"seed":7}\n\n'
    )
    assert events(GenerationFailed("failed")) == (
        b'event: error\ndata: {"type":"error","error":{"message":"failed (request id r)","type":"server_error","param":null,'
        b'"code":null}}\n\n'
    )


@pytest.mark.parametrize(
    ("failure", "kind", "param", "code"),
    [
        (InvalidRequest("bad", field="size"), "invalid_request_error", "size", None),
        (UnknownModel("none"), "invalid_request_error", None, "model_not_found"),
        (QueueFull("full"), "rate_limit_error", None, None),
        (NotServing("loading"), "server_error", None, None),
    ],
)
def test_errors_have_their_shape(failure, kind, param, code):
    error = openai.error(failure, "r")["error"]
    assert error == {"message": failure.message, "type": kind, "param": param, "code": code}


def test_models_golden():
    assert openai.models(("shapes",), 5) == {
        "object": "list",
        "data": [{"id": "shapes", "object": "model", "created": 5, "owned_by": "kserve"}],
    }
