"""A small HTTP/2 client: over TLS, or without it to a server that takes that for chosen."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events

from support.client import PATIENCE, Answer

NOBODY = (0, {}, b"", 0.0, "2")


class Told(NamedTuple):
    """What a server said: the answers by stream, and the last stream of its GOAWAY, if any."""

    answers: dict
    last: int | None
    error: int | None


class Streams:
    """One connection, and the requests on it.

    :param greets: whether to say hello at once; else that goes out with the first request.
    :ivar last: the number of the last stream that the server has taken, once it has said goodbye.
    :ivar error: the code with which it did.
    """

    def __init__(self, port, *, tls=False, greets=True):
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(plain, server_hostname="localhost")
            assert self.socket.selected_alpn_protocol() == "h2"
        else:
            self.socket = plain
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self.http = h2.connection.H2Connection(config)
        self.http.initiate_connection()
        self.last = self.error = None
        self.closed = False
        self._scheme = "https" if tls else "http"
        self._heads, self._bodies, self._over = {}, {}, {}
        if greets:
            self.flush()

    def greet(self, after=0):
        """Send what begins a connection, and no request; so many bytes by themselves."""
        data = self.http.data_to_send()
        self.socket.sendall(data[:after])
        self.socket.sendall(data[after:])

    def flush(self):
        self.socket.sendall(self.http.data_to_send())

    def ask(self, method="GET", path="/", body=b"", *, ends=True, headers=(), flush=True):
        """Begin a request and return its stream."""
        stream = self.http.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", self._scheme)]
        fields += [(":authority", "localhost"), *dict(headers).items()]
        self.http.send_headers(stream, fields, end_stream=ends and not body)
        self._bodies[stream] = b""
        if body:
            self._send(stream, body, ends)
        if flush:
            self.flush()
        return stream

    def take_back(self, stream):
        """Cancel a request."""
        self.http.reset_stream(stream, 8)
        self.flush()

    def answer(self, stream, within=PATIENCE):
        """Wait for the answer; its status is 0 if the server resets the stream, or closes."""
        began = time.monotonic()
        while stream not in self._over and not self.closed:
            self.hear(began + within - time.monotonic())
        if not self._over.get(stream):
            return Answer(*NOBODY)
        head = self._heads[stream]
        took = time.monotonic() - began
        return Answer(int(head[":status"]), head, self._bodies[stream], took, "2")

    def received(self, streams=None, within=PATIENCE):
        """Wait until so many are answered, or the server closes; return all that it has said."""
        until = time.monotonic() + within
        while not self.closed and (streams is None or sum(self._over.values()) < streams):
            self.hear(until - time.monotonic())
        answers = {
            stream: Answer(int(head[":status"]), head, self._bodies[stream], 0.0, "2")
            for stream, head in self._heads.items()
        }
        return Told(answers, self.last, self.error)

    def bye(self, within=PATIENCE):
        """Wait until the server closes; return the last stream that it says it has taken."""
        until = time.monotonic() + within
        while not self.closed:
            self.hear(until - time.monotonic())
        return self.last

    def hear(self, within, most=65536):
        """Wait for some bytes, and take them in."""
        self.socket.settimeout(max(0.001, within))
        try:
            data = self.socket.recv(most)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.http.receive_data(data):
            self._take(event)
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # the server has closed
            self.flush()

    def _send(self, stream, body, ends):
        while body:
            self.flush()
            room = self.http.local_flow_control_window(stream)
            piece, body = body[: min(room, 16384)], body[min(room, 16384) :]
            if piece:
                self.http.send_data(stream, piece, end_stream=ends and not body)
            else:
                self.hear(PATIENCE)

    def _take(self, event):
        if isinstance(event, h2.events.ResponseReceived):
            self._heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self._bodies[event.stream_id] += event.data
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self._over[event.stream_id] = True
        elif isinstance(event, h2.events.StreamReset):
            self._over[event.stream_id] = False
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.last, self.error = event.last_stream_id, event.error_code

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ask(port, method="GET", path="/", body=b"", *, tls=False, headers=()):
    """Ask on a new connection and return the answer."""
    with Streams(port, tls=tls) as line:
        return line.answer(line.ask(method, path, body, headers=headers))
