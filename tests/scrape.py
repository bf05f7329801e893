"""A scrape of /metrics, read as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_PARTS = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Scrape:
    """`samples`: name → labels, sorted → value. `types` and `labels`: by the name that the README and PromQL use, which ends in
    _total for a counter and has no _bucket, _sum or _count for a histogram."""

    samples: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]
    types: Mapping[str, str]
    labels: Mapping[str, frozenset[str]]

    def value(self, name: str, **labels: str) -> float:
        """Of one sample; 0 where there is none, as an increase would have it."""
        return self.samples.get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def total(self, name: str) -> float:
        return sum(self.samples.get(name, {}).values())

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """Label values in the order of the labels' names, of samples above 0."""
        return {tuple(value for _, value in labels): n for labels, n in self.samples.get(name, {}).items() if n}


def read(text: str, prefix: str = "predictor_") -> Scrape:
    """What begins with `prefix`, less the _created that the client library adds to everything."""
    families = [family for family in text_string_to_metric_families(text) if family.name.startswith(prefix)]
    families = [family for family in families if not family.name.endswith("_created")]
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for sample in (sample for family in families for sample in family.samples if not sample.name.endswith("_created")):
        samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    types = {_name(family): family.type for family in families}
    return Scrape(samples, types, {_name(family): _labels(family.samples) for family in families})


def without_part(name: str) -> str:
    """The histogram's name, of that of one of its samples."""
    return next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def _labels(samples: Iterable[object]) -> frozenset[str]:
    return frozenset(label for sample in samples for label in sample.labels if label != "le")  # type: ignore[attr-defined]
