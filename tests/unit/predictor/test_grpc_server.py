"""The gRPC door on a socket of its own, without a model behind it."""

import asyncio
import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc
import pytest
from grpc import StatusCode
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from predictor.errors import (
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    GenerationFailed,
    InvalidRequest,
    NotServing,
    QueueFull,
    StartupError,
    UnknownModel,
)
from predictor.grpc_server import GrpcServer
from predictor.images import EncodedImage
from predictor.request import Answer, Limits, Params

PROMPT = "somebody's prompt"
LIMITS = Limits(
    supported=frozenset(["prompt", "num_inference_steps"]),
    width=None,
    height=None,
    multiple=8,
    min_side=8,
    max_side=64,
    max_pixels=64,
    num_inference_steps=4,
    max_steps=9,
    guidance_scale=None,
    max_guidance=9.0,
    max_images=1,
    schedulers=(),
    max_prompt_chars=99,
    max_cost=9.0,
)


class Service:
    """As the server knows it. `begun` and `ended`: its work; `go` lets it end."""

    name = "m"
    alive = True
    settings = SimpleNamespace(max_instances=2)
    limits = LIMITS

    def __init__(self, failure: Exception | None = None, *, ready: bool = True, file: bytes = b"file") -> None:
        self.ready = ready
        self.failure = failure
        self.file = file
        self.asked: list[tuple[str, str]] = []
        self.begun, self.ended, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.go.set()

    @property
    def model(self) -> SimpleNamespace:
        self.check_ready()
        return SimpleNamespace(limits=self.limits, has_safety_checker=False, snapshot=SimpleNamespace(pipeline="FluxPipeline"))

    def check_ready(self) -> None:
        if not self.ready:
            raise NotServing("model m is not ready: starting", retry_after=5)

    async def generate(self, requests, *, request_id, gone):
        self.asked += [(request.prompt, request_id) for request in requests]
        self.begun.set()
        try:
            await self.go.wait()
            if self.failure:
                raise self.failure
            images = (EncodedImage(self.file, "png", 8, 8),)
            return [Answer(Params(request.prompt, 8, 8, 4, seed=7), images, {}) for request in requests]
        finally:
            self.ended.set()


@asynccontextmanager
async def served(service: Service, *, max_send: int = -1, max_receive: int = -1):
    """A stub of a server that is up."""
    server = GrpcServer(service, port=0, max_send=max_send, max_receive=max_receive)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_http_proxy", 0)]) as channel:
            yield GRPCInferenceServiceStub(channel)
    finally:
        await server.stop(0)


def asked(name: str = "m", prompts: int = 1) -> messages.ModelInferRequest:
    contents = {"bytes_contents": [PROMPT.encode()] * prompts}
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [prompts], "contents": contents}]
    return messages.ModelInferRequest(model_name=name, id="42", inputs=inputs)


async def refused(call) -> tuple[StatusCode, str, dict[str, str]]:
    """Code, details and trailing metadata."""
    with pytest.raises(grpc.RpcError) as error:
        await call
    return error.value.code(), error.value.details(), dict(error.value.trailing_metadata())


def logged(caplog) -> list[logging.LogRecord]:
    """Without what asyncio says of grpc.aio in a process with one loop after another (github.com/grpc/grpc/issues/25364)."""
    return [record for record in caplog.records if record.name == "predictor"]


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_call_is_answered_with_its_request_id(prompts, caplog):
    async def scenario():
        service = Service()
        async with served(service) as stub:
            call = stub.ModelInfer(asked(prompts=prompts), metadata=(("x-request-id", "mine-1"),))
            metadata = dict(await call.initial_metadata())
            return service, metadata, await call

    with caplog.at_level("INFO", "predictor"):
        service, metadata, response = asyncio.run(scenario())
    assert service.asked == [(PROMPT, "mine-1")] * prompts
    assert metadata["x-request-id"] == "mine-1"
    assert (response.model_name, response.id, response.raw_output_contents[0]) == ("m", "42", b"\4\0\0\0file" * prompts)
    [line] = logged(caplog)
    assert (line.message, line.request_id, line.path, line.status) == ("request", "mine-1", "ModelInfer", 200)
    assert PROMPT not in str(vars(line))


def test_an_id_that_is_not_well_formed_is_not_taken():
    async def scenario():
        service = Service()
        async with served(service) as stub:
            await stub.ModelInfer(asked(), metadata=(("x-request-id", "not well formed"),))
            await stub.ModelInfer(asked())
        return service

    ids = [request_id for _, request_id in asyncio.run(scenario()).asked]
    assert [len(each) for each in ids] == [32, 32]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("failure", "code", "more"),
    [
        (InvalidRequest("bad"), StatusCode.INVALID_ARGUMENT, {}),
        (Forbidden("bad"), StatusCode.PERMISSION_DENIED, {}),
        (UnknownModel("bad"), StatusCode.NOT_FOUND, {}),
        (BodyTooLarge("bad"), StatusCode.RESOURCE_EXHAUSTED, {}),
        (QueueFull("bad", retry_after=7), StatusCode.RESOURCE_EXHAUSTED, {"retry-after": "7"}),
        (Cancelled("bad"), StatusCode.CANCELLED, {}),
        (NotServing("bad", retry_after=2), StatusCode.UNAVAILABLE, {"retry-after": "2"}),
    ],
)
def test_errors_become_status_codes(failure, code, more, caplog):
    async def scenario():
        async with served(Service(failure)) as stub:
            return await refused(stub.ModelInfer(asked(), metadata=(("x-request-id", "r-1"),)))

    with caplog.at_level("INFO", "predictor"):
        assert asyncio.run(scenario()) == (code, "bad", {"x-request-id": "r-1"} | more)
    assert [(line.request_id, line.status) for line in logged(caplog)] == [("r-1", failure.status)]


@pytest.mark.parametrize(
    ("failure", "code"),
    [(GenerationFailed("bad"), StatusCode.INTERNAL), (DeadlineExceeded("bad"), StatusCode.DEADLINE_EXCEEDED)],
)
def test_errors_that_need_the_log_name_the_request_id(failure, code):
    async def scenario():
        async with served(Service(failure)) as stub:
            return await refused(stub.ModelInfer(asked(), metadata=(("x-request-id", "r-1"),)))

    assert asyncio.run(scenario())[:2] == (code, "bad (request id r-1)")


def test_foreign_errors_are_opaque_and_logged_by_type_and_place(caplog):
    async def scenario():
        async with served(Service(RuntimeError(PROMPT))) as stub:
            return await refused(stub.ModelInfer(asked(), metadata=(("x-request-id", "r-2"),)))

    with caplog.at_level("INFO", "predictor"):
        assert asyncio.run(scenario())[:2] == (StatusCode.INTERNAL, "internal error (request id r-2)")
    fault, line = logged(caplog)
    assert (fault.levelname, fault.request_id, fault.error) == ("ERROR", "r-2", "RuntimeError")
    assert (line.message, line.status) == ("request", 500)
    assert PROMPT not in str([vars(record) for record in logged(caplog)])


@pytest.mark.parametrize("deadline", [None, 0.2])
def test_a_caller_who_goes_away_or_whose_deadline_passes_stops_the_work(deadline, caplog):
    async def scenario():
        service = Service()
        service.go.clear()
        async with served(service) as stub:
            call = stub.ModelInfer(asked(), timeout=deadline)
            sent = asyncio.ensure_future(call.code())
            await service.begun.wait()
            if deadline is None:
                call.cancel()
            async with asyncio.timeout(30):
                await service.ended.wait()
            return await sent

    with caplog.at_level("INFO", "predictor"):
        code = asyncio.run(scenario())
    assert code == (StatusCode.DEADLINE_EXCEEDED if deadline else StatusCode.CANCELLED)
    assert [(line.path, line.status) for line in logged(caplog)] == [("ModelInfer", 499)]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (messages.ModelInferRequest(model_name="m"), "inputs must hold prompt"),
        (asked(prompts=3), "prompt.shape must be [n] or [n, 1] with n from 1 to 2"),
    ],
)
def test_bad_messages_are_named(bad, text):
    async def scenario():
        async with served(Service()) as stub:
            return await refused(stub.ModelInfer(bad))

    assert asyncio.run(scenario())[:2] == (StatusCode.INVALID_ARGUMENT, text)


def test_an_unknown_model_is_not_found():
    async def scenario():
        async with served(Service()) as stub:
            return [
                await refused(call)
                for call in (
                    stub.ModelInfer(asked("other")),
                    stub.ModelReady(messages.ModelReadyRequest(name="other")),
                    stub.ModelMetadata(messages.ModelMetadataRequest(name="other")),
                )
            ]

    for code, details, _ in asyncio.run(scenario()):
        assert (code, details) == (StatusCode.NOT_FOUND, "no model of this name here; there is m")


def test_one_that_is_not_ready_says_so_before_it_looks_at_a_message():
    async def scenario():
        async with served(Service(ready=False)) as stub:
            return [
                await refused(stub.ModelInfer(messages.ModelInferRequest(model_name="m"))),
                await refused(stub.ModelMetadata(messages.ModelMetadataRequest(name="m"))),
            ]

    for code, details, metadata in asyncio.run(scenario()):
        assert (code, details) == (StatusCode.UNAVAILABLE, "model m is not ready: starting")
        assert metadata["retry-after"] == "5"


@pytest.mark.parametrize(("ready", "alive"), [(True, True), (False, True), (False, False)])
def test_probes_tell_the_truth_and_are_not_logged(ready, alive, caplog):
    async def scenario():
        service = Service(ready=ready)
        service.alive = alive
        async with served(service) as stub:
            live = await stub.ServerLive(messages.ServerLiveRequest())
            server = await stub.ServerReady(messages.ServerReadyRequest())
            model = await stub.ModelReady(messages.ModelReadyRequest(name="m"))
            return live.live, server.ready, model.ready

    with caplog.at_level("INFO", "predictor"):
        assert asyncio.run(scenario()) == (alive, ready, ready)
    assert not logged(caplog)


def test_metadata_of_server_and_model():
    async def scenario():
        async with served(Service()) as stub:
            server = await stub.ServerMetadata(messages.ServerMetadataRequest())
            return server, await stub.ModelMetadata(messages.ModelMetadataRequest(name="m"))

    server, model = asyncio.run(scenario())
    assert server.name == "kserve" and server.version
    assert (model.name, model.platform) == ("m", "diffusers_FluxPipeline")
    assert [each.name for each in model.inputs][:2] == ["prompt", "num_inference_steps"]
    assert [(each.name, each.datatype, list(each.shape)) for each in model.outputs] == [
        ("image", "BYTES", [-1]),
        ("seed", "INT64", [-1]),
        ("dropped_tokens", "INT64", [-1]),
    ]


def test_models_are_not_loaded_or_unloaded_by_callers():
    async def scenario():
        async with served(Service()) as stub:
            return [
                await refused(stub.RepositoryModelLoad(messages.RepositoryModelLoadRequest(model_name="m"))),
                await refused(stub.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="m"))),
            ]

    assert [code for code, _, _ in asyncio.run(scenario())] == [StatusCode.PERMISSION_DENIED] * 2


def test_messages_have_a_largest_size_both_ways(caplog):
    async def scenario():
        async with served(Service(file=bytes(2000)), max_send=1000, max_receive=1000) as stub:
            large = messages.ModelInferRequest(model_name="m" * 2000)
            return await refused(stub.ModelInfer(large)), await refused(stub.ModelInfer(asked()))

    with caplog.at_level("INFO", "predictor"):
        received, sent = asyncio.run(scenario())
    assert received[0] == sent[0] == StatusCode.RESOURCE_EXHAUSTED
    assert "and may have 1000: ask for fewer pictures, or for output_format jpeg" in sent[1]
    assert [line.status for line in logged(caplog)] == [413]


def test_stopping_lets_calls_end_and_takes_no_more():
    async def scenario():
        service = Service()
        service.go.clear()
        server = GrpcServer(service, port=0, max_send=-1, max_receive=-1)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_http_proxy", 0)]) as channel:
            stub = GRPCInferenceServiceStub(channel)
            call = stub.ModelInfer(asked())
            sent = asyncio.ensure_future(call.code())
            await service.begun.wait()
            stopping = asyncio.create_task(server.stop(60))
            await asyncio.sleep(0)
            late, _, _ = await refused(stub.ModelInfer(asked()))
            service.go.set()
            await stopping
            # Which of the two depends on whether the caller has heard of it yet.
            assert late in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)
            return await sent, len(service.asked)

    assert asyncio.run(scenario()) == (StatusCode.OK, 1)


def test_a_port_that_is_taken_is_named():
    async def scenario():
        first = GrpcServer(Service(), port=0, max_send=-1, max_receive=-1)
        await first.start()
        second = GrpcServer(Service(), port=first.port, max_send=-1, max_receive=-1)
        try:
            with pytest.raises(StartupError, match=f"^--grpc_port {first.port} cannot be opened"):
                await second.start()
        finally:
            await first.stop(0)

    asyncio.run(scenario())


def test_a_server_that_never_started_can_be_stopped():
    async def scenario():
        server = GrpcServer(Service(), port=0, max_send=-1, max_receive=-1)
        await server.stop(0)
        return server.port

    assert asyncio.run(scenario()) == 0
