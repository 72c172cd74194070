"""All that an app answers where no server runs it."""

from __future__ import annotations

from wsgiref.validate import validator

import pytest

from wsgi_busyguard._support.wsgi_call import called, least_environ


class Body:
    def __init__(self, *pieces):
        self.pieces, self.closed = pieces, 0

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self):
        self.closed += 1


def answering(body):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])(b"written ")
        return body

    return app


def test_the_least_environ_is_a_whole_one():
    app = validator(answering([b"body"]))
    status, headers, pieces = called(app, least_environ("GET", "/x", "a=b", {"HTTP_ACCEPT": "*/*"}))
    assert (status, headers) == ("200 OK", [("Content-Type", "text/plain")])
    assert b"".join(pieces) == b"written body"


@pytest.mark.parametrize("pieces", [(b"a", b"b"), (b"a", ValueError("in the middle"))])
def test_a_body_is_closed_once_whatever_it_raises(pieces):
    body = Body(*pieces)
    try:
        assert called(answering(body), least_environ("GET"))[2] == [b"written ", *pieces]
    except ValueError:
        assert isinstance(pieces[1], ValueError)
    assert body.closed == 1


def test_an_answer_may_take_the_place_of_one_that_was_not_sent():
    def app(environ, start_response):
        start_response("200 OK", [])
        start_response("500 Sorry", [("X", "y")], (ValueError, ValueError(), None))
        return [b"sorry"]

    assert called(app, least_environ("GET")) == ("500 Sorry", [("X", "y")], [b"sorry"])
