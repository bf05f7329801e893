"""What is on a picture, read from its pixels by plain geometry: no model judges the model.

The background is the colour of the frame; the shape is the largest patch that is closer to another colour, and it is
whichever ideal shape, drawn into the patch's bounding box, shares most with it (intersection over union).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pictures import COLOURS, Picture

_NAMES = list(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], dtype=float)  # [colours, 3]
_DIFFERS = 60.0  # RGB distance from the background that cannot be noise
_LEAST_PIXELS = 40  # fewer are speckle, not a shape


# Whether a point belongs to the shape that fills the box from -1 to 1, y downwards.
_IDEALS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.full(np.broadcast(x, y).shape, True),
    "triangle": lambda x, y: abs(x) <= (y + 1) / 2,
}


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
    back = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    background = _nearest(back)
    differs = _largest_patch(_distance(pixels, back) > _DIFFERS)
    if differs.sum() < _LEAST_PIXELS:
        return Verdict(background, None, None, None)
    front = np.median(pixels[differs], axis=0)
    patch = _cropped(_largest_patch(_distance(pixels, front) < _distance(pixels, back)))  # edges where the two colours meet
    height, width = patch.shape
    shape = max(_IDEALS, key=lambda name: _overlap(patch, _IDEALS[name]))
    size = "small" if max(height, width) < 0.5 * len(pixels) else "large"
    return Verdict(background, _nearest(front), shape, size)


def _distance(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.linalg.norm(pixels - colour, axis=-1)


def _nearest(colour: np.ndarray) -> str:
    return _NAMES[int(_distance(_PALETTE, colour).argmin())]


def _largest_patch(mask: np.ndarray) -> np.ndarray:
    """The largest set of neighbouring pixels in a boolean [height, width]; neighbours share an edge."""
    left = set(map(tuple, np.argwhere(mask)))
    largest: set[tuple[int, int]] = set()
    while left:
        edge = [left.pop()]
        patch = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            patch |= near
            edge.extend(near)
        largest = max(largest, patch, key=len)
    found = np.zeros_like(mask)
    if largest:
        found[tuple(np.array(list(largest)).T)] = True
    return found


def _overlap(patch: np.ndarray, ideal: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Intersection over union of a boolean [height, width] with an ideal shape of that size."""
    height, width = patch.shape
    y, x = ((np.arange(side) + 0.5) / side * 2 - 1 for side in (height, width))  # centres of the pixels
    wanted = ideal(x[None, :], y[:, None])
    return float((patch & wanted).sum() / (patch | wanted).sum())


def _cropped(patch: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(patch.any(axis=axis)) for axis in (1, 0))
    return patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
