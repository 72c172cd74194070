from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import sys
import threading
from types import SimpleNamespace

import pytest

from wsgi_busyguard import Load
from wsgi_busyguard._support.unpatched import original
from wsgi_busyguard.adapters import acceptqueue
from wsgi_busyguard.adapters.acceptqueue import AcceptQueueAdapter, in_the_kernel, waiting

BACKLOG = 3

# What may be taken in by the limit of the three, as Linux counts.
FULL = BACKLOG + 1


class Door:
    """A listener, and clients that come to it and are not let in."""

    def __init__(self, family, address):
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind(address)
        self.listener.listen(BACKLOG)
        self.clients = []

    def knock(self):
        client = socket.socket(self.listener.family, socket.SOCK_STREAM)
        client.setblocking(False)
        self.clients.append(client)
        assert client.connect_ex(self.listener.getsockname()) in (
            *(0, errno.EINPROGRESS, errno.EAGAIN),
        )

    def close(self):
        for open_one in [self.listener, *self.clients]:
            open_one.close()


@pytest.fixture(params=["IPv4", "IPv6", "unix", "abstract"])
def door(request, tmp_path):
    door = {
        "IPv4": lambda: Door(socket.AF_INET, ("127.0.0.1", 0)),
        "IPv6": lambda: Door(socket.AF_INET6, ("::1", 0)),
        "unix": lambda: Door(socket.AF_UNIX, str(tmp_path / "s")),
        "abstract": lambda: Door(socket.AF_UNIX, ""),
    }[request.param]()
    yield door
    door.close()


def test_nobody_waits_at_first(door):
    assert waiting(door.listener) == 0


def test_each_who_comes_waits_until_he_is_accepted(door, until):
    for come in range(1, FULL + 1):
        door.knock()
        until(lambda come=come: waiting(door.listener) == come)
    for left in reversed(range(FULL)):
        accepted, _ = door.listener.accept()
        door.clients.append(accepted)
        assert waiting(door.listener) == left


def test_at_the_limit_no_more_are_counted_than_have_got_in(door, until):
    for _ in range(FULL + 3):
        door.knock()
    until(lambda: waiting(door.listener) == FULL)
    assert {waiting(door.listener) for _ in range(100)} == {FULL}


def test_a_closed_listener_has_no_queue_that_can_be_known(door):
    door.listener.close()
    assert waiting(door.listener) is None


def test_a_socket_that_does_not_listen_has_none_either(door, until):
    door.knock()
    until(lambda: waiting(door.listener) == 1)
    accepted, _ = door.listener.accept()
    door.clients.append(accepted)
    assert waiting(accepted) is None
    assert waiting(door.clients[0]) is None
    with socket.socket(door.listener.family, socket.SOCK_STREAM) as fresh:
        assert waiting(fresh) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_socket_without_connections_has_none(family):
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        assert waiting(datagrams) is None


def test_another_family_has_none():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        assert waiting(kernel) is None


def test_elsewhere_than_on_linux_nobody_knows(door, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert waiting(door.listener) is None


def test_a_thousand_looks_leave_no_descriptor_behind(door):
    before = os.listdir("/proc/self/fd")
    assert {waiting(door.listener) for _ in range(1000)} == {0}
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_it_can_be_asked_from_many_threads_at_once(door, start, until):
    door.knock()
    until(lambda: waiting(door.listener) == 1)
    seen = []
    for _ in range(8):
        start(lambda: seen.extend(waiting(door.listener) for _ in range(200)))
    until(lambda: len(seen) == 1600)
    assert set(seen) == {1}


class Kernel:
    """Answers what it is told to in the place of a netlink socket."""

    answer: bytes | OSError = b""

    def __init__(self, *_):
        self.blocking = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def setblocking(self, blocking):
        self.blocking = blocking

    def send(self, message):
        assert len(message) == struct.unpack_from("=I", message)[0]
        self.message = message

    def recv(self, size):
        assert not self.blocking
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(acceptqueue, "original", lambda module, name: Kernel)
    return Kernel


@pytest.fixture
def unix(tmp_path):
    door = Door(socket.AF_UNIX, str(tmp_path / "s"))
    yield door.listener
    door.close()


def said(sock, *attributes, kind=20, state=10, family=socket.AF_UNIX, inode=None):
    inode = os.fstat(sock.fileno()).st_ino if inode is None else inode
    body = struct.pack("=BBBBIII", family, 1, state, 0, inode, 7, 7) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


LENGTH = attribute(4, struct.pack("=II", 17, 128))


def test_the_length_is_found_among_other_attributes(unix, kernel):
    kernel.answer = said(unix, attribute(0, b"/a/path"), attribute(6, b"\0"), LENGTH)
    assert waiting(unix) == 17


@pytest.mark.parametrize(
    "wrong",
    [
        lambda unix: b"",
        lambda unix: said(unix)[:20],
        lambda unix: said(unix),
        lambda unix: said(unix, attribute(0, b"/a/path")),
        lambda unix: said(unix, struct.pack("=HH", 0, 0) * 3),
        lambda unix: said(unix, LENGTH)[:-6],
        lambda unix: said(unix, LENGTH, kind=2),
        lambda unix: said(unix, LENGTH, state=1),
        lambda unix: said(unix, LENGTH, family=socket.AF_INET),
        lambda unix: said(unix, LENGTH, inode=1),
        lambda unix: BlockingIOError("no answer"),
        lambda unix: PermissionError("not here"),
    ],
    ids=[
        *("nothing", "cut off", "no attribute", "another attribute", "attributes of no length"),
        *("length cut off", "an error", "not listening", "another family", "another socket"),
        *("no answer", "forbidden"),
    ],
)
def test_an_answer_that_does_not_say_is_unknown(unix, kernel, wrong):
    kernel.answer = wrong(unix)
    assert waiting(unix) is None


# The adapter


def test_the_adapter_adds_up_its_listeners(until, tmp_path):
    doors = [Door(socket.AF_INET, ("127.0.0.1", 0)), Door(socket.AF_UNIX, str(tmp_path / "s"))]
    try:
        adapter = AcceptQueueAdapter([door.listener for door in doors], 5, lambda: 4)
        assert adapter.read() == Load(0, 4, 5)
        for door in (doors[0], doors[1], doors[1]):
            door.knock()
        until(lambda: adapter.read() == Load(3, 4, 5))
        doors[0].listener.close()
        assert adapter.read() == Load(2, 4, 5)
        doors[1].listener.close()
        assert adapter.read() is None
    finally:
        for door in doors:
            door.close()


def test_the_adapter_needs_neither_a_capacity_nor_a_count(door):
    assert AcceptQueueAdapter(iter([door.listener])).read() == Load(0, 0, None)
    assert AcceptQueueAdapter([]).read() is None


def test_the_adapter_says_what_it_is(door):
    assert repr(AcceptQueueAdapter([door.listener])) == "<AcceptQueueAdapter of 1 listeners>"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([3],), TypeError, "listeners must be listening sockets, not 3"),
        (([], 0), ValueError, "capacity must be at least 1, not 0"),
        (([], 2.0), TypeError, "capacity must be a whole number, not 2.0"),
        (([], 2, 7), TypeError, "active must be callable and return a number, not 7"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        AcceptQueueAdapter(*arguments)


# Where gevent has been


def test_what_nobody_has_patched_is_itself():
    assert original("socket", "socket") is socket.socket
    assert original("threading", "Lock") is threading.Lock


def test_a_gevent_that_is_being_imported_is_no_obstacle(monkeypatch):
    monkeypatch.setitem(sys.modules, "gevent.monkey", object())
    assert original("socket", "socket") is socket.socket


@pytest.mark.slow
def test_under_gevent_a_thread_of_no_hub_can_ask(python, tmp_path):
    """Patched sockets would make a hub in that thread, and wait in it."""
    said = python(
        """
        import sys
        from socket import socket as stock
        from gevent import monkey
        monkey.patch_all()
        import socket
        from gevent._hub_local import get_hub_if_exists
        from wsgi_busyguard.adapters.acceptqueue import waiting
        from wsgi_busyguard._support.unpatched import original

        assert socket.socket is not stock
        assert original("socket", "socket") is stock
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[1])
        listener.listen(3)
        client = socket.socket(socket.AF_UNIX)
        client.connect(sys.argv[1])
        seen, hubs = [], []
        def ask():
            try:
                seen.append(waiting(listener))
                hubs.append(get_hub_if_exists())
            finally:
                done.release()
        native = original("_thread", "start_new_thread")
        done = original("_thread", "allocate_lock")()
        done.acquire()
        native(ask, ())
        done.acquire()
        seen.append(waiting(listener))
        print(seen, hubs)
        client.close()
        listener.close()
        """,
        str(tmp_path / "s"),
    )
    assert said == "[1, 1] [None]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_that_somebody_waits_is_known_though_no_descriptor_is_left_to_ask_with(door):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def waiting_without():
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))  # what is open stays open
        try:
            return waiting(door.listener)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert waiting_without() == 0
    door.knock()
    assert waiting_without() == 1
    door.listener.accept()[0].close()
    assert waiting_without() == 0


def test_where_nobody_waits_any_more_nothing_is_known_and_nothing_raised():
    """gunicorn's listeners have no socket once a worker that stops has closed them."""
    closed = SimpleNamespace(sock=None)
    assert in_the_kernel([closed]) is None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert in_the_kernel([closed, SimpleNamespace(sock=listener)]) == 0
