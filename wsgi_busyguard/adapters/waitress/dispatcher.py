"""The dispatcher that stands where waitress's own stood: answers, refuses, or lets in.

``add_task()`` is called by waitress's main loop, and by its threads for a request that was
pipelined behind another; either holds the channel's ``requests_lock``, which serving takes. So
whatever is said here is said by other threads.
"""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from waitress.task import ThreadedTaskDispatcher
from waitress.trigger import trigger
from waitress.wasyncore import close_all, dispatcher

from ..._support.log import FailOpen, Streak
from ..._support.socket_calls import readable
from ..front.base import UNJUDGED_MESSAGE
from ..front.descriptors import Acceptor, Room, eviction_order, excess, overdrawn
from ..front.last_connections import pending
from ..front.threaded import ThreadedFront
from ..front.waiting_sockets import FIRST_BYTE_SECONDS
from .tasks import AnswerTask, WaitressVisit, close_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ...checks import Check

# What is waited for, at the very end, are threads that are stuck.
PATIENCE_SECONDS = 0.5


class QuietDispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """A dispatcher that does not warn of its queue.

    waitress's ``waitress.queue`` would warn whenever a thread is not yet back from the request
    before, or when two checks come at once.
    """

    queue_logger = logging.Logger("busyguard: nobody listens", logging.CRITICAL + 1)


class WaitressFront(ThreadedFront):
    """The guard in front of a waitress server's threads.

    :ivar dispatcher: the :class:`GuardedDispatcher`, if it could be put there.
    """

    def __init__(self, threads: int, sockets: dict[int, Any], **options: Any) -> None:
        super().__init__(threads, **options)
        self.dispatcher: GuardedDispatcher | None = None
        self._map = sockets  # of waitress's main loop: every open connection is in there
        self._trigger = trigger(sockets)
        self._over = False
        self._limit = sys.maxsize
        self._room: Room[Any] = Room(close_channel, lambda _: False)
        self._safely = FailOpen("waitress")  # which closes its port where accepting raises

    def guarded(self, app: WSGIApplication) -> WSGIApplication:
        """Return the app for waitress to call: it says what was decided before, or runs ``app``."""
        here, serve = self.here, super().guarded(app)

        def say_or_serve(
            environ: WSGIEnvironment, start_response: StartResponse
        ) -> Iterable[bytes]:
            decided: WSGIApplication | None = getattr(here, "says", None)
            return (serve if decided is None else decided)(environ, start_response)

        return say_or_serve

    def in_loop(self, work: Callable[[], object]) -> None:
        """Have waitress's main loop do something soon."""
        if not self._over:  # else the trigger is closed, and its descriptor may be somebody's file
            self._trigger.pull_trigger(work)

    def flushed(self) -> bool:
        """Return whether all that was answered has been sent."""
        return not any(
            getattr(channel, "requests", None) or getattr(channel, "total_outbufs_len", 0)
            for channel in list(self._map.values())
        )

    def awaited(self) -> bool:
        """Return whether somebody has connected and not asked yet, or not to the end."""
        return any(
            channel.request is not None or channel.creation_time == channel.last_activity
            for channel in list(self._map.values())
            if hasattr(channel, "creation_time")
        )

    def listeners(self) -> list[Any]:
        """Return the sockets at which waitress listens."""
        return [server.socket for server in self._servers()]

    def stop_listening(self) -> None:
        """Close them, in the main loop, when all who wait there are taken in."""
        self.in_loop(self._close_servers)

    def make_room(self, limit: int) -> None:
        """Have one who asks for nothing go when almost as many are accepted as may be.

        At its limit waitress accepts nobody, and then a check waits in the kernel for as long as
        they are silent.
        """
        self._limit = limit
        for server in self._servers():
            server.channel_class = partial(self._accepted, server.channel_class)
            server.socket = self.refusing(server.socket)
            make_room = partial(self._safely, self._make_room_for_one)
            server.accept = Acceptor(server.accept, make_room)

    def beat(self) -> None:
        """Also make room when somebody could not go before: no request was answered by then."""
        super().beat()
        wanted = max(self._crowd(), overdrawn())
        if wanted > 0:
            self.in_loop(lambda: self._room.make(wanted, self._in_turn))

    def _make_room_for_one(self) -> None:
        """Have one go since no descriptor is left, and none who is about to speak."""
        now = time.time()  # what came later than now came before the clock was set back
        self._room.make(
            1,
            lambda: [
                one
                for one in self._in_turn()
                if not now - FIRST_BYTE_SECONDS < one.creation_time <= now
            ],
        )

    def _crowd(self) -> int:
        """Return how many connections are too many to accept another two."""
        return len(self._map) + 2 - self._limit

    def _accepted(self, make: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        self._safely(self._make_room_for, make(*arguments, **named))

    def _make_room_for(self, channel: Any) -> None:
        wanted = max(self._crowd(), excess(channel.socket.fileno()))
        self._room.make(wanted, lambda: [one for one in self._in_turn() if one is not channel])

    def _in_turn(self) -> list[Any]:
        """Return the channels of which no request is being answered, and who is to go first."""
        silent: list[Any] = []
        idle: list[Any] = []
        half: list[Any] = []
        channels = [one for one in self._map.values() if hasattr(one, "creation_time")]
        for channel in sorted(channels, key=attrgetter("last_activity")):
            # Who is about to be read is no silent one; and the loop would take whoever gets its
            # descriptor next for readable.
            if channel.requests or readable(channel.socket):
                continue
            is_headless = channel.request is not None and not channel.request.headers_finished
            if channel.creation_time == channel.last_activity or is_headless:
                silent.append(channel)
            elif channel.request is None and not channel.total_outbufs_len:
                idle.append(channel)
            else:
                half.append(channel)
        silent.sort(key=attrgetter("creation_time"))
        return eviction_order(silent, idle, half)

    def _servers(self) -> list[Any]:
        return [one for one in list(self._map.values()) if getattr(one, "accepting", False)]

    def _close_servers(self) -> None:
        for server in self._servers():
            for _ in range(server.adj.backlog):  # one that cannot be accepted would be there again
                if pending(server.socket):
                    server.handle_accept()
            dispatcher.close(server)  # its own close() would take the trigger from its channels

    def abandon(self) -> None:
        """Close what is open of a server that could not be made."""
        close_all(self._map, ignore_all=True)

    def end(self) -> None:
        """Have the main loop end: it does when it has nothing to look at."""
        self.in_loop(self._close_all)

    def _close_all(self) -> None:
        self._over = True
        close_all(self._map, ignore_all=True)


class GuardedDispatcher(QuietDispatcher):
    """waitress's task dispatcher with the guard in front of its queue.

    In that queue are only such as have a thread for them; the others wait in the gate.
    """

    def __init__(self, front: WaitressFront) -> None:
        super().__init__()
        self._front = front
        self._unjudged = Streak()
        # One thread each: a refusal app that is slow, or a flood of those who are refused, must
        # not hold up the checks.
        self._checks, self.refusals = QuietDispatcher(), QuietDispatcher()

    def set_thread_count(self, count: int) -> None:
        """Have so many threads; and those that answer, as long as there are any."""
        super().set_thread_count(count)
        for beside in (self._checks, self.refusals):
            beside.set_thread_count(min(count, 1))

    def add_task(self, channel: Any) -> None:
        """Answer a channel's next request if it is a check, refuse it, or let it in."""
        try:
            self._let_in(channel)
            self._unjudged.over()
        except Exception:  # guarding must never be the outage
            self._unjudged.failed(UNJUDGED_MESSAGE, exc_info=True)
            super().add_task(channel)

    def hand(self, visit: WaitressVisit) -> None:
        """Have one of the threads serve a request."""
        super().add_task(visit)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Stop the threads, and cancel those who wait."""
        self._front.stop()
        for beside in (self._checks, self.refusals):
            beside.shutdown(cancel_pending, min(timeout, PATIENCE_SECONDS))
        return bool(super().shutdown(cancel_pending, timeout))

    def _let_in(self, channel: Any) -> None:
        here = self._front.here
        visit: WaitressVisit | None = getattr(here, "visit", None)
        if visit is not None and visit.channel is channel:
            visit.leave()  # this thread has served it, and must not keep the next one out
        request = channel.requests[0]
        if request.error:
            self._checks.add_task(AnswerTask(self._front, channel, None))
            return
        headers = {f"HTTP_{name}": value for name, value in request.headers.items()}
        path = request.path
        if path.startswith("//"):  # waitress's threads take all but one away (WSGITask)
            path = "/" + path.lstrip("/")
        check = self._front.match(request.command.upper(), path, request.query, headers)
        if check is not None:
            self._checks.add_task(AnswerTask(self._front, channel, self._answer(check)))
        else:
            peer, *_ = getattr(channel, "addr", None) or ("",)
            client = self._front.client(headers, str(peer))
            WaitressVisit(self._front, self, channel, client).enter()

    def _answer(self, check: Check) -> WSGIApplication:
        front = self._front

        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            return front.answer(check, environ.get("HTTP_ACCEPT"))(environ, start_response)

        return answer
