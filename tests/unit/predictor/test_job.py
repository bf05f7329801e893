from dataclasses import replace

import pytest

from fakes import Pipe, params
from predictor.job import Job, Progress, Watch
from predictor.rendezvous import Call, Decode, Rendezvous
from predictor.speed import Estimate

ESTIMATE = Estimate(size=(64, 64), factor=1.0, rows=2, forwards=3, alone=2.0, shared=0.5, asides=0.25)


def job(**estimate) -> Job:
    return Job(params(), replace(ESTIMATE, **estimate), "r", arrived=100.0, deadline=109.0)


def begun(pipe: Pipe) -> tuple[Job, Rendezvous]:
    """At the door of the denoiser."""
    under_way, rendezvous = job(), Rendezvous(pipe)
    under_way.guest = rendezvous.begin(lambda own: own(params(num_inference_steps=1, num_images_per_prompt=3)))
    under_way.guest.proceed()
    return under_way, rendezvous


def test_rows_are_estimated_until_the_denoiser_is_called():
    waiting = job()
    assert (waiting.rows, waiting.key, waiting.call) == (2, None, None)
    under_way, _ = begun(Pipe())
    assert under_way.rows == 3
    assert isinstance(under_way.call, Call)
    assert under_way.key == under_way.call.key


def test_at_the_door_of_the_decoder_there_is_nothing_to_share():
    under_way, rendezvous = begun(Pipe())
    under_way.guest.proceed(*rendezvous.forward([under_way.call]))
    assert isinstance(under_way.guest.call, Decode)
    assert (under_way.rows, under_way.key, under_way.call) == (2, None, None)


def test_the_size_is_what_was_estimated_with():
    assert job(size="large").size == "large"


def test_what_remains_shrinks_with_every_forward():
    under_way = job()
    seen = []
    for _ in range(4):
        seen.append((under_way.remaining, under_way.load))
        under_way.forwards += 1
    assert seen == [(6.25, 1.75), (4.25, 1.25), (2.25, 0.75), (0.25, 0.25)]


@pytest.mark.parametrize("forwards", [3, 4, 100])
def test_who_takes_longer_than_estimated_still_has_to_be_decoded(forwards):
    late = job()
    late.forwards = forwards
    assert (late.remaining, late.load) == (0.25, 0.25)


def test_seconds_are_kept_for_each_stage_that_is_over():
    under_way = job()
    assert (under_way.stage, under_way.seconds) == ("queue", {})
    for stage, now in (("text", 102.0), ("denoise", 102.5), ("denoise", 104.0)):
        under_way.enter(stage, now)
    assert under_way.stage == "denoise"
    assert under_way.seconds == {"queue": 2.0, "text": 0.5}
    under_way.enter("decode", 105.5)
    assert under_way.seconds == {"queue": 2.0, "text": 0.5, "denoise": 3.0}
    under_way.enter("done", 106.0)
    assert under_way.seconds == {"queue": 2.0, "text": 0.5, "denoise": 3.0, "decode": 0.5}
    assert [*under_way.seconds] == ["queue", "text", "denoise", "decode"]


def test_a_stage_that_comes_back_goes_on():
    """A pipeline with two rounds of denoising."""
    under_way = job()
    for stage, now in (("denoise", 101.0), ("decode", 103.0), ("denoise", 104.0), ("decode", 109.0), ("done", 110.0)):
        under_way.enter(stage, now)
    assert under_way.seconds == {"queue": 1.0, "denoise": 7.0, "decode": 2.0}


@pytest.mark.parametrize("due", [[], [1, 2, 3, 4, 5], [2, 4]])
def test_previews_are_made_only_when_due(due):
    told: list[Progress] = []
    made: list[int] = []
    watched = job()
    watched.watch = Watch(told.append, lambda step, of: step in due and of == 5)
    for step in range(1, 6):

        def preview(step=step):
            made.append(step)
            return f"preview {step}"

        watched.report(step, 5, preview)
    assert made == due
    assert told == [Progress(step, 5, f"preview {step}" if step in due else None) for step in range(1, 6)]


def test_nobody_watches_a_job_unless_asked():
    made, unwatched = [], job()
    assert (unwatched.step, unwatched.steps) == (0, unwatched.params.num_inference_steps)
    unwatched.report(1, 5, lambda: made.append(1))
    assert made == []
    assert (unwatched.step, unwatched.steps) == (1, 5)


def test_who_waits_cannot_end_a_job():
    waiting = job()
    assert not waiting.future.cancel()
    waiting.future.set_result(None)
