import pytest

from predictor import wire
from predictor.errors import DeadlineExceeded, GenerationFailed, InvalidRequest, NotServing
from predictor.images import EncodedImage
from predictor.request import Answer, GenerateRequest, Params


def answer(**fields) -> Answer:
    seconds = {"queue": 0.001, "denoise": 1.5}
    return Answer(Params("a", 8, 8, 2, seed=7), (EncodedImage(b"webp", "webp", 8, 8),), seconds, **fields)


def test_a_picture_says_in_headers_what_is_known_of_it():
    reply = wire.picture(answer())
    assert (reply.body, reply.media_type) == (b"webp", "image/webp")
    assert reply.headers == {"x-seed": "7", "server-timing": "queue;dur=1.0, denoise;dur=1500.0"}
    told = wire.picture(answer(dropped_tokens=3, flagged=(True,))).headers
    assert (told["x-prompt-truncated"], told["x-safety-flagged"]) == ("3", "true")


def test_the_longest_of_a_call_counts():
    assert wire.timing([answer(), Answer(answer().params, (), {"denoise": 2})]) == "queue;dur=1.0, denoise;dur=2000.0"


@pytest.mark.parametrize(("count", "several"), [(None, False), (1, False), (2, True), ("2", False), (2.5, False)])
def test_several_pictures_are_asked_for_by_a_whole_number(count, several):
    assert wire.several(GenerateRequest("a", {"num_images_per_prompt": count})) is several


def test_events_are_one_line_whatever_they_hold():
    assert wire.event("x", {"a": "line\nline"}) == b'event: x\ndata: {"a":"line\\nline"}\n\n'


def test_only_our_own_faults_need_an_id():
    assert wire.error(GenerationFailed("failed"), "r") == {"error": "failed (request id r)"}
    assert wire.error(DeadlineExceeded("late"), "r") == {"error": "late (request id r)"}
    assert wire.error(NotServing("loading"), "r") == {"error": "loading"}


def test_unknown_fields_are_named_no_longer_than_is_readable():
    with pytest.raises(InvalidRequest) as refused:
        wire.only({"x" * 99: 1, "prompt": 2}, {"prompt"}, "body")
    assert refused.value.message == 'body has no field "' + "x" * 40 + '"; allowed: prompt'
