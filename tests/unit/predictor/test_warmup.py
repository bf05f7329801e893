import logging

import pytest
import torch

import toys
from predictor.errors import ModelNotLoadable
from predictor.model import load
from predictor.settings import Settings
from predictor.warmup import warm_up


@pytest.fixture
def model(toy_volume):
    return load(Settings(model_id="toy/model", root=toy_volume, device="cpu"), lambda phase: None)


def test_a_denoiser_that_treats_rows_alike_may_be_shared(model):
    assert warm_up(model, max_rows=16)


def test_one_that_looks_at_the_number_of_rows_may_not(model, caplog):
    """As perturbed attention does: it takes the batch for three parts of one request."""

    def swap_halves(module, args, output):
        first, second = output[0].chunk(2)
        return (torch.cat([second, first]),)

    model.pipe.unet.register_forward_hook(swap_halves)
    with caplog.at_level(logging.INFO, "predictor"):
        assert not warm_up(model, max_rows=16)
    assert "take turns" in caplog.text


def test_one_that_fails_with_company_may_not(model):
    def refuse(module, args, kwargs):
        if len(kwargs["sample"]) > 2:
            raise ValueError("two at most")

    model.pipe.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    assert warm_up(model, max_rows=16)  # made again one by one, they agree: slower, and right


def test_no_picture_at_all_is_an_error(model, monkeypatch):
    monkeypatch.setattr(type(model), "generate", lambda *_: 1 / 0)
    with pytest.raises(ModelNotLoadable, match="StableDiffusionPipeline loaded but failed on a warm-up picture"):
        warm_up(model, max_rows=16)
    monkeypatch.setattr(type(model), "generate", lambda *_: None)
    with pytest.raises(ModelNotLoadable, match="returned no images"):
        warm_up(model, max_rows=16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_passes_the_check(toy_volume, dtype):
    half = load(Settings(model_id="toy/model", root=toy_volume, device="cpu", dtype=dtype), lambda phase: None)
    assert warm_up(half, max_rows=16)


@pytest.mark.parametrize("make", [toys.stable_diffusion_xl, toys.stable_diffusion_3])
def test_other_families_pass_too(make, tmp_path):
    toys.publish(make(tmp_path), tmp_path / "volume", "toy/model")
    assert warm_up(load(Settings(model_id="toy/model", root=tmp_path / "volume"), lambda phase: None), max_rows=16)
