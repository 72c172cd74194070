"""The head of a request as the guard reads it, beside h11's reading of the same bytes."""

from __future__ import annotations

import h11

from wsgi_busyguard._support.request_head import ordinary_head, read_head


def h11_reads(data):
    """Return h11's Request, None if it wants more, or its error."""
    if not data:
        return None  # to h11 it is the end of the connection
    server = h11.Connection(h11.SERVER)
    try:
        server.receive_data(data)
        event = server.next_event()
    except h11.RemoteProtocolError as error:
        return error
    return None if event is h11.NEED_DATA else event


def cgi(headers):
    """Return h11's headers as a server that drops underscores would."""
    built = {}
    for name, value in headers:
        if b"_" not in name:
            cgi_name = name.decode().upper().replace("-", "_")
            if cgi_name not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
                cgi_name = "HTTP_" + cgi_name
            text = value.decode("latin-1")
            built[cgi_name] = f"{built[cgi_name]},{text}" if cgi_name in built else text
    return built


def agrees(data):
    """Assert that a head that the guard takes is the request that h11 reads."""
    theirs = h11_reads(data)
    try:
        ours = read_head(data)
    except ValueError:
        return  # in doubt
    if ours is None:
        assert theirs is None
        return
    if "HTTP_HOST" not in ours.headers and ours.version == (1, 1):
        assert "Missing mandatory Host" in str(theirs)  # HAProxy's checks of HTTP/1.1 have none
        return
    assert isinstance(theirs, h11.Request)
    assert ours.method.encode() == theirs.method
    assert ours.version == tuple(map(int, theirs.http_version.decode().split(".")))
    headers = {**ours.headers}
    if "HTTP_TRANSFER_ENCODING" in headers:  # h11 has that in small letters
        headers["HTTP_TRANSFER_ENCODING"] = headers["HTTP_TRANSFER_ENCODING"].lower()
    assert headers == cgi(theirs.headers)
    target = theirs.target.decode()
    rest = target.partition("://")[2] if "://" in target.partition("?")[0][:8] else target
    assert ours.query == rest.partition("?")[2]


def ordinary_agrees(data):
    """Assert that a head that is read quickly is the one that is read with care, without a body."""
    quick = ordinary_head(data)
    if quick is not None:
        careful = read_head(data)
        assert quick == careful._replace(headers={})
        assert quick.size == len(data)
        more = {"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE"}
        assert more.isdisjoint(careful.headers)
