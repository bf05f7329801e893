"""What the samples of a load come to, and the bars that the run has to clear. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.client import Sample
from bench.workload import Kind

GOOD = 3  # times the seconds that it takes alone: what still counts as served well
TOO_MANY = 429


@dataclass(frozen=True)
class Forwards:
    """Of the denoiser, during a load; None where the server does not tell."""

    count: float | None = None
    rows: float | None = None
    row_limit: float | None = None

    @property
    def mean_rows(self) -> float | None:
        return self.rows / self.count if self.rows is not None and self.count else None


@dataclass(frozen=True)
class Measured:
    """One load on one system. Seconds; `rate` in requests a second, None where callers wait for each other (saturation)."""

    system: str
    load: str
    rate: float | None
    requests: int
    images_per_second: float
    goodput: float  # share of all requests
    p50: float
    p95: float
    p99: float
    mean: float
    errors: int  # not answered with a picture, those of 429 left out
    refused: int  # answered with 429
    forwards: float | None
    rows_per_forward: float | None
    row_limit: float | None  # that the server measured at its start
    others: float | None  # cores that other processes used meanwhile
    latencies: tuple[float, ...] = field(repr=False)


def percentile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the two nearest ranks; nan of nothing."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    at = share * (len(ordered) - 1)
    below, rest = int(at), at - int(at)
    return ordered[below] + rest * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


def measured(
    system: str,
    load: str,
    rate: float | None,
    samples: Sequence[Sample],
    isolated: Mapping[Kind, float],
    forwards: Forwards,
    others: float | None,
) -> Measured:
    """Latencies are those of pictures; a request without one counts against goodput and as an error."""
    good = [sample for sample in samples if sample.good]
    latencies = [sample.latency for sample in good]
    in_time = [sample for sample in good if sample.latency <= GOOD * isolated[sample.asked.kind]]
    statuses = Counter(sample.status for sample in samples)
    return Measured(
        system=system,
        load=load,
        rate=rate,
        requests=len(samples),
        images_per_second=per_second(samples),
        goodput=len(in_time) / len(samples),
        p50=percentile(latencies, 0.5),
        p95=percentile(latencies, 0.95),
        p99=percentile(latencies, 0.99),
        mean=statistics.fmean(latencies) if latencies else float("nan"),
        errors=len(samples) - statuses[200] - statuses[TOO_MANY],
        refused=statuses[TOO_MANY],
        forwards=forwards.count,
        rows_per_forward=forwards.mean_rows,
        row_limit=forwards.row_limit,
        others=others,
        latencies=tuple(latencies),
    )


def per_second(samples: Sequence[Sample]) -> float:
    """Pictures a second from the first request to the last answer."""
    begin, end = min(sample.planned for sample in samples), max(sample.finished for sample in samples)
    return sum(sample.good for sample in samples) / (end - begin)


def alone(samples: Sequence[Sample]) -> dict[Kind, float]:
    """Median seconds by kind, of requests that were made one after another."""
    by_kind: dict[Kind, list[float]] = {}
    for sample in samples:
        by_kind.setdefault(sample.asked.kind, []).append(sample.latency)
    return {kind: statistics.median(seconds) for kind, seconds in by_kind.items()}


# ---------------------------------------------------------------- bars


@dataclass(frozen=True)
class Bar:
    """`value` must be at least `limit`, or at most; `beside` is what was compared."""

    what: str
    value: float
    limit: float
    at_least: bool
    beside: str
    speed: bool = True  # and not correctness

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def bars(results: Sequence[Measured], noise: float) -> list[Bar]:
    """Those that the measured systems and loads allow. `noise`: by how much a repeated measurement differed, relative."""
    by = {(each.load, each.system): each for each in results}

    def ratio(load: str, other: str, of: str, limit: float, *, at_least: bool = False) -> list[Bar]:
        ours, theirs = by.get((load, "ours")), by.get((load, other))
        if not ours or not theirs:
            return []
        a, b = getattr(ours, of), getattr(theirs, of)
        return [Bar(f"{load}: {of} of ours / {other}", a / b, limit, at_least, f"{a:.3g} / {b:.3g}")]

    return [
        *ratio("saturation", "serial", "images_per_second", 2.0, at_least=True),
        *ratio("1.5x", "serial", "mean", 0.3),
        *ratio("1.5x", "grouped", "mean", 0.6),
        *ratio("0.6x", "serial", "p50", 1.0 + noise),
        Bar(
            "requests without a picture",
            sum(each.errors + each.refused for each in results),
            0,
            False,
            "all systems",
            speed=False,
        ),
    ]
