"""Looks at hosts, once a second, each on a thread of its own: none can hold up another."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, NamedTuple

from ..._support.health_client import FREE, NO_ANSWER, NOT_NOW, fetched, split
from ..._support.periodic import Periodic
from ..._support.text_values import plain
from ...dashboard.history import LookHistory, look_in
from ...dashboard.processes import shown_state
from ...dashboard.sentences import sentences
from .validation import understood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...dashboard.history import Look
    from ...dashboard.sentences import Sentence
    from ...load_report import LoadReport

EVERY_SECONDS = 1.0

# Of the reason for which there is no answer.
LONGEST_REASON = 100

# What comes of an answer that is something else; lists in lists in lists are too deep to be read.
NO_FIGURES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class HostLook(NamedTuple):
    """What one look at a host has shown.

    :param shown: what ``/load`` shows; ``None`` if there was no answer.
    :param state: the state, or that there is no answer, or not yet.
    :param why: why there is none.
    :param code: the exit code that it amounts to.
    :param number: how many looks there have been.
    :param last: what the last answer showed, where there is none now.
    :param silent: seconds since the last answer, where there is none now and was one before.
    """

    name: str
    shown: LoadReport | None = None
    state: str = "asking"
    why: str = ""
    code: int = NO_ANSWER
    sentences: Sequence[Sentence] = ()
    looks: Sequence[Look] = ()
    number: int = 0
    silent: float | None = None
    last: LoadReport | None = None

    @property
    def figures(self) -> LoadReport | None:
        """What there is to show: of now, or the last there was."""
        return self.last if self.shown is None else self.shown


class HostWatch:
    """Looks at a host.

    :param target: ``HOST:PORT`` of its check port, or a port, or a URL.
    :raises ValueError: for a target that is none.
    :ivar seen: what the last look has shown; replaced, never changed.
    """

    def __init__(self, target: str, timeout: float) -> None:
        self._url = split(target)
        if self._url.path != "/load":
            raise ValueError(f"expected host:port of a check port, not {target!r}")
        self.name = self._url.netloc.rpartition("@")[2]
        self.seen = HostLook(self.name)
        self._timeout = timeout
        self._history = LookHistory()
        self._last: float | None = None
        self._looking = Periodic(self._look_again, EVERY_SECONDS, f"top {self.name}", at_once=True)

    def look(self) -> HostLook:
        """Look once."""
        number = self.seen.number + 1
        try:
            status, _, body = fetched(self._url, self._timeout)
            if status != 200:
                raise ValueError(f"expected 200, not {status}")
            shown = understood(json.loads(body))
            self.seen = self._understood(shown, number)
        except (OSError, http.client.HTTPException) as error:
            self.seen = self._unanswered(_reason(error), number)
        except NO_FIGURES:
            self.seen = self._unanswered("this is no check port's /load", number)
        return self.seen

    def start(self) -> None:
        """Look once a second from now on."""
        self._looking.start()

    def stop(self) -> None:
        """Look no more. The thread is not waited for: it may be in the middle of a look."""
        self._looking.stop()

    def _look_again(self) -> None:
        due = time.monotonic() + EVERY_SECONDS
        self.look()
        self._looking.pause = max(0.0, due - time.monotonic())

    def _understood(self, shown: LoadReport, number: int) -> HostLook:
        self._last = time.monotonic()
        self._history.keep(look_in(shown, self._last))
        looks = tuple(self._history.looks)
        code = FREE if shown["ready"] else NOT_NOW
        texts = sentences(shown, looks)
        return HostLook(self.name, shown, shown_state(shown), "", code, texts, looks, number)

    def _unanswered(self, why: str, number: int) -> HostLook:
        silent = None if self._last is None else time.monotonic() - self._last
        before = self.seen
        seen = HostLook(self.name, None, "no answer", why, number=number, silent=silent)
        return seen._replace(looks=before.looks, last=before.figures)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError):
        return plain(error.strerror or str(error) or type(error).__name__)[:LONGEST_REASON]
    return "it does not speak HTTP"  # and what it says instead may fill a screen
