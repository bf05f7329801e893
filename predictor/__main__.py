"""The process: settings → weights on their way into memory → KServe's server with our routes → the model loaded beside it →
a drain on SIGTERM.

Exit codes: 0 stopped as asked · 2 usage · 20 model not on the volume · 21 snapshot refused · 22 model cannot be loaded ·
23 no such device · 24 the device failed while serving · 25 pictures cannot be signed as asked.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from predictor import settings as settings_module
from predictor import telemetry, tracing
from predictor.errors import DeviceFailed, StartupError
from predictor.phases import Phases
from predictor.readahead import ReadAhead

_TERMINATION_LOG = Path("/dev/termination-log")  # Kubernetes shows it as the reason of a container's end
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_WORDS = 1.0  # seconds that answers over gRPC have to get onto the wire once they are ready
_FAREWELL = 1.5  # seconds that a failed device leaves for answers on the wire


class Process:
    """Ties the service's life to the server's: loads once the port is open, drains before it closes."""

    def __init__(self, service: Any, read_ahead: ReadAhead, grpc: Any = None) -> None:
        """`grpc`: a GrpcServer, where one is wanted."""
        self._service = service
        self._read_ahead = read_ahead
        self._grpc = grpc
        self._phases = Phases("imports")
        self._draining: asyncio.Task[None] | None = None
        self.exit_code = 0

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Runs inside uvicorn's serve(), where uvicorn's signal handlers are in place; they close the port at once, so ours
        stand before them and call them when the drain is over."""
        self._loop = asyncio.get_running_loop()
        self._hurry: asyncio.Future[None] = self._loop.create_future()
        self._server_exit: Any = signal.getsignal(signal.SIGTERM)
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal)
        try:
            if self._grpc:
                await self._grpc.start()
        except StartupError as error:
            self._give_up(error)
        else:
            threading.Thread(target=self._load, name="load", daemon=True).start()
        yield

    def _load(self) -> None:
        try:
            self._service.load(self._on_fault, self._phases)
        except StartupError as error:
            self._give_up(error)
        except Exception as error:  # noqa: BLE001  a half-loaded model must not stay up and answer 503 for ever
            telemetry.failure("loading failed", **telemetry.described(error))
            self._end_from_thread(1, f"loading failed: {type(error).__name__}")
        else:
            _resume_collecting()
        finally:
            self._read_ahead.stop()
        if self._service.ready:
            self._service.compile()

    def _give_up(self, error: StartupError) -> None:
        telemetry.logger.critical(str(error), extra={"exit_code": error.exit_code})
        self._end_from_thread(error.exit_code, str(error))

    def _on_fault(self) -> None:
        """The engine has ended by itself, and its callers have been told. Only a new process gets the device back."""
        code = DeviceFailed.exit_code
        threading.Timer(_FAREWELL, os._exit, [code]).start()  # a driver that hangs must not keep this one alive
        self._end_from_thread(code, "the engine has ended by itself: the log says why")

    def _end_from_thread(self, code: int, reason: str) -> None:
        with suppress(OSError):
            if _TERMINATION_LOG.exists():
                _TERMINATION_LOG.write_text(reason + "\n")
        self.exit_code = code
        self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        """The first drains; another one ends the drain."""
        if not self._draining:
            self._draining = asyncio.create_task(self._drain())
        elif not self._hurry.done():
            self._hurry.set_result(None)

    async def _drain(self) -> None:
        await self._service.drain(self._hurry)
        if self._grpc:
            await self._grpc.stop(_LAST_WORDS)
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)
            signal.signal(number, self._server_exit)
        self._server_exit(signal.SIGTERM, None)


def _resume_collecting() -> None:
    """What has survived the start stays for good, so that the collector need not look at it ever again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _start_tracing(settings: settings_module.Settings) -> None:
    if not settings.traces_url:
        return
    try:
        tracing.start(settings.traces_url, settings.name)
    except ImportError:
        settings_module.new_parser().error("traces need packages: pip install 'kserve-text-to-image[tracing]'")
    except (ValueError, RuntimeError) as error:
        kind = type(error).__name__
        settings_module.new_parser().error(f"an OTEL_ variable is not as OpenTelemetry's own code wants it: {kind}")
    telemetry.event("tracing", model=settings.name)


def main(argv: Sequence[str] | None = None) -> int:
    # Imports make 700,000 objects, nearly all of them to keep: looking for garbage among them takes a fifth of their time.
    gc.disable()
    # The first process of a container ignores signals that it has no handler for, and imports take seconds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings, rest = settings_module.read(sys.argv[1:] if argv is None else argv)
    settings_module.keep_compiled(settings)
    settings_module.trace_once()
    # KServe parses sys.argv when it is imported and takes a prefix of its flags for the flag: leave it only what is its own.
    sys.argv = [sys.argv[0], *rest]
    telemetry.configure()
    _start_tracing(settings)
    read_ahead = ReadAhead(settings.root, settings.model_id, settings.revision)
    read_ahead.start()
    from kserve import ModelServer
    from kserve.model_server import app, parser

    kserve, unknown = parser.parse_known_args(rest)
    if unknown:
        settings_module.new_parser().error(f"unknown argument {unknown[0]}; see --help")
    if kserve.workers != 1:
        settings_module.new_parser().error(f"--workers must be 1, not {kserve.workers}: one process owns the device")

    from predictor.grpc_server import GrpcServer
    from predictor.server import Model, add_routes
    from predictor.service import Service

    gc.freeze()  # half a second that the first collection would spend on what the libraries keep anyway
    service = Service(settings)
    sizes = {"max_send": kserve.grpc_max_send_message_length, "max_receive": settings.max_body_bytes}
    grpc = GrpcServer(service, port=kserve.grpc_port, **sizes)
    process = Process(service, read_ahead, grpc if kserve.enable_grpc else None)
    add_routes(app, service)
    app.router.lifespan_context = process.lifespan
    # gRPC is ours, and so is the grace period; what uvicorn adds is for answers on the wire.
    server = ModelServer(workers=1, enable_grpc=False, grace_period=5)
    server.register_model(Model(service))
    server.start([])
    tracing.stop()
    return process.exit_code


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Past the interpreter's own end: a thread that is still loading or computing in C++ would abort it on the way.
    os._exit(code)
