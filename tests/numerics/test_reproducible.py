"""With a fixed number of rows a picture is the same to the last bit, whoever shares its forwards."""

import shutil
from pathlib import Path

import pytest
import torch

import toys
from fakes import params
from predictor import model as model_module
from predictor.engine import Engine
from predictor.model import load
from predictor.policy import Policy
from predictor.settings import Settings
from predictor.speed import Curve

SHAPES = Path(__file__).resolve().parents[2] / "examples" / "shapes" / "model"


@pytest.fixture(scope="module", params=["toy", "shapes"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "toy":
        toys.publish(toys.stable_diffusion(folder), folder, "toy/model")
    else:
        shutil.copytree(SHAPES, snapshot := folder / "toy" / "model" / "snapshots" / toys.COMMIT)
        toys.write_manifest(snapshot, "toy/model")
        (folder / "toy" / "model" / "refs").mkdir()
        (folder / "toy" / "model" / "refs" / "main").write_text(toys.COMMIT)
    return load(Settings(model_id="toy/model", root=folder, device="cpu"), lambda phase: None)


@torch.no_grad()
def made(model, *requests) -> list[torch.Tensor]:
    """Pictures as floats, by an engine that fills every forward up to eight rows."""
    engine = Engine(model, Policy(Curve({1: 1.0}), row_limit=8, fixed_rows=True))
    jobs = engine.submit(requests[:1], timeout=1e9, request_id="r")
    engine.step()
    jobs += engine.submit(requests[1:], timeout=1e9, request_id="r")
    while engine.open_jobs:
        engine.step()
    return [job.future.result().output.images for job in jobs]


def asked(prompt: str, **overrides):
    return params(prompt, **{"width": 32, "height": 32, "guidance_scale": 5.0} | overrides)


def test_company_and_position_change_no_bit(model, monkeypatch):
    monkeypatch.setattr(model_module, "Pixels", lambda images: images)
    one = asked("one", seed=1, num_inference_steps=4)
    company = [
        asked("two", seed=2, num_inference_steps=6),
        asked("three", seed=3, guidance_scale=1.0, num_inference_steps=3),
        asked("four", seed=4, num_images_per_prompt=2, num_inference_steps=2),
        asked("five", seed=5, scheduler="EulerDiscreteScheduler", num_inference_steps=5),
        asked("six", seed=6, width=16),
    ]
    [alone] = made(model, one)
    assert alone.is_floating_point()
    for others in (company, company[::-1], company[1:3]):
        assert torch.equal(made(model, one, *others)[0], alone)
        assert torch.equal(made(model, *others, one)[-1], alone)
