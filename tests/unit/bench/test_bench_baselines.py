"""The baselines' engine with a stand-in for the model: who shares a call, and who gets what of it."""

import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from bench.baselines import Engine, Group
from predictor.errors import Cancelled, GenerationFailed, NotServing
from predictor.request import Params

PARAMS = Params("a", width=64, height=64, num_inference_steps=20, seed=1, guidance_scale=7.5)


@dataclass
class Output:
    images: list
    nsfw_content_detected: list | None = None


class Model:
    """Pictures are pairs of prompt and seed. `gate` holds back all calls until it is set."""

    def __init__(self) -> None:
        self.pipe = SimpleNamespace(unet=torch.nn.Identity())
        self.calls: list[list] = []
        self.gate = threading.Event()

    def generate(self, pipe, params):
        self.gate.wait(10)
        prompts = params.prompt if isinstance(params.prompt, list) else [params.prompt]
        each = len(params.seeds) // len(prompts)
        images = [(prompts[i // each], seed) for i, seed in enumerate(params.seeds)]
        self.calls.append(images)
        if "bad" in prompts:
            raise RuntimeError("too bad")
        return Output(images)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def engine(model):
    engine = Engine(model, "policy", max_batch=3, window=0.0, on_fault=None)
    yield engine
    model.gate.set()
    engine.stop(NotServing("over", retry_after=1))


def images(job):
    return job.future.result(10).output.images


def test_equal_requests_share_a_call_and_each_gets_its_own_pictures(model, engine):
    requests = [
        replace(PARAMS, prompt="a", seed=1),
        replace(PARAMS, prompt="b", seed=2, num_inference_steps=10),
        replace(PARAMS, prompt="c", seed=3),
    ]
    jobs = engine.submit(requests, timeout=1, request_id="")
    model.gate.set()
    engine.start()
    assert [images(job) for job in jobs] == [[("a", 1)], [("b", 2)], [("c", 3)]]
    assert model.calls == [[("a", 1), ("c", 3)], [("b", 2)]]


def test_pictures_of_one_request_stay_together(model, engine):
    jobs = engine.submit([replace(PARAMS, prompt=prompt, seed=5, num_images_per_prompt=2) for prompt in "ab"])
    model.gate.set()
    engine.start()
    assert [images(job) for job in jobs] == [[("a", 5), ("a", 6)], [("b", 5), ("b", 6)]]
    assert len(model.calls) == 1


def test_a_call_has_no_more_requests_than_allowed(model, engine):
    jobs = engine.submit([replace(PARAMS, seed=seed) for seed in range(5)])
    model.gate.set()
    engine.start()
    [images(job) for job in jobs]
    assert [len(call) for call in model.calls] == [3, 2]


def test_a_request_with_a_negative_prompt_shares_with_its_like_alone(model, engine):
    jobs = engine.submit([PARAMS, replace(PARAMS, negative_prompt="dog"), replace(PARAMS, negative_prompt="cat")])
    model.gate.set()
    engine.start()
    [images(job) for job in jobs]
    assert [len(call) for call in model.calls] == [1, 2]
    assert Group.of([jobs[1].params, jobs[2].params]).negative_prompt == ["dog", "cat"]


def test_who_waits_can_be_cancelled(model, engine):
    engine.start()
    first, second = engine.submit([PARAMS, replace(PARAMS, num_inference_steps=10)])
    engine.cancel(second)
    with pytest.raises(Cancelled):
        second.future.result(10)
    model.gate.set()
    assert images(first)


def test_a_failing_call_fails_those_in_it_and_no_others(model, engine):
    bad, good = engine.submit([replace(PARAMS, prompt="bad"), replace(PARAMS, num_inference_steps=10)])
    model.gate.set()
    engine.start()
    with pytest.raises(GenerationFailed):
        bad.future.result(10)
    assert images(good)


def test_stopping_fails_who_still_waits(model, engine):
    [job] = engine.submit([PARAMS])
    engine.stop(NotServing("over", retry_after=1))
    engine.start()
    with pytest.raises(NotServing):
        job.future.result(10)
    with pytest.raises(NotServing):
        engine.check_room([PARAMS], timeout=1)
