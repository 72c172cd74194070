"""Holds a gate's slot for a request, from before the app is called until its body is closed.

In WSGI a request ends when the server closes the body, not when the app returns it.
"""

from __future__ import annotations

import contextlib
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from ..deadlines.deadline import DEADLINE, MONITOR, Streamed, call_until, is_servers_file
from ..deadlines.environ import WAITED
from ..gate import Gate, Refused, Slot
from ..policy import Reason, own_max_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..deadlines.client_timeout import Client


def holding(
    app: WSGIApplication,
    gate: Gate,
    monitor: object,
    refused: Callable[[Reason], WSGIApplication],
    client_timeout: float,
    client_of: Callable[[Mapping[str, Any]], Client] | None = None,
) -> WSGIApplication:
    """Return ``app`` behind ``gate``; ``client_of`` reads a request's client, where trusted."""
    enter, leave = gate.take, gate.leave

    def hold(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            if client_of is None:
                slot, patience = enter(), client_timeout
            else:
                slot, patience = _enter_as(client_of(environ), gate, client_timeout)
        except Refused as refusal:
            return refused(refusal.reason)(environ, start_response)
        since = (place := slot.place).since
        try:
            environ[WAITED] = waited = place.waited
            environ[MONITOR] = monitor
            environ[DEADLINE] = until = since - waited + patience  # type: ignore[operator]
            body = call_until(until, app, environ, start_response)
            kind = type(body)
            if kind is list or kind is tuple:  # nothing to close; servers measure this very object
                leave(slot)
                return body
            if kind is GeneratorType:  # no length, and no file
                return Held(body, slot, gate, until, since)
            return _until_closed(body, slot, gate, environ.get("wsgi.file_wrapper"), until)
        except BaseException:
            if place.since is since:  # a time limit may come late, when another has the slot
                leave(slot)
            raise

    return hold


def _enter_as(client: Client, gate: Gate, client_timeout: float) -> tuple[Slot, float]:
    """Take a slot for a client that may give up sooner than others; return its patience, too."""
    most = own_max_wait(gate.discipline.in_force, client_timeout, client.patience)
    if client.ago > most and not gate.has_room:
        gate.lose(Reason.QUEUE_AGE)
        raise Refused(Reason.QUEUE_AGE)
    slot = gate.take(client.ago)
    if slot.waited > most >= client.ago:  # else it found a slot free, as old as it was
        gate.forfeit(slot, Reason.QUEUE_AGE)
        raise Refused(Reason.QUEUE_AGE)
    return slot, client.patience


def _until_closed(
    body: Iterable[bytes], slot: Slot, gate: Gate, file_wrapper: object, until: float
) -> Iterable[bytes]:
    """Return a body that leaves the slot when it is closed."""
    close = getattr(body, "close", None)
    if is_servers_file(body, file_wrapper):
        # Servers send files by sendfile() if they recognise their own wrapper, so it stays itself
        # and only its close() is replaced.
        held = HeldAny((), slot, gate, until, close)
        if not _closes_by(body, held.close):  # made in C, say: the server sends it without the app
            held.release()
        elif hasattr(body, "prepare"):
            _released_by_waitress(body, held)
        return body
    kind = HeldSized if hasattr(body, "__len__") else HeldAny
    return kind(body, slot, gate, until, close)


def _closes_by(body: Any, close: Callable[[], object]) -> bool:
    """Have ``body.close()`` call ``close``; return whether it does.

    Set on the body itself, whatever its class does when attributes are set. A tracer's proxy would
    pass it on to what it stands for and keep its own close(), which then calls ours, which calls
    it: the file is never closed.
    """
    try:
        object.__setattr__(body, "close", close)
        return bool(body.close == close)
    except Exception:
        return False


def _released_by_waitress(body: Any, held: Held) -> None:
    """Have a file leave its slot when waitress goes on without the thread that called the app.

    waitress's wrapper has a ``prepare()``, which says how much of a file there is to send. If it is
    anything, the thread leaves the file to the main loop, which sends it for as long as the client
    takes to read; a file of unknown length stays with its thread.
    """
    prepare: Callable[..., int] = body.prepare

    def prepared(*arguments: Any, **named: Any) -> int:
        with contextlib.suppress(AttributeError):
            del body.prepare  # the file and what is here hold each other
        length = prepare(*arguments, **named)
        if length:
            held.release()
        return length

    body.prepare = prepared


class Held(Streamed):
    """A generator that holds a slot until it is closed, or dropped by a server that does not close.

    :ivar until: monotonic seconds at which its client gives up.
    """

    __slots__ = ("_gate", "_since", "_slot")

    def __init__(
        self, body: Any, slot: Slot, gate: Gate, until: float, since: float | None
    ) -> None:
        self.until = until
        self._body = body
        self._gate = gate
        # Forgotten only when the slot has been left, so that one who was interrupted at that can
        # do it once more; and by this it is known whether it is another's by then.
        self._since = since
        self._slot: Slot | None = slot

    def close(self) -> None:
        """Close the body and leave the slot; only the first call does anything."""
        slot = self._slot
        if slot is not None:
            try:
                self._body.close()
            finally:  # release(), written out
                if slot.place.since is self._since:
                    self._gate.leave(slot)
                self._slot = None

    def release(self) -> None:
        """Leave the slot and let the body be."""
        slot = self._slot
        if slot is not None:
            if slot.place.since is self._since:
                self._gate.leave(slot)
            self._slot = None

    def guard(self) -> object:
        """Return the gate."""
        return self._gate

    def __del__(self) -> None:
        try:
            slot = self._slot
        except AttributeError:  # a signal handler raised before it had one
            return
        if slot is not None and slot.place.since is self._since:
            self._gate.abandon(slot)


class HeldAny(Held):
    """The same for a body that is no generator, and may have nothing to close."""

    __slots__ = ("_close",)

    def __init__(
        self,
        body: Iterable[bytes],
        slot: Slot,
        gate: Gate,
        until: float,
        close: Callable[[], object] | None,
    ) -> None:
        super().__init__(body, slot, gate, until, slot.place.since)
        self._close = close

    def close(self) -> None:
        """Close the body and leave the slot; only the first call does anything."""
        close, self._close = self._close, None  # a file wrapper and its own close() hold each other
        try:
            if close is not None:
                close()
        finally:
            self.release()


class HeldSized(HeldAny):
    """The same for a body that has a length, by which servers know that it is whole."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)
