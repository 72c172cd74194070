"""What the states look like in HTTP: every status code and phrase lives here."""

from __future__ import annotations

import json
import random
import warnings
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():
    # WebOb imports cgi, which says on Python 3.11 and 3.12 that it will not be in 3.13. There WebOb
    # has another one.
    warnings.filterwarnings("ignore", "'cgi' is deprecated", DeprecationWarning)
    from webob import Response
    from webob.acceptparse import create_accept_header

from ._support.log import Streak
from ._support.wsgi_app import wsgi_app
from ._support.wsgi_call import called
from .checks import LIVE, METHODS, WARNING_STATUS, Check
from .counters import ANSWERS
from .policy import DAMPED_PATIENCE, READY_POLICIES, Reason, Verdict, flag, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .load import Load

TEXT = "text/plain"
HEALTH_JSON = "application/health+json"
JSON = "application/json"
OFFERS = (TEXT, HEALTH_JSON, JSON)

ALLOW = ", ".join(METHODS)
ALIVE, STALLED = "alive", "stalled"

# The states an answer can name, each with whether all is well.
CHECK_STATES = (*ANSWERS, (ALIVE, True), (STALLED, False))

# HAProxy takes 2xx and 3xx for healthy, so busy is a 5xx; 503 is the one that says "for now"
# (RFC 9110, section 15.6.4). Varnish, Envoy, ALB and GCP want exactly 200 for well.
WELL, NOT_NOW = 200, 503

# Envoy sends to hosts whose check says so only what those without it cannot take; the name counts.
DEGRADED = ("x-envoy-degraded", "true")

# Seconds that a new request would wait from which on that header is sent. Envoy asks every few
# seconds, so a queue that is gone by then is no reason to get less: to send it for every busy
# server measured worse than never to send it.
DEGRADED_FROM = DAMPED_PATIENCE / 2

# A browser's is a tenth of this, and a scraper's. It costs 1 us a character, which a peer should
# not choose.
LONGEST_ACCEPT = 1000

REFUSED_HEADER = "Busyguard-Refused"

# Clients that were refused together should not come back together: Retry-After is one of this
# many values, a second apart.
JITTER_SECONDS = 3


class Answer:
    """A WSGI app that always answers the same.

    What :class:`webob.Response` does when it is called, for a response that nobody changes: less
    than half the time.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def saying(self, text: str) -> Answer:
        """Return the same answer with another body.

        While a check port runs nothing else makes answers: WebOb might import something.
        """
        body = text.encode()
        headers = [pair for pair in self.headers if pair[0] != "Content-Length"]
        return Answer(self.status, [*headers, ("Content-Length", str(len(body)))], body)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer; a WSGI call."""
        start_response(self.status, self.headers[:])  # a copy, for servers may change it
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


class Responses:
    """The answers to checks, and the refusals; built once, used for every request.

    :param refusal: a WSGI app to answer refused requests instead of the plain ``busy``.
    :param retry_after: the least number of seconds in a refusal's ``Retry-After``.
    :param expose_load: whether answers to checks carry the figures, and Envoy's header for who is
        slow but still ready.
    :param degraded: whether they carry that header without the figures.
    """

    def __init__(
        self,
        *,
        refusal: WSGIApplication | None = None,
        retry_after: int = 1,
        expose_load: bool = False,
        degraded: bool = False,
    ) -> None:
        whole("retry_after", retry_after, least=0)
        flag("expose_load", expose_load)
        if refusal is not None:
            wsgi_app("refusal", refusal)
        self._expose_load = expose_load
        self._built = {
            (state, well, media, options): _build(state, well, media, options)
            for state, well in CHECK_STATES
            for media in OFFERS
            for options in (False, True)
        }
        self._not_allowed = _plain(405, "", Allow=ALLOW)
        busy = {key: one for key, one in self._built.items() if key[:2] == ("busy", True)}
        # Consul takes 429 for a warning, and all others but 2xx for critical.
        status = f"{WARNING_STATUS} Too Many Requests"
        self._warning = {k: Answer(status, one.headers, one.body) for k, one in busy.items()}
        self._degrades = expose_load or degraded
        self._degraded = {
            key: Answer(one.status, [*one.headers, DEGRADED], one.body) for key, one in busy.items()
        }
        unknown = f"ready must be one of {', '.join(READY_POLICIES)}"
        self._unknown = {False: _plain(400, unknown), True: _plain(400, unknown, Allow=ALLOW)}
        other = f"warn must be {WARNING_STATUS}, the status for busy but still ready"
        self._unwarned = {False: _plain(400, other), True: _plain(400, other, Allow=ALLOW)}
        self._refusals = {
            reason: Refusal(reason, range(retry_after, retry_after + JITTER_SECONDS), refusal)
            for reason in Reason
        }

    def for_check(
        self, check: Check, verdict: Verdict | None, accept: str | None = None, alive: bool = True
    ) -> Answer:
        """Return the answer to a check.

        :param verdict: what the monitor makes of ``check.policy``; ``None`` where there is none.
        :param accept: the media types that it accepts.
        :param alive: whether those who serve make progress; matters to live checks only.
        """
        question, method, _, warn = check
        media = TEXT if accept is None or accept == "*/*" else preferred(accept)
        options = method == "OPTIONS"
        if verdict is None:
            if method not in METHODS:
                return self._not_allowed.saying(f"a check is one of {ALLOW}, not {method}")
            if question is LIVE:
                return self._built[ALIVE if alive else STALLED, alive, media, options]
            return (self._unknown if warn is None else self._unwarned)[options]
        state, well, load = verdict
        built = self._built[state, well, media, options]
        if state == "busy" and well:
            if self._degrades and not _soon(load):
                built = self._degraded[state, well, media, options]
            if warn is not None:
                built = self._warning[state, well, media, options]
        return built.saying(_text(state, well, media, load)) if self._expose_load else built

    def refused(self, reason: Reason) -> Refusal:
        """Return the WSGI app that refuses a request for ``reason``."""
        return self._refusals[reason]


class Refusal:
    """Refuses a request: a WSGI app that promises that the guarded one has not run.

    :ivar plain: what it may say where no app of the site's says it, each with its ``Retry-After``.
    """

    def __init__(self, reason: Reason, pauses: range, custom: WSGIApplication | None) -> None:
        self._reason = reason
        self._custom = custom
        self.plain = [_refusal(reason, pause) for pause in pauses]
        self._raising = Streak()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Refuse; a WSGI call."""
        plain = random.choice(self.plain)
        if self._custom is None:
            return plain(environ, start_response)
        try:
            status, headers, body = called(self._custom, environ)
            self._raising.over()
        except Exception:
            self._raising.failed(
                "the refusal app raised; refusing with the plain answer instead", exc_info=True
            )
            return plain(environ, start_response)
        start_response(status, [*headers, *_missing(headers, plain.headers)])
        return body


def _missing(
    headers: Iterable[tuple[str, str]], marks: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return what marks a refusal as one and ``headers`` do not have."""
    there = {"content-type", "content-length", *(name.lower() for name, _ in headers)}
    return [(name, value) for name, value in marks if name.lower() not in there]


def json_answer(shown: Mapping[str, object]) -> Answer:
    """Return the answer that shows ``shown``."""
    return _JSON.saying(json.dumps(shown))


def metrics_answer(body: bytes, content_type: str) -> Answer:
    """Return the answer that is these metrics. Made without WebOb, as :meth:`Answer.saying` is."""
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    return Answer(_JSON.status, [*headers, ("Cache-Control", "no-store")], body)


def page_answer(headers: list[tuple[str, str]], body: str) -> Answer:
    """Return the answer that is a page. Made without WebOb, as :meth:`Answer.saying` is."""
    data = body.encode()
    return Answer(_JSON.status, [*headers, ("Content-Length", str(len(data)))], data)


def not_for(allow: str) -> Answer:
    """Return the answer that something is here, but not for that method (405)."""
    return _plain(405, f"this is for {allow}", Allow=allow)


def not_here(text: str) -> Answer:
    """Return the answer that this could be here, and what it takes (501)."""
    return _plain(501, text)


def too_many(text: str) -> Answer:
    """Return the answer that enough others are served that way."""
    return _plain(NOT_NOW, text)


def stream_head() -> bytes:
    """Return the head of a stream of server-sent events (HTML standard, section 9.2)."""
    lines = [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Cache-Control: no-store",
        "X-Accel-Buffering: no",  # else nginx would keep events until it has a page of them
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def not_found(text: str) -> Answer:
    """Return the answer that nothing is here, and ``text``."""
    return _plain(404, text)


def figures(load: Load) -> dict[str, Any]:
    """Return a load as answers show it, in seconds to the millisecond."""
    return {
        "queued": load.queued,
        "active": load.active,
        "capacity": load.capacity,
        "delay": None if load.delay is None else round(load.delay, 3),
    }


def preferred(accept: str) -> str:
    """Return the media type for who accepts these; one who says very much gets text."""
    return _negotiated(accept) if len(accept) <= LONGEST_ACCEPT else TEXT


@lru_cache(maxsize=64)  # balancers and probes are few, and each always sends the same
def _negotiated(accept: str) -> str:
    try:
        offers = create_accept_header(accept).acceptable_offers(OFFERS)
    except Exception:  # whatever a peer put there, a check is answered
        return TEXT
    return offers[0][0] if offers else TEXT


def not_http(status: int) -> Answer:
    """Return the answer to what is no request (400), or has a head without end (431)."""
    return _plain(status, "expected the short head of an HTTP/1 request")


def _plain(status: int, text: str, **headers: str) -> Answer:
    return _answer(status, text, "text/plain; charset=utf-8", headers)


def _answer(status: int, text: str, content_type: str, headers: dict[str, str]) -> Answer:
    response = Response(status=status, body=text.encode())
    response.headers["Content-Type"] = content_type
    response.headers["Cache-Control"] = "no-store"
    for name, value in headers.items():
        response.headers[name] = value
    return Answer(response.status, response.headerlist, response.body)


# The answers to checks and the plain refusals are the same for every guard, and WebOb takes 1.4 ms
# to make them. Nobody changes an Answer.
@lru_cache(maxsize=64)
def _refusal(reason: Reason, pause: int) -> Answer:
    headers = {"Retry-After": str(pause), REFUSED_HEADER: reason.value}
    return _plain(NOT_NOW, "busy", **headers)


@cache
def _build(state: str, well: bool, media: str, options: bool) -> Answer:
    status = WELL if well else NOT_NOW
    headers = {"Allow": ALLOW} if options else {}
    content_type = "text/plain; charset=utf-8" if media == TEXT else media
    return _answer(status, _text(state, well, media), content_type, headers)


def _soon(load: Load) -> bool:
    return load.delay is not None and load.delay < DEGRADED_FROM


def _text(state: str, well: bool, media: str, load: Load | None = None) -> str:
    shown = {} if load is None else figures(load)
    if media != TEXT:
        return json.dumps({"status": _health(state, well), "state": state, **shown})
    return " ".join(
        [state, *(f"{name}={value}" for name, value in shown.items() if value is not None)]
    )


def _health(state: str, well: bool) -> str:
    """Return the status of health+json (draft-inadarei-api-health-check-06, section 3.1)."""
    if not well:
        return "fail"
    return "warn" if state == "busy" else "pass"


_JSON = _answer(WELL, "{}", JSON, {})
