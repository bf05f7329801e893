"""HTTP as no client library would write it, byte by byte over a socket; and texts, bodies and paths that none would send."""

import gzip
import itertools
import json
import re
import socket
import zlib
from http.client import HTTPResponse

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from fuzz.hostile import SECRET, TEXTS, cases
from serving import START, Server

HEADERS = 150  # cases of headers with any bytes in them
PATHS = 150  # cases of paths

BODY = json.dumps({"prompt": SECRET, "parameters": {"num_inference_steps": 1}}).encode()
PREDICT = b"/v1/models/model:predict"
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def request(*headers: bytes, line: bytes = b"POST %s HTTP/1.1" % PREDICT, body: bytes = BODY) -> bytes:
    return b"\r\n".join([line, b"Host: x", *headers, b"Connection: close", b"", body])


def send(server: Server, data: bytes) -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", server.port), timeout=START)
    caller.sendall(data)
    return caller


def status(server: Server, data: bytes) -> int:
    """Of the answer, which quotes no prompt unless it is a picture."""
    with send(server, data) as caller:
        answer = HTTPResponse(caller, method="HEAD" if data.startswith(b"HEAD") else "GET")
        answer.begin()
        assert answer.status == 200 or SECRET.encode() not in answer.read()
        return answer.status


# ---------------------------------------------------------------- framing

FRAMED = {
    "length": ([LENGTH], BODY, 200),
    "chunks": ([CHUNKED], IN_CHUNKS, 200),
    "chunks of one byte": ([CHUNKED], b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n", 200),
    "chunk extensions and trailers": ([CHUNKED], b"%x;a=zebra\r\n%s\r\n0\r\nzebra: zebra\r\n\r\n" % (len(BODY), BODY), 200),
    "a length too short": ([b"Content-Length: 10"], BODY, 400),
    "no length": ([], BODY, 400),
    "two lengths": ([LENGTH, b"Content-Length: 5"], BODY, 400),
    "length and chunks": ([LENGTH, CHUNKED], IN_CHUNKS, 400),
    "a negative length": ([b"Content-Length: -5"], BODY, 400),
    "a length with a sign": ([b"Content-Length: +5"], BODY, 400),
    "a length in hexadecimal": ([b"Content-Length: 0x39"], BODY, 400),
    "a length beyond 64 bits": ([b"Content-Length: 99999999999999999999999999"], BODY, 400),
    "a length in other digits": (["Content-Length: ٥".encode()], BODY, 400),
    "a length beyond the limit": ([b"Content-Length: 20001"], b"", 413),
    "chunks beyond the limit": ([CHUNKED], b"4e21\r\n" + b" " * 20001 + b"\r\n0\r\n\r\n", 413),
    "many chunks beyond the limit": ([CHUNKED], b"fff\r\n%s\r\n" % (b" " * 4095) * 6 + b"0\r\n\r\n", 413),
    "chunks twice": ([b"Transfer-Encoding: chunked, chunked"], IN_CHUNKS, 400),
    "chunks that are not last": ([b"Transfer-Encoding: chunked, identity"], IN_CHUNKS, 400),
    "a coding of its own": ([b"Transfer-Encoding: zebra"], BODY, 400),
    "a chunk of no number": ([CHUNKED], b"zebra\r\n", 400),
    "a negative chunk": ([CHUNKED], b"-1\r\n", 400),
    "a chunk beyond 64 bits": ([CHUNKED], b"f" * 17 + b"\r\n", 400),
    "no length at all": ([b"Content-Length:"], BODY, 400),
}


@pytest.mark.parametrize("how", FRAMED)
def test_bodies_in_any_frame(server, how):
    headers, body, expected = FRAMED[how]
    assert status(server, request(*headers, body=body)) == expected


BOMBS = {
    "gzip": gzip.compress(b" " * (50 << 20)),
    "deflate": zlib.compress(b" " * (50 << 20)),
    "br": b"\xff" * 9,
    "zstd": b"(\xb5/\xfd",
    "gzip, gzip": gzip.compress(gzip.compress(b" " * (50 << 20))),
}


@pytest.mark.parametrize("coding", BOMBS)
def test_bodies_that_would_grow_are_not_unpacked(server, coding):
    body = BOMBS[coding][:20000]
    headers = [b"Content-Encoding: " + coding.encode(), b"Content-Length: %d" % len(body)]
    assert status(server, request(*headers, body=body)) == 415


def test_grpc_messages_that_would_grow_are_not_unpacked(server):
    asked = ModelInferRequest(model_name="model", id=" " * (50 << 20))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.max_send_message_length", -1)]) as channel:
        for coding in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.RpcError) as refused:
                GRPCInferenceServiceStub(channel).ModelInfer(asked, compression=coding, timeout=START)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_requests_in_one_piece_are_answered_in_their_order(server):
    one = b"\r\n".join([b"POST %s HTTP/1.1" % PREDICT, b"Host: x", b"X-Request-Id: order-%d", LENGTH, b"", BODY])
    with send(server, b"".join(one % i for i in range(4)) + request(b"X-Request-Id: order-4", LENGTH)) as caller:
        answers = b"".join(iter(lambda: caller.recv(65536), b""))
    assert re.findall(rb"x-request-id: order-(\d)\r", answers) == [b"0", b"1", b"2", b"3", b"4"]
    assert answers.count(b"HTTP/1.1 200 OK") == 5


# ---------------------------------------------------------------- lines and headers

MALFORMED = {
    "another method": (b"ZEBRA / HTTP/1.1", {400, 405}),
    "a method in small letters": (b"post %s HTTP/1.1" % PREDICT, {400, 405}),
    "CONNECT": (b"CONNECT zebra:443 HTTP/1.1", {400, 404}),
    "the star": (b"OPTIONS * HTTP/1.1", {404}),
    "TRACE": (b"TRACE / HTTP/1.1", {405}),
    "an absolute address": (b"GET http://zebra/livez HTTP/1.1", {200, 404}),
    "HTTP/2": (b"PRI * HTTP/2.0", {400, 404}),
    "HTTP/3.7": (b"GET /livez HTTP/3.7", {200, 400}),
    "HTTP/1.0": (b"GET /livez HTTP/1.0", {200}),
    "no version": (b"GET /livez", {200, 400}),
    "a byte that is no text": (b"GET /\xff HTTP/1.1", {400}),
    "UTF-8": ("GET /zebra€ HTTP/1.1".encode(), {400}),
    "a NUL": (b"GET /zebra\0 HTTP/1.1", {400}),
    "a space": (b"GET /ze bra HTTP/1.1", {400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_request_lines_of_any_kind(server, what):
    line, expected = MALFORMED[what]
    assert status(server, request(line=line, body=b"")) in expected


ODD_HEADERS = {
    "no host": (b"POST %s HTTP/1.1\r\n%s\r\nConnection: close\r\n\r\n%s" % (PREDICT, LENGTH, BODY), {200, 400}),
    "two hosts": (request(b"Host: zebra", LENGTH), {200, 400}),
    "a folded line": (request(LENGTH, b"X-A: 1\r\n zebra"), {200, 400}),
    "a control character": (request(LENGTH, b"X-A: \x01zebra"), {400}),
    "a name that is no token": (request(LENGTH, b"X-\xff: zebra"), {400}),
    "a space before the colon": (request(LENGTH, b"X-A : zebra"), {400}),
    "no colon": (request(LENGTH, b"zebra"), {400}),
    "bare line feeds": (request(LENGTH).replace(b"\r\n", b"\n"), {200, 400}),
    "500 headers": (request(LENGTH, *(b"X-%d: zebra" % i for i in range(500))), {200, 400}),
    "expectations": (request(LENGTH, b"Expect: zebra"), {200, 417}),
    "Accept of 8 KB": (request(LENGTH, b"Accept: " + b"image/zebra;q=0.1," * 450), {406}),
    "Accept of many weights": (request(LENGTH, b"Accept: " + b"image/png;q=0.1," * 500), {200}),
    "a trace that is none": (request(LENGTH, b"traceparent: 00-" + b"f" * 9000, b"tracestate: " + b"z" * 5000), {200}),
    "baggage": (request(LENGTH, b"baggage: zebra=" + b"zebra" * 1000), {200}),
    "an event that is none": (request(LENGTH, b"ce-specversion: zebra"), {400}),
    "two codings": (request(LENGTH, b"Content-Encoding: identity", b"Content-Encoding: gzip"), {415}),
    "a request id of 8 KB": (request(LENGTH, b"X-Request-Id: " + b"zebra " * 1400), {200}),
    "two request ids": (request(LENGTH, b"X-Request-Id: a b", b"X-Request-Id: zebra zebra"), {200}),
    "a socket of the web": (request(b"Upgrade: websocket", line=b"GET /zebra HTTP/1.1", body=b""), {400, 404}),
    "ranges": (request(b"Range: bytes=0-0", line=b"GET /livez HTTP/1.1", body=b""), {200}),
}


@pytest.mark.parametrize("what", ODD_HEADERS)
def test_headers_that_are_malformed_or_lie(server, what):
    data, expected = ODD_HEADERS[what]
    assert status(server, data) in expected


@pytest.mark.parametrize("length", [b"-1", b"1", b"58", b"99999999999999999999999999", b"1e1", b"zebra", b"\xb2", b"+5", b""])
def test_lengths_of_json_that_lie(server, length):
    line = b"POST /v2/models/model/infer HTTP/1.1"
    assert status(server, request(LENGTH, b"Inference-Header-Content-Length: " + length, line=line)) == 400


NAMES = [
    *("Accept", "X-Request-Id", "traceparent", "tracestate", "baggage", "Content-Type", "ce-id", "ce-source", "ce-type"),
    *("Inference-Header-Content-Length", "X-Forwarded-For", "User-Agent", "Cookie", "Authorization", "Host", "If-None-Match"),
]
values = st.binary(max_size=40).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F))


def test_headers_of_any_bytes(server):
    seen = set()

    @cases(HEADERS)
    @given(st.sampled_from([PREDICT, b"/generate", b"/sdapi/v1/txt2img"]), st.sampled_from(NAMES), values)
    def one(path, name, value):
        answer = status(server, request(LENGTH, name.encode() + b": " + value, line=b"POST %s HTTP/1.1" % path))
        assert answer < 500
        seen.add(answer)

    one()
    assert {200, 400, 406} <= seen


# ---------------------------------------------------------------- paths and methods

ROUTES = [
    "v1",
    "v2",
    "models",
    "model:predict",
    "model",
    "requests",
    "openai",
    "sdapi",
    "txt2img",
    "repository",
    "health",
    "docs",
]
parts = st.sampled_from(
    [*ROUTES, *ROUTES, "..", ".", "", "%2e%2e", "%00zebra", "%ff", "%zz", "zebra:explain", "a" * 300, "*", ";zebra"]
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def test_paths_of_any_kind_by_any_method(server):
    seen = set()

    @cases(PATHS)
    @given(
        st.sampled_from(METHODS), st.lists(parts, max_size=5).map("/".join), st.sampled_from(["", "?zebra=zebra", "?%ff&&="])
    )
    def one(method, path, query):
        answer = status(server, request(line=f"{method} /{path}{query} HTTP/1.1".encode(), body=b""))
        assert answer < 500 or answer == 501
        seen.add(answer)

    one()
    assert {200, 400, 404, 405} <= seen


@pytest.mark.parametrize(
    ("method", "path"), itertools.product(METHODS, ["/v1/models/model:predict", "/v1/requests/a", "/", "/ui"])
)
def test_a_method_that_a_path_does_not_have_is_405_and_says_what_it_has(server, method, path):
    answer = server.client.request(method, path)
    assert answer.status_code in (200, 400, 404, 405)
    if answer.status_code == 405:
        assert method not in answer.headers["allow"]


# ---------------------------------------------------------------- texts

SHORT = {"num_inference_steps": 1}
ASKING = {
    "/v1/models/model:predict": lambda text, unwanted: {"prompt": text, "parameters": SHORT | {"negative_prompt": unwanted}},
    "/": lambda text, unwanted: {"inputs": text, "parameters": SHORT | {"negative_prompt": unwanted}},
    "/openai/v1/images/generations": lambda text, unwanted: {"prompt": text, "negative_prompt": unwanted, **SHORT},
    "/generate": lambda text, unwanted: {"prompt": text, "negative_prompt": unwanted, **SHORT},
    "/sdapi/v1/txt2img": lambda text, unwanted: {"prompt": text, "negative_prompt": unwanted, "steps": 1},
}


@pytest.mark.parametrize("path", ASKING)
def test_texts_of_any_kind(server, path):
    """As prompt or as negative prompt, escaped or not: they are read as they are, or refused."""
    seen = set()
    for i, text in enumerate(TEXTS):
        asked = ASKING[path](*((SECRET + text, SECRET) if i % 2 else (SECRET, SECRET + text)))
        for escaped in (True, False):
            body = json.dumps(asked, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
            answer = server.client.post(path, content=body)
            assert answer.status_code in (200, 400), answer.text
            assert answer.status_code == 200 or SECRET not in answer.text
            seen.add(answer.status_code)
    assert seen == {200, 400}
