"""A refusal in HTTP/2, written without looking at what is refused."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard.adapters.gunicorn.http2_frames import PREFACE, refusal, requests

FIELDS = [(":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "h")]
HEADERS = [("Retry-After", "1"), ("Busyguard-Refused", "queue-full"), ("Content-Length", "4")]


@pytest.fixture
def client():
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    return client


def told(client, said):
    """Return the answers by stream, and the last stream, as a client of HTTP/2 understands them."""
    events = client.receive_data(said)
    answers = {e.stream_id: dict(e.headers) for e in events if isinstance(e, RESPONSE)}
    ended = {e.stream_id for e in events if isinstance(e, h2.events.StreamEnded)}
    assert ended == set(answers)
    [gone] = [e for e in events if isinstance(e, h2.events.ConnectionTerminated)]
    assert gone.error_code == 0
    return answers, gone.last_stream_id


RESPONSE = h2.events.ResponseReceived
REFUSED = {":status": "503", "retry-after": "1", "busyguard-refused": "queue-full"}


def test_each_request_that_has_come_is_refused(client):
    for stream in (1, 3, 5):
        client.send_headers(stream, FIELDS, end_stream=stream == 3)
    client.send_data(5, b"b" * 100)
    data = client.data_to_send()
    assert [(r.stream, r.is_whole) for r in requests(data)] == [(1, False), (3, True), (5, False)]
    assert told(client, refusal(data, 503, HEADERS)) == (dict.fromkeys((1, 3, 5), REFUSED), 5)


def test_what_is_cut_off_may_be_sent_again(client):
    client.send_headers(1, FIELDS, end_stream=True)
    before = client.data_to_send()
    client.send_headers(3, FIELDS, end_stream=True)
    data = before + client.data_to_send()[:-1]
    assert told(client, refusal(data, 503, HEADERS)) == ({1: REFUSED}, 1)


def test_trailers_are_no_request(client):
    client.send_headers(1, FIELDS)
    client.send_headers(1, [("trailer", "a")], end_stream=True)
    data = client.data_to_send()
    assert [request.stream for request in requests(data)] == [1]
    assert told(client, refusal(data, 503, HEADERS))[1] == 1


def test_padding_and_priority_are_taken_off(client):
    client.send_headers(1, FIELDS, end_stream=True)
    [plain] = requests(client.data_to_send())
    weighed = h2.connection.H2Connection()
    weighed.initiate_connection()
    weighed.send_headers(1, FIELDS, end_stream=True, priority_weight=7)
    [request] = requests(weighed.data_to_send())
    assert request.fields == plain.fields
    padded = b"\3" + plain.fields + bytes(3)
    frame = len(padded).to_bytes(3, "big") + bytes([1, 0xD, 0, 0, 0, 1]) + padded
    assert requests(PREFACE + frame) == [plain]


def test_a_head_in_two_frames_is_not_answered(client):
    frame = b"\0\0\1\1\1\0\0\0\1a"  # HEADERS that do not end
    [request] = requests(PREFACE + frame)
    assert request.fields is None
    assert told(client, refusal(PREFACE + frame, 503, HEADERS)) == ({}, 0)


@pytest.mark.parametrize("stream", [0, 2])
def test_what_can_be_no_request_is_not_answered(client, stream):
    """An answer on the connection's own stream would be a mistake of ours."""
    frame = b"\0\0\1\1\5" + stream.to_bytes(4, "big") + b"\x82"
    assert requests(PREFACE + frame) == []
    assert told(client, refusal(PREFACE + frame, 503, HEADERS)) == ({}, 0)


def test_long_values_arrive(client):
    client.send_headers(1, FIELDS, end_stream=True)
    long = [("x", "v" * size) for size in (126, 127, 128, 255, 500)]
    events = client.receive_data(refusal(client.data_to_send(), 503, long))
    [answer] = [event for event in events if isinstance(event, RESPONSE)]
    assert [value for name, value in answer.headers if name == "x"] == [v for _, v in long]


@given(st.binary(max_size=200))
def test_noise_is_no_error(noise):
    requests(noise)
    requests(PREFACE + noise)
    refusal(PREFACE + noise, 503, HEADERS)
