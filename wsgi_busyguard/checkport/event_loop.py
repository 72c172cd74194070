"""One thread for every peer of the check port and of the agent port.

What is promised
    A check is answered while every other thread is stuck, and no peer holds up another: whoever
    is silent, slow or endless has a deadline, and the oldest makes room when there are too many.

Why that holds
    The process may fork workers all the time, and gevent may have patched its modules. So while
    it runs, the thread only accepts, receives, has a port write the answer, and sends. It takes
    no lock of its own, writes no log and imports nothing, for a child that is forked meanwhile
    would have the lock held for ever; its sockets and its thread are real ones.

The states of a peer
    Heard until its request is whole; answered, and sent what is left; fed, if its answer goes on
    (back to sent at each piece); lingering, until it has closed or its time is up, since a socket
    closed with something unread in it is reset. In each it has a deadline, and then it is
    forgotten.

Who may call from where
    start() and stop() from any thread, stop() also from a listener that the loop calls. All else
    runs in the loop's thread. In a child there is nothing of it but sockets to close.
"""

from __future__ import annotations

import _socket
import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from .._support.forks import Stage, after_fork
from .._support.socket_calls import system_calls
from .._support.unpatched import busy_threads, original
from .connection import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .ports import Port

# The oldest makes room for one more.
MOST_PEERS = 256

# Seconds in which a peer has to take its answer; then, seconds in which it may go on talking. A
# socket closed with something unread in it resets the connection, and the answer could be lost.
LINGER_SECONDS = 1.0

# Seconds between two pieces of an answer that goes on, and how many such answers there are at the
# most: each is a page that somebody looks at.
FEED_SECONDS = 1
LOOK_SECONDS = 1.0  # likewise for what a port does when nobody asks
MOST_FED = 32

# A peer may talk on for so many bytes; more is no request's body but somebody's game.
MOST_DRAINED = 1 << 20

# For so long one who has just connected is expected to ask.
FIRST_BYTE_SECONDS = 0.1

# Seconds until accepting is tried again when no file descriptor is left.
ACCEPT_RETRY_SECONDS = 0.02


class Loop:
    """Attends to the peers of these ports, none of which can hold up another.

    :ivar failures: how many peers were given up on because of a mistake here.
    :ivar failure: the last such mistake. Nothing is logged, see above.

    In a child process there is nothing of it: the child closes its copies of the sockets, so that
    a port whose process has died does not go on accepting.
    """

    def __init__(self, *ports: Port) -> None:
        for port in ports:
            if port.loop is not None:
                raise RuntimeError(f"{port!r} is in a loop already: make a new one")
        self._calls = system_calls()
        self.failures = 0
        self.failure: BaseException | None = None
        self._poll = original("select", "poll")()
        self._pause = original("select", "poll")()  # looks out for nothing
        self._identity = original("_thread", "get_ident")
        self._launch = original("_thread", "start_new_thread")
        # Nobody else has this lock: it is how stop() waits for the thread.
        self._running = original("_thread", "allocate_lock")()
        self._thread: int | None = None
        self._stopping = False
        self._peers: dict[int, Peer] = {}
        self._resume: float | None = None  # when to accept again
        self._every = [port.every for port in ports if port.every is not None]
        self._due = time.monotonic() if self._every else None
        self._stopper, self._stopped = _socket.socketpair()
        self._poll.register(self._stopped.fileno(), select.POLLIN)
        self._ports = {port.listener.fileno(): port for port in ports}
        for descriptor, port in self._ports.items():
            port.loop = self
            self._poll.register(descriptor, select.POLLIN)
        after_fork(Stage.OWN, self._after_fork)

    def start(self) -> Loop:
        """Begin to answer, on a thread of its own, and return itself."""
        if self._thread is not None or self._stopping:
            raise RuntimeError("expected a loop that was neither started nor stopped: make one")
        self._running.acquire()
        try:
            self._thread = self._launch(self._serve, ())
        except BaseException:
            self._running.release()
            raise
        return self

    @property
    def full(self) -> bool:
        """Whether no more answers that go on can be borne. In the loop's thread."""
        return sum(peer.feed is not None for peer in self._peers.values()) >= MOST_FED

    def stop(self) -> None:
        """Stop listening, and wait for the thread; any peer that is there is closed."""
        started, self._stopping = self._thread is not None, True
        if not started:
            self._close()
            return
        with suppress(OSError):  # stopped before
            self._calls.send(self._stopper, b"\0")
        if self._identity() != self._thread:  # else a listener of the monitor's stops it
            self._running.acquire()
            self._running.release()

    def _serve(self) -> None:
        try:
            self._thread = self._identity()  # start() may not have noted it yet
            busy_threads[self._thread] = self._launch
            while not self._stopping:
                try:
                    self._turn()
                except Exception as error:
                    self._note(error)
                    self._pause.poll(ACCEPT_RETRY_SECONDS * 1000)
        finally:
            busy_threads.pop(self._identity(), None)
            self._close()
            self._running.release()

    def _turn(self) -> None:
        for descriptor, _ in self._poll.poll(self._timeout()):
            port = self._ports.get(descriptor)
            if port is not None:
                self._accept(port)
                continue
            peer = self._peers.get(descriptor)
            if peer is not None:  # else it has just made room, or this is stop()
                self._attend(peer)
        now = time.monotonic()
        if self._due is not None and self._due <= now:
            self._due = now + LOOK_SECONDS
            self._look(now)
        for peer in [peer for peer in self._peers.values() if peer.deadline <= now]:
            self._attend(peer, late=True)
        if self._resume is not None and self._resume <= now:
            self._resume = None
            self._look_out(select.POLLIN)

    def _timeout(self) -> float | None:
        """Return the milliseconds until the next deadline."""
        deadlines = [peer.deadline for peer in self._peers.values()]
        deadlines += [due for due in (self._resume, self._due) if due is not None]
        return max(0.0, min(deadlines) - time.monotonic()) * 1000 if deadlines else None

    def _look(self, now: float) -> None:
        """Have the ports do what they do every second."""
        for every in self._every:
            try:
                every(now)
            except Exception as error:
                self._note(error)

    def _accept(self, port: Port) -> None:
        try:
            connection, host = self._calls.accept(port.listener)
        except (BlockingIOError, ConnectionError, InterruptedError):
            return  # it has left
        except OSError:  # no file descriptor is left
            if self._made_room():
                return  # and asked again: the port is readable still
            self._resume = time.monotonic() + ACCEPT_RETRY_SECONDS
            self._look_out(0)
            return
        if len(self._peers) >= MOST_PEERS:
            self._forget(next(iter(self._peers.values())))
        descriptor = connection.fileno()
        peer = Peer(port, connection, host, time.monotonic() + port.patience)
        self._peers[descriptor] = peer
        self._attend(peer)  # mostly it has sent it all by now
        if not peer.watched and descriptor in self._peers:
            self._watch(peer, select.POLLIN)

    def _made_room(self) -> bool:
        """Let the oldest peer go, for one that cannot be accepted; return whether there was one.

        First who is silent, or talks on though it has its answer; then who is slow to take that;
        last who is shown the figures again and again. Not who has just connected and is about to
        ask: it is tried again to accept.
        """
        since = time.monotonic() - FIRST_BYTE_SECONDS
        peers = [
            peer
            for peer in self._peers.values()
            if peer.answered or peer.deadline - peer.port.patience <= since
        ]
        oldest = min(peers, key=_claim, default=None)  # of those alike the first
        if oldest is not None:
            self._forget(oldest)
        return oldest is not None

    def _attend(self, peer: Peer, late: bool = False) -> None:
        """See to one peer; whatever goes wrong is the end of that one alone."""
        try:
            if late and peer.answered and peer.feed is not None and not peer.rest:
                self._feed(peer, peer.feed)
            elif late and peer.answered:
                self._forget(peer)
            elif late:
                self._hear(peer, late=True)
            elif peer.rest:
                self._send(peer)
            else:
                self._receive(peer)
        except BlockingIOError:
            pass  # nothing yet, or the event was for whoever had this descriptor before
        except OSError:
            self._forget(peer)
        except Exception as error:
            self._note(error)
            self._forget(peer)

    def _receive(self, peer: Peer) -> None:
        data = self._calls.receive(peer.connection)
        peer.ended = not data
        if not peer.answered:
            peer.received += data
            self._hear(peer)
            return
        peer.drained += len(data)
        if peer.ended or peer.drained > MOST_DRAINED:
            self._forget(peer)

    def _hear(self, peer: Peer, late: bool = False) -> None:
        answer = peer.port.heard(peer, late)
        if answer is None and not (late or peer.ended):
            return
        if not answer:
            self._forget(peer)
            return
        peer.answered = True
        peer.rest = answer
        peer.deadline = time.monotonic() + LINGER_SECONDS
        self._send(peer)

    def _feed(self, peer: Peer, feed: Callable[[], bytes]) -> None:
        """Send the next piece of an answer that goes on; who does not take it is given up on."""
        peer.rest = feed()
        peer.deadline = time.monotonic() + LINGER_SECONDS
        self._send(peer)

    def _send(self, peer: Peer) -> None:
        try:
            sent = self._calls.send(peer.connection, peer.rest)
        except BlockingIOError:
            sent = 0
        peer.rest = peer.rest[sent:]
        if peer.rest:
            self._watch(peer, select.POLLOUT)
            return
        if peer.feed is not None:
            # All at the same moments, so that what is made for one serves all.
            peer.deadline = (time.monotonic() // FEED_SECONDS + 1) * FEED_SECONDS
            self._watch(peer, select.POLLIN)
            return
        peer.port.answered(peer)
        if peer.ended or not peer.lingers:
            self._forget(peer)
            return
        self._calls.shut(peer.connection, socket.SHUT_WR)
        peer.deadline = time.monotonic() + LINGER_SECONDS
        self._watch(peer, select.POLLIN)

    def _watch(self, peer: Peer, events: int) -> None:
        if peer.watched != events:
            peer.watched = events
            self._poll.register(peer.connection.fileno(), events)

    def _look_out(self, events: int) -> None:
        for descriptor in self._ports:
            self._poll.modify(descriptor, events)

    def _forget(self, peer: Peer) -> None:
        descriptor = peer.connection.fileno()
        if descriptor not in self._peers:
            return
        if peer.watched:
            self._poll.unregister(descriptor)
        self._end(peer.connection)
        del self._peers[descriptor]  # last: a child that is forked meanwhile has to know of it

    def _note(self, error: BaseException) -> None:
        self.failures += 1
        self.failure = error.with_traceback(None)  # which would keep the peer

    def _close(self) -> None:
        for connection in self._sockets():
            self._end(connection)
        self._peers.clear()

    def _after_fork(self) -> None:
        """Let go of everything, in a child process, where the thread is not."""
        self._stopping = True
        self._thread = None
        for connection in self._sockets():
            with suppress(OSError):
                connection.close()  # alone: to shut it down would end the parent's too
        self._peers.clear()

    def _end(self, connection: _socket.socket) -> None:
        """Close a connection for all who hold it: a child forked just now may have a copy."""
        with suppress(OSError):
            self._calls.shut(connection, socket.SHUT_RDWR)
        with suppress(OSError):
            self._calls.close(connection)

    def _sockets(self) -> Iterator[_socket.socket]:
        yield from [port.listener for port in self._ports.values()]
        yield from [peer.connection for peer in self._peers.values()]
        yield from (self._stopper, self._stopped)


def _claim(peer: Peer) -> tuple[bool, bool]:
    return peer.feed is not None, bool(peer.rest)
