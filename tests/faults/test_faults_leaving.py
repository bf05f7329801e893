"""Callers who leave, at every stage, or send too slowly: their work stops, the ledger says so, and nobody else notices."""

import json
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter, ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from faults.faulty import SECRET, few, until
from serving import START

PATHS = ["/v1/models/model:predict", "/generate", "/openai/v1/images/generations", "/sdapi/v1/txt2img"]
STEPS = 40  # of which nobody who leaves sees the end


def body_for(path: str) -> bytes:
    own = {"prompt": SECRET, "seed": 5}
    if "predict" in path:
        return json.dumps(few(num_inference_steps=STEPS)).encode()
    return json.dumps(own | {"steps" if "sdapi" in path else "num_inference_steps": STEPS}).encode()


def head(path: str, request_id: str, length: int, accept: str = "*/*") -> str:
    return f"POST {path} HTTP/1.1\nHost: x\nAccept: {accept}\nX-Request-Id: {request_id}\nContent-Length: {length}"


def leave(caller: socket.socket, how: str) -> None:
    if how == "reset":  # as a caller does who is killed
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    caller.close()


@contextmanager
def counted(server):
    """That nothing is computed inside but pictures of three steps and two rows, so many as it is told."""
    before = server.counted("predictor_forward_rows_total")
    pictures: list[int] = []
    yield pictures
    assert server.counted("predictor_forward_rows_total") - before == sum(pictures)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", ["head", "half"])
def test_before_the_body_has_come(server, how, sent):
    body = body_for(PATHS[0])
    request_id = f"{how}-{sent}"
    with counted(server) as rows:
        caller = server.connect(head(PATHS[0], request_id, len(body)), body[:20] if sent == "half" else b"")
        leave(caller, how)
        assert server.wait_for(message="request", request_id=request_id)["status"] == 499
        assert server.state(request_id) is None  # never accepted
        assert server.predict(few()).status_code == 200
        rows.append(3 * 2)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("path", PATHS)
def test_right_after_asking(server, path, how):
    """Accepted or not yet: no step is made for it beyond the one under way."""
    body, request_id = body_for(path), f"after-{path.replace('/', '.').replace(':', '.')}-{how}"
    with server.holding("denoise"):
        leave(server.connect(head(path, request_id, len(body)), body), how)
        assert server.wait_for(message="request", request_id=request_id)["status"] == 499
        assert server.state(request_id) in (None, "cancelled")
    before = server.counted("predictor_forward_rows_total")
    assert server.predict(few()).status_code == 200
    assert server.counted("predictor_forward_rows_total") - before <= 3 * 2 + 2


@pytest.mark.parametrize("path", PATHS)
def test_while_queued_and_while_running(server, path):
    body = body_for(path)
    with counted(server) as rows:
        with server.holding("denoise") as held:
            running = server.connect(head(path, "leaves-running", len(body)), body)
            held()
            queued = server.connect(head(path, "leaves-queued", len(body)), body)
            until(lambda: server.state("leaves-queued") == "queued")
            for caller, request_id in ((queued, "leaves-queued"), (running, "leaves-running")):
                caller.close()
                until(lambda request_id=request_id: server.state(request_id) == "cancelled")
        rows.append(2)  # the forward that it was in
        assert server.predict(few()).status_code == 200
        rows.append(3 * 2)
    for request_id in ("leaves-queued", "leaves-running"):
        told = server.client.get(f"/v1/requests/{request_id}").json()
        assert (told["status"], told["step"] <= 1, told["of"]) == (499, True, STEPS)


@pytest.mark.parametrize("stage", ["text", "denoise", "decode"])
def test_while_any_stage_is_made(server, stage):
    body = json.dumps(few()).encode()
    with server.holding(stage) as held:
        caller = server.connect(head(PATHS[0], f"leaves-{stage}", len(body)), body)
        held()
        caller.close()
        until(lambda: server.state(f"leaves-{stage}") == "cancelled")
    assert server.predict(few()).status_code == 200
    assert server.counted("predictor_running") == 0


def test_while_the_picture_is_encoded(server):
    body = json.dumps(few()).encode()
    with server.holding("encode") as held:
        caller = server.connect(head(PATHS[0], "leaves-encode", len(body)), body)
        held()
        caller.close()
        until(lambda: server.state("leaves-encode") == "cancelled")


@pytest.mark.parametrize("path", [PATHS[0], "/openai/v1/images/generations"])
def test_in_the_middle_of_a_stream(server, path):
    body = body_for(path).replace(b'{"prompt"', b'{"stream": true, "prompt"' if "openai" in path else b'{"prompt"')
    with counted(server) as rows:
        with server.holding("denoise") as held:
            request_id = f"leaves-stream-{len(path)}"
            caller = server.connect(head(path, request_id, len(body), "text/event-stream"), body)
            held()
            assert caller.recv(12) == b"HTTP/1.1 200"
            caller.close()
            until(lambda: server.state(request_id) == "cancelled")
        rows.append(2)
        assert server.predict(few()).status_code == 200
        rows.append(3 * 2)


def test_while_the_answer_is_written(server):
    """More than the sockets hold, to a caller who reads none of it."""
    many = [few(num_inference_steps=1, guidance_scale=1.0, width=128, num_images_per_prompt=4)] * 16
    body = json.dumps({"instances": many}).encode()
    caller = server.connect(head(PATHS[0], "leaves-answer", len(body)), body, SO_RCVBUF=1)
    until(lambda: server.state("leaves-answer") == "done")
    assert caller.recv(12) == b"HTTP/1.1 200"
    leave(caller, "reset")
    assert server.wait_for(message="request", request_id="leaves-answer")


def test_with_another_request_on_the_connection(server):
    """Pipelined: uvicorn does not look at a connection while a request waits on it. So the first is made for nobody; the second
    is not."""
    short, long = json.dumps(few()).encode(), body_for(PATHS[0])
    with server.holding("denoise") as held:
        second = head(PATHS[0], "pipe-2", len(long)).replace("\n", "\r\n").encode() + b"\r\n\r\n" + long
        caller = server.connect(head(PATHS[0], "pipe-1", len(short)), short + second)
        held()
        assert server.state("pipe-2") is None
        caller.close()
    server.wait_for(message="request", request_id="pipe-1")
    assert server.predict(few()).status_code == 200
    until(lambda: server.counted("predictor_running") == server.counted("predictor_queue_depth") == 0)
    assert server.state("pipe-2") in (None, "cancelled")


def test_a_body_that_trickles_is_408(server):
    """A byte now and then, for as long as anybody would listen."""
    body = json.dumps(few()).encode()
    caller = server.connect(head(PATHS[0], "trickles", len(body)))
    for i in range(len(body) - 1):
        caller.sendall(body[i : i + 1])
        if select.select([caller], [], [], 0.1)[0]:
            break
    answer = b"".join(iter(lambda: caller.recv(4096), b""))  # up to the end of the connection
    assert answer.startswith(b"HTTP/1.1 408") and b"the body must come within 2 s" in answer
    assert server.state("trickles") is None


# ---------------------------------------------------------------- gRPC


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def message(steps: int = STEPS) -> ModelInferRequest:
    asked = ModelInferRequest(model_name="model", parameters={"num_inference_steps": InferParameter(int64_param=steps)})
    asked.inputs.add(name="prompt", datatype="BYTES", shape=[1]).contents.bytes_contents.append(SECRET.encode())
    return asked


def test_grpc_while_queued_and_while_running(server, stub):
    with counted(server) as rows:
        with server.holding("denoise") as held:
            running = stub.ModelInfer.future(message(), metadata=[("x-request-id", "grpc-running")])
            held()
            queued = stub.ModelInfer.future(message(), metadata=[("x-request-id", "grpc-queued")])
            until(lambda: server.state("grpc-queued") == "queued")
            for call, request_id in ((queued, "grpc-queued"), (running, "grpc-running")):
                call.cancel()
                until(lambda request_id=request_id: server.state(request_id) == "cancelled")
        rows.append(2)
        assert server.predict(few()).status_code == 200
        rows.append(3 * 2)
    assert server.wait_for(message="request", request_id="grpc-running")["status"] == 499


def test_grpc_when_the_caller_s_own_deadline_passes(server, stub):
    with server.holding("denoise") as held:
        call = stub.ModelInfer.future(message(), metadata=[("x-request-id", "grpc-deadline")], timeout=START)
        held()
        call.cancel()
        late = stub.ModelInfer.future(message(), metadata=[("x-request-id", "grpc-late")], timeout=0.2)
        with pytest.raises(grpc.RpcError) as refused:
            late.result()
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: server.state("grpc-late") in (None, "cancelled"))
        until(lambda: server.state("grpc-deadline") == "cancelled")


def test_grpc_when_the_connection_breaks(server):
    with server.holding("denoise") as held:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        call = GRPCInferenceServiceStub(channel).ModelInfer.future(message(), metadata=[("x-request-id", "grpc-broken")])
        held()
        channel.close()
        until(lambda: server.state("grpc-broken") == "cancelled")
        assert call.cancelled() or call.exception()


# ---------------------------------------------------------------- many at once


def test_a_crowd_that_leaves_at_any_time_is_forgotten(server, reference):
    def come_and_go(i: int) -> None:
        body, path = body_for(PATHS[i % 4]), PATHS[i % 4]
        caller = server.connect(head(path, f"crowd-{i}", len(body)), body[: len(body) if i % 3 else i % 20])
        if i % 2:
            select.select([caller], [], [], i % 7 / 100)
        leave(caller, "reset" if i % 5 else "close")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(come_and_go, range(120)))
    until(lambda: server.counted("predictor_running") == server.counted("predictor_queue_depth") == 0)
    assert {server.state(f"crowd-{i}") for i in range(120)} <= {None, "cancelled"}
    assert server.predict(few()).content == reference
