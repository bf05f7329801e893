"""What a picture costs to encode: seconds and bytes against Pillow's default PNG, and what other threads lose meanwhile.

    OMP_NUM_THREADS=1 python tests/bench/encoding.py [--side 1024] [--rounds 9]

All candidates take turns, round by round; medians count. Libraries that the project does not use (zlib-ng, opencv,
imagecodecs, pyvips) take part where they are installed. `stall` is the longest time for which another Python thread stood
still while the picture was encoded. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import statistics
import threading
import time
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from predictor import images

Encoder = Callable[[np.ndarray], bytes]
_SHAPES = Path(__file__).parents[2] / "examples/shapes/sample.png"
_BASE = "Pillow, default"


def photograph(side: int, grain: float) -> np.ndarray:
    """Light that changes over every distance, letters with hard edges, and the grain of a sensor."""
    random = np.random.default_rng(0)
    light = np.full((side, side, 3), 128.0)
    for cells in (3, 6, 12, 24, 48, 96, 192):
        coarse = Image.fromarray(random.normal(0, 40 / cells**0.6, (cells, cells)).astype(np.float32))
        light += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))[..., None] * random.normal(0, 1, 3)
    light += random.normal(0, grain, light.shape)
    image = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(side // 20)
    for line in range(6):
        draw.text(
            (side // 25, side * (line + 0.5) / 6), "The quick brown fox jumps over", fill=(255, 255 - 40 * line, 0), font=font
        )
    return np.asarray(image)


def shapes(side: int) -> np.ndarray:
    """The embedded model's own pictures, enlarged."""
    with Image.open(_SHAPES) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))


def pillow(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def with_deflate(compressobj: Callable[..., object], level: int, strategy: int, pixels: np.ndarray) -> bytes:
    """The lines of images.py's PNG under another deflate; without the 100 bytes around them."""
    lines = pixels.reshape(len(pixels), -1)
    filtered = np.full((len(lines), lines.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    deflate = compressobj(level, zlib.DEFLATED, 15, 9, strategy)
    return deflate.compress(filtered) + deflate.flush()


def candidates() -> dict[str, Encoder]:
    found: dict[str, Encoder] = {
        _BASE: pillow,
        "Pillow, level 1": functools.partial(pillow, compress_level=1),
        "Pillow, level 1, HUFFMAN_ONLY": functools.partial(pillow, compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY),
        "up filter, zlib RLE": functools.partial(with_deflate, zlib.compressobj, 1, zlib.Z_RLE),
        "ours, png": lambda pixels: images.encode(pixels, "png", {}).data,
        "ours, jpeg": lambda pixels: images.encode(pixels, "jpeg", {}).data,
        "ours, webp": lambda pixels: images.encode(pixels, "webp", {}).data,
    }
    optional: dict[str, tuple[str, Callable[..., Encoder]]] = {
        "up filter, zlib-ng RLE": ("zlib_ng.zlib_ng", lambda ng: functools.partial(with_deflate, ng.compressobj, 1, ng.Z_RLE)),
        "OpenCV": ("cv2", lambda cv: lambda pixels: cv.imencode(".png", pixels[..., ::-1])[1].tobytes()),
        "imagecodecs, level 1": ("imagecodecs", lambda codecs: lambda pixels: codecs.png_encode(pixels, level=1)),
        "vips, level 1": (
            "pyvips",
            lambda vips: lambda pixels: vips.Image.new_from_array(pixels).pngsave_buffer(compression=1),
        ),
    }
    for name, (module, make) in optional.items():
        try:
            found[name] = make(import_module(module))
        except ImportError:
            continue
    return found


def stall(encode: Callable[[], object]) -> float:
    """Seconds: the longest time between two turns of a thread that has nothing but Python to do."""
    worker = threading.Thread(target=encode)
    longest, last = 0.0, time.perf_counter()
    worker.start()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def measure(pixels: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    encoders = candidates()
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    stalls: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encode in encoders.items():
            begin = time.perf_counter()
            encode(pixels)
            seconds[name].append(time.perf_counter() - begin)
            stalls[name].append(stall(functools.partial(encode, pixels)))
    base, size = statistics.median(seconds[_BASE]), len(encoders[_BASE](pixels))
    return {
        name: {
            "ms": round(1e3 * statistics.median(seconds[name]), 2),
            "times_faster": round(base / statistics.median(seconds[name]), 1),
            "bytes_ratio": round(len(encode(pixels)) / size, 3),
            "stall_ms": round(1e3 * statistics.median(stalls[name]), 2),
        }
        for name, encode in encoders.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    pictures = {
        "photograph": photograph(given.side, 2.0),
        "photograph without grain": photograph(given.side, 0.3),
        "shapes": shapes(given.side),
    }
    found = {name: measure(pixels, given.rounds) for name, pixels in pictures.items()}
    for picture, rows in found.items():
        print(f"{picture}, {given.side} x {given.side}, median of {given.rounds}")
        for name, row in rows.items():
            print(
                f"  {name:32} {row['ms']:7.1f} ms  {row['times_faster']:6.1f} x faster  "
                f"{row['bytes_ratio']:6.3f} of the bytes  stall {row['stall_ms']:6.1f} ms"
            )
    print(json.dumps({"benchmark": "encoding", "side": given.side, "rounds": given.rounds, "pictures": found}))


if __name__ == "__main__":
    main()
