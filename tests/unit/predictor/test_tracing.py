"""Spans of calls and of the requests in them, kept in memory; and what a collector that misbehaves can do to a process."""

import asyncio
import gc
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import weakref
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fakes import Clock, Model, params
from predictor import telemetry, tracing
from predictor.border import Border
from predictor.engine import Engine
from predictor.errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest, NotServing, ServingError
from predictor.job import Job
from predictor.policy import Policy
from predictor.settings import new_parser, read
from predictor.speed import Curve

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
IDS = {"trace_id": TRACE, "span_id": CALLER}
PROMPT = "somebody's prompt"
EPOCH = 1_700_000_000 * 10**9


@pytest.fixture
def clock(monkeypatch):
    """The engine's and the tracer's."""
    clock = Clock()

    def nanoseconds() -> int:
        return int(1e9 * clock.now)

    times = SimpleNamespace(monotonic=clock, monotonic_ns=nanoseconds, time_ns=lambda: EPOCH + nanoseconds())
    monkeypatch.setattr(tracing, "time", times)
    return clock


@pytest.fixture
def spans(monkeypatch):
    """Those that have ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter.get_finished_spans


def times(span) -> tuple[str, float, float]:
    """Name, begin and end, in seconds of the clock."""
    return span.name, (span.start_time - EPOCH) / 1e9, (span.end_time - EPOCH) / 1e9


# ---------------------------------------------------------------- which trace a call is part of


def ids(*headers: tuple[str, str]) -> dict[str, str]:
    async def scenario():
        tracing.begin(headers)
        return telemetry.trace_ids.get()

    return asyncio.run(scenario())


def test_lines_tell_the_trace_of_a_caller_who_is_part_of_one():
    assert ids(("traceparent", TRACEPARENT)) == IDS
    assert ids(("traceparent", TRACEPARENT[:-2] + "00")) == IDS
    assert ids(("traceparent", f"cc-{TRACE}-{CALLER}-01-what-we-do-not-know-yet")) == IDS
    assert ids(("x-request-id", "r")) == {}


@pytest.mark.parametrize(
    "bad",
    [
        "",
        PROMPT,
        TRACEPARENT.upper(),
        TRACEPARENT[:-1],
        TRACEPARENT + "0",
        TRACEPARENT + "-more",
        TRACEPARENT + "\n",
        TRACEPARENT.replace("-", "_"),
        "ff" + TRACEPARENT[2:],
        f"cc-{TRACE}-{CALLER}-01more",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}é-{CALLER}-01",
        "0" * 100_000,
    ],
)
def test_what_is_malformed_counts_for_nothing(bad, spans):
    assert tracing._parent([("traceparent", bad)]) is None
    assert ids(("traceparent", bad)) == {}


def test_two_parents_are_none():
    assert ids(("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)) == {}


def test_a_request_within_a_task_is_no_part_of_the_next():
    async def scenario():
        async def request(*headers):
            tracing.begin(headers)
            await asyncio.sleep(0)
            return telemetry.trace_ids.get()

        return await asyncio.gather(request(("traceparent", TRACEPARENT)), request()), telemetry.trace_ids.get()

    assert asyncio.run(scenario()) == ([IDS, {}], {})


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (["a=1,b=2"], {"a": "1", "b": "2"}),
        (["a=1", "b=2"], {"a": "1", "b": "2"}),
        (["a=1", PROMPT], {}),
        (["a=" + "1" * 511], {}),
        ([], {}),
    ],
)
def test_the_state_of_a_trace_is_passed_on_where_it_is_well_formed(sent, kept, spans):
    async def scenario():
        tracing.begin([("traceparent", TRACEPARENT), *(("tracestate", each) for each in sent)], "POST").end("POST /", {})

    asyncio.run(scenario())
    [span] = spans()
    assert dict(span.context.trace_state) == kept
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}", span.parent.is_remote) == (TRACE, CALLER, True)


def test_a_caller_who_is_not_sampled_and_an_operator_who_samples_nothing_get_no_spans(spans, monkeypatch):
    async def call(*headers):
        trace = tracing.begin(headers, "POST")
        tracing.follow([], [], "m")(None)
        trace.end("POST /", {})
        return telemetry.trace_ids.get()

    unsampled = asyncio.run(call(("traceparent", TRACEPARENT[:-2] + "00")))
    assert unsampled["trace_id"] == TRACE
    monkeypatch.setattr(tracing, "_tracer", TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("test"))
    assert len(asyncio.run(call())["trace_id"]) == 32
    assert spans() == ()


# ---------------------------------------------------------------- a call, at the border


async def echo(request: Request):
    return PlainTextResponse(await request.body())


async def fail(request: Request):
    errors = {"late": DeadlineExceeded("late"), "bad": InvalidRequest("bad"), "foreign": RuntimeError(PROMPT)}
    raise errors[request.path_params["how"]]


@pytest.fixture
def client():
    routes = [Route("/echo/{what}", echo, methods=["GET", "POST", "DELETE"]), Route("/fail/{how}", fail, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(Border, max_body_bytes=100)])
    return TestClient(app, raise_server_exceptions=False)


def test_a_call_has_the_names_of_its_route_and_none_of_the_callers(client, spans):
    client.post(f"/echo/{PROMPT}?q={PROMPT}", content=PROMPT, headers={"x-request-id": "r", "user-agent": PROMPT})
    [span] = spans()
    assert (span.name, span.kind, span.status.status_code) == ("POST /echo/{what}", SpanKind.SERVER, StatusCode.UNSET)
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/echo/{what}",
        "http.response.status_code": 200,
        "predictor.request_id": "r",
    }


@pytest.mark.parametrize(
    ("path", "status", "fault"),
    [("/fail/late", 504, "504"), ("/fail/foreign", 500, "500"), ("/fail/bad", 400, None), ("/nothing", 404, None)],
)
def test_only_what_is_the_servers_fault_is_an_error(client, spans, path, status, fault):
    client.post(path)
    [span] = spans()
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes.get("error.type") == fault
    assert span.status.status_code == (StatusCode.ERROR if fault else StatusCode.UNSET)
    assert (span.status.description, span.events) == (None, ())


def test_who_only_looks_makes_no_span(client, spans):
    client.get("/echo/x")
    client.head("/echo/x")
    client.get("/nothing")
    assert spans() == ()


def test_a_method_that_nobody_knows_is_not_told(client, spans):
    client.request("ZEBRA", "/echo/x")
    client.delete("/echo/x")
    found = [(span.name, span.attributes["http.request.method"]) for span in spans()]
    assert found == [("HTTP /echo/{what}", "_OTHER"), ("DELETE /echo/{what}", "DELETE")]


def test_lines_of_a_call_hold_the_ids_of_its_span(client, spans, lines):
    client.post("/fail/foreign", headers={"traceparent": TRACEPARENT})
    [span] = spans()
    found = [{"trace_id": line["trace_id"], "span_id": line["span_id"]} for line in lines()]
    assert [line["message"] for line in lines()] == ["request failed", "request"]
    assert found == [{"trace_id": TRACE, "span_id": f"{span.context.span_id:016x}"}] * 2


# ---------------------------------------------------------------- its requests


class Scene:
    """A call that is under way, and an engine that is stepped by hand."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.model = clock, Model()
        self.engine = Engine(self.model, Policy(Curve({1: 1.0, 2: 2.0}), row_limit=4), clock=clock)
        pipe = self.model.pipe
        pipe.text, pipe.unet.before, pipe.vae.before = self.takes(1), self.takes(2), self.takes(4)

    def takes(self, seconds: float):
        return lambda: self.wait(seconds)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def begin(self, *asked, timeout: float = 600) -> list[Job]:
        self.trace = tracing.begin([("traceparent", TRACEPARENT)], "POST")
        jobs = self.engine.submit(asked, timeout=timeout, request_id="r")
        self.over = tracing.follow(jobs, [(7, 1)] * len(jobs), "m")
        return jobs

    def run(self) -> None:
        while self.engine.open_jobs:
            self.engine.step()

    async def end(self, error: ServingError | None = None) -> None:
        self.over(error)
        self.trace.end("POST /", {})
        self.run()
        for _ in range(5):  # turns of the loop: of the futures, and of their callbacks
            await asyncio.sleep(0)


@pytest.fixture
def told(clock, spans):
    """Plays a scene and tells what came of each request in it: its own span, and its stages."""

    def told(scenario):
        asyncio.run(scenario(Scene(clock)))
        found = spans()
        [call] = [span for span in found if span.kind == SpanKind.SERVER]
        wholes = [span for span in found if span.parent.span_id == call.context.span_id]
        assert {span.context.trace_id for span in found} == {int(TRACE, 16)}
        assert not any(PROMPT in span.to_json() for span in found)
        return [(whole, [times(span) for span in found if span.parent.span_id == whole.context.span_id]) for whole in wholes]

    return told


def test_a_picture_tells_the_seconds_of_its_stages(told):
    async def scenario(scene):
        [job] = scene.begin(params(PROMPT, negative_prompt=PROMPT, num_inference_steps=3, guidance_scale=2.5))
        scene.wait(8)
        scene.run()
        scene.wait(0.25)
        job.enter("encode", scene.clock.now)
        scene.wait(0.5)
        job.enter("done", scene.clock.now)
        scene.wait(9)
        await scene.end()

    [(whole, stages)] = told(scenario)
    assert stages == [
        ("queue", 1000.0, 1008.0),
        ("text", 1008.0, 1009.0),
        ("denoise", 1009.0, 1015.0),
        ("decode", 1015.0, 1019.0),
        ("encode", 1019.25, 1019.75),
    ]
    assert times(whole) == ("generate_content m", 1000.0, 1019.75)
    assert whole.status.status_code == StatusCode.UNSET
    assert dict(whole.attributes) == {
        "predictor.request_id": "r",
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.request.model": "m",
        "gen_ai.request.choice.count": 1,
        "gen_ai.usage.input_tokens": 7,
        "predictor.width": 64,
        "predictor.height": 64,
        "predictor.num_inference_steps": 3,
        "predictor.guidance_scale": 2.5,
        "predictor.output_format": "png",
        "predictor.steps_done": 3,
        "predictor.forwards": 3,
        "predictor.mean_rows": 1.0,
    }


def test_a_failure_ends_the_stage_that_it_came_in(told):
    async def scenario(scene):
        scene.begin(params("fails late", num_inference_steps=5))
        scene.run()
        scene.wait(3)
        await scene.end(GenerationFailed(PROMPT))

    [(whole, stages)] = told(scenario)
    assert stages == [("queue", 1000.0, 1000.0), ("text", 1000.0, 1001.0), ("denoise", 1001.0, 1005.0)]
    assert (whole.status.status_code, whole.status.description, whole.events) == (StatusCode.ERROR, None, ())
    assert (whole.attributes["error.type"], whole.attributes["predictor.steps_done"]) == ("GenerationFailed", 2)
    assert times(whole)[2] == 1005.0


def test_what_is_cancelled_ends_when_the_engine_lets_it_go_and_is_no_error(told):
    async def scenario(scene):
        [job] = scene.begin(params(PROMPT, num_inference_steps=50))
        scene.engine.step()
        scene.engine.cancel(job)
        scene.over(Cancelled("the caller went away"))
        scene.wait(0.5)
        scene.over = lambda _: None
        await scene.end()

    [(whole, stages)] = told(scenario)
    assert stages == [("queue", 1000.0, 1000.0), ("text", 1000.0, 1001.0), ("denoise", 1001.0, 1003.5)]
    assert (whole.attributes["error.type"], whole.status.status_code) == ("Cancelled", StatusCode.UNSET)


def test_what_is_late_is_an_error_and_may_never_have_been_begun(told):
    async def scenario(scene):
        scene.begin(params(PROMPT), timeout=60)
        scene.wait(61)
        scene.run()
        await scene.end(DeadlineExceeded("late"))

    [(whole, stages)] = told(scenario)
    assert stages == [("queue", 1000.0, 1061.0)]
    assert (whole.attributes["error.type"], whole.status.status_code) == ("DeadlineExceeded", StatusCode.ERROR)


def test_of_a_call_that_fails_each_request_tells_its_own_end(told):
    async def scenario(scene):
        done, _ = scene.begin(params(PROMPT, num_inference_steps=1), params("fails late", num_inference_steps=9))
        while not done.future.done():
            scene.engine.step()
        scene.run()
        await scene.end(GenerationFailed("generation failed"))

    found = told(scenario)
    assert [[stage[0] for stage in stages] for _, stages in found] == [
        ["queue", "text", "denoise", "decode"],
        ["queue", "text", "denoise"],
    ]
    assert [whole.attributes["error.type"] for whole, _ in found] == ["GenerationFailed"] * 2


def test_an_encoding_that_is_broken_off_ends_then(told):
    async def scenario(scene):
        [job] = scene.begin(params(PROMPT, num_inference_steps=1))
        scene.run()
        job.enter("encode", scene.clock.now)
        scene.wait(2)
        await scene.end(NotServing("shut down", retry_after=1))

    [(whole, stages)] = told(scenario)
    assert stages[-1] == ("encode", 1007.0, 1009.0)
    assert (times(whole)[2], whole.attributes["error.type"]) == (1009.0, "NotServing")


def test_a_stage_that_comes_back_is_told_twice(told):
    async def scenario(scene):
        [job] = scene.begin(params(PROMPT))
        for stage, now in (("denoise", 1001.0), ("decode", 1003.0), ("denoise", 1004.0), ("decode", 1009.0), ("done", 1010.0)):
            job.enter(stage, now)
        job.future.set_result(None)
        scene.run = lambda: None
        await scene.end()

    [(_, stages)] = told(scenario)
    assert stages == [
        ("queue", 1000.0, 1001.0),
        ("denoise", 1001.0, 1003.0),
        ("decode", 1003.0, 1004.0),
        ("denoise", 1004.0, 1009.0),
        ("decode", 1009.0, 1010.0),
    ]


@pytest.mark.parametrize("how", ["done", "failed", "cancelled"])
def test_nothing_of_a_request_is_kept(clock, spans, how):
    async def scenario():
        scene = Scene(clock)
        [job] = scene.begin(params("fails late" if how == "failed" else PROMPT))
        found = weakref.ref(job)
        if how == "cancelled":
            scene.engine.cancel(job)
        else:
            scene.run()
        del job
        await scene.end({"failed": GenerationFailed("failed"), "cancelled": Cancelled("gone")}.get(how))
        scene.over = None
        return found()

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(scenario()) is None
    finally:
        gc.enable()
    assert spans()


def test_jobs_know_the_trace_for_the_lines_of_another_thread(clock):
    async def scenario():
        scene = Scene(clock)
        [job] = scene.begin(params())
        return job.trace

    assert asyncio.run(scenario()) == IDS


# ---------------------------------------------------------------- switching it on


MODEL = ["--model-id", "org/name"]


@pytest.mark.parametrize(
    ("argv", "environ", "url"),
    [
        ([], {}, ""),
        (["--otlp-endpoint", "http://c:4318"], {}, "http://c:4318/v1/traces"),
        (
            ["--otlp-endpoint", "https://c/otlp/"],
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d"},
            "https://c/otlp/v1/traces",
        ),
        ([], {"PREDICTOR_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d/x"}, "http://d/x"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, ""),
        (["--otlp-endpoint", "http://c"], {"OTEL_SDK_DISABLED": "true"}, ""),
        (["--otlp-endpoint", "http://c"], {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://c/v1/traces"),
        ([], {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ""),
        (
            [],
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http://c/v1/traces",
        ),
    ],
)
def test_where_traces_go(argv, environ, url):
    assert read([*MODEL, *argv], environ)[0].traces_url == url


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (["--otlp-endpoint", "collector:4317"], {}, "--otlp-endpoint must be http://host:port or https://host:port, not 'coll"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be http://host:port or https"),
        (
            [],
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, not 'grpc', or --otlp-endpoint name a port that speaks it",
        ),
    ],
)
def test_what_cannot_be_is_named(argv, environ, text, capsys):
    with pytest.raises(SystemExit) as ended:
        read([*MODEL, *argv], environ)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_a_variable_that_the_sdk_does_not_take_is_one_line_and_code_2():
    command = [sys.executable, "-m", "predictor", *MODEL, "--otlp-endpoint", "http://c"]
    done = subprocess.run(command, env={"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, capture_output=True, timeout=120, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "predictor: an OTEL_ variable is not as OpenTelemetry's own code wants it: ValueError",
    )


def test_the_operators_sampler_holds(monkeypatch):
    async def recording(*headers):
        return tracing.begin(headers, "POST")._span is not None

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    tracing.start("http://127.0.0.1:1/v1/traces", "m")
    found = asyncio.run(recording()), asyncio.run(recording(("traceparent", TRACEPARENT)))
    tracing.stop()
    assert found == (False, True)


def test_help_names_the_variables_that_hold():
    text = " ".join(new_parser().format_help().split())
    for name in ("--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER"):
        assert name in text


def test_importing_and_serving_takes_nothing_of_the_sdk():
    code = (
        "import asyncio, sys\n"
        "from predictor import __main__, border, job, tracing\n"
        "async def call():\n"
        f"    trace = tracing.begin([('traceparent', '{TRACEPARENT}'), ('tracestate', 'a=1')], 'POST')\n"
        "    tracing.follow([], [], 'm')(None)\n"
        "    trace.end('POST /', {})\n"
        "asyncio.run(call())\n"
        "tracing.stop()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- collectors that misbehave


class Slow(BaseHTTPRequestHandler):
    """Answers when told to."""

    entered, opened, gave_up = threading.Event(), threading.Event(), threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.entered.set()
        if not self.opened.wait(15):  # less than the SDK itself would wait
            self.gave_up.set()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow(monkeypatch):
    """Where it listens."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120")
    server = HTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    Slow.opened.set()
    server.shutdown()
    server.server_close()


def test_the_end_does_not_wait_for_a_collector_that_hangs(slow, monkeypatch):
    monkeypatch.setattr(tracing, "_LAST_SPANS", 0.01)

    async def call():
        tracing.begin([], "POST").end("POST /", {})

    tracing.start(slow, "m")
    asyncio.run(call())
    tracing.stop()
    assert Slow.entered.wait(60)
    assert not Slow.gave_up.is_set()
    assert not Slow.opened.is_set()


def test_stopping_what_was_never_started_is_nothing():
    tracing.stop()
    assert tracing._tracer is None


@pytest.fixture
def lines(monkeypatch):
    """What the process would log, parsed."""
    before = {name: logging.getLogger(name).handlers[:] for name in ("", "predictor", "opentelemetry")}
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    telemetry.configure()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(False)
    for name, handlers in before.items():
        logging.getLogger(name).handlers = handlers
    logging.getLogger("opentelemetry").propagate = True


def test_a_library_that_says_the_same_at_every_failure_is_heard_once_and_quotes_nothing(lines):
    theirs = logging.getLogger("opentelemetry.exporter")
    for i in range(3):
        theirs.error("code: %s, reason: %s, in %.2f", 401 + i, ValueError(PROMPT), 0.5)
    theirs.warning("all of %s", {"prompt": PROMPT})
    theirs.warning("nothing")
    try:
        raise ValueError(PROMPT)
    except ValueError:
        theirs.exception("broken: %s", PROMPT)
    theirs.info("too quiet")
    assert [line["message"] for line in lines()] == ["code: 401, reason: …, in 0.50", "all of …", "nothing", "broken: …"]
    assert lines()[-1]["error"] == "ValueError"
    assert PROMPT not in json.dumps(lines())


def test_a_minute_later_it_is_heard_again(lines, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=clock))
    for _ in range(5):
        logging.getLogger("opentelemetry").error("again")
        clock.now += 30
    assert len(lines()) == 3


def test_a_collector_that_refuses_is_heard_in_our_words(lines):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        tracing.start(f"http://{PROMPT.partition(' ')[2]}:x@127.0.0.1:{closed.getsockname()[1]}/v1/traces", "m")

        async def call():
            tracing.begin([], "POST").end("POST /", {})

        asyncio.run(call())
        tracing.stop()
    assert any("Failed to export" in line["message"] or "Transient" in line["message"] for line in lines())
    assert "prompt" not in json.dumps(lines()) and "127.0.0.1" not in json.dumps(lines())
