"""The rows of overload.py, and what each must reach: DESIGN's figures as a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from crowded import APPS

EVERY = ("stock", "pick-up", "slots", "gate")
HAND = (1, 2, 4, 10, 32)


class Row(NamedTuple):
    """One server under one load.

    :ivar told: the guard's client_timeout, which need not be the visitors' patience.
    :ivar slots: of the guard; one of "slots" has a server with five times as many threads and two,
        unless ``threads`` says something else.
    :ivar hand: whether nothing but ``slots`` decides how many are in the app.
    """

    table: str
    app: str
    server: str
    guard: str
    load: float = 0.0
    patience: float = 1.0
    told: float = 1.0
    slots: int = 10
    threads: int | None = None
    hand: bool = False
    way: str = "poisson"

    @property
    def words(self) -> tuple[str, ...]:
        """What it is called, and chosen by."""
        guard, wide = self.guard, self.table == "hand"
        if wide:
            guard = str(self.slots) if self.hand else "adaptive"
        elif self.guard == "slots" and self.threads:
            guard = f"slots={self.slots}"
        load = f"{self.load:g}x" if self.load else ""
        way = "" if self.way == "poisson" else self.way.replace(" ", "-")
        return tuple(filter(None, (self.table, self.app, self.server, guard, way, load)))

    @property
    def light(self) -> bool:
        """Whether others may run beside it."""
        return self.app in ("sleeps", "long") and self.load <= 2

    @property
    def capacity(self) -> float:
        """Requests a second that the app can serve."""
        app = APPS[self.app]
        return app.most if self.table == "hand" else app.ten

    def site(self, fd: int) -> dict[str, Any]:
        """Return what crowded.py has to serve."""
        threads = self.threads or (5 * self.slots + 2 if self.guard == "slots" else self.slots)
        options = {"client_timeout": self.told} | ({"adaptive": False} if self.hand else {})
        names = ("app", "server", "guard", "slots")
        found = {name: getattr(self, name) for name in names}
        return {**found, "fd": fd, "threads": threads, "options": options}

    def plan(self, port: int, seconds: float) -> dict[str, Any]:
        """Return what crowd.py has to do."""
        plan = {"port": port, "patience": self.patience, "way": self.way, "seconds": seconds}
        plan |= {"rate": self.capacity * self.load}
        if self.way == "poisson":
            return plan | {"skip": 3 if max(self.told, self.patience) <= 1 else 8}
        sizes = {"batches": 2 * self.slots, "pages": 6, "at once": 20}
        # As often as four HAProxies check. Behind a server's threads a check is one more of those
        # who wait, and many of them a crowd of their own.
        return plan | {"skip": 0, "size": sizes[self.way], "tries": 1, "check_every": 0.5}


class Seen(NamedTuple):
    """What came of a row. Seconds and shares; None where nobody saw it.

    :ivar goodput: of the capacity, and in the seconds that are not counted.
    :ivar calm50, calm99: of one visitor alone.
    :ivar check99: of a check on the port of the visitors.
    :ivar late: by which the visitors came later than they should have, one time in a hundred.
    :ivar by_second: ratios of each second that counts, by name.
    """

    goodput: float
    first: float | None
    p50: float | None
    p99: float | None
    calm50: float | None
    calm99: float | None
    refused: float
    refused_after: float | None
    check99: float | None
    left: float
    broken: int
    asked: int
    late: float
    by_second: dict[str, list[float]] | None = None


class Must(NamedTuple):
    """One figure that a row must reach."""

    what: str
    least: bool
    wanted: float
    found: float | None

    @property
    def met(self) -> bool:
        """Whether it does; a thousandth of a share, or of a second, is nothing."""
        if self.found is None:
            return False
        return (
            self.found >= self.wanted - 0.005 if self.least else self.found <= self.wanted + 0.001
        )


def grid() -> list[Row]:
    """Return all rows."""
    servers = ("twisted", "gunicorn", "waitress")
    ours = (("twisted", "gate"), ("gunicorn", "gate"), ("waitress", "pick-up"))
    fours = (*ours, ("waitress", "slots"))
    rows = [
        Row("overload", app, server, guard, load)
        for app, loads in (("sleeps", (1.2, 2, 5, 10)), ("computes", (2, 5, 10)))
        for server in servers
        for guard in EVERY
        for load in loads
    ]
    rows += [
        Row("overload", app, server, guard, load)
        for app in ("mixed", "free", "lightheavy")
        for server, guard in (("twisted", "stock"), *fours)
        for load in (2, 10)
    ]
    rows += [
        Row("hand", app, "twisted", "gate", load, slots=slots or 32, hand=bool(slots))
        for app in ("sleeps", "computes", "mixed", "free", "lightheavy")
        for load in (2, 5)
        for slots in (*HAND, None)
    ]
    rows += [
        Row("patient", app, *place, load, patience=5, told=5)
        for app in ("sleeps", "computes")
        for place in ours
        for load in (2, 10)
    ]
    rows += [Row("told5", "half", *place, load, told=5) for place in fours for load in (2, 10)]
    rows += [
        Row("needless", app, *place, load)
        for app in ("sleeps", "computes")
        for place in fours
        for load in (0.7, 0.8, 0.9)
    ]
    return rows + bursts(fours)


def bursts(places: Any) -> list[Row]:
    """Return the rows in which many come together, and nobody asks for more than can be served."""
    few = {"slots": 4, "patience": 5, "told": 5}
    rows = [
        Row("bursts", "sleeps", *place, 0.7, patience=5, told=5, way="batches") for place in places
    ]
    for way, app in (("pages", "sleeps"), ("at once", "long")):
        for server, guard in (*places, ("waitress", "gate"), ("waitress", "stock")):
            rows.append(Row("bursts", app, server, guard, way=way, **few))
        crammed = {**few, "slots": 8, "threads": 4}
        rows.append(Row("bursts", app, "waitress", "slots", way=way, **crammed))
    return rows


QUICK = """
overload sleeps twisted stock 2x
overload sleeps twisted gate 2x
overload sleeps waitress pick-up 2x
overload sleeps gunicorn pick-up 2x
needless sleeps twisted gate 0.9x
needless sleeps waitress pick-up 0.9x
bursts sleeps twisted gate batches 0.7x
bursts sleeps waitress slots=8 pages
bursts long waitress pick-up at-once
overload sleeps waitress pick-up 5x
overload computes twisted stock 2x
overload computes twisted gate 2x
overload computes twisted gate 10x
overload computes gunicorn gate 5x
overload computes waitress pick-up 2x
overload mixed twisted gate 2x
told5 half twisted gate 2x
"""


def musts(row: Row, seen: Seen) -> list[Must]:
    """Return the figures of DESIGN's section 10 that concern a row."""
    if row.guard == "stock" or row.table == "hand":
        return []
    if row.table == "bursts":
        return [Must("refused", False, 0.005 if row.way == "batches" else 0, seen.refused)]
    if row.load < 1:
        return [
            Must("refused", False, {0.7: 0.001, 0.8: 0.002, 0.9: 0.005}[row.load], seen.refused)
        ]
    wanted = _goodput(row)
    found = [] if wanted is None else [Must("goodput", True, wanted, seen.goodput)]
    if row.load < 2:
        return found
    service = APPS[row.app].service
    if row.table != "told5":
        found += [
            Must("p50", False, seen.calm50 + service, seen.p50),
            Must("p99", False, seen.calm99 + service, seen.p99),
        ]
    found += [Must("refusals", False, 0.05, seen.refused_after)]
    if row.guard != "pick-up" and row.app == "computes":
        found += [Must("checks", False, 0.1, seen.check99)]
    return found


def _goodput(row: Row) -> float | None:
    if row.table == "told5":
        return {2: 0.95, 10: 0.9}[row.load]
    if row.load < 2:
        return 0.99
    if row.app != "sleeps":
        return {2: 0.95, 5: 0.9, 10: 0.85}[row.load]
    if row.guard != "pick-up":
        return 0.99
    known = {"waitress": {2: 0.95, 5: 0.95}, "gunicorn": {2: 0.9, 5: 0.75}}
    return known.get(row.server, {}).get(row.load)


def beside_hand(found: list[dict[str, Any]]) -> list[tuple[str, list[Must]]]:
    """Return what adaptive slots must reach: the best of those set by hand, of the same run."""
    rows = [(Row(**each["row"]), Seen(**each["seen"])) for each in found if not each["against"]]
    verdicts = []
    for row, seen in rows:
        rivals = [
            (other.goodput, -(other.p99 or 99.0), rival.slots)
            for rival, other in rows
            if rival.hand and (rival.app, rival.load) == (row.app, row.load)
        ]
        if row.table == "hand" and not row.hand and rivals:
            best, p99, slots = max(rivals)
            # Of those that serve as much, the one that does it soonest.
            best, p99, slots = max(
                (each for each in rivals if each[0] >= best - 0.02), key=_soonest
            )
            verdict = [
                Must("goodput", True, 0.95 * best, seen.goodput),
                Must("p99", False, 1.2 * -p99, seen.p99),
            ]
            verdicts.append((f"{' '.join(row.words)} beside {slots} by hand", verdict))
    return verdicts


def _soonest(rival: tuple[float, float, int]) -> float:
    return rival[1]
