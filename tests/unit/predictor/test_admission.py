import math

import pytest

from fakes import params
from predictor.admission import Admission
from predictor.errors import InvalidRequest, NotServing, QueueFull
from predictor.job import Job
from predictor.speed import Estimate


def job(seconds: float = 10.0, *, patience: float = math.inf, sharing: float = 1.0, arrived: float = 0.0) -> Job:
    """Ten forwards of `seconds` in all, which take `sharing` times as long of a device that is shared."""
    estimate = Estimate((64, 64), 1.0, 1, forwards=10, alone=seconds / 10, shared=sharing * seconds / 10, asides=0.0)
    return Job(params(), estimate, "r", arrived=arrived, deadline=arrived + patience)


def new_admission(max_seconds: float = 30.0) -> Admission:
    return Admission(max_seconds, rank=lambda job: job.remaining)


def refused(admission: Admission, *jobs: Job) -> QueueFull:
    with pytest.raises(QueueFull) as refusal:
        admission.check(jobs)
    return refusal.value


def test_seconds_are_counted_and_released():
    admission = new_admission()
    first, second = job(20), job(10)
    admission.admit([first, second])
    assert "about 30 s of work are accepted, and 5.0 s more do not fit into 30 s" in refused(admission, job(5)).message
    admission.release(first)
    admission.check([job(20)])
    assert admission.open_jobs == (second,)


def test_work_that_is_done_makes_room():
    admission = new_admission()
    working = job(30)
    admission.admit([working])
    assert refused(admission, job(10)).retry_after == 10
    working.forwards = 2
    assert refused(admission, job(10)).retry_after == 4
    working.forwards = 4
    admission.check([job(10)])


def test_work_that_shares_forwards_counts_for_what_it_takes_of_them():
    admission = new_admission()
    admission.admit([job(20, sharing=0.25) for _ in range(6)])
    refused(admission, job(20, sharing=0.25))


def test_a_call_is_admitted_whole_or_not_at_all():
    admission = new_admission()
    admission.admit([job(20)])
    with pytest.raises(QueueFull):
        admission.admit([job(5), job(6)])
    assert len(admission.open_jobs) == 1


def test_an_idle_device_takes_what_is_larger_than_its_queue():
    admission = new_admission(max_seconds=5)
    admission.admit([job(20)])
    refused(admission, job(0.1))


def test_what_no_idle_device_could_finish_is_the_callers_mistake():
    with pytest.raises(InvalidRequest, match="about 20 s even alone, and no request may take more than 15 s"):
        new_admission().check([job(20, patience=15)])
    with pytest.raises(InvalidRequest, match="about 24 s even alone"):
        new_admission().check([job(12, patience=15), job(12, patience=15)])


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    """Only work that goes first counts: the short one is let in before the long one."""
    admission = new_admission(max_seconds=1000)
    admission.admit([job(60), job(60)])
    admission.check([job(20, patience=30)])
    admission.admit([job(15), job(15)])
    refusal = refused(admission, job(20, patience=30))
    assert refusal.retry_after == 20
    assert "about 30 s of work come first, and 20.0 s more would not be done within 30 s" in refusal.message


def test_closed_for_good_with_the_first_reason():
    admission = new_admission()
    admission.close(NotServing("first"))
    admission.close(NotServing("second"))
    for _ in range(2):
        with pytest.raises(NotServing, match="first"):
            admission.admit([job()])


def test_the_estimate_has_both_ends():
    admission = new_admission()
    admission.admit([job(30)])
    assert refused(admission, job(0.001)).retry_after == 1
    assert refused(admission, job(1e9)).retry_after == 600
