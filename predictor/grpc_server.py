"""gRPC: the Open Inference Protocol's service. A method decodes, asks the service, encodes, as the routes of HTTP do.

KServe's own server would tell the log and the caller what a foreign exception says, and with it perhaps a prompt; it keeps
working for a caller who has gone, and lets anybody unload the model. Its generated stubs are used, its servicer is not.

Source: grpc_predict_v2.proto of the Open Inference Protocol; github.com/grpc/grpc/blob/master/doc/statuscodes.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from predictor import metrics, telemetry, tracing, v2, wire
from predictor.border import request_id
from predictor.errors import (
    BodyTooLarge,
    Cancelled,
    Forbidden,
    GenerationFailed,
    InvalidRequest,
    ServingError,
    StartupError,
    UnknownModel,
)
from predictor.service import Service

Context = Any  # grpc.aio.ServicerContext
T = TypeVar("T")

# By the status that HTTP has for the same.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def _code(status: int) -> grpc.StatusCode:
    return _CODES.get(status, grpc.StatusCode.INTERNAL)


class GrpcServer:
    def __init__(self, service: Service, *, port: int, max_send: int, max_receive: int) -> None:
        """`port`: 0 for any that is free. `max_send`, `max_receive`: bytes of one message; -1 for any size."""
        self.port = port
        self._service = service
        self._max_send, self._max_receive = max_send, max_receive
        self._server: Any = None

    async def start(self) -> None:
        """On the running loop, which must be the service's. Raises StartupError where the port is taken."""
        options = {
            "grpc.max_send_message_length": self._max_send,
            "grpc.max_receive_message_length": self._max_receive,
            "grpc.so_reuseport": 0,  # or a second process would silently get half of the calls
        }
        self._server = grpc.aio.server(options=tuple(options.items()), interceptors=[_Reading()])
        add_GRPCInferenceServiceServicer_to_server(_Servicer(self._service, self._max_send), self._server)
        try:
            self.port = self._server.add_insecure_port(f"[::]:{self.port}")
        except RuntimeError:
            raise StartupError(f"--grpc_port {self.port} cannot be opened: another process may have it") from None
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Takes no more calls, and cancels those that are not over after `grace` seconds."""
        if self._server:
            await self._server.stop(grace)


class _Reading(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses what is no message of the method. gRPC itself would answer UNKNOWN and log an error for each."""

    async def intercept_service(self, proceed: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await proceed(details)
        if handler is None:
            return None  # no such method
        method = details.method.rpartition("/")[2]

        async def work(message: Any, context: Context) -> Any:
            if message is None:
                return await _Exchange(method, context).answer(_no_message)
            return await handler.unary_unary(message, context)

        return handler._replace(request_deserializer=partial(_parsed, handler.request_deserializer), unary_unary=work)


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        return None


async def _no_message(_: str) -> None:
    raise InvalidRequest("the message is none of this method")


class _Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, service: Service, max_send: int) -> None:
        self._service = service
        self._max_send = max_send

    async def ServerLive(self, message: messages.ServerLiveRequest, context: Context) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=self._service.alive)

    async def ServerReady(self, message: messages.ServerReadyRequest, context: Context) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._service.ready)

    async def ModelReady(self, message: messages.ModelReadyRequest, context: Context) -> messages.ModelReadyResponse:
        async def work(_: str) -> messages.ModelReadyResponse:
            self._check_name(message.name)
            return messages.ModelReadyResponse(ready=self._service.ready)

        return await _Exchange("ModelReady", context).answer(work)

    async def ServerMetadata(
        self, message: messages.ServerMetadataRequest, context: Context
    ) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(**v2.server_metadata())

    async def ModelMetadata(self, message: messages.ModelMetadataRequest, context: Context) -> messages.ModelMetadataResponse:
        async def work(_: str) -> messages.ModelMetadataResponse:
            self._check_name(message.name)
            model = self._service.model
            told = v2.metadata(self._service.name, model.limits, model.snapshot.pipeline, checked=model.has_safety_checker)
            return messages.ModelMetadataResponse(**told)

        return await _Exchange("ModelMetadata", context).answer(work)

    async def ModelInfer(self, message: messages.ModelInferRequest, context: Context) -> messages.ModelInferResponse:
        async def work(request_id: str) -> messages.ModelInferResponse:
            self._check_name(message.model_name)
            self._service.check_ready()
            call = v2.decode_grpc(message, max_requests=self._service.settings.max_instances)
            # A caller who cancels, or whose deadline passes, cancels this task: there is nothing else to wait for.
            answers = await self._service.generate(call.requests, request_id=request_id, gone=asyncio.Event().wait)
            response = v2.encode_grpc(call, answers, self._service.name)
            self._check_size(response.ByteSize())
            return response

        return await _Exchange("ModelInfer", context).answer(work)

    async def RepositoryModelLoad(self, message: messages.RepositoryModelLoadRequest, context: Context) -> None:
        await _Exchange("RepositoryModelLoad", context).answer(_refuse)

    async def RepositoryModelUnload(self, message: messages.RepositoryModelUnloadRequest, context: Context) -> None:
        await _Exchange("RepositoryModelUnload", context).answer(_refuse)

    def _check_name(self, name: str) -> None:
        if name != self._service.name:
            raise UnknownModel(f"no model of this name here; there is {self._service.name}")

    def _check_size(self, size: int) -> None:
        """gRPC itself would fail after the log has said that all is well, and would not say what to do."""
        if 0 <= self._max_send < size:
            raise BodyTooLarge(
                f"the answer has {size} bytes and may have {self._max_send}: ask for fewer pictures, or for output_format jpeg"
            )


async def _refuse(_: str) -> None:
    raise Forbidden("models are loaded and unloaded by the operator, not over gRPC")


class _Exchange:
    """One call and its answer: gives it an id, turns errors into status codes, logs one line. Foreign exceptions end here."""

    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context
        self._begin = time.monotonic()
        metadata = context.invocation_metadata() or ()
        self._id = request_id(dict(metadata).get("x-request-id"))
        self._name = f"inference.GRPCInferenceService/{method}"
        self._trace = tracing.begin(metadata, self._name if method == "ModelInfer" else "")

    async def answer(self, work: Callable[[str], Awaitable[T]]) -> T:
        """What `work` returns, given the request id. What it raises becomes a status."""
        try:
            answer = await self._translated(work)
        except ServingError as error:
            self._log(error.status, error.reason)
            await self._abort(error)
            raise
        except asyncio.CancelledError:
            self._log(Cancelled.status)
            raise
        self._log(200)
        await self._context.send_initial_metadata((("x-request-id", self._id),))
        return answer

    async def _translated(self, work: Callable[[str], Awaitable[T]]) -> T:
        try:
            return await work(self._id)
        except ServingError:
            raise
        except Exception as error:  # noqa: BLE001
            telemetry.failure("request failed", request_id=self._id, **telemetry.described(error))
            raise GenerationFailed("internal error") from None

    async def _abort(self, error: ServingError) -> None:
        """Raises what gRPC makes of it. All metadata trails: had any gone ahead, clients would not try again where they may."""
        metadata = [("x-request-id", self._id)]
        if error.retry_after:
            metadata.append(("retry-after", str(error.retry_after)))
        await self._context.abort(_code(error.status), wire.public(error, self._id), tuple(metadata))

    def _end_span(self, status: int) -> None:
        code = "OK" if status == 200 else _code(status).name
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": self._name,
            "rpc.response.status_code": code,
            "predictor.request_id": self._id,
        }
        self._trace.end(self._name, attributes, code if status >= 500 else "")

    def _log(self, status: int, reason: str = "other") -> None:
        """One line a call, in HTTP's words. Probes come every few seconds and say what other lines have said: left out."""
        seconds = time.monotonic() - self._begin
        if self._method == "ModelInfer":
            metrics.request_over("grpc", status, seconds, reason)
            self._end_span(status)
        if self._method != "ModelInfer" and status in (200, 503):
            return
        milliseconds = round(1000 * seconds, 1)
        telemetry.event("request", request_id=self._id, method="gRPC", path=self._method, status=status, ms=milliseconds)
