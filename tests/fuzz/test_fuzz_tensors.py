"""Golden messages of the Open Inference Protocol, altered in bytes and lengths: they are refused, or mean what KServe's own
reader finds in them."""

import json
import re
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from kserve.protocol.infer_type import InferRequest

from fuzz.hostile import SECRET, cases
from predictor import v2
from predictor.errors import InvalidRequest
from serving import START

CASES = 800  # of each golden message
AT_LEAST = CASES // 100  # of each outcome
CASES_OVER_THE_WIRE = 80
INVALID = grpc.StatusCode.INVALID_ARGUMENT

INPUTS = [
    (
        "prompt",
        "BYTES",
        [2],
        b"".join(struct.pack("<I", len(text)) + text for text in (b"a zebra", "ein Zebra: ü zebra".encode())),
    ),
    ("seed", "INT64", [2, 1], struct.pack("<2q", 1, 2**40)),
    ("guidance_scale", "FP32", [1], struct.pack("<f", 7.5)),
]


def rest() -> tuple[bytes, int]:
    """A body with raw data, and where its JSON ends."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, datatype, shape, raw in INPUTS
    ]
    head = json.dumps({"id": "7", "parameters": {"width": 32}, "inputs": inputs, "outputs": [{"name": "image"}]}).encode()
    return head + b"".join(raw for *_, raw in INPUTS), len(head)


def raw_message() -> ModelInferRequest:
    inputs = [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape, _ in INPUTS]
    message = ModelInferRequest(model_name="m", id="7", inputs=inputs, raw_input_contents=[raw for *_, raw in INPUTS])
    message.parameters["width"].CopyFrom(InferParameter(int64_param=32))
    return message


def plain_message() -> ModelInferRequest:
    contents = [{"bytes_contents": [b"a zebra", b"zebra"]}, {"int64_contents": [1, 2]}, {"fp32_contents": [7.5]}]
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "contents": each}
        for (name, datatype, shape, _), each in zip(INPUTS, contents, strict=True)
    ]
    return ModelInferRequest(model_name="m", inputs=inputs, outputs=[{"name": "seed"}])


LIES = [0, 1, 3, 4, 5, 2**31, 2**32 - 1, 2**63 - 1, -1]


@st.composite
def altered(draw: st.DrawFn, golden: bytes, first: int = 0) -> bytes:
    """A byte changed, cut out or put in, from `first` on."""
    at, byte = draw(st.integers(first, len(golden) - 1)), draw(st.integers(0, 255))
    before, one, after = golden[:at], golden[at], golden[at + 1 :]
    return {
        "other": before + bytes([byte]) + after,
        "bit": before + bytes([one ^ 1 << byte % 8]) + after,
        "more": before + bytes([(one + 1) % 256]) + after,
        "less": before + bytes([(one - 1) % 256]) + after,
        "gone": before + after,
        "twice": before + bytes([one, one]) + after,
        "cut off": before,
    }[draw(st.sampled_from(["other", "bit", "more", "less", "gone", "twice", "cut off"]))]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, int]:
    """The body over REST with a number of its JSON, a byte or the length of the JSON that is not what it was."""
    body, length = rest()
    match draw(st.sampled_from(["number", "json", "data", "data", "length"])):
        case "number":
            number = draw(st.sampled_from(list(re.finditer(rb"-?\d+", body[:length]))))
            lie = str(draw(st.sampled_from(LIES) | st.integers(0, 40))).encode()
            body, length = body[: number.start()] + lie + body[number.end() :], length + len(lie) - len(number[0])
        case "json":
            head = draw(altered(body[:length]))
            body, length = head + body[length:], len(head)
        case "data":
            body = draw(altered(body, length))
        case _:
            length += draw(st.integers(-9, 9) | st.sampled_from(LIES))
    return body, length


@st.composite
def messages(draw: st.DrawFn, golden: ModelInferRequest) -> ModelInferRequest:
    """The message over gRPC with a shape, a type, a name, a text or raw data that is not what it was."""
    message = ModelInferRequest.FromString(golden.SerializeToString())
    tensor, raw = draw(st.sampled_from(list(message.inputs))), message.raw_input_contents
    match draw(st.sampled_from(["shape", "type", "name", "raw", "raw", "contents", "gone", "twice"])):
        case "shape":
            tensor.shape[:] = draw(st.lists(st.sampled_from(LIES) | st.integers(0, 3), max_size=3))
        case "type":
            tensor.datatype = draw(st.sampled_from(["BYTES", "INT8", "UINT64", "FP16", "FP32", "FP64", "BOOL", ""]))
        case "name":
            tensor.name = draw(st.sampled_from(["prompt", "seed", "width", "image", ""]))
        case "raw" if raw:
            at = draw(st.integers(0, len(raw) - 1))
            raw[at] = draw(altered(raw[at]))
        case "contents" | "raw":
            kinds = ("bytes_contents", "int_contents", "int64_contents", "uint64_contents", "fp32_contents", "bool_contents")
            kind = draw(st.sampled_from(kinds))
            value = b"a zebra \xff"[: draw(st.integers(7, 9))] if kind == "bytes_contents" else draw(st.integers(0, 1))
            getattr(tensor.contents, kind).append(value)
        case "gone":
            del message.inputs[draw(st.integers(0, 2))]
        case _:
            message.inputs.append(tensor)
            raw.extend(raw[:1])
    return message


def ours(decode: Callable[[], v2.Call]) -> list[tuple[object, ...]] | None:
    """Prompt, seed and guidance of each request; None where they are refused."""
    try:
        call = decode()
    except InvalidRequest as error:
        assert SECRET not in f"{error.message} {error.field}"
        return None
    return [(each.prompt, *(each.parameters.get(name) for name in ("seed", "guidance_scale"))) for each in call.requests]


def theirs(read: Callable[[], InferRequest]) -> list[tuple[object, ...]]:
    """The same, as KServe reads it. Raises whatever KServe does."""
    found: dict[str, list[Any]] = {"seed": [None], "guidance_scale": [None]}
    for tensor in read().inputs:
        values = tensor.as_numpy().ravel().tolist()
        found[tensor.name] = [each.decode() if isinstance(each, bytes) else each for each in values]
    columns = [found["prompt"], found["seed"], found["guidance_scale"]]
    return [tuple(column[i % len(column)] for column in columns) for i in range(len(found["prompt"]))]


def compared(decode: Callable[[], v2.Call], read: Callable[[], InferRequest]) -> str:
    found = ours(decode)
    if found is None:
        return "refused"
    assert repr(found) == repr(theirs(read))  # NaN is not equal to itself
    return "agreed"


def test_a_body_that_lies_is_refused_or_read_as_kserve_reads_it():
    outcomes: Counter[str] = Counter()

    @cases(CASES)
    @given(bodies())
    def one(given):
        body, length = given
        outcomes[compared(lambda: v2.decode(body, str(length)), lambda: InferRequest.from_bytes(body, length, "m"))] += 1

    one()
    assert min(outcomes["refused"], outcomes["agreed"]) >= AT_LEAST, outcomes


@pytest.mark.parametrize("golden", [raw_message(), plain_message()], ids=["raw", "plain"])
def test_a_message_that_lies_is_refused_or_read_as_kserve_reads_it(golden):
    outcomes: Counter[str] = Counter()

    @cases(CASES)
    @given(messages(golden))
    def one(message):
        outcomes[compared(lambda: v2.decode_grpc(message), lambda: InferRequest.from_grpc(message))] += 1

    one()
    assert min(outcomes["refused"], outcomes["agreed"]) >= AT_LEAST, outcomes


@pytest.mark.parametrize("golden", [raw_message(), plain_message()], ids=["raw", "plain"])
def test_a_message_with_an_altered_byte_is_refused_or_read_as_kserve_reads_it(golden):
    """Where it still is a message at all: gRPC itself refuses the others."""
    outcomes: Counter[str] = Counter()

    @cases(CASES)
    @given(altered(golden.SerializeToString()))
    def one(data):
        try:
            message = ModelInferRequest.FromString(data)
        except DecodeError:
            outcomes["no message"] += 1
            return
        if not quotes_itself(message):
            outcomes[compared(lambda: v2.decode_grpc(message), lambda: InferRequest.from_grpc(message))] += 1

    one()
    assert min(outcomes["no message"], outcomes["refused"], outcomes["agreed"]) >= AT_LEAST, outcomes


def quotes_itself(message: ModelInferRequest) -> bool:
    """A byte can turn a prompt into a name, and a wrong name is told."""
    names = [*message.parameters, *(each.name + each.datatype + "".join(each.parameters) for each in message.inputs)]
    return SECRET in "".join([*names, *(each.name + "".join(each.parameters) for each in message.outputs)])


def test_kserve_and_we_agree_on_the_golden_messages():
    body, length = rest()
    raw, plain = raw_message(), plain_message()
    for decode, read in [
        (lambda: v2.decode(body, str(length)), lambda: InferRequest.from_bytes(body, length, "m")),
        (lambda: v2.decode_grpc(raw), lambda: InferRequest.from_grpc(raw)),
        (lambda: v2.decode_grpc(plain), lambda: InferRequest.from_grpc(plain)),
    ]:
        assert ours(decode) == theirs(read) and len(theirs(read)) == 2


# ---------------------------------------------------------------- over the wire


def test_altered_bodies_over_http_are_refused_or_made(server):
    """As many pictures as there are prompts."""
    statuses: Counter[int] = Counter()

    @cases(CASES_OVER_THE_WIRE)
    @given(bodies())
    def one(given):
        body, length = given
        headers = {"inference-header-content-length": str(length)}
        answer = server.client.post("/v2/models/model/infer", content=body, headers=headers)
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            wanted = v2.decode(body, str(length)).requests
            [image] = [each for each in answer.json()["outputs"] if each["name"] == "image"]
            assert len(image["data"]) == len(wanted)
        else:
            assert answer.status_code == 400 and SECRET not in answer.text

    one()
    assert min(statuses[200], statuses[400]) >= CASES_OVER_THE_WIRE / 10, statuses


def test_altered_messages_over_grpc_are_refused_or_made(server):
    """Those too that are none any more."""
    codes: Counter[object] = Counter()
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", response_deserializer=ModelInferResponse.FromString
    )
    golden = raw_message()
    golden.model_name = "model"
    del golden.parameters["width"]

    @cases(CASES_OVER_THE_WIRE)
    @given(messages(golden).map(ModelInferRequest.SerializeToString) | altered(golden.SerializeToString(), len("\n\x05model")))
    def one(data):
        try:
            answer = infer(data, timeout=START)
        except grpc.RpcError as refused:
            codes[refused.code()] += 1
            assert refused.code() in (INVALID, grpc.StatusCode.NOT_FOUND), (
                refused.details()
            )  # a byte can make it another model's
        else:
            codes["made"] += 1
            [image] = [each for each in answer.outputs if each.name == "image"]
            assert list(image.shape) == [len(v2.decode_grpc(ModelInferRequest.FromString(data)).requests)]

    with channel:
        one()
    assert min(codes["made"], codes[INVALID]) >= CASES_OVER_THE_WIRE / 10, codes
