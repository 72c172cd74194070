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
    since = "5 min ago" if reach(ages) == KEPT_LOOKS else f"{span(int(reach(ages)))} ago"
    drawn = [draw(ages, looks, since) for draw in (_queue, _inside, _wait)]
    if last.served is not None:
        drawn.append(_flow(ages, looks, since))
    return "".join(drawn)


def _queue(ages: Sequence[float], looks: Sequence[Look], since: str) -> str:
    queued = [look.queued for look in looks]
    most = grouped(max(queued))
    drawing = chart(ages, queued, max(queued), says=f"queue, at most {most}")
    return _figure("Queue", grouped(queued[-1]), f"most {most}", drawing, since)


def _inside(ages: Sequence[float], looks: Sequence[Look], since: str) -> str:
    active, capacity = [look.active for look in looks], [look.capacity for look in looks]
    most, limit = max(active), max([n for n in capacity if n is not None], default=0)
    # The limit is drawn, with room above it, where what is below it can still be seen.
    is_near = most * 5 >= limit
    top, line = (1.1 * max(most, limit), capacity) if is_near else (1.1 * most, ())
    drawing = chart(ages, active, top, line=line, says=f"in the app, at most {grouped(most)}")
    now = of(active[-1], capacity[-1])
    return _figure("In the app", now, f"most {grouped(most)}", drawing, since)


def _now(shown: LoadReport, last: Look) -> Look:
    """Return the last look as it would be now, of the very instant that all the page tells of."""
    delay = None if shown_state(shown) == STALLED else shown["delay"]
    queued, active, capacity = shown["queued"], shown["active"], shown["capacity"]
    return last._replace(queued=queued, active=active, capacity=capacity, delay=delay)


def _wait(ages: Sequence[float], looks: Sequence[Look], since: str) -> str:
    delays = [look.delay for look in looks]
    longest = max([delay for delay in delays if delay is not None], default=None)
    drawing = chart(ages, delays, longest or 0.0, says=f"wait, at most {span(longest)}")
    most = "" if longest is None else f"most {span(longest)}"
    return _figure("Wait", span(delays[-1]), most, drawing, since)


def _flow(ages: Sequence[float], looks: Sequence[Look], since: str) -> str:
    served, refused = rates(looks)
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
    if number is None:
        return DASH
    whole = number >= 9.95 or number == int(number)
    return f"{grouped(number) if whole else f'{number:.1f}'}/s"


def _figure(name: str, now: str, most: str, drawing: str, since: str) -> str:
    return (
        f"<figure><figcaption><b>{name}</b> <span>{now}</span></figcaption>{drawing}"
        f'<p class="axis"><span>{since}</span><span>{most}</span><span>now</span></p></figure>'
    )
