"""HTTP/2's frames, as far as a refusal has to know them: bytes in, bytes out.

A refusal must cost little, for it comes by the thousand, and to a connection that has just begun.
So nothing that a client has compressed is read for it, and nothing is compressed in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What begins a connection of HTTP/2 (RFC 9113, section 3.4). No request of HTTP/1 begins so.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Types of frames, and flags of HEADERS (section 6).
HEADERS, RST_STREAM, SETTINGS, GOAWAY = 1, 3, 4, 7
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20

_FRAME_HEAD_BYTES = 9


class RequestFrame(NamedTuple):
    """A request, as far as it has come.

    :param stream: its number.
    :param fields: its head, compressed; ``None`` if that goes on in another frame.
    :param is_whole: whether nothing comes after its head.
    """

    stream: int
    fields: bytes | None
    is_whole: bool


def requests(data: bytes) -> list[RequestFrame]:
    """Return the requests that have begun in what a client says first; the last may be cut off."""
    begun: dict[int, RequestFrame] = {}
    for kind, flags, stream, payload in _frames(data[len(PREFACE) :]):
        # A client's are odd (section 5.1.1); a second one has trailers.
        if kind == HEADERS and stream % 2 and stream not in begun:
            fields = _fields(flags, payload) if flags & END_HEADERS else None
            begun[stream] = RequestFrame(stream, fields, bool(flags & END_STREAM))
    return list(begun.values())


def refusal(data: bytes, status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return what refuses all that a client has asked in what it says first, and ends.

    An answer has no body, for some methods allow none and none was looked at. What is not answered
    the last frame allows to be sent again, POST included (section 6.8).
    """
    refused = [request for request in requests(data) if request.fields is not None]
    fields = (
        b"\x08"
        + _text(str(status))
        + b"".join(  # the name of the static table's entry 8
            b"\0" + _text(name.lower()) + _text(value)
            for name, value in headers
            if name.lower() not in ("content-length", "connection")
        )
    )
    frames = [_frame(SETTINGS, 0, 0, b"")]
    for request in refused:
        frames.append(_frame(HEADERS, END_STREAM | END_HEADERS, request.stream, fields))
        if not request.is_whole:  # its body is not wanted (section 8.1)
            frames.append(_frame(RST_STREAM, 0, request.stream, bytes(4)))
    last = max([request.stream for request in refused], default=0)
    frames.append(_frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + bytes(4)))
    return b"".join(frames)


def _frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while len(data) - at >= _FRAME_HEAD_BYTES:
        size = int.from_bytes(data[at : at + 3], "big")
        stream = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFFFFFF
        begins, at = at + _FRAME_HEAD_BYTES, at + _FRAME_HEAD_BYTES + size
        if at > len(data):
            return
        yield data[begins - 6], data[begins - 5], stream, data[begins:at]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def _fields(flags: int, payload: bytes) -> bytes:
    padding = 0
    if flags & PADDED:
        padding, payload = payload[0] if payload else 0, payload[1:]
    if flags & PRIORITY:
        payload = payload[5:]
    return payload[: len(payload) - padding] if padding else payload


def _text(text: str) -> bytes:
    """Return a string as HPACK has it, without Huffman's code (RFC 7541, sections 5.1 and 5.2)."""
    octets = text.encode("latin-1")
    size, more = len(octets), []
    if size < 0x7F:
        return bytes([size]) + octets
    size -= 0x7F
    while size >= 0x80:
        more.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([0x7F, *more, size]) + octets
