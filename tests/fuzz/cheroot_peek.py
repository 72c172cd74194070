"""What cheroot's front answers from a peek: cheroot reads the same check, and nothing after it."""

from __future__ import annotations

import io
from types import SimpleNamespace

from cheroot.server import HTTPRequest
from cheroot.wsgi import Gateway_10

from wsgi_busyguard._support.request_head import read_head, unfinished
from wsgi_busyguard.adapters.cheroot.request import PeekedRequest, reads
from wsgi_busyguard.checks import Checks
from wsgi_busyguard.options import GuardOptions

CHECKS = Checks(True, GuardOptions().ready_paths, GuardOptions().live_paths)
SERVER = SimpleNamespace(
    ssl_adapter=None,
    protocol="HTTP/1.1",
    max_request_header_size=0,
    max_request_body_size=0,
    server_name="h",
    software="s",
    bind_addr=("127.0.0.1", 80),
)


def as_read(data: bytes):
    """Return the environ that cheroot makes of this, the length of its body, and what is left.

    As a proxy, which takes a host in front of the path: the guard answers that, as RFC 9112 wants.
    """
    conn = SimpleNamespace(
        rfile=io.BytesIO(data), wfile=io.BytesIO(), remote_addr="", remote_port=0, ssl_env={}
    )
    request = HTTPRequest(SERVER, conn, proxy_mode=True)
    request.parse_request()
    assert request.ready, conn.wfile.getvalue()
    # In the environ Content_Length, by which it reads nothing, would do as well.
    length = request.inheaders.get(b"Content-Length", b"0")
    return Gateway_10(request).get_environ(), length, conn.rfile.read()


def target(data: bytes) -> None:
    try:
        head = None if unfinished(data) else read_head(data)
    except ValueError:
        return  # cheroot says what it thinks of it
    check = None if head is None else CHECKS.match_request(*head[:4])
    if head is None or check is None or PeekedRequest(head, False).has_body:
        return
    if not reads(SERVER, data[: head.size]):
        return
    environ, length, rest = as_read(data)
    if environ["PATH_INFO"] == "/*":  # to cheroot a star is a path like any other
        environ["PATH_INFO"] = "*"
    assert CHECKS.match(environ) == check
    assert rest == data[head.size :]
    assert not length.strip(b"0")
