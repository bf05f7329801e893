import subprocess
import sys
from dataclasses import dataclass

from predictor.scheduler import Scheduler


@dataclass(eq=False)
class Request:
    rows: int = 1
    key: str | None = "a"


def started(scheduler: Scheduler, *requests: Request) -> list[Request]:
    for request in requests:
        scheduler.add(request)
    begun = []
    while request := scheduler.start_next():
        begun.append(request)
    return begun


def test_needs_no_torch():
    code = "import sys, predictor.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_to_do_is_a_normal_state():
    scheduler: Scheduler = Scheduler(4)
    assert scheduler.start_next() is None
    assert scheduler.next_batch() == []


def test_starts_in_order_as_many_as_fit():
    scheduler: Scheduler = Scheduler(4)
    first, second, third = Request(2), Request(2), Request(1)
    assert started(scheduler, first, second, third) == [first, second]
    assert scheduler.waiting == (third,)
    scheduler.remove(first)
    assert scheduler.start_next() is third


def test_a_large_request_at_the_head_is_not_overtaken():
    scheduler: Scheduler = Scheduler(4)
    small, large, tiny = Request(2), Request(4), Request(1)
    assert started(scheduler, small, large, tiny) == [small]
    scheduler.remove(small)
    assert scheduler.start_next() is large


def test_one_too_large_to_share_runs_alone():
    scheduler: Scheduler = Scheduler(4)
    huge, next_one = Request(9), Request(1)
    assert started(scheduler, huge, next_one) == [huge]
    assert scheduler.next_batch() == [huge]


def test_a_batch_shares_one_key_and_its_rows_fit():
    scheduler: Scheduler = Scheduler(4)
    requests = [Request(1, "a"), Request(1, "b"), Request(2, "a")]
    started(scheduler, *requests)
    assert scheduler.next_batch() == [requests[0], requests[2]]
    assert scheduler.next_batch() == [requests[1]]


def test_rows_that_turn_out_larger_than_guessed_are_split_over_forwards():
    scheduler: Scheduler = Scheduler(4)
    requests = [Request(2), Request(2)]
    started(scheduler, *requests)
    for request in requests:
        request.rows = 3
    assert scheduler.next_batch() == requests[:1]
    assert scheduler.next_batch() == requests[1:]


def test_nobody_starves_while_others_keep_coming():
    scheduler: Scheduler = Scheduler(6)
    lonely = Request(1, "lonely")
    crowd = [Request(1, "crowd") for _ in range(5)]
    started(scheduler, *crowd, lonely)
    served = 0
    for _ in range(100):
        served += lonely in scheduler.next_batch()
        scheduler.remove(crowd.pop(0))
        crowd.append(Request(1, "crowd"))
        started(scheduler, crowd[-1])
    assert served == 50


def test_removing_what_is_not_there_is_harmless():
    scheduler: Scheduler = Scheduler(4)
    scheduler.remove(Request())
    assert scheduler.running == ()
