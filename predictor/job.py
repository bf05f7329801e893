"""A request while it is being worked on, and what comes of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from predictor.rendezvous import Guest
from predictor.request import Params


@dataclass(frozen=True)
class Result:
    """What a pipeline returned, and the seconds it took: `queue` before it began, `generate` after that."""

    output: Any
    seconds: Mapping[str, float]


class Job:
    """Belongs to the engine's thread; others may wait for its `future`, which ends in a Result or a ServingError."""

    def __init__(self, params: Params, cost: float, deadline: float, request_id: str, now: float) -> None:
        """`cost` in any unit that adds up, `deadline` and `now` in seconds of the engine's clock."""
        self.params = params
        self.cost = cost
        self.deadline = deadline
        self.request_id = request_id
        self.submitted = now
        self.began: float | None = None
        self.step = 0  # forwards so far
        self.guest: Guest[Any] | None = None
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # whoever waits may stop waiting, but only the engine ends it

    @property
    def images(self) -> int:
        return self.params.num_images_per_prompt

    @property
    def rows(self) -> int:
        """Of the denoiser's batch; a guess until the first call tells."""
        call = self.guest and self.guest.call
        return call.rows if call else self.images * (2 if (self.params.guidance_scale or 0) > 1 else 1)

    @property
    def key(self) -> Hashable:
        """Jobs with equal keys can share a forward."""
        return self.guest.call.key if self.guest and self.guest.call else None
