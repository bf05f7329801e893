"""Step-level batching against what it replaces, over HTTP, in one run on one machine.

    PYTHONPATH=tests python -m bench.load [--quick] [--out DIR]

First the serial baseline alone: what each kind of picture takes by itself, and how many a second it can make. Then every
system, freshly started, under the same requests at the same times: an open loop (Poisson) of 0.6, 1.0 and 1.5 times that
rate, and a closed loop of many callers (saturation). Latency counts from the moment a request was due. The last line is
one JSON document; the exit code is 1 when a bar is missed (with --quick: when pictures are wrong or missing).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import plots, report, workload
from bench.client import Sample, closed_loop, open_loop
from bench.machine import Others
from bench.measures import Forwards, Measured, alone, bars, measured, per_second
from bench.pictures import Gate, compared
from bench.systems import SYSTEMS, System, between, fill, forwards, served
from bench.workload import Asked, Kind
from serving import Server

LOADS = {"0.6x": 0.6, "1.0x": 1.0, "1.5x": 1.5}  # of what the serial baseline can make
SATURATION = "saturation"
CALLERS = 16
WARMING = 16  # requests before each measurement, all at once: every row count that batching can make has been seen
# Of each server. One core is left to HTTP, encoding, this client and whoever else there is: torch's threads wait for each
# other by spinning, and where one of them has to share its core, all stand still for tens of milliseconds at a time.
THREADS = max(len(os.sched_getaffinity(0)) - 1, 1)
QUIET = 0.25  # cores: where others use more, it is measured again


@dataclass
class Run:
    root: Path  # the volume
    logs: Path
    threads: int
    seed: int
    requests: int  # per load and system
    tries: int  # of each measurement, where others disturb it
    isolated: dict[Kind, float] = field(default_factory=dict)
    capacity: float = 0.0  # pictures a second of the serial baseline
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)  # by load and system
    results: list[Measured] = field(default_factory=list)

    def calibrate(self, times: int) -> None:
        with self._warm(SYSTEMS[0]) as server:
            kinds = workload.of_every_kind(f"{self.seed}/alone", times)
            one_by_one = _quietest(server, "alone", self.tries, lambda: asyncio.run(closed_loop(_url(server), kinds, 1)))
            self.isolated = alone(one_by_one.samples)
            self.capacity = self._capacity(server)
        tell(f"serial capacity: {self.capacity:.2f} pictures a second")

    def drift(self) -> float:
        """By how much the serial capacity differs at the end of the run, relative: the noise of this machine."""
        with self._warm(SYSTEMS[0]) as server:
            return abs(self._capacity(server) / self.capacity - 1)

    def visit(self, system: System, loads: Sequence[str]) -> None:
        """Puts `loads` on a fresh server, one after another."""
        with self._warm(system) as server:
            for load in loads:
                self._measure(system.name, load, server)

    def _measure(self, system: str, load: str, server: Server) -> None:
        requests = workload.mixed(f"{self.seed}/{load}", self.requests)
        rate = LOADS[load] * self.capacity if load in LOADS else None
        taken = _quietest(server, f"{load} {system}", self.tries, lambda: self._put(load, rate, requests, server))
        result = measured(system, load, rate, taken.samples, self.isolated, taken.forwards, taken.others)
        tell(f"  {load} {system}: {result.images_per_second:.2f} images/s, mean {result.mean:.2f} s")
        self.samples[load, system] = taken.samples
        self.results.append(result)

    def _put(self, load: str, rate: float | None, requests: Sequence[Asked], server: Server) -> list[Sample]:
        if not rate:
            return asyncio.run(closed_loop(_url(server), requests, CALLERS))
        times = workload.arrivals(f"{self.seed}/{load}/arrivals", rate, len(requests))
        return asyncio.run(open_loop(_url(server), requests, times))

    def _capacity(self, server: Server) -> float:
        requests = workload.mixed(f"{self.seed}/capacity", max(self.requests // 2, 12))
        taken = _quietest(server, "capacity", self.tries, lambda: asyncio.run(closed_loop(_url(server), requests, 2)))
        return per_second(taken.samples)

    @contextmanager
    def _warm(self, system: System) -> Iterator[Server]:
        """A fresh server that has made pictures."""
        with served(system, self.root, self.threads, self.logs / f"{system.name}.log") as server:
            asyncio.run(closed_loop(_url(server), workload.mixed(f"{self.seed}/warming", WARMING), WARMING))
            yield server


@dataclass(frozen=True)
class Taken:
    """One measurement, and what else went on."""

    samples: list[Sample]
    forwards: Forwards
    others: float | None


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def _quietest(server: Server, what: str, most: int, measure: Callable[[], list[Sample]]) -> Taken:
    """Measures again, `most` times at most, as long as others use the machine too; the least disturbed."""
    tries: list[Taken] = []
    while not tries or (len(tries) < most and (tries[-1].others or 0) > QUIET):
        if tries:
            tell(f"  {what}: others used {tries[-1].others:.1f} cores; again")
        before, others = forwards(server), Others(server.process.pid)
        samples = measure()
        tries.append(Taken(samples, between(before, forwards(server)), others.cores()))
    return min(tries, key=lambda each: each.others or 0)


def visits(systems: Sequence[System], *, fresh_for_each_load: bool) -> Iterator[tuple[System, list[str]]]:
    """Who is measured next, under which loads. In turns, each time in another order, so that a machine that slows down or
    speeds up meanwhile favours nobody."""
    loads = [*LOADS, SATURATION]
    if not fresh_for_each_load:
        yield from ((system, loads) for system in systems)
        return
    for turn, load in enumerate(loads):
        first = turn % len(systems)
        yield from ((system, [load]) for system in (*systems[first:], *systems[:first]))


def tell(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def gates(run: Run) -> list[Gate]:
    """Pictures of every other system against the serial baseline's, over all loads."""
    others = {system for _, system in run.samples} - {"serial"}
    return [
        compared(
            name, [(run.samples[load, "serial"], run.samples[load, name]) for load, system in run.samples if system == name]
        )
        for name in sorted(others)
    ]


def arguments() -> argparse.Namespace:
    names = [system.name for system in SYSTEMS]
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description=(__doc__ or "").splitlines()[0],
        epilog="Systems: " + "; ".join(f"{system.name}: {system.what}" for system in SYSTEMS),
    )
    parser.add_argument("--quick", action="store_true", help="24 requests a load, each server started once: 3 minutes")
    parser.add_argument("--requests", type=int, metavar="N", help="per load and system (default: 100; 24 with --quick)")
    parser.add_argument("--systems", nargs="+", choices=names, default=names, help="beside serial (default: all)")
    parser.add_argument("--threads", type=int, default=THREADS, help="torch threads of each server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of requests and arrivals (default: %(default)s)")
    parser.add_argument("--tries", type=int, default=2, help="of a measurement that others disturb (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="plots and logs (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`: no server outlives the run
    systems = [system for system in SYSTEMS if system.name in {"serial", *args.systems}]
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("*.log"):
        old.unlink()
    with tempfile.TemporaryDirectory() as volume:
        count = args.requests or (24 if args.quick else 100)
        run = Run(Path(volume), args.out, args.threads, args.seed, count, args.tries)
        conditions = report.conditions(run.threads, run.seed, run.requests, systems)
        tell("filling a volume, then the serial baseline alone")
        fill(run.root)
        run.calibrate(times=1 if args.quick else 3)
        for system, loads in visits(systems, fresh_for_each_load=not args.quick):
            tell(f"{system.name} under {', '.join(loads)}")
            run.visit(system, loads)
        drift = run.drift()
    checked, pictures = bars(run.results, drift), gates(run)
    plots.draw(run.results, conditions, args.out)
    calibration = {"serial_capacity": run.capacity, "drift": drift, "isolated": run.isolated}
    return report.publish(conditions, calibration, run.results, checked, pictures, judges=not args.quick)


if __name__ == "__main__":
    sys.exit(main())
