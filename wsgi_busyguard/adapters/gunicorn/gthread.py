"""Threaded workers: checks are answered, and requests refused, before a thread is taken.

What is queued in gunicorn's gthread worker is a connection, in the private queue of one worker's
executor. Here the executor counts and is bounded, and every connection is looked at on its way in.
Names of gunicorn's used here beside the stable ones: see :data:`~.known_names.KNOWN_PARAMETERS`.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gunicorn import __version__
from gunicorn.workers.gthread import TConn, ThreadWorker

from ..._support.listening_sockets import NO_DESCRIPTOR
from ..._support.log import unraised
from ...gate.gated_app import holding
from ...policy import Reason, limits
from ..executor.carriers import QueueFull, QueueTimeout
from ..front.base import nothing
from ..front.descriptors import PAUSE_SECONDS, SPARE_CONNECTIONS, most_connections
from ..front.last_connections import LINGER_SECONDS, pending
from ..front.sockets import BAD_REQUEST, PEEK_BYTES, cut_short, peek
from ..front.waiting_sockets import SILENCE_SECONDS, LingeringSockets, WaitingSockets
from .balance import Balance
from .known_names import moved, parameters_of
from .partial_heads import PartialHeads
from .pool import ClientGone, ConnectionPool, QueuedTooLong, pool_limits
from .replies import Replies
from .request_heads import read_ahead
from .worker import GuardedWorker, counting

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ...options import GuardOptions
    from ...policy import Limits


class GuardedThreads(GuardedWorker, ThreadWorker):
    """gunicorn's gthread worker with the guard in front of its threads."""

    @classmethod
    def without(cls, options: GuardOptions) -> dict[str, str]:
        """Return what has no effect."""
        return {"slots": "the queue is in front of the threads: --threads is that number"}

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Also see that this gunicorn is as it is known, and that the queue fits into it."""
        super().check_config(cfg, log)
        missing = moved(ThreadWorker)
        if missing:
            unraised(
                log.warning,
                "busyguard: in gunicorn %s %s is not as known; checks on the app's port wait for a"
                " thread and nothing is refused before one, while the check port works as ever",
                __version__,
                ", ".join(missing),
            )

    @classmethod
    def bounds(cls, cfg: Any, options: GuardOptions) -> Limits | None:
        """Return the limits of the gate in a worker, ``None`` where it does not bound it."""
        bounds = pool_limits(options, cfg)
        return None if moved(ThreadWorker) else bounds

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_front = not moved(ThreadWorker)
        plain = replace(self.options, refusal=None)  # that comes with the app, see guarded()
        self._replies = Replies(plain, self.cfg, lambda: self.monitor)
        # From 26.0 on connections are closed with patience, in the thread that should accept.
        self._patient = "graceful" in inspect.signature(TConn.close).parameters
        # Up to 23.0 gunicorn waits for a silent connection itself, and without end.
        self._endless = parameters_of(ThreadWorker, "accept") == ("server", "listener")
        self._refusers: dict[Any, Any] = {}  # what accepts by each listener

    def get_thread_pool(self) -> Any:
        """Return the pool, which counts and is bounded."""
        if not self._in_front:
            return super().get_thread_pool()
        options = self.options
        try:
            bounds = pool_limits(options, self.cfg)
        except ValueError as error:  # changed at a reload
            unraised(self.log.error, "busyguard: %s", error)
            bounds = limits(self.cfg.threads)
        self._pool = ConnectionPool(
            self.cfg.threads,
            most_queued=bounds.max_queue,
            **options.some("max_queue", "max_wait", "client_timeout"),
            **options.some("progress_timeout", "adaptive"),
            changed=lambda: self.publisher.post(),
            ticker=False,
        )
        self.gate = self._pool.gate
        return self._pool

    def queue(self) -> Any:
        """Return the pool; where the guard is not in front, a gate that counts in the app."""
        if self._in_front:
            # As many as there are file descriptors for; without one gunicorn's worker ends.
            most = self.cfg.worker_connections
            self.worker_connections = most_connections(most, self.cfg.threads + SPARE_CONNECTIONS)
            self._lingering = LingeringSockets(self.poller)
            # For each thread one may always be there who has connected and is about to speak.
            most = max(self.cfg.threads, self.worker_connections // 2)
            self._silent = WaitingSockets(self.poller, most, self._silent_too_long)
            kind = {"is_ssl": self.cfg.is_ssl, "is_proxied": self._replies.is_proxied}
            self._heads = PartialHeads(self._silent, self.enqueue_req, **kind)
            self._balance = Balance(self.host.board)
            return self._pool
        self._gate = counting(self.cfg.threads)
        self._gate.subscribe(lambda: self.publisher.post())
        return self._gate

    def work(self) -> tuple[Any, ...]:
        """Also let those go who have left, and refuse those who have waited too long."""
        if not self._in_front:
            return super().work()
        pool = self._pool
        return (pool.drop_the_gone, pool.expire, pool.cut_the_stalled, *super().work())

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the guarded app behind the stamps, for the queue is in front of both."""
        options, read_client = self.options, self.read_client
        self._replies = Replies(options, self.cfg, lambda: self.monitor)
        if self._in_front:
            return self._pool.stamped(
                super().guarded(app), self.monitor, options.timeout, read_client
            )
        held = holding(
            app, self._gate, self.monitor, self._replies.refused, options.timeout, read_client
        )
        return super().guarded(held)

    def accept(self, *arguments: Any) -> None:
        """Take a connection in, in a way that has it come by :meth:`enqueue_req` at once.

        Or leave it to other workers, if they have less to do.
        """
        if self._in_front:
            self._accept_one(*arguments)
        else:
            super().accept(*arguments)
            self.standing.moved()

    def _accept_one(self, *arguments: Any) -> None:
        listener = arguments[-1]
        if self._safely(self._left_to_others, listener):
            return
        arguments = (*arguments[:-1], self._refusing(listener))
        try:
            accept = self._accept_by_itself if self._endless else super().accept
            accept(*arguments)
            self.standing.moved()  # also if another worker was first
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                raise
            self._safely(self._make_room, 1)
            time.sleep(PAUSE_SECONDS)  # the app has them, perhaps; it is asked for again at once

    def _refusing(self, listener: Any) -> Any:
        if listener not in self._refusers:
            self._refusers[listener] = self._replies.refusing(listener, self._pool.gate)
        return self._refusers[listener]

    def _accept_by_itself(self, server: Any, listener: Any) -> None:
        try:
            sock, client = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker was first, or it left
            return
        self.nr_conns += 1
        self.enqueue_req(TConn(self.cfg, sock, client, server))

    def enqueue_req(self, conn: Any) -> None:
        """Answer a check, wait for one whose request is not there yet, refuse, or let in.

        Every connection with something to read comes by here, in the thread that accepts, before
        anything of it is parsed.
        """
        if not self._in_front:
            super().enqueue_req(conn)
        elif not self._safely(self._seen_to, conn):
            self._let_in(conn)

    @property
    def max_keepalived(self) -> int:
        """How many connections gunicorn keeps alive; it asks before each request.

        None while others have less to do: so the next request comes to whoever is free.
        """
        in_front = self._in_front and self._safely(self._keeps_too_many)
        return 0 if in_front else self._max_keepalived

    @max_keepalived.setter
    def max_keepalived(self, most: int) -> None:
        self._max_keepalived = most

    def handle(self, conn: Any) -> Any:
        """Serve a connection, in a thread of the pool, unless its client has left the queue."""
        if not self._in_front:
            return super().handle(conn)
        abandoned = self._safely(self._pool.look_again, conn)
        if abandoned is not None:
            raise abandoned
        return super().handle(conn)

    def handle_request(self, *arguments: Any) -> Any:
        """Serve a request, whose client has to get on with what it still sends."""
        if self._in_front:
            self._safely(self._pool.watch, *arguments)
        return super().handle_request(*arguments)

    def finish_request(self, *arguments: Any) -> None:
        """Refuse one who has waited too long, and see to the connection as ever."""
        future = arguments[-1]
        if self._in_front and not future.cancelled():
            error = future.exception()
            conn = arguments[0] if len(arguments) > 1 else future.conn
            if isinstance(error, (QueueTimeout, QueuedTooLong)):
                self._safely(self._tell, conn, error.reason)
                conn.close = nothing
            elif isinstance(error, ClientGone):  # gunicorn would reset what it has not read
                self._safely(self._lingering.close, conn.sock, b"")
                conn.close = nothing
        super().finish_request(*arguments)

    def murder_keepalived(self, *arguments: Any, **named: Any) -> None:
        """Also end those who have been silent, or have lingered, for too long, or are too many."""
        if self._in_front:
            self._safely(self._make_room)
        super().murder_keepalived(*arguments, **named)
        if self._in_front:
            self._safely(self._end_the_silent, bool(named.get("force")))
            self._safely(self._lingering.expire)

    def wait_for_and_dispatch_events(self, *arguments: Any, **named: Any) -> None:
        """Also come back in time for those who are silent, if the worker stops (24.1 and newer)."""
        if self._in_front and not self.alive and len(self._silent) and "timeout" in named:
            named["timeout"] = min(named["timeout"], LINGER_SECONDS / 5)
        super().wait_for_and_dispatch_events(*arguments, **named)

    def _left_to_others(self, listener: Any) -> bool:
        """Return whether the next connection is left in the kernel, for another worker."""
        if self.cfg.reuse_port or self.options.disabled:  # it is in this worker's own queue there
            return False
        load = self._pool.read()
        # Those who have just connected will ask here, too, though nobody counts them as yet.
        taken = load.queued + load.active + self._silent.young()
        return self._balance.leaves(taken, self._pool.gate.slots, partial(pending, listener))

    def _keeps_too_many(self) -> bool:
        """Return whether requests wait for this worker alone while another one has less to do."""
        load = self._pool.read()
        taken, waits = load.queued + load.active, load.queued > 0 and not self.options.disabled
        return waits and self._balance.is_busier(taken, self._pool.gate.slots)

    def _seen_to(self, conn: Any) -> bool:
        """Answer a check, wait for the rest of a head or drop one; return whether that was it."""
        fresh = conn.parser is None
        if self.cfg.is_ssl and not fresh:  # what lies there can only be read by decrypting it
            return False
        ahead, data = read_ahead(conn), peek(conn.sock)
        if data == b"" and not ahead:  # it has nothing to ask any more
            self._drop(conn)
            return True
        if self._waits_for_more(conn, ahead, data or b""):
            return True
        self._heads.release(conn)
        if data is None:
            return False
        conn.data_ready = True  # so from 25.2 on no thread waits for it
        return not self.cfg.is_ssl and not ahead and self._answered(conn, data, fresh)

    def _waits_for_more(self, conn: Any, ahead: bytes, data: bytes) -> bool:
        """Leave a connection to the poller until its head is whole: a thread would wait for it.

        Return whether there is nothing more to do: it waits, has left, or can be no request.
        """
        begins = ahead + data
        if len(begins) >= PEEK_BYTES or (self._endless and not self.alive):
            return False
        try:
            if not self._heads.unfinished(conn, begins):
                return False
        except ValueError:
            self._turn_away(conn)
            return True
        patience = SILENCE_SECONDS if self.alive else LINGER_SECONDS
        if not begins:
            if conn.parser is None:
                self._heads.wait(conn, max(self.alive and self.cfg.keepalive, patience))
            return conn.parser is None
        if cut_short(conn.sock, len(data)):
            self._drop(conn)
            return True
        return self._heads.wait_beyond(conn, len(data), patience)

    def _turn_away(self, conn: Any) -> None:
        """Close a connection on which something else is spoken; say so, unless all is encrypted."""
        if self.cfg.is_ssl:
            self._drop(conn)
            return
        self._silent.remove(conn.sock)
        self._lingering.close(conn.sock, BAD_REQUEST)
        self.nr_conns -= 1

    def _end_the_silent(self, everyone: bool) -> None:
        """End those who have said nothing for too long.

        A worker that stops grants them half a second, for most who have just connected are about to
        ask. Up to 23.0 it looks at nobody any more, and cannot.
        """
        if not self.alive:
            everyone = everyone or self._endless
            self._silent.hurry(LINGER_SECONDS)
        self._silent.expire(everyone)

    def _make_room(self, least: int = 0) -> None:
        """Let idle connections go while hardly another can be accepted, the oldest first.

        Else a check would wait in the kernel for as long as they are idle.
        """
        spare = min(SPARE_CONNECTIONS, max(0, self.worker_connections - self.cfg.threads)) // 2
        over = max(least, self.nr_conns - (self.worker_connections - spare))
        if over <= 0:
            return
        kept = getattr(self, "keepalived_conns", None)
        idle = list(self._keep if kept is None else kept)[:over]
        for conn in idle:
            conn.timeout = 0
        # These may be about to speak, which can be waited for where it is tried again to accept.
        self._silent.shed(over - len(idle), also_young=not least)

    def _silent_too_long(self, conn: Any) -> None:
        if self.alive and self._safely(self._has_just_spoken, conn):
            self.enqueue_req(conn)
        else:
            self._drop(conn)

    def _has_just_spoken(self, conn: Any) -> bool:
        data = peek(conn.sock)
        return self._heads.has_come(conn, None if data is None else read_ahead(conn) + data)

    def _drop(self, conn: Any) -> None:
        self._silent.remove(conn.sock)
        self.nr_conns -= 1
        if hasattr(conn, "seen"):  # what it has sent is unread, so a plain close() would reset it
            self._lingering.close(conn.sock, b"")
        else:
            conn.close()

    def _let_in(self, conn: Any) -> None:
        self._heads.release(conn)
        if self._patient:
            conn.close = partial(self._close, conn)
        try:
            super().enqueue_req(conn)
        except QueueFull as full:
            self.nr_conns -= 1
            self._safely(self._tell, conn, full.reason)
        except OSError:  # up to 23.0 it wraps for TLS, here, one who may have left
            self._drop(conn)
        except RuntimeError:  # not even one thread can be started, or the pool is shut down
            self.nr_conns -= 1
            self._safely(self._tell, conn, Reason.QUEUE_FULL)

    def _tell(self, conn: Any, reason: Reason) -> None:
        if self.cfg.is_ssl:  # nothing can be said before a handshake, which needs a thread
            type(conn).close(conn)
            return
        begins = read_ahead(conn) or peek(conn.sock) or b""
        self._lingering.close(conn.sock, self._replies.refusal(conn, begins, reason))

    def _answered(self, conn: Any, data: bytes, fresh: bool) -> bool:
        """Answer a connection if it asks for a check and nothing else; return whether it did."""
        answer = self._replies.to_check(conn, data, fresh)
        if answer is None:
            return False
        self.nr_conns -= 1
        self._lingering.close(conn.sock, answer)
        return True

    def _close(self, conn: Any, graceful: bool = False) -> None:
        vars(conn).pop("close", None)  # it holds the connection that holds it
        if graceful:  # gunicorn would count the connection twice if this raised
            self._safely(self._lingering.close, conn.sock, b"")
        else:
            conn.close()
