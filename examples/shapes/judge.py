"""What is on a picture, read from its pixels by plain geometry: no model judges the model.

The background is the colour of the frame; the shape is what differs from it. How much of its own bounding box a shape
fills tells which it is: a square all of it, a circle pi/4 = 0.79, a triangle 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from pictures import COLOURS, Picture

_NAMES = list(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], dtype=float)  # [colours, 3]
_DIFFERS = 60.0  # RGB distance from the background that counts as the shape
_LEAST_PIXELS = 40  # fewer are speckle, not a shape


@dataclass(frozen=True)
class Verdict:
    """What was seen; `colour`, `shape` and `size` are None when there is no shape."""

    background: str
    colour: str | None
    shape: str | None
    size: str | None

    def agrees(self, picture: Picture) -> dict[str, bool]:
        return {part: getattr(self, part) == getattr(picture, part) for part in ("background", "colour", "shape", "size")}


def judge(image: Image.Image) -> Verdict:
    pixels = np.asarray(image.convert("RGB"), dtype=float)  # [height, width, 3]
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    back = np.median(frame, axis=0)
    mask = np.linalg.norm(pixels - back, axis=-1) > _DIFFERS
    background = _nearest(back)
    if mask.sum() < _LEAST_PIXELS:
        return Verdict(background, None, None, None)
    height, width = _extent(mask.any(axis=1)), _extent(mask.any(axis=0))
    filled = mask.sum() / (height * width)
    shape = "square" if filled > 0.89 else "circle" if filled > 0.64 else "triangle"
    size = "small" if max(height, width) < 0.5 * len(mask) else "large"
    return Verdict(background, _nearest(np.median(pixels[mask], axis=0)), shape, size)


def _nearest(colour: np.ndarray) -> str:
    return _NAMES[int(np.linalg.norm(_PALETTE - colour, axis=1).argmin())]


def _extent(occupied: np.ndarray) -> int:
    """Pixels from the first to the last occupied line, stray single lines at the rim left out by their neighbours."""
    lines = np.flatnonzero(occupied)
    return int(lines[-1] - lines[0] + 1)
