"""A request while it is being worked on, what is told of it meanwhile, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from predictor import telemetry
from predictor.pixels import Pixels
from predictor.rendezvous import Call, Guest
from predictor.request import Params
from predictor.speed import Estimate


@dataclass(frozen=True)
class Progress:
    """Step `step` of `of` has been made; `preview`, where one was due: a small picture of each image, what it will be like."""

    step: int
    of: int
    preview: Pixels | None = None


@dataclass(frozen=True)
class Watch:
    """`tell` is called in the engine's thread and must return at once; `preview_due`, whether a preview is wanted after step
    `step` of `of`."""

    tell: Callable[[Progress], None]
    preview_due: Callable[[int, int], bool] = lambda _step, _of: False


@dataclass(frozen=True)
class Result:
    """What a pipeline returned, and the seconds of each stage: queue, text, denoise and decode; queue and generate where none
    of these can be seen."""

    output: Any
    seconds: Mapping[str, float]


class Job:
    """Belongs to the engine's thread; others may wait for its `future`, which ends in a Result or a ServingError. From then on
    it belongs to whoever encodes what came of it."""

    def __init__(self, params: Params, estimate: Estimate, request_id: str, *, arrived: float, deadline: float) -> None:
        """`arrived`, `deadline`: seconds of the engine's clock."""
        self.params = params
        self.estimate = estimate
        self.request_id = request_id
        self.arrived = arrived
        self.deadline = deadline
        self.watch: Watch | None = None
        self.trace = telemetry.trace_ids.get()  # for log lines of the engine's thread, which is part of no call
        self.entered = [("queue", arrived)]  # each stage that it was in, and since when; "done": in none
        self.forwards = 0  # so far
        self.rows_shared = 0  # of everybody, over these forwards
        self.step, self.steps = 0, params.num_inference_steps  # done, and of how many
        self.guest: Guest[Any] | None = None
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # whoever waits may stop waiting, but only the engine ends it

    @property
    def stage(self) -> str:
        return self.entered[-1][0]

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage that is over."""
        found: dict[str, float] = {}
        for (stage, begin), (_, end) in pairwise(self.entered):
            if stage != "done":
                found[stage] = found.get(stage, 0.0) + end - begin
        return found

    @property
    def size(self) -> Hashable:
        return self.estimate.size

    @property
    def call(self) -> Call | None:
        """Of the denoiser, where it stands at its door."""
        call = self.guest and self.guest.call
        return call if isinstance(call, Call) else None

    @property
    def rows(self) -> int:
        return self.call.rows if self.call else self.estimate.rows

    @property
    def key(self) -> Hashable | None:
        """Jobs with equal keys can share a forward."""
        return self.call and self.call.key

    @property
    def remaining(self) -> float:
        """Seconds of work left, were it alone."""
        return self._forwards_left * self.estimate.alone + self.estimate.asides

    @property
    def patience(self) -> float:
        """Seconds in which others may come and go first: what is left of its time after those must do."""
        return (self.deadline - self.arrived) / 2

    @property
    def load(self) -> float:
        """Seconds of the device that it still takes in full company."""
        return self._forwards_left * self.estimate.shared + self.estimate.asides

    @property
    def _forwards_left(self) -> float:
        return max(self.estimate.forwards - self.forwards, 0.0)

    def enter(self, stage: str, now: float) -> None:
        """From the stage it was in."""
        if stage != self.stage:
            self.entered.append((stage, now))

    def report(self, step: int, of: int, preview: Callable[[], Pixels | None]) -> None:
        """To whoever watches: `step` of `of` is done."""
        self.step, self.steps = step, of
        if self.watch:
            self.watch.tell(Progress(step, of, preview() if self.watch.preview_due(step, of) else None))
