"""How much of its capacity a server gets out to people when too many come, and who is refused.

Real Twisted, gunicorn and waitress, each in a process of its own, with apps that sleep, compute, do
both, compute without the interpreter's lock, or are light and heavy. Visitors in another process
come at random whether or not they are served (open loop, Poisson, one seed), give up after 1 s and
try once more. The server is stock, or behind BusyGuard(app) ("pick-up"), behind BusyGuard(app,
slots=) on spare threads ("slots"), or guarded in front ("gate": guarded_site, GuardedThreads,
guarded_server). Each row is held to DESIGN's figures, where there is one: met, or MISSED and what.

    python benchmarks/overload.py --quick                under two minutes
    python benchmarks/overload.py computes gate,stock 2x,10x      the rows that have all of these
    python benchmarks/overload.py hand mixed             slots by hand beside adaptive ones
    python benchmarks/overload.py bursts --against DIR   and another version of it, in turns
    python benchmarks/overload.py --list                 all rows, which are run without words
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from crowded import APPS, BACKLOG
from figures import LESS, MORE, Figure, as_json, figure, machine
from overload_rows import QUICK, Must, Row, Seen, beside_hand, grid, musts

HERE = Path(__file__).parent
AT_ONCE = 3  # rows whose app sleeps and whose load is small; the others have the machine
LATEST = 0.025  # visitors who came later than this, in one time of a hundred, measured themselves
STARTED: set[subprocess.Popen[Any]] = set()


def run(row: Row, seconds: float, package: str | None) -> Seen:
    """Have the visitors come to the server, and return what they saw."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # of those accepted, too
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        port, fd = listener.getsockname()[1], listener.fileno()
        path = {"PYTHONPATH": package} if package else {}
        command = [sys.executable, str(HERE / "crowded.py"), json.dumps(row.site(fd))]
        server = subprocess.Popen(
            command,
            pass_fds=[fd],
            start_new_session=True,
            env={**os.environ, **path},
            stderr=None if os.environ.get("SHOW") else subprocess.DEVNULL,
        )
    STARTED.add(server)
    try:
        command = [sys.executable, str(HERE / "crowd.py"), json.dumps(row.plan(port, seconds))]
        visitors = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        STARTED.add(visitors)
        said, _ = visitors.communicate()
        STARTED.discard(visitors)
    finally:
        end(server)
    if visitors.returncode:
        sys.exit(f"{' '.join(row.words)}: the server did not answer; SHOW=1 shows what it says")
    return summary(row, seconds, json.loads(said))


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its children: a stock pool does not end while a thread is in the app."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    STARTED.discard(process)


def summary(row: Row, seconds: float, said: dict[str, Any]) -> Seen:
    """Make figures of what the visitors say."""
    skip = row.plan(0, seconds)["skip"]
    ended = [(at + took, status, took, work) for at, status, took, work in said["attempts"]]
    inside = [each for each in ended if skip <= each[0] < skip + seconds] if row.load else ended
    good = [took for _, status, took, _ in inside if status == 200]
    refused = [took for _, status, took, _ in inside if status >= 400]
    checks = [took for at, _, took, _ in said["checks"] if at + took >= skip]
    count = max(1, len(inside))
    return Seen(
        goodput=_goodput_in(row, ended, skip, skip + seconds),
        first=_goodput_in(row, ended, 0, skip) if skip else None,
        p50=_at(good, 0.5),
        p99=_at(good, 0.99),
        calm50=_at(said["calm"], 0.5),
        calm99=_at(said["calm"], 0.99),
        refused=len(refused) / count,
        refused_after=_at(refused, 0.5),
        check99=_at(checks, 0.99),
        left=sum(status == 0 for _, status, *_ in inside) / count,
        broken=sum(status < 0 for _, status, *_ in inside),
        asked=len(inside),
        late=_at(said["late"], 0.99) or 0.0,
        by_second=_by_second(row, ended, skip, skip + seconds, _at(said["calm"], 0.5)),
    )


def _by_second(
    row: Row, ended: list[Any], begin: float, end: float, calm: float | None
) -> dict[str, list[float]]:
    """Return the ratios of each second, whose quartiles are the noise of the run."""
    found: dict[str, list[float]] = {"goodput": [], "refused": [], "p50 / alone": []}
    for number in range(int(end - begin)):
        since = begin + number
        inside = [each for each in ended if since <= each[0] < since + 1]
        took = _at([took for _, status, took, _ in inside if status == 200], 0.5)
        if row.load:
            found["goodput"].append(_goodput_in(row, ended, since, since + 1))
        if inside:
            refused = sum(status >= 400 for _, status, *_ in inside)
            found["refused"].append(refused / len(inside))
        if took and calm:
            found["p50 / alone"].append(took / calm)
    return found


def figures(row: Row, seen: Seen) -> dict[str, Figure | None]:
    """Return the ratios of a row for compare.py. In an overload it is right to refuse."""
    name = " ".join(row.words)
    by_second = seen.by_second or {}
    wanted = {"goodput": MORE} if row.load >= 1 else {"refused": LESS}
    return {
        f"{name}: {what}": figure(by_second.get(what, []), better)
        for what, better in (wanted | {"p50 / alone": LESS}).items()
    }


def _goodput_in(row: Row, ended: list[Any], begin: float, end: float) -> float:
    """Return the share of the capacity that got out to people between two moments.

    What was served across one of them counts in part: ten threads that sleep do it in step. What an
    app that sleeps can do is what its threads have time for; how long a sleep is, it says itself.
    """
    service, sleeps = APPS[row.app].service, row.app in ("sleeps", "long")
    served = 0.0
    for at, status, _, work in ended:
        if status == 200:
            span = work if sleeps else service
            served += max(0.0, min(at, end) - max(at - span, begin)) / service
    return served / (end - begin) / row.capacity


def _at(values: list[float], share: float) -> float | None:
    """Return a percentile, or None if there is nothing to take it of."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


WIDTHS = (8, 7, 7, 7, 9, 6, 9, 7, 9, 7, 7)
NAMES = ("goodput", "first", "p50", "p99", "p50", "p99")
NAMES += ("refused", "after", "check99", "left", "late")
ABOVE = ("%", "%", "ms", "ms", "alone", "ms", "%", "ms", "ms", "%", "ms")


def heads() -> str:
    """Return the two lines above the table."""
    return "\n".join(
        " " * 48 + "".join(f"{word:>{width}}" for word, width in zip(words, WIDTHS, strict=True))
        for words in (ABOVE, NAMES)
    )


def line(name: str, row: Row, seen: Seen, verdict: str) -> str:
    """Return a row of the table."""
    load = row.load or None
    shares = (load and seen.goodput, load and seen.first, seen.refused, seen.left)
    goodput, first, refused, left = (_text(part, 100, 1) for part in shares)
    times = (seen.p50, seen.p99, seen.calm50, seen.calm99, seen.refused_after, seen.check99)
    p50, p99, calm50, calm99, after, check99 = (_text(time, 1000, 0) for time in times)
    late = _text(seen.late, 1000, 0)
    cells = (goodput, first, p50, p99, calm50, calm99, refused, after, check99, left, late)
    texts = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    return f"{name:48}{''.join(texts)}  {verdict}"


def _text(value: float | None, factor: int, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def judged(must: list[Must], seen: Seen) -> str:
    """Return a row's verdict in words."""
    broken = f"; {seen.broken} connections broken" if seen.broken else ""
    if seen.late > LATEST:
        return "not counted: the visitors were late themselves" + broken
    if not must:
        return broken.lstrip("; ")
    missed = [each.what for each in must if not each.met]
    return (f"MISSED: {', '.join(missed)}" if missed else "met") + broken


def chosen(words: list[str], quick: bool) -> list[Row]:
    """Return the rows that have all of the words; a comma means or."""
    rows = grid()
    if quick and not words:
        names = set(QUICK.strip().splitlines())
        rows = [row for row in rows if " ".join(row.words) in names]
        assert len(rows) == len(names), names - {" ".join(row.words) for row in rows}
    rows = [row for row in rows if all(set(word.split(",")) & set(row.words) for word in words)]
    if not rows:
        sys.exit(f"no row has all of: {' '.join(words)}; --list shows them")
    return sorted(rows, key=lambda row: not row.light)


def measure(
    rows: list[Row], quick: bool, packages: list[str | None], found: list[dict[str, Any]]
) -> None:
    """Run the rows, the light ones first; print and keep each when it is there."""
    jobs = [(row, package) for row in rows for package in packages]
    began = time.monotonic()

    def one(job: tuple[Row, str | None]) -> Seen:
        row, package = job
        seconds = 4.0 if quick else 20.0 if row.load < 1 else 6.0
        return run(row, seconds, package)

    def tell(job: tuple[Row, str | None], seen: Seen) -> None:
        row, package = job
        must = musts(row, seen)
        name = " ".join(row.words) + (" (against)" if package else "")
        print(line(name, row, seen, judged(must, seen)), flush=True)
        counted = seen.late <= LATEST
        musted = [{**each._asdict(), "met": each.met} for each in must]
        found.append(
            {"row": row._asdict(), "seen": seen._asdict(), "against": package}
            | {"counted": counted, "must": musted, "figures": as_json(figures(row, seen))}
        )
        rest = (time.monotonic() - began) / len(found) * (len(jobs) - len(found))
        if sys.stderr.isatty():
            sys.stderr.write(f"{len(found)} of {len(jobs)}, {rest:.0f} s to go \r")

    light = [job for job in jobs if job[0].light]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for job, seen in zip(light, pool.map(one, light), strict=True):
            tell(job, seen)
    for job in jobs[len(light) :]:
        tell(job, one(job))


def conditions() -> dict[str, Any]:
    """Return what there is to know of the machine and the moment."""
    return {**machine(), "load average": round(os.getloadavg()[0], 1)}


def close(found: list[dict[str, Any]], began: float) -> None:
    """Print what is to be said of all rows together."""
    compared = beside_hand(found)
    for name, must in compared:
        missed = [_missed(each) for each in must if not each.met]
        print(f"{name}: {'MISSED: ' + '; '.join(missed) if missed else 'met'}")
    ours = [each for each in found if not each["against"] and each["counted"]]
    verdicts = [all(must["met"] for must in each["must"]) for each in ours if each["must"]]
    verdicts += [all(each.met for each in must) for _, must in compared]
    says = [f"{key} {value}" for key, value in conditions().items()]
    print(
        f"{sum(verdicts)} of {len(verdicts)} rows met; {time.monotonic() - began:.0f} s; "
        + ", ".join(says)
    )


def write(file: Path, found: list[dict[str, Any]]) -> None:
    """Write all of it, for compare.py the ratios of those rows that count."""
    counted = [each for each in found if each["counted"] and not each["against"]]
    ratios = {name: said for each in counted for name, said in each["figures"].items()}
    file.write_text(json.dumps({**conditions(), "figures": ratios, "rows": found}, indent=1))


def _missed(must: Must) -> str:
    found = "none" if must.found is None else f"{must.found:.3g}"
    return f"{must.what} {found}, must {must.wanted:.3g}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only rows that have all of these; a,b: either")
    parser.add_argument("--quick", action="store_true", help="few rows, or the chosen ones for 4 s")
    parser.add_argument("--list", action="store_true", help="print the rows and go")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--against", metavar="DIR", help="a folder with another version of the package"
    )
    options = parser.parse_args()
    rows = chosen(options.words, options.quick)
    if options.list:
        print("\n".join(" ".join(row.words) for row in rows))
        return
    packages = [None] + ([options.against] if options.against else [])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    began = time.monotonic()
    print(heads(), flush=True)
    found: list[dict[str, Any]] = []
    try:
        measure(rows, options.quick, packages, found)
    finally:
        for process in list(STARTED):
            end(process)
        close(found, began)
        if options.json:
            write(options.json, found)


if __name__ == "__main__":
    main()
