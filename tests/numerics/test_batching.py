"""Pictures made in company against pictures made alone by the bare, unmodified `pipe(...)`."""

import copy

import numpy as np
import pytest
import torch

import toys
from fakes import params
from predictor.engine import Engine
from predictor.model import TextToImage, load
from predictor.settings import Settings

FAMILIES = [toys.stable_diffusion, toys.stable_diffusion_xl, toys.stable_diffusion_3, toys.flux]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def model(request, tmp_path_factory) -> TextToImage:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    toys.publish(request.param(folder), folder / "volume", "toy/model")
    return load(Settings(model_id="toy/model", root=folder / "volume"), lambda phase: None)


def asked(model: TextToImage, prompt: str, **overrides):
    side = model.limits.min_side if model.limits.width > 64 else model.limits.width
    supported = {name: value for name, value in overrides.items() if name != "scheduler" or value in model.samplers}
    return params(prompt, **{"width": side, "height": side, "guidance_scale": model.limits.guidance_scale} | supported)


def mixed(model: TextToImage):
    return [
        asked(model, "one", seed=1, num_inference_steps=4),
        asked(model, "two", seed=2, num_inference_steps=3, guidance_scale=9.0),
        asked(model, "three", seed=3, num_inference_steps=2, guidance_scale=1.0),
        asked(model, "four", seed=4, num_inference_steps=5, negative_prompt="not this"),
        asked(model, "five", seed=5, num_inference_steps=3, num_images_per_prompt=2),
        asked(model, "six", seed=6, num_inference_steps=4, scheduler="EulerDiscreteScheduler"),
        asked(model, "seven", seed=7, num_inference_steps=4, scheduler="DPMSolverMultistepScheduler"),
        asked(model, "eight", seed=8, num_inference_steps=3, width=2 * model.limits.min_side),
    ]


@torch.no_grad()
def alone(model: TextToImage, request) -> np.ndarray:
    return pixels(model.generate(copy.copy(model.pipe), request))


def pixels(output) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in output.images])


def in_company(model: TextToImage, requests, max_rows=64):
    engine = Engine(model, max_rows=max_rows, max_queue=100)
    with torch.no_grad():
        jobs = engine.submit(requests[:3], timeout=600, request_id="r")
        engine.step()  # the others join when these are under way
        jobs += engine.submit(requests[3:], timeout=600, request_id="r")
        while engine.open_jobs:
            engine.step()
    return [pixels(job.future.result().output) for job in jobs]


def test_mixed_requests_come_out_as_if_alone(model):
    requests = mixed(model)
    rows = []
    hook = model.pipe.components[denoiser(model)].register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(1), with_kwargs=True
    )
    together = in_company(model, requests)
    shared = len(rows)
    rows.clear()
    lonely = [alone(model, request) for request in requests]
    hook.remove()
    assert shared < 0.6 * len(rows)
    for request, expected, got in zip(requests, lonely, together, strict=True):
        assert np.abs(expected - got).max() <= 1, request.prompt
    assert len({picture.tobytes() for picture in together}) == len(together)


def test_position_in_the_batch_does_not_matter(model):
    requests = mixed(model)[:4]
    for order in (requests, requests[::-1]):
        results = dict(zip((each.prompt for each in order), in_company(model, order), strict=True))
        for request in requests:
            assert np.abs(results[request.prompt] - alone(model, request)).max() <= 1


def test_images_of_one_prompt_can_be_made_again_alone(model):
    [both] = in_company(model, [asked(model, "two of them", seed=11, num_images_per_prompt=2)])
    [second] = in_company(model, [asked(model, "two of them", seed=12)])
    assert np.abs(both[1] - second[0]).max() <= 1


def test_nothing_leaks_from_one_request_to_the_next(model):
    requests = mixed(model)
    first = alone(model, requests[0])
    for other in requests[1:]:
        in_company(model, [other])
        assert np.abs(in_company(model, requests[:1])[0] - first).max() <= 1, other.prompt


def denoiser(model: TextToImage) -> str:
    return "unet" if "unet" in model.pipe.components else "transformer"
