import random

import pytest
from PIL import Image, ImageFilter

from judge import judge
from pictures import COLOURS, SIDE, draw, every_picture


def test_every_drawn_picture_is_seen_as_what_it_is():
    rng = random.Random(1)
    for picture in every_picture():
        assert all(judge(draw(picture, rng)).agrees(picture).values()), picture


def test_soft_edges_and_a_stray_pixel_do_not_mislead():
    rng = random.Random(2)
    for picture in every_picture()[::5]:
        image = draw(picture, rng).filter(ImageFilter.GaussianBlur(1))
        image.putpixel((2, 2), COLOURS[picture.colour])
        seen = judge(image)
        assert (seen.background, seen.colour, seen.size) == (picture.background, picture.colour, picture.size)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_picture_has_no_shape(colour):
    seen = judge(Image.new("RGB", (SIDE, SIDE), COLOURS[colour]))
    assert (seen.background, seen.colour, seen.shape, seen.size) == (colour, None, None, None)


def test_noise_is_not_taken_for_what_was_asked():
    picture = every_picture()[0]
    seen = judge(Image.effect_noise((SIDE, SIDE), 100).convert("RGB"))
    assert not all(seen.agrees(picture).values())
