from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import BusyGuard
from wsgi_busyguard._support.request_head import header_key
from wsgi_busyguard.deadlines.client_timeout import client_reader, patience
from wsgi_busyguard.deadlines.environ import DEADLINE, WAITED

TOLD = {
    "milliseconds": ("2500", 2.5),
    "grpc hours": ("1H", 600.0),
    "grpc minutes": ("2M", 120.0),
    "grpc seconds": ("3S", 3.0),
    "grpc milliseconds": ("250m", 0.25),
    "grpc microseconds": ("500000u", 0.5),
    "grpc nanoseconds": ("99999999n", 0.099999999),
    "longer than anybody waits": ("99999999", 600.0),
    "spaces": (" 100 ", 0.1),
    "several": ("5000, 100", 0.1),
    "one of several is rubbish": ("soon, 100", 0.1),
    "nothing": ("", None),
    "no time at all": ("0", None),
    "words": ("soon", None),
    "negative": ("-5", None),
    "a fraction": ("1.5", None),
    "too long for gRPC": ("123456789", None),
    "a unit that there is not": ("5s", None),
    "other digits": ("\u0665", None),
    "as long as honest ones are": ("5000," + " " * 94 + "7", 0.007),
    "longer than honest ones": ("5000," + " " * 95 + "7", None),
}


@pytest.mark.parametrize(("header", "seconds"), TOLD.values(), ids=TOLD)
def test_a_client_says_how_long_it_waits(header, seconds):
    assert patience(header) == (seconds if seconds is None else pytest.approx(seconds))


@given(st.text())
def test_whatever_is_sent_is_a_time_or_nothing(header):
    told = patience(header)
    assert told is None or 0 < told <= 600


@pytest.mark.parametrize("name", ["", "X Timeout", "X-Timeout:", "x_timeout", 5, True])
def test_a_header_has_a_name(name):
    with pytest.raises(ValueError, match="client_timeout_header must be the name of a header"):
        header_key(name)


def test_nobody_is_asked_unless_told_to():
    assert client_reader(5.0, None, False, lambda: True) is None


@pytest.fixture
def seen():
    return []


@pytest.fixture
def app(seen):
    def app(environ, start_response):
        seen.append(environ[DEADLINE] - time.monotonic())
        return [b"app"]

    return app


KINDS = pytest.mark.parametrize("kind", [{"slots": 1}, {}], ids=["gate", "pass-through"])


@KINDS
def test_the_deadline_is_the_clients_own(app, seen, environ, kind):
    guard = BusyGuard(app, client_timeout_header="X-Client-Timeout-Ms", **kind)
    guard(environ(HTTP_X_CLIENT_TIMEOUT_MS="60000"), None)
    guard(environ(HTTP_X_CLIENT_TIMEOUT_MS="2000"), None)
    guard(environ(HTTP_X_CLIENT_TIMEOUT_MS="rubbish"), None)
    guard(environ(), None)
    assert seen == pytest.approx([60.0, 2.0, 5.0, 5.0], abs=0.5)


@KINDS
def test_nobody_is_believed_who_is_not_trusted(app, seen, environ, kind):
    BusyGuard(app, client_timeout=5.0, **kind)(environ(HTTP_X_CLIENT_TIMEOUT_MS="60000"), None)
    assert seen == pytest.approx([5.0], abs=0.5)


def test_it_counts_from_when_the_proxy_had_the_request(app, seen, environ):
    guard = BusyGuard(
        app, slots=1, max_wait=3.0, client_timeout_header="grpc-timeout", trust_queue_header=True
    )
    guard(environ(HTTP_GRPC_TIMEOUT="20S", HTTP_X_REQUEST_START=f"t={time.time() - 2:.3f}"), None)
    assert seen == pytest.approx([18.0], abs=0.5)


def test_who_leaves_sooner_waits_less(app, seen, environ, start, until):
    """A tenth of the patience is a tenth of the wait: 20 ms, not 1 s."""
    inside, out = [], []
    guard = BusyGuard(app, slots=1, client_timeout_header="X-Client-Timeout-Ms")
    answers = []

    def begin(status, headers, exc_info=None):
        answers.append((status, dict(headers)))

    go_on = threading.Event()

    def slow(environ, start_response):
        inside.append(environ[WAITED])
        go_on.wait(20)
        return [b""]

    guard = BusyGuard(slow, slots=1, client_timeout_header="X-Client-Timeout-Ms", max_wait=10)
    first = start(guard, environ(), begin)
    until(lambda: inside)
    second = start(lambda: out.append(guard(environ(HTTP_X_CLIENT_TIMEOUT_MS="10"), begin)))
    until(lambda: guard.monitor.load.queued == 1)
    until(lambda: guard.monitor.load.waited > 0.05)
    go_on.set()
    first.join(20)
    second.join(20)
    [(status, headers)] = answers
    assert (status, headers["Busyguard-Refused"]) == ("503 Service Unavailable", "queue-age")
    assert len(inside) == 1
    assert guard.monitor.load.active == 0


def test_who_has_waited_too_long_before_is_refused_at_once_unless_a_slot_is_free(
    environ, start, until
):
    answers, go_on = [], threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        go_on.wait(20)
        return [b""]

    guard = BusyGuard(
        app, slots=1, client_timeout_header="X-Client-Timeout-Ms", trust_queue_header=True
    )
    begun = f"t={time.time() - 0.5:.3f}"
    old = environ(HTTP_X_CLIENT_TIMEOUT_MS="1000", HTTP_X_REQUEST_START=begun)

    def begin(status, headers, exc_info=None):
        answers.append(status)

    first = start(guard, dict(old), begin)
    until(lambda: answers)
    guard(dict(old), begin)
    assert answers == ["200 OK", "503 Service Unavailable"]
    go_on.set()
    first.join(20)


def test_and_does_not_stand_in_the_queue_for_it(environ, start, until):
    """Which would last a minute here."""
    inside, go_on, answers = [], threading.Event(), []

    def app(environ, start_response):
        inside.append(True)
        go_on.wait(20)
        return [b""]

    guard = BusyGuard(
        app,
        slots=1,
        max_wait=60.0,
        client_timeout_header="X-Client-Timeout-Ms",
        trust_queue_header=True,
    )
    start(guard, environ(), None)
    until(lambda: inside)
    begun = f"t={time.time() - 2:.3f}"
    start(
        guard,
        environ(HTTP_X_CLIENT_TIMEOUT_MS="1000", HTTP_X_REQUEST_START=begun),
        lambda status, headers, exc_info=None: answers.append(status),
    ).join(15)
    assert answers == ["503 Service Unavailable"]
    go_on.set()


def test_a_header_that_cannot_be_is_refused_when_the_guard_is_made(app):
    with pytest.raises(ValueError, match=r"such as X-Client-Timeout-Ms, not 'X Timeout'"):
        BusyGuard(app, client_timeout_header="X Timeout")
