"""The head of an HTTP/1 request, for those who must not block and must not be fooled.

Bytes in, values out. Whatever could be read in two ways is no request here: a proxy in front, or
the server behind, might read it in the other.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# RFC 9112, sections 3 and 3.2: the request line and its target.
_REQUEST_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+) ([!-~]+) HTTP/1\.([01])")
_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")  # a method's, too
_ORIGIN = re.compile(
    rb"(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?(?=[/?]|\Z)"
)

# Control characters, of which a value may hold the tab alone (RFC 9110, section 5.5).
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# A GET or HEAD as most are, and nothing behind it: nothing to decode in its path, no line that goes
# on in the next, no header that two could read in two ways.
_ORDINARY = re.compile(
    rb"(GET|HEAD) (/[!\"$&->@-~]*)(?:\?([!\"$-~]*))? HTTP/1\.([01])\r\n"
    rb"(?:[-!#$%&'*+.^`|~0-9a-zA-Z]+:[\t -~\x80-\xff]*\r\n){0,256}\r\n"
)
_DECISIVE = re.compile(
    rb"\n(?:content-length|transfer-encoding|expect|upgrade):|\n(host|content-type):.*\n\1:",
    re.IGNORECASE | re.DOTALL,
)

# 18 digits are far beyond any body, and still a 64-bit number.
_LENGTH = re.compile(r"[0-9]{1,18}")

# A lone LF ends a line too (RFC 9112, section 2.2).
_EMPTY_LINE = re.compile(rb"\n\r?\n")

# Servers take 100 (gunicorn) to 500 (Twisted). Each costs 1 us, which a peer should not choose.
MOST_HEADERS = 256

_PLAIN_NAME = re.compile(r"[A-Za-z0-9-]+")

# Of these a request has one or none: which of two counts is where parsers differ.
_SINGLE = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING"})

_RENAMED = {
    "HTTP_CONTENT_LENGTH": "CONTENT_LENGTH",
    "HTTP_CONTENT_TYPE": "CONTENT_TYPE",
}

# The PROXY protocol, sections 2.1 and 2.2: a line of at most 107 bytes, or a signature, 4 bytes
# that say what comes and how long it is, and that.
_PROXY_1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|TCP[46](?: [0-9A-Fa-f:.]+){2}(?: [0-9]+){2})\r\n"
)
_PROXY_1_MOST = 107
_PROXY_2 = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY_2_FIXED = 16


class Head(NamedTuple):
    """The head of a request.

    :param method: as it was sent.
    :param path: as WSGI wants it, percent-decoded and latin-1; ``*`` for ``OPTIONS *``.
    :param query: what follows the first ``?``, as it was sent.
    :param headers: by their CGI names (``HTTP_ACCEPT``, ``CONTENT_LENGTH``). Those with an
        underscore in their name are left out, for they could pose as others.
    :param version: of HTTP, ``(1, 0)`` or ``(1, 1)``.
    :param size: the bytes of the head, with its empty line.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    version: tuple[int, int]
    size: int


def read_head(data: bytes) -> Head | None:
    """Return the head that ``data`` begins with, ``None`` if it is not complete yet.

    The caller limits how much it may be.

    :raises ValueError: if this is no HTTP/1 request, or one that may be read in two ways.
    """
    if data[:1] < b"!":  # neither a method nor a proxy begins so, but TLS does, for one
        if data:
            raise ValueError(f"expected a request line, not {bytes(data[:20])!r}")
        return None
    end = _EMPTY_LINE.search(data)
    if end is None:
        return None
    size = end.end()
    lines = [line[:-1] if line.endswith(b"\r") else line for line in data[:size].split(b"\n")]
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise ValueError(f"expected a request line of HTTP/1.0 or 1.1, not {_shown(lines[0])}")
    method, target, minor = line.groups()
    path, query = split_target(method, target)
    version = (1, int(minor))
    headers = _headers(lines[1:-2])
    _agreeing(headers, version)
    return Head(method.decode(), path, query, headers, version, size)


def ordinary_head(data: bytes) -> Head | None:
    """Return the head that is all of ``data``, without its headers, if it is written as most are.

    ``None`` of any other, which :func:`read_head` may read; it takes five times as long. Never of
    a request with a body, or one that asks for another protocol.
    """
    line = _ORDINARY.fullmatch(data)
    if line is None or _DECISIVE.search(data) is not None:
        return None
    method, path, query, minor = line.groups()
    return Head(
        method.decode(), path.decode(), (query or b"").decode(), {}, (1, int(minor)), len(data)
    )


def unfinished(data: bytes) -> bool:
    """Return whether ``data`` is a part of a head, so that whoever reads on has to wait.

    Judged as by a server that has every line end in CRLF: for one that waits for CRLF a head that
    ends in a lone LF does not end.

    :raises ValueError: if no request begins so, whatever may follow: TLS, for one.
    """
    data = data.removeprefix(b"\r\n")  # one empty line may come first (RFC 9112, section 2.2)
    if b"\r\n\r\n" in data:
        return False
    if data in (b"", b"\r"):
        return True
    line, crlf, _ = data.partition(b"\r\n")
    is_line = line.count(b" ") >= 2 or not crlf
    if _NAME.match(data) is None or not is_line or data.count(b"\n") != data.count(b"\r\n"):
        raise ValueError(f"expected the beginning of a request, not {_shown(data)}")
    return True


def proxied(data: bytes) -> int | None:
    """Return how many bytes of PROXY protocol, version 1 or 2, ``data`` begins with.

    0 if none, ``None`` if it is not complete yet.
    """
    if data.startswith(_PROXY_2):
        if len(data) < _PROXY_2_FIXED:
            return None
        if data[12] >> 4 != 2:
            return 0
        size = _PROXY_2_FIXED + int.from_bytes(data[14:16], "big")
        return size if len(data) >= size else None
    if _PROXY_2.startswith(data) or b"PROXY ".startswith(data):
        return None
    if not data.startswith(b"PROXY "):
        return 0
    first = data[:_PROXY_1_MOST]
    line = _PROXY_1.match(first)
    if line is not None:
        return line.end()
    return None if b"\n" not in first and len(first) < _PROXY_1_MOST else 0


def split_target(method: bytes, target: bytes) -> tuple[str, str]:
    """Return the path and the query of a request's target (RFC 9112, section 3.2).

    The path is percent-decoded, and its slashes stay as they are. The host of an absolute target
    counts for nothing: whoever reaches this server means it.

    :raises ValueError: if it is neither a path nor absolute.
    """
    if not target.startswith(b"/"):  # which nearly all do
        if target == b"*" and method == b"OPTIONS":
            return "*", ""
        origin = _ORIGIN.match(target)
        if origin is None:
            raise ValueError(f"expected a path or an http:// address, not {_shown(target)}")
        rest = target[origin.end() :]
        target = rest if rest.startswith(b"/") else b"/" + rest
    if b"#" in target:
        raise ValueError(f"expected a target without a fragment, not {_shown(target)}")
    path, _, query = target.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query.decode("latin-1")


def _headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MOST_HEADERS:
        raise ValueError(f"expected at most {MOST_HEADERS} headers, not {len(lines)}")
    headers: dict[str, str] = {}
    for line in lines:
        raw, colon, value = line.partition(b":")
        # A line that begins with a space goes on where the last one ended, or it poses as one
        # that does: its name has the space in it, so it is turned away like any other.
        if not colon or _NAME.fullmatch(raw) is None or _CONTROL.search(value) is not None:
            raise ValueError(f"expected a header, not {_shown(line)}")
        if b"_" in raw:
            continue
        name = "HTTP_" + raw.decode().upper().replace("-", "_")
        name = _RENAMED.get(name, name)
        text = value.strip(b" \t").decode("latin-1")
        if name in headers:
            if name in _SINGLE:
                raise ValueError(f"expected one {raw.decode()}, not two")
            text = f"{headers[name]},{text}"
        headers[name] = text
    return headers


def _agreeing(headers: dict[str, str], version: tuple[int, int]) -> None:
    """Raise if these headers leave doubt about where the request ends.

    One without a Host does not: HAProxy's checks of HTTP/1.1 have none unless they are told to.
    """
    length = headers.get("CONTENT_LENGTH")
    if length is not None and _LENGTH.fullmatch(length) is None:
        raise ValueError(f"expected a Content-Length of digits, not {length[:20]!r}")
    coding = headers.get("HTTP_TRANSFER_ENCODING")
    if coding is None:
        return
    if coding.lower() != "chunked":
        raise ValueError(f"expected chunked for Transfer-Encoding, not {coding[:20]!r}")
    if length is not None or version == (1, 0):
        raise ValueError("expected Transfer-Encoding in HTTP/1.1 only, without Content-Length")


def _shown(line: bytes) -> str:
    return repr(bytes(line[:60]))


def header_key(name: str) -> str:
    """Return where an environ has the header ``name``."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ValueError(
            "client_timeout_header must be the name of a header, such as X-Client-Timeout-Ms,"
            f" not {name!r}"
        )
    return "HTTP_" + name.upper().replace("-", "_")
