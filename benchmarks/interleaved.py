"""Interleaved rounds: how our benchmarks compare the cost of WSGI apps.

A round runs every case once, in an order of its own, so that whatever else the machine does hits
all of them alike. Cases are compared within a round, and the median over the rounds is what counts.
Time is the CPU time of this thread, which is not taken by others who wait for the same core.

A process is a few per cent slower or faster in all its rounds than the next one of the same code:
where its dicts lie is chance. So what shall be compared with another run is of several.

Nothing here knows what is measured.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import random
import statistics
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.util import FileWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    App = Callable[[dict[str, Any], Callable[..., Any]], Any]

# What gunicorn and waitress put into an environ before they look at the headers.
SERVER = {
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": io.BytesIO(),
    "wsgi.errors": io.StringIO(),
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.file_wrapper": FileWrapper,
    "wsgi.input_terminated": True,
    "SERVER_SOFTWARE": "server/1.0",
    "SERVER_NAME": "10.0.0.7",
    "SERVER_PORT": "8080",
    "REMOTE_ADDR": "10.0.0.2",
    "REMOTE_PORT": "41234",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "RAW_URI": "/",
}

#: A page that a browser asks for, behind a balancer.
PAGE = {
    **SERVER,
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/shop/item/1234",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "shop.example",
    "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "HTTP_ACCEPT_LANGUAGE": "en-GB,en;q=0.7,de;q=0.3",
    "HTTP_ACCEPT_ENCODING": "gzip, deflate, br, zstd",
    "HTTP_COOKIE": "sessionid=2f6a1b0c4d5e6f708192a3b4c5d6e7f8; csrftoken=0123456789abcdef",
    "HTTP_REFERER": "http://shop.example/shop",
    "HTTP_CONNECTION": "keep-alive",
    "HTTP_UPGRADE_INSECURE_REQUESTS": "1",
    "HTTP_SEC_FETCH_DEST": "document",
    "HTTP_SEC_FETCH_MODE": "navigate",
    "HTTP_SEC_FETCH_SITE": "same-origin",
    "HTTP_X_FORWARDED_FOR": "192.0.2.60",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "shop.example",
}


def check(method: str, path: str, **headers: str) -> dict[str, Any]:
    """Return the environ of a check, as a balancer sends it: hardly a header."""
    request = {"REQUEST_METHOD": method, "PATH_INFO": path, "SERVER_PROTOCOL": "HTTP/1.0"}
    return {**SERVER, **request, **headers}


class Case(NamedTuple):
    """Something that is timed.

    :param run: does what is timed as often as it is told.
    :param compared_to: the name of the case that this one is a multiple of; itself, if no other.
    """

    name: str
    run: Callable[[int], None]
    compared_to: str


class Figures(NamedTuple):
    """What became of a case.

    :param us: microseconds of CPU for one: the median of the fastest quarter of the rounds. A
        neighbour on the same core makes everything up to 1.8 times slower, ratios excepted.
    :param ratio: the median of its ratios, each to the compared case of the same round.
    :param low: the lower quartile of these.
    :param high: the upper quartile.
    :param medians: where it is of several processes, the median of each. Then all else is the
        median of what these have.
    """

    us: float
    ratio: float
    low: float
    high: float
    medians: tuple[float, ...] = ()


def served(app: App, template: dict[str, Any]) -> Callable[[int], None]:
    """Return a loop that does with ``app`` what every server must do for each request.

    A fresh environ with a path just decoded (so that its hash is not known yet), a call, the body
    iterated and closed. Nothing is parsed and nothing is sent: that would dilute the ratios.
    """
    raw_path = template["PATH_INFO"].encode()

    def run(times: int) -> None:
        for _ in repeat(None, times):
            environ = template.copy()
            environ["PATH_INFO"] = raw_path.decode("latin-1")
            body = app(environ, start_response)
            for _chunk in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()

    return run


def called(app: App, template: dict[str, Any]) -> Callable[[int], None]:
    """Return a loop that only calls ``app``, always with the same environ.

    No server gets away with so little; it shows what the harness of :func:`served` hides. Only for
    apps of which nothing has to be iterated or closed.
    """
    environ = template.copy()

    def run(times: int) -> None:
        for _ in repeat(None, times):
            app(environ, start_response)

    return run


def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    """Take the status and the headers, and do nothing with them."""
    return bytes


def compare(cases: Sequence[Case], rounds: int, slice_ms: float) -> dict[str, Figures]:
    """Run ``rounds`` rounds over ``cases``, each for about ``slice_ms`` in a round."""
    times = {case.name: _times(case, slice_ms / 1000) for case in cases}
    gc.collect()
    gc.freeze()  # what stands is not gone through again on behalf of whoever runs just then
    order, took = list(cases), {case.name: [] for case in cases}
    for _ in repeat(None, rounds):
        random.shuffle(order)
        for case in order:
            took[case.name].append(_seconds(case, times[case.name]) / times[case.name])
    return {
        case.name: _figures(took[case.name], took[case.compared_to or case.name]) for case in cases
    }


def in_processes(
    measure: Callable[..., dict[str, Figures]], processes: int, *args: Any
) -> dict[str, Figures]:
    """Return what ``measure(*args)`` finds in so many new processes, one after the other.

    :param measure: a function of a module, not of ``__main__``'s guard.
    """
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = [pool.apply(measure, args) for _ in range(processes)]
    return {name: merged([each[name] for each in found]) for name in found[0]}


def merged(found: Sequence[Figures]) -> Figures:
    """Return the figures of a case in several processes as one."""
    us, ratio, low, high = (statistics.median(each[place] for each in found) for place in range(4))
    return Figures(us, ratio, low, high, tuple(each.ratio for each in found))


def _times(case: Case, seconds: float) -> int:
    """Return how often ``case`` has to be done to last about ``seconds``; warms it up."""
    times = 50
    while True:
        took = _seconds(case, times)
        if took > seconds / 4:
            return max(10, round(times * seconds / took))
        times *= 2


def _seconds(case: Case, times: int) -> float:
    start = time.thread_time_ns()
    case.run(times)
    return (time.thread_time_ns() - start) / 1e9


def _figures(took: list[float], compared: list[float]) -> Figures:
    ratios = [mine / other for mine, other in zip(took, compared, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    fastest = statistics.quantiles(took, n=8)[0]
    return Figures(fastest * 1e6, ratio, low, high)
