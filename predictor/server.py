"""HTTP: KServe's model server with our routes in front of its own, and a border around all of them."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import MutableMapping
from functools import partial
from typing import Any

import kserve
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor import telemetry, v1
from predictor.errors import BodyTooLarge, Cancelled, ServingError, UnknownModel
from predictor.service import Service

# KServe's routes that do harm here: they load and unload models for anybody who asks, or answer with parts of the body.
_CLOSED = {
    re.compile(r"/v2/repository\b"): (403, "models are loaded and unloaded by the operator, not over HTTP"),
    re.compile(r"/v2/models/[^/]*/.*infer|/v[12]/.*:explain"): (501, "not served; ask POST /v1/models/<name>:predict"),
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Model(kserve.Model):  # type: ignore[misc]
    """What KServe's own routes (lists, metadata, v2 readiness) see of the service."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.name)
        self._service = service

    async def healthy(self) -> bool:
        return self._service.ready


def add_routes(app: FastAPI, service: Service) -> None:
    """Routes that stand before KServe's win over them, so this must come before the server starts."""

    def check_name(name: str) -> None:
        if name != service.name:
            raise UnknownModel(f"no model of this name here; there is {service.name}")

    async def predict(request: Request, name: str) -> Response:
        check_name(name)
        service.check_ready()  # before the body is looked at: a caller who must wait should know at once
        limit = service.settings.max_instances
        call = v1.decode(await request.body(), request.headers.get("accept", ""), max_instances=limit)
        answers = await service.generate(call.requests, request_id=request.state.request_id, gone=partial(_gone, request))
        reply = await asyncio.to_thread(v1.encode, call, answers, service.name)  # base64 of many pictures takes its time
        return Response(reply.body, media_type=reply.media_type, headers=dict(reply.headers))

    async def readiness(name: str) -> Response:
        check_name(name)
        service.check_ready()
        return JSONResponse({"name": name, "ready": True})

    async def liveness() -> Response:
        return JSONResponse({"alive": service.alive}, status_code=200 if service.alive else 503)

    app.add_api_route("/v1/models/{name}:predict", predict, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models/{name}", readiness, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/livez", liveness, methods=["GET", "HEAD"], response_model=None)
    app.add_middleware(Border, max_body_bytes=service.settings.max_body_bytes)


async def _gone(request: Request) -> None:
    """Returns when the caller has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Border:
    """Pure ASGI around everything: gives a request its id, counts its body, turns errors into answers, logs one line.

    Foreign exceptions end here, told to the log by type and place and to the caller as nothing but a request id: KServe's
    own last handler would send their text, and with it perhaps a prompt.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = _Exchange(scope, receive, send, self._max_body_bytes)
        try:
            closed = next((answer for path, answer in _CLOSED.items() if path.match(scope["path"])), None)
            if closed:
                await exchange.answer(*closed)
            else:
                exchange.check_length()
                await self._app(scope, exchange.receive, exchange.send)
        except ServingError as error:
            await exchange.answer(error.status, error.message, retry_after=error.retry_after)
        except Exception as error:  # noqa: BLE001
            telemetry.failure("request failed", request_id=exchange.id, **telemetry.described(error))
            await exchange.answer(500, "internal error")
        finally:
            exchange.log()


class _Exchange:
    """One request and its answer, as the border sees them go by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body_bytes = max_body_bytes
        self._came = 0
        self._begin = time.monotonic()
        self._status: int | None = None
        self._headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        given = self._headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.id

    def check_length(self) -> None:
        if int(self._headers.get("content-length", 0)) > self._max_body_bytes:
            self._refuse_body()

    async def receive(self) -> Message:
        message = await self._receive()
        self._came += len(message.get("body", b""))
        if self._came > self._max_body_bytes:
            self._refuse_body()
        return message

    def _refuse_body(self) -> None:
        raise BodyTooLarge(f"body must be at most {self._max_body_bytes} bytes")

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
        await self._send(message)

    async def answer(self, status: int, error: str, *, retry_after: int | None = None) -> None:
        """An error in the shape of KServe's own, unless the caller has gone or an answer has begun."""
        if self._status is not None:
            return
        text = f"{error} (request id {self.id})" if status >= 500 and status != 503 else error
        headers = {"retry-after": str(retry_after)} if retry_after else {}
        if status == BodyTooLarge.status:
            headers["connection"] = "close"  # or the rest of the body would be taken for the next request
        if status == Cancelled.status:
            self._status = status
        else:
            await JSONResponse({"error": text}, status, headers)(self._scope, self._receive, self.send)

    def log(self) -> None:
        """One line a request. Probes and scrapes come every few seconds and say what other lines have said: left out."""
        method, route = self._scope["method"], self._scope.get("route")
        path = getattr(route, "path", None)  # as declared: what a caller wrote there is none of the log's business
        if method in ("GET", "HEAD") and self._status in (200, 503):
            return
        milliseconds = round(1000 * (time.monotonic() - self._begin), 1)
        telemetry.event("request", request_id=self.id, method=method, path=path, status=self._status, ms=milliseconds)
