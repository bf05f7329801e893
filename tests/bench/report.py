"""The run as text, and as one line of JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.machine import processor
from bench.measures import GOOD, Bar, Measured
from bench.pictures import WITHIN, Gate
from bench.systems import SYSTEMS, System
from bench.workload import GUIDANCE, STEPS
from serving import REPOSITORY

_COLUMNS = ("load", "system", "requests", "images/s", "goodput", "p50 s", "p95 s", "p99 s", "mean s", "errors", "429")
_COUNTED = ("forwards", "rows each", "limit", "others")


def conditions(threads: int, seed: int, requests: int, systems: Sequence[System]) -> dict[str, Any]:
    """What a number means nothing without."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "kserve")},
        "model": "examples/shapes, 64 x 64, float32, DDIM",
        "systems": {system.name: system.what for system in systems},
        "requests_per_load": requests,
        "seed": seed,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "load_average_before": os.getloadavg()[0],
    }


def publish(
    conditions: Mapping[str, Any],
    calibration: Mapping[str, Any],
    results: Sequence[Measured],
    bars: Sequence[Bar],
    gates: Sequence[Gate],
    *,
    judges: bool,
) -> int:
    """Prints everything; the exit code. Where the run is too short to judge how fast anything is, only for pictures that are
    wrong or missing."""
    passed = all(each.passed for each in (*bars, *gates) if judges or not getattr(each, "speed", False))
    isolated = {f"{steps} steps{', guided' if guided else ''}": s for (steps, guided), s in calibration["isolated"].items()}
    _print("\n".join(_heading(conditions, calibration, isolated)))
    _print("\n" + table(results))
    _print("\n" + "\n".join([*map(_bar, bars), *map(_gate, gates), "", "passed" if passed else "MISSED"]))
    if not judges:
        _print("(a quick run: how fast is shown, and not judged)")
    document = {
        "conditions": conditions,
        "calibration": {**calibration, "isolated": isolated},
        "results": [{name: value for name, value in vars(each).items() if name != "latencies"} for each in results],
        "bars": [{**vars(bar), "passed": bar.passed} for bar in bars],
        "gates": [{**vars(gate), "passed": gate.passed} for gate in gates],
        "passed": passed,
    }
    _print(json.dumps(document))
    return 0 if passed else 1


def table(results: Sequence[Measured]) -> str:
    loads, names = list(dict.fromkeys(each.load for each in results)), [system.name for system in SYSTEMS]
    rows = [_row(each) for each in sorted(results, key=lambda each: (loads.index(each.load), names.index(each.system)))]
    lines = [(*_COLUMNS, *_COUNTED), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if i < 2 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _row(each: Measured) -> tuple[str, ...]:
    load = f"{each.load} ({each.rate:.2f}/s)" if each.rate else each.load
    seconds = (f"{value:.2f}" for value in (each.p50, each.p95, each.p99, each.mean))
    counted = (
        _number(each.forwards, 0),
        _number(each.rows_per_forward, 1),
        _number(each.row_limit, 0),
        _number(each.others, 2),
    )
    numbers = (f"{each.images_per_second:.2f}", f"{each.goodput:.0%}", *seconds, str(each.errors), str(each.refused))
    return (load, each.system, str(each.requests), *numbers, *counted)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _heading(conditions: Mapping[str, Any], calibration: Mapping[str, Any], isolated: Mapping[str, float]) -> list[str]:
    told = {name: value for name, value in conditions.items() if not isinstance(value, dict)}
    alone = " · ".join(f"{kind} {seconds:.2f} s" for kind, seconds in isolated.items())
    return [
        " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items()),
        *(f"{name}: {what}" for name, what in conditions["systems"].items()),
        f"alone: {alone}",
        f"serial capacity {calibration['serial_capacity']:.2f} images/s, at the end of the run {calibration['drift']:.1%} off",
        f"goodput: share answered within {GOOD} times what the picture takes alone · rows each: in a forward, limit: of them · "
        "others: cores that other processes used meanwhile",
    ]


def _bar(bar: Bar) -> str:
    sign = ">=" if bar.at_least else "<="
    return f"{_verdict(bar.passed)}  {bar.what}: {bar.value:.3g} {sign} {bar.limit:.3g}  ({bar.beside})"


def _gate(gate: Gate) -> str:
    differing = f"{gate.differing} of {gate.pictures} pictures differ from serial's"
    return f"{_verdict(gate.passed)}  {gate.system}: {differing}, by at most {gate.most} of 255 (allowed {WITHIN})"


def _verdict(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def _print(text: str) -> None:
    print(text, flush=True)


def _commit() -> str:
    """With a + where the tree has changes; unknown outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if commit else "unknown"
