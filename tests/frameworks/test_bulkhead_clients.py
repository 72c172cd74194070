"""Bulkheads in requests, HTTPX and urllib3, and each way in which an outside service can fail."""

from __future__ import annotations

import contextlib
import gc
import http.client
import socket
import threading

import httpx
import pytest
import requests
import urllib3

from wsgi_busyguard.bulkhead import Bulkhead, BulkheadFull
from wsgi_busyguard.deadlines import NotMade
from wsgi_busyguard.integrations import bulkheads as hosts
from wsgi_busyguard.integrations.httpx import DeadlineTransport
from wsgi_busyguard.integrations.requests import DeadlineAdapter
from wsgi_busyguard.integrations.urllib3 import DeadlineTimeout

BODY = b"sunny, 21 degrees"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class Way:
    """A service that fails in one way, on connections as they come."""

    def __init__(self, answer):
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._meet, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _meet(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            self._answer(connection, self.ended)

    def close(self):
        self.ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(10)


def well(connection, ended):
    connection.sendall(HEAD + BODY)
    while not ended.is_set() and connection.recv(65536):  # kept alive
        connection.sendall(HEAD + BODY)


def silent(connection, ended):
    ended.wait(60)


def slow(connection, ended):
    for byte in HEAD + BODY:
        connection.sendall(bytes([byte]))
        if ended.wait(0.5):
            return


def closing(connection, ended):
    connection.sendall(HEAD + BODY[:5])


def garbage(connection, ended):
    connection.sendall(b"\x00\x8e\xffnothing of this is HTTP\r\n" * 3)


def stalling(connection, ended):
    connection.sendall(HEAD + BODY[:5])
    ended.wait(0.3)
    connection.sendall(BODY[5:])


@pytest.fixture
def serving():
    with contextlib.ExitStack() as stack:

        def serve(answer):
            way = Way(answer)
            stack.callback(way.close)
            return way

        yield serve


def session(**options):
    made = requests.Session()
    made.mount("http://", DeadlineAdapter(**options))
    return made


def test_a_place_is_held_until_the_body_is_read(serving):
    one, site = Bulkhead("rates", at_most=1), serving(well)
    with session(bulkhead=one) as client:
        assert client.get(site.url).content == BODY
        assert one.figures()["inside"] == 0
        answer = client.get(site.url, stream=True)
        with pytest.raises(requests.ConnectionError, match="rates: 1 of 1 in calls") as full:
            client.get(site.url)
        assert isinstance(full.value, NotMade)
        assert answer.content == BODY
        assert client.get(site.url).content == BODY  # by the same connection
    assert one.figures()["inside"] == 0


@pytest.mark.parametrize("end", [lambda answer: answer.close(), lambda answer: None])
def test_a_body_that_is_closed_or_dropped_gives_its_place_back(serving, end):
    one, site = Bulkhead("rates", at_most=1), serving(well)
    with session(bulkhead=one) as client:
        answer = client.get(site.url, stream=True)
        end(answer)
        del answer
        gc.collect()
        assert one.figures()["inside"] == 0


def test_httpx_holds_one_until_the_body_is_closed(serving):
    one, site = Bulkhead("rates", at_most=1), serving(well)
    with httpx.Client(transport=DeadlineTransport(bulkhead=one)) as client:
        assert client.get(site.url).content == BODY
        with client.stream("GET", site.url):
            assert one.figures()["inside"] == 1
            with pytest.raises(httpx.ConnectError) as full:
                client.get(site.url)
            assert isinstance(full.value, BulkheadFull)
        assert client.get(site.url).content == BODY
    assert one.figures()["inside"] == 0


def test_urllib3_holds_one_until_the_body_is_read(serving):
    one, site = Bulkhead("rates", at_most=1), serving(well)
    with urllib3.PoolManager(timeout=DeadlineTimeout(2, 2, bulkhead=one), retries=False) as pool:
        assert pool.request("GET", site.url).data == BODY
        assert one.figures()["inside"] == 0
        answer = pool.request("GET", site.url, preload_content=False)
        with pytest.raises(BulkheadFull):
            pool.request("GET", site.url)
        assert answer.read() == BODY
        answer.release_conn()
        answer = pool.request("GET", site.url, preload_content=False)
        answer.close()
        assert pool.request("GET", site.url).data == BODY
    assert one.figures()["inside"] == 0
    assert one.figures()["made"] == 4


def test_an_attempt_of_urllib3s_that_is_cut_gives_its_place_back_and_counts_as_slow(serving):
    one, site = Bulkhead("rates", at_most=1), serving(silent)
    limit = DeadlineTimeout(0.2, 0.2, bulkhead=one)
    with urllib3.PoolManager(timeout=limit, retries=False) as pool:
        for _ in range(2):
            with pytest.raises(urllib3.exceptions.ReadTimeoutError):
                pool.request("GET", site.url)
            gc.collect()
    assert (one.figures()["inside"], one.figures()["slow"]) == (0, 2)


def test_each_host_has_one_and_of_many_the_rest_share_one(monkeypatch):
    monkeypatch.setattr(hosts, "_hosts", {})
    ones = [hosts.chosen(True, f"host{n}.example") for n in range(40)]
    assert [one.name for one in ones[:2]] == ["host0.example", "host1.example"]
    assert {one.name for one in ones[32:]} == {"other hosts"}
    assert hosts.chosen(True, "host0.example") is ones[0]
    assert len({id(one) for one in ones}) == 33
    assert hosts.chosen(None, "host") is hosts.chosen(False, "host") is None


def test_the_host_of_a_call_is_the_bulkheads_name(serving, monkeypatch):
    monkeypatch.setattr(hosts, "_hosts", {})
    site = serving(well)
    with session(bulkhead=True) as client:
        client.get(site.url)
    assert list(hosts._hosts) == ["127.0.0.1"]


CLIENTS = [DeadlineAdapter, DeadlineTransport, DeadlineTimeout]


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_no_bulkhead_is_told(client):
    with pytest.raises(TypeError, match="bulkhead must be a Bulkhead, or True for one per host"):
        client(bulkhead="rates")


# The ways in which a service can fail: whatever it does, the place comes back, and only what holds
# a thread for long counts as slow.

WAYS = {"silent": silent, "slow": slow, "closing": closing, "garbage": garbage}


@pytest.mark.parametrize(("way", "is_slow"), [("silent", 1), ("slow", 1)])
def test_a_call_that_hangs_is_cut_and_counts_as_slow(serving, way, is_slow):
    one, site = Bulkhead("rates", at_most=1), serving(WAYS[way])
    with session(at_most=0.2, bulkhead=one) as client, pytest.raises(requests.RequestException):
        client.get(site.url)
    figures = one.figures()
    assert (figures["inside"], figures["made"], figures["slow"]) == (0, 1, is_slow)


@pytest.mark.parametrize("way", ["closing", "garbage"])
def test_an_answer_that_breaks_off_at_once_is_no_slow_one(serving, way):
    one, site = Bulkhead("rates", at_most=1), serving(WAYS[way])
    with session(at_most=30.0, bulkhead=one) as client:
        for _ in range(4):
            with pytest.raises((requests.RequestException, http.client.HTTPException)):
                client.get(site.url)
    figures = one.figures()
    assert (figures["inside"], figures["slow"], figures["shut_for"]) == (0, 0, None)


def test_a_service_that_refuses_shuts_nothing(serving):
    one, site = Bulkhead("rates", at_most=1), serving(well)
    site.close()
    with session(at_most=30.0, bulkhead=one) as client:
        for _ in range(4):
            with pytest.raises(requests.ConnectionError):
                client.get(site.url)
    assert (one.figures()["slow"], one.figures()["shut_for"]) == (0, None)


def test_an_answer_that_stalls_for_a_moment_comes(serving):
    one, site = Bulkhead("rates", at_most=1), serving(stalling)
    with session(at_most=30.0, bulkhead=one) as client:
        assert client.get(site.url).content == BODY
    assert (one.figures()["inside"], one.figures()["slow"]) == (0, 0)
