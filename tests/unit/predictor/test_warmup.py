import dataclasses
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
    found = warm_up(model, max_rows=16)
    assert (found.shares, found.row_limit, found.reason) == (True, 16, "set by the operator")


def test_how_many_rows_pay_is_measured(model):
    found = warm_up(model)
    assert found.row_limit in found.curve.measured and found.reason == "measured"
    assert list(found.curve.measured)[:2] == [1, 2]
    assert all(seconds > 0 for seconds in found.curve.measured.values())


def test_memory_ends_the_measurement(model):
    def refuse(module, args, kwargs):
        if len(kwargs["sample"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.pipe.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    assert max(warm_up(model).curve.measured) <= 4


def test_one_that_looks_at_the_number_of_rows_may_not(model, caplog):
    """As perturbed attention does: it takes the batch for three parts of one request."""

    def swap_halves(module, args, output):
        first, second = output[0].chunk(2)
        return (torch.cat([second, first]),)

    model.pipe.unet.register_forward_hook(swap_halves)
    with caplog.at_level(logging.INFO, "predictor"):
        found = warm_up(model, max_rows=16)
    assert not found.shares
    assert "differ from the same made alone" in found.reason
    assert "take turns" in caplog.text


def test_one_that_fails_with_company_may_not(model):
    def refuse(module, args, kwargs):
        if len(kwargs["sample"]) > 2:
            raise ValueError("two at most")

    model.pipe.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    found = warm_up(model, max_rows=16)
    assert not found.shares
    assert "do not fit into one forward" in found.reason


def test_pictures_that_are_all_alike_prove_nothing(model):
    decode = model.pipe.vae.decode
    model.pipe.vae.decode = lambda latents, *args, **kwargs: decode(torch.zeros_like(latents), *args, **kwargs)
    found = warm_up(model, max_rows=16)
    assert not found.shares
    assert "same picture" in found.reason


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
    assert warm_up(half, max_rows=16).shares


@pytest.mark.parametrize("make", [toys.stable_diffusion_xl, toys.stable_diffusion_3])
def test_other_families_pass_too(make, tmp_path):
    toys.publish(make(tmp_path), tmp_path / "volume", "toy/model")
    loaded = load(Settings(model_id="toy/model", root=tmp_path / "volume"), lambda phase: None)
    found = warm_up(loaded, max_rows=16)
    assert found.shares
    assert {name: each.reads for name, each in found.model.tokenizers.items()} == {"tokenizer": 16, "tokenizer_2": 16}


def test_where_a_pipeline_cuts_is_seen_in_what_it_does(model):
    """As HunyuanDiT and Kandinsky do: a length that no signature tells, and words of its own around the prompt."""
    own = type(model.pipe)

    class Wordy(own):
        def encode_prompt(self, prompt, *args, **kwargs):
            text = [f"draw:{each}" for each in ([prompt] if isinstance(prompt, str) else prompt)]
            self.tokenizer(text, padding="max_length", max_length=12, truncation=True)
            return super().encode_prompt(prompt, *args, **kwargs)

    model.pipe.__class__ = Wordy
    found = warm_up(model, max_rows=16)
    warm = found.model
    assert found.shares
    assert model.tokenizers["tokenizer"].reads == 16
    assert warm.tokenizers["tokenizer"].reads == 12 - len("draw:")
    assert warm.tokens("abcdefgh") == (10, 3)  # with start and end 10, of which 7 are read
    assert type(warm.pipe.tokenizer) is type(model.tokenizers["tokenizer"].encode)


def test_flux_reads_with_its_longer_encoder(tmp_path):
    toys.publish(toys.flux(tmp_path), tmp_path / "volume", "toy/model")
    loaded = load(Settings(model_id="toy/model", root=tmp_path / "volume"), lambda phase: None)
    small = dataclasses.replace(loaded, limits=dataclasses.replace(loaded.limits, width=64, height=64))
    found = warm_up(small, max_rows=16)
    warm = found.model
    assert found.shares
    assert warm.tokenizers["tokenizer"].reads == 16
    assert warm.tokenizers["tokenizer_2"].reads == 512  # what the pipeline asks for, whatever the tokenizer's own length


def test_a_pipeline_without_a_denoiser_of_a_known_name_takes_turns(model):
    class Other(type(model.pipe)):
        def __call__(self, *args, **kwargs):
            self.__dict__["unet"] = self.prior
            return super().__call__(*args, **kwargs)

    unet = model.pipe.unet
    model.pipe.__class__ = Other
    model.pipe.__dict__.update(prior=unet, unet=None)
    model.pipe.__dict__.pop("unet")
    found = warm_up(model)
    assert not found.shares
    assert found.reason == "the pipeline has no unet or transformer"


def test_the_preview_is_the_decoder_where_that_is_quick(model):
    """The toy's decoder is about as quick as its denoiser: either may be chosen, and both show a picture."""
    preview = warm_up(model).model.preview
    shown = preview(torch.randn(2, 4, 16, 8), 0.5)
    assert shown.shape in ((2, 3, 32, 16), (2, 3, 16, 8))
    assert 0 <= shown.min() and shown.max() <= 1
