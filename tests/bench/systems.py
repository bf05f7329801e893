"""The servers that are compared, each as a process of its own; one runs at a time."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measures import Forwards
from serving import REPOSITORY, Server

MODEL_ID = "examples/shapes"
# Nobody is turned away and nobody gives up: the queue that a load makes is part of what is measured.
_ALL = ("--max-queue-seconds", "100000", "--timeout", "3600")


@dataclass(frozen=True)
class System:
    name: str
    what: str
    program: tuple[str, ...]  # arguments of the interpreter


_BASELINE = ("-m", "bench.baselines", "--mode")
SYSTEMS = (
    System("serial", "one request at a time, a lock around pipe()", (*_BASELINE, "serial")),
    System("grouped", "equal requests share a pipe() call: window 50 ms, at most 8", (*_BASELINE, "grouped")),
    System("ours", "step-level batching, as shipped", ("-m", "predictor")),
    System("ours-fcfs", "step-level batching, first come first served", ("-m", "predictor", "--order", "first-come")),
)


def fill(root: Path) -> None:
    """The embedded model onto a volume, with the downloader."""
    source = str(REPOSITORY / "examples/shapes/model")
    command = [sys.executable, "-m", "downloader", "--model-id", MODEL_ID, "--source", source, "--root", str(root)]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def served(system: System, root: Path, threads: int, log: Path) -> Iterator[Server]:
    """A fresh server, ready; ended on the way out, when `log` gets its log."""
    arguments = ["--model-id", MODEL_ID, "--root", str(root), *_ALL]
    environ = {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": str(threads)}
    with Server(arguments, name="shapes", environ=environ, program=system.program) as server:
        try:
            yield server.wait_until_ready()
            server.terminate()
            server.process.wait(60)
        finally:
            with log.open("a") as file:
                file.write(server.text)


def forwards(server: Server) -> Forwards:
    """The server's own counters, ours or a baseline's; nothing where it has none."""
    text = server.client.get("/metrics", follow_redirects=True).text
    return Forwards(_value(text, "forwards_total"), _value(text, "forward_rows_total"), _value(text, "row_limit"))


def between(before: Forwards, after: Forwards) -> Forwards:
    def less(a: float | None, b: float | None) -> float | None:
        return a - (b or 0) if a is not None else None

    return Forwards(less(after.count, before.count), less(after.rows, before.rows), after.row_limit or None)


def _value(text: str, name: str) -> float | None:
    """The predictor's metric and the baseline's: where one of them counts, the other stands still."""
    found = re.findall(rf"^(?:predictor|baseline)_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found)) if found else None
