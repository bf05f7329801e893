"""Golden bodies of KServe's v1 protocol."""

import base64
import json

import pytest

from predictor.errors import InvalidRequest, NotServing
from predictor.images import EncodedImage
from predictor.request import Answer, GenerateRequest, Params, Step
from predictor.v1 import decode, encode, events

PARAMS = Params("a cat", 64, 64, 20, seed=7, guidance_scale=7.5, scheduler="DDIMScheduler")
SECONDS = {"queue": 0.001, "generate": 1.5, "encode": 0.02}


def answer(count: int = 1, **fields) -> Answer:
    params = Params(**vars(PARAMS) | {"num_images_per_prompt": count})
    return Answer(params, tuple(EncodedImage(b"png-%d" % i, "png", 64, 64) for i in range(count)), SECONDS, **fields)


def test_a_prompt_asks_for_a_picture():
    call = decode(b'{"prompt": "a cat", "parameters": {"seed": 7}}')
    assert call.requests == (GenerateRequest("a cat", {"seed": 7, "output_format": "png"}),)
    reply = encode(call, [answer()], "m")
    assert (reply.body, reply.media_type) == (b"png-0", "image/png")
    assert reply.headers == {"x-seed": "7", "server-timing": "queue;dur=1.0, generate;dur=1500.0, encode;dur=20.0"}


def test_instances_share_parameters_and_may_have_their_own():
    body = {"instances": [{"prompt": "a"}, {"prompt": "b", "parameters": {"seed": 2}}], "parameters": {"seed": 1, "width": 8}}
    call = decode(json.dumps(body).encode())
    assert call.requests == (
        GenerateRequest("a", {"seed": 1, "width": 8}, "instances[0]."),
        GenerateRequest("b", {"seed": 2, "width": 8}, "instances[1]."),
    )
    assert call.media_type == "application/json"


def test_predictions_golden():
    call = decode(b'{"instances": [{"prompt": "a cat"}]}')
    reply = encode(call, [answer()], "shapes")
    assert reply.media_type == "application/json"
    assert reply.body == (
        b'{"predictions":[{"image":{"format":"PNG","b64":"cG5nLTA=","seed":7},"model_name":"shapes","seed":7,"width":64,'
        b'"height":64,"num_inference_steps":20,"guidance_scale":7.5,"scheduler":"DDIMScheduler"}]}'
    )


def test_several_images_each_with_its_seed():
    call = decode(b'{"prompt": "a cat", "parameters": {"num_images_per_prompt": 2}}')
    [prediction] = json.loads(encode(call, [answer(2)], "m").body)["predictions"]
    assert [image["seed"] for image in prediction["images"]] == [7, 8]
    assert [base64.b64decode(image["b64"]) for image in prediction["images"]] == [b"png-0", b"png-1"]


def test_truncation_and_flags_are_told_in_both_shapes():
    told = answer(dropped_tokens=3, flagged=(True,))
    picture = encode(decode(b'{"prompt": "a"}'), [told], "m")
    assert picture.headers["x-prompt-truncated"] == "3"
    assert picture.headers["x-safety-flagged"] == "true"
    [prediction] = json.loads(encode(decode(b'{"instances": [{"prompt": "a"}]}'), [told], "m").body)["predictions"]
    assert (prediction["truncated"], prediction["dropped_tokens"], prediction["safety_flagged"]) == (True, 3, [True])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/webp", "image/webp"),
        ("application/json, */*", "image/png"),
        ("application/json", "application/json"),
        ("application/json;q=0.9, text/plain", "application/json"),
        ("text/event-stream", "text/event-stream"),
    ],
)
def test_accept_decides_what_the_answer_is(accept, media_type):
    assert decode(b'{"prompt": "a"}', accept).media_type == media_type


def test_several_images_cannot_be_one_picture():
    body = b'{"prompt": "a", "parameters": {"num_images_per_prompt": 2}}'
    with pytest.raises(InvalidRequest, match="num_images_per_prompt must be 1 for an answer that is a picture"):
        decode(body, "image/png")
    assert decode(body, "*/*").media_type == "application/json"
    assert decode(body, "text/event-stream").media_type == "text/event-stream"


def test_events_golden():
    assert events(Step("queued", 0, 20), "r", "m") == (
        b'event: progress\ndata: {"request_id":"r","state":"queued","step":0,"of":20}\n\n'
    )
    assert events(Step("running", 4, 20, EncodedImage(b"png", "png", 8, 6)), "r", "m") == (
        b'event: progress\ndata: {"request_id":"r","state":"running","step":4,"of":20}\n\n'
        b'event: preview\ndata: {"step":4,"of":20,"image":{"format":"PNG","b64":"cG5n","width":8,"height":6}}\n\n'
    )
    assert events(answer(), "r", "m") == (
        b'event: prediction\ndata: {"image":{"format":"PNG","b64":"cG5nLTA=","seed":7},"model_name":"m","seed":7,"width":64,'
        b'"height":64,"num_inference_steps":20,"guidance_scale":7.5,"scheduler":"DDIMScheduler"}\n\n'
    )
    assert events(NotServing("leaving", retry_after=2), "r", "m") == (
        b'event: error\ndata: {"status":503,"error":"leaving","retry_after":2}\n\n'
    )


def test_a_byte_order_mark_is_no_error():
    assert decode(b'\xef\xbb\xbf{"prompt": "a"}').requests[0].prompt == "a"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body must be JSON in UTF-8"),
        (b"prompt=a", "body must be JSON in UTF-8"),
        (b'{"prompt": "\xff"}', "body must be JSON in UTF-8"),
        (b'{"prompt": "a", "parameters": {"guidance_scale": NaN}}', "body must be JSON in UTF-8"),
        (b'{"prompt": "\\ud800"}', "body must be JSON in UTF-8"),
        (b"[" * 5000, "body must be JSON in UTF-8"),
        (b"[]", "body must be a JSON object"),
        (b'"a"', "body must be a JSON object"),
        (b"{}", "body must be an object"),
        (b'{"prompt": "a", "instances": []}', "body must be an object"),
        (b'{"prompt": "a", "seed": 1}', 'body has no field "seed"; allowed: parameters, prompt'),
        (b'{"instances": [], "seed": 1}', 'body has no field "seed"; allowed: instances, parameters'),
        (b'{"instances": []}', "instances must be an array of 1 to 2 objects, not 0"),
        (b'{"instances": {}}', "instances must be an array of 1 to 2 objects, not something else"),
        (b'{"instances": [1, 2, 3]}', "instances must be an array of 1 to 2 objects, not 3"),
        (b'{"instances": ["a"]}', 'instances[0] must be an object with "prompt"'),
        (b'{"instances": [{"prompt": "a", "seed": 1}]}', 'instances[0] has no field "seed"'),
        (b'{"instances": [{"prompt": "a", "parameters": []}]}', "instances[0].parameters must be an object"),
        (b'{"prompt": "a", "parameters": "b"}', "parameters must be an object"),
    ],
)
def test_bad_bodies_are_named(body, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(body, max_instances=2)
    assert message in refused.value.message
