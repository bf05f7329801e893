import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.image_processor import VaeImageProcessor
from torch.nn.functional import interpolate

import toys
from predictor.preview import Sample, decoded, linear
from predictor.sampler import private

CHANNELS = 8
COLOURS = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(1)) / 30


def planes(seed: int, height: int = 12, width: int = 20) -> torch.Tensor:
    return torch.randn(1, CHANNELS, height, width, generator=torch.Generator().manual_seed(seed))


def coloured(latents: torch.Tensor) -> torch.Tensor:
    """A pixel for each latent, by a matrix; well within 0 to 1."""
    return torch.einsum("nchw,dc->ndhw", latents, COLOURS) + torch.tensor([0.4, 0.5, 0.6])[:, None, None]


def as_planes(latents: torch.Tensor) -> torch.Tensor:
    return latents


def as_tokens(latents: torch.Tensor) -> torch.Tensor:
    """Row by row, as FLUX has them."""
    return latents.flatten(2).transpose(1, 2)


def as_film(latents: torch.Tensor) -> torch.Tensor:
    """Of one frame, as Qwen-Image has it."""
    return latents[:, :, None]


def warm_up(order, *, seeds=(1, 2)) -> list[Sample]:
    """Pictures of an autoencoder that is exactly linear in colour and makes eight pixels a side of each latent."""
    found = []
    for latents in map(planes, seeds):
        found.append(Sample(order(latents), order(latents), interpolate(coloured(latents), scale_factor=8)))
    return found


# ---------------------------------------------------------------- a pixel for each latent


@pytest.mark.parametrize("order", [as_planes, as_tokens, as_film])
@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12), (7, 7)])
def test_a_linear_decoder_is_found_whatever_order_latents_lie_in(order, height, width):
    latents = planes(3, height, width)
    preview = linear(warm_up(order))(order(latents), width / height)
    assert preview.shape == (1, 3, height, width)
    assert torch.allclose(preview, coloured(latents), atol=2e-3)  # the ridge costs a thousandth


def test_each_picture_of_a_request_has_its_preview():
    both = torch.cat([planes(3), planes(4)])
    assert torch.allclose(linear(warm_up(as_planes))(both, 1), coloured(both), atol=2e-3)


def test_colours_end_at_black_and_white():
    preview = linear(warm_up(as_planes))(100 * planes(3), 1)
    assert (preview.min(), preview.max()) == (0, 1)


def test_latents_may_be_of_half_precision():
    half = [Sample(each.latents.bfloat16(), each.decoded.bfloat16(), each.image) for each in warm_up(as_tokens)]
    preview = linear(half)(as_tokens(planes(3)).bfloat16(), 20 / 12)
    assert preview.dtype == torch.float32
    assert torch.allclose(preview, coloured(planes(3)), atol=0.01)


@pytest.mark.parametrize(
    "latents",
    [
        torch.zeros(1, 240),  # no channels
        torch.zeros(1, 239, CHANNELS),  # a prime number of tokens: no rectangle has so many
        torch.zeros(1, CHANNELS, 2, 12, 20),  # a film of two frames
    ],
)
def test_latents_of_unknown_order_have_no_preview(latents):
    [known, _] = warm_up(as_planes)
    assert linear([Sample(latents, latents, known.image)]) is None
    with pytest.raises(ValueError, match="latents of shape"):
        linear([known])(latents, 20 / 12)


def test_a_channel_that_warm_up_hardly_used_is_not_amplified():
    """A ten-thousandth of a deviation that happens to go with the picture's noise would take a weight of hundreds."""
    noisy = []
    for each in warm_up(as_planes):
        noise = torch.randn(1, 1, 12, 20, generator=torch.Generator().manual_seed(5))
        latents = each.latents.clone()
        latents[:, :1] = 1e-4 * noise
        noisy.append(Sample(latents, latents, each.image + interpolate(0.02 * noise, scale_factor=8)))
    assert linear(noisy).weight[0].abs().max() < 0.1


# ---------------------------------------------------------------- by the autoencoder itself


def test_the_decoder_gets_what_the_pipeline_gives_it():
    """Scaled and shifted by as much as in the pictures of the warm-up, which nobody has to know."""
    vae = toys.autoencoder().eval()
    mean, deviation = torch.randn(1, 4, 1, 1), torch.rand(1, 4, 1, 1) + 0.5  # one for each channel, as Qwen-Image has them

    def sample(seed: int) -> Sample:
        latents = planes(seed)[:, :4]
        return Sample(latents, latents * deviation + mean, torch.zeros(1, 3, 24, 40))

    latents = planes(3, 5, 9)[:, :4]
    with torch.no_grad():
        preview = decoded(vae.decode, [sample(1), sample(2)])(latents, 9 / 5)
        picture = vae.decode(latents * deviation + mean, return_dict=False)[0]
    expected = VaeImageProcessor().postprocess(picture, output_type="pt")
    assert torch.allclose(preview, expected, atol=1e-4)


def test_what_is_decoded_stays_within_black_and_white_and_has_the_decoders_precision():
    seen = []

    def decode(latents, return_dict):
        seen.append(latents.dtype)
        return (30 * latents[:, :3],)

    half = [Sample(each.latents, each.decoded.half(), each.image) for each in warm_up(as_planes)]
    preview = decoded(decode, half)(planes(3), 1)
    assert seen == [torch.float16]
    assert (preview.min(), preview.max()) == (0, 1)


@pytest.mark.parametrize(
    "changed",
    [
        lambda latents: latents.tanh(),
        lambda latents: latents.flip(1),
        lambda latents: latents + 0.1 * planes(9),
        lambda latents: latents / latents.norm(dim=1, keepdim=True),
    ],
)
def test_a_decoder_that_gets_something_else_is_left_alone(changed):
    samples = [Sample(each.latents, changed(each.latents), each.image) for each in warm_up(as_planes)]
    assert decoded(lambda *_: None, samples) is None


@pytest.mark.parametrize("order", [as_tokens, as_film])
def test_a_decoder_that_gets_another_shape_is_left_alone(order):
    samples = [Sample(order(each.latents), each.latents, each.image) for each in warm_up(as_planes)]
    assert decoded(lambda *_: None, samples) is None
    samples = [Sample(order(each.latents), order(each.latents), each.image) for each in warm_up(as_planes)]
    assert decoded(lambda *_: None, samples) is None


def test_the_last_trace_of_noise_does_not_matter():
    """Samplers with set_alpha_to_one=False, as Stable Diffusion has them, stop at a deviation of 0.03: so far from what the
    sampler last expected is what the decoder gets."""
    samples = []
    own = DDIMScheduler(
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=False,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
    )
    for seed in (1, 2):
        picture, noise = planes(seed), planes(seed + 10)
        found = []
        sampler = private(own, lambda step, of, expected, found=found: found.append(expected()))
        sampler.set_timesteps(2)
        last = sampler.timesteps[-1]
        latents = sampler.step(noise, last, sampler.add_noise(picture, noise, last[None])).prev_sample
        samples.append(Sample(found[0], latents / 0.18215, torch.zeros(1, 3, 96, 160)))
    assert decoded(lambda *_: None, samples)
