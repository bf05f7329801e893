import json
import shutil

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import toys
from fakes import params
from predictor.errors import DeviceUnavailable, InvalidRequest, ModelNotLoadable
from predictor.model import load
from predictor.sampler import offered
from predictor.settings import Settings


def loaded(volume, **settings):
    return load(Settings(model_id="toy/model", root=volume, **settings), lambda phase: None)


@pytest.fixture(scope="module")
def model(toy_volume):
    return loaded(toy_volume)


def test_phases_are_told_in_order(toy_volume):
    phases: list[str] = []
    load(Settings(model_id="toy/model", root=toy_volume), phases.append)
    assert [phase.split()[0] for phase in phases] == ["looking", "reading", "moving"]


def test_on_a_cpu_everything_is_float32_without_gradients(model):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, which auto takes")
    for part in (model.pipe.unet, model.pipe.vae, model.pipe.text_encoder):
        assert part.dtype == torch.float32
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_dtype_can_be_chosen(toy_volume):
    assert loaded(toy_volume, dtype="bfloat16", device="cpu").pipe.unet.dtype == torch.bfloat16


def test_samplers_that_fail_only_when_they_step_are_not_offered():
    flow = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert not {"DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"} & set(offered(flow))


def test_a_sampler_must_be_compatible_and_start(model):
    assert {"DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"} <= set(model.samplers)
    assert "FlowMatchEulerDiscreteScheduler" not in model.samplers
    assert "EDMEulerScheduler" not in model.samplers


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"])
def test_every_sampler_makes_a_picture_and_leaves_the_model_its_own(model, sampler):
    import copy

    pipe = copy.copy(model.pipe)
    with torch.no_grad():
        output = model.generate(pipe, params(width=32, height=32, scheduler=sampler, guidance_scale=2.0))
    assert output.images[0].shape == (32, 32, 3)
    assert type(pipe.scheduler).__name__ == sampler
    assert type(model.pipe.scheduler).__name__ == "DDIMScheduler"


def test_a_sampler_that_cannot_make_so_many_steps_is_said(model):
    assert model.takes_steps("PNDMScheduler", 4)
    for sampler, steps in (("PNDMScheduler", 3), ("DDIMScheduler", 1001), (None, 1001)):
        with pytest.raises(InvalidRequest, match=rf"must suit (PNDM|DDIM)Scheduler, which cannot make {steps} steps"):
            model.check_steps(params(scheduler=sampler, num_inference_steps=steps), "steps")


def test_a_sampler_that_waits_for_the_size_is_trusted(tmp_path):
    toys.publish(toys.flux(tmp_path), tmp_path / "volume", "toy/model")
    loaded(tmp_path / "volume").check_steps(params(num_inference_steps=1), "steps")


def test_tokens_past_the_end_are_counted(model):
    assert model.tokens("abcdefghijklmn") == (16, 0)  # 14 letters, start and end: 16
    assert model.tokens("abcdefghijklmnop") == (18, 2)


def test_the_encoder_that_reads_most_decides(tmp_path):
    toys.publish(toys.flux(tmp_path), tmp_path / "volume", "toy/model")
    flux = loaded(tmp_path / "volume")
    assert {name: tokenizer.reads for name, tokenizer in flux.tokenizers.items()} == {"tokenizer": 16, "tokenizer_2": 64}
    assert flux.tokens("a" * 63)[1] == 0
    assert flux.tokens("a" * 70)[1] == 7


def test_half_precision_weights_with_a_vae_that_overflows_stay_shareable(tmp_path):
    """SDXL in float16: the pipeline must not cast the shared VAE inside a call."""
    toys.publish(toys.stable_diffusion_xl(tmp_path).to(torch.float16), tmp_path / "volume", "toy/model", variant="fp16")
    model = loaded(tmp_path / "volume", dtype="float16", device="cpu")
    assert (model.pipe.unet.dtype, model.pipe.vae.dtype) == (torch.float16, torch.float32)
    with torch.no_grad():
        output = model.generate(model.pipe, params(width=32, height=32, num_inference_steps=1, guidance_scale=1.0))
    assert output.images[0].shape == (32, 32, 3)
    assert model.pipe.vae.dtype == torch.float32


def test_a_device_that_is_not_there_is_said(toy_volume):
    with pytest.raises(DeviceUnavailable, match="--device cuda:99"):
        loaded(toy_volume, device="cuda:99")


def test_weights_that_do_not_fit_the_configuration_are_said(toy_volume, tmp_path):
    volume = shutil.copytree(toy_volume, tmp_path / "volume")
    path = volume / "toy/model/snapshots" / toys.COMMIT
    index = json.loads((path / "model_index.json").read_text()) | {"_class_name": "NoSuchPipeline"}
    (path / "model_index.json").write_text(json.dumps(index))
    toys.write_manifest(path, "toy/model")
    with pytest.raises(ModelNotLoadable, match="NoSuchPipeline at .* cannot be loaded: "):
        loaded(volume)
    (path / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    index["_class_name"] = "StableDiffusionPipeline"
    (path / "model_index.json").write_text(json.dumps(index))
    toys.write_manifest(path, "toy/model")
    with pytest.raises(ModelNotLoadable, match="StableDiffusionPipeline at .* cannot be loaded: "):
        loaded(volume)
