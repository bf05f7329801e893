"""A request in the form that all protocols share: `GenerateRequest` as it came, `Params` once it is known to be good, and
the `Answer` that goes back.

Nothing here knows HTTP, torch or a model: what a model can do is told by its `Limits`.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from predictor.errors import InvalidRequest
from predictor.images import FORMATS, EncodedImage

SEEDS = 2**63  # seeds are below this
_DRAWN_SEEDS = 2**32  # those we choose: JSON numbers are doubles to many clients, exact below 2**53


@dataclass(frozen=True)
class GenerateRequest:
    """What a protocol's codec found in a body; nothing in it has been checked. `where` names it in error messages, as in
    "instances[1]."."""

    prompt: object
    parameters: Mapping[str, object]
    where: str = ""


@dataclass(frozen=True)
class Params:
    """What was asked for: valid for the model at hand, nothing left open. None: this pipeline has no such argument."""

    prompt: str
    width: int | None
    height: int | None
    num_inference_steps: int
    seed: int
    num_images_per_prompt: int = 1
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    scheduler: str | None = None
    output_format: str = "png"

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each image, so that each can be made again alone: seed, seed + 1, …"""
        return tuple((self.seed + i) % SEEDS for i in range(self.num_images_per_prompt))


@dataclass(frozen=True)
class Answer:
    """`images[i]` was made with `seeds[i]`; `seconds` by phase, in the order in which they happened. Sizes are those of the
    images: some pipelines round what they are asked for."""

    params: Params
    images: tuple[EncodedImage, ...]
    seconds: Mapping[str, float]
    dropped_tokens: int = 0
    flagged: tuple[bool, ...] | None = None  # by the pipeline's own safety checker, where it has one

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.params.seeds


@dataclass(frozen=True)
class Limits:
    """What the model at hand and the operator allow. Sizes in pixels."""

    supported: frozenset[str]  # arguments that the pipeline's __call__ has
    width: int | None
    height: int | None
    multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    num_inference_steps: int
    max_steps: int
    guidance_scale: float | None
    max_guidance: float
    max_images: int
    schedulers: tuple[str, ...]
    max_prompt_chars: int
    max_cost: float

    def relative_size(self, params: Params) -> float:
        """Pixels of one picture, in pictures of default size."""
        return (params.width or 1) * (params.height or 1) / ((self.width or 1) * (self.height or 1))

    def cost(self, params: Params) -> float:
        """Work of a request, in pictures of default size and steps."""
        steps = params.num_inference_steps / self.num_inference_steps
        return self.relative_size(params) * steps * params.num_images_per_prompt


def parse(request: GenerateRequest, limits: Limits) -> Params:
    """Raises InvalidRequest for the first field that is not as `limits` allow."""
    where = request.where
    prompt = _text(where + "prompt", request.prompt, limits.max_prompt_chars)
    checks = _checks(limits)
    unknown = [name for name in request.parameters if name not in checks]
    if unknown:
        raise InvalidRequest(f"{where}parameters has no field {_shown(unknown[0])}; allowed: {', '.join(sorted(checks))}")
    given = {
        name: check(f"{where}parameters.{name}", request.parameters[name])
        for name, check in checks.items()
        if request.parameters.get(name) is not None  # null: as if not given
    }
    defaults = {
        "width": limits.width,
        "height": limits.height,
        "num_inference_steps": limits.num_inference_steps,
        "guidance_scale": limits.guidance_scale,
    }
    params = Params(prompt=prompt, **{"seed": secrets.randbelow(_DRAWN_SEEDS), **defaults, **given})
    pixels = (params.width or 0) * (params.height or 0)
    if pixels > limits.max_pixels:
        raise InvalidRequest(
            f"{where}parameters.width x height must be at most {limits.max_pixels} pixels, "
            f"not {params.width} x {params.height} = {pixels}"
        )
    return params


def check_cost(params: Iterable[Params], limits: Limits) -> None:
    """Raises InvalidRequest when all that one call asks for is together more than it may be."""
    cost = sum(limits.cost(each) for each in params)
    if cost > limits.max_cost:
        raise InvalidRequest(
            "parameters: width x height x num_inference_steps x num_images_per_prompt, summed over the request, must be at "
            f"most {limits.max_cost:g} times a default picture ({limits.width} x {limits.height}, "
            f"{limits.num_inference_steps} steps), not {cost:.1f} times"
        )


# ---------------------------------------------------------------- fields

_Check = Callable[[str, object], Any]


def _checks(limits: Limits) -> dict[str, _Check]:
    side = _whole(limits.min_side, limits.max_side, limits.multiple)
    of_the_pipeline: dict[str, _Check] = {
        "width": side,
        "height": side,
        "num_inference_steps": _whole(1, limits.max_steps),
        "guidance_scale": _number(0, limits.max_guidance),
        "negative_prompt": lambda where, value: "" if value == "" else _text(where, value, limits.max_prompt_chars),
        "num_images_per_prompt": _whole(1, limits.max_images),
    }
    checks = {name: check for name, check in of_the_pipeline.items() if name in limits.supported}
    checks["seed"] = _whole(0, SEEDS - 1)
    checks["output_format"] = _one_of(tuple(FORMATS))
    if limits.schedulers:
        checks["scheduler"] = _one_of(limits.schedulers)
    return checks


def _text(where: str, value: object, longest: int) -> str:
    """The text itself never enters a message: it is somebody's prompt."""
    if not isinstance(value, str):
        came = "nothing" if value is None else f"a JSON {_kind(value)}"
        raise InvalidRequest(f"{where} must be a string of 1 to {longest} characters, not {came}")
    if not value.strip() or len(value) > longest:
        raise InvalidRequest(f"{where} must be a string of 1 to {longest} characters, not blank or of {len(value)} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequest(f"{where} must not hold NUL characters or lone surrogates")
    return value


def _whole(least: int, most: int, multiple: int = 1) -> _Check:
    def check(where: str, value: object) -> int:
        if type(value) is not int or not least <= value <= most or value % multiple:
            steps = f"multiple of {multiple}" if multiple > 1 else "whole number"
            raise InvalidRequest(f"{where} must be a {steps} from {least} to {most}, not {_shown(value)}")
        return value

    return check


def _number(least: float, most: float) -> _Check:
    def check(where: str, value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or not least <= value <= most
        ):
            raise InvalidRequest(f"{where} must be a number from {least:g} to {most:g}, not {_shown(value)}")
        return float(value)

    return check


def _one_of(allowed: tuple[str, ...]) -> _Check:
    def check(where: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidRequest(f"{where} must be one of {', '.join(allowed)}, not {_shown(value)}")
        return value

    return check


def _shown(value: object) -> str:
    """A value as JSON has it, at most 40 characters of it."""
    if isinstance(value, list | dict):
        return f"a JSON {_kind(value)}"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _kind(value: object) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object", type(None): "null"}
    return kinds.get(type(value), "string")
