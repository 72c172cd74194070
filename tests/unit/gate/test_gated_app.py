from __future__ import annotations

import gc
import io
import sys
import time
import weakref
from wsgiref.util import FileWrapper

import pytest
import wrapt
from waitress.buffers import ReadOnlyFileBasedBuffer

from wsgi_busyguard import Gate, Monitor
from wsgi_busyguard.deadlines.environ import DEADLINE, MONITOR, WAITED
from wsgi_busyguard.gate.gated_app import HeldAny, holding
from wsgi_busyguard.policy import Reason

CLIENT_TIMEOUT = 3.0


class Boom(Exception):
    pass


class Body:
    """A body that counts how often it is closed."""

    def __init__(self, gate=None, chunks=(b"a", b"b"), raises=None):
        self.closed = 0
        self._gate = gate
        self._chunks = chunks
        self._raises = raises

    def __iter__(self):
        yield from self._chunks

    def close(self):
        self.closed += 1
        assert self._gate is None or not self._gate.empty, "left before the body was closed"
        if self._raises is not None:
            raise self._raises


class SizedBody(Body):
    def __len__(self):
        return len(self._chunks)


@pytest.fixture
def gate():
    gate = Gate(1, max_queue=1, max_wait=60.0)
    yield gate
    assert gate.empty
    gate.leave(gate.enter())


@pytest.fixture
def monitor(gate):
    return Monitor(gate)


@pytest.fixture
def hold(gate, monitor):
    """Call an app that answers with this body, behind the gate."""

    def refused(reason):
        def refuse(environ, start_response):
            start_response("503 Service Unavailable", [("X-Reason", reason.value)])
            return [b"refused"]

        return refuse

    def hold(body, environ=None, start_response=print):
        app = body if callable(body) else lambda environ, start_response: body
        guarded = holding(app, gate, monitor, refused, CLIENT_TIMEOUT)
        return guarded({} if environ is None else environ, start_response)

    return hold


def raising(chunks, error):
    """A generator that yields these and raises this."""
    yield from chunks
    raise error


# When the slot is left


@pytest.mark.parametrize("body", [[b"x"], (b"x",), []], ids=["list", "tuple", "empty list"])
def test_a_plain_list_is_passed_on_as_it_is_and_holds_nothing(hold, gate, body):
    assert hold(body) is body
    assert gate.empty


@pytest.mark.parametrize(
    "make",
    [
        lambda: (chunk for chunk in [b"a", b"b"]),
        lambda: iter([b"a", b"b"]),
        lambda: Body(),
        lambda: SizedBody(),
        lambda: type("Bodies", (list,), {})([b"a", b"b"]),
    ],
    ids=["generator", "iterator", "iterable with close", "sized", "a kind of list"],
)
def test_any_other_body_holds_the_slot_until_it_is_closed(hold, gate, make):
    body = hold(make())
    assert b"".join(body) == b"ab"
    assert not gate.empty
    body.close()
    assert gate.empty
    body.close()
    assert gate.empty


def test_the_body_is_closed_before_the_slot_is_left_and_once(hold, gate):
    inner = Body(gate)
    body = hold(inner)
    body.close()
    body.close()
    assert inner.closed == 1


def test_a_body_that_has_a_length_keeps_it(hold):
    """wsgiref sends a Content-Length by itself where the length is 1."""
    body = hold(SizedBody(chunks=(b"a",)))
    assert len(body) == 1
    body.close()
    body = hold(Body())
    assert not hasattr(body, "__len__")
    body.close()


def test_a_body_that_raises_when_it_is_closed_leaves_all_the_same(hold, gate):
    body = hold(Body(gate, raises=Boom()))
    with pytest.raises(Boom):
        body.close()
    assert gate.empty
    body.close()


@pytest.mark.parametrize("error", [Boom(), SystemExit(), GeneratorExit()], ids=repr)
def test_a_body_that_raises_on_the_way_holds_the_slot_until_it_is_closed(hold, gate, error):
    body = hold(raising([b"a"], error))
    with pytest.raises(type(error)):
        list(body)
    assert not gate.empty
    body.close()


@pytest.mark.parametrize("error", [Boom(), SystemExit(), KeyboardInterrupt()], ids=repr)
def test_an_app_that_raises_leaves_at_once(hold, gate, error):
    def app(environ, start_response):
        raise error

    with pytest.raises(type(error)):
        hold(app)
    assert gate.empty


@pytest.mark.parametrize("body", [None, 3, object()], ids=["None", "a number", "an object"])
def test_what_is_no_body_at_all_is_the_servers_to_complain_about(hold, gate, body):
    held = hold(body)
    with pytest.raises(TypeError, match="not iterable"):
        list(held)
    held.close()
    assert gate.empty


@pytest.mark.parametrize("name", ["close", "__len__"])
def test_a_body_of_which_not_even_the_attributes_can_be_read_leaves(hold, gate, name):
    def get(self, attribute):
        if attribute == name:
            raise Boom
        raise AttributeError(attribute)

    broken = type("Broken", (), {"__getattr__": get, "__iter__": lambda self: iter(())})
    if name == "__len__":
        broken.__len__ = property(lambda self: (_ for _ in ()).throw(Boom))
    with pytest.raises(Boom):
        hold(broken())
    assert gate.empty


def test_a_body_is_iterated_chunk_by_chunk(hold):
    made = []

    def app_body():
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    body = hold(app_body())
    chunks = iter(body)
    assert made == []
    assert next(chunks) == b"0"
    assert made == [0]
    body.close()


# Servers and middlewares that are less careful


def test_a_body_dropped_without_close_leaves(hold, gate):
    body = hold(Body())
    assert not gate.empty
    del body
    gc.collect()
    assert gate.empty


def test_a_body_dropped_in_a_reference_cycle_leaves_when_that_is_collected(hold, gate):
    cycle = [hold(Body())]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert gate.empty


@pytest.mark.slow
def test_who_keeps_only_the_iterator_holds_the_slot(hold, gate):
    """As a middleware does that says ``for chunk in app(environ, start_response)``."""
    chunks = iter(hold(Body()))
    gc.collect()
    assert next(chunks) == b"a"
    assert not gate.empty
    del chunks
    gc.collect()
    assert gate.empty


def test_a_body_left_halfway_is_closed_once(hold, gate):
    """The iterator that is dropped must not close it too."""
    inner = type("Iterator", (Body,), {"__iter__": lambda s: s, "__next__": lambda s: b"x"})(gate)
    body = hold(inner)
    for _ in body:
        break
    gc.collect()
    assert inner.closed == 0
    body.close()
    assert inner.closed == 1


def test_the_generator_of_an_outer_middleware_may_be_collected_in_a_cycle(hold, gate):
    def outer():
        body = hold(Body())
        try:
            yield from body
        finally:
            body.close()

    chunks = outer()
    next(chunks)
    cycle = [chunks]
    cycle.append(cycle)
    del chunks, cycle
    gc.collect()
    assert gate.empty


# The file wrapper of the server


class SlottedWrapper:
    """As one made in C: nothing can be set on it."""

    __slots__ = ("filelike",)

    def __init__(self, filelike, size=8192):
        self.filelike = filelike

    def __iter__(self):
        return iter(self.filelike)


class StubbornWrapper(FileWrapper):
    def __setattr__(self, name, value):
        if name == "close" and "close" in self.__dict__:
            raise Boom
        super().__setattr__(name, value)


class Traced:
    """A tracer's proxy: looks like what it stands for, and notes when it is closed."""

    def __init__(self, inner):
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "closed", 0)

    @property
    def __class__(self):
        return type(self.inner)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __setattr__(self, name, value):
        setattr(self.inner, name, value)

    def __iter__(self):
        return iter(self.inner)

    def close(self):
        object.__setattr__(self, "closed", self.closed + 1)
        self.inner.close()


class TracedInC(wrapt.ObjectProxy):
    """The same, of a kind on which nothing can be set."""

    def __init__(self, inner):
        super().__init__(inner)
        self._self_closed = 0

    @property
    def closed(self):
        return self._self_closed

    def close(self):
        self._self_closed += 1
        self.__wrapped__.close()


@pytest.mark.parametrize(
    "wrapper",
    [FileWrapper, type("Derived", (FileWrapper,), {})],
    ids=["the wrapper", "one derived from it"],
)
def test_a_file_in_the_servers_wrapper_stays_itself_and_holds_until_closed(
    hold, gate, tmp_path, wrapper
):
    path = tmp_path / "file"
    path.write_bytes(b"ab")
    file = path.open("rb")
    sent = wrapper(file)
    body = hold(sent, {"wsgi.file_wrapper": FileWrapper})
    assert body is sent
    assert not gate.empty
    assert b"".join(body) == b"ab"
    body.close()
    assert gate.empty
    assert file.closed
    body.close()


def test_a_file_that_waitress_sends_by_itself_leaves_when_the_thread_goes_on(hold, gate, tmp_path):
    """Its main loop closes it, when the client has read all: idle downloads locked the site out."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    file = path.open("rb")
    sent = ReadOnlyFileBasedBuffer(file)
    body = hold(sent, {"wsgi.file_wrapper": ReadOnlyFileBasedBuffer})
    assert body is sent
    assert not gate.empty
    assert body.prepare(2) == 2
    assert gate.empty
    assert body.get() == b"ab"
    slot = gate.enter()
    body.close()
    assert gate.read().active == 1
    assert file.closed
    gate.leave(slot)
    gone = weakref.ref(body)
    del body, sent
    assert gone() is None


def test_a_file_that_waitress_leaves_to_the_thread_holds_until_it_is_closed(hold, gate):
    """One whose length nobody can know."""
    file = type("Pipe", (), {"read": lambda self, size: b""})()
    body = hold(ReadOnlyFileBasedBuffer(file), {"wsgi.file_wrapper": ReadOnlyFileBasedBuffer})
    assert body.prepare(None) == 0
    assert b"".join(body) == b""
    assert not gate.empty
    body.close()
    assert gate.empty


def test_a_wrapper_of_the_wrapper_that_takes_attributes_and_gives_none_back_is_served(
    hold, gate, tmp_path
):
    class Traced(ReadOnlyFileBasedBuffer):
        def __delattr__(self, name):
            raise AttributeError(name)

    path = tmp_path / "file"
    path.write_bytes(b"abc")
    body = hold(Traced(path.open("rb")), {"wsgi.file_wrapper": ReadOnlyFileBasedBuffer})
    assert body.prepare() == 3
    assert gate.empty
    body.close()


def test_a_file_that_is_never_closed_leaves_when_it_is_collected(hold, gate, tmp_path):
    class Classic:  # its close() is a method, so it and what is set on it hold each other
        def __init__(self, file):
            self.file = file

        def __iter__(self):
            return iter(self.file)

        def close(self):
            self.file.close()

    body = hold(Classic([b"x"]), {"wsgi.file_wrapper": Classic})
    assert not gate.empty
    del body
    gc.collect()
    assert gate.empty


def test_a_wrapper_that_takes_no_close_of_ours_is_passed_on_and_leaves(hold, gate):
    sent = SlottedWrapper([b"x"])
    assert hold(sent, {"wsgi.file_wrapper": SlottedWrapper}) is sent
    assert gate.empty


def test_a_wrapper_that_does_not_want_its_close_to_be_set_is_held_all_the_same(hold, gate):
    file = Body()
    sent = StubbornWrapper(file)
    assert hold(sent, {"wsgi.file_wrapper": FileWrapper}) is sent
    assert not gate.empty
    sent.close()
    assert gate.empty
    assert file.closed == 1


# From 3.13 on object.__setattr__() sets attributes on what is made in C, too.
@pytest.mark.parametrize(
    ("proxy", "held"),
    [(Traced, True), (TracedInC, sys.version_info >= (3, 13))],
    ids=["in Python", "in C"],
)
def test_a_file_in_a_tracers_proxy_is_closed_and_so_is_the_proxy(hold, gate, tmp_path, proxy, held):
    """It is an instance of the wrapper for all who ask, and passes on what is set on it."""
    path = tmp_path / "file"
    path.write_bytes(b"ab")
    file = path.open("rb")
    sent = proxy(FileWrapper(file))
    body = hold(sent, {"wsgi.file_wrapper": FileWrapper})
    assert body is sent
    assert isinstance(body, FileWrapper)
    assert gate.empty is not held
    assert b"".join(body) == b"ab"
    body.close()
    assert file.closed
    assert sent.closed == 1
    assert gate.empty


def uwsgis_wrapper(file, size=0):
    """What uWSGI has: a function that returns the file, by which the file is recognised."""
    return file


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
def test_a_file_stays_itself_where_the_wrapper_is_a_function(hold, gate, tmp_path, buffering):
    path = tmp_path / "file"
    path.write_bytes(b"ab")
    file = path.open("rb", buffering=buffering)
    body = hold(uwsgis_wrapper(file), {"wsgi.file_wrapper": uwsgis_wrapper})
    assert body is file
    assert not gate.empty
    assert body.read() == b"ab"
    body.close()
    assert gate.empty
    assert file.closed
    body.close()


def test_so_does_what_can_only_read(hold, gate):
    class ReadOnly:  # all that PEP 3333 asks of a file
        def read(self, size=-1):
            return b""

    file = ReadOnly()
    assert hold(file, {"wsgi.file_wrapper": uwsgis_wrapper}) is file
    assert not gate.empty
    file.close()  # a server that finds one calls it
    assert gate.empty


def test_a_file_that_such_a_server_drops_leaves(hold, gate):
    body = hold(io.BytesIO(b"ab"), {"wsgi.file_wrapper": uwsgis_wrapper})
    assert not gate.empty
    del body
    gc.collect()
    assert gate.empty


def test_what_is_no_file_is_wrapped_there_as_elsewhere(hold, gate):
    body = hold(Body(), {"wsgi.file_wrapper": uwsgis_wrapper})
    assert isinstance(body, HeldAny)
    assert b"".join(body) == b"ab"
    body.close()
    # Without any file wrapper nothing can be one, whatever it has.
    readable = type("Readable", (Body,), {"read": lambda self: b""})()
    body = hold(readable)
    assert isinstance(body, HeldAny)
    body.close()


# What the request carries


def test_a_request_knows_how_long_it_waited_and_how_long_it_may_take(hold, monitor):
    environ = {}
    before = time.monotonic()
    hold([], environ)
    assert environ[WAITED] == 0.0
    assert environ[MONITOR] is monitor
    assert before + CLIENT_TIMEOUT <= environ[DEADLINE] <= time.monotonic() + CLIENT_TIMEOUT


def test_the_deadline_counts_from_the_arrival(clock):
    """What was waited is gone from the client's patience."""
    seen = []
    gate = Gate(1, max_wait=60.0, clock=clock)

    def app(environ, start_response):
        seen.append((environ[WAITED], environ[DEADLINE]))
        return []

    class Waited:  # a gate in which every request has waited 2 s
        leave = gate.leave

        @staticmethod
        def take():
            slot = gate.enter()
            slot.place.waited = 2.0
            return slot

    holding(app, Waited, None, None, CLIENT_TIMEOUT)({}, None)
    assert seen == [(2.0, clock.now - 2.0 + CLIENT_TIMEOUT)]


def test_a_refused_request_never_reaches_the_app(gate, hold):
    slots = [gate.enter()]
    gate.drain()
    started = []

    def app(environ, start_response):
        raise AssertionError("the app has run")

    assert hold(app, {}, lambda *said: started.append(said)) == [b"refused"]
    assert started == [("503 Service Unavailable", [("X-Reason", Reason.DRAINING.value)])]
    gate.leave(slots.pop())
    gate.draining = False
