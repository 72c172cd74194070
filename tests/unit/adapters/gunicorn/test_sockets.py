"""The parts of the guarded gunicorn workers that need no gunicorn to run."""

from __future__ import annotations

import math
import os
import re
import selectors
import socket
import struct
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import Load
from wsgi_busyguard.adapters.executor import QueueFull
from wsgi_busyguard.adapters.front import waiting_sockets
from wsgi_busyguard.adapters.front.descriptors import SPARE_CONNECTIONS
from wsgi_busyguard.adapters.front.sockets import (
    PEEK_BYTES,
    cut_short,
    disconnected,
    drain,
    peek,
    send_last,
    wake_beyond,
)
from wsgi_busyguard.adapters.front.waiting_sockets import (
    CLOSE_LINGER_SECONDS,
    FIRST_BYTE_SECONDS,
    MOST_LINGERING_SOCKETS,
    LingeringSockets,
    WaitingSockets,
    taken_over,
)
from wsgi_busyguard.adapters.gunicorn.balance import (
    ALONE_SECONDS,
    DOUBT_SECONDS,
    LOOK_SECONDS,
    PATIENCE_SECONDS,
    Balance,
    is_sibling,
)
from wsgi_busyguard.adapters.gunicorn.known_names import KNOWN_PARAMETERS, moved
from wsgi_busyguard.adapters.gunicorn.options import OPTIONS, read_options
from wsgi_busyguard.adapters.gunicorn.partial_heads import unfinished_hello
from wsgi_busyguard.adapters.gunicorn.pool import ConnectionPool, queue_bound
from wsgi_busyguard.options import GuardOptions

DEADLINE = 20.0


@pytest.fixture
def pair():
    """Makes the two ends of a TCP connection: ours, which does not block, and the peer's."""
    ends = []

    def pair():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname(), DEADLINE)
            ours, _ = listener.accept()
        ours.setblocking(False)
        ends.extend([ours, peer])
        return ours, peer

    yield pair
    for end in ends:
        end.close()


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# peeked(), gone(), send_last(), drained()


def test_a_peek_shows_what_came_and_leaves_it(pair, until):
    ours, peer = pair()
    assert peek(ours) is None
    peer.sendall(b"some")
    until(lambda: peek(ours) == b"some")
    peer.sendall(b" more" * PEEK_BYTES)
    until(lambda: len(peek(ours)) == PEEK_BYTES)
    assert ours.recv(4) == b"some"


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_peek_at_one_who_left_is_empty(pair, until, leave):
    ours, peer = pair()
    leave(peer)
    until(lambda: peek(ours) == b"")
    ours.close()
    assert peek(ours) == b""


def test_gone_are_those_who_left_though_their_requests_are_unread(pair, until):
    stays, leaves, resets, closed, half = (pair() for _ in range(5))
    for _, peer in (stays, leaves, half):
        peer.sendall(b"a request")
    leaves[1].close()
    reset(resets[1])
    half[1].shutdown(socket.SHUT_WR)
    closed[0].close()
    ours = [end for end, _ in (stays, leaves, resets, closed, half)]
    until(lambda: disconnected(ours) == {end for end, _ in (leaves, resets, closed, half)})
    assert disconnected([]) == set()


def test_what_is_sent_arrives_and_nothing_after_it(pair):
    ours, peer = pair()
    send_last(ours, b"all that is said")
    send_last(ours, b"and no more")
    assert peer.recv(100) == b"all that is said"
    assert peer.recv(100) == b""


def test_nothing_waits_even_if_the_socket_would(pair):
    ours, peer = pair()
    ours.setblocking(True)
    assert peek(ours) is None
    assert not drain(ours)
    send_last(ours, b"b" * 50_000_000)  # more than a buffer takes
    assert peer.recv(100)


def test_sending_to_one_who_left_is_no_error(pair, until):
    ours, peer = pair()
    reset(peer)
    until(lambda: peek(ours) == b"")
    send_last(ours, b"nobody hears")
    ours.close()
    send_last(ours, b"nobody hears")


def test_draining_throws_away_and_tells_the_end(pair, until):
    ours, peer = pair()
    assert not drain(ours)
    peer.sendall(b"b" * 100_000)
    until(lambda: peek(ours))
    assert not drain(ours)
    peer.close()
    until(lambda: drain(ours))
    ours.close()
    assert drain(ours)


def test_draining_ends_though_somebody_pours():
    """Whoever is in the loop that accepts must come back to it."""
    endless = SimpleNamespace(recv=lambda size, flags: b"b" * size, gettimeout=lambda: None)
    assert not drain(endless)


def test_what_is_taken_over_is_closed_for_whoever_had_it(pair):
    ours, peer = pair()
    number = ours.fileno()
    own = taken_over(ours)
    assert (own.fileno(), ours.fileno()) == (number, -1)
    ours.close()
    own.sendall(b"still open")
    assert peer.recv(100) == b"still open"
    own.close()


def test_what_is_closed_cannot_be_taken_over_though_somebody_else_has_its_number(pair):
    ours, peer = pair()
    number = ours.fileno()
    ours.close()
    os.dup2(peer.fileno(), number)  # as the next connection would
    try:
        assert taken_over(ours) is None
        assert os.fstat(number) == os.fstat(peer.fileno())
    finally:
        os.close(number)


def test_a_socket_is_readable_when_more_has_come_than_was_seen(pair, until):
    ours, peer = pair()
    peer.sendall(b"seen")
    until(lambda: peek(ours) == b"seen")
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        assert wake_beyond(ours, 4)
        assert selector.select(0) == []
        peer.sendall(b"!")
        assert selector.select(DEADLINE)
        assert wake_beyond(ours, 5)
        peer.close()  # also when no more will come
        assert selector.select(DEADLINE)
    assert wake_beyond(ours, 0)
    ours.close()
    assert not wake_beyond(ours, 1)


def test_a_unix_socket_cannot_wait_for_more_than_a_byte():
    ours, peer = socket.socketpair()
    with ours, peer:
        assert wake_beyond(ours, 0)
        assert not wake_beyond(ours, 1)


def test_who_leaves_behind_the_rest_has_not_been_cut_short(pair, until):
    """Both may come between a look at the socket and the next one."""
    ours, peer = pair()
    peer.sendall(b"half")
    until(lambda: peek(ours) == b"half")
    assert not cut_short(ours, 4)
    peer.sendall(b" and half")
    peer.shutdown(socket.SHUT_WR)
    until(lambda: disconnected([ours]))
    assert not cut_short(ours, 4)
    assert cut_short(ours, 13)


def test_a_hello_is_unfinished_until_its_record_is_whole():
    hello = b"\x16\x03\x01\x00\x04abcd"
    assert [unfinished_hello(hello[:size]) for size in range(1, 10)] == [True] * 8 + [False]
    assert not unfinished_hello(hello + b"more")
    with pytest.raises(ValueError, match="expected a handshake"):
        unfinished_hello(b"GET / HTTP/1.1")


# Balance


class Others:
    """A board on which the other workers have these loads."""

    def __init__(self, *loads):
        self.loads = loads

    def awake(self):
        return dict(enumerate(self.loads))


def balance(clock, *loads):
    def sleep(seconds):
        clock.now += seconds

    return Balance(Others(*loads), lambda pid: pid != 7, lambda: clock.now, sleep)


def full(balance, waits=True, taken=4):
    return balance.leaves(taken, 4, lambda: waits)


IDLE, HALF, FULL = Load(0, 0, 4), Load(0, 2, 4), Load(0, 4, 4)


@pytest.mark.parametrize(
    ("taken", "others", "leaves"),
    [
        (3, [IDLE], False),
        (4, [IDLE], True),
        (4, [], False),
        (4, [FULL, HALF], True),
        (4, [FULL], False),
        (4, [Load(3, 4, 4)], False),
        (6, [Load(1, 4, 4)], True),
        (5, [Load(1, 4, 4)], False),
        (4, [Load(0, 7, 8)], True),
        (4, [Load(0, 8, 8)], False),
        (4, [Load(0, 0, None), Load(0, 0, 0)], False),
        (4, [FULL] * 7 + [IDLE], False),  # the eighth is none of the same master
        (4, [FULL] * 8 + [IDLE], True),
    ],
)
def test_who_is_full_leaves_a_connection_to_whoever_has_less_to_do(clock, taken, others, leaves):
    assert full(balance(clock, *others), taken=taken) is leaves


def test_a_sibling_is_another_child_of_the_same_parent():
    assert not is_sibling(os.getpid())
    assert not is_sibling(os.getppid())


def test_what_nobody_could_say_is_asked_again_and_what_is_known_is_kept_while_it_is_there(clock):
    answers, asked = [None, False, True], []
    board = Others(IDLE)

    def is_sibling(pid):
        asked.append(pid)
        return answers[len(asked) - 1]

    one = Balance(board, is_sibling, lambda: clock.now, lambda _: None)
    assert one.is_busier(4, 4)  # no descriptor was left to look
    for _ in range(2):
        assert not one.is_busier(4, 4)
        clock.now += ALONE_SECONDS
    board.loads = []  # the process ends, and its number is another worker's
    assert not one.is_busier(4, 4)
    clock.now += ALONE_SECONDS
    board.loads = [IDLE]
    assert one.is_busier(4, 4)
    assert asked == [0, 0, 0]


def test_where_nobody_else_is_nobody_is_looked_for_at_each_connection(clock):
    board = Others()
    one = Balance(board, lambda pid: True, lambda: clock.now, lambda _: None)
    assert not one.is_busier(4, 4)
    board.loads = [IDLE]
    assert not one.is_busier(4, 4)
    clock.now += ALONE_SECONDS
    assert one.is_busier(4, 4)


def test_nobody_waits_for_ever_for_one_who_does_not_take_it(clock):
    begun, one = clock.now, balance(clock, IDLE)
    while full(one):
        assert clock.now - begun < PATIENCE_SECONDS + 3 * LOOK_SECONDS
    assert clock.now - begun > PATIENCE_SECONDS
    until = clock.now + DOUBT_SECONDS
    while clock.now < until - 2 * LOOK_SECONDS:
        assert not full(one)
        clock.now += LOOK_SECONDS
    clock.now = until
    assert full(one)


def test_one_who_takes_them_is_waited_for_again_and_again(clock):
    one = balance(clock, IDLE)
    for count in range(1000):
        assert full(one, waits=bool(count % 10))


# Waiting and Lingering


class Poller:
    """A selector that is told what is readable."""

    def __init__(self):
        self.registered = {}
        self.closed = False

    def register(self, sock, event, call):
        if self.closed:
            raise ValueError("I/O operation on closed epoll object")
        assert event == selectors.EVENT_READ
        assert sock not in self.registered
        self.registered[sock] = call

    def unregister(self, sock):
        del self.registered[sock]

    def readable(self, sock):
        self.registered[sock](sock)


class Sock:
    """A socket that has what ``came``; an empty one would block."""

    def __init__(self, *came):
        self.came = list(came)
        self.said = []
        self.closed = False

    def recv(self, size, flags):
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        if not self.came:
            raise BlockingIOError
        return self.came.pop(0)

    def gettimeout(self):
        return 0.0

    def send(self, data, flags):
        self.said.append(data)

    def shutdown(self, how):
        self.said.append(how)

    def close(self):
        self.closed = True


@pytest.fixture
def lingering_sockets(monkeypatch):
    """Has those who linger take over what is no real socket."""
    monkeypatch.setattr(waiting_sockets, "taken_over", lambda sock: None if sock.closed else sock)


@pytest.fixture
def poller():
    return Poller()


@pytest.fixture
def clock(monkeypatch):
    """Monotonic seconds that a test turns."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(waiting_sockets, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def over():
    return []


def test_one_who_can_be_read_is_told_of(poller, over):
    waiting, heard = WaitingSockets(poller, 3, over.append), []
    sock = Sock()
    waiting.add(sock, 5, "what came with it", heard.append)
    poller.readable(sock)
    assert (heard, over, len(waiting)) == (["what came with it"], [], 1)
    assert waiting.remove(sock) == "what came with it"
    assert waiting.remove(sock) is None
    assert (poller.registered, len(waiting)) == ({}, 0)


def test_those_whose_time_is_over_go(poller, clock, over):
    waiting = WaitingSockets(poller, 9, over.append)
    for name, seconds in (("long", 5), ("short", 1), ("longer", 6)):
        waiting.add(Sock(), seconds, name, print)
    waiting.expire()
    assert over == []
    clock.now += 5
    waiting.expire()
    assert over == ["long", "short"]
    waiting.expire(everyone=True)
    assert over == ["long", "short", "longer"]
    assert (poller.registered, len(waiting)) == ({}, 0)


def test_the_oldest_makes_room(poller, over):
    waiting = WaitingSockets(poller, 2, over.append)
    for name in "abcd":
        waiting.add(Sock(), 5, name, print)
    assert (over, len(waiting)) == (["a", "b"], 2)


def test_the_oldest_can_be_sent_away(poller, over):
    waiting = WaitingSockets(poller, 9, over.append)
    for name in "abc":
        waiting.add(Sock(), 5, name, print)
    assert waiting.shed(2) == 2
    assert (over, len(waiting)) == (["a", "b"], 1)
    assert waiting.shed(2) == 1
    assert waiting.shed(2) == 0
    assert waiting.shed(-1) == 0


def test_one_who_is_about_to_speak_is_not_sent_away_where_that_can_wait(poller, clock, over):
    waiting = WaitingSockets(poller, 9, over.append)
    waiting.add(Sock(), 5, "old", print)
    clock.now += 0.2
    waiting.add(Sock(), 5, "young", print)
    assert waiting.shed(2, also_young=False) == 1
    assert waiting.shed(2, also_young=False) == 0
    clock.now += 0.2
    assert waiting.shed(2, also_young=False) == 1
    assert over == ["old", "young"]


def test_one_who_has_begun_gets_time_and_keeps_its_place(poller, clock, over):
    waiting = WaitingSockets(poller, 2, over.append)
    first, second = Sock(), Sock()
    for name, sock in (("first", first), ("second", second)):
        waiting.add(sock, 5, name, print)
    clock.now += 4
    waiting.renew(first, 5)
    clock.now += 4
    waiting.expire()
    assert over == ["second"]
    assert (first in waiting, second in waiting) == (True, False)
    for name in ("third", "fourth"):
        waiting.add(Sock(), 5, name, print)
    assert over == ["second", "first"]


def test_those_who_came_just_now_are_known(poller, clock, over):
    waiting = WaitingSockets(poller, 9, over.append)
    waiting.add(Sock(), 5, "long ago", print)
    clock.now += FIRST_BYTE_SECONDS + 0.01
    waiting.add(Sock(), 5, "just now", print)
    assert waiting.young() == 1
    clock.now += FIRST_BYTE_SECONDS + 0.01
    assert waiting.young() == 0


def test_with_a_closed_poller_nobody_waits(poller, over):
    waiting = WaitingSockets(poller, 2, over.append)
    poller.closed = True
    with pytest.raises(ValueError, match="closed epoll"):
        waiting.add(Sock(), 5, "what", print)
    assert len(waiting) == 0


def test_one_who_has_closed_is_closed_at_once(lingering_sockets, poller):
    lingerers, sock = LingeringSockets(poller), Sock(b"rest of a body", b"")
    lingerers.close(sock)
    assert (sock.closed, len(lingerers)) == (True, 0)


def test_one_who_has_not_closed_is_waited_for(lingering_sockets, poller):
    lingerers, sock = LingeringSockets(poller), Sock(b"rest of a body")
    lingerers.close(sock)
    assert (sock.closed, len(lingerers)) == (False, 1)
    sock.came = [b"more"]
    poller.readable(sock)
    assert (sock.closed, sock.came) == (False, [])
    sock.came = [b""]
    poller.readable(sock)
    assert (sock.closed, len(lingerers), poller.registered) == (True, 0, {})


def test_one_who_never_closes_is_waited_for_so_long(lingering_sockets, poller, clock):
    lingerers, sock = LingeringSockets(poller), Sock()
    lingerers.close(sock)
    clock.now += CLOSE_LINGER_SECONDS - 0.1
    lingerers.expire()
    assert not sock.closed
    clock.now += 0.1
    lingerers.expire()
    assert (sock.closed, len(lingerers), poller.registered) == (True, 0, {})


def test_there_is_a_limit_to_those_who_linger(lingering_sockets, poller):
    lingerers, socks = (
        LingeringSockets(poller),
        [Sock() for _ in range(MOST_LINGERING_SOCKETS + 10)],
    )
    for sock in socks:
        lingerers.close(sock)
    assert len(lingerers) == MOST_LINGERING_SOCKETS
    assert [sock.closed for sock in socks[:11]] == [True] * 10 + [False]


def test_a_socket_that_is_closed_already_is_no_error(lingering_sockets, poller):
    """gunicorn closes some of its connections in the thread that served them."""
    lingerers, sock = LingeringSockets(poller), Sock()
    sock.close()
    lingerers.close(sock)
    assert len(lingerers) == 0


def test_with_a_closed_poller_nobody_lingers(lingering_sockets, poller):
    """Up to gunicorn 23 requests end after the poller when a worker stops."""
    lingerers, sock = LingeringSockets(poller), Sock()
    poller.closed = True
    lingerers.close(sock)
    assert (sock.closed, len(lingerers)) == (True, 0)


# ConnectionPool


def test_those_who_left_are_taken_out_of_the_queue(pair, until):
    pool = ConnectionPool(1, max_queue=2, max_wait=math.inf)
    go, ran = threading.Event(), []

    def handle(conn):
        assert go.wait(DEADLINE)
        ran.append(conn)

    ends = [pair() for _ in range(3)]
    conns = [SimpleNamespace(sock=ours) for ours, _ in ends]
    futures = [pool.submit(handle, conn) for conn in conns]
    until(futures[0].running)
    with pytest.raises(QueueFull):
        pool.submit(handle, SimpleNamespace(sock=None))
    ends[0][1].close()
    ends[1][1].close()
    until(lambda: len(disconnected(ours for ours, _ in ends)) == 2)
    pool.drop_the_gone()  # who is inside is served
    pool.drop_the_gone()
    assert pool.read()[:2] == (1, 1)
    go.set()
    pool.shutdown()
    assert ran == [conns[0], conns[2]]
    assert futures[1].cancelled()
    assert pool._connections == {}


# moved()


def worker_class(**changed):
    """Return a class with methods of the known parameters, some of them otherwise."""
    source = {name: min(ways) for name, ways in KNOWN_PARAMETERS.items()} | changed
    body = "\n".join(
        f"    def {name}({', '.join(('self', *parameters))}): pass"
        for name, parameters in source.items()
        if parameters is not None
    )
    names = {}
    exec(f"class Worker:\n{body or '    pass'}", names)
    return names["Worker"]


def test_a_worker_class_that_is_as_known_has_not_moved():
    assert moved(worker_class()) == []
    assert moved(worker_class(finish_request=("conn", "fs"))) == []
    assert moved(worker_class(murder_keepalived=("force",))) == []


@pytest.mark.parametrize("name", sorted(KNOWN_PARAMETERS))
def test_what_has_moved_is_named(name):
    assert moved(worker_class(**{name: ("other",)})) == [name]
    assert moved(worker_class(**{name: ("conn", "fs", "more")})) == [name]
    assert moved(worker_class(**{name: None})) == [name]


def test_what_cannot_be_looked_at_has_moved():
    strange = worker_class()
    strange.handle = "no function"
    assert moved(strange) == ["handle"]


# queue_bound()


@pytest.mark.parametrize(
    ("asked", "threads", "connections", "bound"),
    [
        (None, 4, 1000, 400),
        (None, 4, 20, 8),
        (None, 4, 4, 0),
        (math.inf, 4, 1000, 988),
        (math.inf, 4, 4, 0),
        (100, 4, 1000, 100),
        (0, 4, 4, 0),
        (8, 4, 20, 8),
    ],
)
def test_the_queue_is_as_long_as_asked_and_as_there_is_room(asked, threads, connections, bound):
    assert queue_bound(GuardOptions(max_queue=asked), threads, connections) == bound


def test_a_queue_without_room_is_a_mistake():
    with pytest.raises(ValueError, match="start gunicorn with --worker-connections 21 at least"):
        queue_bound(GuardOptions(max_queue=9), 4, 20)


@given(
    st.none() | st.just(math.inf) | st.integers(0, 2000),
    st.integers(1, 300),
    st.integers(1, 3000),
)
def test_a_worker_never_stops_accepting_for_its_queue(asked, threads, connections):
    try:
        bound = queue_bound(GuardOptions(max_queue=asked), threads, connections)
    except ValueError:
        assert asked > connections - threads - SPARE_CONNECTIONS
    else:
        assert bound == 0 or 0 < bound <= connections - threads - SPARE_CONNECTIONS


# read_options()


def test_nothing_said_are_the_defaults():
    assert read_options({}) == GuardOptions()
    assert read_options({"PATH": "/bin", "BUSYGUARD_CHECK": " "}) == GuardOptions()


def test_everything_can_be_said():
    texts = {
        "check": "127.0.0.1:8081",
        "agent": "8082",
        "board": "/run/board",
        "slots": "8",
        "max_queue": "32",
        "max_wait": "1.5",
        "client_timeout": "10",
        "ready": "exact",
        "patience": "3",
        "progress_timeout": "40",
        "stall_after": "20",
        "retry_after": "0",
        "check_root": "no",
        "ready_paths": "/a, /b",
        "live_paths": "/c",
        "push": "unix:/run/haproxy.sock#app/a",
    }
    more = OPTIONS.keys() - texts.keys()  # how each is read: see tests/unit/test_options.py
    assert {"refusal", "on_busy", "expose_load", "trust_queue_header"} <= more
    said = {f"BUSYGUARD_{name.upper()}": text for name, text in texts.items()}
    assert read_options(said) == GuardOptions(
        check="127.0.0.1:8081",
        agent="8082",
        board="/run/board",
        slots=8,
        max_queue=32,
        max_wait=1.5,
        client_timeout=10.0,
        progress_timeout=40.0,
        ready="exact",
        patience=3.0,
        stall_after=20.0,
        retry_after=0,
        check_root=False,
        ready_paths=("/a", "/b"),
        live_paths=("/c",),
        push=("unix:/run/haproxy.sock#app/a",),
    )


def test_no_bound_can_be_said():
    options = read_options({"BUSYGUARD_MAX_QUEUE": "inf", "BUSYGUARD_MAX_WAIT": "inf"})
    assert (options.max_queue, options.max_wait) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("CHECK", "nowhere", "expected HOST:PORT"),
        ("SLOTS", "0", "slots must be at least 1, not 0"),
        ("SLOTS", "two", "slots must be a whole number of at least 1"),
        ("MAX_QUEUE", "-1", "max_queue must be at least 0, not -1"),
        ("MAX_QUEUE", "1.5", "max_queue must be a whole number"),
        ("MAX_WAIT", "soon", "max_wait must be a number of seconds"),
        ("MAX_WAIT", "nan", "max_wait must be more than 0 seconds"),
        ("READY", "perhaps", "ready must be one of exact, damped, always"),
        ("CHECK_ROOT", "perhaps", "check_root must be one of 1, yes"),
        ("READY_PATHS", "healthz", "ready_paths must be paths that begin with '/'"),
        ("LIVE_PATHS", "/readyz", "'/readyz' cannot be both"),
        ("MAX_QEUE", "3", "BUSYGUARD_MAX_QEUE is not known; is BUSYGUARD_MAX_QUEUE meant?"),
        ("XYZ", "3", "BUSYGUARD_XYZ is not known; known are slots, max_queue"),
    ],
)
def test_what_cannot_be_meant_is_told_by_its_name(name, text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        read_options({f"BUSYGUARD_{name}": text})
    assert str(raised.value).startswith("BUSYGUARD_")


@pytest.mark.parametrize(
    "name",
    [
        *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_CHECKS", "PORT"),
        *("PORT_8081_TCP", "PORT_8081_TCP_ADDR", "AGENT_SERVICE_HOST", "AGENT_PORT"),
    ],
)
def test_a_service_called_busyguard_is_no_mistake(name):
    """Kubernetes tells every container of a namespace of its Services so."""
    assert read_options({f"BUSYGUARD_{name}": "tcp://10.0.0.1:8081"}) == GuardOptions()


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.text(max_size=12)))
def test_whatever_is_said_it_is_read_or_refused(said):
    told = None
    try:
        read_options({f"BUSYGUARD_{name.upper()}": text for name, text in said.items()})
    except ValueError as error:
        told = str(error)
    assert told is None or told.startswith("BUSYGUARD_")
