"""Every operation of the published OpenAPI document, asked by Schemathesis with what the document allows and with what it does
not. Whatever comes, the answer is one that the document knows, and none is a 500."""

import re
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import given
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from fakes import LIMITS
from fuzz.hostile import SECRET, cases
from predictor.openapi import document
from serving import START, Server

CASES = 30  # of each kind for each door that makes pictures
OPERATIONS = [
    (method.upper(), path, "requestBody" in operation)
    for path, item in document(LIMITS, "model", ("model", "toy/model"), 16)["paths"].items()
    for method, operation in item.items()
]
DOORS = [(method, path) for method, path, makes in OPERATIONS if makes]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Why a body is refused that the document allows: for what no schema of single fields says, …
TOGETHER = (
    *("times a default picture", "pixels, not", "must suit", "is for output_format", "is for stream", "must be 1 with stream"),
    *("must be 1 for an answer", "not blank", "must not hold NUL", "batch_size * n_iter"),
)
# … and because it is wider there than what is taken: A1111's samplers go by many names and its other fields may say nothing, a
# size of OpenAI's is any text of that form, and of v2's tensors it does not say which has which type.
OF_A_DOOR = {
    "/sdapi/v1/txt2img": ("has no field", "sampler_name must be one of"),
    "/openai/v1/images/generations": ("size must be",),
    "/v2/models/model/infer": ("datatype", "shape", "inputs must hold", " must "),
}
PROMPTS = {"prompt", "inputs", "negative_prompt", "user"}
DIGITS = re.compile("[0-9]+")


@pytest.fixture(scope="module")
def published(small_server):
    return schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")


def honest(name: str, value: Any) -> Any:
    """With the secret in every text that may be a prompt. 20.0, which is an integer to JSON Schema, is none to us; and the
    toy's pipeline makes no sides but multiples of eight, where its document, read off its small decoder, says two."""
    if isinstance(value, dict):
        return {each: honest(each, inner) for each, inner in value.items()}
    if isinstance(value, list):
        return [honest(name, inner) for inner in value]
    if isinstance(value, str) and name in PROMPTS and value.strip():
        return SECRET + value[len(SECRET) :]
    if isinstance(value, str) and name == "size":
        return DIGITS.sub(lambda side: str(int(side[0]) // 8 * 8), value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value // 8 * 8 if type(value) is int and name in ("width", "height") else value


def ask(case: schemathesis.Case) -> Any:
    case.body = honest("", case.body)
    answer = case.call(timeout=START)
    # A schema of a stream is that of its text to OpenAPI 3.1, and that of each event to Schemathesis.
    streamed = answer.headers["content-type"][0].startswith("text/event-stream")
    case.validate_response(answer, checks=CHECKS[:-1] if streamed else CHECKS)
    assert answer.headers["x-request-id"]
    assert answer.status_code == 200 or SECRET not in answer.text
    return answer


def test_the_operations_are_those_of_the_server(published):
    found = {(each.ok().method.upper(), each.ok().path) for each in published.get_all_operations()}
    assert found == {(method, path) for method, path, _ in OPERATIONS}


@pytest.mark.parametrize(("method", "path", "makes"), OPERATIONS)
def test_what_the_document_allows_is_answered_as_it_says(server: Server, published, method, path, makes):
    statuses: Counter[int] = Counter()

    @cases(CASES)
    @given(published[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def one(case):
        answer = ask(case)
        statuses[answer.status_code] += 1
        if answer.status_code == 400:
            assert any(reason in answer.text for reason in (*TOGETHER, *OF_A_DOOR.get(path, ()))), answer.text

    one()
    assert statuses
    if makes and "v2" not in path:
        assert statuses[200] >= CASES / 5, statuses


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_what_the_document_does_not_allow_is_refused(server: Server, published, method, path):
    """But for null, which is as good as nothing."""
    statuses: Counter[int] = Counter()

    @cases(CASES)
    @given(published[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def one(case):
        statuses[ask(case).status_code] += 1

    one()
    assert statuses.keys() <= {200, 400, 404, 413} and statuses[400] >= CASES * 3 / 5, statuses
