"""How long things take: a curve of seconds by rows, measured at start, and what is learned from everything since. Pure.

Work is counted in rows of the model's default size: a row with twice the pixels counts as two.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from predictor.request import Params

# More rows must bring so much more throughput. A picture made in company waits for its company at every step, so
# sharing for less than this makes everybody slower and hardly anybody sooner.
WORTHWHILE = 1.1

_LEARN = 0.1  # weight of the newest observation


@dataclass(frozen=True)
class Curve:
    """`measured[rows]`: seconds of one forward at the default size, rows increasing."""

    measured: Mapping[int, float]

    def seconds(self, work: float) -> float:
        """Of a forward with so much work: straight lines between what was measured; less than the least costs as much as the
        least, since launching it does; beyond the most, in proportion."""
        rows = list(self.measured)
        if work <= rows[0]:
            return self.measured[rows[0]]
        if work >= rows[-1]:
            return self.measured[rows[-1]] * work / rows[-1]
        above = bisect_left(rows, work)
        low, high = rows[above - 1], rows[above]
        share = (work - low) / (high - low)
        return (1 - share) * self.measured[low] + share * self.measured[high]

    @property
    def knee(self) -> int:
        """The fewest rows that bring nearly the most throughput: no number brings WORTHWHILE times theirs. One number that was
        measured in a bad moment, and more beyond it, do not hide what comes after."""
        best = max(rows / seconds for rows, seconds in self.measured.items())
        return min(rows for rows, seconds in self.measured.items() if WORTHWHILE * rows / seconds >= best)


@dataclass(frozen=True)
class Estimate:
    """What a request will take of the device, made when it comes."""

    size: Hashable  # requests of one size may share forwards
    factor: float  # pixels of a picture, in pictures of default size
    rows: int  # of the denoiser's batch; a guess until its first call
    forwards: float
    alone: float  # seconds of a forward with nobody else in it
    shared: float  # seconds of its part in a forward that is full
    asides: float  # seconds of everything but forwards
    slowdown: float = 1.0  # how much of these is because the device was lately slower than when it was measured


class Speed:
    """Written by the engine's thread, read by any."""

    def __init__(self, curve: Curve, row_limit: int, *, fixed_rows: bool = False) -> None:
        """`row_limit`: rows of default size that share a forward at most; `fixed_rows`: every forward has that many."""
        self.row_limit = row_limit
        self._curve = curve
        self._fixed_rows = fixed_rows
        self._correction: dict[Hashable, float] = {}  # observed by expected seconds, by size
        self._rows: dict[bool, float] = {True: 2.0, False: 1.0}  # of a picture, with guidance and without
        self._forwards: dict[tuple[str | None, bool], float] = {}  # of a step, by sampler (Heun's takes two) and guidance
        self._text = 0.0  # seconds of a request
        self._decode = 0.0  # seconds of a picture of default size

    def estimate(self, params: Params, factor: float) -> Estimate:
        size = (params.width, params.height)
        rows = max(round(self._rows[_guided(params)] * params.num_images_per_prompt), 1)
        full = max(self.most_rows(factor), rows)
        return Estimate(
            size=size,
            factor=factor,
            rows=rows,
            forwards=self._forwards.get((params.scheduler, _guided(params)), 1.0) * params.num_inference_steps,
            alone=self.seconds(full if self._fixed_rows else rows, factor, size),
            shared=self.seconds(full, factor, size) * rows / full,
            asides=self._text + self._decode * params.num_images_per_prompt * factor,
            slowdown=max(self._correction.get(size, 1.0), 1.0),
        )

    def most_rows(self, factor: float) -> int:
        """That share a forward at a size of `factor` times the default's pixels. Where their number is fixed it is a power of
        two: on a CPU other numbers are split among threads so that a row's place shows in its last bits."""
        rows = max(int(self.row_limit / factor), 1)
        return 1 << rows.bit_length() - 1 if self._fixed_rows else rows

    def least_rows(self, factor: float) -> int:
        """That every forward has, be they wanted or not."""
        return self.most_rows(factor) if self._fixed_rows else 0

    def seconds(self, rows: int, factor: float, size: Hashable) -> float:
        """Of one forward."""
        return self._curve.seconds(max(rows, self.least_rows(factor)) * factor) * self._correction.get(size, 1.0)

    def note_forward(self, rows: int, factor: float, size: Hashable, seconds: float) -> None:
        """One that loads kernels, or finds the device busy, tells little of the next: an outlier counts for twice at most."""
        expected, known = self._curve.seconds(max(rows, self.least_rows(factor)) * factor), self._correction.get(size, 1.0)
        self._correction[size] = _learned(known, min(max(seconds / expected, known / 2), known * 2))

    def note_rows(self, params: Params, rows: int) -> None:
        self._rows[_guided(params)] = rows / params.num_images_per_prompt

    def note_text(self, seconds: float) -> None:
        self._text = _learned(self._text or seconds, seconds)

    def note_decode(self, params: Params, factor: float, seconds: float) -> None:
        own = seconds / (params.num_images_per_prompt * factor)
        self._decode = _learned(self._decode or own, own)

    def note_finished(self, params: Params, forwards: int) -> None:
        if forwards:
            self._forwards[params.scheduler, _guided(params)] = max(forwards / params.num_inference_steps, 0.5)


def _guided(params: Params) -> bool:
    return (params.guidance_scale or 0) > 1


def _learned(known: float, observed: float) -> float:
    return known + _LEARN * (observed - known)
