"""Every codec against hostile input, thousands of cases without a socket: it takes a body or raises a ServingError, and what it
says quotes no prompt. What is taken is fit for the model."""

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import LIMITS
from fuzz.hostile import SECRET, WRONG, bodies, cases, good_prompts, objects, places, prompts, spoiled
from predictor import a1111, cloudevents, generate, huggingface, negotiation, openai, v1, v2
from predictor.errors import ServingError
from predictor.images import FORMATS
from predictor.request import SEEDS, GenerateRequest, Params, check_cost, parse

CASES = 400  # of each codec
AT_LEAST = CASES // 50  # of each outcome, or the cases would prove nothing of it

# ---------------------------------------------------------------- good messages, by codec

sides = st.sampled_from([128, 256, 512, 2048])  # each is good, and not with each
OWN = {
    "width": sides,
    "height": sides,
    "num_inference_steps": st.integers(1, 60),
    "guidance_scale": st.floats(0, 50) | st.integers(0, 50),
    "negative_prompt": good_prompts,
    "num_images_per_prompt": st.integers(1, 2),
    "seed": st.integers(0, SEEDS - 1),
    "scheduler": st.sampled_from(LIMITS.schedulers),
    "output_format": st.sampled_from(list(FORMATS)),
    "output_compression": st.integers(0, 100),
}
ONE_PICTURE = {name: each for name, each in OWN.items() if name != "num_images_per_prompt"}
single = objects({"prompt": good_prompts, "parameters": objects(OWN)}, "prompt")
several = objects({"instances": st.lists(single, min_size=1, max_size=2), "parameters": objects(OWN)}, "instances")

OPENAI = {
    "prompt": good_prompts,
    "model": st.sampled_from(["m", "org/m"]),
    "n": st.just(1),
    "size": st.sampled_from(["auto", "512x512", "256x1024"]),
    "quality": st.sampled_from(["auto", "standard"]),
    "background": st.just("auto"),
    "moderation": st.just("low"),
    "response_format": st.just("b64_json"),
    "stream": st.just(True),
    "partial_images": st.integers(0, 3),
    "user": good_prompts,
    **{name: OWN[name] for name in ("negative_prompt", "seed", "scheduler", "output_format", "output_compression")},
}
NOTHING = st.sampled_from([None, False, 0, "", [], {}])  # asks for nothing
A1111 = {
    "prompt": good_prompts,
    "negative_prompt": good_prompts,
    "steps": OWN["num_inference_steps"],
    "cfg_scale": OWN["guidance_scale"],
    "width": sides,
    "height": sides,
    "seed": st.just(-1) | OWN["seed"],
    "batch_size": st.integers(1, 2),
    "n_iter": st.integers(1, 2),
    "sampler_name": st.sampled_from(["Euler", "DDIM", "Automatic"]) | NOTHING,
    "scheduler": st.just("Automatic") | NOTHING,
    "eta": st.none(),
    "override_settings": st.just({"sd_model_checkpoint": "m"}) | NOTHING,
    "send_images": st.just(True),
    "styles": NOTHING,
    "alwayson_scripts": NOTHING,
    "enable_hr": NOTHING,
    "hr_prompt": prompts,
    "script_args": st.lists(prompts, max_size=2),
}


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    """A body of v2: prompts, and for each or for all of them what OWN has."""
    count = draw(st.integers(1, 3))
    inputs = []
    for name, strategy in {"prompt": good_prompts, **draw(st.sampled_from([{}, {"seed": OWN["seed"]}, OWN]))}.items():
        n = draw(st.sampled_from([1, count])) if name != "prompt" else count
        data = draw(st.lists(strategy, min_size=n, max_size=n))
        datatype = "BYTES" if isinstance(data[0], str) else "FP32" if name == "guidance_scale" else "INT64"
        inputs.append({"name": name, "datatype": datatype, "shape": draw(st.sampled_from([[n], [n, 1]])), "data": data})
    more = {"id": st.text(max_size=3), "parameters": objects({"binary_data_output": st.booleans()})}
    outputs = st.lists(st.sampled_from([{"name": "image"}, {"name": "seed", "parameters": {"binary_data": True}}]))
    return {"inputs": inputs, **draw(objects({**more, "outputs": outputs}))}


def from_event(body: bytes, accept: str) -> Iterable[GenerateRequest]:
    event = cloudevents.decode({"content-type": "application/cloudevents+json"}, body)
    assert event and event.structured
    return v1.decode(event.data, accept).requests


@dataclass(frozen=True)
class Codec:
    """`decode` takes a body and an Accept header; `messages` are good ones, `full` one with every field."""

    name: str
    decode: Callable[[bytes, str], Iterable[GenerateRequest]]
    messages: st.SearchStrategy[Any]
    full: dict[str, Any]


def decode_openai(body: bytes, _: str) -> Iterable[GenerateRequest]:
    return [openai.decode(body, ("m", "org/m")).request]


def decode_a1111(body: bytes, _: str) -> Iterable[GenerateRequest]:
    return [a1111.decode(body, limits=LIMITS, name="m")]


def tensor(name: str, datatype: str, value: object) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [1], "data": [value]}


hugging = {"inputs": good_prompts, "parameters": objects(ONE_PICTURE), "options": st.just({"wait_for_model": True})}
ALL = {
    **{"width": 512, "height": 512, "num_inference_steps": 9, "guidance_scale": 2.5, "negative_prompt": SECRET, "seed": 7},
    **{"scheduler": "DDIMScheduler", "output_format": "webp", "output_compression": 50},
}
FULL = {"prompt": SECRET, "parameters": ALL | {"num_images_per_prompt": 2}}
FULL_V2 = {
    "inputs": [tensor("prompt", "BYTES", SECRET), tensor("seed", "INT64", 7), tensor("guidance_scale", "FP32", 2.5)],
    **{"id": "7", "model_name": "m", "parameters": {"width": 512, "binary_data_output": True}},
    "outputs": [{"name": "image", "parameters": {"binary_data": True}}],
}
FULL_OPENAI = {
    **{"prompt": SECRET, "model": "m", "n": 1, "size": "512x512", "quality": "auto", "background": "auto", "moderation": "low"},
    **{
        "response_format": "b64_json",
        "stream": True,
        "partial_images": 1,
        "user": SECRET,
        "negative_prompt": SECRET,
        "seed": 7,
    },
    **{"num_inference_steps": 9, "guidance_scale": 2.5, "scheduler": "DDIMScheduler", "output_format": "jpeg"},
}
FULL_A1111 = {
    **{"prompt": SECRET, "negative_prompt": SECRET, "steps": 9, "cfg_scale": 2.5, "width": 512, "height": 512, "seed": 7},
    **{"batch_size": 1, "n_iter": 2, "sampler_name": "DDIM", "scheduler": "Automatic", "eta": 0, "send_images": True},
    **{"override_settings": {"sd_model_checkpoint": "m"}, "styles": [], "alwayson_scripts": {}, "hr_prompt": SECRET},
}
EVENT = {name: "1.0" for name in ("specversion", "id", "source", "type")}
CODECS = [
    Codec("v1", lambda body, accept: v1.decode(body, accept).requests, single | several, FULL),
    Codec(
        "v1 instances", lambda body, accept: v1.decode(body, accept).requests, several, {"instances": [FULL], "parameters": ALL}
    ),
    Codec("v2", lambda body, _: v2.decode(body).requests, tensors(), FULL_V2),
    Codec("openai", decode_openai, objects(OPENAI, "prompt"), FULL_OPENAI),
    Codec("a1111", decode_a1111, objects(A1111, "prompt"), FULL_A1111),
    Codec(
        "huggingface",
        lambda *given: [huggingface.decode(*given)],
        objects(hugging, "inputs"),
        {"inputs": SECRET, "parameters": ALL},
    ),
    Codec(
        "generate",
        lambda *given: [generate.decode(*given)],
        objects({"prompt": good_prompts} | ONE_PICTURE, "prompt"),
        {"prompt": SECRET} | ALL,
    ),
    Codec("cloudevents", from_event, single.map(lambda data: EVENT | {"data": data}), EVENT | {"data": FULL}),
]
accepts = st.sampled_from(["", "*/*", "image/webp", "application/json", "text/event-stream", "image/*;q=0"]) | st.text(
    max_size=9
)


def is_text(name: str) -> bool:
    """A place whose value no error may quote."""
    return name in ("prompt", "negative_prompt", "inputs", "instances", "user", "hr_prompt", "script_args", "options")


# ---------------------------------------------------------------- what becomes of them


def refusal(action: Callable[..., object], *arguments: object) -> ServingError | None:
    """The ServingError that it raises, after a look at what that says. Any other exception is a failure."""
    try:
        action(*arguments)
    except ServingError as error:
        assert SECRET not in f"{error.message} {getattr(error, 'field', None)}"
        return error
    return None


def outcome(decode: Callable[[], Iterable[GenerateRequest]]) -> str:
    decoded: list[GenerateRequest] = []
    params: list[Params] = []
    if refusal(lambda: decoded.extend(decode())):
        return "not decoded"
    if refusal(lambda: params.extend(parse(request, LIMITS) for request in decoded)):
        return "refused"
    for each in params:
        check(each)
    return "refused" if refusal(check_cost, params, LIMITS) else "taken"


def check(params: Params) -> None:
    """That a pipeline can be called with them."""
    for text in (params.prompt, params.negative_prompt or ""):
        assert type(text) is str and len(text) <= LIMITS.max_prompt_chars and "\0" not in text
        text.encode()
    assert params.prompt.strip()
    for side in (params.width, params.height):
        assert type(side) is int and LIMITS.min_side <= side <= LIMITS.max_side and side % LIMITS.multiple == 0
    assert params.width * params.height <= LIMITS.max_pixels
    assert type(params.num_inference_steps) is int and 1 <= params.num_inference_steps <= LIMITS.max_steps
    assert type(params.guidance_scale) is float and 0 <= params.guidance_scale <= LIMITS.max_guidance
    assert type(params.num_images_per_prompt) is int and 1 <= params.num_images_per_prompt <= LIMITS.max_images
    assert all(type(seed) is int and 0 <= seed < SEEDS for seed in params.seeds)
    assert params.scheduler in (None, *LIMITS.schedulers)
    assert params.output_format in FORMATS
    assert params.output_compression is None or 0 <= params.output_compression <= 100


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_codec_takes_a_body_or_refuses_it_and_quotes_no_prompt(codec):
    outcomes: Counter[str] = Counter()

    @cases(CASES)
    @given(bodies(spoiled(codec.messages, is_text)), accepts)
    def one(body, accept):
        outcomes[outcome(lambda: codec.decode(body, accept))] += 1

    one()
    assert all(outcomes[each] >= AT_LEAST for each in ("not decoded", "refused", "taken")), outcomes


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_wrong_value_in_any_place_is_refused_or_harmless(codec):
    outcomes: Counter[str] = Counter()
    accept = "image/webp, application/json"
    assert outcome(lambda: codec.decode(json.dumps(codec.full).encode(), accept)) == "taken"
    for i, (_, name) in enumerate(places(codec.full)):
        for value in WRONG if is_text(str(name)) else WRONG[:-1]:  # the last is the secret
            body = json.dumps(with_other(codec.full, i, value)).encode()
            outcomes[outcome(lambda body=body: codec.decode(body, accept))] += 1
    assert outcomes["not decoded"] + outcomes["refused"] > outcomes["taken"] > 0


def with_other(message: dict[str, Any], i: int, value: object) -> dict[str, Any]:
    """A copy with another value at its place `i`."""
    message = copy.deepcopy(message)
    parent, key = next(itertools.islice(places(message), i, None))
    parent[key] = value
    return message


def test_parameters_of_any_type_are_taken_or_refused():
    outcomes: Counter[str] = Counter()

    @cases(CASES)
    @given(spoiled(single, is_text))
    def one(message):
        if isinstance(message, dict) and isinstance(message.get("parameters", {}), dict):
            request = GenerateRequest(message.get("prompt"), message.get("parameters", {}))
            outcomes[outcome(lambda: [request])] += 1

    one()
    assert min(outcomes["refused"], outcomes["taken"]) >= AT_LEAST, outcomes


ATTRIBUTES = ("ce-specversion", "ce-id", "ce-source", "ce-type")
attributes = st.sampled_from(["1.0", "1.0", "1.0", ""]) | st.text(max_size=3)


@cases(CASES)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ATTRIBUTES, attributes)))
def test_an_event_in_headers_is_taken_or_refused(headers):
    taken = headers.get("ce-specversion") == "1.0" and all(headers.get(name) for name in ATTRIBUTES)
    refused = refusal(cloudevents.decode, headers, b"zebra")
    if taken:
        assert cloudevents.decode(headers, b"zebra").data == b"zebra"
    elif "ce-specversion" in headers:
        assert refused and refused.status == 400
    else:
        assert not refused and cloudevents.decode(headers, b"zebra") is None


OFFERED = ["image/png", "image/webp", "application/json"]
ranges = st.builds(
    "{}{};q={}".format,
    st.sampled_from(["image/png", "image/*", "*/*", "image/webp", "a", "", "*"]),
    st.sampled_from(["", ";a=b", ";;"]),
    st.sampled_from(["0", "0.5", "1", "2", "-1", "nan", "inf", "1e9", "", "x"]) | st.text(max_size=3),
)


@cases(CASES)
@given(st.text() | st.lists(ranges, max_size=4).map(", ".join))
def test_any_accept_header_finds_what_is_offered_or_nothing(accept):
    assert negotiation.preferred(accept, OFFERED) in [*OFFERED, None]


@pytest.mark.parametrize("weight", ["nan", "-1", "x", "", "0", "-inf"])
def test_a_weight_that_is_none_weighs_nothing(weight):
    assert negotiation.preferred(f"image/png;q={weight}", OFFERED) is None
    assert negotiation.preferred(f"image/png;q={weight}, image/webp;q=0.001", OFFERED) == "image/webp"


# ---------------------------------------------------------------- bodies that no strategy finds

DEEP_AND_WIDE = {
    "arrays": b"[" * 100_000,
    "objects": b'{"prompt":' * 100_000,
    "closed": b'{"prompt":' + b"[" * 500 + b"]" * 500 + b"}",
    "closed objects": b'{"prompt":' * 900 + b"1" + b"}" * 900,
    "numbers": b'{"prompt":[' + b"1," * 200_000 + b"1]}",
    "accents": b'{"prompt":"zebra' + b"\\u0301" * 150_000 + b'"}',
    "names": b"{" + b",".join(b'"%d":0' % i for i in range(50_000)) + b"}",
    "the same name": b"{" + b",".join([b'"prompt":"zebra"'] * 50_000) + b',"prompt":0}',
    "a number": b'{"prompt":' + b"1" * 1_000_000 + b"}",
    "a sign": b"-" * 1_000_000,
}


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("what", DEEP_AND_WIDE)
def test_deep_and_wide_bodies_are_refused_like_any_other(codec, what):
    assert outcome(lambda: codec.decode(DEEP_AND_WIDE[what], "")) in ("not decoded", "refused")


OVERLONG = [b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff\xfe", b"\x80"]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_bytes_that_are_no_text_are_refused(codec):
    noise = Random(1)
    for data in [*OVERLONG, *(b"\x80" + noise.randbytes(40) for _ in range(50))]:
        body = json.dumps({"prompt": SECRET}).encode().replace(b"ze", b"ze" + data.replace(b'"', b"").replace(b"\\", b""))
        refused = refusal(codec.decode, body, "")
        assert refused and refused.message.startswith("body must be JSON in UTF-8")
