"""Which media type an answer gets: what the caller accepts against what can be had (RFC 9110, section 12.5.1). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from predictor.errors import NotAcceptable
from predictor.images import FORMATS
from predictor.request import GenerateRequest

JSON = "application/json"
EVENTS = "text/event-stream"


def picture(request: GenerateRequest, accept: str, others: Sequence[str] = ()) -> tuple[GenerateRequest, str]:
    """The request with the format that `accept` prefers, unless it names one itself, and the answer's media type: that of the
    picture, or one of `others`. Raises NotAcceptable."""
    asked = request.parameters.get("output_format")
    offered = {FORMATS[asked]: asked} if isinstance(asked, str) and asked in FORMATS else {v: k for k, v in FORMATS.items()}
    found = preferred(accept, [*offered, *others])
    if not found and not asked:
        raise NotAcceptable(f"Accept must allow one of {', '.join([*offered, *others])}")
    # Asked for in so many words it counts more than a header, which libraries set by themselves.
    found = found or next(iter(offered))
    if not asked and found in offered:
        request = replace(request, parameters={**request.parameters, "output_format": offered[found]})
    return request, found


def preferred(accept: str, offered: Sequence[str]) -> str | None:
    """The one that `accept` weighs most; of equals, the first offered. None where it allows none; "" allows all."""
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    if not ranges:
        return offered[0]
    weights = {each: _weight(each, ranges) for each in offered}
    best = max(offered, key=lambda each: weights[each])
    return best if weights[best] else None


def _range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    weight = next((each.removeprefix("q=") for each in parameters if each.startswith("q=")), "1")
    try:
        return name, min(max(0.0, float(weight)), 1.0)  # in this order, NaN is 0
    except ValueError:
        return name, 0.0


def _weight(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range which it lies in."""
    for name in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        found = [weight for range_, weight in ranges if range_ == name]
        if found:
            return max(found)
    return 0.0
