"""Golden bodies and messages of the Open Inference Protocol."""

import base64
import json
import struct

import numpy as np
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.infer_type import InferInput, InferRequest, InferResponse, RequestedOutput

from fakes import LIMITS
from predictor.errors import InvalidRequest
from predictor.images import EncodedImage
from predictor.request import Answer, Limits, Params, parse
from predictor.v2 import decode, decode_grpc, encode, encode_grpc, metadata

FILE = b"\x89PNG\xff"  # no UTF-8


def tensor(name: str, data: list, datatype: str = "BYTES", shape: object = None, **more) -> dict:
    return {"name": name, "datatype": datatype, "shape": [len(data)] if shape is None else shape, "data": data, **more}


def body(*inputs: dict, **more) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def binary(inputs: list[tuple[dict, bytes]], **more) -> tuple[bytes, str]:
    """A body with raw data, and the length of its JSON as a header has it."""
    described = [{"parameters": {"binary_data_size": len(raw)}, **each} for each, raw in inputs]
    head = json.dumps({"inputs": described, **more}).encode()
    return head + b"".join(raw for _, raw in inputs), str(len(head))


def texts(*values: str | bytes) -> bytes:
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def message(*inputs: dict, raw: list[bytes] | None = None, **more) -> ModelInferRequest:
    return ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=raw or [], **more)


def found(call) -> list[tuple[object, dict]]:
    return [(request.prompt, dict(request.parameters)) for request in call.requests]


def answer(*files: bytes, seed: int = 7, **fields) -> Answer:
    params = Params("a cat", 64, 48, 20, seed=seed, num_images_per_prompt=len(files))
    return Answer(
        params, tuple(EncodedImage(file, "png", 64, 48) for file in files), {"queue": 0.001, "denoise": 1.5}, **fields
    )


# ---------------------------------------------------------------- requests over REST


def test_one_prompt_is_one_request():
    call = decode(body(tensor("prompt", ["a cat"]), id="42"))
    assert (found(call), call.id) == ([("a cat", {})], "42")


def test_a_parameter_is_for_each_for_all_or_among_the_parameters():
    inputs = [
        tensor("prompt", ["a", "b"]),
        tensor("seed", [1, 2], "INT64"),
        tensor("guidance_scale", [4], "FP32"),
        tensor("negative_prompt", ["dots", ""]),
    ]
    call = decode(body(*inputs, parameters={"num_inference_steps": 9, "guidance_scale": 3.0, "width": None}))
    shared = {"num_inference_steps": 9, "guidance_scale": 4, "width": None}
    assert found(call) == [
        ("a", shared | {"seed": 1, "negative_prompt": "dots"}),
        ("b", shared | {"seed": 2, "negative_prompt": ""}),
    ]


@pytest.mark.parametrize("data", [["a", "b"], [["a"], ["b"]]])
def test_a_column_is_as_good_as_a_row(data):
    inputs = [tensor("prompt", data, shape=[2, 1]), tensor("seed", [[5]], "INT32", shape=[1, 1])]
    assert found(decode(body(*inputs))) == [("a", {"seed": 5}), ("b", {"seed": 5})]


def test_numbers_may_be_texts_and_texts_stay_texts():
    inputs = [tensor("prompt", ["7"]), tensor("negative_prompt", ["8"]), tensor("seed", ["9223372036854775807"])]
    call = decode(body(*inputs, parameters={"guidance_scale": "4.5", "width": "512", "height": "5e2", "output_format": "png"}))
    own = {"negative_prompt": "8", "seed": 2**63 - 1}
    assert found(call) == [("7", {"guidance_scale": 4.5, "width": 512, "height": 500.0, "output_format": "png"} | own)]


@pytest.mark.parametrize("text", ["", "seven", "1_000", "0x10", "nan", "٣", "9" * 5000, " 7", "1e9999"])
def test_a_text_that_says_no_number_is_refused_by_its_value(text):
    [request] = decode(body(tensor("prompt", ["a"]), parameters={"seed": text})).requests
    with pytest.raises(InvalidRequest, match="^seed must be a whole number from 0 to"):
        parse(request, LIMITS)


@pytest.mark.parametrize(
    ("datatype", "letter"),
    [
        *(("INT8", "b"), ("INT16", "h"), ("INT32", "i"), ("INT64", "q")),
        *(("UINT8", "B"), ("UINT16", "H"), ("UINT32", "I"), ("UINT64", "Q")),
    ],
)
def test_integers_of_any_size(datatype, letter):
    data, length = binary(
        [
            ({"name": "seed", "datatype": datatype, "shape": [2]}, struct.pack(f"<2{letter}", 3, 127)),
            ({"name": "prompt", "datatype": "BYTES", "shape": [2]}, texts("a", "ü")),
            ({"name": "guidance_scale", "datatype": datatype, "shape": [1]}, struct.pack(f"<{letter}", 5)),
        ]
    )
    shared = {"guidance_scale": 5}
    assert found(decode(data, length)) == [("a", {"seed": 3} | shared), ("ü", {"seed": 127} | shared)]


@pytest.mark.parametrize(("datatype", "letter"), [("FP32", "f"), ("FP64", "d")])
def test_raw_and_plain_inputs_together(datatype, letter):
    given = [({"name": "guidance_scale", "datatype": datatype, "shape": [1, 1]}, struct.pack(f"<{letter}", 7.5))]
    data, length = binary(given)
    head = json.loads(data[: int(length)])
    head["inputs"].append(tensor("prompt", ["a"]))
    plain = json.dumps(head).encode()
    assert found(decode(plain + data[int(length) :], str(len(plain)))) == [("a", {"guidance_scale": 7.5})]


def test_kserve_s_own_request_is_understood():
    """Raw, as its client sends them unless told otherwise."""
    prompt, seed = InferInput("prompt", [2], "BYTES"), InferInput("seed", [2], "INT64")
    prompt.set_data_from_numpy(np.array(["a", "ü"], dtype=object))
    seed.set_data_from_numpy(np.array([1, 2]))
    asked = InferRequest(
        "m", [prompt, seed], "id-1", parameters={"width": 512}, request_outputs=[RequestedOutput("seed", {"binary_data": True})]
    )
    data, length = asked.to_rest()
    for call in (decode(data, str(length)), decode_grpc(asked.to_grpc())):
        assert found(call) == [("a", {"seed": 1, "width": 512}), ("ü", {"seed": 2, "width": 512})]
        assert (call.id, call.outputs) == ("id-1", {"seed": True})


# ---------------------------------------------------------------- requests over gRPC


def test_typed_contents_and_parameters_without_floats():
    call = decode_grpc(
        message(
            {"name": "prompt", "datatype": "BYTES", "shape": [2, 1], "contents": {"bytes_contents": [b"a", "ü".encode()]}},
            {"name": "seed", "datatype": "UINT32", "shape": [2], "contents": {"uint_contents": [1, 2]}},
            {"name": "guidance_scale", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [2.5]}},
            parameters={
                "num_inference_steps": {"int64_param": 9},
                "output_format": {"string_param": "webp"},
                "guidance_scale": {"string_param": "7.25"},
                "width": {"string_param": "512"},
                "height": {},
            },
            id="42",
        )
    )
    shared = {"num_inference_steps": 9, "output_format": "webp", "guidance_scale": 2.5, "width": 512, "height": None}
    assert found(call) == [("a", {"seed": 1} | shared), ("ü", {"seed": 2} | shared)]
    assert call.id == "42"


def test_raw_contents():
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [2]},
        {"name": "guidance_scale", "datatype": "FP32", "shape": [2]},
    ]
    call = decode_grpc(message(*inputs, raw=[texts("a", ""), struct.pack("<2f", 1.5, 2)]))
    assert found(call) == [("a", {"guidance_scale": 1.5}), ("", {"guidance_scale": 2.0})]


# ---------------------------------------------------------------- answers


def test_json_golden():
    call = decode(body(tensor("prompt", ["a", "b"]), id="42"))
    reply = encode(call, [answer(b"one", b"two"), answer(b"three", seed=9, dropped_tokens=3)], "shapes")
    assert reply.media_type == "application/json"
    assert reply.headers == {"server-timing": "queue;dur=1.0, denoise;dur=1500.0"}
    assert reply.body == (
        b'{"model_name":"shapes","id":"42","outputs":['
        b'{"name":"image","datatype":"BYTES","shape":[3],"parameters":{"content_type":"base64"},'
        b'"data":["b25l","dHdv","dGhyZWU="]},'
        b'{"name":"seed","datatype":"INT64","shape":[3],"data":[7,8,9]},'
        b'{"name":"dropped_tokens","datatype":"INT64","shape":[3],"data":[0,0,3]}]}'
    )


def test_raw_outputs_follow_the_json():
    call = decode(body(tensor("prompt", ["a"]), parameters={"binary_data_output": True}))
    reply = encode(call, [answer(FILE, b"", flagged=(True, False))], "m")
    assert reply.media_type == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    head, raw = json.loads(reply.body[:length]), reply.body[length:]
    assert [each["name"] for each in head["outputs"]] == ["image", "seed", "dropped_tokens", "safety_flagged"]
    assert [each["parameters"] for each in head["outputs"]] == [{"binary_data_size": size} for size in (13, 16, 16, 2)]
    assert not any("data" in each for each in head["outputs"])
    assert raw == texts(FILE, b"") + struct.pack("<2q", 7, 8) + bytes(16) + b"\1\0"


def test_each_output_may_be_raw_or_not():
    outputs = [{"name": "seed"}, {"name": "image", "parameters": {"binary_data": False}}]
    call = decode(body(tensor("prompt", ["a"]), parameters={"binary_data_output": True}, outputs=outputs))
    assert call.outputs == {"seed": True, "image": False}
    reply = encode(call, [answer(FILE)], "m")
    length = int(reply.headers["inference-header-content-length"])
    seed, image = json.loads(reply.body[:length])["outputs"]
    assert (seed["name"], seed["datatype"], seed["shape"]) == ("seed", "INT64", [1])
    assert base64.b64decode(image["data"][0]) == FILE
    assert reply.body[length:] == struct.pack("<q", 7)


def test_flags_are_json_too():
    reply = encode(decode(body(tensor("prompt", ["a"]))), [answer(b"a", b"b", flagged=(True, False))], "m")
    assert json.loads(reply.body)["outputs"][-1] == {
        "name": "safety_flagged",
        "datatype": "BOOL",
        "shape": [2],
        "data": [True, False],
    }


def test_flags_that_no_checker_made_are_not_made_up():
    call = decode(body(tensor("prompt", ["a"]), outputs=[{"name": "safety_flagged"}]))
    with pytest.raises(InvalidRequest, match="this model has no safety checker"):
        encode(call, [answer(FILE)], "m")


def test_an_answer_over_grpc_is_raw():
    call = decode_grpc(
        message({"name": "prompt", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"a"]}}, id="42")
    )
    response = encode_grpc(call, [answer(FILE, b"2", flagged=(False, True))], "m")
    assert (response.model_name, response.id) == ("m", "42")
    assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
        ("image", "BYTES", [2]),
        ("seed", "INT64", [2]),
        ("dropped_tokens", "INT64", [2]),
        ("safety_flagged", "BOOL", [2]),
    ]
    assert list(response.raw_output_contents) == [texts(FILE, b"2"), struct.pack("<2q", 7, 8), bytes(16), b"\0\1"]


def test_kserve_s_own_reader_finds_the_files_in_a_grpc_answer():
    asked = message(
        {"name": "prompt", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"a"]}},
        outputs=[{"name": "image"}],
    )
    [output] = InferResponse.from_grpc(encode_grpc(decode_grpc(asked), [answer(FILE, b"2")], "m")).outputs
    assert list(output.as_numpy()) == [FILE, b"2"]


# ---------------------------------------------------------------- metadata


def test_metadata_lists_what_this_model_takes():
    told = metadata("shapes", LIMITS, "StableDiffusionPipeline")
    assert (told["name"], told["versions"], told["platform"]) == ("shapes", [], "diffusers_StableDiffusionPipeline")
    assert {each["name"]: each["datatype"] for each in told["inputs"]} == {
        "prompt": "BYTES",
        "width": "INT64",
        "height": "INT64",
        "num_inference_steps": "INT64",
        "guidance_scale": "FP32",
        "negative_prompt": "BYTES",
        "num_images_per_prompt": "INT64",
        "seed": "INT64",
        "scheduler": "BYTES",
        "output_format": "BYTES",
        "output_compression": "INT64",
    }
    assert [each["name"] for each in told["outputs"]] == ["image", "seed", "dropped_tokens"]
    assert {tuple(each["shape"]) for each in told["inputs"] + told["outputs"]} == {(-1,)}


def test_metadata_of_a_model_with_fewer_arguments_and_a_checker():
    few = Limits(**vars(LIMITS) | {"supported": frozenset(["prompt", "num_inference_steps"]), "schedulers": ()})
    told = metadata("m", few, "FluxPipeline", checked=True)
    assert told["versions"] == []
    assert {each["name"] for each in told["inputs"]} == {
        *("prompt", "num_inference_steps", "seed", "output_format", "output_compression")
    }
    assert told["outputs"][-1] == {"name": "safety_flagged", "datatype": "BOOL", "shape": [-1]}


def test_every_input_that_is_told_can_be_sent():
    values = {"BYTES": "1", "INT64": 1, "FP32": 1.5}
    inputs = metadata("m", LIMITS, "P")["inputs"]
    call = decode(body(*(tensor(each["name"], [values[each["datatype"]]], each["datatype"]) for each in inputs)))
    assert {"prompt", *call.requests[0].parameters} == {each["name"] for each in inputs}


# ---------------------------------------------------------------- refusals


A = tensor("prompt", ["a"])
TWO = tensor("prompt", ["a", "b"])
SHAPES = [0, "1", [], [0], [-1], [3], [10**18], [10**30], [1.0], [True], [1, 2], [1, True], [1, 1, 1], [None], {"0": 1}]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (b"", "body must be JSON in UTF-8"),
        (b"[]", "body must be a JSON object"),
        (b"{}", "inputs must hold prompt"),
        (body(), "inputs must hold prompt"),
        (body(tensor("seed", [1], "INT64")), "inputs must hold prompt"),
        (body(A, prompt="a"), 'body has no field "prompt"'),
        (b'{"inputs": "a"}', "inputs must be an array of objects"),
        (b'{"inputs": [1]}', "inputs must be an array of objects"),
        (body({"name": "prompt", "content": 1}), 'inputs[0] has no field "content"'),
        (body({}), "inputs[0].name must be one of prompt, width, height, "),
        (body(A, tensor("prompts", ["a"])), 'output_compression, not "prompts"'),
        (body(A, A), "inputs must hold prompt only once"),
        (body(A | {"datatype": "STRING"}), 'prompt.datatype must be one of BYTES, not "STRING"'),
        (body(A | {"datatype": 7}), "prompt.datatype must be one of BYTES, not something else"),
        (body(tensor("guidance_scale", [1], "FP16")), "guidance_scale.datatype must be one of FP32, FP64, INT8"),
        (body(tensor("seed", [1], "FP32")), "seed.datatype must be one of INT8, INT16"),
        (body(tensor("seed", [True], "BOOL")), 'UINT64, BYTES, not "BOOL"'),
        (body({"name": "prompt", "datatype": "BYTES", "data": ["a"]}), "prompt.shape must be [n] or [n, 1] with n from 1 to 2"),
        *((body(A | {"shape": shape}), "prompt.shape must be [n] or [n, 1] with n from 1 to 2") for shape in SHAPES),
        (body(TWO | {"shape": [1]}), "prompt must have an array of 1 elements, as its shape says, not 2"),
        (body(tensor("prompt", [["a", "b"]], shape=[2, 1])), "an array of 2 elements, as its shape says, not 1"),
        (body(tensor("prompt", "ab")), "an array of 2 elements, as its shape says, not something else"),
        (body(A | {"data": None}), "prompt must have either data or parameters.binary_data_size"),
        (body(A | {"parameters": {"binary_data_size": 5}}), "prompt must have either data or parameters.binary_data_size"),
        (body(A | {"parameters": {"x": 5}}), 'prompt.parameters has no field "x"'),
        (body(A | {"parameters": []}), "prompt.parameters must be an object"),
        (body(TWO, tensor("seed", [1, 2, 3], "INT64")), "seed.shape must be [n] or [n, 1] with n from 1 to 2"),
        (body(A, tensor("seed", [1, 2], "INT64")), "seed.shape must begin with 1 or, as that of prompt, with 1, not 2"),
        (body(A, parameters={"prompt": "b"}), 'parameters has no field "prompt"'),
        (body(A, parameters={"steps": 5}), 'parameters has no field "steps"; allowed: binary_data_output, guidance_scale'),
        (body(A, parameters=5), "parameters must be an object"),
        (body(A, parameters={"binary_data_output": 1}), "parameters.binary_data_output must be true or false"),
        (body(A, id=5), "id must be a string"),
        (body(A, outputs=5), "outputs must be an array of objects"),
        (body(A, outputs=[{"name": "x"}]), "outputs[0].name must be one of image, seed, dropped_tokens, safety_flagged, not"),
        (body(A, outputs=[{"name": "seed", "x": 1}]), 'outputs[0] has no field "x"'),
        (body(A, outputs=[{"name": "seed", "parameters": {"x": 1}}]), 'outputs[0].parameters has no field "x"'),
        (
            body(A, outputs=[{"name": "seed", "parameters": {"binary_data": "yes"}}]),
            "outputs[0].parameters.binary_data must be true or false",
        ),
    ],
)
def test_bad_bodies_are_named(asked, text):
    with pytest.raises(InvalidRequest) as refused:
        decode(asked, max_requests=2)
    assert text in refused.value.message


PROMPT = {"name": "prompt", "datatype": "BYTES", "shape": [1]}
SEED = {"name": "seed", "datatype": "INT64", "shape": [1]}


@pytest.mark.parametrize(
    ("described", "raw", "message"),
    [
        (PROMPT, b"", "prompt must have raw data for 1 texts"),
        (PROMPT, b"\1\0\0", "prompt must have raw data for 1 texts"),
        (PROMPT, texts("ab")[:-1], "prompt must have raw data for 1 texts"),
        (PROMPT, b"\xff\xff\xff\xffa", "prompt must have raw data for 1 texts"),
        (PROMPT, texts("a", "b"), "prompt must have raw data for 1 texts"),
        (PROMPT, texts("a", b"\xff"), "prompt must have raw data for 1 texts"),  # the rest is not even looked at
        (PROMPT, texts("a") + b"\0", "prompt must have raw data for 1 texts"),
        (PROMPT | {"shape": [2]}, texts("a"), "prompt must have raw data for 2 texts"),
        (PROMPT, texts(b"\xff"), "prompt must be UTF-8"),
        (SEED, bytes(7), "seed must have 8 bytes of raw data, as its shape says, not 7"),
        (SEED | {"datatype": "INT8", "shape": [2]}, bytes(8), "seed must have 2 bytes of raw data, as its shape says, not 8"),
    ],
)
def test_raw_data_that_lies_is_named_over_rest_and_grpc(described, raw, message):
    with pytest.raises(InvalidRequest) as refused:
        decode(*binary([(described, raw)]))
    assert refused.value.message.startswith(message)
    if raw:  # gRPC cannot tell empty raw data from none
        with pytest.raises(InvalidRequest) as refused:
            decode_grpc(ModelInferRequest(inputs=[described], raw_input_contents=[raw]))
        assert refused.value.message.startswith(message)


@pytest.mark.parametrize("size", [-1, 6, 10**30, "5", 5.0, True, None])
def test_a_size_that_lies_is_named(size):
    data, length = binary([(PROMPT | {"parameters": {"binary_data_size": size}}, texts("a"))])
    with pytest.raises(InvalidRequest) as refused:
        decode(data, length)
    assert refused.value.message == "prompt.parameters.binary_data_size must be a whole number up to the 5 bytes that are left"


@pytest.mark.parametrize("more", [-5, -1, 1, 5])
def test_json_of_another_length_than_is_said_is_named(more):
    data, length = binary([(PROMPT, texts("a"))])
    for said in (str(int(length) + more), None):
        with pytest.raises(InvalidRequest, match="^body must be JSON in UTF-8"):
            decode(data, said)


@pytest.mark.parametrize("lie", ["", "x", "-1", "1.0", "0x1", "²", "3", "9" * 5000])
def test_a_length_that_cannot_be_is_named(lie):
    with pytest.raises(InvalidRequest, match="^inference-header-content-length must be a whole number up to the 2 bytes of"):
        decode(b"{}", lie)


def test_data_that_belongs_to_no_input_is_named():
    data, length = binary([(PROMPT, texts("a"))])
    with pytest.raises(InvalidRequest, match="body must end with the data of the last input: 2 bytes are left over"):
        decode(data + b"xx", length)


TYPED = {"name": "prompt", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"a"]}}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (message(), "inputs must hold prompt"),
        (message(TYPED, TYPED), "inputs must hold prompt only once"),
        (message(TYPED | {"name": ""}), "inputs[0].name must be one of prompt, width, height"),
        (message(TYPED | {"datatype": ""}), 'prompt.datatype must be one of BYTES, not ""'),
        (message(TYPED | {"shape": []}), "prompt.shape must be [n] or [n, 1] with n from 1 to 2"),
        (message(TYPED | {"shape": [2**62]}), "prompt.shape must be [n] or [n, 1] with n from 1 to 2"),
        (message(TYPED | {"shape": [-1]}), "prompt.shape must be [n] or [n, 1] with n from 1 to 2"),
        (message(TYPED | {"shape": [1] * 1000}), "prompt.shape must be [n] or [n, 1] with n from 1 to 2"),
        (message(TYPED | {"shape": [2]}), "prompt must have contents of BYTES of 2 elements, as its shape says, not 1"),
        (message(TYPED | {"contents": {"bytes_contents": [b"\xff"]}}), "prompt must be UTF-8"),
        (
            message(TYPED | {"contents": {"int_contents": [1]}}),
            "prompt must have contents of BYTES of 1 elements, as its shape says",
        ),
        (message(TYPED, raw=[texts("a")]), "prompt must not have contents beside raw_input_contents"),
        (message(PROMPT, raw=[texts("a")] * 2), "raw_input_contents must hold the data of all 1 inputs, not of 2"),
        (message(TYPED | {"parameters": {"x": {"int64_param": 1}}}), 'prompt.parameters has no field "x"'),
        (message(TYPED, parameters={"steps": {"int64_param": 1}}), 'parameters has no field "steps"'),
        (message(TYPED, outputs=[{"name": "logits"}]), "outputs[0].name must be one of image, seed"),
        (message(TYPED, outputs=[{"name": "seed", "parameters": {"x": {}}}]), 'outputs[0].parameters has no field "x"'),
    ],
)
def test_bad_messages_are_named(asked, text):
    with pytest.raises(InvalidRequest) as refused:
        decode_grpc(asked, max_requests=2)
    assert text in refused.value.message


@pytest.mark.parametrize(
    ("inputs", "parameters", "text"),
    [
        ([tensor("width", [513], "INT64")], {}, "width must be a multiple of 8 from 128 to 2048, not 513"),
        ([tensor("width", [512, 513], "INT64")], {}, "width[1] must be a multiple of 8 from 128 to 2048, not 513"),
        ([tensor("width", [512.5], "INT64")], {}, "width must be a multiple of 8 from 128 to 2048, not 512.5"),
        ([tensor("width", [{}], "INT64")], {}, "width must be a multiple of 8 from 128 to 2048, not a JSON object"),
        ([], {"guidance_scale": True}, "guidance_scale must be a number from 0 to 50, not true"),
        ([tensor("guidance_scale", [float("51")], "FP32")], {}, "guidance_scale must be a number from 0 to 50, not 51.0"),
        ([], {"scheduler": "Heun"}, 'scheduler must be one of DDIMScheduler, EulerDiscreteScheduler, not "Heun"'),
        ([tensor("width", [1024], "INT64")], {"height": 2048}, "width x height must be at most 1048576 pixels"),
    ],
)
def test_what_the_model_refuses_is_named_as_the_protocol_does(inputs, parameters, text):
    second = decode(body(tensor("prompt", ["a", "b"]), *inputs, parameters=parameters)).requests[1]
    with pytest.raises(InvalidRequest) as refused:
        parse(second, LIMITS)
    assert refused.value.message.startswith(text)


def test_a_prompt_is_named_and_not_quoted():
    [_, second] = decode(body(tensor("prompt", ["a", 7]))).requests
    with pytest.raises(InvalidRequest, match=r"^prompt\[1\] must be a string of 1 to 100 characters, not a JSON number"):
        parse(second, LIMITS)


def test_what_this_model_lacks_is_named():
    few = Limits(**vars(LIMITS) | {"schedulers": ()})
    [request] = decode(body(tensor("prompt", ["a"]), tensor("scheduler", ["DDIMScheduler"]))).requests
    with pytest.raises(InvalidRequest, match='^inputs has no field "scheduler"; allowed: guidance_scale, height'):
        parse(request, few)
