import io
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from predictor.images import FORMATS, encode, preview, provenance, with_text

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
MADE = {"seed": 7, "prompt": "ein Käse 🧀", "num_inference_steps": 20}


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Gradients and a flat half, so that differences are small, large, zero and below zero."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 2] = 200
    return pixels


def decoded(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Read by hand, by the letter of the format: Pillow forgives some checksums."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, rest = [], png[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, data, checksum = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert checksum == struct.pack(">I", zlib.crc32(kind + data))
        found.append((kind, data))
        rest = rest[12 + length :]
    return found


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_says_how_it_was_made(output_format):
    encoded = encode(picture(), output_format, MADE)
    assert provenance(encoded.data) == MADE
    assert Image.open(io.BytesIO(encoded.data)).get_format_mimetype() == encoded.media_type


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("made", [encode, preview])
def test_every_picture_says_that_a_model_made_it(made, output_format):
    """As XMP, which Pillow finds in its place and a reader of XML reads to the letter."""
    encoded = made(picture(), output_format, MADE) if made is encode else made(picture(), output_format)
    with Image.open(io.BytesIO(encoded.data)) as image:
        meta = ElementTree.fromstring(image.info["xmp"])
    [description] = meta.findall("./rdf:RDF/rdf:Description", {"rdf": RDF})
    assert meta.tag == "{adobe:ns:meta/}xmpmeta"
    assert description.attrib == {
        f"{{{RDF}}}about": "",
        "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": (
            "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        ),
    }


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_prompts_too_long_for_exif_are_left_out_and_that_is_said(output_format):
    made = {"seed": 7, "prompt": "🧀" * 4000, "negative_prompt": "🧀" * 4000}
    assert provenance(encode(picture(), output_format, made).data) == {"seed": 7, "prompt_omitted": True}
    assert provenance(encode(picture(), "png", made).data) == made


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5), (255, 257), (512, 768)])
def test_png_keeps_every_pixel(size):
    encoded = encode(picture(*size), "png", MADE)
    assert (encoded.height, encoded.width) == size
    assert np.array_equal(decoded(encoded.data), picture(*size))


def test_png_is_right_to_the_letter():
    (header, text, xmp, image, end) = chunks(encode(picture(3, 5), "png", {"prompt": "Käse"}).data)
    assert header == (b"IHDR", struct.pack(">II5B", 5, 3, 8, 2, 0, 0, 0))
    assert text == (b"tEXt", b'generation\0{"prompt": "K\\u00e4se"}')
    assert xmp[0] == b"iTXt" and xmp[1].startswith(b'XML:com.adobe.xmp\0\0\0\0\0<?xpacket begin="\xef\xbb\xbf" id=')
    assert image[0] == b"IDAT" and len(zlib.decompress(image[1])) == 3 * (1 + 5 * 3)
    assert end == (b"IEND", b"")


def test_png_is_small_where_a_picture_is_plain():
    plain = np.full((512, 512, 3), 77, np.uint8)
    assert len(encode(plain, "png", {}).data) < plain.nbytes / 100


@pytest.mark.parametrize("output_format", FORMATS)
def test_pixels_may_be_part_of_a_larger_array(output_format):
    """Rows out of a batch, or an array that is not laid out row by row."""
    for part in (picture(64, 64)[5:40, 3:50], picture(30, 40).transpose(1, 0, 2)):
        assert encode(part, output_format, MADE) == encode(part.copy(), output_format, MADE)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_lossy_formats_keep_the_picture(output_format):
    gradient = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)[..., None].repeat(3, axis=2)
    difference = decoded(encode(gradient, output_format, {}).data).astype(int) - gradient
    assert abs(difference).max() <= 8


def test_equal_pictures_are_equal_bytes():
    assert encode(picture(), "png", MADE) == encode(picture(), "png", MADE)


def test_a_picture_of_unknown_origin_is_told_apart():
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG")
    with pytest.raises(ValueError, match="does not say"):
        provenance(file.getvalue())


@pytest.mark.parametrize(
    ("text", "chunk"),
    [
        ("Käse\nSteps: 20", (b"tEXt", b"parameters\0K\xe4se\nSteps: 20")),
        ("Käse 🧀", (b"iTXt", b"parameters\0\0\0\0\0" + "Käse 🧀".encode())),
        ("", (b"tEXt", b"parameters\0")),
    ],
)
def test_a_text_goes_into_a_finished_png(text, chunk):
    plain = encode(picture(), "png", MADE).data
    told = with_text(plain, "parameters", text)
    header, *rest = chunks(plain)
    assert chunks(told) == [header, chunk, *rest]
    with Image.open(io.BytesIO(told)) as image:
        assert image.info["parameters"] == text
    assert provenance(told) == MADE
    assert np.array_equal(decoded(told), picture())


def test_a_text_goes_into_nothing_but_a_png():
    with pytest.raises(ValueError, match="no PNG"):
        with_text(encode(picture(), "jpeg", MADE).data, "parameters", "a")
