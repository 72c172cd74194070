"""The charts of the last minutes, with the figures of now above them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .charts import chart, reach
from .formatting import DASH, grouped, of, span
from .history import KEPT_LOOKS, rates
from .processes import STALLED, shown_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..load_report import LoadReport
    from .history import Look


def minutes(shown: LoadReport, looks: Sequence[Look]) -> str:
    """Return the charts, the oldest look on the left."""
    if not looks:
        return ""
    looks = [*looks[:-1], _now(shown, looks[-1])]
    last = looks[-1]
    ages = [last.at - look.at for look in looks]
    queued = [float(look.queued) for look in looks]
    active = [float(look.active) for look in looks]
    capacity = [None if look.capacity is None else float(look.capacity) for look in looks]
    delays = [look.delay for look in looks]
    served, refused = rates(looks)
    most = max(queued)
    since = "5 min ago" if reach(ages) == KEPT_LOOKS else f"{span(int(reach(ages)))} ago"
    drawn = [
        _figure(
            "Queue",
            grouped(last.queued),
            f"most {grouped(most)}",
            chart(ages, queued, most, says=f"queue, at most {grouped(most)}"),
            since,
        ),
        _figure(
            "In the app",
            of(last.active, last.capacity),
            f"most {grouped(max(active))}",
            chart(
                ages,
                active,
                _top(active, capacity),
                line=capacity if _is_near(active, capacity) else (),
                says=f"in the app, at most {grouped(max(active))}",
            ),
            since,
        ),
    ]
    drawn.append(_wait(ages, delays, since))
    if last.served is not None:
        drawn.append(_flow(ages, served, refused, since))
    return "".join(drawn)


def _is_near(active: Sequence[float], capacity: Sequence[float | None]) -> bool:
    """Return whether the limit can be drawn, and what is below it still be seen."""
    return max(active) * 5 >= max([n for n in capacity if n is not None], default=0.0)


def _top(active: Sequence[float], capacity: Sequence[float | None]) -> float:
    """Return the value at the upper edge, with room above the limit where that is drawn."""
    limit = max([n for n in capacity if n is not None], default=0.0)
    most = max(active)
    return (max(most, limit) if _is_near(active, capacity) else most) * 1.1


def _now(shown: LoadReport, last: Look) -> Look:
    """Return the last look as it would be now, of the very instant that all the page tells of."""
    delay = None if shown_state(shown) == STALLED else shown["delay"]
    queued, active, capacity = shown["queued"], shown["active"], shown["capacity"]
    return last._replace(queued=queued, active=active, capacity=capacity, delay=delay)


def _wait(ages: Sequence[float], delays: Sequence[float | None], since: str) -> str:
    """Return the chart of how long a request would wait that comes then."""
    longest = max([delay for delay in delays if delay is not None], default=None)
    drawing = chart(ages, delays, longest or 0.0, says=f"wait, at most {span(longest)}")
    most = "" if longest is None else f"most {span(longest)}"
    return _figure("Wait", span(delays[-1]), most, drawing, since)


def _flow(
    ages: Sequence[float],
    served: Sequence[float | None],
    refused: Sequence[float | None],
    since: str,
) -> str:
    """Return the chart of what goes out."""
    top = max([n for n in [*served, *refused] if n is not None], default=0.0)
    now, gone = served[-1], refused[-1]
    more = f', <span class="bad">refused {_rate(gone)}</span>' if any(refused) else ""
    says = f"served a second, at most {_rate(top)}"
    drawing = chart(ages, served, top, second=_raised(refused), says=says)
    return _figure("Served", f"{_rate(now)}{more}", f"most {_rate(top)}", drawing, since)


def _raised(values: Sequence[float | None]) -> list[float | None]:
    """Return the values without those on the ground: a line there would be red for nothing."""
    around = zip([None, *values[:-1]], values, [*values[1:], None], strict=True)
    return [here if before or here or after else None for before, here, after in around]


def _rate(number: float | None) -> str:
    """Return a number a second."""
    if number is None:
        return DASH
    whole = number >= 9.95 or number == int(number)
    return f"{grouped(number) if whole else f'{number:.1f}'}/s"


def _figure(name: str, now: str, most: str, drawing: str, since: str) -> str:
    return (
        f"<figure><figcaption><b>{name}</b> <span>{now}</span></figcaption>{drawing}"
        f'<p class="axis"><span>{since}</span><span>{most}</span><span>now</span></p></figure>'
    )
