import math
import random
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from predictor.scheduler import AGEING, Scheduler


@dataclass(eq=False)
class Request:
    """A step of one row takes a second."""

    steps: float = 1.0
    arrived: float = 0.0
    rows: int = 1
    size: str = "a"
    key: str | None = "k"
    patience: float = math.inf

    @property
    def remaining(self) -> float:
        return self.steps * self.rows


def scheduler_of(*requests: Request, limit: int = 4, first_come: bool = False) -> Scheduler[Request]:
    scheduler: Scheduler[Request] = Scheduler(lambda _: limit, first_come)
    for request in requests:
        scheduler.add(request)
    return scheduler


# ---------------------------------------------------------------- one decision


def test_needs_no_torch():
    code = "import sys, predictor.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_to_do_is_a_normal_state():
    scheduler = scheduler_of()
    assert scheduler.next_start() is None
    assert scheduler.next_batch() == []
    assert not scheduler


def test_the_shortest_go_first_as_many_as_fit():
    long, short, middle = Request(9), Request(1, rows=2), Request(4, rows=2)
    assert scheduler_of(long, short, middle).next_batch() == [short, middle]


def test_first_come_first_served_where_asked_for():
    long, short = Request(9, arrived=0, rows=4), Request(1, arrived=1)
    assert scheduler_of(short, long, first_come=True).next_batch() == [long]


def test_nobody_overtakes_who_came_much_later():
    long, short = Request(9, arrived=0, rows=3), Request(1, arrived=23 / AGEING, rows=3)
    assert scheduler_of(short, long).next_batch() == [short]
    short.arrived = 25 / AGEING
    assert scheduler_of(short, long).next_batch() == [long]


def test_nor_who_came_later_than_its_patience():
    """Its time ends: those who may still overtake must leave it enough."""
    long, short = Request(9, arrived=0, rows=3, patience=20), Request(1, arrived=0, rows=3)
    assert scheduler_of(short, long).next_batch() == [long]


def test_who_does_not_fit_is_passed_over():
    first, large, small = Request(1, rows=3), Request(2, rows=2), Request(9, rows=1)
    assert scheduler_of(first, large, small).next_batch() == [first, small]


def test_one_too_large_to_share_runs_alone():
    huge, other = Request(0.1, rows=9), Request(5)
    assert scheduler_of(huge, other).next_batch() == [huge]


def test_a_batch_has_one_size_and_one_key():
    first, same, other_key, other_size = Request(1), Request(2), Request(1.5, key="l"), Request(1.2, size="b")
    assert scheduler_of(first, same, other_key, other_size).next_batch() == [first, same]


def test_who_would_share_the_next_forward_is_begun_for_it():
    running, short, long = Request(3, rows=2), Request(1, key=None), Request(9, key=None, rows=2)
    scheduler = scheduler_of(running, short, long)
    assert scheduler.next_start() is short
    assert scheduler.next_batch() == [running]
    short.key = "k"
    assert scheduler.next_start() is None
    assert scheduler.next_batch() == [short, running]


def test_a_place_in_the_batch_is_not_kept_for_who_has_not_begun():
    fresh, running = Request(1, key=None, rows=4), Request(3, rows=4)
    assert scheduler_of(fresh, running).next_batch() == [running]


def test_sizes_take_turns_by_what_they_were_served():
    small, large = Request(100, size="small"), Request(100, size="large")
    scheduler = scheduler_of(small, large)
    turns = []
    for _ in range(10):
        [request] = scheduler.next_batch()
        scheduler.charge(request.size, 4.0 if request is large else 1.0)
        turns.append(request.size)
    assert turns.count("small") == 4 * turns.count("large")


def test_a_size_that_was_away_has_earned_nothing():
    resident, guest = Request(100, size="resident"), Request(100, size="guest")
    scheduler = scheduler_of(resident)
    for _ in range(50):
        scheduler.charge("resident", 1.0)
    scheduler.add(guest)
    turns = [serve_one(scheduler) for _ in range(10)]
    assert turns.count("guest") == 5


def test_ever_new_sizes_do_not_keep_one_from_its_share():
    """Any width and height is a size: each that comes starts where one would stand that had been there always."""
    scheduler = scheduler_of(Request(100, size="resident"))
    served = 0
    for i in range(200):
        scheduler.add(Request(1, size=f"fresh {i}"))
        [request] = scheduler.next_batch()
        scheduler.charge(request.size, 10.0 if request.size == "resident" else 1.0)
        served += request.size == "resident"
        if request.size != "resident":
            scheduler.remove(request)
    assert served >= 5


def test_a_forward_counts_even_when_its_requests_have_gone():
    scheduler = scheduler_of(Request(size="a"), Request(size="b"))
    [gone] = scheduler.next_batch()
    scheduler.remove(gone)
    scheduler.charge(gone.size, 5.0)
    assert serve_one(scheduler) != gone.size


def test_a_size_that_leaves_takes_its_debt_along():
    resident = Request(100, size="resident")
    scheduler = scheduler_of(resident)
    turns = []
    for _ in range(40):
        if not any(request.size == "guest" for request in scheduler):
            scheduler.add(Request(1, size="guest"))
        [request] = scheduler.next_batch()
        scheduler.charge(request.size, 9.0 if request.size == "guest" else 1.0)
        turns.append(request.size)
        if request.size == "guest":
            scheduler.remove(request)
    assert turns.count("guest") == 4


def test_removing_what_is_not_there_is_harmless():
    scheduler = scheduler_of()
    scheduler.remove(Request())
    assert len(scheduler) == 0


def test_what_is_remembered_of_sizes_is_bounded():
    scheduler = scheduler_of()
    for i in range(1000):
        request = Request(size=str(i))
        scheduler.add(request)
        serve_one(scheduler)
        scheduler.remove(request)
    assert len(scheduler._served) <= 2


def serve_one(scheduler: Scheduler[Request]) -> str:
    [request] = scheduler.next_batch()[:1]
    scheduler.charge(request.size, 1.0)
    return request.size


# ---------------------------------------------------------------- thousands of arrivals


Seconds = Callable[[int], float]


def compute_bound(rows: int) -> float:
    """One row fills the device."""
    return 0.1 * rows


def launch_bound(rows: int) -> float:
    """Up to eight rows cost hardly more than one."""
    return 0.1 * max(1.0, rows / 8)


@dataclass
class Outcome:
    latency: list[float] = field(default_factory=list)
    slowdown: list[float] = field(default_factory=list)  # latency by what it takes alone

    @property
    def mean(self) -> float:
        return statistics.fmean(self.latency)

    def within(self, times: float) -> float:
        return sum(each <= times for each in self.slowdown) / len(self.slowdown)


def poisson(load: float, seconds: Seconds, count: int, sizes: Iterable[str] = ("a",), seed: int = 1) -> deque[Request]:
    """Arrivals at `load` times what serving one at a time can bear: 10 to 50 steps of one row."""
    chance = random.Random(seed)
    now, arrivals = 0.0, deque()
    for _ in range(count):
        now += chance.expovariate(load / (30 * seconds(1)))
        arrivals.append(Request(chance.randint(10, 50), now, size=chance.choice(list(sizes)), key=None))
    return arrivals


def simulate(arrivals: deque[Request], seconds: Seconds, limit: int, first_come: bool = False) -> Outcome:
    """The engine's loop around the real Scheduler, with a clock that costs nothing."""
    scheduler: Scheduler[Request] = Scheduler(lambda _: limit, first_come)
    outcome, alone, now = Outcome(), {}, 0.0
    arrivals = deque(Request(each.steps, each.arrived, each.rows, each.size, None) for each in arrivals)
    while arrivals or scheduler:
        if not scheduler:
            now = max(now, arrivals[0].arrived)
        while arrivals and arrivals[0].arrived <= now:
            alone[arrivals[0]] = arrivals[0].steps * seconds(1)
            scheduler.add(arrivals.popleft())
        while request := scheduler.next_start():
            request.key = "k"
        batch = scheduler.next_batch()
        assert batch and sum(request.rows for request in batch) <= max(limit, batch[0].rows)
        took = seconds(sum(request.rows for request in batch))
        scheduler.charge(batch[0].size, took)
        now += took
        for request in batch:
            request.steps -= 1
            if request.steps <= 0:
                scheduler.remove(request)
                outcome.latency.append(now - request.arrived)
                outcome.slowdown.append((now - request.arrived) / alone[request])
    return outcome


def test_sharing_pays_where_one_request_does_not_fill_the_device():
    arrivals = poisson(1.5, launch_bound, 2000)
    shared, serial = simulate(arrivals, launch_bound, 8), simulate(arrivals, launch_bound, 1, first_come=True)
    assert len(shared.latency) == 2000
    assert shared.mean < 0.1 * serial.mean
    assert shared.within(3) == 1.0


def test_beyond_the_knee_sharing_harms_and_shortest_first_helps():
    """Why the limit is measured: on a device that one row fills, everybody waits for everybody."""
    arrivals = poisson(0.8, compute_bound, 2000)
    naive = simulate(arrivals, compute_bound, 16, first_come=True)
    serial = simulate(arrivals, compute_bound, 1, first_come=True)
    ours = simulate(arrivals, compute_bound, 1)
    assert ours.mean < 0.8 * serial.mean < naive.mean
    assert ours.within(3) > serial.within(3) > naive.within(3)


def test_shortest_first_never_loses_to_first_come_on_the_mean():
    for load, seed in ((0.6, 1), (0.9, 2), (1.2, 3)):
        for limit in (1, 2, 4):
            arrivals = poisson(load, compute_bound, 500, seed=seed)
            ours, theirs = (simulate(arrivals, compute_bound, limit, first_come) for first_come in (False, True))
            assert ours.mean <= theirs.mean * 1.001, (load, limit)


def test_nobody_starves_under_an_endless_flood_of_short_requests():
    """The long one is overtaken by those who come within remaining / AGEING seconds of it, and by nobody after."""
    long = Request(40, 0.0)
    flood = [Request(1, 0.1 * i, key=None) for i in range(20000)]
    scheduler = scheduler_of(long, limit=1)
    now, upcoming, served_at = 0.0, deque(flood), None
    while served_at is None:
        while upcoming[0].arrived <= now:
            upcoming[0].key = "k"
            scheduler.add(upcoming.popleft())
        [request] = scheduler.next_batch()
        if request is long:
            served_at = now
        now += 0.1
        request.steps -= 1
        if not request.steps:
            scheduler.remove(request)
    assert served_at <= 1.01 * long.remaining / AGEING


@pytest.mark.parametrize("seed", range(20))
def test_everybody_is_served_whatever_comes(seed):
    """Any mixture of sizes, rows and keys, at an overload: all are finished, none waits longer than the bound allows."""
    chance = random.Random(seed)
    arrivals = deque(
        Request(chance.randint(1, 30), at, chance.choice([1, 2, 2, 8]), chance.choice("abc"), None)
        for at in sorted(chance.uniform(0, 100) for _ in range(300))
    )
    outcome = simulate(arrivals, lambda rows: 0.05 + 0.02 * rows, limit=4)
    assert len(outcome.latency) == 300


def test_sizes_share_the_device_by_time_and_not_by_number():
    arrivals = poisson(3.0, compute_bound, 600, sizes=("a", "a", "a", "b"), seed=7)
    for request in arrivals:
        request.rows = 4 if request.size == "b" else 1
    scheduler: Scheduler[Request] = Scheduler(lambda _: 4)
    for request in arrivals:
        request.arrived, request.key = 0.0, "k"
        scheduler.add(request)
    served = {"a": 0.0, "b": 0.0}
    while {request.size for request in scheduler} == {"a", "b"}:
        batch = scheduler.next_batch()
        took = compute_bound(sum(request.rows for request in batch))
        scheduler.charge(batch[0].size, took)
        served[batch[0].size] += took
        for request in batch:
            request.steps -= 1
            if not request.steps:
                scheduler.remove(request)
    assert served["a"] == pytest.approx(served["b"], rel=0.02)


def test_ageing_is_a_compromise():
    """Between the best mean, pure shortest-first, and the best worst case, first come first served."""
    arrivals = poisson(0.95, compute_bound, 3000, seed=5)
    ours, theirs = (simulate(arrivals, compute_bound, 1, first_come) for first_come in (False, True))
    assert ours.mean < 0.85 * theirs.mean
    assert max(ours.latency) < 2.5 * max(theirs.latency)


def test_ranks_of_the_waiting_do_not_change_with_time():
    """So a queue that is not served needs no attention."""
    scheduler = scheduler_of(*(Request(i % 7, i) for i in range(50)))
    ranks = [scheduler.rank(request) for request in scheduler]
    ordered = sorted(scheduler, key=scheduler.rank)
    assert [scheduler.rank(request) for request in scheduler] == ranks
    assert all(scheduler.rank(a) <= scheduler.rank(b) for a, b in pairwise(ordered))
