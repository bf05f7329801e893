"""What Prometheus may scrape on KServe's /metrics: events are counted as they happen, states are read when somebody scrapes.

No label holds a prompt, a request id or anything else that a caller chose: its values are those listed here, and what the
operator chose to serve. A request is a call at a door; it holds one or more instances, which wait and are made each on its own.

Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

DOORS = ("v1", "v2", "grpc", "openai", "huggingface", "generate", "a1111")
OUTCOMES = ("ok", "invalid", "refused", "cancelled", "deadline", "failed")
REASONS = ("queue_full", "no_time", "loading", "draining", "device", "other")  # of errors that are answered with 429 or 503
STAGES = ("text", "denoise", "decode", "generate", "encode")  # after the queue; generate where the first three cannot be seen
_OUTCOME = {429: "refused", 499: "cancelled", 503: "refused", 504: "deadline"}  # of those that their hundred does not tell

# ---------------------------------------------------------------- requests, as the border sees them

_requests = Counter("predictor_requests", "Requests for pictures that are over, by door and outcome", ["door", "outcome"])
_request_seconds = Histogram(
    "predictor_request_seconds",
    "Seconds from a request's arrival to the end of its answer, by outcome",
    ["outcome"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300),
)
_rejected = Counter("predictor_rejected", "Requests answered with 429 or 503, by reason", ["reason"])

# ---------------------------------------------------------------- their instances, as the service sees them

images = Counter("predictor_images", "Pictures made and encoded")
queue_seconds = Histogram(
    "predictor_queue_seconds",
    "Seconds from an instance's acceptance until it was begun, or given up before",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 180, 240, 300),
)
_stage_seconds = Histogram(
    "predictor_stage_seconds",
    "Seconds of a finished instance from entering to leaving a stage, what others had of the device meanwhile included",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300),
)
cancelled = Counter("predictor_cancelled", "Instances given up because their request was cancelled, by stage", ["stage"])
timeout_seconds = Gauge("predictor_timeout_seconds", "Seconds after which a request is given up: --timeout")
accepted_work_limit_seconds = Gauge(
    "predictor_accepted_work_limit_seconds", "Seconds of work that are accepted at most: --max-queue-seconds"
)

# ---------------------------------------------------------------- the engine

queue_depth = Gauge("predictor_queue_depth", "Instances accepted and not yet begun")
running = Gauge("predictor_running", "Instances begun and not yet finished")
accepted_work_seconds = Gauge("predictor_accepted_work_seconds", "Seconds of work accepted and not yet done, as estimated")
last_tick_seconds = Gauge("predictor_last_tick_seconds", "Seconds since the engine's last sign of life; 0 with nothing to do")
forwards = Counter("predictor_forwards", "Forwards of the denoiser")
forward_rows = Counter("predictor_forward_rows", "Rows in forwards of the denoiser that belonged to a request")
rows_per_forward = Histogram(
    "predictor_rows_per_forward", "Rows of requests in each forward of the denoiser", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
forward_seconds = Histogram(
    "predictor_forward_seconds",
    "Seconds of each forward of the denoiser",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
row_limit = Gauge("predictor_row_limit", "Rows of default size that share one forward at most; 0: requests take turns")
out_of_memory = Counter("predictor_out_of_memory", "Times the device had not enough memory")
device_memory = Gauge("predictor_device_memory_bytes", "Memory of the device; nothing where it is a CPU", ["kind"])

# ---------------------------------------------------------------- the process

ready = Gauge("predictor_ready", "1 while requests are accepted, else 0")
compiled = Gauge("predictor_compiled", "1 once the compiled denoiser serves (--compile), else 0")
mode = Gauge("predictor_mode", "1 for how requests are served, shared or turns, and 0 for the other", ["mode"])
start_seconds = Gauge("predictor_start_seconds", "Seconds of each phase from process start to ready", ["phase"])
model_info = Gauge(
    "predictor_model_info",
    "1, with what is served as labels, and why in this mode",
    ["model", "repo", "commit", "pipeline", "dtype", "device", "mode", "reason"],
)


def request_over(door: str, status: int, seconds: float, reason: str) -> None:
    """`door`: of DOORS. `status`: in HTTP's words, whatever the protocol. `reason`: of REASONS, where that is 429 or 503."""
    outcome = _OUTCOME.get(status) or ("ok" if status < 400 else "invalid" if status < 500 else "failed")
    _requests.labels(door, outcome).inc()
    _request_seconds.labels(outcome).observe(seconds)
    if outcome == "refused":
        _rejected.labels(reason).inc()


def made(pictures: int, seconds: Mapping[str, float]) -> None:
    """An instance, as files. `seconds`: of the queue and of each of its STAGES."""
    images.inc(pictures)
    for stage in seconds.keys() & {*STAGES}:
        _stage_seconds.labels(stage).observe(seconds[stage])


def _begin_at_nought() -> None:
    """A counter that appears with its first event hides that event from whoever asks for its increase."""
    for door in DOORS:
        for outcome in OUTCOMES:
            _requests.labels(door, outcome)
    for reason in REASONS:
        _rejected.labels(reason)
    for stage in ("queue", *STAGES):
        cancelled.labels(stage)


_begin_at_nought()
