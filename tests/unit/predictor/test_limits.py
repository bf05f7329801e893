import pytest

import newer_families
import toys
from predictor import limits
from predictor.model import load
from predictor.settings import Settings


def read(pipe, **settings):
    return limits.read(pipe, {}, Settings(model_id="a/b", **settings))


@pytest.fixture(scope="module")
def model(toy_volume):
    return load(Settings(model_id="toy/model", root=toy_volume), lambda phase: None)


def test_limits_come_from_the_pipeline(model):
    found = model.limits
    assert (found.width, found.height, found.multiple) == (32, 32, 2)
    assert (found.num_inference_steps, found.guidance_scale) == (50, 7.5)
    assert {"negative_prompt", "guidance_scale", "width"} <= found.supported
    assert found.max_pixels == 4 * 32 * 32


def test_settings_override_the_pipeline(model):
    settings = Settings(model_id="a/b", default_steps=20, default_guidance=3.0, max_pixels=99)
    found = limits.read(model.pipe, model.samplers, settings)
    assert (found.num_inference_steps, found.guidance_scale, found.max_pixels) == (20, 3.0, 99)


@pytest.mark.parametrize(
    ("make", "multiple", "side"), [(toys.stable_diffusion_3, 4, 32), (toys.flux, 4, 256), (toys.stable_diffusion_xl, 2, 32)]
)
def test_sides_follow_patches_and_packing(make, multiple, side, tmp_path):
    found = limits.read(make(tmp_path), {}, Settings(model_id="a/b"))
    assert (found.multiple, found.width, found.height) == (multiple, side, side)


def test_what_a_pipeline_takes_without_using_it_is_not_offered(tmp_path):
    guided = toys.flux(tmp_path)
    settings = Settings(model_id="a/b")
    found = limits.read(guided, {}, settings)
    assert "guidance_scale" in found.supported and found.guidance_scale == 3.5
    assert "negative_prompt" not in found.supported  # without true_cfg_scale it does nothing
    guided.transformer.register_to_config(guidance_embeds=False)
    found = limits.read(guided, {}, settings)
    assert "guidance_scale" not in found.supported and found.guidance_scale is None


def test_a_table_of_positions_bounds_the_sides(tmp_path):
    pipe = toys.stable_diffusion_3(tmp_path)
    pipe.transformer.register_to_config(pos_embed_max_size=10)
    assert limits.read(pipe, {}, Settings(model_id="a/b")).max_side == 40


def test_own_defaults_stay_within_the_bounds(model):
    found = limits.read(model.pipe, {}, Settings(model_id="a/b", max_steps=20, max_guidance=5.0))
    assert (found.num_inference_steps, found.guidance_scale) == (20, 5.0)


@pytest.mark.parametrize(
    ("make", "side"), [(newer_families.prx, None), (newer_families.deepfloyd_if, None), (newer_families.ideogram_4, 2048)]
)
def test_the_size_is_in_pixels_where_the_pipeline_says_it_so(make, side, tmp_path):
    """In its signature, in its own configuration, or because it has no latents."""
    pipe = make(tmp_path)
    found = read(pipe)
    expected = side or getattr(pipe, "default_sample_size", None) or pipe.unet.config.sample_size
    assert (found.width, found.height) == (expected, expected)


def test_a_schedule_of_guidance_begins_with_its_scale(tmp_path):
    pipe = newer_families.ideogram_4(tmp_path)
    assert read(pipe).guidance_scale == limits.signature(pipe)["guidance_schedule"].default[0]
    assert read(pipe, default_guidance=3.0).guidance_scale == 3.0


def test_patches_may_have_a_side_for_time(tmp_path):
    assert read(newer_families.kandinsky_5(tmp_path)).multiple == 16
