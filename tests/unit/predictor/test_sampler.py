"""All of this is about diffusers' own schedulers, and every one that is offered: a formula that holds for the usual three is
wrong for the fourth without a word."""

import copy
import inspect
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SCMScheduler,
    TCDScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from predictor.sampler import offered, private, takes_steps

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OWN = {
    "epsilon": PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS),
    "trailing": EulerDiscreteScheduler(timestep_spacing="trailing", **BETAS),
    "v": DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, **BETAS
    ),
    "x0": DDIMScheduler(prediction_type="sample", clip_sample=False, **BETAS),
    "lcm": LCMScheduler(**BETAS),
    "tcd": TCDScheduler(**BETAS),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow_heun": FlowMatchHeunDiscreteScheduler(),
    "flow_dpm": DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}
FAMILIES = {family: offered(own) for family, own in OWN.items()}
OFFERED = {f"{family}-{name}": sampler for family, samplers in FAMILIES.items() for name, sampler in samplers.items()}
NAMES = [*OFFERED]


def painting(sampler, steps: int = 5, device: str = "cpu") -> Iterator[torch.Tensor]:
    """The latents after each step, made as pipelines do it, with a denoiser that needs no training."""
    sampler.set_timesteps(steps, device=device)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).to(device)
    takes_generator = "generator" in inspect.signature(sampler.step).parameters
    noise = {"generator": torch.Generator().manual_seed(2)} if takes_generator else {}
    for timestep in sampler.timesteps:
        seen = sampler.scale_model_input(latents, timestep) if hasattr(sampler, "scale_model_input") else latents
        latents = sampler.step(0.5 * seen - 0.1, timestep, latents, **noise, return_dict=False)[0]
        yield latents


def paint(sampler, *args, **kwargs) -> torch.Tensor:
    *_, latents = painting(sampler, *args, **kwargs)
    return latents


def state(sampler) -> dict:
    """Comparable: tensors and arrays as text, since some hold what is no number."""
    return {name: repr(value.tolist()) if hasattr(value, "tolist") else value for name, value in vars(sampler).items()}


# ---------------------------------------------------------------- which


@pytest.mark.parametrize("family", OWN)
def test_those_offered_predict_what_the_models_own_predicts(family):
    own = OWN[family]
    assert FAMILIES[family][type(own).__name__] is own
    for sampler in FAMILIES[family].values():
        assert sampler.config.get("prediction_type") == own.config.get("prediction_type")
        assert hasattr(sampler, "alphas_cumprod") == hasattr(own, "alphas_cumprod")  # the scale of noise


@pytest.mark.parametrize("name", NAMES)
def test_who_takes_so_many_steps_can_make_them(name):
    for steps in (1, 2, 3, 4, 5, 12, 25):
        sampler = OFFERED[name]
        if takes_steps(sampler, steps):
            assert paint(copy.deepcopy(sampler), steps).isfinite().all(), steps
        else:
            with pytest.raises((ValueError, IndexError)):
                paint(copy.deepcopy(sampler), steps)


@pytest.mark.parametrize("name", NAMES)
def test_nor_is_more_promised_than_it_was_trained_for(name):
    """Timesteps that come twice let Euler run over the end: an error after the last of 4,000 steps."""
    for steps in (100, 1200):
        if takes_steps(OFFERED[name], steps):
            assert paint(copy.deepcopy(OFFERED[name]), steps).isfinite().all(), steps


def test_a_sampler_that_must_know_the_size_first_cannot_say():
    assert not takes_steps(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)


def test_asking_leaves_the_sampler_as_it_was():
    sampler = EulerDiscreteScheduler()
    before = copy.deepcopy(state(sampler))
    takes_steps(sampler, 7)
    assert state(sampler) == before


# ---------------------------------------------------------------- a private copy


@pytest.mark.parametrize("name", NAMES)
def test_a_private_copy_steps_as_a_plain_one(name):
    assert torch.equal(paint(private(OFFERED[name])), paint(copy.deepcopy(OFFERED[name])))


@pytest.mark.parametrize("name", NAMES)
def test_copies_share_no_state(name):
    """Two requests step by turns, each with a history of its own; what they were copied from has none."""
    sampler = OFFERED[name]
    before = copy.deepcopy(state(sampler))
    for latents, _ in zip(painting(private(sampler), 5), painting(private(sampler), 12), strict=False):
        last = latents
    assert torch.equal(last, paint(private(sampler), 5))
    assert state(sampler) == before
    for attribute, value in vars(private(sampler)).items():
        assert value is not vars(sampler).get(attribute) or not isinstance(value, list | torch.Tensor), attribute


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["meta", torch.device("meta")], ids=["by name", "as torch has it"])
def test_timesteps_stay_on_the_cpu_however_the_device_is_said(name, device):
    sampler = private(OFFERED[name])
    for set_timesteps in (
        lambda: sampler.set_timesteps(4, device),
        lambda: sampler.set_timesteps(num_inference_steps=4, device=device),
        lambda: sampler.set_timesteps(4),
    ):
        set_timesteps()
        assert sampler.timesteps.device.type == "cpu"
        assert getattr(sampler, "sigmas", sampler.timesteps).device.type == "cpu"
        assert torch.equal(sampler.timesteps, _plain(OFFERED[name], 4).timesteps)


def _plain(sampler, steps: int):
    own = copy.deepcopy(sampler)
    own.set_timesteps(steps)
    return own


@pytest.mark.parametrize("name", NAMES)
def test_no_step_looks_at_a_value_on_the_device(name):
    """A tensor on "meta" has none: looking at one raises, where on a GPU it would wait for all that was launched."""
    assert paint(private(OFFERED[name]), device="meta").shape == (2, 4, 4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_pipelines_see_the_same_signatures(name):
    for method in ("set_timesteps", "step"):
        assert inspect.signature(getattr(private(OFFERED[name]), method)) == inspect.signature(getattr(OFFERED[name], method))


def test_a_pipeline_may_bring_its_own_timesteps_or_sigmas():
    timesteps, steps = retrieve_timesteps(private(DDPMScheduler()), device="meta", timesteps=[900, 500, 100])
    assert (timesteps.tolist(), steps) == ([900, 500, 100], 3)
    timesteps, steps = retrieve_timesteps(private(EulerDiscreteScheduler()), device="meta", sigmas=[14.0, 1.0, 0.1, 0.0])
    assert (timesteps.device.type, steps) == ("cpu", 3)
    with pytest.raises(ValueError, match="does not support custom"):
        retrieve_timesteps(private(DDIMScheduler()), device="meta", timesteps=[900, 500, 100])


def test_a_pipeline_may_shift_by_the_size():
    flux = private(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    small, _ = retrieve_timesteps(flux, device="meta", sigmas=[1.0, 0.5], mu=0.5)
    small = small.clone()
    large, _ = retrieve_timesteps(flux, device="meta", sigmas=[1.0, 0.5], mu=1.15)
    assert small[1] < large[1]


@pytest.mark.parametrize(
    ("kind", "takes"),
    [(DDIMScheduler, {"eta", "generator"}), (DDPMScheduler, {"generator"}), (PNDMScheduler, set())],
)
def test_a_pipeline_passes_to_a_step_what_it_takes(kind, takes):
    pipe = SimpleNamespace(scheduler=private(kind()))
    assert StableDiffusionPipeline.prepare_extra_step_kwargs(pipe, torch.Generator(), 0.0).keys() == takes


def test_a_pipeline_may_name_the_arguments_of_a_step():
    """As AmusedPipeline does."""
    sampler = private(DDIMScheduler())
    sampler.set_timesteps(4)
    latents = torch.ones(1, 4, 4, 4)
    sampler.step(model_output=latents, timestep=sampler.timesteps[0], sample=latents)


# ---------------------------------------------------------------- what is told of each step


@pytest.mark.parametrize("name", NAMES)
def test_each_step_is_told_once(name):
    told = []
    sampler = private(OFFERED[name], lambda step, of, expected: told.append((step, of)))
    paint(sampler)
    count = len(sampler.timesteps)
    assert told == [(step, count) for step in range(1, count + 1)]


def test_a_sampler_that_steps_twice_says_how_often():
    told = []
    paint(private(HeunDiscreteScheduler(), lambda step, of, expected: told.append(of)), 5)
    assert told == [9] * 9


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_expected_from_a_perfect_denoiser_at_once(name):
    """Noise is added by the sampler itself, whatever scale it works on; what a denoiser without fault would say of that gives
    the picture back at every step."""
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    sampler = private(OFFERED[name], lambda step, of, expected: found.append(expected()))
    sampler.set_timesteps(6)
    for timestep in sampler.timesteps:
        share, deviation = _levels(sampler, timestep)
        output = _perfect(sampler.config.get("prediction_type"), picture, noise, share, deviation)
        sampler.step(output, timestep, share * picture + deviation * noise)
    for step, expected in enumerate(found):
        assert torch.allclose(expected, picture, atol=2e-4), f"step {step + 1}: {(expected - picture).abs().max():.2g} off"
    assert len(found) == len(sampler.timesteps)


def _levels(sampler, timestep) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the picture and of the noise in what the sampler gives to its next step."""
    none, one = torch.zeros(1), torch.ones(1)
    if hasattr(sampler, "scale_noise"):
        add = lambda picture, noise: sampler.scale_noise(picture, timestep[None], noise)  # noqa: E731
    else:
        add = lambda picture, noise: sampler.add_noise(picture, noise, timestep[None])  # noqa: E731
    share, deviation = add(one, none), add(none, one)
    if hasattr(sampler, "sigmas_interpol"):
        # add_noise knows only the levels where a step begins, and KDPM2's second step begins between two.
        deviation = (sampler.scale_model_input(one, timestep) ** -2 - 1) ** 0.5
    return share, deviation


def _perfect(kind: str | None, picture, noise, share, deviation) -> torch.Tensor:
    if kind in (None, "flow_prediction"):
        return noise - picture
    if kind == "v_prediction":
        return (share * noise - deviation * picture) / (share**2 + deviation**2) ** 0.5
    return {"epsilon": noise, "sample": picture}[kind]


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_the_picture_is_expected_of_a_model_of_karras_kind(kind):
    """Playground 2.5's sampler: the denoiser's output is what is missing from c_skip sample (Karras et al. 2022, table 1)."""
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    sampler = private(kind(), lambda step, of, expected: found.append(expected()))
    sampler.set_timesteps(6)
    for timestep, sigma in zip(sampler.timesteps, sampler.sigmas, strict=False):
        data = sampler.config.sigma_data
        sample = picture + sigma * noise
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
        sampler.step((picture - skip * sample) / out, timestep, sample)
    assert all(torch.allclose(expected, picture, atol=2e-4) for expected in found)


def test_the_picture_is_expected_of_a_model_that_learned_its_variance():
    """DeepFloyd IF's sampler gets twice the channels: the noise, and its variance."""
    picture, noise, variance = torch.randn(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    own = DDPMScheduler(variance_type="learned_range", beta_schedule="squaredcos_cap_v2", clip_sample=False)
    sampler = private(own, lambda step, of, expected: found.append(expected()))
    sampler.set_timesteps(6)
    for timestep in sampler.timesteps:
        sampler.step(torch.cat([noise, variance], 1), timestep, sampler.add_noise(picture, noise, timestep[None]))
    assert all(torch.allclose(expected, picture, atol=2e-3) for expected in found)


def test_the_picture_is_expected_of_a_model_of_angles():
    """Sana Sprint's: sample = cos(t) x0 + sin(t) noise, and the denoiser predicts the derivative of that."""
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    sampler = private(SCMScheduler(prediction_type="trigflow"), lambda step, of, expected: found.append(expected()))
    sampler.set_timesteps(2)
    for timestep in sampler.timesteps[:-1]:
        share, deviation = timestep.cos(), timestep.sin()
        sampler.step(share * noise - deviation * picture, timestep, share * picture + deviation * noise)
    assert len(found) == 2
    assert all(torch.allclose(expected, picture, atol=2e-4) for expected in found)
