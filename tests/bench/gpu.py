"""What one GPU makes of full-size architectures with random weights: nothing is downloaded, and it ends in time.

    PYTHONPATH=tests python -m bench.gpu --seconds 450
    PYTHONPATH=tests python -m bench.gpu --toy --seconds 120      the same code on a CPU, with tiny models

Each model gets its share of the time. A piece that no longer fits is left out, one that fails says why, and all are printed
as they are done. The last line is one JSON document with everything, also when the time runs out in the middle.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import pieces
from bench.architectures import ARCHITECTURES, Architecture, build
from bench.subject import Subject

_LATE = 15  # seconds past the end after which the process is ended wherever it stands


class OutOfTime(Exception):
    pass


class Budget:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Piece:
    name: str
    run: Callable[[Subject, float], dict[str, Any]]  # seconds left → what to report
    least: float  # seconds without which it is not begun, at full size
    cuda: bool = False  # means nothing without


# The order is that of how much each is wanted: time runs out from the end. Compiling changes the model and comes last.
PIECES = (
    Piece("picture", pieces.picture, 8),
    Piece("forward", pieces.forward, 5),
    Piece("ours", pieces.ours, 15),
    Piece("saturation", pieces.saturation, 15),
    Piece("graph", pieces.graph, 5, cuda=True),
    Piece("syncs", pieces.syncs, 3, cuda=True),
    Piece("bits", pieces.bits, 2),
    Piece("decode", pieces.decode, 2),
    Piece("channels_last", pieces.channels_last, 4),
    Piece("cold_load", pieces.cold_load, 6),
    Piece("compiled", pieces.compiled, 30),
)


class Report:
    """What is known so far, in lines for the reader and, at the end, in JSON."""

    def __init__(self, conditions: dict[str, Any]) -> None:
        self._known: dict[str, Any] = {"conditions": conditions, "models": {}}
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._ended = False
        print(" · ".join(f"{name} {value}" for name, value in conditions.items()), flush=True)

    def add(self, model: str, piece: str, found: dict[str, Any]) -> None:
        with self._lock:
            self._known["models"].setdefault(model, {})[piece] = found
            seconds = time.monotonic() - self._begin
            told = "  ".join(f"{name} {_shown(value)}" for name, value in found.items())
            print(f"[{seconds:5.0f} s] {model:5} {piece:13} {told}", flush=True)

    def end(self, why: str) -> None:
        """The last line; only once."""
        with self._lock:
            if not self._ended:
                self._ended = True
                print(json.dumps({**self._known, "seconds": time.monotonic() - self._begin, "ended": why}), flush=True)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(each)}" for name, each in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the main thread, between two lines of Python."""

    def late(*_: object) -> None:
        raise OutOfTime(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def guarded(report: Report, model: str, piece: str, seconds: float, run: Callable[[], dict[str, Any]]) -> bool:
    """Whether it went well. One piece that fails takes nobody else's numbers along."""
    begin = time.monotonic()
    try:
        with at_most(seconds):
            found = run()
    except Exception as error:  # noqa: BLE001  a model or a device may raise anything
        reason = str(error).strip().splitlines() or [""]
        report.add(model, piece, {"failed": f"{type(error).__name__}: {reason[0][:300]}"})
        return False
    report.add(model, piece, {**found, "took_s": time.monotonic() - begin})
    return True


def measure(architecture: Architecture, budget: Budget, report: Report, device: torch.device, toy: bool) -> None:
    """All pieces of one model, as far as `budget` goes."""
    name = architecture.name
    if not toy and torch.cuda.mem_get_info()[0] / 1e9 < architecture.gigabytes:
        report.add(name, "build", {"left_out": f"needs {architecture.gigabytes} GB of device memory"})
        return
    subject = Subject(
        name, device, torch.float32 if toy else torch.bfloat16, 8 if toy else architecture.steps, pieces.peak(device)
    )

    def make() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            subject.pipe = build(architecture, Path(folder), device, subject.dtype, toy=toy)
        return {"billion_parameters": subject.parameters / 1e9}

    try:
        if guarded(report, name, "build", budget.left, make):
            _all_pieces(subject, budget, report, toy)
    finally:
        subject.close()
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _all_pieces(subject: Subject, budget: Budget, report: Report, toy: bool) -> None:
    for piece in PIECES:
        run = functools.partial(piece.run, subject, budget.left)
        if piece.cuda and subject.device.type != "cuda":
            report.add(subject.name, piece.name, {"left_out": "needs CUDA"})
        elif budget.left < (1 if toy else piece.least):
            report.add(subject.name, piece.name, {"left_out": f"{budget.left:.0f} s left"})
        else:
            guarded(report, subject.name, piece.name, budget.left, run)


def conditions(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        **versions,
        **({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}),
        "peak_tflops": pieces.peak(device),
        "load_average_before": os.getloadavg()[0],
    }


def arguments() -> argparse.Namespace:
    names = [architecture.name for architecture in ARCHITECTURES]
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=(__doc__ or "").splitlines()[0],
        epilog="Pieces, of each model: " + ", ".join(piece.name for piece in PIECES),
    )
    parser.add_argument("--seconds", type=float, default=450, help="for everything (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="in this order (default: all)")
    parser.add_argument("--toy", action="store_true", help="tiny models on the CPU: whether the script works")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not args.toy and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --toy runs the same code with tiny models")
    budget, device = Budget(args.seconds), torch.device("cpu" if args.toy else "cuda")
    torch.set_grad_enabled(False)
    report = Report(conditions(device))

    def late() -> None:
        report.end("out of time")
        os._exit(3)

    watchdog = threading.Timer(args.seconds + _LATE, late)
    watchdog.daemon = True
    watchdog.start()
    todo = [architecture for architecture in ARCHITECTURES if architecture.name in args.models]
    while todo:
        share = todo[0].share / sum(each.share for each in todo)
        measure(todo.pop(0), Budget(budget.left * share), report, device, args.toy)
    report.end("done")
    os._exit(0)  # threads of engines and compilers may still be there


if __name__ == "__main__":
    main()
