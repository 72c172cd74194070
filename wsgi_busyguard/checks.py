"""Which requests are checks, and what they ask. Knows requests, not answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from .policy import DAMPED, known_policy

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

METHODS = ("GET", "HEAD", "OPTIONS")

# An OPTIONS request with one of these has somebody behind it: a browser that asks before a
# cross-origin request (Fetch standard, "CORS preflight"), or a client of the proxy that passed it
# on. It belongs to the app.
SOMEBODY_BEHIND = (
    "HTTP_ORIGIN",
    "HTTP_ACCESS_CONTROL_REQUEST_METHOD",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_FORWARDED",
    "HTTP_VIA",
    "HTTP_X_REAL_IP",
)

# What a check asks for fits many times. Whoever sends more is nobody's balancer, and the loop that
# answers checks must not parse 262 kB for it: 68 ms.
LONGEST_QUERY = 1024

#: What a check asks: should new requests come here? Does the interpreter make progress?
READY, LIVE = QUESTIONS = ("ready", "live")


class Ask(NamedTuple):
    """A check.

    :param question: what is asked.
    :param method: the request's method.
    :param ready: the ready policy it goes by; one that it names is not necessarily a known one.
    :param warn: the status it wants for busy but still ready, if any; not necessarily 429.
    """

    question: str
    method: str
    ready: str = DAMPED
    warn: str | None = None


class Checks:
    """The requests that are taken for checks.

    :param root: whether ``OPTIONS /`` and ``OPTIONS *`` are, as bare ``option httpchk`` sends it.
    :param ready_paths: paths that ask whether new requests should come here.
    :param live_paths: paths that ask whether the interpreter makes progress.
    :param ready: the policy of those that name none.
    """

    def __init__(
        self,
        root: bool = True,
        ready_paths: Iterable[str] = (),
        live_paths: Iterable[str] = (),
        ready: str = DAMPED,
    ) -> None:
        self._root = root
        self._policy = known_policy(ready)
        of_ready, of_live = _paths("ready_paths", ready_paths), _paths("live_paths", live_paths)
        for path in of_ready:
            if path in of_live:
                raise ValueError(f"{path!r} cannot be both in ready_paths and in live_paths")
        self._questions = {**dict.fromkeys(of_ready, READY), **dict.fromkeys(of_live, LIVE)}
        # The same few questions come again and again.
        self._asks = {q: {m: Ask(q, m, ready) for m in METHODS} for q in QUESTIONS}
        #: Every PATH_INFO that a check can have, wherever the app is mounted. A request whose
        #: PATH_INFO is not among these is none, and one look-up is all it costs to know.
        self.suspects = frozenset(_tails(["/", "*", *self._questions] if root else self._questions))

    def asked(self, method: str, path: str, query: str, headers: Container[str]) -> Ask | None:
        """Return what is asked, or ``None`` if the request is the app's.

        :param path: the path that the balancer asked for, as WSGI has it: SCRIPT_NAME + PATH_INFO,
            percent-decoded, with the slashes that the server passes.
        :param headers: the names of the headers that came, in CGI spelling (``HTTP_ORIGIN``).
        """
        question = self._questions.get(path)
        if question is None:
            if method != "OPTIONS" or not self._root or path not in ("/", "*", ""):
                return None
            if _somebody_behind(headers):
                return None
            question = READY
        if query:
            policy, warn = _wishes(query)
            return Ask(question, method, self._policy if policy is None else policy, warn)
        return self._asks[question].get(method) or Ask(question, method)


def _somebody_behind(headers: Container[str]) -> bool:
    # A loop over SOMEBODY_BEHIND, which takes twice as long as the names written out.
    return (
        "HTTP_ORIGIN" in headers
        or "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in headers
        or "HTTP_X_FORWARDED_FOR" in headers
        or "HTTP_FORWARDED" in headers
        or "HTTP_VIA" in headers
        or "HTTP_X_REAL_IP" in headers
    )


def _wishes(query: str) -> tuple[str | None, str | None]:
    """Return the values of ``ready=`` and ``warn=`` in a query string: the last one counts."""
    given = parse_qs(query[:LONGEST_QUERY], keep_blank_values=True)
    return given.get("ready", [None])[-1], given.get("warn", [None])[-1]


def _paths(name: str, paths: Iterable[str]) -> tuple[str, ...]:
    if isinstance(paths, str):
        raise TypeError(f"{name} must be a list of paths, not the string {paths!r}: [{paths!r}]")
    try:
        paths = tuple(paths)
    except TypeError:
        raise TypeError(f"{name} must be a list of paths, not {paths!r}") from None
    for path in paths:
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f"{name} must hold paths that begin with '/', not {path!r}")
    return paths


def _tails(paths: Iterable[str]) -> Iterable[str]:
    """Yield each path and what remains of it behind every place where an app can be mounted."""
    for path in paths:
        yield path
        while path:
            path = "/".join(["", *path.split("/")[2:]])
            yield path
