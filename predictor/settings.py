"""Everything an operator can set, from flags and environment, in one frozen value. No other module reads either.

A flag wins over its environment variable (--max-rows, PREDICTOR_MAX_ROWS), which wins over the default. What is unknown
or does not parse ends the process with exit code 2 and one line that names it and says what is allowed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_PREFIX = "PREDICTOR_"
# Kubernetes describes a Service named "predictor" to its neighbours in variables of these names.
_OTEL_ENDPOINT, _OTEL_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_SERVICE_LINK = re.compile(_PREFIX + r"(SERVICE_|PORT)")


# ---------------------------------------------------------------- how a text becomes a value; the error says what is allowed


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"a whole number of at least {least}")
        return int(text)

    return parse


def _number(least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"a number of at least {least:g}")
        return value

    return parse


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _matching(pattern: str, allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(allowed)
        return text

    return parse


_NAME = r"(?!\.+(/|$))[\w.-]+"
_URL = r"https?://[^/\s]\S*"


def _option(default: Any, parse: Callable[[str], Any], text: str) -> Any:
    return dataclasses.field(default=default, metadata={"parse": parse, "help": text})


@dataclass(frozen=True)
class Settings:
    """One field, one flag. A default of None is taken from the model once it is known."""

    model_id: str = _option("", _matching(f"{_NAME}/{_NAME}", "org/name"), "model to serve, as org/name below the root")
    root: Path = _option(Path("/mnt/models"), Path, "the volume that the downloader filled")
    revision: str = _option("main", _matching(f"{_NAME}(/{_NAME})*", "a ref or commit"), "ref or 40-digit commit to serve")
    device: str = _option(
        "auto",
        _matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N"),
        "auto, cpu, cuda or cuda:N; auto takes CUDA when there is a device",
    )
    dtype: str = _option(
        "auto",
        _matching("auto|float32|bfloat16|float16", "auto, float32, bfloat16 or float16"),
        "auto, float32, bfloat16 or float16; auto is float32 on a CPU, and on CUDA bfloat16, or float16 for fp16 weights",
    )

    max_rows: int | None = _option(
        None,
        _whole(1),
        "rows of default size that share one forward at most, a guided picture being two; unset: measured at start",
    )
    order: str = _option(
        "shortest",
        _matching("shortest|first-come", "shortest or first-come"),
        "who goes first: shortest (remaining work, aged) or first-come",
    )
    reproducible: bool = _option(
        False,
        _yes_or_no,
        "true: all forwards have equally many rows, so that company changes no bit of a picture; a lone request is slower",
    )
    max_queue_seconds: float = _option(
        120.0, _number(1), "seconds of work accepted and not yet done, at the measured speed; more gets 429"
    )
    timeout: float = _option(300.0, _number(1), "seconds from arrival until a request is given up with 504")
    grace_period: float = _option(25.0, _number(0), "seconds that SIGTERM leaves to accepted requests")
    hang_after: float = _option(
        120.0, _number(1), "seconds without a sign of life, with work at hand, after which /livez says 503"
    )

    compile: bool = _option(
        False,
        _yes_or_no,
        "true: compile the denoiser beside the first requests, which are slower for it, and serve faster from then on",
    )
    compile_cache: Path | None = _option(
        None, Path, "writable directory that keeps what was compiled, so that the next start need not; unset: lost"
    )

    default_steps: int | None = _option(None, _whole(1), "num_inference_steps where a request names none")
    default_guidance: float | None = _option(None, _number(0), "guidance_scale where a request names none")
    max_steps: int = _option(150, _whole(1), "largest num_inference_steps")
    max_guidance: float = _option(50.0, _number(0), "largest guidance_scale")
    max_images: int = _option(4, _whole(1), "largest num_images_per_prompt")
    max_instances: int = _option(16, _whole(1), "most instances in one request")
    max_pixels: int | None = _option(None, _whole(1), "largest width x height; unset: four times the model's own size")
    max_cost: float = _option(
        16.0, _number(0.01), "largest pixels x steps x images of one request, in pictures of default size and steps"
    )
    max_prompt_chars: int = _option(4000, _whole(1), "longest prompt and negative prompt, in characters")
    max_body_bytes: int = _option(1 << 20, _whole(1), "largest request body")
    refuse_truncation: bool = _option(
        False,
        _yes_or_no,
        "true: 400 for a prompt longer than the text encoder reads; false: the answer says how much was cut",
    )
    embed_prompt: bool = _option(True, _yes_or_no, "true: pictures carry their prompt in the metadata")
    c2pa_certificate: Path | None = _option(
        None, Path, "PEM file with the certificate chain that signs each picture (C2PA), read at start; unset: no signatures"
    )
    c2pa_key: Path | None = _option(None, Path, "PEM file with the key of --c2pa-certificate")
    ui: bool = _option(True, _yes_or_no, "true: a page to try the model, at /ui")
    otlp_endpoint: str = _option(
        "",
        _matching(_URL, "http://host:port or https://host:port"),
        "collector that gets the traces, with OTLP over HTTP at /v1/traces; unset: OTEL_EXPORTER_OTLP_ENDPOINT, else none",
    )

    model_name: str = ""  # KServe's own flag, --model_name, or the environment that KServe injects
    traces_url: str = ""  # --otlp-endpoint, or what OpenTelemetry's own variables say, in full; empty: no traces

    @property
    def name(self) -> str:
        """The `<name>` in /v1/models/<name>."""
        return self.model_name or self.model_id.rsplit("/", 1)[-1].lower()


_OPTIONS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"predictor: {message}\n")


def new_parser() -> argparse.ArgumentParser:
    """Our own flags. What it does not know is left to KServe's parser."""
    parser = _Parser(
        prog="python -m predictor",
        usage="%(prog)s --model-id org/name [--root DIR] [options] [KServe's options]",
        description="Serves a diffusers text-to-image pipeline from a volume, on KServe's model server.",
        epilog="Each flag can be set by the environment too: --max-rows is PREDICTOR_MAX_ROWS. Of KServe's own options the "
        "useful ones are --http_port (8080) and --model_name (default: INFERENCE_SERVICE_NAME, else the last part of "
        "--model-id). Traces heed OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT without --otlp-endpoint, "
        "OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and the others of its SDK.",
        allow_abbrev=False,
    )
    for name, field in _OPTIONS.items():
        default = "" if field.default in ("", None) else f" (default: {str(field.default).lower()})"
        parser.add_argument(_flag(name), metavar="…", help=field.metadata["help"] + default)
    return parser


def read(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """The settings, and the arguments that are not ours. Prints and exits: 2 on what it cannot take, 0 on --help."""
    environ = os.environ if environ is None else environ
    parser = new_parser()
    flags, rest = parser.parse_known_args(argv)
    for variable in environ:
        if variable.startswith(_PREFIX) and not _SERVICE_LINK.match(variable) and variable not in map(_variable, _OPTIONS):
            parser.error(f"environment variable {variable} is not known; see --help")
    values: dict[str, Any] = {"model_name": _model_name(rest) or environ.get("INFERENCE_SERVICE_NAME", "")}
    for name, field in _OPTIONS.items():
        given = {_flag(name): getattr(flags, name), _variable(name): environ.get(_variable(name))}
        source, text = next(((source, text) for source, text in given.items() if text is not None), (None, ""))
        if source:
            try:
                values[name] = field.metadata["parse"](text)
            except ValueError as error:
                parser.error(f"{source} must be {error}, not {text!r}")
    if not values.get("model_id"):
        parser.error(f"--model-id (or {_variable('model_id')}) is missing: which model to serve, as org/name")
    settings = Settings(**values, traces_url=_traces_url(parser, values.get("otlp_endpoint", ""), environ))
    _check_together(parser, settings)
    return settings, rest


def _check_together(parser: argparse.ArgumentParser, settings: Settings) -> None:
    for default, most in (("default_steps", "max_steps"), ("default_guidance", "max_guidance")):
        if (getattr(settings, default) or 0) > getattr(settings, most):
            parser.error(f"{_flag(default)} must be at most {_flag(most)}, which is {getattr(settings, most):g}")
    if settings.compile and settings.reproducible:
        parser.error("--compile and --reproducible exclude each other: pictures would change once the compilation is done")
    if bool(settings.c2pa_certificate) != bool(settings.c2pa_key):
        given, missing = ("certificate", "key") if settings.c2pa_certificate else ("key", "certificate")
        parser.error(f"--c2pa-{given} without --c2pa-{missing}: signing takes both")


def _traces_url(parser: argparse.ArgumentParser, endpoint: str, environ: Mapping[str, str]) -> str:
    """Our own setting first, then as https://opentelemetry.io/docs/specs/otel/protocol/exporter/ has it. The SDK reads what
    else there is of these variables."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return ""
    if endpoint:
        return endpoint.rstrip("/") + "/v1/traces"
    variable = next((name for name in (_OTEL_TRACES_ENDPOINT, _OTEL_ENDPOINT) if environ.get(name)), None)
    if not variable:
        return ""
    if not re.fullmatch(_URL, environ[variable]):
        parser.error(f"{variable} must be http://host:port or https://host:port, not {environ[variable]!r}")
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    name, protocol = next(((name, environ[name]) for name in names if environ.get(name)), ("", "http/protobuf"))
    if protocol != "http/protobuf":
        parser.error(f"{name} must be http/protobuf, not {protocol!r}, or --otlp-endpoint name a port that speaks it")
    return environ[variable] if variable == _OTEL_TRACES_ENDPOINT else environ[variable].rstrip("/") + "/v1/traces"


def trace_once() -> None:
    """FastAPI can trace by itself, with queries as callers wrote them and the texts of exceptions: it must not."""
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"


def keep_compiled(settings: Settings) -> None:
    """Tells torch's compiler, which looks nowhere but in the environment, where to keep what it makes."""
    if settings.compile_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.compile_cache)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _model_name(rest: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model_name", default="")
    return str(parser.parse_known_args(rest)[0].model_name)
