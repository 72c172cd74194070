"""Which requests are checks, and what they ask. Knows requests, not answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

from .policy import DAMPED, READY_POLICIES, known_policy

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

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

# An absolute target (RFC 9112, section 3.2.2), up to its path. Many servers pass all of it as
# PATH_INFO: wsgiref and Django's runserver, gevent's pywsgi, Tornado, uvicorn, Hypercorn, uWSGI.
_ORIGIN = re.compile("(?i:https?)://[^/]*")

#: What a check asks: should new requests come here? Does the interpreter make progress?
READY, LIVE = QUESTIONS = ("ready", "live")


#: The status that ``?warn=`` may ask for, for busy but still ready.
WARNING_STATUS = 429
_WARNS = (None, str(WARNING_STATUS))


class Check(NamedTuple):
    """A check.

    :param question: what is asked.
    :param method: the request's method; not necessarily one of those that checks have.
    :param policy: the ready policy to judge the load by; ``None`` where the load is not asked for:
        by live checks, and by what is not valid.
    :param warn: the status it wants for busy but still ready, if any; one that is not 429 cannot
        be meant.
    """

    question: str
    method: str
    policy: str | None = None
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
        known_policy(ready)
        of_ready, of_live = _paths("ready_paths", ready_paths), _paths("live_paths", live_paths)
        for path in of_ready:
            if path in of_live:
                raise ValueError(f"{path!r} cannot be both in ready_paths and in live_paths")
        self._questions = {**dict.fromkeys(of_ready, READY), **dict.fromkeys(of_live, LIVE)}
        # The same few questions come again and again.
        self._plain = {
            question: {method: Check(question, method, policy) for method in METHODS}
            for question, policy in ((READY, ready), (LIVE, None))
        }
        #: Every PATH_INFO that a check can have, wherever the app is mounted. A request whose
        #: PATH_INFO is not among these is none, and one look-up is all it costs to know.
        self.suspects = frozenset(_tails(["/", "*", *self._questions] if root else self._questions))
        #: The same where PATH_INFO may be an absolute target. This look-up takes 0.1 us.
        self.whole_suspects = WholeTargets(self.suspects)

    def match(self, environ: Mapping[str, Any]) -> Check | None:
        """Return the check that a request is, or ``None`` if it is the app's."""
        # The path that the balancer asked for, percent-decoded, with the slashes that came.
        path = environ.get("PATH_INFO", "")
        if "://" in path and (origin := _ORIGIN.match(path)):
            path = path[origin.end() :]
        else:
            path = environ.get("SCRIPT_NAME", "") + path
        method = environ["REQUEST_METHOD"]
        question = self._questions.get(path)
        if question is None:
            if method != "OPTIONS" or not self._root or path not in ("/", "*", ""):
                return None
            if _somebody_behind(environ):
                return None
            question = READY
        plain = self._plain[question].get(method)
        if plain is None:
            return Check(question, method)
        query = environ.get("QUERY_STRING")
        if not query or question is LIVE:
            return plain
        policy, warn = _wishes(query)
        if policy is None:
            policy = plain.policy
        if policy not in READY_POLICIES:
            return Check(question, method)
        return Check(question, method, policy if warn in _WARNS else None, warn)

    def match_request(
        self, method: str, path: str, query: str = "", headers: Iterable[str] = ()
    ) -> Check | None:
        """Return the same for a request without an environ.

        :param headers: the names of the headers that came, in CGI spelling (``HTTP_ORIGIN``).
        """
        if method != "OPTIONS" and path not in self._questions and "://" not in path:
            return None  # sooner than by an environ, for whoever looks at all that comes
        request = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
        return self.match({**dict.fromkeys(headers, ""), **request})


class WholeTargets:
    """These paths, and whatever may be an absolute target."""

    def __init__(self, paths: Container[str]) -> None:
        self._paths = paths

    def __contains__(self, path: Any) -> bool:
        return path in self._paths or "://" in path


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
