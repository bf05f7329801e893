import threading
import weakref
from concurrent.futures import wait

import pytest
import torch

from fakes import Clock, Gate, Model, params
from predictor.engine import Engine
from predictor.errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest, NotServing, QueueFull


def new_engine(model: Model | None = None, **settings) -> Engine:
    return Engine(model or Model(), **{"max_rows": 4, "max_queue": 10} | settings)


def submit(engine: Engine, *requests, timeout: float = 60):
    return engine.submit(requests, timeout=timeout, request_id="r")


def run(engine: Engine) -> None:
    """Steps in this thread until nothing is left."""
    while engine.open_jobs:
        engine.step()


def test_requests_share_forwards_and_join_and_leave_at_any_step():
    model = Model()
    engine = new_engine(model)
    [long] = submit(engine, params(num_inference_steps=5, seed=2))
    engine.step()
    [short] = submit(engine, params(num_inference_steps=2, seed=3))
    run(engine)
    assert model.pipe.unet.forwards == [1, 2, 2, 1, 1]
    assert long.future.result().output.images == [10.0]
    assert short.future.result().output.images == [6.0]


def test_seconds_tell_waiting_from_work():
    clock = Clock()
    engine = new_engine(clock=clock, max_rows=2)
    first, second = submit(engine, params(num_images_per_prompt=2), params(num_images_per_prompt=2))
    for _ in range(3):
        engine.step()
        clock.now += 1
    run(engine)
    assert first.future.result().seconds == {"queue": 0.0, "generate": 2.0}
    assert second.future.result().seconds == {"queue": 3.0, "generate": 0.0}


def test_all_of_a_call_is_accepted_or_none():
    engine = new_engine(max_queue=3)
    submit(engine, params(), params())
    with pytest.raises(QueueFull, match="2 of at most 3"):
        submit(engine, params(), params())
    assert len(engine.open_jobs) == 2


def test_the_queue_counts_images_and_says_what_can_never_fit():
    engine = new_engine(max_queue=4)
    submit(engine, params(num_images_per_prompt=3))
    with pytest.raises(QueueFull, match="3 of at most 4 pictures .* 2 more do not fit"):
        engine.check_room(2)
    engine.check_room(1)
    with pytest.raises(InvalidRequest, match="at most 4 images in all, not 5"):
        submit(engine, params(num_images_per_prompt=3), params(num_images_per_prompt=2))


def test_a_sampler_that_takes_two_forwards_a_step_is_learned():
    clock, model = Clock(), Model()
    model.generate = lambda pipe, asked: pipe(params(num_inference_steps=2 * asked.num_inference_steps))
    model.pipe.unet.before = lambda: setattr(clock, "now", clock.now + 1)  # a forward: 1 s
    engine = new_engine(model, clock=clock, max_queue=1)
    submit(engine, params(num_inference_steps=10, scheduler="Heun"))
    run(engine)
    submit(engine, params(num_inference_steps=10, scheduler="Heun"))
    for _ in range(5):
        engine.step()
    with pytest.raises(QueueFull) as refused:
        engine.check_room(1)
    assert 10 <= refused.value.retry_after <= 16  # 15 forwards are left; the speed is still being learned


def test_a_device_that_reports_a_fault_of_its_own_is_not_alive():
    """And nothing that a request can do looks like one."""
    model = Model()
    engine = new_engine(model)
    engine.start()
    for _ in range(9):
        [job] = submit(engine, params("poison", seed=0))
        assert job.future.exception(timeout=60)
    assert engine.alive

    def fault() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model.pipe.unet.before = fault
    [job] = submit(engine, params())
    assert job.future.exception(timeout=60)
    assert not engine.alive


def test_a_failure_does_not_keep_the_memory_of_its_forward():
    model, kept = Model(), []

    def fail() -> None:
        activation = torch.zeros(9)
        kept.append(weakref.ref(activation))
        raise RuntimeError("out of something")

    model.pipe.unet.before = fail
    engine = new_engine(model)
    jobs = submit(engine, params(), params())
    alive_at_retry = []
    original = engine._forward
    engine._forward = lambda batch: alive_at_retry.append([ref() is not None for ref in kept]) or original(batch)
    run(engine)
    assert all(job.future.exception() for job in jobs)
    assert alive_at_retry == [[], [False], [False, False]]


def test_retry_after_follows_the_measured_speed():
    clock, model = Clock(), Model()
    model.pipe.unet.before = lambda: setattr(clock, "now", clock.now + 2)  # a step of one image: 2 s
    engine = new_engine(model, clock=clock, max_queue=1)
    submit(engine, params(num_inference_steps=10))
    engine.step()
    with pytest.raises(QueueFull) as refused:
        submit(engine, params())
    assert refused.value.retry_after == 18


def test_a_cancelled_job_costs_no_further_forward():
    model = Model()
    engine = new_engine(model)
    gone, stays = submit(engine, params(seed=1), params(seed=2))
    engine.step()
    engine.cancel(gone)
    run(engine)
    assert model.pipe.unet.forwards == [2, 1, 1]
    assert isinstance(gone.future.exception(), Cancelled)
    assert stays.future.result().output.images == [6.0]


def test_cancelling_what_waits_or_is_done_is_fine():
    engine = new_engine(max_rows=2)
    first, waiting = submit(engine, params(num_images_per_prompt=2), params())
    engine.step()
    engine.cancel(waiting)
    run(engine)
    assert isinstance(waiting.future.exception(), Cancelled)
    engine.cancel(first)
    [after] = submit(engine, params())
    run(engine)
    assert first.future.result() and after.future.result()


def test_a_passed_deadline_is_not_started():
    clock, model = Clock(), Model()
    engine = new_engine(model, clock=clock)
    [late] = submit(engine, params(), timeout=5)
    clock.now += 5
    run(engine)
    assert isinstance(late.future.exception(), DeadlineExceeded)
    assert model.pipe.unet.forwards == []


def test_a_deadline_that_passes_half_way_ends_the_work():
    clock, model = Clock(), Model()
    engine = new_engine(model, clock=clock)
    [late] = submit(engine, params(num_inference_steps=50), timeout=5)
    engine.step()
    clock.now += 6
    run(engine)
    assert model.pipe.unet.forwards == [1]
    assert isinstance(late.future.exception(), DeadlineExceeded)


@pytest.mark.parametrize("bad", ["poison", "fails late"])
def test_a_failing_request_fails_alone_and_says_nothing_of_why(bad, caplog):
    engine = new_engine()
    before, failing, after = submit(engine, params(seed=1), params(bad, seed=0), params(seed=2))
    with caplog.at_level("ERROR"):
        run(engine)
    assert str(failing.future.exception()) == "generation failed"
    assert before.future.result().output.images == [3.0]
    assert after.future.result().output.images == [6.0]
    [record] = caplog.records
    assert record.request_id == "r"
    assert "must not be told" not in caplog.text + str(vars(record))


def test_closing_refuses_the_new_and_finishes_the_old():
    engine = new_engine()
    [old] = submit(engine, params())
    engine.close(NotServing("closing", retry_after=1))
    with pytest.raises(NotServing, match="closing"):
        submit(engine, params())
    run(engine)
    assert old.future.result()


def test_gradients_stay_off_for_all_when_one_request_ends():
    engine = new_engine()
    engine.start()
    jobs = submit(engine, params(num_inference_steps=1), params(num_inference_steps=4))
    wait([job.future for job in jobs])
    [after] = submit(engine, params())
    assert not after.future.result(timeout=60).output.grad
    engine.stop(NotServing("over"))


def test_stop_tells_the_unfinished():
    model = Model()
    gate = Gate(model.pipe.unet)
    engine = new_engine(model)
    engine.start()
    [job] = submit(engine, params())
    gate.entered.wait(60)
    engine.stop(NotServing("over", retry_after=1))
    gate.opened.set()
    with pytest.raises(NotServing, match="over"):
        job.future.result(timeout=60)
    assert not engine.open_jobs


def test_alive_is_the_thread_and_its_heartbeat():
    clock, model = Clock(), Model()
    gate = Gate(model.pipe.unet)
    engine = new_engine(model, clock=clock, hang_after=10)
    assert not engine.alive  # not started
    engine.start()
    [job] = submit(engine, params())
    gate.entered.wait(60)
    clock.now += 9
    assert engine.alive
    clock.now += 2
    assert not engine.alive
    gate.opened.set()
    job.future.result(timeout=60)
    clock.now += 100
    assert engine.alive  # idle is not hung


def test_an_engine_that_dies_answers_everybody(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = new_engine()
    monkeypatch.setattr(engine._scheduler, "next_batch", lambda: 1 / 0)
    jobs = submit(engine, params(), params())
    engine.start()
    for job in jobs:
        with pytest.raises(GenerationFailed):
            job.future.result(timeout=60)
    with pytest.raises(NotServing):
        submit(engine, params())
    assert not engine.alive
