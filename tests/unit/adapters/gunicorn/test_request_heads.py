"""What a guarded gunicorn answers without a thread is what gunicorn itself would read."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import pytest
from gunicorn.http import message
from hypothesis import example, given
from hypothesis import strategies as st
from support.gunicorn_heads import CONFIGS, PROXY, agrees, answer, config, connection, replies

from wsgi_busyguard.adapters.gunicorn.request_heads import environ_of, import_parsers


def head(line="OPTIONS / HTTP/1.0", *headers, end="\r\n"):
    return end.join([line, *headers, "", ""]).encode("latin-1")


ANSWERED = {
    "HAProxy's": head(),
    "the kubelet's": head("GET /readyz HTTP/1.1", "Host: h", "User-Agent: kube-probe/1.30"),
    "without Host": head("GET /readyz HTTP/1.1"),
    "the server as such": head("OPTIONS * HTTP/1.1", "Host: h"),
    "absolute": head("GET http://h/readyz HTTP/1.1", "Host: h"),
    "percent-encoded": head("GET /%72eadyz HTTP/1.1", "Host: h"),
    "with a query": head("GET /readyz?ready=exact HTTP/1.1", "Host: h"),
}


@pytest.mark.parametrize("data", ANSWERED.values(), ids=ANSWERED)
def test_checks_are_answered(data):
    assert agrees(CONFIGS[0], data)


@pytest.mark.parametrize("name", ["SCRIPT_NAME"])
def test_a_check_is_matched_behind_the_script_name(monkeypatch, name):
    monkeypatch.setenv(name, "/shop")
    cfg = config()
    assert answer(cfg, head("GET /readyz HTTP/1.1", "Host: h")) is None
    assert answer(cfg, head("OPTIONS /shop/ HTTP/1.1", "Host: h")) is None


REFUSED = {
    "a lone LF": head(end="\n"),
    "a lone LF in the head": b"OPTIONS / HTTP/1.0\r\nHost: h\nAccept: */*\r\n\r\n",
    "too many fields": head("OPTIONS / HTTP/1.1", *["A: b"] * 101),
    "contradicting schemes": head(
        "OPTIONS / HTTP/1.1", "Host: h", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"
    ),
    "small letters": head("options / HTTP/1.1", "Host: h"),
    "a script name that does not fit": head("GET /readyz HTTP/1.1", "SCRIPT_NAME: /elsewhere"),
    "two hosts": head("GET /readyz HTTP/1.1", "Host: a", "Host: b"),
    "another version": head("GET /readyz HTTP/2.0", "Host: h"),
    "a folded header": head("GET /readyz HTTP/1.1", "Host: h", "A: b", " c"),
    "a name with a space": head("GET /readyz HTTP/1.1", "Host: h", "A : b"),
    "an expectation": head("GET /readyz HTTP/1.1", "Host: h", "Expect: the-best"),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_gunicorn_would_refuse_is_left_to_it(data):
    assert answer(CONFIGS[0], data) is None


LEFT = {
    "is not whole": head()[:-1],
    "has a body": head("GET /readyz HTTP/1.1", "Content-Length: 2") + b"ab",
    "is chunked": head("GET /readyz HTTP/1.1", "Transfer-Encoding: chunked"),
    "is followed": head() + head(),
    "wants to be told to go on": head("GET /readyz HTTP/1.1", "Expect: 100-continue"),
    "is a preflight": head("OPTIONS / HTTP/1.1", "Host: h", "Origin: o"),
    "is no check": head("GET / HTTP/1.1", "Host: h"),
}


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT)
def test_what_is_not_just_a_check_is_left_to_gunicorn(data):
    assert answer(CONFIGS[0], data) is None


def test_the_proxy_protocol_is_gunicorns():
    allowed, forbidden = config(proxy_protocol=True), CONFIGS[-1]
    assert agrees(allowed, PROXY + head())
    assert answer(forbidden, PROXY + head()) is None
    assert answer(config(), PROXY + head()) is None
    # What a balancer says of itself. gunicorn takes it for a mistake, and so it does a request's.
    itself = b"PROXY UNKNOWN\r\n"
    assert answer(allowed, itself + head()) is not None
    assert answer(forbidden, itself + head()) is None
    assert answer(config(), itself + head()) is None
    assert answer(allowed, itself + itself + head()) is None
    assert answer(allowed, PROXY.replace(b"192.0.2.1", b"192.0.2.999") + head()) is None


def test_the_proxy_protocol_only_begins_a_connection():
    cfg = config(proxy_protocol=True)
    conn = connection(cfg)
    conn.parser = SimpleNamespace(req_count=1)
    assert replies(cfg).to_check(conn, PROXY + head(), False) is None
    assert replies(cfg).to_check(conn, head(), False) is not None


def test_another_protocol_is_not_http():
    cfg = config(protocol="uwsgi")
    if getattr(cfg, "protocol", "http") == "uwsgi":
        assert answer(cfg, head()) is None


OFTEN = st.sampled_from
LINES = st.tuples(
    OFTEN(["OPTIONS", "GET", "HEAD", "OPTIONS", "options", "Get", "GE", "G#T", "", "POST"]),
    OFTEN([" ", " ", " ", "  ", "\t"]),
    OFTEN(["/", "*", "/readyz", "/healthz", "/livez", "//readyz", "/%72eadyz", "/readyz?", "/x"])
    | OFTEN(["/readyz#f", "http://h/readyz", "HTTP://h", "://readyz", "/readyz\xe9", "/%zz"]),
    OFTEN([" ", " ", " ", "  "]),
    OFTEN(["HTTP/1.0", "HTTP/1.1", "HTTP/1.1", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1"]),
).map("".join)
NAMES = OFTEN(["Host", "Accept", "X-Forwarded-Proto", "X-Forwarded-Ssl", "X-Forwarded-Protocol"])
NAMES |= OFTEN(["Connection", "SCRIPT_NAME", "Script-Name", "X_Forwarded_For", "Expect", "Upgrade"])
NAMES |= OFTEN(["Content-Length", "Content-Type", "Transfer-Encoding", "Path-Info", "A"])
NAMES |= OFTEN(["A ", " A", "", "A\x00", "\xc4"])
VALUES = OFTEN(
    ["h", "https", "http", "on", "off", "ssl", "/", "/readyz", "0", "5", "chunked", "*/*"]
)
VALUES |= OFTEN(["100-continue", "close", "", " ", "a\x01", "\xe9", "\x0b", "a" * 40, "a\r", "h2c"])
FIELDS = st.lists(st.tuples(NAMES, OFTEN([": ", ":", " : "]), VALUES).map("".join), max_size=5)
MANY = st.integers(0, 120).map(lambda count: ["A: b"] * count)
ENDS = OFTEN(["\r\n"] * 8 + ["\n", "\r", "\r\r\n", "\n\r"])


@st.composite
def heads(draw):
    lines = [draw(LINES), *draw(FIELDS), *draw(OFTEN([[]]) | MANY), ""]
    text = "".join(line + draw(ENDS) for line in lines)
    before = draw(OFTEN([b"", b"", b"", b"\r\n", b"\n", PROXY, PROXY[:-2]]))
    after = draw(OFTEN([b"", b"", b"", b"\r\n", b"a", b"GET / HTTP/1.1\r\n\r\n"]))
    return before + text.encode("latin-1") + after


@pytest.mark.slow
@given(OFTEN(CONFIGS), heads() | st.binary(max_size=100))
@example(CONFIGS[3], head("options / HTTP/1.1", "Host: h"))
@example(CONFIGS[4], head("OPTIONS / HTTP/1.1", "X_Forwarded_For: a"))
@example(CONFIGS[0], b"\r\n" + head())
def test_whatever_is_answered_gunicorn_reads_as_the_same_check(cfg, data):
    agrees(cfg, data)


@given(st.integers(0, len(head()) - 1), st.binary(min_size=1, max_size=3))
def test_so_it_is_where_a_check_is_damaged(at, noise):
    data = head()
    agrees(CONFIGS[0], data[:at] + noise + data[at + 1 :])


def test_no_module_is_looked_for_at_a_workers_first_request(monkeypatch):
    """For which no descriptor may be left: then each request was closed without an answer."""

    def none_left(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(message, "_fast_parser_available", None, raising=False)
    import_parsers(CONFIGS[0])
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=none_left)])
    assert environ_of(connection(CONFIGS[0]), head()) is not None
