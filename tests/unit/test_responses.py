from __future__ import annotations

import json
import logging

import pytest
import webob.exc
import werkzeug.exceptions
from hypothesis import example, given
from hypothesis import strategies as st

from wsgi_busyguard import Load
from wsgi_busyguard import responses as module
from wsgi_busyguard.checks import LIVE, METHODS, READY, Check, Checks
from wsgi_busyguard.load import UNKNOWN
from wsgi_busyguard.policy import Reason, Verdict
from wsgi_busyguard.responses import JITTER_SECONDS, Responses, figures, not_found, not_http

LOAD = Load(7, 10, 10, waited=0.84, service=0.1)

FREE = Verdict("free", True, Load(0, 0, 10))
BUSY_WELL = Verdict("busy", True, LOAD)
BUSY = Verdict("busy", False, LOAD)
DRAINING = Verdict("draining", False, LOAD)
ABSENT = Verdict("absent", False, LOAD)


@pytest.fixture
def responses():
    return Responses()


@pytest.fixture
def told(responses, ask):
    """Ask, and have the monitor find this verdict."""
    checks = Checks(True, ["/readyz"], ["/livez"])

    def told(verdict, method="GET", question=READY, query="", accept=None, responses=responses):
        path = "/readyz" if question is READY else "/livez"
        check = checks.match_request(method, path, query, ())
        verdict = verdict if check.policy else None
        return ask(responses.for_check(check, verdict, accept), method)

    return told


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("verdict", "status", "word"),
    [
        pytest.param(FREE, 200, "free", id="free"),
        pytest.param(BUSY_WELL, 200, "busy", id="busy, and still 200"),
        pytest.param(BUSY, 503, "busy", id="busy"),
        pytest.param(DRAINING, 503, "draining", id="draining"),
        pytest.param(ABSENT, 503, "absent", id="absent"),
    ],
)
def test_the_status_says_what_the_policy_makes_of_the_state_in_the_body(
    told, method, verdict, status, word
):
    response = told(verdict, method)
    assert response.status == status
    assert response.text == ("" if method == "HEAD" else word)
    assert response.headers["Content-Length"] == str(len(word))
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers.get("Allow") == ("GET, HEAD, OPTIONS" if method == "OPTIONS" else None)


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_head_has_the_headers_of_get(told, accept):
    assert told(BUSY, "HEAD", accept=accept).headers == told(BUSY, "GET", accept=accept).headers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("verdict", [FREE, BUSY, DRAINING], ids=lambda v: v.word)
def test_live_is_alive_and_never_looks_at_the_load(told, method, verdict):
    response = told(verdict, method, LIVE)
    assert response.status == 200
    assert response.text == ("" if method == "HEAD" else "alive")


@pytest.mark.parametrize("method", METHODS)
def test_live_is_stalled_when_those_who_serve_make_no_progress(responses, ask, method):
    def live(well, accept=None):
        return ask(responses.for_check(Check(LIVE, method), None, accept, well), method)

    assert (live(True).status, live(False).status) == (200, 503)
    if method != "HEAD":
        assert (live(True).text, live(False).text) == ("alive", "stalled")
        assert json.loads(live(False, JSON).text) == {"status": "fail", "state": "stalled"}
        assert json.loads(live(True, HEALTH).text) == {"status": "pass", "state": "alive"}


@pytest.mark.parametrize("question", [READY, LIVE])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_any_other_method_is_told_which_are_allowed(told, question, method):
    response = told(BUSY, method, question)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert response.text == f"a check is one of GET, HEAD, OPTIONS, not {method}"


@pytest.mark.parametrize("ready", ["", "Exact", "no", "\ufffd"])
@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_policy_is_told_the_three(told, method, ready):
    response = told(BUSY, method, query=f"ready={ready}")
    assert response.status == 400
    words = "ready must be one of exact, damped, always"
    assert response.text == ("" if method == "HEAD" else words)
    assert ("Allow" in response.headers) == (method == "OPTIONS")


# Negotiation

HEALTH, JSON, TEXT = "application/health+json", "application/json", "text/plain"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        (JSON, JSON),
        (HEALTH, HEALTH),
        ("application/*", HEALTH),
        (f"{JSON};q=0.5, text/html", JSON),
        (f"text/plain;q=0.1, {JSON}", JSON),
        (f"{JSON};q=0, */*", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        ("image/png", TEXT),
        ("", TEXT),
        ("garbage", TEXT),
        (";;;,,,q=q", TEXT),
        ("application/json;q=9000", TEXT),
        ('application/json;x="', TEXT),
    ],
)
def test_an_answer_is_text_unless_json_is_preferred(told, accept, media):
    content_type = told(FREE, accept=accept).headers["Content-Type"]
    assert content_type.partition(";")[0] == media


@pytest.mark.parametrize("accept", [HEALTH, JSON])
@pytest.mark.parametrize(
    ("verdict", "question", "status", "shown"),
    [
        pytest.param(FREE, READY, 200, {"status": "pass", "state": "free"}, id="free"),
        pytest.param(BUSY_WELL, READY, 200, {"status": "warn", "state": "busy"}, id="still 200"),
        pytest.param(BUSY, READY, 503, {"status": "fail", "state": "busy"}, id="busy"),
        pytest.param(DRAINING, READY, 503, {"status": "fail", "state": "draining"}, id="draining"),
        pytest.param(BUSY, LIVE, 200, {"status": "pass", "state": "alive"}, id="alive"),
    ],
)
def test_json_speaks_the_words_of_health_json(told, accept, verdict, question, status, shown):
    response = told(verdict, accept=accept, question=question)
    assert response.status == status
    assert json.loads(response.text) == shown
    assert response.headers["Content-Type"] == accept
    assert response.headers["Content-Length"] == str(len(response.body))


@pytest.mark.slow
@given(st.text(st.characters(max_codepoint=255), max_size=200))
@example("a/b;" * 2000)
@example("," * 8000)
@example('a/b;c="' + "\\a" * 4000)
@example("a/b;q=" + "0" * 8000 + ", " * 99)
def test_garbage_for_accept_is_answered_with_text(accept):
    answer = Responses().for_check(Check(LIVE, "GET"), None, accept)
    assert answer.body in (b"alive", b'{"status": "pass", "state": "alive"}')


def test_an_answer_that_says_something_else_differs_in_nothing_else(ask):
    there, other = not_found("here"), not_found("here").saying("\N{EURO SIGN} is not here")
    assert other.status == there.status
    headers, changed = dict(there.headers), dict(other.headers)
    assert changed.pop("Content-Length") == "15"
    assert headers.pop("Content-Length") == "4"
    assert changed == headers
    assert ask(other).text == "\N{EURO SIGN} is not here"


@pytest.mark.parametrize("status", [400, 431])
def test_what_is_no_request_gets_an_answer_all_the_same(ask, status):
    response = ask(not_http(status))
    assert (response.status, response.headers["Cache-Control"]) == (status, "no-store")


# Figures


def test_no_figures_unless_asked_for(told):
    assert told(BUSY).text == "busy"
    assert set(json.loads(told(BUSY, accept=JSON).text)) == {"status", "state"}


def test_the_figures_follow_the_word(told):
    shows = Responses(expose_load=True)
    response = told(BUSY, responses=shows)
    assert response.text == "busy queued=7 active=10 capacity=10 delay=0.84"
    assert response.headers["Content-Length"] == str(len(response.body))
    assert told(FREE, responses=shows).text == "free queued=0 active=0 capacity=10 delay=0.0"


def test_the_figures_stand_beside_the_state_in_json(told):
    response = told(BUSY, accept=JSON, responses=Responses(expose_load=True))
    assert json.loads(response.text) == {
        "status": "fail",
        "state": "busy",
        "queued": 7,
        "active": 10,
        "capacity": 10,
        "delay": 0.84,
    }


def test_what_is_not_known_is_left_out(told):
    verdict = Verdict("free", True, UNKNOWN)
    shows = Responses(expose_load=True)
    assert told(verdict, responses=shows).text == "free queued=0 active=0 delay=0.0"
    assert json.loads(told(verdict, accept=JSON, responses=shows).text)["capacity"] is None


def test_live_shows_no_figures(told):
    assert told(BUSY, question=LIVE, responses=Responses(expose_load=True)).text == "alive"


def test_figures_are_rounded_to_the_millisecond():
    assert figures(Load(1, 2, 3, waited=0.123456, service=0.01))["delay"] == 0.123


# Refusals


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.value)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_refusal_says_why_and_when_to_come_back(responses, ask, reason, method):
    response = ask(responses.refused(reason), method)
    assert response.status == 503
    assert response.text == ("" if method == "HEAD" else "busy")
    assert response.headers["Busyguard-Refused"] == reason.value
    assert response.headers["Content-Length"] == "4"
    assert response.headers["Cache-Control"] == "no-store"
    assert 1 <= int(response.headers["Retry-After"]) < 1 + JITTER_SECONDS


def test_the_reasons_are_the_promised_words():
    assert {reason.value for reason in Reason} == {"queue-full", "queue-age", "draining"}


@pytest.mark.parametrize("least", [0, 1, 30])
def test_those_who_are_refused_together_do_not_come_back_together(ask, least):
    refusal = Responses(retry_after=least).refused(Reason.QUEUE_FULL)
    pauses = {int(ask(refusal).headers["Retry-After"]) for _ in range(200)}
    assert pauses == set(range(least, least + JITTER_SECONDS))


def test_refusing_writes_no_log(responses, ask, caplog):
    caplog.set_level(logging.DEBUG)
    for _ in range(100):
        ask(responses.refused(Reason.QUEUE_FULL))
    assert caplog.records == []


def test_one_peer_s_headers_are_not_the_next_one_s(responses, environ):
    """Servers add to the list that they are given."""
    seen = []

    def start_response(status, headers, exc_info=None):
        seen.append(list(headers))
        headers.append(("Via", "server"))

    refusal = responses.refused(Reason.QUEUE_FULL)
    for _ in range(20):
        refusal(environ(), start_response)
    assert all(("Via", "server") not in headers for headers in seen)


def plain_refusal(environ, start_response):
    start_response("429 Too Many Requests", [("Content-Type", "text/html"), ("Retry-After", "9")])
    return [b"<h1>later</h1>"]


@pytest.mark.parametrize(
    ("custom", "status", "words"),
    [
        pytest.param(webob.exc.HTTPServiceUnavailable(), 503, "unavailable", id="WebOb"),
        pytest.param(werkzeug.exceptions.ServiceUnavailable(), 503, "unable", id="Werkzeug"),
        pytest.param(plain_refusal, 429, "<h1>later</h1>", id="a function"),
    ],
)
def test_a_refusal_may_be_any_wsgi_app_and_stays_marked_as_one(ask, custom, status, words, caplog):
    refusal = Responses(refusal=custom).refused(Reason.QUEUE_AGE)
    for _ in range(2):
        response = ask(refusal)
        assert response.status == status
        assert words in response.text
        assert response.headers["Busyguard-Refused"] == "queue-age"
        assert response.headers["Cache-Control"]
        assert int(response.headers["Retry-After"]) == (9 if status == 429 else pytest.approx(2, 1))
    assert caplog.records == []


def raising(environ, start_response):
    raise RuntimeError("no template")


def raising_late(environ, start_response):
    start_response("503 Service Unavailable", [])
    raise RuntimeError("no template")


def raising_in_the_body(environ, start_response):
    start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
    yield b"half of "
    raise RuntimeError("no template")


def silent(environ, start_response):
    return [b""]


def none(environ, start_response):
    return None


@pytest.mark.parametrize(
    "broken",
    [
        raising,
        raising_late,
        raising_in_the_body,
        silent,
        none,
        webob.exc.HTTPServiceUnavailable,
    ],
    ids=[
        "raises",
        "raises late",
        "raises in the body",
        "never starts",
        "returns None",
        "a class, not an app",
    ],
)
def test_a_refusal_app_that_fails_is_logged_once_and_replaced(ask, broken, caplog):
    refusal = Responses(refusal=broken).refused(Reason.QUEUE_FULL)
    for _ in range(5):
        response = ask(refusal)
        assert (response.status, response.text) == (503, "busy")
        assert response.headers["Busyguard-Refused"] == "queue-full"
    assert [record.getMessage() for record in caplog.records] == [
        "the refusal app raised; refusing with the plain answer instead"
    ]


def test_a_refusal_app_that_comes_back_and_fails_again_is_logged_again(ask, caplog):
    works = [False, True, False]

    def custom(environ, start_response):
        if not works.pop(0):
            raise RuntimeError
        return plain_refusal(environ, start_response)

    refusal = Responses(refusal=custom).refused(Reason.QUEUE_FULL)
    assert [ask(refusal).status for _ in range(3)] == [503, 429, 503]
    assert len(caplog.records) == 2


def test_the_body_of_a_refusal_app_is_closed(ask):
    closed = []

    class Body:
        def __iter__(self):
            return iter([b"later"])

        def close(self):
            closed.append(self)

    def custom(environ, start_response):
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return Body()

    assert ask(Responses(refusal=custom).refused(Reason.QUEUE_FULL)).text == "later"
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"refusal": "busy"}, TypeError, "refusal must be a WSGI app, not 'busy'"),
        ({"retry_after": -1}, ValueError, "retry_after must be at least 0, not -1"),
        ({"retry_after": 0.5}, TypeError, "retry_after must be a whole number, not 0.5"),
        ({"expose_load": "no"}, TypeError, "expose_load must be True or False, not 'no'"),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_was_expected_and_what_came(arguments, error, words):
    with pytest.raises(error) as caught:
        Responses(**arguments)
    assert str(caught.value) == words


def test_an_accept_header_longer_than_any_honest_one_is_not_parsed(told):
    """Parsing 64 kB of it would buy a peer a tenth of a second of a thread."""
    accept = JSON + "," * (1000 - len(JSON))
    assert told(FREE, accept=accept).headers["Content-Type"] == JSON
    assert told(FREE, accept=accept + ",").text == "free"


def test_an_accept_header_that_is_too_long_is_not_kept():
    """Those of the last 64 who asked are, and a server may take 262 kB of headers."""
    before = module._negotiated.cache_info().currsize
    assert module.preferred("a" * 1001) == "text/plain"
    assert module._negotiated.cache_info().currsize == before
