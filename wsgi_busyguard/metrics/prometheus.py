"""The figures for Prometheus, read when it scrapes.

On the check port at ``/metrics``, and as a collector for a registry of your own. Under several
processes each scrape tells the whole host, so Prometheus' multiprocess mode is not needed.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from ..policy import DAMPED, DAMPED_PATIENCE
from ..responses import LONGEST_ACCEPT
from .figures import COUNTER, FIGURES, GAUGE, HISTOGRAM, TIME, Figure, Times
from .report import look

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from ..counters import Watched
    from ..load_report import KnowsBalancers

PREFIX = "busyguard_"


def named(figure: Figure) -> str:
    """Return what a figure is called; to a counter Prometheus' own libraries add ``_total``."""
    return PREFIX + figure.name + ("_seconds" if figure.unit == TIME else "")


class Collector:
    """A collector of the figures of one guard, which are read anew for each scrape.

    ``REGISTRY.register(Collector(guard.monitor))``. Where processes share a board, one of them
    tells the figures of all.

    :param monitor: a :class:`~wsgi_busyguard.Monitor`, or what watches several processes.
    :param agent: knows the balancers that ask.
    :param ready: the policy that ``busyguard_is_ready`` follows; ``patience`` is for it.
    :raises ImportError: without ``prometheus_client``.

    A scrape makes fresh metrics and takes no lock of ``prometheus_client``'s.
    """

    def __init__(
        self,
        monitor: Watched,
        agent: KnowsBalancers | None = None,
        *,
        ready: str = DAMPED,
        patience: float = DAMPED_PATIENCE,
    ) -> None:
        from prometheus_client import core  # costs more to import than all of ours

        self.agent = agent
        self._look = partial(look, monitor, ready=ready, patience=patience)
        self._kinds = {
            GAUGE: core.GaugeMetricFamily,
            COUNTER: core.CounterMetricFamily,
            HISTOGRAM: core.HistogramMetricFamily,
        }

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry need not look to know that no other has these names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every figure that is known."""
        shown = self._look(agent=self.agent)
        for figure in FIGURES:
            samples = list(figure.read(shown))
            if samples:
                family = self._kinds[figure.kind](named(figure), figure.says, labels=figure.labels)
                for labels, value in samples:
                    if figure.kind == HISTOGRAM:
                        family.add_metric(labels, buckets(value), value.total)
                    else:
                        family.add_metric(labels, value)
                yield family


def buckets(times: Times) -> list[tuple[str, int]]:
    """Return the buckets as Prometheus has them: each with all that are below it."""
    bounds = [*map(repr, times.bounds), "+Inf"]
    return list(zip(bounds, accumulate(times.counts), strict=True))


class Exposition:
    """Writes what a collector collects, in the format that a scraper asks for.

    :raises ImportError: without ``prometheus_client``.

    Calling it imports nothing, logs nothing and takes no lock.
    """

    def __init__(self, collector: Collector) -> None:
        from prometheus_client.exposition import choose_encoder

        self.collector = collector
        self._choose = choose_encoder

    def __call__(self, accept: str | None) -> tuple[bytes, str]:
        """Return the text and its content type."""
        try:
            encode, content_type = self._choose((accept or "")[:LONGEST_ACCEPT])
        except Exception:  # a version that is no number, say
            encode, content_type = self._choose("")
        # All an encoder asks of a registry is to collect.
        return encode(self.collector), content_type
