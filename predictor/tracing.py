"""Which trace a call is part of, for the log lines, and its spans, for a collector, where there is one:

    POST /v1/models/{name}:predict      the call at its door, under the caller's own span
    └── generate_content shapes         each request in it, from acceptance to its files or its error
        ├── queue                       each stage that it was in, as often as it was there
        ├── text
        ├── denoise
        ├── decode
        └── encode

A request's spans are made when it is over, from the times that its Job has kept: the engine's thread has no part in it. They
hold numbers, names that the operator chose, and the request id; no prompt, no address, no text of an error. Nothing of
OpenTelemetry is imported before `start`.

Sources: https://www.w3.org/TR/trace-context/; https://opentelemetry.io/docs/specs/semconv/ for http, rpc and gen_ai.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from predictor import __version__, telemetry
from predictor.errors import Cancelled, ServingError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from predictor.job import Job

Attributes = Mapping[str, str | int | float]
Over = Callable[[ServingError | None], None]

# Version, trace, parent, flags. A later version than 00 may have more to say.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE = 512  # characters that are passed on at most
_LAST_SPANS = 2.0  # seconds that the end of the process leaves for what has not been sent

_provider: TracerProvider | None = None
_tracer: Tracer | None = None


def start(url: str, service_name: str) -> None:
    """From now on calls make spans, which go to `url`, in full, as OTLP over HTTP. The OTEL_ variables say how; `service_name`
    holds where they do not name one. Raises ImportError without the packages, ValueError or RuntimeError for bad variables."""
    global _provider, _tracer
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": service_name}))
    # Not made the global one: FastAPI would take it for its own spans, with paths and queries as the caller wrote them.
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    _tracer = _provider.get_tracer("predictor", __version__)


def stop() -> None:
    """Sends what is left. Blocks for two seconds at most: a collector that does not answer must not hold up an end."""
    global _provider, _tracer
    if _provider:
        sending = threading.Thread(target=_provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS)
    _provider = _tracer = None


# ---------------------------------------------------------------- a call


class Trace:
    """A call at its door. Without a `tracer`, or where its trace is not sampled, it only has ids."""

    def __init__(self, tracer: Tracer | None, span: Span | None) -> None:
        self._tracer = tracer
        self._span = span if span and span.is_recording() else None
        self._epoch = time.time_ns() - time.monotonic_ns()  # of the clock that jobs go by

    def end(self, name: str, attributes: Attributes, fault: str = "") -> None:
        """`name`: better than what it began with. `fault`: what the protocol calls its status, where the server has failed."""
        if not self._span:
            return
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if fault:
            _fail(self._span, fault)
        self._span.end()

    def follow(self, jobs: Sequence[Job], tokens: Sequence[tuple[int, int]], model: str) -> Over:
        """To be called with their error, or None, once their call is over; they may end later, each in its own time."""
        if not self._span:
            return lambda _: None
        loop, ends = asyncio.get_running_loop(), [_End() for _ in jobs]
        for job, end in zip(jobs, ends, strict=True):
            job.future.add_done_callback(end.note)

        def over(error: ServingError | None) -> None:
            for job, end, (read, _) in zip(jobs, ends, tokens, strict=True):
                tell = partial(self._tell, job, _asked(job, read, model), end, error)
                # Not on the job's own future, which keeps its callbacks: with the job in one, pictures would stay in memory.
                asyncio.wrap_future(job.future, loop=loop).add_done_callback(tell)

        return over

    def _tell(self, job: Job, asked: Attributes, end: _End, error: ServingError | None, over: asyncio.Future[Any]) -> None:
        from opentelemetry.trace import set_span_in_context

        assert self._tracer and self._span
        failure = over.exception() or error
        ended = end.at if over.exception() else job.entered[-1][1] if job.stage == "done" else time.monotonic()
        done: dict[str, int | float] = {"predictor.steps_done": job.step, "predictor.forwards": job.forwards}
        if job.forwards:
            done["predictor.mean_rows"] = round(job.rows_shared / job.forwards, 2)
        name, context = f"generate_content {asked['gen_ai.request.model']}", set_span_in_context(self._span)
        whole = self._tracer.start_span(name, context, attributes={**asked, **done}, start_time=self._time(job.arrived))
        context = set_span_in_context(whole)
        for (stage, begin), (_, until) in pairwise([*job.entered, ("done", ended)]):
            if stage != "done":
                self._tracer.start_span(stage, context, start_time=self._time(begin)).end(self._time(until))
        if isinstance(failure, Cancelled):  # as somebody wished: no fault
            whole.set_attribute("error.type", type(failure).__name__)
        elif failure:
            _fail(whole, type(failure).__name__)
        whole.end(self._time(ended))

    def _time(self, seconds: float) -> int:
        """Nanoseconds since 1970."""
        return self._epoch + int(1e9 * seconds)


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def begin(headers: Iterable[tuple[str, Any]], name: str = "", attributes: Attributes | None = None) -> Trace:
    """What the running task, and whatever it starts, is part of from now on. `headers`: the caller's, with names in lower case;
    what they hold that is malformed counts for nothing. No `name`: this call is not worth a span."""
    parent = _parent(list(headers))
    ids = {"trace_id": parent.trace_id, "span_id": parent.span_id} if parent else {}
    span = None
    if _tracer and name:
        from opentelemetry.trace import SpanKind

        span = _tracer.start_span(name, _context(parent), SpanKind.SERVER, attributes=attributes)
        found = span.get_span_context()
        ids = {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}
    telemetry.trace_ids.set(ids)
    trace = Trace(_tracer, span)
    _current.set(trace)
    return trace


def follow(jobs: Sequence[Job], tokens: Sequence[tuple[int, int]], model: str) -> Over:
    """As `Trace.follow`, for the call that the running task is part of. `tokens`: of each prompt, read and not read."""
    return (_current.get() or Trace(None, None)).follow(jobs, tokens, model)


def _fail(span: Span, fault: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", fault)
    span.set_status(StatusCode.ERROR)


class _End:
    """When a job's future was done, as seen in the thread that ended it."""

    at = 0.0

    def note(self, _: object) -> None:
        self.at = time.monotonic()


def _asked(job: Job, tokens: int, model: str) -> Attributes:
    params = job.params
    asked: dict[str, str | int | float | None] = {
        "predictor.request_id": job.request_id,
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.request.model": model,
        "gen_ai.request.choice.count": params.num_images_per_prompt,
        "gen_ai.usage.input_tokens": tokens,
        "predictor.width": params.width,
        "predictor.height": params.height,
        "predictor.num_inference_steps": params.num_inference_steps,
        "predictor.guidance_scale": params.guidance_scale,
        "predictor.scheduler": params.scheduler,
        "predictor.output_format": params.output_format,
    }
    return {name: value for name, value in asked.items() if value is not None}


# ---------------------------------------------------------------- the caller's side of it


@dataclass(frozen=True)
class _Parent:
    """A span of the caller's. `trace_id`, `span_id`: 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str
    flags: int
    state: str


def _parent(headers: Sequence[tuple[str, Any]]) -> _Parent | None:
    found = [value for name, value in headers if name == "traceparent"]
    match = _TRACEPARENT.fullmatch(found[0]) if len(found) == 1 else None
    if not match or (match[1] == "00" and match[5]):
        return None
    state = ",".join(value for name, value in headers if name == "tracestate")
    return _Parent(match[2], match[3], int(match[4], 16), state if len(state) <= _TRACESTATE else "")


def _context(parent: _Parent | None) -> Context:
    from opentelemetry import trace
    from opentelemetry.context import Context

    if not parent:
        return Context()
    flags, state = trace.TraceFlags(parent.flags), trace.TraceState.from_header([parent.state])
    span = trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags, state)
    return trace.set_span_in_context(trace.NonRecordingSpan(span), Context())
