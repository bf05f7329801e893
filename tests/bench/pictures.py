"""Whether two systems painted the same pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bench.client import Sample

WITHIN = 1  # of 255: forwards of other row counts differ in the last bits of a float32


@dataclass(frozen=True)
class Gate:
    system: str
    pictures: int  # compared
    differing: int  # in any pixel
    most: int  # out of 255

    @property
    def passed(self) -> bool:
        return self.pictures > 0 and self.most <= WITHIN


def compared(system: str, loads: Iterable[tuple[Sequence[Sample], Sequence[Sample]]]) -> Gate:
    """The same requests by the serial baseline and by `system`; those that either did not answer are left out."""
    pairs = [pair for reference, other in loads for pair in zip(reference, other, strict=True)]
    differences = [_difference(a.picture, b.picture) for a, b in pairs if a.good and b.good]
    return Gate(system, len(differences), sum(map(bool, differences)), max(differences, default=0))


def _difference(one: bytes, other: bytes) -> int:
    a, b = (np.asarray(Image.open(io.BytesIO(file)), dtype=int) for file in (one, other))
    return int(np.abs(a - b).max())
