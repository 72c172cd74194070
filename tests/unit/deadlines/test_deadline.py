from __future__ import annotations

import ast
import asyncio
import contextvars
import gc
import math
import pathlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from twisted.python.threadpool import ThreadPool

from wsgi_busyguard import BusyGuard, current_deadline, remaining
from wsgi_busyguard.adapters.executor import CountingExecutor
from wsgi_busyguard.deadlines.deadline import (
    DEADLINE,
    TooLate,
    call_timeout,
    carrying,
    streamed,
    within,
)

PACKAGE = pathlib.Path(__file__).parents[3] / "wsgi_busyguard"

KINDS = {"gate": {"slots": 2}, "pass-through": {"client_timeout": 5.0}}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    """A guard that stamps, whichever way."""
    return request.param


@pytest.fixture
def call(environ):
    """Call an app and do to its body what servers do."""

    def call(app, **more):
        request = environ(**more)
        body = app(request, lambda status, headers, exc_info=None: None)
        try:
            return list(body)
        finally:
            getattr(body, "close", lambda: None)()

    return call


def deep(levels, ask):
    return ask() if levels == 0 else deep(levels - 1, ask)


def test_it_is_the_deadline_in_the_environ(kind, call):
    seen = []

    def app(environ, start_response):
        seen.append((deep(30, current_deadline), environ[DEADLINE]))
        return [b"app"]

    call(BusyGuard(app, **kind))
    [(current, stamped)] = seen
    assert current == stamped
    assert 0 < current - time.monotonic() <= 5.0


def test_there_is_none_outside_of_a_request(kind, call):
    call(BusyGuard(lambda environ, start_response: [b""], **kind))
    assert current_deadline() is None


def test_there_is_none_where_nobody_stamped(call):
    seen = []
    call(BusyGuard(lambda environ, start_response: seen.append(current_deadline()) or [b""]))
    assert seen == [None]


def test_a_request_that_raised_leaves_nothing_behind(kind, call):
    def app(environ, start_response):
        raise KeyError("app")

    with pytest.raises(KeyError):
        call(BusyGuard(app, **kind))
    assert current_deadline() is None


class Closing:
    """A body as Django's responses are: an object with close(), not a generator."""

    def __init__(self, chunks):
        self._chunks = chunks

    def __iter__(self):
        return iter(self._chunks())

    def close(self):
        """Do nothing."""


def chunks_of(seen):
    def chunks():
        seen.append(deep(5, current_deadline))
        yield b"1"
        seen.append(current_deadline())
        yield b"2"

    return chunks


def test_a_generator_that_runs_after_the_call_has_the_deadline_still(kind, call):
    seen, stamped = [], []

    def app(environ, start_response):
        stamped.append(environ[DEADLINE])
        return chunks_of(seen)()

    assert call(BusyGuard(app, **kind)) == [b"1", b"2"]
    assert seen == stamped * 2
    assert current_deadline() is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda app: BusyGuard(app, slots=1),
        lambda app: BusyGuard(carrying(app), client_timeout=5.0),
    ],
    ids=["gate", "carrying, pass-through"],
)
def test_so_has_a_body_that_is_an_object(wrap, call):
    seen, stamped = [], []

    def app(environ, start_response):
        stamped.append(environ[DEADLINE])
        return Closing(chunks_of(seen))

    assert call(wrap(app)) == [b"1", b"2"]
    assert seen == stamped * 2


def test_a_body_that_is_still_iterated_has_its_own_deadline_and_not_the_next_requests(environ):
    seen = []
    guard = BusyGuard(lambda environ, start_response: chunks_of(seen)(), slots=2)
    first, second = (iter(guard(environ(), None)) for _ in range(2))
    next(first)
    next(second)
    next(first)
    assert seen[0] == seen[2] != seen[1]


def test_the_innermost_guard_counts(call):
    """It is the one whose stamp is in the environ."""
    seen = []

    def app(environ, start_response):
        seen.append(current_deadline() == environ[DEADLINE])
        return [b""]

    call(BusyGuard(BusyGuard(app, slots=1, client_timeout=1.0), slots=1, client_timeout=9.0))
    assert seen == [True]


def test_the_outer_guards_is_back_when_the_inner_one_is_done(call):
    seen = []
    inner = BusyGuard(lambda e, s: [b""], slots=1, client_timeout=1.0)

    def middle(environ, start_response):
        for _ in range(2):
            seen.append(current_deadline())
            inner(dict(environ), start_response)
        return [b""]

    call(BusyGuard(middle, slots=1, client_timeout=9.0))
    assert seen[0] == seen[1]


def test_a_request_behind_another_that_raised_has_its_own(kind, call):
    seen = []

    def app(environ, start_response):
        seen.append(current_deadline() == environ[DEADLINE])
        if len(seen) % 2:
            raise KeyError("app")
        return [b""]

    guard = BusyGuard(app, **kind)
    for _ in range(2):
        with pytest.raises(KeyError):
            call(guard)
        assert current_deadline() is None
        call(guard)
    assert seen == [True] * 4


def test_a_body_that_raises_or_is_left_halfway_leaves_nothing_behind(kind, environ):
    def app(environ, start_response):
        yield b"1"
        raise KeyError("body")

    guard = BusyGuard(app, **kind)
    halfway, broken = guard(environ(), None), guard(environ(), None)
    next(iter(halfway))
    assert current_deadline() is None
    with pytest.raises(KeyError):
        list(broken)
    assert current_deadline() is None
    halfway.close()
    broken.close()


def test_threads_have_deadlines_of_their_own(kind, start, environ):
    seen, both = {}, threading.Barrier(2)

    def app(environ, start_response):
        both.wait(10)
        seen[threading.get_ident()] = (current_deadline(), environ[DEADLINE])
        both.wait(10)
        return [b""]

    guard = BusyGuard(app, **kind)
    for thread in [start(guard, environ(), None) for _ in range(2)]:
        thread.join(20)
    assert len(seen) == 2
    assert all(current == stamped for current, stamped in seen.values())


def test_greenlets_have_deadlines_of_their_own(python):
    pytest.importorskip("gevent")
    assert (
        python("""
        import gevent, logging
        logging.disable()
        from wsgi_busyguard import BusyGuard, current_deadline
        def app(environ, start_response):
            gevent.sleep(0.01)
            right.append(current_deadline() == environ["busyguard.deadline"])
            return body(environ["busyguard.deadline"])
        def body(deadline):
            yield b""
            gevent.sleep(0.01)
            right.append(current_deadline() == deadline)
        right = []
        guard = BusyGuard(app, slots=8)
        def serve():
            answer = guard({"REQUEST_METHOD": "GET", "PATH_INFO": "/x"}, None)
            list(answer)
            answer.close()
        gevent.joinall([gevent.spawn(serve) for _ in range(5)], raise_error=True)
        print(len(right), all(right), current_deadline())
        """)
        == "10 True None\n"
    )


@pytest.mark.slow
def test_every_function_that_stamps_an_environ_calls_the_app_by_the_one_that_is_looked_for():
    """By another way it would be passed over in silence."""
    stampers = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name != "stamp" and _stamps(node):
                stampers.append(node.name)
                assert "call_until" in _called(node), (path, node.name)
    assert {"hold", "stamped", "serve"} <= set(stampers)


def _stamps(function):
    return "stamp" in _called(function) or any(
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and getattr(node.slice, "id", "") == "DEADLINE"
        for node in _own(function)
    )


def _called(function):
    return {getattr(n.func, "id", "") for n in _own(function) if isinstance(n, ast.Call)}


def _own(node):
    """Yield what is in a function and not in one that it defines."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield child
            yield from _own(child)


# Timeouts for calls


def in_request(call, ask, left=5.0):
    """Return what ``ask`` returns in a request whose client waits for so long."""
    seen = []
    call(BusyGuard(lambda e, s: seen.append(ask()) or [b""], slots=1, client_timeout=left))
    return seen[0]


def test_a_call_may_take_what_the_client_has_left(call):
    assert 4.0 < in_request(call, call_timeout) <= 5.0


def test_and_never_more_than_is_good_for_it(call):
    assert in_request(call, lambda: call_timeout(1.5)) == 1.5


def test_outside_of_a_request_it_may_take_what_is_said():
    assert call_timeout(2.0) == 2.0
    assert call_timeout() is None


def test_a_call_that_would_outlive_its_client_is_not_begun(call, monkeypatch):
    def late():
        later = time.monotonic() + 6.0
        monkeypatch.setattr(time, "monotonic", lambda: later)
        words = r"^not begun: 0.000 s are left of the client's patience$"
        with pytest.raises(TooLate, match=words):
            call_timeout()
        monkeypatch.undo()
        return "late"

    assert in_request(call, late) == "late"


def test_nor_one_that_is_known_to_take_longer(call):
    def too_long():
        with pytest.raises(TooLate):
            call_timeout(least=5.5)
        return call_timeout(least=0.5)

    assert in_request(call, too_long) > 0.5


def test_too_late_is_a_timeout():
    assert issubclass(TooLate, TimeoutError)


def test_a_part_of_a_request_may_have_less_time_than_the_whole(call):
    def part():
        with within(0.5):
            inside = call_timeout()
            with within(3.0):
                still = call_timeout()
        return inside, still, call_timeout()

    inside, still, after = in_request(call, part)
    assert 0 < still <= inside <= 0.5
    assert after > 1.0


def test_but_not_more(call):
    def part():
        with within(60.0):
            return call_timeout()

    assert in_request(call, part) <= 5.0


def test_work_without_a_request_can_have_a_deadline():
    with within(0.5):
        assert 0 < call_timeout() <= 0.5
    assert current_deadline() is None


def test_a_limit_must_be_time():
    with pytest.raises(ValueError, match="limit must be more than 0 seconds, not 0"), within(0):
        pass


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ({"at_most": "2"}, TypeError, "at_most must be a number of seconds, not '2'"),
        ({"at_most": True}, TypeError, "at_most must be a number of seconds, not True"),
        ({"at_most": -1}, ValueError, "at_most must be at least 0 seconds, not -1"),
        ({"at_most": math.nan}, ValueError, "at_most must be at least 0 seconds, not nan"),
        ({"least": None}, TypeError, "least must be a number of seconds, not None"),
        ({"least": -0.5}, ValueError, "least must be at least 0 seconds, not -0.5"),
    ],
)
def test_what_is_no_time_is_told_also_outside_of_a_request(wrong, kind, words):
    with pytest.raises(kind, match=f"^{words}$"):
        call_timeout(**wrong)


def test_a_client_that_waits_for_ever_leaves_the_calls_own_timeout(call):
    """No socket takes an endless one."""
    assert in_request(call, lambda: (call_timeout(2.0), current_deadline()), math.inf) == (
        2.0,
        None,
    )
    with within(math.inf):
        assert call_timeout() is None


# Threads and event loops that the app has others use


def test_a_thread_of_the_apps_own_knows_nothing(call, start):
    seen = []

    def app(environ, start_response):
        start(lambda: seen.append(current_deadline())).join(20)
        return [b""]

    call(BusyGuard(app, slots=1))
    assert seen == [None]


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, CountingExecutor])
def test_nor_does_an_executors_job_though_a_request_has_started_its_thread(call, kind):
    """It may outlive the request, and the next job there is somebody else's."""
    seen = []
    with kind(1) as executor:

        def app(environ, start_response):
            seen.append(executor.submit(current_deadline).result(20))
            return [b""]

        call(BusyGuard(app, slots=1))
        seen.append(executor.submit(current_deadline).result(20))
    assert seen == [None, None]


def test_a_job_that_calls_a_guarded_app_has_its_deadline(call):
    """So Twisted's threads do, and those of ASGI bridges."""
    seen = []

    def app(environ, start_response):
        seen.append(current_deadline() == environ[DEADLINE])
        return [b""]

    pool = ThreadPool(1, 1)
    pool.start()
    try:
        done = threading.Event()
        guard = BusyGuard(app, slots=1)
        pool.callInThreadWithCallback(lambda *result: done.set(), call, guard)
        assert done.wait(20)
        done.clear()
        pool.callInThreadWithCallback(
            lambda well, result: (seen.append(result), done.set()), current_deadline
        )
        assert done.wait(20)
    finally:
        pool.stop()
    assert seen == [True, None]


def test_unless_the_deadline_is_carried_there(call, start):
    seen, stamped = [], []

    def app(environ, start_response):
        stamped.append(environ[DEADLINE])
        context = contextvars.copy_context()
        start(context.run, lambda: seen.append(current_deadline())).join(20)
        asyncio.run(asyncio.to_thread(lambda: seen.append(current_deadline())))
        return [b""]

    call(BusyGuard(carrying(app), slots=1))
    assert seen == stamped * 2
    assert current_deadline() is None


def test_carrying_leaves_nothing_behind_when_the_app_raises(call):
    def app(environ, start_response):
        raise KeyError

    with pytest.raises(KeyError):
        call(BusyGuard(carrying(app), slots=1))
    assert current_deadline() is None


def test_carrying_lets_a_request_be_that_nobody_stamped():
    body = [b""]
    assert carrying(lambda environ, start_response: body)({}, None) is body


class File:
    """What a server's wrapper makes of a file."""


def test_bodies_that_servers_measure_or_send_by_themselves_stay_what_they_are():
    for body in ([b""], (b"",), b""):
        assert streamed(body, 1.0) is body
    file = File()
    assert streamed(file, 1.0, File) is file
    with open(__file__, "rb") as file:
        assert streamed(file, 1.0, lambda file, size: file) is file


def test_a_carried_body_is_closed_once_it_is_closed():
    closed = []

    class Body:
        def __iter__(self):
            return iter([b"1"])

        def close(self):
            closed.append(True)

    body = streamed(Body(), 1.0)
    assert list(body) == [b"1"]
    assert closed == []
    body.close()
    assert closed == [True]
    streamed(iter([]), 1.0).close()  # which cannot be closed


def test_nothing_of_a_request_is_kept(kind, environ):
    """Looking at frames must not keep what was in them."""

    class Watched(dict):
        pass

    import weakref

    request = Watched(environ())
    reference = weakref.ref(request)

    def app(environ, start_response):
        assert current_deadline() is not None
        return [b""]

    BusyGuard(app, **kind)(request, None)
    del request
    gc.collect()
    assert reference() is None


def test_remaining_says_the_same(call):
    seen = []

    def app(environ, start_response):
        began = time.monotonic()
        seen.append(remaining(environ) - call_timeout())
        seen.append(time.monotonic() - began)
        return [b""]

    call(BusyGuard(app, slots=1))
    difference, took = seen
    assert -0.001 <= difference <= took + 0.001
