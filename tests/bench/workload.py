"""What is asked for, and when: the same for every system, from seeds alone. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

# A public service sees many callers who leave the defaults alone and some who do not. The common value of each is half of
# all, so a quarter of the requests are equal in both: request-level batching has something to group.
STEPS = {10: 1, 15: 1, 20: 4, 25: 1, 30: 1}  # value: weight
GUIDANCE = {1.0: 2, 3.0: 1, 5.0: 1, 7.5: 5, 9.0: 1}  # 1.0 is one row in the denoiser's batch, more is two

_SIZES = ("large", "small")
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
_SHAPES = ("circle", "square", "triangle")

Kind = tuple[int, bool]  # steps, guided: what the time of a picture made alone depends on


@dataclass(frozen=True)
class Asked:
    prompt: str
    seed: int
    steps: int
    guidance: float

    @property
    def kind(self) -> Kind:
        return self.steps, self.guidance > 1

    @property
    def body(self) -> dict[str, object]:
        parameters = {"seed": self.seed, "num_inference_steps": self.steps, "guidance_scale": self.guidance}
        return {"prompt": self.prompt, "parameters": parameters}


def mixed(seed: str, count: int) -> list[Asked]:
    """`count` requests with steps and guidance drawn by weight."""
    draw = random.Random(seed)
    return [asked(draw, _weighted(draw, STEPS), _weighted(draw, GUIDANCE)) for _ in range(count)]


def of_every_kind(seed: str, times: int) -> list[Asked]:
    """Each number of steps with and without guidance, `times` over, spread over time."""
    draw = random.Random(seed)
    return [asked(draw, steps, guidance) for _ in range(times) for steps in STEPS for guidance in (1.0, 7.5)]


def asked(draw: random.Random, steps: int, guidance: float) -> Asked:
    colour, background = draw.sample(_COLOURS, 2)
    prompt = f"a {draw.choice(_SIZES)} {colour} {draw.choice(_SHAPES)} on a {background} background"
    return Asked(prompt, draw.randrange(2**32), steps, guidance)


def arrivals(seed: str, rate: float, count: int) -> list[float]:
    """Seconds from the beginning, of a Poisson process that brought `count` in the time that `rate` a second expects: then
    they have come independently and evenly spread over it. Whoever comes does not wait for the others."""
    draw = random.Random(seed)
    return sorted(draw.uniform(0, count / rate) for _ in range(count))


def _weighted(draw: random.Random, weights: Mapping[float, int]) -> float:
    return draw.choices(list(weights), list(weights.values()))[0]
