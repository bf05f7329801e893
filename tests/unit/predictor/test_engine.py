import threading
import weakref
from concurrent.futures import wait

import pytest
import torch
from prometheus_client import REGISTRY

from fakes import Clock, Gate, Model, params
from predictor.engine import Engine
from predictor.errors import Cancelled, DeadlineExceeded, GenerationFailed, InvalidRequest, NotServing, QueueFull
from predictor.job import Job, Progress, Watch
from predictor.messages import Submit
from predictor.policy import Policy
from predictor.speed import Curve

A_SECOND_A_ROW = Curve({1: 1.0, 2: 2.0})


def new_engine(model: Model | None = None, *, clock=None, on_fault=lambda: None, **policy) -> Engine:
    given = {"curve": A_SECOND_A_ROW, "row_limit": 4} | policy
    return Engine(model or Model(), Policy(**given), clock=clock or Clock(), on_fault=on_fault)


def takes(clock: Clock, seconds: float):
    """What stands in for work that takes so long."""
    return lambda: setattr(clock, "now", clock.now + seconds)


def submit(engine: Engine, *requests, timeout: float = 600, watch=None):
    return engine.submit(requests, timeout=timeout, request_id="r", watch=watch)


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


def test_seconds_tell_the_stages_apart():
    clock, model = Clock(), Model()
    model.pipe.text, model.pipe.unet.before, model.pipe.vae.before = takes(clock, 1), takes(clock, 2), takes(clock, 4)
    engine = new_engine(model, clock=clock)
    [job] = submit(engine, params(num_inference_steps=3))
    clock.now += 8
    run(engine)
    assert job.future.result().seconds == {"queue": 8.0, "text": 1.0, "denoise": 6.0, "decode": 4.0}


def test_a_pipeline_without_doors_is_served_all_the_same():
    model = Model()
    denoiser, model.pipe.unet, model.pipe.vae = model.pipe.unet, None, None
    model.generate = lambda pipe, asked, job: denoiser(torch.zeros(1), torch.zeros(1), torch.ones(1))
    engine = new_engine(model)
    jobs = submit(engine, params(), params())
    run(engine)
    assert [list(job.future.result().seconds) for job in jobs] == [["queue", "generate"]] * 2


def test_shortest_remaining_work_goes_first():
    engine = new_engine(row_limit=1)
    ends = []
    jobs = submit(engine, params("long", num_inference_steps=9), params("short", num_inference_steps=2))
    for job in jobs:
        job.future.add_done_callback(lambda _, job=job: ends.append(job.params.prompt))
    engine.step()
    [shorter] = submit(engine, params("shorter", num_inference_steps=1))
    shorter.future.add_done_callback(lambda _: ends.append("shorter"))
    run(engine)
    assert ends == ["short", "shorter", "long"] or ends == ["shorter", "short", "long"]


def test_first_come_first_served_where_asked_for():
    engine = new_engine(row_limit=1, first_come=True)
    ends = []
    for prompt, steps in (("long", 9), ("short", 2)):
        [job] = submit(engine, params(prompt, num_inference_steps=steps))
        job.future.add_done_callback(lambda _, prompt=prompt: ends.append(prompt))
        engine._clock.now += 1
    run(engine)
    assert ends == ["long", "short"]


def test_a_size_of_four_times_the_pixels_fits_a_quarter_of_the_rows():
    model = Model()
    engine = new_engine(model, row_limit=4)
    submit(engine, *(params(width=128, height=128, num_inference_steps=1) for _ in range(3)))
    run(engine)
    assert model.pipe.unet.forwards == [1, 1, 1]


def test_beginning_and_decoding_hold_up_others_by_no_more_than_a_forward():
    """Text encoding takes 0.4 of a forward: three may come between two forwards, not eight."""
    clock, model = Clock(), Model()
    model.pipe.unet.before, model.pipe.text = takes(clock, 1), takes(clock, 0.4)
    engine = new_engine(model, clock=clock, row_limit=100, curve=Curve({1: 1.0, 100: 1.0}))
    submit(engine, params(num_inference_steps=30))
    engine.step()
    submit(engine, *(params(num_inference_steps=20) for _ in range(8)))
    for _ in range(3):
        engine.step()
    assert model.pipe.unet.forwards == [1, 4, 7, 9]


def test_decoding_is_done_one_by_one_between_forwards():
    clock, model = Clock(), Model()
    model.pipe.unet.before, model.pipe.vae.before = takes(clock, 1), takes(clock, 5)
    engine = new_engine(model, clock=clock, row_limit=100)
    submit(engine, *(params(num_inference_steps=2) for _ in range(3)), params(num_inference_steps=9))
    order = []
    model.pipe.unet.before = lambda: order.append("forward")
    model.pipe.vae.before = lambda: (order.append("decode"), takes(clock, 5)())
    run(engine)
    assert order[:8] == ["forward", "forward", "decode", "forward", "decode", "forward", "decode", "forward"]


def test_whoever_watches_is_told_of_each_step():
    engine = new_engine()
    told = []
    submit(engine, params(num_inference_steps=3), watch=Watch(told.append, lambda step, of: step == 2))
    run(engine)
    assert told == [Progress(1, 3), Progress(2, 3), Progress(3, 3)]


def test_fixed_rows_are_filled_up_and_only_wanted_ones_come_back():
    model = Model()
    engine = new_engine(model, fixed_rows=True)
    first, second = submit(engine, params(seed=2, num_inference_steps=1), params(seed=3))
    run(engine)
    assert model.pipe.unet.forwards == [4, 4, 4]
    assert first.future.result().output.images == [2.0]
    assert second.future.result().output.images == [9.0]


def test_all_of_a_call_is_accepted_or_none():
    engine = new_engine(max_seconds=7.0)
    submit(engine, params(), params())
    with pytest.raises(QueueFull, match="about 6 s of work are accepted, and 6.0 s more do not fit into 7 s"):
        submit(engine, params(), params())
    assert len(engine.open_jobs) == 2


def test_retry_after_follows_what_forwards_really_take():
    clock, model = Clock(), Model()
    model.pipe.unet.before = takes(clock, 3)
    engine = new_engine(model, clock=clock, max_seconds=10, row_limit=1)
    jobs = submit(engine, params(num_inference_steps=10))
    with pytest.raises(QueueFull) as refused:
        engine.check_room([params(num_inference_steps=1)], timeout=600)
    assert refused.value.retry_after == 1
    run(engine)
    assert jobs[0].future.result()
    submit(engine, params(num_inference_steps=10))
    with pytest.raises(QueueFull) as refused:
        engine.check_room([params(num_inference_steps=1)], timeout=600)
    assert 10 < refused.value.retry_after <= 3 * 11 - 10


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    engine = new_engine(row_limit=1)
    with pytest.raises(InvalidRequest, match="about 50 s even alone"):
        submit(engine, params(num_inference_steps=50), timeout=40)
    submit(engine, params(num_inference_steps=30), timeout=40)
    with pytest.raises(QueueFull, match="would not be done within 40 s"):
        submit(engine, params(num_inference_steps=35), timeout=40)
    assert submit(engine, params(num_inference_steps=5), timeout=40)


def test_a_sampler_that_takes_two_forwards_a_step_is_learned():
    model = Model()
    model.generate = lambda pipe, asked, job: pipe(params(num_inference_steps=2 * asked.num_inference_steps))
    engine = new_engine(model)
    submit(engine, params(num_inference_steps=10, scheduler="Heun"))
    run(engine)
    [heun] = submit(engine, params(num_inference_steps=10, scheduler="Heun"))
    [other] = submit(engine, params(num_inference_steps=10))
    assert (heun.estimate.forwards, other.estimate.forwards) == (20, 10)


def test_a_device_that_fails_ends_the_engine_and_tells_everybody():
    """And nothing that a request can do looks like one."""
    model, ended = Model(), threading.Event()
    engine = new_engine(model, on_fault=ended.set)
    engine.start()
    for _ in range(9):
        [job] = submit(engine, params("poison", seed=0))
        assert job.future.exception(timeout=60)
    assert engine.alive

    def fault() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model.pipe.unet.before = fault
    jobs = submit(engine, params(), params(), params(width=128))
    for job in jobs:
        with pytest.raises(NotServing, match="the device of this replica has failed"):
            job.future.result(timeout=60)
    assert ended.wait(60)
    assert not engine.alive
    with pytest.raises(NotServing):
        submit(engine, params())


def test_a_device_that_fails_in_text_encoding_is_told_as_such():
    model, ended = Model(), threading.Event()

    def fault() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    model.pipe.text = fault
    engine = new_engine(model, on_fault=ended.set)
    jobs = submit(engine, params(), params())
    engine.start()
    for job in jobs:
        with pytest.raises(NotServing, match="has failed"):
            job.future.result(timeout=60)
    assert ended.wait(60)


def test_a_panic_is_one_requests_own():
    """Rust's, in tokenizers and safetensors, are no Exceptions."""

    class PanicException(BaseException):
        pass

    model = Model()
    generate = model.generate

    def panic(pipe, asked, job):
        if asked.prompt == "panic":
            raise PanicException("a prompt that must not be told")
        return generate(pipe, asked, job)

    model.generate = panic
    engine = new_engine(model)
    bad, good = submit(engine, params("panic"), params())
    run(engine)
    assert str(bad.future.exception()) == "generation failed"
    assert good.future.result()


def test_messages_come_between_pictures_of_a_pipeline_without_doors():
    model = Model()
    denoiser, model.pipe.unet, model.pipe.vae = model.pipe.unet, None, None
    made = []
    model.generate = lambda pipe, asked, job: made.append(asked) or denoiser(torch.zeros(1), torch.zeros(1), torch.ones(1))
    engine = new_engine(model)
    first, second, third = submit(engine, params(), params(), params())
    engine.step()
    engine.cancel(second)
    run(engine)
    assert len(made) == 2
    assert isinstance(second.future.exception(), Cancelled)
    assert first.future.result() and third.future.result()


def test_pictures_of_one_step_still_share_their_forwards():
    """Their decodings come all at once and hold up nobody: that time is not taken from those who are to begin."""
    clock, model = Clock(), Model()
    model.pipe.unet.before, model.pipe.vae.before, model.pipe.text = takes(clock, 1), takes(clock, 1), takes(clock, 0.05)
    engine = new_engine(model, clock=clock, row_limit=8, curve=Curve({1: 1.0, 8: 1.0}))
    submit(engine, *(params(num_inference_steps=1) for _ in range(64)))
    run(engine)
    assert model.pipe.unet.forwards == [8] * 8


def test_rows_that_only_fill_up_are_the_first_to_go_when_memory_is_short():
    model = Model()
    out_of_memory_beyond(2, model)
    engine = new_engine(model, row_limit=8, fixed_rows=True)
    [job] = submit(engine, params(num_inference_steps=1))
    run(engine)
    assert job.future.result()
    assert sample("predictor_row_limit") == 2


def test_what_was_stopped_before_it_came_is_not_begun():
    model = Model()
    engine = new_engine(model)
    engine.stop(NotServing("over"))
    job = Job(params(), engine._speed.estimate(params(), 1.0), "r", arrived=0.0, deadline=1e9)
    job.future.set_exception(NotServing("over"))
    engine._inbox.put(Submit(job))
    engine.step()
    assert model.pipe.unet.forwards == []


def out_of_memory_beyond(rows: int, model: Model) -> None:
    def refuse(_, arguments, options) -> None:
        if len(arguments[0] if arguments else options["sample"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.pipe.unet.register_forward_pre_hook(refuse, with_kwargs=True)


def test_out_of_memory_splits_the_batch_and_lowers_the_limit():
    model = Model()
    out_of_memory_beyond(2, model)
    before = sample("predictor_out_of_memory_total")
    engine = new_engine(model, row_limit=8)
    jobs = submit(engine, *(params(seed=i, num_inference_steps=2) for i in range(4)))
    run(engine)
    assert [job.future.result().output.images for job in jobs] == [[0.0], [2.0], [4.0], [6.0]]
    assert model.pipe.unet.forwards == [2, 2, 2, 2]
    assert sample("predictor_out_of_memory_total") == before + 1
    assert sample("predictor_row_limit") == 2


def test_one_request_that_needs_too_much_memory_fails_alone_and_costs_nobody_company():
    model = Model()
    out_of_memory_beyond(3, model)
    engine = new_engine(model, row_limit=3)
    huge, small, other = submit(engine, params(num_images_per_prompt=4), params(seed=2), params(seed=3))
    run(engine)
    assert str(huge.future.exception()) == "too little device memory"
    assert small.future.result().output.images == [6.0]
    assert sample("predictor_row_limit") == 3


def test_a_decoding_that_runs_out_of_memory_is_done_in_tiles():
    model, failures = Model(), [torch.OutOfMemoryError("CUDA out of memory")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    model.pipe.vae.before = fail_once
    engine = new_engine(model)
    [job] = submit(engine, params())
    run(engine)
    assert job.future.result().output.images == [3.0]
    assert model.in_tiles == 1


def sample(name: str) -> float:
    return REGISTRY.get_sample_value(name)


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
    engine = new_engine(row_limit=2)
    first, waiting = submit(engine, params(num_images_per_prompt=2), params(num_inference_steps=50))
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
    [late] = submit(engine, params(num_inference_steps=50), timeout=55)
    engine.step()
    clock.now += 56
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
    """A forward is expected to take 1 s here: fifty times that is a hang, and so is whatever the operator says."""
    for patience, policy in ((50, {}), (10, {"hang_after": 10})):
        clock, model = Clock(), Model()
        gate = Gate(model.pipe.unet)
        engine = new_engine(model, clock=clock, **policy)
        assert not engine.alive  # not started
        engine.start()
        clock.now += 1000
        [job] = submit(engine, params())
        assert engine.alive  # it was idle
        gate.entered.wait(60)
        clock.now += patience - 1
        assert engine.alive
        clock.now += 2
        assert not engine.alive
        gate.opened.set()
        job.future.result(timeout=60)
        clock.now += 1000
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
