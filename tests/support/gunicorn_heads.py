"""What a guarded gunicorn answers from a peek, and what gunicorn itself makes of the same bytes."""

from __future__ import annotations

import functools
import socket
from types import SimpleNamespace

import gunicorn.http
from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http.wsgi import create

from wsgi_busyguard import Load, Monitor
from wsgi_busyguard.adapters.gunicorn.replies import Replies
from wsgi_busyguard.adapters.gunicorn.request_heads import environ_of
from wsgi_busyguard.checks import Checks
from wsgi_busyguard.options import GuardOptions

HERE, THERE = ("127.0.0.1", 8000), ("127.0.0.1", 4000)
PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 80\r\n"


def config(**settings):
    made = Config()
    for name, value in settings.items():
        if name in made.settings:  # of this version
            made.set(name, value)
    return made


CONFIGS = [
    config(),
    config(limit_request_fields=3),
    config(limit_request_line=40, limit_request_field_size=30),
    config(casefold_http_method=True, permit_unconventional_http_method=True),
    config(header_map="dangerous"),
    config(header_map="refuse"),
    config(forwarded_allow_ips="192.0.2.1"),
    config(permit_obsolete_folding=True, strip_header_spaces=True),
    config(proxy_protocol=True),
    config(proxy_protocol=True, proxy_allow_ips="192.0.2.1"),
]


@functools.cache
def replies(cfg):
    monitor = Monitor(SimpleNamespace(read=lambda: Load(0, 0, 4), subscribe=id))
    return Replies(GuardOptions(), cfg, lambda: monitor)


def connection(cfg, sock=None):
    return SimpleNamespace(cfg=cfg, sock=sock, client=THERE, server=HERE, parser=None)


def answer(cfg, data):
    return replies(cfg).to_check(connection(cfg), data, True)


def as_read(cfg, data):
    """Return the environ that gunicorn makes of what comes on a socket, and what it leaves."""
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        make = getattr(gunicorn.http, "get_parser", RequestParser)
        parser = make(cfg, ours, THERE)
        request = next(parser)
        _, environ = create(request, ours, THERE, HERE, cfg)
        ours.setblocking(False)
        return environ, parser.unreader.buf.getvalue() + ours.recv(100)


CHECKS = Checks(True, GuardOptions().ready_paths, GuardOptions().live_paths)


def agrees(cfg, data):
    """Whether it was answered; and then gunicorn reads the same check, and nothing after it."""
    if answer(cfg, data) is None:
        return False
    if data.startswith(b"PROXY UNKNOWN"):  # which gunicorn does not know, and the guard does
        data = PROXY + data.partition(b"\r\n")[2]
    environ, rest = as_read(cfg, data)  # raises what gunicorn would refuse it with
    assert CHECKS.match(environ) is not None
    assert CHECKS.match(environ) == CHECKS.match(environ_of(connection(cfg), data))
    assert rest == b""
    assert "CONTENT_LENGTH" not in environ
    assert "HTTP_TRANSFER_ENCODING" not in environ
    return True
