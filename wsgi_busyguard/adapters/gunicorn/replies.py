"""What is said to a connection before a thread is taken: the answer to a check, or a refusal.

Bytes in, bytes out. Knows how gunicorn reads a request, and no worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from ..._support.log import Streak
from ..._support.request_head import proxied
from ..._support.wsgi_call import least_environ
from ...responses import Responses
from ..front.refusing_listener import RefusingListener
from ..front.sockets import refusal_bytes, response_bytes, whole_response
from .http2_frames import refusal
from .request_heads import environ_of, http2_response, http2_target, speaks_http2

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from ..._support.request_head import Head
    from ...gate import Gate
    from ...monitor import Monitor
    from ...options import GuardOptions
    from ...policy import Reason

# What is said at once is said in this version of HTTP, and is the last that a connection hears.
HTTP_VERSION = (1, 1)


class Replies:
    """Says it, as the options have it.

    :param monitor: returns who knows the state; there is one when the app is loaded.
    :ivar is_proxied: whether the PROXY protocol may come before the first request.
    :ivar refused: returns the WSGI app that refuses for a reason.
    """

    def __init__(self, options: GuardOptions, cfg: Any, monitor: Callable[[], Monitor]) -> None:
        self._checks = options.checks
        self._patience = options.patience
        self._monitor = monitor
        self._responses = Responses(**options.some("refusal", "retry_after", "expose_load"))
        self._plainly = Responses(retry_after=options.retry_after)
        self._failing = Streak()  # of a refusal app
        self._is_plain = options.refusal is None and not cfg.is_ssl and not options.disabled
        self.refused = self._responses.refused
        self.is_proxied = str(cfg.proxy_protocol).lower() not in ("off", "false")

    def refusing(self, listener: Any, gate: Gate) -> Any:
        """Return what accepts by a listener and refuses in an overload; not as an app would say."""
        if not self._is_plain:
            return listener

        def is_check(head: Head) -> bool:
            asked = self._checks.match_request(head.method, head.path, head.query, head.headers)
            return asked is not None

        return RefusingListener(listener, gate, is_check, refusal_bytes(self._plainly))

    def refusal(self, conn: Any, begins: bytes, reason: Reason) -> bytes:
        """Return what refuses a request.

        :param begins: the first of what has come of it.
        """
        try:
            response = self._refusal(conn, begins, self.refused(reason))
            self._failing.over()
            return response
        except Exception:
            message = "the refusal app failed; refusing with the plain answer instead"
            self._failing.failed(message, exc_info=True)
            return self._refusal(conn, begins, self._plainly.refused(reason))

    def _refusal(self, conn: Any, begins: bytes, refuse: WSGIApplication) -> bytes:
        if speaks_http2(conn, begins):
            status, headers, _ = whole_response(refuse, least_environ("GET"))
            return refusal(begins, int(status[:3]), headers)
        skip = proxied(begins) if self.is_proxied else 0
        method = "HEAD" if begins.startswith(b"HEAD ", skip or 0) else "GET"
        return response_bytes(refuse, method, HTTP_VERSION, True)

    def to_check(self, conn: Any, data: bytes, fresh: bool) -> bytes | None:
        """Return what answers a connection that asks for a check and nothing else.

        :param data: all that it has said.
        :param fresh: whether that is the first it says.
        """
        if speaks_http2(conn, data):
            asked = http2_target(data)
            if asked is None or not self._may_be(*asked):
                return None
            return http2_response(conn, data, self._answer)
        skip = proxied(data) if fresh and self.is_proxied else 0
        if skip is None or not self._may_ask(data[skip:]):
            return None
        environ = environ_of(conn, data)
        answer = None if environ is None else self._answer(environ)
        if environ is None or answer is None:
            return None
        return response_bytes(answer, environ["REQUEST_METHOD"], HTTP_VERSION, True)

    def _may_ask(self, data: bytes) -> bool:
        """Return whether this is worth a closer look, which costs twenty times as much."""
        parts = data[: data.find(b"\r\n")].split(b" ")
        return len(parts) == 3 and self._may_be(
            parts[0].decode("latin-1"), parts[1].decode("latin-1")
        )

    def _may_be(self, method: str, target: str) -> bool:
        if "://" in target:
            return True
        path = target.partition("?")[0]
        name = unquote_to_bytes(path.encode("latin-1", "replace")).decode("latin-1")
        return self._checks.match_request(method, name, "", ()) is not None

    def _answer(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        check = self._checks.match(environ)
        if check is None:
            return None
        policy = check.policy
        verdict = self._monitor().check(policy, self._patience) if policy else None
        return self._responses.for_check(check, verdict, environ.get("HTTP_ACCEPT"))
