"""The fronts of all servers, each behind the same contract."""

from __future__ import annotations

import functools
import signal
import socket

import pytest
from support.client import (
    Line,
    Stopwatch,
    check,
    checks,
    eventually,
    is_check,
    many,
    request,
    together,
)
from support.gunicorns import FrontGunicorn
from support.processes import Site, ThreadedSite

from contracts.front import (
    LONG_GRACE,
    ConnectionContract,
    FrontContract,
    OverloadContract,
    RequestContract,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def site(request, started):
    """Starts the server with these options."""
    return lambda **options: started(request.cls.serve, **options)


@pytest.fixture(scope="class")
def shared(request):
    """A server of two threads."""
    guarded = request.cls.serve(threads=2, max_queue=2)
    yield guarded
    guarded.reap()


@pytest.fixture
def kept(shared):
    """The same, at rest, for the tests that leave it as they found it a moment after their end."""
    eventually(lambda: check(shared.port).text == "free")
    return shared


class TestTwisted(FrontContract, ConnectionContract, OverloadContract):
    """Twisted's resource, in the reactor."""

    serve = Site
    listeners = "MainThread"

    # Twisted itself takes whoever closes its half to have left.
    test_whoever_closes_its_half_behind_a_request_has_its_answer = None

    def test_a_check_of_http_1_0_is_answered_though_its_client_closes_its_half(self, kept):
        with Line(kept.port) as line:
            line.send(request("OPTIONS", "/", version="1.0"))
            line.socket.shutdown(socket.SHUT_WR)
            assert is_check(line.answer())


class Threaded(FrontContract, ConnectionContract, OverloadContract):
    """Servers with threads, and one that says refusals."""

    def test_a_refusal_app_that_is_slow_holds_up_no_check(self, site):
        guarded = site(threads=1, max_queue=0, refusal="slow")
        _, hanging = many(1, guarded.port, path="/hang")
        guarded.filled(1)
        refused, threads = many(3, guarded.port, path="/refused")
        checks(guarded.port)
        assert refused == []
        together(threads)
        assert {answer.text for answer in refused} == {"slow"}
        guarded.tell("release")
        together(hanging)

    def test_a_pipelined_request_is_served_by_the_thread_that_is_free_again(self, site):
        """With one thread and no queue, the second must not find the first still in its place.

        Under Twisted it may: the reactor has sent an answer before its thread is back.
        """
        guarded = site(threads=1, max_queue=0)
        for _ in range(20):
            with Line(guarded.port) as line:
                line.send(request(path="/big/1") + request(path="/big/2") + request(path="/big/3"))
                assert [line.answer().text for _ in range(3)] == ["x", "xx", "xxx"]
            guarded.at_rest()

    def test_a_second_sigterm_ends_it_at_once(self, site):
        guarded = site(threads=1, grace=LONG_GRACE)
        many(1, guarded.port, path="/hang")
        guarded.filled(1)
        guarded.signal()
        eventually(lambda: check(guarded.port).text == "draining")
        with Stopwatch() as watch:
            guarded.signal()
            assert guarded.ended() == -signal.SIGTERM
        assert watch.seconds < 3


class TestWaitress(Threaded):
    """waitress's dispatcher."""

    serve = staticmethod(functools.partial(ThreadedSite, server="waitress"))


class TestCheroot(Threaded):
    """What stands between cheroot's connections and its threads."""

    serve = staticmethod(functools.partial(ThreadedSite, server="cheroot"))


class TestGuardedThreads(FrontContract, OverloadContract):
    """gunicorn's threaded worker, which closes a connection after an answer of its own."""

    serve = FrontGunicorn
    listeners = "busyguard-listeners"


class TestGuardedSync(RequestContract):
    """gunicorn's worker of one thread, whose queue is the kernel's."""

    serve = staticmethod(functools.partial(FrontGunicorn, kind="GuardedSync"))


class TestGuardedGevent(FrontContract):
    """gunicorn's gevent worker, whose greenlets wait at a gate in the app."""

    serve = staticmethod(functools.partial(FrontGunicorn, kind="GuardedGevent"))
    listeners = "busyguard-listeners"

    # A request that waits is in a greenlet of its own, where nobody sees that its client has left.
    test_only_those_already_running_run_when_the_clients_leave = None
    test_one_who_left_a_moment_before_its_turn_does_not_run = None
    test_come_and_go_clients_on_a_stuck_server_make_one_edge_and_cost_no_descriptors = None
