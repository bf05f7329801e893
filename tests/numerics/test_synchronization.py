"""A step launches work and waits for nothing: what waits once a step makes the device idle once a step.

Shown on a device that is not there (pretend_cuda.py), and on CUDA by its own count where there is one.
"""

import dataclasses

import pytest
import torch

import families
import toys
from company import Family, difference, pixels
from fakes import params
from predictor.engine import Engine
from predictor.model import load
from predictor.policy import Policy
from predictor.settings import Settings
from predictor.speed import Curve
from predictor.warmup import warm_up
from pretend_cuda import pretend_cuda

SAMPLERS = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]
SAMPLERS += ["UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler"]  # with copies from the host
# Their denoisers look at a value of their own at every forward.
LOOKING = {families.lumina_2: 1}


def new_engine(model):
    return Engine(model, Policy(Curve({1: 1.0}), row_limit=64))


@pytest.mark.parametrize("make", families.SHARING, ids=lambda make: make.__name__)
def test_on_a_device_all_is_in_its_place_and_no_step_waits(make, tmp_path):
    family = Family(make, tmp_path, **families.SAID.get(make, {}))
    requests = [family.asked(prompt, seed=seed, num_inference_steps=5) for seed, prompt in enumerate(("one", "two"))]
    with pretend_cuda() as waits, torch.no_grad():
        family.model.pipe.to("cuda:0")
        engine = new_engine(family.model)
        jobs = engine.submit(requests, timeout=1e9, request_id="r")
        while min(job.forwards for job in jobs) < 2:
            engine.step()
        waits.noted.clear()
        engine.step()
        assert len(waits.noted) == LOOKING.get(make, 0), waits.noted
        while engine.open_jobs:
            engine.step()
        together = [pixels(job.future.result().output) for job in jobs]
    for request, got in zip(requests, together, strict=True):
        assert difference(family.alone(request), got) <= 1


@pytest.mark.parametrize("make", [toys.stable_diffusion, toys.stable_diffusion_3, families.sana])
def test_no_sampler_that_is_offered_waits(make, tmp_path):
    model = Family(make, tmp_path).model
    with pretend_cuda() as waits, torch.no_grad():
        model.pipe.to("cuda:0")
        for name in model.samplers:
            engine = new_engine(model)
            request = params("x", width=32, height=32, num_inference_steps=8, scheduler=name, seed=1)
            [job] = engine.submit([request], timeout=1e9, request_id="r")
            while job.forwards < 4:  # to where it has a history
                engine.step()
            waits.noted.clear()
            engine.step()
            engine.step()
            assert not waits.noted, name


@pytest.mark.parametrize("make", [toys.stable_diffusion, toys.flux])
def test_the_start_finds_the_same_on_a_device(make, tmp_path):
    model = Family(make, tmp_path).model
    model = dataclasses.replace(model, limits=dataclasses.replace(model.limits, width=64, height=64))
    here = warm_up(model, max_rows=4)
    with pretend_cuda():
        model.pipe.to("cuda:0")
        there = warm_up(model, max_rows=4)
    assert here.shares and there.shares
    assert here.model.preview and there.model.preview


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_cuda(tmp_path):
    toys.publish(toys.stable_diffusion(tmp_path), tmp_path, "toy/model")
    model = load(Settings(model_id="toy/model", root=tmp_path, device="cuda"), lambda phase: None)
    engine = new_engine(model)
    requests = [params("x", width=32, height=32, num_inference_steps=12, scheduler=name, seed=1) for name in SAMPLERS]
    with torch.no_grad():
        engine.submit(requests, timeout=1e9, request_id="r")
        for _ in range(4):  # to where all are under way, with kernels loaded and samplers that have a history
            engine.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                engine.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(job.forwards == 8 for job in engine.open_jobs)
        assert len(engine.open_jobs) == len(requests)
