import itertools
import statistics

from bench.workload import GUIDANCE, STEPS, arrivals, mixed, of_every_kind


def test_a_seed_fixes_what_is_asked_and_when():
    assert mixed("1/0.6x", 50) == mixed("1/0.6x", 50) != mixed("2/0.6x", 50)
    assert arrivals("1", 2.0, 50) == arrivals("1", 2.0, 50) != arrivals("2", 2.0, 50)


def test_arrivals_are_a_poisson_process_of_the_rate():
    times = arrivals("seed", 4.0, 4000)
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *times])]
    assert min(gaps) >= 0 and times[-1] <= 1000
    # The gaps are exponential: as far spread as they are long.
    assert abs(statistics.fmean(gaps) - 0.25) < 0.02
    assert abs(statistics.stdev(gaps) - 0.25) < 0.02


def test_requests_mix_every_value_and_half_leave_the_common_one():
    requests = mixed("seed", 2000)
    assert {each.steps for each in requests} == set(STEPS)
    assert {each.guidance for each in requests} == set(GUIDANCE)
    assert 0.45 < sum(each.steps == 20 for each in requests) / len(requests) < 0.55
    assert len({each.seed for each in requests}) == len(requests)


def test_every_kind_is_asked_for_as_often_as_said():
    kinds = [each.kind for each in of_every_kind("seed", 3)]
    assert {kinds.count(kind) for kind in kinds} == {3}
    assert len(set(kinds)) == 2 * len(STEPS)
