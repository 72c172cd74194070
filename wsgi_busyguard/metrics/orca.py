"""ORCA: the load in an answer's header, as Envoy, gRPC and Google's balancers read it there.

What is reported is a value in and a value out; whoever reports has a clock, for rates are a
matter of time.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from .._support.log import Streak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..load import Load
    from ..monitor import Monitor

    Headers = list[tuple[str, str]]

HEADER = "endpoint-load-metrics"
FORMAT = "HTTP_ENDPOINT_LOAD_METRICS_FORMAT"

# What an app may report itself, then it knows better. Of two reports Envoy takes none.
REPORTS = frozenset({HEADER, f"{HEADER}-json", f"{HEADER}-bin"})

# Seconds over which the rates are a mean. Envoy looks once a second, and moves weights by what it
# sees, so a second's chance must not show; after a minute a change would be news no more.
MEAN_SECONDS = 10.0

# Seconds between two looks at the counts.
LOOK_SECONDS = 1.0


class Rates(NamedTuple):
    """Answers a second, whatever they are, and of these those with a status of 5xx.

    Envoy's manual: all count, and only those that failed are errors. A refusal is both.
    """

    answered: float = 0.0
    failed: float = 0.0


def report(load: Load, rates: Rates, as_text: bool = False) -> str:
    """Return the header's value.

    In JSON, which every Envoy reads; TEXT is for who asks for it. An unknown name, a figure below
    zero or one that is no number would have the whole report thrown away. A capacity that nobody
    knows is left out, and then there is nothing for a balancer to weigh.
    """
    figures: dict[str, float] = {}
    if load.capacity:
        figures["application_utilization"] = (load.active + load.queued) / load.capacity
    figures["rps_fractional"], figures["eps"] = rates
    sound = {name: round(x, 4) for name, x in figures.items() if math.isfinite(x) and x >= 0}
    queued = max(0, load.queued)
    if as_text:
        pairs = {**sound, "named_metrics.queued": queued}
        return "TEXT " + ", ".join(f"{name}={value}" for name, value in pairs.items())
    return "JSON " + json.dumps({**sound, "named_metrics": {"queued": queued}})


class AnswerRate:
    """Counts answers and knows how many come in a second.

    For any thread, without a lock: one answer in a million may go uncounted, which a mean can bear.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answered = self._failed = 0
        # When the last look was, what was counted by then, and the rates: changed as one.
        self._seen: tuple[float, int, int, Rates | None] = (clock(), 0, 0, None)

    def count(self, failed: bool) -> None:
        """Count an answer."""
        self._answered += 1
        self._failed += failed

    def rates(self) -> Rates:
        """Return the rates now."""
        at, answered, failed, before = self._seen
        now = self._clock()
        passed = now - at
        if passed < LOOK_SECONDS and before is not None:
            return before
        # In the first second there is no mean yet, and Envoy ignores a rate of zero.
        over = max(passed, LOOK_SECONDS)
        latest = Rates((self._answered - answered) / over, (self._failed - failed) / over)
        if passed < LOOK_SECONDS:
            return latest
        rates = latest
        if before is not None:
            kept = math.exp(-passed / MEAN_SECONDS)
            pairs = zip(before, latest, strict=True)
            rates = Rates(*(kept * old + (1 - kept) * new for old, new in pairs))
        self._seen = (now, self._answered, self._failed, rates)
        return rates


class Reporter:
    """Adds the load to answers.

    :param monitor: knows the load.
    :param clock: monotonic seconds.
    """

    def __init__(self, monitor: Monitor, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor = monitor
        self._pace = AnswerRate(clock)
        self._unreported = Streak()

    def around(self, app: WSGIApplication) -> WSGIApplication:
        """Return ``app`` with the load in its answers' headers; all else is left as it is."""

        def reported(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            as_text = environ.get(FORMAT, "")[:20].strip().upper() == "TEXT"

            def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
                extended = self._with(status, headers, as_text, exc_info is None)
                if exc_info is None:
                    return start_response(status, extended)
                return start_response(status, extended, exc_info)

            return app(environ, start)

        return reported

    def _with(self, status: str, headers: Headers, as_text: bool, new: bool) -> Headers:
        """Return the headers with the report; ``new`` unless it takes the place of another."""
        try:
            names = {name.lower() for name, _ in headers}
            if new:
                self._pace.count(status[:1] == "5")
            if names & REPORTS:
                return headers
            value = report(self._monitor.load, self._pace.rates(), as_text)
            self._unreported.over()
        except Exception:  # guarding must never be the outage
            message = "could not report the load; answering without it until it can"
            self._unreported.failed(message, exc_info=True)
            return headers
        return [*headers, (HEADER, value)]
