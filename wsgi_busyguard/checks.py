"""Which requests are checks, and what they ask. Knows requests, not answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

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


#: What a check asks: should new requests come here? Does the interpreter make progress?
READY, LIVE = QUESTIONS = ("ready", "live")


class Ask(NamedTuple):
    """A check.

    :param question: what is asked.
    :param method: the request's method.
    :param ready: the ready policy it names, if any; not necessarily a known one.
    """

    question: str
    method: str
    ready: str | None = None


class Checks:
    """The requests that are taken for checks.

    :param root: whether ``OPTIONS /`` and ``OPTIONS *`` are, as bare ``option httpchk`` sends it.
    :param ready_paths: paths that ask whether new requests should come here.
    :param live_paths: paths that ask whether the interpreter makes progress.
    """

    def __init__(
        self, root: bool = True, ready_paths: Iterable[str] = (), live_paths: Iterable[str] = ()
    ) -> None:
        self._root = root
        ready, live = _paths("ready_paths", ready_paths), _paths("live_paths", live_paths)
        for path in ready:
            if path in live:
                raise ValueError(f"{path!r} cannot be both in ready_paths and in live_paths")
        self._questions = {**dict.fromkeys(ready, READY), **dict.fromkeys(live, LIVE)}
        # The same few questions come again and again.
        self._asks = {q: {method: Ask(q, method) for method in METHODS} for q in QUESTIONS}
        #: Every PATH_INFO that a check can have, wherever the app is mounted. A request whose
        #: PATH_INFO is not among these is none, and one look-up is all it costs to know.
        self.suspects = frozenset(_tails(["/", "*", *self._questions] if root else self._questions))

    def asked(self, method: str, path: str, query: str, headers: Container[str]) -> Ask | None:
        """Return what is asked, or ``None`` if the request is the app's.

        :param path: the path that the balancer asked for: SCRIPT_NAME + PATH_INFO.
        :param headers: the names of the headers that came, in CGI spelling (``HTTP_ORIGIN``).
        """
        question = self._questions.get(path)
        if question is None:
            if method != "OPTIONS" or not self._root or path not in ("/", "*", ""):
                return None
            for name in SOMEBODY_BEHIND:
                if name in headers:
                    return None
            question = READY
        if query:
            return Ask(question, method, _policy(query))
        return self._asks[question].get(method) or Ask(question, method)


def _policy(query: str) -> str | None:
    """Return the value of ``ready=`` in a query string: the last one counts."""
    values = parse_qs(query, keep_blank_values=True).get("ready")
    return values[-1] if values else None


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
