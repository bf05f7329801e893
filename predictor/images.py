"""Pixels to bytes, with what it takes to make the picture again inside the file, and with the word that a model made it.

PNG carries the first as one text chunk under the keyword `generation`, JPEG and WebP as Exif ImageDescription: JSON in both.
The second is IPTC's digital source type, in XMP, where search engines and editors look for it (iptc.org/std/photometadata,
"Digital Source Type"; www.adobe.com/devnet/xmp, part 3, for its place in each format).

PNG is written here: Pillow tries every filter on every line and then searches for the best match, 300 to 500 ms for a
picture of 1024 x 1024. One filter for all lines and a deflate made for speed take 7 to 11 ms and 11 to 17 % more bytes
(tests/bench/encoding.py). Both leave the interpreter to other threads while they work.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from isal import isal_zlib
from PIL import Image

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
KEYWORD = "generation"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP_KEYWORD = "XML:com.adobe.xmp"  # of PNG's chunk
_XMP = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
_EXIF_IMAGE_DESCRIPTION = 0x010E
_EXIF_BYTES = 60_000  # a JPEG segment holds 64 KB
# Quality: above the visible losses.
_OPTIONS: dict[str, dict[str, int]] = {"jpeg": {"quality": 95}, "webp": {"quality": 90, "method": 0}}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 33  # bytes of the signature and the chunk that comes first in every PNG
_PNG_RGB8 = (8, 2, 0, 0, 0)  # bits a sample, colour type, then the only compression and filter method there are, not interlaced
_PNG_FILTER_UP = 2  # each byte as its difference to the one above: as good as any on photographs, best on flat colours
_PNG_LEVEL = 1  # of ISA-L's 0 to 3: as fast as 0, and above it nothing gets smaller


@dataclass(frozen=True)
class EncodedImage:
    data: bytes
    format: str  # a key of FORMATS
    width: int
    height: int

    @property
    def media_type(self) -> str:
        return FORMATS[self.format]


def encode(
    pixels: np.ndarray, output_format: str, provenance: Mapping[str, object], quality: int | None = None
) -> EncodedImage:
    """`pixels`: RGB, uint8 [height, width, 3]. `provenance` must survive JSON. `quality`, 0 to 100, is for JPEG and WebP."""
    text = json.dumps(provenance)  # in ASCII
    if output_format == "png":
        data = _png(pixels, text)
    else:
        if len(text) > _EXIF_BYTES:
            text = json.dumps(without_prompts(provenance) | {"prompt_omitted": True})
        data = _lossy(pixels, output_format, text, quality)
    return EncodedImage(data, output_format, pixels.shape[1], pixels.shape[0])


def _png(pixels: np.ndarray, text: str) -> bytes:
    height, width, _ = pixels.shape
    lines = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _PNG_FILTER_UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])  # modulo 256, as the format wants it
    return b"".join(
        (
            _PNG_SIGNATURE,
            *_chunk(b"IHDR", struct.pack(">II5B", width, height, *_PNG_RGB8)),
            *_chunk(b"tEXt", f"{KEYWORD}\0{text}".encode("ascii")),
            *_unicode_chunk(_XMP_KEYWORD, _XMP),
            *_chunk(b"IDAT", isal_zlib.compress(filtered, _PNG_LEVEL)),
            *_chunk(b"IEND", b""),
        )
    )


def with_text(png: bytes, keyword: str, text: str) -> bytes:
    """The same file with one more text chunk. `keyword`: 1 to 79 characters of Latin-1; `text` without NUL. Raises ValueError
    for what is no PNG. Source: www.w3.org/TR/png, 11.3.3."""
    if not png.startswith(_PNG_SIGNATURE):
        raise ValueError("this file is no PNG")
    try:
        chunk = _chunk(b"tEXt", f"{keyword}\0{text}".encode("latin-1"))
    except UnicodeEncodeError:
        chunk = _unicode_chunk(keyword, text)
    return b"".join((png[:_PNG_HEADER], *chunk, png[_PNG_HEADER:]))


def _unicode_chunk(keyword: str, text: str) -> tuple[bytes, ...]:
    plain = b"\0\0\0\0"  # not compressed, in no method; no language; no keyword in that language
    return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0" + plain + text.encode())


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)


def _lossy(pixels: np.ndarray, output_format: str, text: str, quality: int | None) -> bytes:
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = text
    options: dict[str, Any] = {**_OPTIONS[output_format], "exif": exif, "xmp": _XMP.encode()}
    if quality is not None:
        options["quality"] = quality
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, output_format.upper(), **options)
    return file.getvalue()


def preview(pixels: np.ndarray, output_format: str, size: tuple[int, int] | None = None) -> EncodedImage:
    """A picture that is not finished, and says so; scaled to `size`, width and height."""
    if size and size != (pixels.shape[1], pixels.shape[0]):
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return encode(pixels, output_format, {"preview": True})


def without_prompts(provenance: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in provenance.items() if name not in ("prompt", "negative_prompt")}


def provenance(file: bytes) -> dict[str, object]:
    """What `encode` wrote. Raises ValueError for a picture that carries nothing."""
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        text = image.info.get(KEYWORD) or image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if not text:
        raise ValueError("this picture does not say how it was made")
    found: dict[str, object] = json.loads(text)
    return found
