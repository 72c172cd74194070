"""A client of HTTP/2, in the clear or over TLS, that keeps all that it is told."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events

from support.client import PATIENCE


class Told(NamedTuple):
    """What a server said: the answers by stream, and the last stream of its GOAWAY, if any."""

    answers: dict
    last: int | None
    error: int | None


class Reply(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def text(self):
        return self.body.decode()


class Http2:
    """One connection. The first flight goes out with the first request, as from most clients."""

    def __init__(self, port, *, tls=False, timeout=PATIENCE):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        if tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(self.socket)
            assert self.socket.selected_alpn_protocol() == "h2"
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self._connection = h2.connection.H2Connection(config)
        self._connection.initiate_connection()
        self._scheme = "https" if tls else "http"

    def greet(self, after=0):
        """Send what begins a connection, and no request; so many bytes by themselves."""
        data = self._connection.data_to_send()
        self.socket.sendall(data[:after])
        self.socket.sendall(data[after:])

    def ask(self, method="GET", path="/", *, headers=(), body=None, ends=True):
        """Send a request; return its stream."""
        stream = self._connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", self._scheme)]
        head = [*pseudo, (":authority", "localhost"), *headers]
        self._connection.send_headers(stream, head, end_stream=ends and body is None)
        if body is not None:
            self._connection.send_data(stream, body, end_stream=ends)
        self.socket.sendall(self._connection.data_to_send())
        return stream

    def told(self, streams=None):
        """Read until so many streams have been answered, or the server closes."""
        heads, bodies, done, last, error = {}, {}, set(), None, None
        until = time.monotonic() + PATIENCE
        while streams is None or len(done) < streams:
            assert time.monotonic() < until
            data = self.socket.recv(65536)
            if not data:
                break
            for event in self._connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    heads[event.stream_id] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                elif isinstance(event, h2.events.StreamEnded):
                    done.add(event.stream_id)
                elif isinstance(event, h2.events.ConnectionTerminated):
                    last, error = event.last_stream_id, event.error_code
        answers = {
            stream: Reply(int(head[":status"]), head, bodies.get(stream, b""))
            for stream, head in heads.items()
        }
        return Told(answers, last, error)

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
