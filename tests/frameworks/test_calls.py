"""requests, urllib3 and HTTPX against a real service on a socket, in a request of a guard."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
import time

import httpx
import pytest
import requests
import urllib3

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.deadlines import TooLate, within
from wsgi_busyguard.integrations.httpx import AsyncDeadlineTransport, DeadlineTransport
from wsgi_busyguard.integrations.requests import DeadlineAdapter
from wsgi_busyguard.integrations.urllib3 import DeadlineTimeout


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


def by_async_httpx(url, timeout=30.0, least=0.0):
    async def ask():
        transport = AsyncDeadlineTransport(least=least)
        async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
            return (await client.get(url)).text

    return asyncio.run(ask())


WAYS = {
    "requests": (by_requests, requests.Timeout),
    "urllib3": (by_urllib3, urllib3.exceptions.TimeoutError),
    "httpx": (by_httpx, httpx.TimeoutException),
    "httpx, async": (by_async_httpx, httpx.TimeoutException),
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
