"""Threaded workers: checks are answered, and requests refused, before a thread is taken.

What is queued in gunicorn's gthread worker is a connection, in the private queue of one worker's
executor. Here the executor counts and is bounded, and every connection is looked at on its way in.
Names of gunicorn's used here beside the stable ones: see :data:`KNOWN`.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from gunicorn import __version__
from gunicorn.workers.gthread import TConn, ThreadWorker

from ..._support.log import logger, unraised
from ..._support.request_head import proxied
from ...deadlines.deadline import timed
from ...deadlines.environ import stamp
from ...gate.gated import holding
from ...policy import Reason
from ...responses import Responses
from ..executor.executor import CountingExecutor, ForNobody, QueueFull, QueueTimeout
from ..front.descriptors import NO_DESCRIPTOR, bearable
from ..front.last_connections import LINGER, pending
from ..front.lingering import SILENCE, Lingering, Waiting
from ..front.progress import Answers as Unread
from ..front.progress import Upload, cut
from ..front.sockets import MOST, NO_REQUEST, cut_short, gone, peeked, plain, said, whole
from .balance import Balance
from .http2_frames import refusal
from .partial_heads import PartHeads
from .request_heads import asked_in_http2, environ_of, said_in_http2, speaks_http2
from .worker import Guarded, counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...options import GuardOptions

R = TypeVar("R")

# The methods that are overridden, and the parameters with which they are known. All gunicorns from
# 20.1 to 27.0 have them so; where one does not, the guard does not stand in front.
KNOWN: dict[str, set[tuple[str, ...]]] = {
    "enqueue_req": {("conn",)},
    "get_thread_pool": {()},
    "handle": {("conn",)},
    "finish_request": {("fs",), ("conn", "fs")},
    "murder_keepalived": {(), ("force",)},
}

# What is said at once is said in this version of HTTP, and is the last that a connection hears.
LATEST = (1, 1)

# Connections that a worker accepts beyond its threads and its queue. At worker_connections it stops
# accepting, and then a check waits in the kernel.
SPARE = 8

# Seconds until one is accepted when no file descriptor was left.
PAUSE = 0.02


def moved(worker_class: type) -> list[str]:
    """Return what is not as it is known in gunicorn's worker class."""
    return [name for name, ways in KNOWN.items() if _parameters(worker_class, name) not in ways]


def _parameters(worker_class: type, name: str) -> tuple[str, ...] | None:
    try:
        return tuple(inspect.signature(getattr(worker_class, name)).parameters)[1:]
    except (AttributeError, TypeError, ValueError):
        return None


def queue_bound(options: GuardOptions, threads: int, connections: int) -> float:
    """Return how many requests may wait in a worker that accepts so many connections.

    :raises ValueError: if more than it accepts are asked for.
    """
    room = max(0, connections - threads - SPARE)
    if options.max_queue is None or options.max_queue == math.inf:
        return min(4 * threads if options.max_queue is None else room, room)
    if options.max_queue > room:
        raise ValueError(
            f"worker_connections={connections} is too few for threads={threads} and"
            f" BUSYGUARD_MAX_QUEUE={options.max_queue}: start gunicorn with --worker-connections"
            f" {threads + int(options.max_queue) + SPARE} at least, or lower the queue"
        )
    return options.max_queue


class ClientGone(ForNobody):
    """Whoever asked has left; raised for gunicorn to close the connection."""


class ConnectionPool(CountingExecutor):
    """The executor of one worker, which knows whose requests it has."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.monitor.quiet = True  # the host's writes the log
        self._connections: dict[Future[Any], Any] = {}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take in a call of the worker's ``handle``."""
        future: Future[Any] = super().submit(fn, *args, **kwargs)
        self._connections[future] = args[0]
        future.add_done_callback(self._forget)
        return future

    def drop_the_gone(self) -> int:
        """Take out those who wait and have left; return how many."""
        connections = self._connections.copy()
        left = gone(conn.sock for conn in connections.values())
        return sum(
            future.cancel()  # false for those that run: what has begun is finished
            for future, conn in connections.items()
            if conn.sock in left
        )

    def served(self) -> list[Any]:
        """Return the connections that have a thread."""
        return [conn for future, conn in self._connections.copy().items() if future.running()]

    def _forget(self, future: Future[Any]) -> None:
        self._connections.pop(future, None)


class GuardedThreads(Guarded, ThreadWorker):
    """gunicorn's gthread worker with the guard in front of its threads."""

    without = ("slots",)

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
    def judge(cls, cfg: Any, options: GuardOptions) -> None:
        """Raise for options that do not fit this configuration."""
        queue_bound(options, cfg.threads, cfg.worker_connections)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        options = self.options
        self._in_front = not moved(ThreadWorker)
        self._checks = options.checks
        self._responses = Responses(retry_after=options.retry_after)
        self._proxied = str(self.cfg.proxy_protocol).lower() not in ("off", "false")
        # From 26.0 on connections are closed with patience, in the thread that should accept.
        self._patient = "graceful" in inspect.signature(TConn.close).parameters
        # Up to 23.0 gunicorn waits for a silent connection itself, and without end.
        self._endless = _parameters(ThreadWorker, "accept") == ("server", "listener")
        self._seen = threading.local()
        self._unread = Unread(options.progress_timeout)
        self._failing: set[str] = set()

    def get_thread_pool(self) -> Any:
        """Return the pool, which counts and is bounded."""
        if not self._in_front:
            return super().get_thread_pool()
        options = self.options
        try:
            bound = queue_bound(options, self.cfg.threads, self.cfg.worker_connections)
        except ValueError as error:  # changed at a reload
            unraised(self.log.error, "busyguard: %s", error)
            bound = queue_bound(replace(options, max_queue=None), self.cfg.threads, sys.maxsize)
        self._pool = ConnectionPool(
            self.cfg.threads,
            max_queue=bound,
            max_wait=options.max_wait,
            client_timeout=options.client_timeout,
            changed=self._changed,
            ticker=False,
        )
        return self._pool

    def queue(self) -> Any:
        """Return the pool; where the guard is not in front, a gate that counts in the app."""
        if self._in_front:
            # As many as there are file descriptors for; without one gunicorn's worker ends.
            most = self.cfg.worker_connections
            self.worker_connections = bearable(most, self.cfg.threads + SPARE)
            self._lingering = Lingering(self.poller)
            # For each thread one may always be there who has connected and is about to speak.
            most = max(self.cfg.threads, self.worker_connections // 2)
            self._silent = Waiting(self.poller, most, self._silent_too_long)
            secret = self.cfg.is_ssl
            self._heads = PartHeads(
                self._silent, self.enqueue_req, is_ssl=secret, is_proxied=self._proxied
            )
            self._balance = Balance(self.host.board)
            return self._pool
        self._gate = counting(self.cfg.threads)
        self._gate.subscribe(self._changed)
        return self._gate

    def work(self) -> tuple[Any, ...]:
        """Also let those go who have left, and refuse those who have waited too long."""
        if not self._in_front:
            return super().work()
        return (self._drop_the_gone, self._pool.expire, self._cut_the_stalled, *super().work())

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the guarded app behind the stamps, for the queue is in front of both."""
        if self._in_front:
            return self._stamped(super().guarded(app))
        refused, timeout = self._responses.refused, self.options.timeout
        return super().guarded(holding(app, self._gate, self.monitor, refused, timeout))

    def accept(self, *arguments: Any) -> None:
        """Take a connection in, in a way that has it come by :meth:`enqueue_req` at once.

        Or leave it to other workers, if they have less to do.
        """
        if self._in_front and self._safely(self._left_to_others, arguments[-1]):
            return
        try:
            self._accept(*arguments)
            self.standing.moved()  # also if another worker was first
        except OSError as error:
            if not self._in_front or error.errno not in NO_DESCRIPTOR:
                raise
            self._safely(self._make_room, 1)
            time.sleep(PAUSE)  # the app has them, perhaps; it is asked for again at once

    def _accept(self, *arguments: Any) -> None:
        if not (self._in_front and self._endless):
            super().accept(*arguments)
            return
        server, listener = arguments
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
        slot = self._pool.current()
        if slot is not None and slot.waited and gone([conn.sock]):
            raise ClientGone
        conn.since = time.monotonic()
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request, whose client has to get on with what it still sends."""
        conn.since = math.inf  # its head is there
        sock = getattr(getattr(req, "unreader", None), "sock", None)
        if self._in_front and sock is not None and not isinstance(sock, Upload):
            req.unreader.sock = Upload(sock, self.options.progress_timeout)
        return super().handle_request(req, conn)

    def finish_request(self, *arguments: Any) -> None:
        """Refuse one who has waited too long, and see to the connection as ever."""
        future = arguments[-1]
        if self._in_front and not future.cancelled():
            error = future.exception()
            if isinstance(error, QueueTimeout):
                conn = arguments[0] if len(arguments) > 1 else future.conn
                self._safely(self._tell, conn, error.reason)
                conn.close = _nothing
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
            named["timeout"] = min(named["timeout"], LINGER / 5)
        super().wait_for_and_dispatch_events(*arguments, **named)

    def _safely(self, step: Callable[..., R], *arguments: Any) -> R | None:
        """Take a step of the guard's own; return ``None`` if it raises, for the worker goes on."""
        try:
            result = step(*arguments)
        except Exception:
            if step.__name__ not in self._failing:
                self._failing.add(step.__name__)
                logger.exception("%s raised; gunicorn goes on as without it", step.__qualname__)
            return None
        self._failing.discard(step.__name__)
        return result

    def _left_to_others(self, listener: Any) -> bool:
        """Return whether the next connection is left in the kernel, for another worker."""
        if self.cfg.reuse_port:  # it is in this worker's own queue there
            return False
        load = self._pool.read()
        # Those who have just connected will ask here, too, though nobody counts them as yet.
        taken = load.queued + load.active + self._silent.young()
        return self._balance.leaves(taken, self.cfg.threads, partial(pending, listener))

    def _keeps_too_many(self) -> bool:
        """Return whether requests wait here while another worker has less to do.

        Those of connections that are kept alive come to this one alone.
        """
        load = self._pool.read()
        taken = load.queued + load.active
        return load.queued > 0 and self._balance.is_busier(taken, self.cfg.threads)

    def _seen_to(self, conn: Any) -> bool:
        """Answer a check, wait for the rest of a head, let one go who has left; or do nothing.

        Return whether there is nothing more to do.
        """
        fresh = conn.parser is None
        if self.cfg.is_ssl and not fresh:  # what lies there can only be read by decrypting it
            return False
        ahead, data = _ahead(conn), peeked(conn.sock)
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
        if len(begins) >= MOST or (self._endless and not self.alive):
            return False
        try:
            if not self._heads.unfinished(conn, begins):
                return False
        except ValueError:
            self._turn_away(conn)
            return True
        if not begins:
            if conn.parser is None:
                patience = max(self.cfg.keepalive, SILENCE) if self.alive else LINGER
                self._heads.wait(conn, patience)
            return conn.parser is None
        if cut_short(conn.sock, len(data)):
            self._drop(conn)
            return True
        return self._heads.wait_beyond(conn, len(data), SILENCE if self.alive else LINGER)

    def _turn_away(self, conn: Any) -> None:
        """Close a connection on which something else is spoken; say so, unless all is encrypted."""
        if self.cfg.is_ssl:
            self._drop(conn)
            return
        self._silent.remove(conn.sock)
        self._lingering.close(conn.sock, NO_REQUEST)
        self.nr_conns -= 1

    def _end_the_silent(self, everyone: bool) -> None:
        """End those who have said nothing for too long.

        A worker that stops grants them half a second, for most who have just connected are about to
        ask. Up to 23.0 it looks at nobody any more, and cannot.
        """
        if not self.alive:
            everyone = everyone or self._endless
            self._silent.hurry(LINGER)
        self._silent.expire(everyone)

    def _make_room(self, least: int = 0) -> None:
        """Let idle connections go while hardly another can be accepted, the oldest first.

        Else a check would wait in the kernel for as long as they are idle.
        """
        spare = min(SPARE, max(0, self.worker_connections - self.cfg.threads)) // 2
        over = max(least, self.nr_conns - (self.worker_connections - spare))
        if over <= 0:
            return
        kept = getattr(self, "keepalived_conns", None)
        idle = list(self._keep if kept is None else kept)[:over]
        for conn in idle:
            conn.timeout = 0
        self._silent.shed(over - len(idle))  # these may be about to speak

    def _changed(self) -> None:
        self.publisher.post()

    def _cut_the_stalled(self) -> None:
        """Cut those off who keep a thread waiting and do not get on."""
        conns = self._pool.served()
        stalled = set(self._unread.stalled([conn.sock for conn in conns]))
        for conn in conns:
            upload = getattr(getattr(conn.parser, "unreader", None), "sock", None)
            if isinstance(upload, Upload):
                is_stalled = upload.cut_if_stalled()
            else:  # its first head, and the handshake before it, have one time together
                is_first = not getattr(conn, "is_http2", False) and hasattr(conn, "since")
                most = self.options.progress_timeout
                is_stalled = is_first and time.monotonic() - conn.since > most
            if is_stalled or conn.sock in stalled:
                cut(conn.sock)
                logger.info("cut off a client that did not get on: %s", conn.client)

    def _drop_the_gone(self) -> None:
        self._pool.drop_the_gone()

    def _silent_too_long(self, conn: Any) -> None:
        if self.alive and self._safely(self._has_just_spoken, conn):
            self.enqueue_req(conn)
        else:
            self._drop(conn)

    def _has_just_spoken(self, conn: Any) -> bool:
        data = peeked(conn.sock)
        return self._heads.has_come(conn, None if data is None else _ahead(conn) + data)

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
        """Refuse a connection, whose request nobody has read, and close it."""
        if self.cfg.is_ssl:  # nothing can be said before a handshake, which needs a thread
            type(conn).close(conn)
            return
        begins = _ahead(conn) or peeked(conn.sock) or b""
        refuse = self._responses.refused(reason)
        if speaks_http2(conn, begins):
            status, headers, _ = whole(refuse, plain("GET"))
            last = refusal(begins, int(status[:3]), headers)
        else:
            skip = proxied(begins) if self._proxied else 0
            method = "HEAD" if begins.startswith(b"HEAD ", skip or 0) else "GET"
            last = said(refuse, method, LATEST, True)
        self._lingering.close(conn.sock, last)

    def _answered(self, conn: Any, data: bytes, fresh: bool) -> bool:
        """Answer a connection if it asks for a check and nothing else; return whether it did."""
        if speaks_http2(conn, data):
            answer = self._answer_in_http2(conn, data)
        else:
            answer = self._answer_in_http1(conn, data, fresh)
        if answer is None:
            return False
        self.nr_conns -= 1
        self._lingering.close(conn.sock, answer)
        return True

    def _answer_in_http1(self, conn: Any, data: bytes, fresh: bool) -> bytes | None:
        skip = proxied(data) if fresh and self._proxied else 0
        if skip is None or not self._may_ask(data[skip:]):
            return None
        environ = environ_of(conn, data)
        answer = None if environ is None else self._check_in(environ)
        if environ is None or answer is None:
            return None
        return said(answer, environ["REQUEST_METHOD"], LATEST, True)

    def _answer_in_http2(self, conn: Any, data: bytes) -> bytes | None:
        asked = asked_in_http2(data)
        if asked is None or not self._may_be(*asked):
            return None
        return said_in_http2(conn, data, self._check_in)

    def _may_ask(self, data: bytes) -> bool:
        """Return whether this is worth a closer look, which costs twenty times as much."""
        words = data[: data.find(b"\r\n")].split(b" ")
        return len(words) == 3 and self._may_be(
            words[0].decode("latin-1"), words[1].decode("latin-1")
        )

    def _may_be(self, method: str, target: str) -> bool:
        """Return whether a request may be a check."""
        if "://" in target:
            return True
        path = target.partition("?")[0]
        name = unquote_to_bytes(path.encode("latin-1", "replace")).decode("latin-1")
        return self._checks.match_request(method, name, "", ()) is not None

    def _check_in(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        """Return the answer to a request that is a check."""
        check = self._checks.match(environ)
        if check is None:
            return None
        policy = check.policy
        verdict = self.monitor.check(policy, self.options.patience) if policy else None
        return self._responses.for_check(check, verdict, environ.get("HTTP_ACCEPT"))

    def _close(self, conn: Any, graceful: bool = False) -> None:
        vars(conn).pop("close", None)  # it holds the connection that holds it
        if graceful:  # gunicorn would count the connection twice if this raised
            self._safely(self._lingering.close, conn.sock, b"")
        else:
            conn.close()

    def _stamped(self, app: WSGIApplication) -> WSGIApplication:
        pool, seen, timeout = self._pool, self._seen, self.options.timeout

        def stamped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            slot = pool.current()
            since, waited = time.monotonic(), 0.0
            # A connection of HTTP/2 has one slot for many requests; only the first has waited.
            if slot is not None and getattr(seen, "since", None) != slot.since:
                seen.since = since = slot.since or since
                waited = slot.waited
            until = since - waited + timeout
            stamp(environ, self.monitor, waited, until)
            return timed(app(environ, start_response), until)

        return stamped


def _ahead(conn: Any) -> bytes:
    """Return what gunicorn has read ahead of a connection; its socket holds what comes after."""
    if conn.parser is None:
        return b""
    return conn.parser.unreader.buf.getvalue()  # type: ignore[no-any-return]


def _nothing(*_: object, **__: object) -> None:
    return None
