import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from predictor.pixels import Pixels


def decoded(dtype: torch.dtype) -> torch.Tensor:
    """What an autoencoder might return, about -1 to 1: for half precision every value that there is."""
    if dtype == torch.float32:
        # Where rounding is decided: at each half of a step of 255 and next to it.
        edges = (torch.arange(256) + 0.5) / 255 * 2 - 1
        values = torch.cat(
            [edges, edges.nextafter(torch.tensor(2.0)), edges.nextafter(torch.tensor(-2.0)), torch.linspace(-1.2, 1.2, 3840)]
        )
    else:
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        values = values[values.abs() <= 1.5]
    count = len(values) // (3 * 16)
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[: count * 48]].view(2, 3, -1, 8)


def processed(image: torch.Tensor, output_type: str):
    return VaeImageProcessor().postprocess(image, output_type=output_type)


def picture(height: int = 4, width: int = 6) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pictures_are_those_that_the_pipeline_itself_would_make(dtype):
    image = decoded(dtype)
    expected = processed(image, "pil")
    found = Pixels(processed(image, "pt"))
    assert len(found) == len(expected) == 2
    for own, theirs in zip(found, expected, strict=True):
        assert own.dtype == np.uint8
        assert Image.fromarray(own).tobytes() == theirs.tobytes()
    assert len(np.unique(found[:])) == 256


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_a_pipeline_that_knows_only_its_own_way_gives_the_same(output_type):
    image = decoded(torch.float32)
    assert np.array_equal(Pixels(processed(image, output_type))[:], Pixels(processed(image, "pt"))[:])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_other_modes_become_red_green_and_blue(mode):
    image = Image.fromarray(picture()).convert(mode)
    assert np.array_equal(Pixels([image])[0], np.asarray(image.convert("RGB")))


def test_transparency_is_left_out():
    image = torch.rand(1, 4, 6, 5)
    assert np.array_equal(Pixels(image)[:], Pixels(image[:, :3])[:])


def test_it_is_a_sequence_of_pictures():
    first, second, third = (picture() + i for i in range(3))
    pixels = Pixels([first, second, third])
    assert len(pixels) == 3
    assert np.array_equal(pixels[0], first)
    assert np.array_equal(pixels[-1], third)
    assert np.array_equal(pixels[1:], [second, third])
    assert np.array_equal([*pixels], [first, second, third])
    with pytest.raises(IndexError):
        pixels[3]


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), [np.zeros((4, 4, 3), np.uint8)]])
def test_what_happens_to_the_source_afterwards_does_not_show(images):
    pixels = Pixels(images)
    images[0][:] = 1
    assert not pixels[0].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_thread_that_launches_does_not_wait():
    """The device is asleep when the copy is asked for: it can only be waited for, and CUDA itself says if that is done."""
    image = processed(decoded(torch.float16), "pt")
    on_device = image.cuda()
    Pixels(on_device)[0]  # whatever is loaded once has been loaded
    asleep = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)
        asleep.record()
        pixels = Pixels(on_device)
        assert not asleep.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(pixels[:], Pixels(image)[:])
    assert asleep.query()
