import pytest

from fakes import params
from predictor.admission import Admission
from predictor.errors import InvalidRequest, NotServing, QueueFull
from predictor.job import Job


def job(images: int = 1, cost: float = 10.0, steps: int = 10, scheduler: str | None = None) -> Job:
    asked = params(num_images_per_prompt=images, num_inference_steps=steps, scheduler=scheduler)
    return Job(asked, cost, deadline=1e9, request_id="r", now=0.0)


def retry_after(admission: Admission) -> int:
    with pytest.raises(QueueFull) as refused:
        admission.check(1)
    return refused.value.retry_after


def test_images_are_counted_and_released():
    admission = Admission(4)
    first, second = job(3), job(1)
    admission.admit([first, second])
    with pytest.raises(QueueFull, match="4 of at most 4 pictures .* 1 more do not fit"):
        admission.check(1)
    admission.release(first)
    admission.check(3)
    assert admission.open_jobs == (second,)


def test_a_call_is_admitted_whole_or_not_at_all():
    admission = Admission(4)
    admission.admit([job(3)])
    with pytest.raises(QueueFull):
        admission.admit([job(1), job(1)])
    assert len(admission.open_jobs) == 1


def test_what_never_fits_is_the_callers_mistake():
    with pytest.raises(InvalidRequest, match="at most 4 images in all, not 5"):
        Admission(4).check(5)


def test_closed_for_good_with_the_first_reason():
    admission = Admission(4)
    admission.close(NotServing("first"))
    admission.close(NotServing("second"))
    for _ in range(2):
        with pytest.raises(NotServing, match="first"):
            admission.admit([job()])


def test_without_a_measurement_the_estimate_is_a_second():
    admission = Admission(1)
    admission.admit([job()])
    assert retry_after(admission) == 1


def test_the_estimate_is_work_left_over_speed():
    admission = Admission(1)
    working = job(cost=10.0, steps=10)
    admission.admit([working])
    admission.note_forward([working], 2.0)  # a tenth of 10 in 2 s: 0.5 a second
    working.step = 4
    assert retry_after(admission) == 12
    for _ in range(100):  # now twice as fast
        admission.note_forward([working], 1.0)
    assert retry_after(admission) in (6, 7)  # the average only comes close


def test_the_estimate_learns_how_many_forwards_a_sampler_takes_a_step():
    admission = Admission(1)
    done = job(scheduler="Heun")
    done.step = 20
    admission.note_finished(done)
    working = job(scheduler="Heun")
    admission.admit([working])
    admission.note_forward([working], 1.0)  # one of 20 forwards
    working.step = 5
    assert retry_after(admission) == 15


def test_the_estimate_has_an_end():
    admission = Admission(1)
    working = job(cost=1e9)
    admission.admit([working])
    admission.note_forward([job(cost=1e-9)], 1.0)
    assert retry_after(admission) == 600
