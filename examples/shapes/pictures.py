"""The world that the shapes model knows: one plain shape on one plain background, and the words for it.

A `Picture` is a description. `draw` turns it into pixels, `caption` into words; both take their freedom (position,
exact size, which words are left out) from the random generator they are given, so a seed fixes everything.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 64  # pixels
_OVERSAMPLING = 4  # draw larger, shrink with a box filter: antialiased edges

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 225, 60),
    "green": (40, 160, 70),
    "blue": (40, 80, 215),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": (11, 13), "large": (20, 23)}  # half the extent, in pixels: [least, most]

WORDS = ("a", "an", "on", "background", "shape", *COLOURS, *SHAPES, *SIZES)


@dataclass(frozen=True)
class Picture:
    colour: str
    shape: str
    background: str
    size: str

    @property
    def prompt(self) -> str:
        return _phrase([self.size, self.colour, self.shape], self.background)


def every_picture() -> list[Picture]:
    """All colour x shape x background combinations (no shape on its own colour), sizes in turn."""
    pairs = itertools.permutations(COLOURS, 2)
    sizes = itertools.cycle(SIZES)
    return [Picture(colour, shape, back, next(sizes)) for colour, back in pairs for shape in SHAPES]


def random_picture(rng: random.Random) -> Picture:
    colour, background = rng.sample(list(COLOURS), 2)
    return Picture(colour, rng.choice(SHAPES), background, rng.choice(list(SIZES)))


def caption(picture: Picture, rng: random.Random) -> str:
    """Words for the picture. Any attribute may be left unsaid, and one caption in ten says nothing at all, so that
    classifier-free guidance, negative prompts ("red") and partial prompts ("a large circle") have a meaning."""
    if rng.random() < 0.1:
        return ""
    said = [word for word in (picture.size, picture.colour) if rng.random() < 0.85]
    noun = picture.shape if rng.random() < 0.9 else "shape"
    background = picture.background if rng.random() < 0.85 else None
    if rng.random() < 0.05:
        return rng.choice((picture.size, picture.colour, picture.shape, f"{picture.background} background"))
    return _phrase([*said, noun], background)


def draw(picture: Picture, rng: random.Random) -> Image.Image:
    """An RGB picture, SIDE x SIDE, the whole shape inside the frame."""
    half = rng.uniform(*SIZES[picture.size])
    room = SIDE / 2 - half - 2
    x, y = (SIDE / 2 + rng.uniform(-1, 1) * min(room, 4) for _ in range(2))
    scale = _OVERSAMPLING
    canvas = Image.new("RGB", (SIDE * scale, SIDE * scale), COLOURS[picture.background])
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = ((x - half) * scale, (y - half) * scale, (x + half) * scale, (y + half) * scale)
    fill = COLOURS[picture.colour]
    if picture.shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif picture.shape == "square":
        inset = 0.08 * (right - left)  # so that the shapes look equally large
        pen.rectangle((left + inset, top + inset, right - inset, bottom - inset), fill=fill)
    else:
        pen.polygon(((x * scale, top), (left, bottom), (right, bottom)), fill=fill)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def _phrase(words: list[str], background: str | None) -> str:
    place = f" on {_article(background)} {background} background" if background else ""
    return f"{_article(words[0])} {' '.join(words)}{place}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
