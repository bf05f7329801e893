"""On CUDA a step launches work and waits for nothing: what waits once a step makes the device idle once a step."""

import pytest
import torch

import toys
from fakes import params
from predictor.engine import Engine, Policy
from predictor.model import load
from predictor.settings import Settings
from predictor.speed import Curve

SAMPLERS = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device(tmp_path):
    toys.publish(toys.stable_diffusion(tmp_path), tmp_path, "toy/model")
    model = load(Settings(model_id="toy/model", root=tmp_path, device="cuda"), lambda phase: None)
    engine = Engine(model, Policy(Curve({1: 1.0}), row_limit=64))
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
