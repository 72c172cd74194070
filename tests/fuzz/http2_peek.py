"""What gunicorn's front makes of HTTP/2 from a peek: h2 reads the same, and can read the answer.

The input is what a client says after its greeting.
"""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame
from support.gunicorn_heads import CHECKS, config, connection, replies

from wsgi_busyguard.adapters.gunicorn.http2_frames import PREFACE, requests
from wsgi_busyguard.policy import Reason

CFG = config(http_protocols="h2,h1", http2_cleartext="prior-knowledge")


def frames(data: bytes) -> list[Frame]:
    """Return the frames that these bytes are; what is none raises."""
    found = []
    while data:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + size]))
        assert len(data) >= 9 + size
        found.append(frame)
        data = data[9 + size :]
    return found


def as_read(said: bytes) -> list[h2.events.Event]:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    return server.receive_data(said)


def target(data: bytes) -> None:
    said = PREFACE + data
    refused = frames(replies(CFG).refusal(connection(CFG), said, Reason.QUEUE_FULL))
    known = {request.stream for request in requests(said) if request.fields is not None}
    answered = {frame.stream_id for frame in refused if isinstance(frame, HeadersFrame)}
    assert answered == known
    assert isinstance(refused[-1], GoAwayFrame)
    assert refused[-1].last_stream_id == max(known, default=0)
    answer = replies(CFG).to_check(connection(CFG), said, True)
    if answer is None:
        return
    frames(answer)
    events = as_read(said)
    [asked] = [event for event in events if isinstance(event, h2.events.RequestReceived)]
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    fields = dict(asked.headers)
    path, _, query = fields[b":path"].partition(b"?")
    method = fields[b":method"].decode("latin-1")
    assert CHECKS.match_request(method, path.decode("latin-1"), query.decode("latin-1"), {})
