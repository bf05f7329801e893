"""CloudEvents in both forms, written and read by the CloudEvents SDK."""

import base64
import json
import re

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http

from predictor.cloudevents import Event, decode, encode
from predictor.errors import InvalidRequest
from predictor.wire import Reply

BODY = {"prompt": "a cat", "parameters": {"seed": 7}}
ASKED = CloudEvent({"type": "t", "source": "s", "datacontenttype": "application/json"}, BODY)
PICTURE = Reply(b"\x89PNG", "image/png", {"x-seed": "7"})
JSON = Reply(b'{"predictions":[1]}', "application/json")


@pytest.mark.parametrize(("write", "structured"), [(to_binary, False), (to_structured, True)])
def test_what_an_event_carries_is_found(write, structured):
    event = decode(*write(ASKED))
    assert event.structured is structured
    assert json.loads(event.data) == BODY


def test_data_may_be_base64():
    fields = {"specversion": "1.0", "id": "1", "type": "t", "source": "s", "data_base64": base64.b64encode(b"{ }").decode()}
    event = decode({"content-type": "application/CloudEvents+json; charset=utf-8"}, json.dumps(fields).encode())
    assert event == Event(b"{ }", structured=True)


def test_other_requests_are_no_events():
    assert decode({"content-type": "application/json"}, b"{}") is None


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"ce-specversion": "1.0"}, b"{}"),
        ({"ce-specversion": "7", "ce-id": "1", "ce-type": "t", "ce-source": "s"}, b"{}"),
        ({"content-type": "application/cloudevents+json"}, b"secret"),
        ({"content-type": "application/cloudevents+json"}, b"[]"),
        ({"content-type": "application/cloudevents+json"}, b"\xff"),
        ({"content-type": "application/cloudevents+json"}, b'{"specversion": "1.0", "secret": 1}'),
        ({"content-type": "application/cloudevents+json"}, b'{"specversion": {}, "id": []}'),
        ({"content-type": "application/cloudevents+json"}, b"[" * 100000),
        (
            {"content-type": "application/cloudevents+json"},
            b'{"specversion": "1.0", "id": "1", "type": "t", "source": "s", "data_base64": "secret!"}',
        ),
    ],
)
def test_bad_events_are_refused_and_not_quoted(headers, body):
    with pytest.raises(InvalidRequest) as refused:
        decode(headers, body)
    assert re.match("a CloudEvent needs|specversion must|data_base64 must|body must be", refused.value.message)
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(("structured", "reply"), [(False, PICTURE), (True, PICTURE), (False, JSON), (True, JSON)])
def test_the_answer_is_an_event_of_the_same_form(structured, reply):
    told = encode(Event(b"", structured), reply, "shapes")
    assert told.media_type == ("application/cloudevents+json" if structured else reply.media_type)
    assert reply.headers.items() <= told.headers.items()
    event = from_http({"content-type": told.media_type, **told.headers}, told.body, lambda data: data)
    assert (event["type"], event["source"]) == ("io.kserve.inference.response", "io.kserve.inference.shapes")
    assert event["id"] and event["time"]
    data = event.get_data()
    if reply is PICTURE:
        assert data == PICTURE.body
    else:
        assert json.loads(data) == json.loads(JSON.body)
