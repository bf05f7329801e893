"""The predictor as a process with a port, and requests to it. For end-to-end tests and the benchmark."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
START = 120  # seconds that a start may take on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """`python -m predictor` with `arguments`; its log, parsed, as it comes."""

    arguments: list[str]
    name: str = "model"
    port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    environ: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "predictor")

    def __enter__(self) -> Server:
        environ = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | self.environ
        command = [sys.executable, *self.program, *self.arguments, "--http_port", str(self.port)]
        command += ["--grpc_port", str(self.grpc_port)]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.client = httpx.Client(base_url=self.url, timeout=300, trust_env=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line.decode())
                self._news.notify_all()
        self.process.wait()
        with self._news:
            self._news.notify_all()

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines if line.startswith("{")]

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def wait_for(self, **fields: object) -> dict[str, Any]:
        """The first line of the log with these fields."""
        with self._news:
            found = self._news.wait_for(lambda: self._matching(fields) or self.process.poll() is not None, timeout=START)
        assert found and self._matching(fields), f"no {fields} in: {self.text}"
        return self._matching(fields)[0]

    def _matching(self, fields: dict[str, object]) -> list[dict[str, Any]]:
        return [line for line in self.log if fields.items() <= line.items()]

    def wait_until_open(self) -> None:
        """Until the port answers, whatever it says."""
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self.port)):
                    return
            time.sleep(0.02)
        raise AssertionError(f"port not open: {self.text}")

    def wait_until_ready(self) -> Server:
        self.wait_for(message="ready")
        return self

    def ready(self) -> httpx.Response:
        return self.client.get(f"/v1/models/{self.name}")

    def predict(self, body: object, **options: Any) -> httpx.Response:
        return self.client.post(f"/v1/models/{self.name}:predict", json=body, **options)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_running(self, request_id: str) -> dict[str, Any]:
        """What /v1/requests says, once the first step is done."""
        return self._wait_for_request(request_id, lambda told: told.get("step", 0) > 0)

    def wait_until_over(self, request_id: str) -> dict[str, Any]:
        return self._wait_for_request(request_id, lambda told: told.get("state") in ("done", "failed", "cancelled"))

    def _wait_for_request(self, request_id: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + START
        while time.monotonic() < end:
            told: dict[str, Any] = self.client.get(f"/v1/requests/{request_id}").json()
            if reached(told):
                return told
        raise AssertionError(f"{request_id} is still {told}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)
