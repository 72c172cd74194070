"""What the states look like in HTTP: every status code and phrase lives here."""

from __future__ import annotations

import json
import logging
import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from webob import Request, Response
from webob.acceptparse import create_accept_header

from .checks import LIVE, METHODS, Ask
from .policy import DRAINING, READY_POLICIES, Reason, Verdict, flag, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .load import Load

logger = logging.getLogger("wsgi_busyguard")

TEXT = "text/plain"
HEALTH_JSON = "application/health+json"
JSON = "application/json"
OFFERS = (TEXT, HEALTH_JSON, JSON)

ALLOW = ", ".join(METHODS)
ALIVE = "alive"

# The words an answer can have, each with whether all is well.
WORDS = (("free", True), ("busy", True), ("busy", False), (DRAINING, False), (ALIVE, True))

# HAProxy takes 2xx and 3xx for healthy, so busy is a 5xx; 503 is the one that says "for now"
# (RFC 9110, section 15.6.4). Varnish, Envoy, ALB and GCP want exactly 200 for well.
WELL, NOT_NOW = 200, 503

# A browser's is a tenth of this. It costs 1 us a character, which a peer should not choose.
LONGEST_ACCEPT = 1000

REFUSED_HEADER = "Busyguard-Refused"

# Clients that were refused together should not come back together: Retry-After is one of this
# many values, a second apart.
JITTER = 3


class Answer:
    """A WSGI app that always answers the same.

    What :class:`webob.Response` does when it is called, for a response that nobody changes: less
    than half the time.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, response: Response) -> None:
        self.status: str = response.status
        self.headers: list[tuple[str, str]] = response.headerlist
        self.body: bytes = response.body

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer; a WSGI call."""
        start_response(self.status, self.headers[:])  # a copy, for servers may change it
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


class Answers:
    """The answers to checks, and the refusals; built once, used for every request.

    :param refusal: a WSGI app to answer refused requests instead of the plain ``busy``.
    :param retry_after: the least number of seconds in a refusal's ``Retry-After``.
    :param expose_load: whether answers to checks carry the figures.
    """

    def __init__(
        self,
        *,
        refusal: WSGIApplication | None = None,
        retry_after: int = 1,
        expose_load: bool = False,
    ) -> None:
        whole("retry_after", retry_after, least=0)
        flag("expose_load", expose_load)
        if refusal is not None and not callable(refusal):
            raise TypeError(f"refusal must be a WSGI app, not {refusal!r}")
        self._expose_load = expose_load
        self._built = {
            (word, well, media, options): _build(word, well, media, options)
            for word, well in WORDS
            for media in OFFERS
            for options in (False, True)
        }
        self._refusals = {
            reason: Refusal(reason, range(retry_after, retry_after + JITTER), refusal)
            for reason in Reason
        }

    def to(self, ask: Ask, accept: str | None, check: Callable[[Ask], Verdict]) -> Answer:
        """Return the answer to a check; ``check`` is called where the state matters."""
        question, method, ready = ask
        if method not in METHODS:
            return _plain(405, f"a check is one of {ALLOW}, not {method}", Allow=ALLOW)
        media = TEXT if accept is None or accept == "*/*" else _preferred(accept)
        options = method == "OPTIONS"
        if question is LIVE:
            return self._built[ALIVE, True, media, options]
        if ready is not None and ready not in READY_POLICIES:
            allow = {"Allow": ALLOW} if options else {}
            return _plain(400, f"ready must be one of {', '.join(READY_POLICIES)}", **allow)
        word, well, load = check(ask)
        if self._expose_load:
            return _build(word, well, media, options, load)
        return self._built[word, well, media, options]

    def refused(self, reason: Reason) -> Refusal:
        """Return the WSGI app that refuses a request for ``reason``."""
        return self._refusals[reason]


class Refusal:
    """Refuses a request: a WSGI app that promises that the guarded one has not run."""

    def __init__(self, reason: Reason, pauses: range, custom: WSGIApplication | None) -> None:
        self._reason = reason
        self._custom = custom
        self._plain = [
            _plain(NOT_NOW, "busy", **{"Retry-After": str(pause), REFUSED_HEADER: reason.value})
            for pause in pauses
        ]
        self._failing = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Refuse; a WSGI call."""
        plain = random.choice(self._plain)
        if self._custom is None:
            return plain(environ, start_response)
        try:
            status, headers, body = _called(self._custom, environ)
            self._failing = False
        except Exception:
            if not self._failing:
                self._failing = True
                logger.exception("the refusal app raised; refusing with the plain answer instead")
            return plain(environ, start_response)
        start_response(status, [*headers, *_missing(headers, plain.headers)])
        return body


def _called(
    app: WSGIApplication, environ: WSGIEnvironment
) -> tuple[str, list[tuple[str, str]], list[bytes]]:
    """Return what an app answers, read to its end: whatever it raises, it raises here."""
    status, headers, body = Request(environ).call_application(app)
    try:
        return status, headers, list(body)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()


def _missing(
    headers: Iterable[tuple[str, str]], marks: Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return what marks a refusal as one and ``headers`` do not have."""
    there = {"content-type", "content-length", *(name.lower() for name, _ in headers)}
    return [(name, value) for name, value in marks if name.lower() not in there]


def json_answer(shown: dict[str, Any]) -> Answer:
    """Return the answer that shows ``shown``."""
    return Answer(_response(WELL, json.dumps(shown), JSON, {}))


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


@lru_cache(maxsize=64)  # balancers and probes are few, and each always sends the same
def _preferred(accept: str) -> str:
    if len(accept) > LONGEST_ACCEPT:
        return TEXT
    try:
        offers = create_accept_header(accept).acceptable_offers(OFFERS)
    except Exception:  # whatever a peer put there, a check is answered
        return TEXT
    return offers[0][0] if offers else TEXT


def _plain(status: int, text: str, **headers: str) -> Answer:
    return Answer(_response(status, text, "text/plain; charset=utf-8", headers))


def _response(status: int, text: str, content_type: str, headers: dict[str, str]) -> Response:
    response = Response(status=status, body=text.encode())
    response.headers["Content-Type"] = content_type
    response.headers["Cache-Control"] = "no-store"
    for name, value in headers.items():
        response.headers[name] = value
    return response


def _build(word: str, well: bool, media: str, options: bool, load: Load | None = None) -> Answer:
    status = WELL if well else NOT_NOW
    headers = {"Allow": ALLOW} if options else {}
    shown = {} if load is None else figures(load)
    if media != TEXT:
        text = json.dumps({"status": _health(word, well), "state": word, **shown})
        return Answer(_response(status, text, media, headers))
    known = [f"{name}={value}" for name, value in shown.items() if value is not None]
    return _plain(status, " ".join([word, *known]), **headers)


def _health(word: str, well: bool) -> str:
    """Return health+json's word for it (draft-inadarei-api-health-check-06, section 3.1)."""
    if not well:
        return "fail"
    return "warn" if word == "busy" else "pass"
