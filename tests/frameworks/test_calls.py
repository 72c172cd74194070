"""requests, urllib3 and HTTPX against a real service on a socket, in a request of a guard."""

from __future__ import annotations

import math
import pickle
import socket
import threading
import time

import httpcore
import httpx
import pytest
import requests
import urllib3
from httpcore._backends.sync import SyncStream

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.deadlines import TooLate, within
from wsgi_busyguard.integrations.httpcore import Left, _Stream
from wsgi_busyguard.integrations.httpx import DeadlineTransport
from wsgi_busyguard.integrations.requests import DeadlineAdapter
from wsgi_busyguard.integrations.urllib3 import DeadlineRetry, DeadlineTimeout


class Service:
    """Listens, and answers only when told to."""

    def __init__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self.answering = threading.Event()
        self.connections = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            if self.answering.is_set():
                self._answer(connection)

    def _answer(self, connection):
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsunny"
        )
        connection.close()

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        for connection in self.connections:
            connection.close()


class Trickling(Service):
    """Answers a byte at a time, far longer than any deadline of a test and without a long pause.

    :ivar first: what it says at once.
    :ivar whole: the rest of its answer.
    :ivar keeps: whether the connection is for more calls.
    :ivar begun: set when it has begun to answer.
    :ivar gone: set when a caller has gone.
    """

    def __init__(self):
        self.first, self.whole, self.keeps = b"", b"", False
        self.begun, self.gone = threading.Event(), threading.Event()
        super().__init__()
        self.answering.set()

    def _answer(self, connection):
        threading.Thread(target=self._trickle, args=[connection], daemon=True).start()

    def _trickle(self, connection):
        try:
            while connection.recv(65536):
                connection.sendall(self.first)
                self.begun.set()
                for byte in self.whole:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05)
                if not self.keeps:
                    break
        except OSError:
            self.gone.set()


@pytest.fixture
def trickling():
    service = Trickling()
    yield service
    service.close()


SOME = b"a" * 600  # 30 s
TRICKLES = {
    "head": (b"", b"HTTP/1.1 200 OK\r\nX-Long: " + SOME),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n", SOME),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 100),
    "until it closes": (b"HTTP/1.0 200 OK\r\n\r\n", SOME),
}


@pytest.fixture
def service():
    service = Service()
    yield service
    service.close()


def by_requests(url, timeout=None, at_most=30.0, least=0.0):
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter(at_most, least=least))
        return session.get(url, timeout=timeout).text


def by_urllib3(url, timeout=30.0, least=0.0, retries=False):
    limit = DeadlineTimeout(timeout, timeout, least=least)
    with urllib3.PoolManager(timeout=limit, retries=retries) as pool:
        return pool.request("GET", url).data.decode()


def by_httpx(url, timeout=30.0, least=0.0):
    with httpx.Client(transport=DeadlineTransport(least=least), timeout=timeout) as client:
        return client.get(url).text


WAYS = {
    "requests": (by_requests, requests.Timeout),
    "urllib3": (by_urllib3, urllib3.exceptions.TimeoutError),
    "httpx": (by_httpx, httpx.TimeoutException),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


@pytest.fixture
def in_request(environ):
    """Call in a request whose client waits for so long; return what came or was raised."""

    def in_request(left, call, *args, **more):
        got = []

        def app(environ, start_response):
            try:
                got.append(call(*args, **more))
            except Exception as error:
                got.append(error)
            return [b""]

        BusyGuard(app, slots=1, client_timeout=left)(environ(path="/page"), None)
        return got[0]

    return in_request


def test_an_answer_in_time_comes(service, way, in_request):
    ask, _ = way
    service.answering.set()
    assert in_request(20.0, ask, service.url) == "sunny"


def test_a_call_ends_when_the_client_gives_up(service, way, in_request):
    """And not after the 30 s that the call itself would bear."""
    ask, timeout = way
    began = time.monotonic()
    raised = in_request(0.3, ask, service.url)
    assert isinstance(raised, timeout)
    assert time.monotonic() - began < 15.0
    assert len(service.connections) <= 1


def test_a_call_that_would_outlive_its_client_is_never_started(service, way, in_request):
    ask, timeout = way
    raised = in_request(3.0, ask, service.url, least=10.0)
    assert isinstance(raised, timeout)
    assert isinstance(raised if ask is not by_urllib3 else raised.__cause__, TooLate)
    assert str(raised).startswith("not begun: ")
    assert service.connections == []


def test_a_shorter_timeout_of_its_own_stays(service, way, in_request):
    ask, timeout = way
    began = time.monotonic()
    assert isinstance(in_request(60.0, ask, service.url, timeout=0.2), timeout)
    assert time.monotonic() - began < 20.0


def test_without_a_request_the_calls_own_timeout_holds(service, way):
    ask, timeout = way
    with pytest.raises(timeout):
        ask(service.url, timeout=0.2)
    service.answering.set()
    assert ask(service.url) == "sunny"


def test_a_session_may_have_a_limit_for_calls_without_one(service, in_request):
    assert isinstance(in_request(60.0, by_requests, service.url, at_most=0.2), requests.Timeout)


def test_requests_takes_a_pair_of_timeouts(service, in_request):
    assert isinstance(
        in_request(60.0, by_requests, service.url, timeout=(5, 0.2)), requests.ReadTimeout
    )


@pytest.mark.parametrize(
    "timeout", [urllib3.Timeout(total=0.2), urllib3.Timeout(5, read=0.2), (None, 0.2)], ids=str
)
def test_and_whatever_else_it_takes_for_one(service, timeout):
    with pytest.raises(requests.ReadTimeout):
        by_requests(service.url, timeout=timeout)


@pytest.mark.parametrize("wrong", [(1, 2, 3), (1,), (1, "x"), "2"], ids=str)
def test_but_nothing_else(service, wrong):
    with pytest.raises(ValueError, match=r"^timeout must be|it must be an int, float or None"):
        by_requests(service.url, timeout=wrong)


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (TypeError, lambda: DeadlineAdapter("2"), "at_most must be a number of seconds, not '2'"),
        (ValueError, lambda: DeadlineAdapter(0), "at_most must be more than 0 seconds, not 0"),
        (ValueError, lambda: DeadlineAdapter(least=-1), "least must be at least 0 seconds"),
        (ValueError, lambda: DeadlineTimeout(math.nan), "connect must be more than 0 seconds"),
        (TypeError, lambda: DeadlineTimeout(least="x"), "least must be a number of seconds"),
        (TypeError, lambda: DeadlineTransport(least=None), "least must be a number of seconds"),
        (TypeError, lambda: DeadlineTransport(httpx.HTTPTransport), "must be one of HTTPX's, not"),
        (TypeError, lambda: DeadlineTransport(bulkhead="rates"), "bulkhead must be a Bulkhead"),
    ],
)
def test_what_no_call_could_bear_is_told_before_there_is_one(kind, wrong, words):
    with pytest.raises(kind, match=words):
        wrong()


def test_requests_without_any_limit_still_ends_with_the_client(service, in_request):
    raised = in_request(0.3, by_requests, service.url, at_most=None)
    assert isinstance(raised, requests.Timeout)


def test_retries_share_what_is_left(service, in_request):
    """Three tries of 30 s each would be 90 s."""
    began = time.monotonic()
    retries = urllib3.Retry(total=3, backoff_factor=0)
    raised = in_request(0.3, by_urllib3, service.url, retries=retries)
    assert isinstance(raised, urllib3.exceptions.MaxRetryError)
    assert time.monotonic() - began < 15.0


def test_a_session_can_be_pickled_as_before():
    adapter = pickle.loads(pickle.dumps(DeadlineAdapter(2.0, least=0.1)))
    assert (adapter.at_most, adapter.least) == (2.0, 0.1)


def test_work_without_a_request_can_be_limited(service, way):
    ask, timeout = way
    with within(0.2), pytest.raises(timeout):
        ask(service.url)


PARTS = [pytest.param(part, marks=pytest.mark.slow) for part in TRICKLES][2:]


@pytest.mark.parametrize("part", ["head", "body", *PARTS])
def test_an_answer_that_trickles_ends_when_the_client_gives_up(trickling, way, part, in_request):
    """A byte comes long before each wait ends, and so for 30 s."""
    ask, timeout = way
    trickling.first, trickling.whole = TRICKLES[part]
    left = 0.2
    while not trickling.begun.is_set():  # on a busy machine a call does not come so far at once
        began, left = time.monotonic(), 2 * left
        raised = in_request(left, ask, trickling.url)
    assert isinstance(raised, timeout)
    assert time.monotonic() - began < left + 4.0
    assert trickling.gone.wait(10)


def lines_by_requests(url):
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter())
        with session.get(url, stream=True) as answer:
            yield from answer.iter_content(1)


def lines_by_urllib3(url):
    with urllib3.PoolManager(timeout=DeadlineTimeout()) as pool:
        yield from pool.request("GET", url, preload_content=False).stream(1)


def lines_by_httpx(url):
    with (
        httpx.Client(transport=DeadlineTransport(), timeout=None) as client,
        client.stream("GET", url) as answer,
    ):
        yield from answer.iter_raw()


STREAMS = {
    "requests": (lines_by_requests, requests.Timeout),
    "urllib3": (lines_by_urllib3, urllib3.exceptions.TimeoutError),
    "httpx": (lines_by_httpx, httpx.TimeoutException),
}


@pytest.mark.parametrize("way", STREAMS.values(), ids=STREAMS)
def test_a_stream_ends_when_the_client_gives_up(trickling, way, environ):
    """Read in a body that is iterated after the call, as a view does that passes a file on."""
    stream, timeout = way
    trickling.first, trickling.whole = TRICKLES["body"]

    def app(environ, start_response):
        yield from stream(trickling.url)

    came, left = [], 0.4
    while not came:
        began, left = time.monotonic(), 2 * left
        body = BusyGuard(app, slots=1, client_timeout=left)(environ(path="/page"), None)
        with pytest.raises(timeout):
            came.extend(body)  # what came before it raises stays
        body.close()
    assert time.monotonic() - began < left + 4.0


def test_an_upload_in_blocks_ends_when_the_client_gives_up(trickling, in_request):
    """Each block goes at once, and there are 30 s of them."""
    trickling.keeps = True

    def blocks():
        for _ in range(600):
            time.sleep(0.05)
            yield b"a"

    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter())
        began = time.monotonic()
        raised = in_request(0.5, lambda: session.put(trickling.url, data=blocks()))
        assert isinstance(raised, (requests.ConnectionError, requests.Timeout))
        assert time.monotonic() - began < 5.0


def test_a_connection_kept_alive_sends_as_ever_after_a_call_with_a_deadline(trickling, in_request):
    trickling.keeps = True
    trickling.first = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter())
        in_request(2.0, session.get, trickling.url)
        time.sleep(2.0)
        assert session.get(trickling.url, timeout=30.0).status_code == 200
    assert len(trickling.connections) == 1


def test_a_body_cut_short_is_what_requests_calls_it_and_a_timeout(trickling, in_request):
    trickling.first, trickling.whole = TRICKLES["body"]
    raised = in_request(1.0, by_requests, trickling.url)
    assert isinstance(raised, requests.Timeout)
    assert isinstance(raised, requests.ConnectionError)


def test_redirects_share_what_is_left(trickling, in_request):
    """Each takes a fifth of a second, and there are 30 of them."""
    trickling.first = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 4\r\n\r\n"
    trickling.whole = b"more"
    began = time.monotonic()
    assert isinstance(in_request(0.5, by_requests, trickling.url), requests.Timeout)
    assert time.monotonic() - began < 4.0


ASK_AGAIN = (
    b"HTTP/1.1 503 Busy\r\nRetry-After: 20\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def test_no_retry_sleeps_longer_than_the_client_waits(trickling, in_request):
    trickling.first = ASK_AGAIN
    began = time.monotonic()
    raised = in_request(5.0, by_urllib3, trickling.url, retries=DeadlineRetry(3))
    assert isinstance(raised, urllib3.exceptions.TimeoutError)
    assert time.monotonic() - began < 5.0
    assert len(trickling.connections) == 1


def test_no_retry_of_requests_sleeps_longer_than_the_client_waits(trickling, in_request):
    trickling.first = ASK_AGAIN
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter(max_retries=DeadlineRetry(3)))
        raised = in_request(5.0, session.get, trickling.url)
    assert isinstance(raised, requests.Timeout)
    assert isinstance(raised, TooLate)
    assert len(trickling.connections) == 1


def test_no_retry_of_httpx_sleeps_longer_than_the_client_waits(in_request):
    transport = httpx.HTTPTransport(retries=5)
    with socket.socket() as deaf, httpx.Client(transport=DeadlineTransport(transport)) as client:
        deaf.bind(("127.0.0.1", 0))  # refuses, which is tried again after 0, 0.5, 1, 2 and 4 s
        began = time.monotonic()
        raised = in_request(0.3, client.get, f"http://127.0.0.1:{deaf.getsockname()[1]}/")
    assert isinstance(raised, httpx.ConnectTimeout)
    assert time.monotonic() - began < 5.0


GETS = {
    "requests": lambda session, pool, client: session.get,
    "urllib3": lambda session, pool, client: lambda url: pool.request("GET", url),
    "httpx": lambda session, pool, client: client.get,
}


@pytest.mark.slow
@pytest.mark.parametrize("get", GETS.values(), ids=GETS)
def test_a_connection_kept_alive_has_nothing_left_of_the_call_before(trickling, get, in_request):
    """Each call may have its seconds, though the second begins when those of the first are over."""
    trickling.first, trickling.whole = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", b"sunshine"
    trickling.keeps = True
    with (
        requests.Session() as session,
        urllib3.PoolManager(timeout=DeadlineTimeout()) as pool,
        httpx.Client(transport=DeadlineTransport(), timeout=None) as client,
    ):
        session.mount("http://", DeadlineAdapter())
        ask = get(session, pool, client)
        assert not isinstance(in_request(1.2, ask, trickling.url), Exception)
        time.sleep(1.0)
        assert not isinstance(in_request(20, ask, trickling.url), Exception)
        ask(trickling.url)  # in no request
    assert len(trickling.connections) == 1


ADDRESSES = [f"127.0.0.{number}" for number in range(1, 9)]


@pytest.fixture
def silent(monkeypatch):
    """Return the URL of a host with eight addresses, none of which answers."""
    servers = [socket.socket() for _ in ADDRESSES]
    port, fillers = 0, []
    for address, server in zip(ADDRESSES, servers, strict=True):
        server.bind((address, port))
        port = server.getsockname()[1]
        server.listen(0)
        for _ in range(5):  # until the kernel answers nobody else
            fillers.append(socket.socket())
            fillers[-1].settimeout(0.2)
            try:
                fillers[-1].connect((address, port))
            except TimeoutError:
                break
    look_up = socket.getaddrinfo

    def found(host, *arguments, **more):
        if host not in ("silent.example", b"silent.example"):
            return look_up(host, *arguments, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ADDRESSES]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield f"http://silent.example:{port}/"
    for each in servers + fillers:
        each.close()


def test_all_addresses_of_a_host_share_what_is_left(silent, way, in_request):
    """Each may take the whole timeout, as the libraries have it."""
    ask, timeout = way
    began = time.monotonic()
    assert isinstance(in_request(1.0, ask, silent), timeout)
    assert time.monotonic() - began < 5.0


def test_another_address_is_tried_if_the_first_refuses(service, monkeypatch, in_request):
    service.answering.set()
    port, look_up = int(service.url.rsplit(":")[-1].strip("/")), socket.getaddrinfo

    def found(host, *arguments, **more):
        if host not in ("two.example", b"two.example"):
            return look_up(host, *arguments, **more)
        both = ("127.0.0.2", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in both]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    for ask in (by_requests, by_urllib3, by_httpx):
        assert in_request(20.0, ask, f"http://two.example:{port}/") == "sunny"


def test_a_name_that_is_unknown_is_told_in_the_clients_own_words(monkeypatch, in_request):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    url = "http://nowhere.example/"
    assert isinstance(in_request(20.0, by_requests, url), requests.ConnectionError)
    assert isinstance(in_request(20.0, by_httpx, url), httpx.ConnectError)
    raised = in_request(20.0, by_urllib3, url)
    assert isinstance(raised, urllib3.exceptions.NameResolutionError)


def test_what_is_sent_to_a_slow_reader_ends_when_the_client_gives_up():
    """It takes some bytes each time before the timeout, and would do so for 15 s."""
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    over = threading.Event()

    def read():
        while not over.wait(0.3) and other.recv(1024):
            pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    timeout = Left(1.0)
    timeout.deadline = time.monotonic() + 1.0
    began = time.monotonic()
    with pytest.raises(httpcore.WriteTimeout):
        _Stream(SyncStream(one)).write(b"a" * 65536, timeout)
    assert time.monotonic() - began < 6.0
    over.set()
    one.close()
    thread.join(10)
    other.close()
