from fakes import Pipe, params
from predictor.job import Job
from predictor.rendezvous import Rendezvous


def job(**asked) -> Job:
    return Job(params(**asked), cost=1.0, deadline=9.0, request_id="r", now=0.0)


def test_rows_are_guessed_from_images_and_guidance_until_the_denoiser_is_called():
    assert job().rows == 1
    assert job(guidance_scale=1.0, num_images_per_prompt=3).rows == 3
    guided = job(guidance_scale=7.5, num_images_per_prompt=3)
    assert guided.rows == 6
    assert guided.key is None
    guided.guest = Rendezvous(Pipe()).begin(lambda pipe: pipe(guided.params))
    guided.guest.proceed()
    assert guided.rows == 3  # this pipeline has no guidance
    assert guided.key == guided.guest.call.key


def test_who_waits_cannot_end_a_job():
    waiting = job()
    assert not waiting.future.cancel()
    waiting.future.set_result(None)
