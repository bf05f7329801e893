"""The predictor as a process, and a collector that hears what it sends: spans agree with what the callers were told."""

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import openai
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving import START, Server, free_port

SECRET = "zebra"  # in every prompt: nothing that is sent may hold it
STAGES = ["queue", "text", "denoise", "decode", "encode"]
CALLER = "00f067aa0ba902b7"  # a span
LONG = {"prompt": SECRET, "parameters": {"num_inference_steps": 1000, "scheduler": "HeunDiscreteScheduler"}}


class Collector:
    """OTLP over HTTP, on a port of its own."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bytes = b""
        self.paths: set[str] = set()
        self.scopes: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.services: set[str] = set()
        self._news = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                collector.take(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        with self._news:
            self.paths.add(path)
            self.headers.append(headers)
            self.bytes += body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {each.key: each.value.string_value for each in resource.resource.attributes}
                self.services.add(about["service.name"])
                for scope in resource.scope_spans:
                    self.scopes.add(scope.scope.name)
                    self.spans += scope.spans
            self._news.notify_all()

    def trace(self, request_id: str, spans: int) -> list[Span]:
        """All of the trace that this request is in, once there are so many, in the order in which they began."""

        def found() -> list[Span]:
            traces = {span.trace_id for span in self.spans if told(span).get("predictor.request_id") == request_id}
            return [span for span in self.spans if span.trace_id in traces]

        with self._news:
            assert self._news.wait_for(lambda: len(found()) >= spans, timeout=START), [span.name for span in found()]
            return sorted(found(), key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano))


def told(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def of(span: Span, spans: list[Span]) -> list[Span]:
    """Its children."""
    return [each for each in spans if each.parent_span_id == span.span_id]


def milliseconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6


def timing(header: str) -> dict[str, float]:
    return {name: float(rest.removeprefix("dur=")) for name, rest in (part.split(";") for part in header.split(", "))}


def few(**parameters: object) -> dict:
    return {"prompt": SECRET, "parameters": {"num_inference_steps": 3} | parameters}


def trace_id(request_id: str) -> str:
    return request_id.encode().hex().zfill(32)


def asking(request_id: str, flags: str = "01") -> dict[str, str]:
    """Headers of a caller who is part of a trace."""
    return {"x-request-id": request_id, "traceparent": f"00-{trace_id(request_id)}-{CALLER}-{flags}"}


def arguments(volume, *more: str) -> list[str]:
    roomy = ["--max-steps", "5000", "--max-cost", "1000"]
    return ["--model-id", "toy/model", "--root", str(volume), "--device", "cpu", *roomy, *more]


def check_generation(span: Span, spans: list[Span], stages: list[str] = STAGES) -> None:
    """One stage after the other, from its first moment to its last."""
    parts = of(span, spans)
    assert [part.name for part in parts] == stages
    assert parts[0].start_time_unix_nano == span.start_time_unix_nano
    assert parts[-1].end_time_unix_nano == span.end_time_unix_nano
    for before, after in zip(parts, parts[1:], strict=False):
        assert before.start_time_unix_nano <= before.end_time_unix_nano <= after.start_time_unix_nano
        assert before.end_time_unix_nano == after.start_time_unix_nano or after.name == "encode"


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector
        assert collector.spans
        assert SECRET.encode() not in collector.bytes
        assert b"127.0.0.1" not in collector.bytes
        assert (collector.paths, collector.scopes, collector.services) == ({"/v1/traces"}, {"predictor"}, {"toys"})


@pytest.fixture(scope="module")
def server(toy_volume, collector):
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url + "/",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=paint",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_SERVICE_NAME": "toys",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",  # somebody's, for all pods: it must not make a second set of spans
    }
    with Server(arguments(toy_volume), environ=environ) as running:
        yield running.wait_until_ready()
        assert SECRET not in running.text


def test_a_picture_is_a_trace_that_agrees_with_its_answer(server, collector):
    body = few(width=24, negative_prompt=f"no {SECRET}", scheduler="EulerDiscreteScheduler", seed=7)
    answer = server.predict(body, headers=asking("one") | {"tracestate": "vendor=a,other=b"})
    assert answer.status_code == 200
    spans = collector.trace("one", 7)
    call, generation, *parts = spans
    assert (call.name, call.kind) == ("POST /v1/models/{name}:predict", Span.SPAN_KIND_SERVER)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (trace_id("one"), CALLER)
    assert call.trace_state == "vendor=a,other=b"
    assert told(call) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}:predict",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "predictor.request_id": "one",
    }
    assert generation.name == "generate_content model"
    assert of(call, spans) == [generation]
    assert told(generation) == {
        "predictor.request_id": "one",
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.request.model": "model",
        "gen_ai.request.choice.count": 1,
        "gen_ai.usage.input_tokens": len(SECRET) + 2,
        "predictor.width": 24,
        "predictor.height": 32,
        "predictor.num_inference_steps": 3,
        "predictor.guidance_scale": 7.5,
        "predictor.scheduler": "EulerDiscreteScheduler",
        "predictor.output_format": "png",
        "predictor.steps_done": 3,
        "predictor.forwards": 3,
        "predictor.mean_rows": 2.0,  # alone, and guided
    }
    check_generation(generation, spans)
    assert call.start_time_unix_nano <= generation.start_time_unix_nano
    assert generation.end_time_unix_nano <= call.end_time_unix_nano
    heard = timing(answer.headers["server-timing"])
    for part in parts[:4]:
        assert milliseconds(part) == pytest.approx(heard[part.name], abs=0.051)
    assert milliseconds(parts[4]) >= heard["encode"] - 0.051
    assert {span.status.code for span in spans} == {Status.STATUS_CODE_UNSET}
    line = server.wait_for(request_id="one")
    assert (line["trace_id"], line["span_id"]) == (trace_id("one"), call.span_id.hex())
    assert collector.headers[-1]["x-tenant"] == "paint"


def test_every_instance_has_its_own_spans(server, collector):
    body = {"instances": [few(seed=1), few(seed=2, num_images_per_prompt=2)]}
    assert server.predict(body, headers={"x-request-id": "two"}).status_code == 200
    spans = collector.trace("two", 13)
    assert len(spans) == 13
    assert not spans[0].parent_span_id
    generations = of(spans[0], spans)
    assert sorted(told(each)["gen_ai.request.choice.count"] for each in generations) == [1, 2]
    for generation in generations:
        check_generation(generation, spans)
    assert server.wait_for(request_id="two")["trace_id"] == spans[0].trace_id.hex()


def test_a_stream_is_one_call_too(server, collector):
    client = openai.OpenAI(base_url=server.url + "/openai/v1", api_key="none", max_retries=0)
    events = client.images.generate(
        prompt=SECRET, stream=True, partial_images=1, extra_body={"num_inference_steps": 3}, extra_headers={"x-request-id": "s"}
    )
    assert [event.type for event in events][-1] == "image_generation.completed"
    spans = collector.trace("s", 7)
    assert spans[0].name == "POST /openai/v1/images/generations"
    [generation] = of(spans[0], spans)
    check_generation(generation, spans)


def test_grpc_has_its_own_words(server, collector):
    contents = {"bytes_contents": [SECRET.encode()]}
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "contents": contents}]
    parameters = {"num_inference_steps": messages.InferParameter(int64_param=3)}
    asked = messages.ModelInferRequest(model_name="model", inputs=inputs, parameters=parameters)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.enable_http_proxy", 0)]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelReady(messages.ModelReadyRequest(name="model"), metadata=tuple(asking("probe").items()))
        stub.ModelInfer(asked, metadata=tuple(asking("rpc").items()))
        asked.model_name = "other"
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(asked, metadata=(("x-request-id", "rpc-refused"),))
    spans = collector.trace("rpc", 7)
    call = spans[0]
    assert (call.name, call.kind) == ("inference.GRPCInferenceService/ModelInfer", Span.SPAN_KIND_SERVER)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (trace_id("rpc"), CALLER)
    assert told(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "predictor.request_id": "rpc",
    }
    [generation] = of(call, spans)
    check_generation(generation, spans)
    line = server.wait_for(request_id="rpc")
    assert (line["trace_id"], line["span_id"]) == (trace_id("rpc"), call.span_id.hex())
    [refused] = collector.trace("rpc-refused", 1)
    assert told(refused)["rpc.response.status_code"] == "NOT_FOUND"
    assert (refused.status.code, refused.parent_span_id) == (Status.STATUS_CODE_UNSET, b"")
    assert "probe" not in [told(span).get("predictor.request_id") for span in collector.spans]


def test_what_is_cancelled_ends_where_it_stood(server, collector):
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(server.predict, LONG, headers={"x-request-id": "cancelled"})
        step = server.wait_until_running("cancelled")["step"]
        assert server.client.delete("/v1/requests/cancelled").status_code in (200, 202)
        assert work.result().status_code == 499
    spans = collector.trace("cancelled", 5)
    call, generation = spans[:2]
    check_generation(generation, spans, ["queue", "text", "denoise"])
    assert told(call)["http.response.status_code"] == 499
    assert told(generation)["error.type"] == "Cancelled"
    assert step <= told(generation)["predictor.steps_done"] < 1999
    assert {span.status.code for span in spans} == {Status.STATUS_CODE_UNSET}


def test_what_is_refused_is_a_call_and_nothing_more(server, collector):
    assert server.predict(few(width=33), headers={"x-request-id": "refused"}).status_code == 400
    [call] = collector.trace("refused", 1)
    assert told(call)["http.response.status_code"] == 400
    assert call.status.code == Status.STATUS_CODE_UNSET
    server.client.post(f"/{SECRET}", headers={"x-request-id": "nowhere"})
    [call] = collector.trace("nowhere", 1)
    assert (call.name, told(call)["http.response.status_code"]) == ("POST", 404)


def test_who_only_looks_and_who_is_not_sampled_leaves_no_span(server, collector):
    for path in ("/v1/models/model", "/metrics", "/livez", "/v1/requests/one", "/nowhere"):
        server.client.get(path, headers=asking("looking"))
    assert server.predict(few(), headers=asking("unsampled", flags="00")).status_code == 200
    line = server.wait_for(request_id="unsampled")
    assert line["trace_id"] == trace_id("unsampled")
    assert server.predict(few(), headers={"x-request-id": "after"}).status_code == 200
    collector.trace("after", 7)  # what was sent before it has arrived
    assert not {"looking", "unsampled"} & {told(span).get("predictor.request_id") for span in collector.spans}


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": SECRET},
        {"traceparent": "é" * 55},
        {"traceparent": f"00-{'0' * 32}-{CALLER}-01", "tracestate": SECRET},
        {"traceparent": f"ff-{'1' * 32}-{CALLER}-01", "tracestate": SECRET * 1000},
    ],
)
def test_a_malformed_context_is_as_good_as_none(server, collector, headers):
    request_id = f"malformed-{headers['traceparent'][:2].encode().hex()}"
    sent = {key: value.encode("latin-1") for key, value in headers.items()} | {"x-request-id": request_id.encode()}
    assert server.predict(few(), headers=sent).status_code == 200
    assert collector.trace(request_id, 7)[0].parent_span_id == b""


def test_of_a_malformed_state_nothing_is_kept_and_nothing_logged(server, collector):
    headers = asking("stateful") | {"tracestate": f"vendor=a,{SECRET}"}
    assert server.predict(few(), headers=headers).status_code == 200
    call = collector.trace("stateful", 7)[0]
    assert (call.parent_span_id.hex(), call.trace_state) == (CALLER, "")


def test_what_is_left_is_sent_before_the_process_ends(toy_volume):
    environ = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "PREDICTOR_OTLP_ENDPOINT": "http://localhost:1"}
    with Collector() as own, Server(arguments(toy_volume, "--otlp-endpoint", own.url), environ=environ) as server:
        server.wait_until_ready()
        assert server.predict(few(), headers={"x-request-id": "last"}).status_code == 200
        assert own.spans == []
        server.terminate()
        assert server.process.wait(60) == 0
        assert len(own.trace("last", 7)) == 7
        assert own.services == {"model"}


def test_a_collector_that_is_away_costs_no_request(toy_volume):
    environ = {"OTEL_BSP_SCHEDULE_DELAY": "1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    away = f"http://user:{SECRET}@127.0.0.1:{free_port()}"
    with Server(arguments(toy_volume, "--otlp-endpoint", away), environ=environ) as server:
        server.wait_until_ready()
        for i in range(8):
            assert server.predict(few(), headers={"x-request-id": f"r{i}"}).status_code == 200
        line = server.wait_for(message="Failed to export … batch due to timeout, max retries or shutdown.")
        assert line["level"] == "error"
        server.terminate()
        assert server.process.wait(60) == 0
        theirs = [line["message"] for line in server.log if line["logger"].startswith("opentelemetry")]
        assert len(theirs) == len(set(theirs))  # once a minute, whatever they say
        assert all(line.startswith("{") for line in server.text.splitlines() if "raceback" in line)
        assert SECRET not in server.text


def test_without_a_collector_nothing_of_it_is_imported_and_lines_tell_the_trace_all_the_same(toy_volume):
    code = (
        "import json, os, sys\n"
        "from predictor.__main__ import main\n"
        "code = main()\n"
        "found = [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]\n"
        "print(json.dumps({'message': 'imported', 'found': found}), file=sys.stderr)\n"
        "os._exit(code)"
    )
    environ = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1"}
    environ |= {"OTEL_TRACES_EXPORTER": "none"}
    with Server(arguments(toy_volume), program=("-c", code), environ=environ) as server:
        server.wait_until_ready()
        assert server.predict(few(), headers=asking("off")).status_code == 200
        assert server.predict(few(), headers={"x-request-id": "none"}).status_code == 200
        line = server.wait_for(request_id="off")
        assert (line["trace_id"], line["span_id"]) == (trace_id("off"), CALLER)
        assert "trace_id" not in server.wait_for(request_id="none")
        server.terminate()
        assert server.wait_for(message="imported")["found"] == []
        assert server.process.wait(60) == 0


def test_a_missing_package_is_named():
    code = "import sys; sys.modules['opentelemetry.sdk'] = None; from predictor.__main__ import main; main()"
    asked = ["--model-id", "a/b", "--otlp-endpoint", "http://collector:4318"]
    with Server(asked, program=("-c", code)) as server:
        assert server.process.wait(120) == 2
    assert "pip install 'kserve-text-to-image[tracing]'" in server.text
