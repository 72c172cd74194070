from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.h11_heads import agrees, ordinary_agrees

from wsgi_busyguard._support.request_head import ordinary_head, proxied, read_head, unfinished


def get(*headers, line="GET / HTTP/1.1", host="Host: a"):
    """Return the bytes of a head."""
    return "\r\n".join([line, *([host] if host else []), *headers, "", ""]).encode("latin-1")


# What is taken


def test_bare_httpchk_is_a_request():
    data = b"OPTIONS / HTTP/1.0\r\n\r\n"
    assert read_head(data) == ("OPTIONS", "/", "", {}, (1, 0), len(data))


def test_headers_have_their_cgi_names():
    head = read_head(get("Accept:  text/plain\t ", "Content-Length: 3", "content-TYPE: a/b"))
    assert head.headers == {
        "HTTP_HOST": "a",
        "HTTP_ACCEPT": "text/plain",
        "CONTENT_LENGTH": "3",
        "CONTENT_TYPE": "a/b",
    }


def test_the_head_ends_where_the_body_begins():
    data = get("Content-Length: 4")
    head = read_head(data + b"body and more\r\n\r\n")
    assert head.size == len(data)


def test_a_lone_lf_ends_a_line():
    head = read_head(b"GET /a HTTP/1.1\nHost: b\n\r\n")
    assert (head.path, head.headers, head.size) == ("/a", {"HTTP_HOST": "b"}, 26)


@pytest.mark.parametrize(
    ("method", "target", "path", "query"),
    [
        ("GET", "/", "/", ""),
        ("GET", "/readyz?ready=exact", "/readyz", "ready=exact"),
        ("GET", "/a?b?c=%20", "/a", "b?c=%20"),
        ("GET", "/?", "/", ""),
        ("GET", "/%72eadyz", "/readyz", ""),
        ("GET", "/%C3%A9%00%zz%4", "/\xc3\xa9\x00%zz%4", ""),
        ("GET", "/a+b", "/a+b", ""),
        ("GET", "//a//b/../c", "//a//b/../c", ""),
        ("OPTIONS", "*", "*", ""),
        ("GET", "http://host/readyz?a", "/readyz", "a"),
        ("GET", "HTTPS://host:443/readyz", "/readyz", ""),
        ("GET", "http://[::1]:80/", "/", ""),
        ("OPTIONS", "http://host", "/", ""),
        ("GET", "http://host?a=b", "/", "a=b"),
    ],
)
def test_the_target_is_a_path_and_a_query(method, target, path, query):
    head = read_head(get(line=f"{method} {target} HTTP/1.1"))
    assert (head.method, head.path, head.query) == (method, path, query)


def test_what_comes_twice_is_one_list():
    head = read_head(get("Accept: a/b", "Via: x", "accept: c/d"))
    assert head.headers["HTTP_ACCEPT"] == "a/b,c/d"


def test_a_name_with_an_underscore_cannot_pose_as_another():
    head = read_head(get("X_Forwarded_For: me", "Content_Length: 9", "Content-_Type: a", "_: b"))
    assert head.headers == {"HTTP_HOST": "a"}


def test_a_chunked_body_is_told():
    assert read_head(get("Transfer-Encoding: Chunked")).headers["HTTP_TRANSFER_ENCODING"]


# What is not


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_head_that_is_cut_off_is_not_complete_yet(cut):
    data = get("A: b")
    assert read_head(data[:-cut]) is None


def test_nothing_is_not_complete_yet():
    assert read_head(b"") is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\r\n\r\n", id="empty lines"),
        pytest.param(b"\r\nGET / HTTP/1.0\r\n\r\n", id="an empty line before"),
        pytest.param(b"\x16\x03\x01\x02\x00", id="TLS"),
        pytest.param(b" GET / HTTP/1.0\r\n\r\n", id="a space before"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", id="HTTP/9.9"),
        pytest.param(b"GET / http/1.1\r\nHost: a\r\n\r\n", id="http in lower case"),
        pytest.param(b"GET /\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET\r\n\r\n", id="one word"),
        pytest.param(b"GET  / HTTP/1.0\r\n\r\n", id="two spaces"),
        pytest.param(b"GET\t/ HTTP/1.0\r\n\r\n", id="a tab"),
        pytest.param(b"GET / HTTP/1.0 \r\n\r\n", id="a space behind"),
        pytest.param(b"GET / HTTP/1.0\r\r\n\r\n", id="two carriage returns"),
        pytest.param(b"GET /\xc3\xa9 HTTP/1.0\r\n\r\n", id="not ASCII"),
        pytest.param(b"G(T / HTTP/1.0\r\n\r\n", id="no method"),
        pytest.param(b"GET a HTTP/1.0\r\n\r\n", id="a path without a slash"),
        pytest.param(b"GET * HTTP/1.0\r\n\r\n", id="a star for GET"),
        pytest.param(b"CONNECT a:443 HTTP/1.0\r\n\r\n", id="CONNECT"),
        pytest.param(b"GET /a#b HTTP/1.0\r\n\r\n", id="a fragment"),
        pytest.param(b"GET http://[ HTTP/1.0\r\n\r\n", id="half a bracket"),
        pytest.param(b"GET http:///a HTTP/1.0\r\n\r\n", id="no host"),
        pytest.param(b"GET http://me@host/a HTTP/1.0\r\n\r\n", id="a user"),
        pytest.param(b"GET ftp://host/a HTTP/1.0\r\n\r\n", id="ftp"),
        pytest.param(get(*["A: b"] * 300), id="endless headers"),
        pytest.param(get("Host: b"), id="two Hosts"),
        pytest.param(get("A: b", " c"), id="folded"),
        pytest.param(get(" Host: b", host=None), id="folded at once"),
        pytest.param(get("A : b"), id="a space before the colon"),
        pytest.param(get(": b"), id="no name"),
        pytest.param(get("Ab"), id="no colon"),
        pytest.param(get("A: b\x00"), id="a NUL"),
        pytest.param(get("A: b\rc"), id="a lone carriage return"),
        pytest.param(get("A: \x1b[31m"), id="an escape"),
        pytest.param(get("Content-Length: 1", "Content-Length: 1"), id="two lengths"),
        pytest.param(get("Content-Length: 1, 1"), id="a list of lengths"),
        pytest.param(get("Content-Length: +1"), id="a signed length"),
        pytest.param(get("Content-Length: 1_0"), id="a length with an underscore"),
        pytest.param(get("Content-Length:"), id="an empty length"),
        pytest.param(get("Content-Length: \xb2"), id="a digit that is none"),
        pytest.param(get("Content-Length: " + "9" * 19), id="an endless length"),
        pytest.param(get("Content-Type: a", "Content-Type: b"), id="two types"),
        pytest.param(get("Transfer-Encoding: gzip, chunked"), id="gzip"),
        pytest.param(get("Transfer-Encoding: chunked", "Content-Length: 1"), id="both ends"),
        pytest.param(get("Transfer-Encoding: chunked", "Transfer-Encoding: x"), id="two codings"),
        pytest.param(
            get("Transfer-Encoding: chunked", line="GET / HTTP/1.0"), id="chunked in HTTP/1.0"
        ),
    ],
)
def test_whatever_leaves_a_doubt_is_no_request(data):
    with pytest.raises(ValueError, match="expected "):
        read_head(data)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/%72eadyz", "/readyz"),
        ("//readyz", "//readyz"),
        ("/%2Freadyz", "//readyz"),
        ("/%2572eadyz", "/%72eadyz"),
        ("http://host", "/"),
        ("HTTPS://[::1]:80/%72eadyz?a", "/readyz"),
        ("http://host//readyz", "//readyz"),
    ],
)
def test_a_path_is_decoded_once_and_its_slashes_stay(target, path):
    head = read_head(f"GET {target} HTTP/1.1\r\n\r\n".encode())
    assert head.path == path


def test_a_request_without_a_host_is_one():
    assert read_head(b"OPTIONS / HTTP/1.1\r\n\r\n").headers == {}


def test_many_headers_are_not_looked_at_one_by_one():
    """Each costs 1 us: of 8 kB that are nothing else, 4 ms, in the loop that answers checks."""
    data = get(*["A:"] * 100_000)
    began = time.process_time()
    with pytest.raises(ValueError, match="expected at most 256 headers, not 100001"):
        read_head(data)
    assert time.process_time() - began < 0.1  # 300 ms where each is looked at


# The same as h11


TOKENS = [
    *["GET", "OPTIONS", "PROXY", "/", "/a?b", "/%61", "*", "http://h/p"],
    *["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "Host", "Host: a", "Accept", "X_Y"],
    *["Content-Length", "Transfer-Encoding", "chunked", ":", ": ", " ", "  ", "\t", ",", "5", "0"],
    *["\r\n", "\n", "\r", "\r\n\r\n", "\n\n", "\r\n ", "#", "a", "-", "_"],
    *["\x00", "\x0b", "\x0c", "\x1c", "\x7f", "\x85", "\xa0", "\xff"],
]
soup = st.lists(st.sampled_from(TOKENS), max_size=30).map(
    lambda parts: "".join(parts).encode("latin-1")
)

names = st.sampled_from(
    ["host", "Via", "Accept", "X-y", "Content-Length", "content-length", "Transfer-Encoding", "X_Y"]
) | st.text("aZ-_!~ \x80", max_size=4)
values = st.sampled_from(["a", "5", "5", "05", "5, 5", "chunked", "Chunked", ""]) | st.text(
    st.characters(max_codepoint=255), max_size=6
)
ends = st.sampled_from(["\r\n"] * 12 + ["\n"] * 3 + ["\r\n "])


@st.composite
def nearly_heads(draw):
    method = draw(st.sampled_from(["GET", "OPTIONS", "HEAD", "POST", "G_T"] * 3 + [""]))
    targets = st.sampled_from(["/", "/a?b", "http://h", "/%41"] * 2 + ["*"])
    target = draw(targets | targets | targets | st.text(max_size=5))
    version = draw(st.sampled_from(["1.1"] * 4 + ["1.0", "1.0", "1.2", "0.9"]))
    text = f"{method} {target} HTTP/{version}" + draw(ends)
    if draw(st.sampled_from([True] * 5 + [False])):
        text += "Host: a" + draw(ends)
    for name, value in draw(st.lists(st.tuples(names, values), max_size=4)):
        text += name + draw(st.sampled_from([": ", ":", ":\t"] * 3 + [" :"])) + value + draw(ends)
    return (text + draw(ends)).encode("utf-8") + draw(st.binary(max_size=5))


@pytest.mark.slow
@given(st.binary(max_size=200) | soup | nearly_heads())
@example(get("Content-Length: 5"))
@example(get("X_Y: a", "x-y: b"))
def test_it_reads_what_h11_reads_in_the_same_way(data):
    agrees(data)


@given(nearly_heads() | nearly_heads().map(lambda data: data[: data.find(b"\r\n\r\n") + 4]))
@example(get("Host: a", "Host: b"))
@example(get("HOST: a", "X: b", "host: c"))
@example(get("Content-Type: a", "content-type: b"))
@example(get(*["a:"] * 257))
@example(get("Upgrade: h2c"))
@example(get("Expect: 100-continue"))
def test_an_ordinary_head_is_what_is_read_with_care(data):
    ordinary_agrees(data)


@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "HEAD /a-b/@:;?q=%2F&x HTTP/1.0"])
def test_what_browsers_and_balancers_send_is_ordinary(line):
    cookie = "Cookie: " + "a=\xe9; " * 500
    head = f"{line}\r\nHost: a:80\r\nAccept: */*\r\n{cookie}\r\nX-Forwarded-For: ::1\r\n\r\n"
    assert ordinary_head(head.encode("latin-1")) is not None


@pytest.mark.slow
@given(nearly_heads(), st.integers(0, 100))
def test_a_head_is_never_complete_before_its_end(data, cut):
    try:
        head = read_head(data)
    except ValueError:
        return
    if head is not None:
        assert read_head(data[: head.size]) == head
        assert read_head(data[: min(cut, head.size - 1)]) is None


# The PROXY protocol

V2 = b"\r\n\r\n\x00\r\nQUIT\n" + b"\x21\x11\x00\x0c" + b"\x7f\x00\x00\x01" * 2 + b"\x00\x50\x1f\x90"


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n",
        b"PROXY TCP6 ::1 2001:db8::1 65535 1\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        V2,
        V2[:12] + b"\x20\x00\x00\x00",
    ],
    ids=["v1", "v1, IPv6", "v1, unknown", "v1, unknown and more", "v2", "v2, local"],
)
def test_a_proxy_header_has_a_size_once_it_is_complete(header):
    assert proxied(header + b"GET / HTTP/1.0\r\n\r\n") == len(header)
    assert proxied(header) == len(header)
    for cut in range(len(header)):
        assert proxied(header[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST",
        b"PR0",
        b"\n",
        b"\r\n\r\nG",
        b"PROXY / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY TCP4 10.0.0.1\r\n",
        b"PROXY UNKNOWN " + b"a" * 107,
        b"PROXY UNKNOWN " + b"a" * 107 + b"\r\n",
        V2[:12] + b"\x31\x11\x00\x00",
    ],
)
def test_other_bytes_are_no_proxy_header(data):
    assert proxied(data) == 0


@given(st.binary(max_size=40) | soup | st.binary(max_size=20).map(lambda more: V2[:12] + more))
def test_no_bytes_make_it_raise(data):
    size = proxied(data)
    assert size is None or 0 <= size <= len(data)


# unfinished()


@pytest.mark.parametrize("empty", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_each_part_of_a_head_is_unfinished(empty):
    """One empty line may come before a request."""
    whole = empty + get("X-Some: thing")
    assert [unfinished(whole[:size]) for size in range(len(whole))] == [True] * len(whole)
    assert not unfinished(whole)
    assert not unfinished(whole + b"a body")
    assert not unfinished(empty + b"PRI * HTTP/2.0\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01",
        b"\x00",
        b" GET / HTTP/1.1",
        b"\nGET / HTTP/1.1",
        b"\r\n\x16",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"GET /\r\n",
        "\u00e9".encode(),
    ],
)
def test_what_can_be_no_request_is_told(data):
    with pytest.raises(ValueError, match=r"^expected the beginning of a request, not b'"):
        unfinished(data)


@given(st.binary(max_size=100))
def test_more_of_it_never_makes_a_part_of_what_is_whole(data):
    """Else who waits for the end would miss it."""
    try:
        if not unfinished(data):
            assert not unfinished(data + b"more")
    except ValueError:
        assert b"\r\n\r\n" not in data.removeprefix(b"\r\n")
