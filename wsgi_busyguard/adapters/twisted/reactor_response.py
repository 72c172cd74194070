"""Sends what a WSGI app says, where there is no thread for it: in the reactor thread."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from ..._support.wsgi_call import least_environ
from ..front.sockets import whole_response
from .connections import connection_of, speaks_http2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment
    from twisted.web.server import Request


def send(request: Request, app: WSGIApplication, last: bool = False) -> None:
    """Answer a request with a WSGI app that does not block, in the reactor thread.

    :param last: whether to say that the connection is closed after it; that is up to the caller.
    """
    status, headers, body = whole_response(app, _environ(request))
    code, _, phrase = status.partition(" ")
    request.quiet = True  # type: ignore[attr-defined] # no line in the access log
    request.setResponseCode(int(code), phrase.encode("latin-1"))
    for name, value in headers:
        request.responseHeaders.addRawHeader(name.encode("latin-1"), value.encode("latin-1"))
    if last and not speaks_http2(connection_of(request.channel)):
        request.setHeader(b"connection", b"close")  # over HTTP/2 no header may say that
    request.write(body)
    request.finish()


def _environ(request: Request) -> WSGIEnvironment:
    path, _, query = request.uri.decode("latin-1").partition("?")
    more = {
        "SERVER_PROTOCOL": request.clientproto.decode("latin-1"),
        "wsgi.url_scheme": "https" if request.isSecure() else "http",
        "wsgi.multithread": False,
        **dict(headers_of(request)),
    }
    return least_environ(request.method.decode("latin-1"), unquote(path, "latin-1"), query, more)


def headers_of(request: Request) -> Iterable[tuple[str, str]]:
    """Yield the request's headers as environ has them."""
    for name, values in request.requestHeaders.getAllRawHeaders():
        yield (
            "HTTP_" + name.decode("latin-1").upper().replace("-", "_"),
            ",".join(value.decode("latin-1") for value in values),
        )
