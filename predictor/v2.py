"""The Open Inference Protocol, KServe's v2, over REST and gRPC: messages to requests, answers to messages. Pure.

    inputs    prompt              BYTES [n]         n requests
              any parameter       [n], or [1]       of its own for each request, or one for all of them
    outputs   image               BYTES [pictures]  the files; as base64 where the answer is JSON
              seed                INT64 [pictures]
              dropped_tokens      INT64 [pictures]  of the prompt, that no text encoder reads
              safety_flagged      BOOL [pictures]   of pipelines with a safety checker

[n, 1] is as good as [n]. Parameters may also stand among those of the message, for all its requests; an input wins. Whole
numbers are integers of any size, others FP32 or FP64 or integers as well, and all may be texts: a gRPC parameter is no float.

Source: kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and its binary tensor data extension.
KServe's own classes for these messages (kserve.protocol.infer_type) are for messages that are well-formed: a missing name,
a shape or a length that lies leave them as a KeyError, ValueError or struct.error. So they are not used here.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NoReturn

import orjson
from kserve.constants.constants import GRPC_CONTENT_DATATYPE_MAPPINGS
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter, ModelInferRequest, ModelInferResponse

from predictor import request, wire
from predictor.errors import InvalidRequest
from predictor.negotiation import JSON
from predictor.request import Answer, GenerateRequest, Limits
from predictor.wire import Reply

# struct's letters.
_INTEGERS = {"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"}
_FLOATS = {"FP32": "f", "FP64": "d"}
_LETTERS = _INTEGERS | _FLOATS | {"BOOL": "?"}
# What is told of each, and what is taken for it.
_INPUTS = {
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
_TAKEN = {"BYTES": ["BYTES"], "INT64": [*_INTEGERS, "BYTES"], "FP32": [*_FLOATS, *_INTEGERS, "BYTES"]}
_OUTPUTS = {"image": "BYTES", "seed": "INT64", "dropped_tokens": "INT64", "safety_flagged": "BOOL"}
_PARAMETERS = {*_INPUTS, "binary_data_output"} - {"prompt"}
_BINARY = "application/octet-stream"
_LENGTH = struct.Struct("<I")  # in bytes, before each text
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Call:
    """`outputs`: those that are wanted, each with whether as raw bytes; none named, all are wanted, raw where `binary`."""

    requests: tuple[GenerateRequest, ...]
    id: str = ""
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary: bool = False


@dataclass(frozen=True)
class _Input:
    """What is said of an input before its data. `count`: elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.shape[0]


def server_metadata() -> dict[str, Any]:
    return {"name": "kserve", "version": version("kserve"), "extensions": ["binary_tensor_data"]}


def metadata(name: str, limits: Limits, pipeline: str, *, checked: bool = False) -> dict[str, Any]:
    """What this model takes and gives, -1 standing for any number of elements. `checked`: by a safety checker."""
    inputs = {each: _INPUTS[each] for each in request.schemas(limits)}
    outputs = {each: datatype for each, datatype in _OUTPUTS.items() if checked or each != "safety_flagged"}
    return {
        "name": name,
        "versions": [],
        "platform": f"diffusers_{pipeline}",  # <project>_<format>, as the protocol wants it
        "inputs": [{"name": each, "datatype": datatype, "shape": [-1]} for each, datatype in inputs.items()],
        "outputs": [{"name": each, "datatype": datatype, "shape": [-1]} for each, datatype in outputs.items()],
    }


def schema(fields: Mapping[str, Mapping[str, object]], max_requests: int) -> dict[str, object]:
    """JSON Schema of a body without raw data. `fields`: as `request.schemas` has them."""
    size = {"type": "integer", "minimum": 1, "maximum": max_requests}
    one = {
        "name": {"enum": list(fields)},
        "datatype": {"enum": list(_TAKEN["FP32"])},
        "shape": {"type": "array", "minItems": 1, "maxItems": 2, "items": size},
        "data": {"type": "array", "minItems": 1, "maxItems": max_requests},
    }
    own = {name: each for name, each in fields.items() if name != "prompt"} | {"binary_data_output": {"type": "boolean"}}
    inputs = {"type": "array", "minItems": 1, "items": wire.closed(one, *one)}
    outputs = {"type": "array", "items": wire.closed({"name": {"enum": list(_OUTPUTS)}}, "name")}
    body = {"id": {"type": "string"}, "inputs": inputs, "parameters": wire.closed(own), "outputs": outputs}
    return wire.closed(body, "inputs")


# ---------------------------------------------------------------- REST


def decode(body: bytes, header_length: str | None = None, *, max_requests: int = 16) -> Call:
    """`header_length`: how many bytes of JSON go before raw data, as the header of the name has it. Raises InvalidRequest."""
    length = len(body) if header_length is None else _length(header_length, len(body))
    message = wire.json_object(body[:length])
    wire.only(message, {"id", "model_name", "model_version", "parameters", "inputs", "outputs"}, "body")
    shared = wire.parameters(message)
    wire.only(shared, _PARAMETERS, "parameters")
    tensors: dict[str, list[object]] = {}
    raw = memoryview(body)[length:]
    for i, item in enumerate(_objects(message, "inputs")):
        wire.only(item, {"name", "datatype", "shape", "data", "parameters"}, f"inputs[{i}]")
        described = _described(item.get("name"), item.get("datatype"), item.get("shape"), f"inputs[{i}]", max_requests)
        if described.name in tensors:
            _twice(described.name)
        tensors[described.name], raw = _elements(described, item, raw)
    if raw:
        raise InvalidRequest(f"body must end with the data of the last input: {len(raw)} bytes are left over")
    binary = _flag(shared, "binary_data_output", "parameters.") or False
    outputs = dict(_output(item, f"outputs[{i}]", binary) for i, item in enumerate(_objects(message, "outputs")))
    return Call(_requests(tensors, shared), _id(message.get("id")), outputs, binary)


def encode(call: Call, answers: Sequence[Answer], model_name: str) -> Reply:
    """JSON, or JSON with raw data after it. One answer for each request, in order. Raises InvalidRequest where an output is
    wanted that these answers do not have."""
    raw, outputs = [], []
    for name, values, binary in _told(call, answers):
        output: dict[str, object] = {"name": name, "datatype": _OUTPUTS[name], "shape": [len(values)]}
        if binary:
            raw.append(_packed(_OUTPUTS[name], values))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        elif name == "image":
            # The mark by which MLServer and its clients know such text.
            output["parameters"] = {"content_type": "base64"}
            output["data"] = [base64.b64encode(file).decode() for file in values]
        else:
            output["data"] = list(values)
        outputs.append(output)
    head = orjson.dumps({"model_name": model_name, **({"id": call.id} if call.id else {}), "outputs": outputs})
    headers = {"server-timing": wire.timing(answers)}
    if not raw:
        return Reply(head, JSON, headers)
    return Reply(b"".join([head, *raw]), _BINARY, headers | {"inference-header-content-length": str(len(head))})


def _length(text: str, most: int) -> int:
    if not _WHOLE.fullmatch(text) or not 0 <= int(text) <= most:
        name = "inference-header-content-length"
        raise InvalidRequest(f"{name} must be a whole number up to the {most} bytes of the body", field=name)
    return int(text)


def _objects(message: Mapping[str, object], name: str) -> list[dict[str, object]]:
    found = message.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InvalidRequest(f"{name} must be an array of objects", field=name)
    return found


def _elements(described: _Input, item: Mapping[str, object], raw: memoryview) -> tuple[list[object], memoryview]:
    """Of one input, and the raw data that is left for the next."""
    parameters = wire.parameters(item, f"{described.name}.")
    wire.only(parameters, {"binary_data_size"}, f"{described.name}.parameters")
    if ("binary_data_size" in parameters) == (item.get("data") is not None):
        raise InvalidRequest(f"{described.name} must have either data or parameters.binary_data_size", field=described.name)
    if item.get("data") is not None:
        return _listed(described, item["data"]), raw
    size = parameters["binary_data_size"]
    if type(size) is not int or not 0 <= size <= len(raw):
        name = f"{described.name}.parameters.binary_data_size"
        raise InvalidRequest(f"{name} must be a whole number up to the {len(raw)} bytes that are left", field=name)
    return _unpacked(described, raw[:size]), raw[size:]


def _listed(described: _Input, data: object) -> list[object]:
    if isinstance(data, list) and len(described.shape) == 2 and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    if not isinstance(data, list) or len(data) != described.count:
        came = len(data) if isinstance(data, list) else "something else"
        _miscounted(described, "an array", came)
    return data


def _output(item: Mapping[str, object], where: str, binary: bool) -> tuple[str, bool]:
    """Its name, and whether it is wanted as raw bytes: `binary` where it does not say."""
    wire.only(item, {"name", "parameters"}, where)
    name, parameters = _wanted(item.get("name"), where), wire.parameters(item, f"{where}.")
    wire.only(parameters, {"binary_data"}, f"{where}.parameters")
    own = _flag(parameters, "binary_data", f"{where}.parameters.")
    return name, binary if own is None else own


def _flag(parameters: Mapping[str, object], name: str, where: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise InvalidRequest(f"{where}{name} must be true or false", field=f"{where}{name}")
    return found


def _id(found: object) -> str:
    if found is not None and not isinstance(found, str):
        raise InvalidRequest("id must be a string", field="id")
    return found or ""


# ---------------------------------------------------------------- gRPC


def decode_grpc(message: ModelInferRequest, *, max_requests: int = 16) -> Call:
    """Raises InvalidRequest."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents must hold the data of all {len(message.inputs)} inputs, not of {len(raw)}",
            field="raw_input_contents",
        )
    tensors: dict[str, list[object]] = {}
    for i, tensor in enumerate(message.inputs):
        described = _described(tensor.name, tensor.datatype, tensor.shape, f"inputs[{i}]", max_requests)
        if described.name in tensors:
            _twice(described.name)
        # KServe's client sends binary_data_size here too, where it has no meaning.
        wire.only(tensor.parameters, {"binary_data_size"}, f"{described.name}.parameters")
        if raw and tensor.HasField("contents"):
            raise InvalidRequest(f"{described.name} must not have contents beside raw_input_contents", field=described.name)
        tensors[described.name] = _unpacked(described, memoryview(raw[i])) if raw else _contents(described, tensor.contents)
    wire.only(message.parameters, _PARAMETERS, "parameters")
    shared = {name: _chosen(parameter) for name, parameter in message.parameters.items()}
    outputs = {}
    for i, output in enumerate(message.outputs):
        wire.only(output.parameters, {"binary_data"}, f"outputs[{i}].parameters")
        outputs[_wanted(output.name, f"outputs[{i}]")] = True
    return Call(_requests(tensors, shared), message.id, outputs, binary=True)


def encode_grpc(call: Call, answers: Sequence[Answer], model_name: str) -> ModelInferResponse:
    """As `encode`, raw in any case."""
    response = ModelInferResponse(model_name=model_name, id=call.id)
    for name, values, _ in _told(call, answers):
        response.outputs.add(name=name, datatype=_OUTPUTS[name], shape=[len(values)])
        response.raw_output_contents.append(_packed(_OUTPUTS[name], values))
    return response


def _chosen(parameter: InferParameter) -> object:
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None


def _contents(described: _Input, contents: Any) -> list[object]:
    values = getattr(contents, GRPC_CONTENT_DATATYPE_MAPPINGS[described.datatype])
    if len(values) != described.count:
        _miscounted(described, f"contents of {described.datatype}", len(values))
    return [_text(described, value) if isinstance(value, bytes) else value for value in values]


# ---------------------------------------------------------------- what both share: inputs


def _described(name: object, datatype: object, shape: object, where: str, most: int) -> _Input:
    """Checks nothing of the data, and so never makes room for any."""
    if not isinstance(name, str) or name not in _INPUTS:
        _unknown(name, where, _INPUTS)
    taken = _TAKEN[_INPUTS[name]]
    if not isinstance(datatype, str) or datatype not in taken:
        raise InvalidRequest(
            f"{name}.datatype must be one of {', '.join(taken)}, not {_shown(datatype)}", field=f"{name}.datatype"
        )
    sides = tuple(shape) if isinstance(shape, Sequence) and len(shape) in (1, 2) else ()
    if not sides or any(type(side) is not int for side in sides) or not 1 <= sides[0] <= most or sides[1:] not in ((), (1,)):
        raise InvalidRequest(f"{name}.shape must be [n] or [n, 1] with n from 1 to {most}", field=f"{name}.shape")
    return _Input(name, datatype, sides)


def _unpacked(described: _Input, raw: memoryview) -> list[object]:
    """Little-endian, without padding; each text after its length."""
    if described.datatype == "BYTES":
        return _texts(described, raw)
    letters = f"<{described.count}{_LETTERS[described.datatype]}"
    if struct.calcsize(letters) != len(raw):
        raise InvalidRequest(
            f"{described.name} must have {struct.calcsize(letters)} bytes of raw data, as its shape says, not {len(raw)}",
            field=described.name,
        )
    return list(struct.unpack(letters, raw))


def _texts(described: _Input, raw: memoryview) -> list[object]:
    texts: list[object] = []
    while len(raw) >= _LENGTH.size and len(texts) < described.count:
        end = _LENGTH.size + _LENGTH.unpack_from(raw)[0]
        if end > len(raw):
            break
        texts.append(_text(described, raw[_LENGTH.size : end]))
        raw = raw[end:]
    if raw or len(texts) != described.count:
        raise InvalidRequest(
            f"{described.name} must have raw data for {described.count} texts, as its shape says, each after its length",
            field=described.name,
        )
    return texts


def _text(described: _Input, data: bytes | memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{described.name} must be UTF-8", field=described.name) from None


def _requests(tensors: Mapping[str, Sequence[object]], shared: Mapping[str, object]) -> tuple[GenerateRequest, ...]:
    """Elements of the same index make a request; whatever has but one is for all."""
    if "prompt" not in tensors:
        raise InvalidRequest("inputs must hold prompt", field="prompt")
    count = len(tensors["prompt"])
    for name, values in tensors.items():
        if len(values) not in (1, count):
            raise InvalidRequest(
                f"{name}.shape must begin with 1 or, as that of prompt, with {count}, not {len(values)}", field=f"{name}.shape"
            )
    return tuple(_request(i, tensors, shared) for i in range(count))


def _request(i: int, tensors: Mapping[str, Sequence[object]], shared: Mapping[str, object]) -> GenerateRequest:
    given = {name: value for name, value in shared.items() if name != "binary_data_output"}
    names = {name: name for name in _INPUTS}
    for name, values in tensors.items():
        own = len(values) > 1
        given[name] = values[i] if own else values[0]
        names[name] = f"{name}[{i}]" if own else name
    given = {name: value if _INPUTS[name] == "BYTES" else _number(value) for name, value in given.items()}
    return GenerateRequest(given.pop("prompt"), given, within="inputs.", names=names)


def _number(value: object) -> object:
    """What a text says where a number is meant. One that says none stays as it is, to be refused by its value."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value)
    return value


def _twice(name: str) -> NoReturn:
    raise InvalidRequest(f"inputs must hold {name} only once", field=name)


def _miscounted(described: _Input, what: str, came: object) -> NoReturn:
    raise InvalidRequest(
        f"{described.name} must have {what} of {described.count} elements, as its shape says, not {came}", field=described.name
    )


def _unknown(name: object, where: str, allowed: Mapping[str, str]) -> NoReturn:
    raise InvalidRequest(f"{where}.name must be one of {', '.join(allowed)}, not {_shown(name)}", field=f"{where}.name")


def _shown(value: object) -> str:
    return orjson.dumps(value[:40]).decode() if isinstance(value, str) else "something else"


# ---------------------------------------------------------------- what both share: outputs


def _wanted(name: object, where: str) -> str:
    if not isinstance(name, str) or name not in _OUTPUTS:
        _unknown(name, where, _OUTPUTS)
    return name


def _told(call: Call, answers: Sequence[Answer]) -> list[tuple[str, list[Any], bool]]:
    """Names, elements, and whether they go as raw bytes; one element for each picture, those of the first request first."""
    outputs: dict[str, list[Any]] = {
        "image": [image.data for answer in answers for image in answer.images],
        "seed": [seed for answer in answers for seed in answer.seeds],
        "dropped_tokens": [answer.dropped_tokens for answer in answers for _ in answer.images],
    }
    if all(answer.flagged is not None for answer in answers):
        outputs["safety_flagged"] = [flag for answer in answers for flag in answer.flagged or ()]
    elif "safety_flagged" in call.outputs:
        raise InvalidRequest("outputs must not hold safety_flagged: this model has no safety checker", field="outputs")
    wanted = call.outputs or dict.fromkeys(outputs, call.binary)
    return [(name, outputs[name], binary) for name, binary in wanted.items()]


def _packed(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
    return struct.pack(f"<{len(values)}{_LETTERS[datatype]}", *values)
