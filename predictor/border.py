"""ASGI around everything: gives a request its id, counts its body, turns errors into answers, logs one line and counts it."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor import metrics, telemetry, tracing, wire
from predictor.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Cancelled,
    EncodedBody,
    Forbidden,
    GenerationFailed,
    NotOffered,
    ServingError,
)

# KServe's routes that do harm here: they load and unload models for anybody who asks, or answer with parts of the body.
_CLOSED = {
    re.compile(r"/v2/repository\b"): Forbidden("models are loaded and unloaded by the operator, not over HTTP"),
    re.compile(r"/v[12]/.*:explain"): NotOffered("not served; ask POST /v1/models/<name>:predict"),
}
_UPLOAD = 30.0  # seconds that a body may take: slots are for work, not for waiting
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOKING = ("GET", "HEAD")  # probes, scrapes, the page, those who follow a request: often, and never for long
_METHODS = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")

# The body that a protocol has for an error, and a request id to name in it.
ErrorShape = Callable[[ServingError, str], Mapping[str, object]]


def request_id(given: str | None) -> str:
    """The caller's own, where it is well-formed."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class Border:
    """Foreign exceptions end here, told to the log by type and place and to the caller as nothing but a request id: KServe's
    own last handler would send their text, and with it perhaps a prompt."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        shapes: Mapping[str, ErrorShape] | None = None,
        doors: Mapping[str, str] | None = None,
    ) -> None:
        """`shapes`: of errors, by the beginning of the path; elsewhere KServe's. `doors`: where pictures are asked for, with
        POST: the path as declared, and what metrics call it."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._shapes = shapes or {}
        self._doors = {compile_path(path)[0]: door for path, door in (doors or {}).items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        shape = next((shape for path, shape in self._shapes.items() if scope["path"].startswith(path)), wire.error)
        exchange = _Exchange(scope, receive, send, self._max_body_bytes, shape)
        try:
            for path, refusal in _CLOSED.items():
                if path.match(scope["path"]):
                    raise refusal.with_traceback(None)
            exchange.check_headers()
            await self._app(scope, exchange.receive, exchange.send)
        except ServingError as error:
            await exchange.answer(error)
        except ClientDisconnect:  # before its body had come
            await exchange.answer(Cancelled("the caller went away"))
        except Exception as error:  # noqa: BLE001
            telemetry.failure("request failed", request_id=exchange.id, **telemetry.described(error))
            await exchange.answer(GenerationFailed("internal error"))
        finally:
            exchange.log()
            exchange.count(self._door(scope))
            exchange.end_span()

    def _door(self, scope: Scope) -> str | None:
        """Found by the path: what is refused before it gets to a route has come to a door all the same."""
        if scope["method"] != "POST":
            return None
        return next((door for path, door in self._doors.items() if path.match(scope["path"])), None)


class _Exchange:
    """One request and its answer, as the border sees them go by."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int, shape: ErrorShape) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body_bytes = max_body_bytes
        self._shape = shape
        self._came = 0
        self._begin = time.monotonic()
        self._patience: float | None = asyncio.get_running_loop().time() + _UPLOAD
        self._status: int | None = None
        self._whole = False  # the answer's last part has been sent
        self._error: ServingError | None = None
        headers = [(key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in scope["headers"]]
        self._headers = dict(headers)
        self.id = request_id(self._headers.get("x-request-id"))
        self._trace = tracing.begin(headers, "" if scope["method"] in _LOOKING else self._method)
        scope.setdefault("state", {})["request_id"] = self.id

    def check_headers(self) -> None:
        encoding = self._headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise EncodedBody("the body must not be compressed: leave out content-encoding")
        if int(self._headers.get("content-length", 0)) > self._max_body_bytes:
            self._refuse_body()

    async def receive(self) -> Message:
        try:
            async with asyncio.timeout_at(self._patience):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(f"the body must come within {_UPLOAD:g} s") from None
        if message["type"] == "http.request" and not message.get("more_body"):
            self._patience = None  # what comes next is the caller's leave, and takes as long as it takes
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
        elif not message.get("more_body"):
            self._whole = True
        await self._send(message)

    async def answer(self, error: ServingError) -> None:
        """In the shape of the caller's protocol, unless an answer has begun. Where the caller has gone the server drops it."""
        self._error = error
        if self._status is not None:
            return
        headers = error.headers
        if isinstance(error, BodyTooLarge | BodyTooSlow | EncodedBody):
            headers["connection"] = "close"  # or the rest of the body would be taken for the next request
        await JSONResponse(self._shape(error, self.id), error.status, headers)(self._scope, self._receive, self.send)

    @property
    def _ended(self) -> ServingError | None:
        """What it ended with in the place of a whole answer. A stream has begun with 200 by then: whoever makes it puts what
        broke it off into the request's state, and one that was not sent to its end has no reader any more."""
        broke_off: ServingError | None = self._scope["state"].get("broke_off")
        return self._error or broke_off or (None if self._whole else Cancelled("the caller went away"))

    def count(self, door: str | None) -> None:
        if door:
            ended = self._ended
            status, reason = (ended.status, ended.reason) if ended else (self._status or 500, "other")
            metrics.request_over(door, status, time.monotonic() - self._begin, reason)

    def log(self) -> None:
        """One line a request. Probes and scrapes come every few seconds and say what other lines have said: left out."""
        status = self._ended.status if self._ended else self._status
        method, route = self._scope["method"], self._scope.get("route")
        path = getattr(route, "path", None)  # as declared: what a caller wrote there is none of the log's business
        if method in _LOOKING and status in (200, 503):
            return
        milliseconds = round(1000 * (time.monotonic() - self._begin), 1)
        telemetry.event("request", request_id=self.id, method=method, path=path, status=status, ms=milliseconds)

    @property
    def _method(self) -> str:
        """In OpenTelemetry's words: callers can write anything there."""
        return self._scope["method"] if self._scope["method"] in _METHODS else "_OTHER"

    def end_span(self) -> None:
        ended, route = self._ended, getattr(self._scope.get("route"), "path", "")
        status = ended.status if ended else self._status or 499
        attributes = {
            "http.request.method": self._method,
            "url.scheme": self._scope.get("scheme", "http"),
            "predictor.request_id": self.id,
        }
        attributes |= {"http.route": route} if route else {}
        attributes |= {"http.response.status_code": self._status} if self._status else {}
        name = "HTTP" if self._method == "_OTHER" else self._method
        self._trace.end(f"{name} {route}".rstrip(), attributes, str(status) if status >= 500 else "")
