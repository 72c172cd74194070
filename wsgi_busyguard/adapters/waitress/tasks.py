"""What waitress's threads are given to do: serve a request, or say what was decided of one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ...policy import Reason
from ..front.threaded import SocketVisit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ...deadlines.client_timeout import Client
    from .dispatcher import GuardedDispatcher, WaitressFront


class WaitressVisit(SocketVisit):
    """One request on its way through the gate; to waitress, a task."""

    def __init__(
        self, front: WaitressFront, dispatcher: GuardedDispatcher, channel: Any, client: Client
    ) -> None:
        super().__init__(front, channel.socket, client)
        self._waitress = front
        self._dispatcher = dispatcher
        self.channel = channel

    def run(self) -> None:
        """Have a thread serve the request."""
        self._dispatcher.hand(self)

    def refuse(self, reason: Reason) -> None:
        """Answer 503, on the thread for that."""
        says = self._waitress.refusal(reason)
        last = reason is Reason.DRAINING
        self._dispatcher.refusals.add_task(AnswerTask(self._waitress, self.channel, says, last))

    def drop(self) -> None:
        """Close the connection, in the main loop, whose it is."""
        self._waitress.in_loop(partial(close_channel, self.channel))

    def service(self) -> None:
        """Serve the request, in one of the threads."""
        clients = self._waitress.clients
        # Of an answer that is not read waitress keeps 16 MB, and then this thread waits.
        watched = clients.watched(self.socket)
        clients.begin(watched)
        try:
            if not self.serve(self._served):
                self.drop()
        finally:
            clients.end(watched)

    def _served(self) -> bool:
        self.channel.service()
        return True

    def cancel(self) -> None:
        """Close the connection, for the server stops."""
        self.leave()
        self.channel.cancel()


class AnswerTask:
    """A request that is answered without a slot; to waitress, a task.

    :param says: a WSGI app that does not block; ``None`` for what waitress itself says to it.
    :param last: whether to close the connection after it.
    """

    def __init__(
        self, front: WaitressFront, channel: Any, says: WSGIApplication | None, last: bool = False
    ) -> None:
        self._front = front
        self._channel = channel
        self._says = says
        self._last = last

    def service(self) -> None:
        """Say it."""
        channel = self._channel
        # Of one who asks again without having read the answer before, waitress would wait for it.
        if channel.total_outbufs_len > channel.adj.outbuf_high_watermark // 2:
            with channel.requests_lock:
                _forget(channel)
                channel.close_when_flushed = True
            channel.server.pull_trigger()
            return
        if self._last:
            channel.requests[0].headers["CONNECTION"] = "close"
        self._front.here.says = self._says
        try:
            channel.service()
        finally:
            self._front.here.says = None

    def cancel(self) -> None:
        """Close the connection, for the server stops."""
        self._channel.cancel()


def _forget(channel: Any) -> None:
    for request in channel.requests:
        request.close()
    channel.requests = []


def close_channel(channel: Any) -> None:
    """Close a channel and forget what it has asked. In the main loop."""
    with channel.requests_lock:
        _forget(channel)
    channel.handle_close()
