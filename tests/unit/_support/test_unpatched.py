"""What stays as it is when gevent puts its own in the place of the standard library's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import DEADLINE, ROOT, WARNINGS

from wsgi_busyguard._support import unpatched as native
from wsgi_busyguard._support.listener import listening
from wsgi_busyguard._support.listening_sockets import listens
from wsgi_busyguard._support.socket_calls import Plain
from wsgi_busyguard._support.unpatched import Bell
from wsgi_busyguard.adapters.front.sockets import drain
from wsgi_busyguard.adapters.front.waiting_sockets import taken_over
from wsgi_busyguard.adapters.readers.prefork import Listeners
from wsgi_busyguard.adapters.unread_body import UnreadBodyReader


def test_a_ring_is_heard_once_before_the_wait_or_in_it():
    bell = Bell()
    assert not bell.wait(0.001)
    bell.ring()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0.001)
    ringer = threading.Timer(0.05, bell.ring)
    ringer.start()
    assert bell.wait(DEADLINE)
    ringer.join()


# As in a worker of an app that is preloaded: there the threads are begun at the fork, and gevent
# patches after it.
BEATS = """
import threading, time
from wsgi_busyguard import Board, Load, Monitor
from wsgi_busyguard.board.publisher import Publisher

class Adapter:
    def __init__(self):
        self.hubs = []

    def read(self):
        hub = None if patched is None else patched()
        if threading.get_ident() != main:
            self.hubs.append(hub)
        return Load(0, 0, 1)

patched, main = None, threading.get_ident()
own_sleep = time.sleep
{begin}
adapter.hubs.clear()
from gevent import monkey
monkey.patch_all()
from gevent._hub_local import get_hub_if_exists as patched
until = time.monotonic() + 20
while len(adapter.hubs) < 4 and time.monotonic() < until:
    own_sleep(0.01)
print(len(adapter.hubs) >= 4, set(adapter.hubs))
"""
BEGIN = {
    "publisher": "adapter = Adapter(); publisher = Publisher(Board(), adapter); publisher.join()\n"
    "publisher.start()",
    "monitor": "adapter = Adapter(); monitor = Monitor(adapter, interval=0.1)\n"
    "monitor.on_busy(print)",
}


@pytest.mark.slow
@pytest.mark.parametrize("who", BEGIN)
def test_a_thread_that_was_begun_before_gevent_patched_brings_up_no_hub(who):
    code = BEATS.format(begin=BEGIN[who])
    command = [sys.executable, *WARNINGS, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == "True {None}\n"


# Threads


def test_a_thread_that_cannot_be_started_at_the_end_of_the_process_is_done_without():
    class Thread(threading.Thread):
        def start(self):
            raise RuntimeError("can't create new thread at interpreter shutdown")

    native.begin(Thread())


def test_one_that_cannot_be_started_before_is_a_mistake():
    class Thread(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError):
        native.begin(Thread())


def test_what_cannot_be_done_elsewhere_is_not_done():
    """Not here either: this thread must not wait."""

    def start(work, arguments):
        raise RuntimeError("can't start new thread")

    done = []
    native.busy_threads[threading.get_ident()] = start
    try:
        native.elsewhere(done.append, 1)
    finally:
        del native.busy_threads[threading.get_ident()]
    assert not done


@pytest.fixture
def server():
    """A socket that listens and waits, made before somebody sets a default timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(None)
        socket.setdefaulttimeout(DEADLINE)
        try:
            yield server
        finally:
            socket.setdefaulttimeout(None)


@pytest.fixture
def ends(server):
    """Both ends of a connection, which wait; the first is a server's."""
    theirs = socket.create_connection(server.getsockname())
    ours, _ = server.accept()
    with theirs, ours:
        ours.settimeout(None)
        yield ours, theirs


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")


@only_linux
def test_who_looks_at_a_listener_leaves_it_as_it_is_whatever_the_default_timeout(server):
    """Whoever else has it takes it for one that waits."""
    assert listens()
    assert Listeners([server.fileno()]).waiting() == 0
    assert os.get_blocking(server.fileno())


@only_linux
def test_whose_body_is_read_off_still_waits_whatever_the_default_timeout(ends):
    ours, theirs = ends
    theirs.sendall(b"0123456789")
    body = SimpleNamespace(read=ours.recv)
    UnreadBodyReader()({"wsgi.input": body, "CONTENT_LENGTH": "10", "gunicorn.socket": ours})
    assert os.get_blocking(ours.fileno())


@only_linux
def test_who_sees_a_connection_off_waits_for_nobody_whatever_the_default_timeout(ends):
    own = taken_over(ends[0])
    with contextlib.closing(own):
        begins = time.monotonic()
        assert not drain(own)
        assert time.monotonic() - begins < DEADLINE / 4


@only_linux
def test_the_loop_of_the_ports_waits_for_nobody_whatever_the_default_timeout(server):
    listener = listening("127.0.0.1:0")
    accepted = None
    try:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = Plain().accept(listener)
            begins = time.monotonic()
            with pytest.raises(BlockingIOError):
                Plain().receive(accepted)
            assert time.monotonic() - begins < DEADLINE / 4
    finally:
        if accepted is not None:
            accepted.close()
        listener.close()
