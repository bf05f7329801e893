import io

import pytest
from PIL import Image

from predictor.images import FORMATS, encode, provenance

MADE = {"seed": 7, "prompt": "ein Käse 🧀", "num_inference_steps": 20}


def picture() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB")


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_says_how_it_was_made(output_format):
    encoded = encode(picture(), output_format, MADE)
    assert provenance(encoded.data) == MADE
    assert Image.open(io.BytesIO(encoded.data)).get_format_mimetype() == encoded.media_type


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_prompts_too_long_for_exif_are_left_out_and_that_is_said(output_format):
    made = {"seed": 7, "prompt": "🧀" * 4000, "negative_prompt": "🧀" * 4000}
    assert provenance(encode(picture(), output_format, made).data) == {"seed": 7, "prompt_omitted": True}
    assert provenance(encode(picture(), "png", made).data) == made


def test_png_keeps_every_pixel():
    encoded = encode(picture(), "png", {})
    assert Image.open(io.BytesIO(encoded.data)).tobytes() == picture().tobytes()


def test_equal_pictures_are_equal_bytes():
    assert encode(picture(), "png", MADE) == encode(picture(), "png", MADE)


def test_a_picture_of_unknown_origin_is_told_apart():
    file = io.BytesIO()
    picture().save(file, "PNG")
    with pytest.raises(ValueError, match="does not say"):
        provenance(file.getvalue())
