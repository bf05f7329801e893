import pytest

from predictor.errors import NotAcceptable
from predictor.negotiation import JSON, picture, preferred
from predictor.request import GenerateRequest

OFFERED = ("image/png", "image/webp", JSON)


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("IMAGE/WebP", "image/webp"),
        ("application/json, image/webp", "image/webp"),  # equally welcome: the first offered
        ("image/png;q=0.5, application/json", JSON),
        ("image/png;q=0, image/*", "image/webp"),  # the more specific range decides
        ("*/*;q=0.1, application/json;charset=utf-8;q=0.2", JSON),
        ("text/html, image/avif, image/webp, */*;q=0.8", "image/webp"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("image/png;q=much", None),
        (", ,", "image/png"),
        (";;q=1", None),
    ],
)
def test_the_most_welcome_is_found(accept, found):
    assert preferred(accept, OFFERED) == found


def test_accept_sets_the_format_that_a_request_leaves_open():
    request, media_type = picture(GenerateRequest("a", {"seed": 1}), "image/jpeg")
    assert (request.parameters, media_type) == ({"seed": 1, "output_format": "jpeg"}, "image/jpeg")


def test_another_answer_leaves_the_format_open():
    request, media_type = picture(GenerateRequest("a", {}), JSON, (JSON,))
    assert (request.parameters, media_type) == ({}, JSON)


@pytest.mark.parametrize("accept", ["image/png", "*/*", "text/html"])
def test_a_format_asked_for_by_name_wins(accept):
    asked = GenerateRequest("a", {"output_format": "webp"})
    assert picture(asked, accept, (JSON,)) == (asked, "image/webp")


def test_json_is_had_whatever_format_is_asked_for():
    asked = GenerateRequest("a", {"output_format": "webp"})
    assert picture(asked, JSON, (JSON,)) == (asked, JSON)


def test_what_cannot_be_had_is_said():
    with pytest.raises(NotAcceptable, match="Accept must allow one of image/png, image/jpeg, image/webp, application/json"):
        picture(GenerateRequest("a", {}), "text/html", (JSON,))


def test_a_format_that_does_not_exist_is_left_for_others_to_refuse():
    for asked in ("gif", 7, ["png"]):
        request, _ = picture(GenerateRequest("a", {"output_format": asked}), "*/*")
        assert request.parameters["output_format"] == asked
