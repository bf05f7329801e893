import time

from predictor.phases import Phases, since_process_start


def test_a_phase_lasts_until_the_next_begins_and_the_first_began_with_the_process():
    times = iter([3.0, 5.0, 5.5, 7.0])
    phases = Phases("imports", clock=lambda: next(times))
    assert phases.seconds == {}
    for name in ("read", "to_device", "warm_up", "ready"):
        phases.begin(name)
    assert phases.seconds == {"imports": 3.0, "read": 2.0, "to_device": 0.5, "warm_up": 1.5}


def test_times_of_a_phase_that_comes_again_add_up():
    times = iter([1.0, 2.0, 4.0, 8.0])
    phases = Phases("imports", clock=lambda: next(times))
    for name in ("read", "to_device", "read", "ready"):
        phases.begin(name)
    assert phases.seconds == {"imports": 1.0, "read": 1.0 + 4.0, "to_device": 2.0}


def test_the_kernel_knows_when_the_process_began():
    first = since_process_start()
    assert 0 < first < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert since_process_start() >= first
