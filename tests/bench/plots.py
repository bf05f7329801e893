"""The run as pictures: latency by load, throughput by load, and who waited how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.measures import Measured

# Colours that differ for every kind of colour vision (Okabe and Ito), and a shape each for those who print in grey.
_STYLES = {
    "serial": ("#000000", "s", ":"),
    "grouped": ("#E69F00", "^", "-."),
    "ours": ("#0072B2", "o", "-"),
    "ours-fcfs": ("#CC79A7", "D", "--"),
}


def draw(results: Sequence[Measured], conditions: Mapping[str, Any], folder: Path) -> None:
    """latency.png, throughput.png and waiting.png in `folder`."""
    with pyplot.rc_context({"font.size": 11, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}):
        _latency(results, conditions, folder / "latency.png")
        _throughput(results, conditions, folder / "throughput.png")
        _waiting(results, conditions, folder / "waiting.png")


def _latency(results: Sequence[Measured], conditions: Mapping[str, Any], path: Path) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), sharey=True)
    for axes, name, what in ((left, "p50", "median"), (right, "p95", "95th percentile")):
        for system, own in _by_system(results).items():
            points = sorted((each.rate, getattr(each, name)) for each in own if each.rate)
            colour, marker, line = _STYLES[system]
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=system)
        axes.set(title=what, xlabel="requests per second, Poisson (0.6, 1.0, 1.5 x serial capacity)", yscale="log")
        _plain_numbers(axes.yaxis)
    left.set_ylabel("seconds from when the request was due, log scale")
    left.legend()
    _save(figure, conditions, path)


def _throughput(results: Sequence[Measured], conditions: Mapping[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(9, 4.8))
    systems, loads = list(_by_system(results)), _loads(results)
    width = 0.8 / len(systems)
    for i, system in enumerate(systems):
        values = {each.load: each.images_per_second for each in results if each.system == system}
        places = [at + (i - (len(systems) - 1) / 2) * width for at in range(len(loads))]
        bars = axes.bar(places, [values.get(load, 0) for load in loads], width, color=_STYLES[system][0], label=system)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    axes.set_xticks(range(len(loads)), loads)
    axes.set(xlabel="load (Poisson, x serial capacity; saturation: 16 callers)", ylabel="images per second")
    axes.legend(loc="upper left")
    _save(figure, conditions, path)


def _waiting(results: Sequence[Measured], conditions: Mapping[str, Any], path: Path) -> None:
    loads = _loads(results)
    figure, panels = pyplot.subplots(1, len(loads), figsize=(3.6 * len(loads), 4.4), sharey=True)
    for load, axes in zip(loads, panels, strict=True):
        for each in (each for each in results if each.load == load):
            _steps(axes, each)
        axes.set(title=load, xlabel="seconds, log scale", xscale="log")
        _plain_numbers(axes.xaxis)
    panels[0].set_ylabel("share of pictures answered by then")
    panels[0].legend(loc="lower right", fontsize=9)
    _save(figure, conditions, path)


def _steps(axes: Axes, each: Measured) -> None:
    colour, _, line = _STYLES[each.system]
    axes.ecdf(each.latencies, color=colour, linestyle=line, linewidth=1.8, label=each.system)


def _plain_numbers(axis: Axis) -> None:
    """0.2, 0.5, 1 on a logarithmic axis, and not powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, conditions: Mapping[str, Any], path: Path) -> None:
    words = ("cpu", "cores", "threads", "torch", "model", "commit")
    figure.text(
        0.5, 0.005, " · ".join(f"{word} {conditions[word]}" for word in words), ha="center", fontsize=8, color="#444444"
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _by_system(results: Sequence[Measured]) -> dict[str, list[Measured]]:
    return {
        system: [each for each in results if each.system == system]
        for system in _STYLES
        if system in {e.system for e in results}
    }


def _loads(results: Sequence[Measured]) -> list[str]:
    return list(dict.fromkeys(each.load for each in results))
