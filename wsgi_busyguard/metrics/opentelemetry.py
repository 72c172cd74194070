"""The figures for OpenTelemetry: observable instruments, read when a reader collects.

Through the API only: which SDK, reader and exporter there are is the application's business.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .figures import COUNTER, FIGURES, GAUGE, HISTOGRAM, REQUESTS, TIME, Figure
from .report import look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Meter, Observation

    from ..counters import Watched
    from ..load_report import KnowsBalancers, LoadReport

# Units as the semantic conventions have them (UCUM, with annotations in braces).
UNITS = {REQUESTS: "{request}", TIME: "s"}
COUNTED = {"transitions": "{transition}", "checks": "{check}"}

# Seconds for which one look serves the instruments of a collection.
FRESH_SECONDS = 0.5


def named(figure: Figure) -> str:
    """Return what a figure is called: ``busyguard.queued``, ``busyguard.process.queued``."""
    return "busyguard." + figure.name.replace("process_", "process.")


def unit(figure: Figure) -> str:
    """Return the unit of a figure."""
    if figure.unit:
        return UNITS[figure.unit]
    return COUNTED.get(figure.name, "{request}") if figure.kind == COUNTER else "1"


def instrument(
    monitor: Watched, meter: Meter | None = None, *, agent: KnowsBalancers | None = None
) -> None:
    """Make the instruments of a guard's figures, once in a process.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param meter: the global provider's meter ``wsgi_busyguard`` if not given.
    :param agent: knows the balancers that ask.
    :raises ImportError: without ``opentelemetry-api``.

    Requests and processes, which can be added up, are up-down counters; times and states are
    gauges. A histogram cannot be observed, so of one there is the sum of its times, a counter:
    ``busyguard.service_time.total``; the number that belongs to it is ``busyguard.served``.

    Where processes share a board one of them tells for all, for the sum over the others would be
    wrong; each may have the instruments.
    """
    from opentelemetry.metrics import Observation, get_meter

    meter = meter or get_meter("wsgi_busyguard")
    shared_look = _SharedLook(monitor, agent)
    for figure in FIGURES:
        make = _maker(meter, figure)
        end = ".total" if figure.kind == HISTOGRAM else ""
        observe = _observing(figure, shared_look, Observation)
        make(named(figure) + end, callbacks=[observe], unit=unit(figure), description=figure.says)


def _maker(meter: Meter, figure: Figure) -> Callable[..., object]:
    if figure.kind != GAUGE:
        return meter.create_observable_counter
    adds_up = figure.unit == REQUESTS or figure.name == "processes"
    return meter.create_observable_up_down_counter if adds_up else meter.create_observable_gauge


def _observing(
    figure: Figure, shared_look: _SharedLook, observation: type[Observation]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    names = [f"busyguard.{label}" for label in figure.labels]

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        shown = shared_look()
        return [
            observation(
                value.total if figure.kind == HISTOGRAM else value,
                dict(zip(names, labels, strict=True)),
            )
            for labels, value in (figure.read(shown) if shown else ())
        ]

    return observe


class _SharedLook:
    """Looks once for all instruments of a collection. A reader collects on one thread."""

    def __init__(self, monitor: Watched, agent: KnowsBalancers | None) -> None:
        self._monitor = monitor
        self._agent = agent
        self._shown: LoadReport | None = None
        self._at = -FRESH_SECONDS

    def __call__(self) -> LoadReport | None:
        now = time.monotonic()
        if now - self._at >= FRESH_SECONDS:
            self._at = now
            leads = self._monitor.is_leader()
            self._shown = look(self._monitor, self._agent) if leads else None
        return self._shown
