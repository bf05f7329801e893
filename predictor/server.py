"""HTTP: KServe's model server with our routes in front of its own. A route decodes, asks the service, encodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import kserve
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from predictor import a1111, cloudevents, generate, huggingface, openai, openapi, request, telemetry, v1, v2, wire
from predictor.answers import Previews
from predictor.border import Border
from predictor.errors import GenerationFailed, InvalidRequest, ServingError, UnknownModel, UnknownPath, WrongMethod
from predictor.negotiation import EVENTS
from predictor.request import Answer, GenerateRequest, Step
from predictor.service import Service, Told
from predictor.wire import Reply

_PREVIEWS = Previews(10, "png")  # of v1's streams, for the page
_A1111_PREVIEWS = Previews(5, "png")
# Where pictures are asked for, and what metrics call it.
_DOORS = {
    "/v1/models/{name}:predict": "v1",
    "/v2/models/{name}/infer": "v2",
    "/v2/models/{name}/versions/{version}/infer": "v2",
    "/openai/v1/images/generations": "openai",
    "/": "huggingface",
    "/generate": "generate",
    "/sdapi/v1/txt2img": "a1111",
}
_PAGE = Path(__file__).parent / "ui"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Model(kserve.Model):  # type: ignore[misc]
    """What KServe's own routes (lists, v2 readiness) see of the service."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.name)
        self._service = service

    async def healthy(self) -> bool:
        return self._service.ready


def add_routes(app: FastAPI, service: Service) -> None:
    """Routes that stand before KServe's win over them, so this must come before the server starts."""
    for add in (_add_v1, _add_v2, _add_openai, _add_pictures, _add_a1111, _add_requests):
        add(app, service)
    if service.settings.ui:
        _add_page(app)
    app.add_exception_handler(HTTPException, _unrouted)
    # FastAPI's own document knows neither bodies nor the model.
    app.openapi = lambda: _document(service)  # type: ignore[method-assign]
    shapes = {"/openai/": openai.error, "/sdapi/": a1111.error}
    app.add_middleware(Border, max_body_bytes=service.settings.max_body_bytes, shapes=shapes, doors=_DOORS)


def _add_v1(app: FastAPI, service: Service) -> None:
    async def predict(http: Request, name: str) -> Response:
        _check_name(service, name)
        service.check_ready()  # before the body is looked at: a caller who must wait should know at once
        body = await http.body()
        event = cloudevents.decode(http.headers, body)
        accept = http.headers.get("accept", "")
        call = v1.decode(event.data if event else body, accept, max_instances=service.settings.max_instances)
        if call.media_type == EVENTS:
            if event:
                raise InvalidRequest(f"a CloudEvent has one answer: Accept must not prefer {EVENTS}")
            told = service.stream(call.requests[0], request_id=_id(http), previews=_PREVIEWS)
            return await _streamed(http, told, lambda each: v1.events(each, _id(http), name))
        answers = await service.generate(call.requests, request_id=_id(http), gone=partial(_gone, http))
        reply = await asyncio.to_thread(v1.encode, call, answers, name)  # base64 of many pictures takes its time
        return _response(await asyncio.to_thread(cloudevents.encode, event, reply, name) if event else reply)

    async def schema(name: str) -> Response:
        _check_name(service, name)
        schema = v1.schema(request.schemas(service.limits))
        return JSONResponse({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema})

    async def readiness(name: str) -> Response:
        _check_name(service, name)
        service.check_ready()
        return JSONResponse({"name": name, "ready": True})

    async def liveness() -> Response:
        return JSONResponse({"alive": service.alive}, status_code=200 if service.alive else 503)

    _route(app, "POST", "/v1/models/{name}:predict", predict)
    _route(app, "GET", "/v1/models/{name}/schema", schema)
    _route(app, "GET", "/v1/models/{name}", readiness)
    _route(app, "GET", "/livez", liveness)


def _add_v2(app: FastAPI, service: Service) -> None:
    async def metadata(name: str) -> Response:
        _check_name(service, name)
        model = service.model
        return JSONResponse(v2.metadata(name, model.limits, model.snapshot.pipeline, checked=model.has_safety_checker))

    async def server_metadata() -> Response:
        return JSONResponse(v2.server_metadata())

    async def infer(http: Request, name: str) -> Response:
        _check_name(service, name)
        service.check_ready()
        length = http.headers.get("inference-header-content-length")
        call = v2.decode(await http.body(), length, max_requests=service.settings.max_instances)
        answers = await service.generate(call.requests, request_id=_id(http), gone=partial(_gone, http))
        return _response(await asyncio.to_thread(v2.encode, call, answers, name))

    _route(app, "GET", "/v2", server_metadata)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        _route(app, "GET", path, metadata)
        _route(app, "POST", path + "/infer", infer)


def _add_openai(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    def names() -> tuple[str, ...]:
        return service.name, service.settings.model_id

    async def generations(http: Request) -> Response:
        service.check_ready()
        call = openai.decode(await http.body(), names())
        created = int(time.time())
        if call.stream:
            previews = Previews(call.partial_images, full_size=True)
            told = service.stream(call.request, request_id=_id(http), previews=previews)
            return await _streamed(http, told, _openai_events(created, _id(http)))
        [answer] = await service.generate([call.request], request_id=_id(http), gone=partial(_gone, http))
        return _response(await asyncio.to_thread(openai.encode, answer, created))

    async def models() -> Response:
        return JSONResponse(openai.models(names(), started))

    async def model(name: str) -> Response:
        openai.check_model(name, names())
        return JSONResponse(openai.model(name, started))

    _route(app, "POST", "/openai/v1/images/generations", generations)
    _route(app, "GET", "/openai/v1/models", models)
    _route(app, "GET", "/openai/v1/models/{name:path}", model)


def _openai_events(created: int, request_id: str) -> Callable[[Step | Answer | ServingError], bytes]:
    previews = 0

    def encoded(told: Step | Answer | ServingError) -> bytes:
        nonlocal previews
        data = openai.events(told, previews, created, request_id)
        previews += isinstance(told, Step) and told.preview is not None
        return data

    return encoded


def _add_pictures(app: FastAPI, service: Service) -> None:
    """Doors whose answer is the picture and nothing else."""

    def door(decode: Callable[[bytes, str], GenerateRequest]) -> Callable[..., Any]:
        async def endpoint(http: Request) -> Response:
            service.check_ready()
            asked = decode(await http.body(), http.headers.get("accept", ""))
            [answer] = await service.generate([asked], request_id=_id(http), gone=partial(_gone, http))
            return _response(wire.picture(answer))

        return endpoint

    _route(app, "POST", "/generate", door(generate.decode))
    _route(app, "POST", "/", door(huggingface.decode))


def _add_a1111(app: FastAPI, service: Service) -> None:
    async def text_to_image(http: Request) -> Response:
        service.check_ready()
        body = await http.body()
        asked = a1111.decode(body, limits=service.limits, name=service.name)
        [answer] = await service.generate(
            [asked],
            request_id=_id(http),
            gone=partial(_gone, http),
            caller=_neighbour(http),
            previews=_A1111_PREVIEWS,
            inscription=partial(a1111.inscription, model_name=service.name, embed_prompt=service.settings.embed_prompt),
        )
        return _response(await asyncio.to_thread(a1111.encode, answer, body, service.name))

    async def progress(http: Request) -> Response:
        entry = service.under_way(_neighbour(http))
        if not entry:
            return JSONResponse(a1111.progress(None, 0, 0, 0.0, None))
        skip = http.query_params.get("skip_current_image", "").lower() in ("true", "1")
        preview = None if skip else await service.newest_preview(entry)
        return JSONResponse(a1111.progress(entry.state, *entry.steps, entry.remaining, preview))

    async def interrupt(http: Request) -> Response:
        await service.cancel_all(_neighbour(http))
        return JSONResponse({})

    async def set_options(http: Request) -> Response:
        a1111.check_options(await http.body(), service.name)
        return JSONResponse({})

    def told(what: Callable[[], object]) -> Callable[..., Any]:
        async def endpoint() -> Response:
            return JSONResponse(what())

        return endpoint

    def models() -> object:
        return a1111.models(service.name, service.model.snapshot.repo, service.model.snapshot.commit)

    _route(app, "POST", "/sdapi/v1/txt2img", text_to_image)
    _route(app, "GET", "/sdapi/v1/progress", progress)
    _route(app, "POST", "/sdapi/v1/interrupt", interrupt)
    _route(app, "GET", "/sdapi/v1/sd-models", told(models))
    _route(app, "GET", "/sdapi/v1/samplers", told(lambda: a1111.samplers(service.limits.schedulers)))
    _route(app, "GET", "/sdapi/v1/schedulers", told(a1111.schedulers))
    for kind in ("upscalers", "sd-vae", "loras"):  # front ends ask for each, and there is none of them
        _route(app, "GET", f"/sdapi/v1/{kind}", told(list))
    _route(app, "GET", "/sdapi/v1/options", told(lambda: a1111.options(service.name)))
    _route(app, "POST", "/sdapi/v1/options", set_options)


def _neighbour(http: Request) -> tuple[str, str]:
    """Whom a door without request ids takes for one caller: an address, and what proxies say of the one behind it. It can be
    feigned only where no proxy adds its own."""
    return http.client.host if http.client else "", http.headers.get("x-forwarded-for", "")


def _add_requests(app: FastAPI, service: Service) -> None:
    async def look(request_id: str) -> Response:
        return JSONResponse(service.find(request_id).told())

    async def cancel(request_id: str) -> Response:
        entry = await service.cancel(request_id)
        return JSONResponse(entry.told(), 200 if entry.over.is_set() else 202)

    _route(app, "GET", "/v1/requests/{request_id}", look)
    _route(app, "DELETE", "/v1/requests/{request_id}", cancel)


def _document(service: Service) -> dict[str, Any]:
    limits, settings = service.limits, service.settings
    return openapi.document(limits, service.name, (service.name, settings.model_id), settings.max_instances)


def _add_page(app: FastAPI) -> None:
    def file(name: str) -> Callable[..., Any]:
        async def endpoint() -> Response:
            return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)

        return endpoint

    _route(app, "GET", "/ui", file("index.html"))
    _route(app, "GET", "/ui/page.js", file("page.js"))
    _route(app, "GET", "/ui/page.css", file("page.css"))


# ---------------------------------------------------------------- what routes share


async def _unrouted(http: Request, error: Exception) -> Response:
    """Raised again for the border, which knows the shape that the caller expects."""
    assert isinstance(error, HTTPException)
    if error.status_code != WrongMethod.status:
        raise UnknownPath("there is nothing at this path; GET /openapi.json lists what there is")
    allow = (error.headers or {}).get("Allow", "")
    raise WrongMethod(f"this path is for {allow or 'other methods'}, not for {http.method}", allow=allow)


def _route(app: FastAPI, method: str, path: str, endpoint: Callable[..., Any]) -> None:
    methods = ["GET", "HEAD"] if method == "GET" else [method]
    app.add_api_route(path, endpoint, methods=methods, response_model=None)


def _check_name(service: Service, name: str) -> None:
    if name != service.name:
        raise UnknownModel(f"no model of this name here; there is {service.name}")


def _id(http: Request) -> str:
    return str(http.state.request_id)


async def _gone(http: Request) -> None:
    """Returns when the caller has closed the connection. The body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _response(reply: Reply) -> Response:
    return Response(reply.body, media_type=reply.media_type, headers=dict(reply.headers))


async def _streamed(http: Request, told: Told, encode: Callable[[Step | Answer | ServingError], bytes]) -> Response:
    """Raises what `told` raises at once, while there can still be an answer of another kind."""
    first = await anext(told)

    async def events() -> AsyncIterator[bytes]:
        async with aclosing(told):
            yield encode(first)
            try:
                async for each in told:
                    yield await asyncio.to_thread(encode, each)
            except ServingError as error:
                http.state.broke_off = error
                yield encode(error)
            except Exception as error:  # noqa: BLE001  the border's part, but it could only break off what has begun
                telemetry.failure("request failed", request_id=_id(http), **telemetry.described(error))
                http.state.broke_off = GenerationFailed("internal error")
                yield encode(http.state.broke_off)

    # Proxies that gather what they pass on would hold back a preview until the end.
    return StreamingResponse(events(), media_type=EVENTS, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
