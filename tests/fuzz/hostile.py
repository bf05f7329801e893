"""What no honest client sends: texts, JSON values and bodies, as Hypothesis strategies."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECRET = "zebra"  # in every prompt: no error and no log may hold it

TEXTS = [
    "",
    " \t\n",
    "\0",
    "\ufeff",  # a byte order mark
    "\ud800",  # half of a pair, which no UTF-8 holds
    "\udfff\ud800",
    "\u202e\u2066\u200f",  # right to left, and no way back
    "\U0001f993\U0010ffff",  # beyond 16 bits
    "e" + "\u0301" * 50,  # a letter under fifty accents
    "\x1b[2J\r\n\x7f",
    "%s%n{}{0.__class__}${jndi:ldap://x}",
    "'\"\\</script>",
    "\ufdfa" * 20,  # each is eighteen characters once it is normalised
    "a" * 101,
]
NUMBERS = [
    *(0, -1, 1, 2, 7, 8, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
]

texts = st.sampled_from(TEXTS) | st.text(max_size=8)
good_prompts = st.builds("{} {}".format, st.just(SECRET), st.text(st.characters(exclude_characters="\0"), max_size=8))
prompts = st.builds("{}{}{}".format, texts, st.just(SECRET), texts)
# Of every kind that JSON has, and those that are near to another.
WRONG = [None, True, False, "", "1", "true", 1, 0, -1, 1.0, 0.5, 1e308, 2**63, [], [1], [[]], {}, {"a": 1}, [None], SECRET]
_plain = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | texts
values = _plain | st.lists(_plain, max_size=2) | st.dictionaries(st.text(max_size=3), _plain, max_size=2)
_secrets = prompts | st.lists(prompts, max_size=2) | st.dictionaries(st.text(max_size=3), prompts, max_size=2)


def cases(count: int) -> Callable[[Any], Any]:
    """The same cases every time, with no regard for how long one takes."""
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def objects(fields: Mapping[str, Any], *required: str) -> st.SearchStrategy[dict[str, Any]]:
    """Good ones: any of `fields`, by their strategies."""
    needed = {name: each for name, each in fields.items() if name in required}
    return st.fixed_dictionaries(needed, optional={name: each for name, each in fields.items() if name not in required})


@st.composite
def spoiled(draw: st.DrawFn, messages: st.SearchStrategy[Any], is_text: Callable[[str], bool]) -> Any:
    """Good messages with up to two values in them, at any depth, replaced by what nobody expects there, or gone, or with an
    unknown neighbour. Of `is_text`, told a name, the place gets prompts: only there may no error quote what it refuses."""
    message = copy.deepcopy(draw(messages))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        found = list(places(message))
        if not found:
            return draw(values)
        parent, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["other", "other", "other", "gone", "neighbour"])):
            case "other":
                parent[key] = draw(_secrets if is_text(str(key)) else values)
            case "gone":
                del parent[key]
            case _ if isinstance(parent, dict):
                parent["x-" + draw(st.text(max_size=3))] = draw(_secrets)
    return message


def places(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every value within, as what it stands in and where."""
    inside = message.items() if isinstance(message, dict) else enumerate(message) if isinstance(message, list) else ()
    for key, value in inside:
        yield message, key
        yield from places(value)


@st.composite
def bodies(draw: st.DrawFn, messages: st.SearchStrategy[Any]) -> bytes:
    """A message as JSON, mostly whole, and otherwise cut off, altered in a byte, doubled, or in another encoding."""
    message = draw(messages)
    # Lone surrogates go as escapes, or as bytes that are no UTF-8.
    body = json.dumps(message, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, max(len(body) - 1, 0)))
    match draw(st.sampled_from(["whole"] * 10 + ["cut", "altered", "doubled", "marked", "latin-1", "utf-16"])):
        case "cut":
            return body[:at]
        case "altered":
            return body[:at] + bytes([draw(st.integers(0, 255))]) + body[at + 1 :]
        case "doubled":
            return body + body
        case "marked":
            return b"\xef\xbb\xbf" + body
        case "latin-1":
            return body.replace(SECRET.encode(), b"\xe9" + SECRET.encode())
        case "utf-16":
            return body.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
    return body
