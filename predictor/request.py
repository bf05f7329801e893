"""A request in the form that all protocols share: `GenerateRequest` as it came, `Params` once it is known to be good, and
the `Answer` that goes back.

Nothing here knows HTTP, torch or a model: what a model can do is told by its `Limits`.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from predictor.errors import InvalidRequest
from predictor.images import FORMATS, EncodedImage

SEEDS = 2**63  # seeds are below this
_DRAWN_SEEDS = 2**32  # those we choose: JSON numbers are doubles to many clients, exact below 2**53


@dataclass(frozen=True)
class GenerateRequest:
    """What a protocol's codec found in a body; nothing in it has been checked.

    The rest is for error messages, which name a field as its protocol does: `where` the request stands in the body, as in
    "instances[1].", `within` what its parameters stand, and those `names` that are not ours, as in {"prompt": "inputs"}.
    """

    prompt: object
    parameters: Mapping[str, object]
    where: str = ""
    within: str = "parameters."
    names: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, name: str) -> str:
        """A field of Params, as the caller knows it."""
        ours = name if name == "prompt" else self.within + name
        return self.where + self.names.get(name, ours)


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
    output_compression: int | None = None

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
    prompt_tokens: int = 0  # as the pipeline's own tokenizer counts them, start and end included
    dropped_tokens: int = 0  # of prompt and negative prompt, that no text encoder reads
    flagged: tuple[bool, ...] | None = None  # by the pipeline's own safety checker, where it has one

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.params.seeds


@dataclass(frozen=True)
class Step:
    """What is told of a request on its way: "queued" or "running", and how many of its steps are done."""

    state: str
    step: int
    of: int
    preview: EncodedImage | None = None


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
    prompt = _text(request.name_of("prompt"), request.prompt, limits.max_prompt_chars)
    fields = _fields(limits)
    unknown = [name for name in request.parameters if name not in fields]
    if unknown:
        place = (request.where + request.within).rstrip(".") or "body"
        allowed = sorted(request.names.get(name, name) for name in fields)
        name = request.names.get(unknown[0], unknown[0])[:40]
        raise InvalidRequest(f"{place} has no field {_shown(name)}; allowed: {', '.join(allowed)}", field=name)
    given = {
        name: each.check(request.name_of(name), request.parameters[name])
        for name, each in fields.items()
        if request.parameters.get(name) is not None  # null: as if not given
    }
    params = Params(prompt=prompt, **{"seed": secrets.randbelow(_DRAWN_SEEDS), **_defaults(limits), **given})
    if params.output_compression is not None and params.output_format == "png":
        name = request.name_of("output_compression")
        raise InvalidRequest(f"{name} is for output_format jpeg and webp: png loses nothing", field=name)
    pixels = (params.width or 0) * (params.height or 0)
    if pixels > limits.max_pixels:
        width, height = request.name_of("width"), request.name_of("height")
        raise InvalidRequest(
            f"{width if width == height else f'{width} x {height}'} must be at most {limits.max_pixels} pixels, "
            f"not {params.width} x {params.height} = {pixels}",
            field=width,
        )
    return params


def check_cost(params: Iterable[Params], limits: Limits) -> None:
    """Raises InvalidRequest when all that one call asks for is together more than it may be."""
    cost = sum(limits.cost(each) for each in params)
    if cost > limits.max_cost:
        raise InvalidRequest(
            "width x height x steps x images, summed over the request, must be at "
            f"most {limits.max_cost:g} times a default picture ({limits.width} x {limits.height}, "
            f"{limits.num_inference_steps} steps), not {cost:.1f} times"
        )


def schemas(limits: Limits) -> dict[str, dict[str, object]]:
    """JSON Schema of the prompt and of every parameter that this model has, by our names."""
    defaults = {"output_format": "png", "num_images_per_prompt": 1} | _defaults(limits)
    fields = {
        name: each.schema | ({"default": defaults[name]} if defaults.get(name) is not None else {})
        for name, each in _fields(limits).items()
    }
    prompt = {"type": "string", "minLength": 1, "maxLength": limits.max_prompt_chars, "description": "what to paint"}
    return {"prompt": prompt, **fields}


# ---------------------------------------------------------------- fields


@dataclass(frozen=True)
class _Field:
    """`check` takes a name and a value, and returns the value or raises InvalidRequest; `schema` says the same in JSON."""

    check: Callable[[str, object], Any]
    schema: dict[str, object]

    def described(self, text: str) -> _Field:
        return _Field(self.check, self.schema | {"description": text})


def _fields(limits: Limits) -> dict[str, _Field]:
    """What a request may set for this model."""
    side = _whole(limits.min_side, limits.max_side, limits.multiple)
    of_the_pipeline = {
        "width": side.described("pixels"),
        "height": side.described("pixels"),
        "num_inference_steps": _whole(1, limits.max_steps).described("steps of the denoiser"),
        "guidance_scale": _number(0, limits.max_guidance).described("how closely to follow the prompt"),
        "negative_prompt": _free_text(limits.max_prompt_chars).described("what not to paint"),
        "num_images_per_prompt": _whole(1, limits.max_images).described("pictures, made with seed, seed + 1, …"),
    }
    fields = {name: each for name, each in of_the_pipeline.items() if name in limits.supported}
    fields["seed"] = _whole(0, SEEDS - 1).described("the noise to begin with; drawn and told where none is given")
    if limits.schedulers:
        fields["scheduler"] = _one_of(limits.schedulers).described("the sampler, where not the model's own")
    fields["output_format"] = _one_of(tuple(FORMATS)).described("of the file")
    fields["output_compression"] = _whole(0, 100).described("quality of a jpeg or webp, 100 the best")
    return fields


def _defaults(limits: Limits) -> dict[str, Any]:
    return {
        "width": limits.width,
        "height": limits.height,
        "num_inference_steps": limits.num_inference_steps,
        "guidance_scale": limits.guidance_scale,
    }


def _free_text(longest: int) -> _Field:
    return _Field(
        lambda where, value: "" if value == "" else _text(where, value, longest), {"type": "string", "maxLength": longest}
    )


def _text(where: str, value: object, longest: int) -> str:
    """The text itself never enters a message: it is somebody's prompt."""
    if not isinstance(value, str):
        came = "nothing" if value is None else f"a JSON {_kind(value)}"
        raise InvalidRequest(f"{where} must be a string of 1 to {longest} characters, not {came}", field=where)
    if not value.strip() or len(value) > longest:
        raise InvalidRequest(
            f"{where} must be a string of 1 to {longest} characters, not blank or of {len(value)} characters", field=where
        )
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequest(f"{where} must not hold NUL characters or lone surrogates", field=where)
    return value


def _whole(least: int, most: int, multiple: int = 1) -> _Field:
    def check(where: str, value: object) -> int:
        if type(value) is not int or not least <= value <= most or value % multiple:
            steps = f"multiple of {multiple}" if multiple > 1 else "whole number"
            raise InvalidRequest(f"{where} must be a {steps} from {least} to {most}, not {_shown(value)}", field=where)
        return value

    step = {"multipleOf": multiple} if multiple > 1 else {}
    return _Field(check, {"type": "integer", "minimum": least, "maximum": most, **step})


def _number(least: float, most: float) -> _Field:
    def check(where: str, value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or not least <= value <= most
        ):
            raise InvalidRequest(f"{where} must be a number from {least:g} to {most:g}, not {_shown(value)}", field=where)
        return float(value)

    return _Field(check, {"type": "number", "minimum": least, "maximum": most})


def _one_of(allowed: tuple[str, ...]) -> _Field:
    def check(where: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidRequest(f"{where} must be one of {', '.join(allowed)}, not {_shown(value)}", field=where)
        return value

    return _Field(check, {"type": "string", "enum": list(allowed)})


def _shown(value: object) -> str:
    """A value as JSON has it, at most 40 characters of it."""
    if isinstance(value, list | dict):
        return f"a JSON {_kind(value)}"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _kind(value: object) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object", type(None): "null"}
    return kinds.get(type(value), "string")
